//! Changes to the messages of protobuf, whose lengths are those of what they then hold.

use super::mutate::{Rng, SIZES, havoc};

#[derive(Clone)]
enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(Vec<u8>),
    Message(Vec<Field>),
}

type Field = (u64, Value);

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// The fields of a message; none where the bytes are no message.
fn parse(bytes: &[u8]) -> Option<Vec<Field>> {
    let (mut at, mut all) = (0, Vec::new());
    while at < bytes.len() {
        let key = varint(bytes, &mut at)?;
        if key >> 3 == 0 || key >> 3 > 100 {
            return None;
        }
        let take = |at: &mut usize, len: usize| {
            let found = bytes.get(*at..at.checked_add(len)?)?;
            *at += len;
            Some(found)
        };
        let value = match key & 7 {
            0 => Value::Varint(varint(bytes, &mut at)?),
            1 => Value::Fixed64(take(&mut at, 8)?.try_into().ok()?),
            2 => {
                let len = usize::try_from(varint(bytes, &mut at)?).ok()?;
                let inner = take(&mut at, len)?;
                let text = !inner.is_empty() && inner.iter().all(|b| b.is_ascii_graphic());
                match parse(inner).filter(|fields| !text && !fields.is_empty()) {
                    Some(fields) => Value::Message(fields),
                    None => Value::Bytes(inner.to_vec()),
                }
            }
            5 => Value::Fixed32(take(&mut at, 4)?.try_into().ok()?),
            _ => return None,
        };
        all.push((key >> 3, value));
    }
    Some(all)
}

fn put(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn write(fields: &[Field], out: &mut Vec<u8>) {
    for (number, value) in fields {
        let kind = match value {
            Value::Varint(_) => 0,
            Value::Fixed64(_) => 1,
            Value::Bytes(_) | Value::Message(_) => 2,
            Value::Fixed32(_) => 5,
        };
        put(number << 3 | kind, out);
        match value {
            Value::Varint(n) => put(*n, out),
            Value::Fixed64(bytes) => out.extend(bytes),
            Value::Fixed32(bytes) => out.extend(bytes),
            Value::Bytes(bytes) => {
                put(bytes.len() as u64, out);
                out.extend(bytes);
            }
            Value::Message(fields) => {
                let mut inner = Vec::new();
                write(fields, &mut inner);
                put(inner.len() as u64, out);
                out.extend(inner);
            }
        }
    }
}

/// Any field of a message, or of one in it.
fn any<'a>(fields: &'a [Field], rng: &mut Rng) -> &'a Field {
    let field = rng.pick(fields);
    match &field.1 {
        Value::Message(inner) if !rng.one_in(4) => any(inner, rng),
        _ => field,
    }
}

fn change(fields: &mut Vec<Field>, other: &[Field], rng: &mut Rng) {
    let at = rng.below(fields.len());
    let inside = !rng.one_in(5);
    match &mut fields[at].1 {
        Value::Message(inner) if inside && !inner.is_empty() => return change(inner, other, rng),
        _ => {}
    }
    match rng.below(10) {
        0 if fields.len() > 1 => drop(fields.remove(at)),
        1 => {
            let (again, to) = (fields[at].clone(), rng.below(fields.len() + 1));
            for _ in 0..if rng.one_in(20) { 300 } else { 1 } {
                fields.insert(to, again.clone());
            }
        }
        2 => {
            let to = rng.below(fields.len());
            fields.swap(at, to);
        }
        3 => fields[at].0 = 1 + rng.below(26) as u64,
        4 | 5 => {
            let with = any(other, rng).clone();
            let number = fields[at].0;
            fields[at] = if rng.one_in(2) { with } else { (number, with.1) };
        }
        _ => match &mut fields[at].1 {
            Value::Varint(n) if rng.one_in(2) => *n = *rng.pick(&SIZES[..]),
            Value::Varint(n) => *n = n.wrapping_add(rng.below(9) as u64).wrapping_sub(4),
            Value::Fixed64(bytes) => bytes[rng.below(8)] ^= 1 << rng.below(8),
            Value::Fixed32(bytes) => bytes[rng.below(4)] ^= 1 << rng.below(8),
            Value::Bytes(bytes) => havoc(bytes, rng),
            Value::Message(_) => fields[at].1 = Value::Message(Vec::new()),
        },
    }
}

/// `source` with a few of its fields changed, some to those of `other`.
pub fn mutated(source: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let (mut fields, other) = (parse(source).unwrap(), parse(other).unwrap());
    for _ in 0..1 + rng.below(3) {
        if !fields.is_empty() {
            change(&mut fields, &other, rng);
        }
    }
    let mut bytes = Vec::new();
    write(&fields, &mut bytes);
    bytes
}
