//! What a Keras layer says of its parameters for training: initialisers, regularisers and constraints. Initialisers are
//! written and not read: a file has values.

use super::config::{Object, class};
use super::describe::{number, object};
use crate::error::Result;
use crate::params::{Constraint, Initializer, Regularizer, Rules};
use serde_json::{Value, json};

/// The rules of the parameters that Keras calls `role`: `kernel`, `recurrent`, `bias`, `embeddings`. What this crate
/// does not have matters to training only, so it is left out with a warning.
pub(super) fn rules(config: Object<'_>, role: &str) -> Result<Rules> {
    let key = format!("{role}_constraint");
    let constraint = match config.get(&key) {
        Value::Null => None,
        value => {
            let (name, inner) = class(value, config.place)?;
            constraint(name, inner, role, !config.get("kernel_size").is_null())?
        }
    };
    if constraint.is_none() && !config.get(&key).is_null() {
        left_out(config, &key);
    }
    Ok(Rules { initializer: None, regularizer: regularizer(config, &format!("{role}_regularizer"))?, constraint })
}

/// The regulariser under `key`.
pub(super) fn regularizer(config: Object<'_>, key: &str) -> Result<Option<Regularizer>> {
    if config.get(key).is_null() {
        return Ok(None);
    }
    let (name, inner) = class(config.get(key), config.place)?;
    Ok(match name {
        "L1" => Some(Regularizer::l1(inner.float("l1", 0.01)?)),
        "L2" => Some(Regularizer::l2(inner.float("l2", 0.01)?)),
        "L1L2" => Some(Regularizer { l1: inner.float("l1", 0.0)?, l2: inner.float("l2", 0.0)? }),
        _ => {
            left_out(config, key);
            None
        }
    })
}

/// `windows` says whether the kernel has an axis of taps.
fn constraint(name: &str, config: Object<'_>, role: &str, windows: bool) -> Result<Option<Constraint>> {
    // Norms of what comes into an output: all axes of a kernel but the last, the second of a table.
    let axes: Vec<i64> = match config.get("axis") {
        Value::Array(list) => list.iter().filter_map(Value::as_i64).collect(),
        value => value.as_i64().into_iter().collect(),
    };
    let over_inputs = match role {
        "embeddings" => axes == [1],
        "kernel" if windows => axes == [0, 1],
        _ => axes == [0],
    };
    Ok(match name {
        "NonNeg" => Some(Constraint::NonNegative),
        "MaxNorm" if over_inputs => Some(Constraint::MaxNorm(config.float("max_value", 2.0)?)),
        "UnitNorm" if over_inputs => Some(Constraint::UnitNorm),
        "MinMaxNorm" if over_inputs => Some(Constraint::MinMaxNorm {
            min: config.float("min_value", 0.0)?,
            max: config.float("max_value", 1.0)?,
            rate: config.float("rate", 1.0)?,
        }),
        _ => None,
    })
}

fn left_out(config: Object<'_>, key: &str) {
    log::warn!("keras: {}: `{key}` is not known here; it matters only to training, and is left out", config.place);
}

/// Adds the rules of the parameters that Keras calls `role` to the configuration of their layer: `own` is how they
/// begin, `axis` that of the norms of what comes into an output.
pub(super) fn written(config: &mut Value, role: &str, own: Initializer, rules: &Rules, axis: &Value) {
    let initializer = initializer(own).unwrap_or_else(|| {
        log::warn!("keras: a {role} that begins by {own:?} is written to begin at zero, which its values do not");
        object("keras.initializers", "Zeros", json!({}))
    });
    config[format!("{role}_initializer")] = initializer;
    config[format!("{role}_regularizer")] = regularizer_of(rules.regularizer);
    let constraint = rules.constraint.map(|constraint| match constraint {
        Constraint::NonNegative => ("NonNeg", json!({})),
        Constraint::MaxNorm(max) => ("MaxNorm", json!({ "max_value": number(max), "axis": axis })),
        Constraint::UnitNorm => ("UnitNorm", json!({ "axis": axis })),
        Constraint::MinMaxNorm { min, max, rate } => (
            "MinMaxNorm",
            json!({ "min_value": number(min), "max_value": number(max), "rate": number(rate), "axis": axis }),
        ),
    });
    config[format!("{role}_constraint")] =
        constraint.map_or(Value::Null, |(class, config)| object("keras.constraints", class, config));
}

/// A regulariser as a serialised object.
pub(super) fn regularizer_of(regularizer: Option<Regularizer>) -> Value {
    regularizer.map_or(Value::Null, |r| {
        object("keras.regularizers", "L1L2", json!({ "l1": number(r.l1), "l2": number(r.l2) }))
    })
}

/// An initialiser as a serialised object, where Keras has one like it.
fn initializer(own: Initializer) -> Option<Value> {
    use Initializer as I;
    let (class, config) = match own {
        I::Zeros => ("Zeros", json!({})),
        I::Constant(value) => ("Constant", json!({ "value": number(value) })),
        I::Uniform(limit) => ("RandomUniform", json!({ "minval": number(-limit), "maxval": number(limit) })),
        I::Normal(deviation) => ("RandomNormal", json!({ "mean": 0.0, "stddev": number(deviation) })),
        I::TruncatedNormal(deviation) => ("TruncatedNormal", json!({ "mean": 0.0, "stddev": number(deviation) })),
        I::GlorotUniform => ("GlorotUniform", json!({})),
        I::GlorotNormal => ("GlorotNormal", json!({})),
        I::HeUniform => ("HeUniform", json!({})),
        I::HeNormal => ("HeNormal", json!({})),
        I::LecunUniform => ("LecunUniform", json!({})),
        I::LecunNormal => ("LecunNormal", json!({})),
        I::Orthogonal => ("Orthogonal", json!({ "gain": 1.0 })),
        I::ForgetBias(_) | I::Chrono(_) => return None,
    };
    Some(object("keras.initializers", class, config))
}
