//! The masks that layers get as Keras 3 runs a model. A file tells of those that Keras knew as it built the model, and
//! these end where a model inside gives something; as it runs, Keras takes the mask that a value carries wherever a call
//! is told of none, inside such a model and after it.

use super::entry::Entry;
use crate::error::{Error, Result};
use serde_json::Value;

/// A tensor of a whole model: the layer's number, its call, its output.
pub(super) type Tensor = (usize, usize, usize);

/// Which steps take part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Mask {
    /// All.
    None,
    /// Those at which a tensor is not `value`: a token, or any feature of a step if `rows`.
    Of { tensor: Tensor, value: f64, rows: bool },
    /// Others, such as those that several masks say together.
    Other,
}

/// What goes from one layer to another.
#[derive(Debug, Clone, Copy)]
pub(super) enum Carried {
    /// A tensor and the mask that it carries.
    Tensor(Tensor, Mask),
    /// The mask that an operation made.
    Mask(Mask),
}

/// The masks of a call.
#[derive(Debug)]
pub(super) struct Masks {
    /// Those that it computes with, one for each value that it reads and that may have one.
    pub taken: Vec<Mask>,
    /// That of its first output.
    pub given: Mask,
}

/// What a call of a layer reads.
pub(super) struct Read<'r> {
    /// What its errors call the layer.
    pub name: &'r str,
    /// The tensors in its first argument, with the masks that they carry.
    pub first: &'r [(Tensor, Mask)],
    /// Whether it reads others beside these, such as states.
    pub more: bool,
    /// The masks that it is told of.
    pub told: &'r [Option<Mask>],
    /// Whether it is an operation and no layer, which knows nothing of masks.
    pub operation: bool,
}

fn unsupported<T>(name: &str, what: &str) -> Result<T> {
    Err(Error::unsupported(format!("keras: {name}: {what}")))
}

/// Refuses a mask that a call is told of beside the one that what it reads carries.
pub(super) fn told(name: &str, carried: Mask, told: Option<Mask>) -> Result<()> {
    if told.is_some_and(|told| told != carried) {
        let what = "a mask that reaches it by another way than from the layers before it is not supported";
        return unsupported(name, what);
    }
    Ok(())
}

/// The mask that an operation makes of what it reads, and of the number that it compares this with.
pub(super) fn made(entry: &Entry<'_>, first: Option<Carried>, value: Option<f64>) -> Mask {
    let last = entry.config.get("axis") == &Value::from(-1);
    match (entry.class, first, value) {
        ("NotEqual", Some(Carried::Tensor(tensor, _)), Some(value)) => Mask::Of { tensor, value, rows: false },
        ("Any", Some(Carried::Mask(Mask::Of { tensor, value, rows: false })), _) if last => {
            Mask::Of { tensor, value, rows: true }
        }
        ("ConvertToTensor", Some(Carried::Mask(mask)), _) => mask,
        _ => Mask::Other,
    }
}

/// The masks of a call of a layer.
pub(super) fn masks(entry: &Entry<'_>, read: &Read<'_>) -> Result<Masks> {
    let first = read.first.first().map_or(Mask::None, |r| r.1);
    let told_one = match (read.told, entry.class) {
        ([], _) => None,
        (&[one], "LSTM" | "Bidirectional" | "GlobalAveragePooling1D" | "TimeDistributed") => one,
        (all, _) if all.iter().all(Option::is_none) => None,
        _ => return unsupported(read.name, "the argument `mask` is not supported"),
    };
    told(read.name, first, told_one)?;
    let setting = |key: &str| entry.config.get(key) == &Value::Bool(true);
    let (taken, given) = match entry.class {
        _ if read.operation => (Vec::new(), Mask::None),
        "Embedding" if !setting("mask_zero") => (Vec::new(), Mask::None),
        "Embedding" => (Vec::new(), compared(read, 0.0, false)),
        "Masking" => (Vec::new(), compared(read, entry.config.get("mask_value").as_f64().unwrap_or(0.0), true)),
        "LSTM" | "Bidirectional" => {
            // With states beside it Keras does not look for the mask of what it reads, and yet passes it on.
            let own = if read.more && told_one.is_none() { Mask::None } else { first };
            let given = match first {
                _ if !inner_setting(entry, "return_sequences") => Mask::None,
                // Keras turns the steps of its output round, and not their mask.
                Mask::Of { .. } if setting("go_backwards") => Mask::Other,
                same => same,
            };
            (vec![own], given)
        }
        "GlobalAveragePooling1D" => (vec![first], Mask::None),
        "Attention" | "AdditiveAttention" => (read.first.iter().take(2).map(|r| r.1).collect(), first),
        "Softmax" | "TimeDistributed" if first != Mask::None && is_softmax(entry) => {
            return unsupported(read.name, "a Softmax over masked steps is not supported");
        }
        // Of these Keras leaves out the values that a mask leaves out.
        "Multiply" | "Maximum" | "Minimum" if read.first.iter().any(|r| r.1 != Mask::None) => {
            return unsupported(read.name, &format!("a {} of masked steps is not supported", entry.class));
        }
        "Add" | "Subtract" | "Multiply" | "Average" | "Maximum" | "Minimum" | "Concatenate" => {
            let same = read.first.iter().all(|r| r.1 == first);
            (Vec::new(), if same { first } else { Mask::Other })
        }
        class if passes(class) => (Vec::new(), first),
        class if drops(class) => (Vec::new(), Mask::None),
        _ => (Vec::new(), if first == Mask::None { Mask::None } else { Mask::Other }),
    };
    if taken.contains(&Mask::Other) {
        return unsupported(read.name, "masks of several layers that are joined are not supported");
    }
    Ok(Masks { taken, given })
}

/// The mask of a layer that compares what it reads.
fn compared(read: &Read<'_>, value: f64, rows: bool) -> Mask {
    read.first.first().map_or(Mask::None, |r| Mask::Of { tensor: r.0, value, rows })
}

/// Whether it is a layer that leaves out elements by a mask, or a wrapper of one.
fn is_softmax(entry: &Entry<'_>) -> bool {
    let inner = entry.config.get("layer").get("class_name").and_then(Value::as_str);
    inner.unwrap_or(entry.class) == "Softmax"
}

/// A setting of a layer, or of the layer in a wrapper.
fn inner_setting(entry: &Entry<'_>, key: &str) -> bool {
    let inner = entry.config.get("layer").get("config").and_then(|c| c.get(key));
    inner.or_else(|| entry.config.value.get(key)) == Some(&Value::Bool(true))
}

/// Whether both directions of a layer are outputs of their own.
pub(super) fn is_apart(entry: &Entry<'_>) -> bool {
    entry.class == "Bidirectional" && entry.config.get("merge_mode").is_null()
}

/// How many outputs a layer has.
pub(super) fn outputs(entry: &Entry<'_>) -> usize {
    let states = inner_setting(entry, "return_state");
    match entry.class {
        "LSTM" => 1 + if states { 2 } else { 0 },
        "Bidirectional" => 1 + usize::from(is_apart(entry)) + if states { 4 } else { 0 },
        _ => 1,
    }
}

/// The layers whose output has the mask of what they read.
fn passes(class: &str) -> bool {
    let all = [
        "Activation",
        "ActivityRegularization",
        "AlphaDropout",
        "Dense",
        "Dropout",
        "ELU",
        "GaussianDropout",
        "GaussianNoise",
        "Identity",
        "LayerNormalization",
        "LeakyReLU",
        "ReLU",
        "Softmax",
        "SpatialDropout1D",
        "TimeDistributed",
    ];
    all.contains(&class)
}

/// The layers that see all steps, and after which no mask is known.
fn drops(class: &str) -> bool {
    let all = [
        "AveragePooling1D",
        "Conv1D",
        "Cropping1D",
        "Flatten",
        "GlobalMaxPooling1D",
        "MaxPooling1D",
        "Permute",
        "RepeatVector",
        "Reshape",
        "ZeroPadding1D",
    ];
    all.contains(&class)
}
