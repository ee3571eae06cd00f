//! Changes to JSON, which stays JSON.

use super::mutate::{Rng, SIZES, havoc};
use serde_json::{Value, json};

/// Any value in another.
fn any<'a>(value: &'a Value, rng: &mut Rng) -> &'a Value {
    let inner: Vec<&Value> = match value {
        Value::Array(all) => all.iter().collect(),
        Value::Object(all) => all.values().collect(),
        _ => return value,
    };
    if inner.is_empty() || rng.one_in(6) {
        return value;
    }
    let at = rng.below(inner.len());
    any(inner[at], rng)
}

fn change(value: &mut Value, whole: &Value, rng: &mut Rng) {
    let inside = !rng.one_in(8);
    match value {
        Value::Array(all) if inside && !all.is_empty() => {
            let at = rng.below(all.len());
            match rng.below(12) {
                0 => drop(all.remove(at)),
                1 => {
                    let again = all[at].clone();
                    for _ in 0..if rng.one_in(20) { 300 } else { 1 } {
                        all.insert(at, again.clone());
                    }
                }
                2 => {
                    let other = rng.below(all.len());
                    all.swap(at, other);
                }
                _ => change(&mut all[at], whole, rng),
            }
        }
        Value::Object(all) if inside && !all.is_empty() => {
            let keys: Vec<String> = all.keys().cloned().collect();
            let key = rng.pick(&keys[..]);
            match rng.below(20) {
                0 => drop(all.remove(key)),
                1 => drop(all.insert(rng.pick(&keys[..]).clone(), any(whole, rng).clone())),
                _ => change(&mut all[key], whole, rng),
            }
        }
        _ => {
            *value = match (rng.below(6), &*value) {
                (0, _) => any(whole, rng).clone(),
                (1, _) => {
                    rng.pick(&[Value::Null, json!(true), json!(false), json!([]), json!({}), json!("")][..]).clone()
                }
                (2 | 3, Value::Number(_)) => json!(rng.pick(&SIZES[..])),
                (_, Value::Number(n)) => {
                    let by = [-1e9f64, -2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 1e9];
                    match (n.as_i64(), rng.pick(&by[..])) {
                        (Some(n), &by) if by.fract() == 0.0 => json!(n.wrapping_add(by as i64)),
                        (_, by) => json!(n.as_f64().unwrap_or(0.0) * by),
                    }
                }
                (_, Value::String(text)) => {
                    // Text that is JSON itself, as the parts of our own files are.
                    match serde_json::from_str::<Value>(text) {
                        Ok(mut inner) if inner.is_object() => {
                            let whole = inner.clone();
                            change(&mut inner, &whole, rng);
                            json!(inner.to_string())
                        }
                        _ => {
                            let mut bytes = text.clone().into_bytes();
                            havoc(&mut bytes, rng);
                            json!(String::from_utf8_lossy(&bytes))
                        }
                    }
                }
                (_, other) => other.clone(),
            };
        }
    }
}

/// JSON with a few of its values changed; none where the bytes are none.
pub fn mutated(bytes: &[u8], rng: &mut Rng) -> Option<Vec<u8>> {
    let whole: Value = serde_json::from_slice(bytes).ok()?;
    let mut value = whole.clone();
    for _ in 0..1 + rng.below(3) {
        change(&mut value, &whole, rng);
    }
    serde_json::to_vec(&value).ok()
}

/// The same for the first JSON of some length among other bytes, in no more than its place.
pub fn mutated_inside(bytes: &mut [u8], rng: &mut Rng) {
    let starts = (0..bytes.len().saturating_sub(2)).filter(|&at| bytes[at..].starts_with(b"{\""));
    let found = starts.filter_map(|at| {
        let mut all = serde_json::Deserializer::from_slice(&bytes[at..]).into_iter::<Value>();
        all.next()?.ok()?;
        Some(at..at + all.byte_offset())
    });
    let Some(place) = found.take(4).max_by_key(std::ops::Range::len) else { return };
    let Some(mut changed) = mutated(&bytes[place.clone()], rng) else { return };
    if changed.len() <= place.len() {
        changed.resize(place.len(), b' ');
        bytes[place].copy_from_slice(&changed);
    }
}
