//! The layers that a configuration lists, and the tensors that their calls refer to.

use super::config::{Object, class};
use super::order::{Called, order};
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// One layer of the file.
pub(super) struct Entry<'a> {
    pub name: &'a str,
    pub class: &'a str,
    pub config: Object<'a>,
    /// Where it is called, in a functional model.
    pub nodes: &'a [Value],
}

pub(super) fn entry(value: &Value) -> Result<Entry<'_>> {
    let name = value.get("config").and_then(|c| c.get("name")).and_then(Value::as_str).unwrap_or("a layer");
    let (class, config) = class(value, name)?;
    let nodes = value.get("inbound_nodes").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    Ok(Entry { name, class, config, nodes })
}

/// A tensor: the layer's name, its call, its output.
pub(super) type Reference<'a> = (&'a str, usize, usize);

/// The tensor that each mask is made from, by the name of the operation that makes it.
pub(super) type Masks<'a> = BTreeMap<&'a str, Reference<'a>>;

/// Whether a layer is one of the operations that Keras adds where an embedding or a masking makes a mask, and where a
/// layer passes it on.
pub(super) fn is_mask(entry: &Entry<'_>) -> bool {
    matches!(entry.class, "NotEqual" | "Any" | "ConvertToTensor")
}

pub(super) fn masks<'a>(entries: &[Entry<'a>]) -> Result<Masks<'a>> {
    let mut masks = Masks::new();
    for entry in entries.iter().filter(|e| is_mask(e)) {
        let mut read = Vec::new();
        entry.nodes.iter().for_each(|node| tensors(node, &mut read));
        let ([tensor], 1) = (&read[..], entry.nodes.len()) else {
            return Err(Error::unsupported(format!(
                "keras: {}: a mask of several tensors is not supported",
                entry.name
            )));
        };
        masks.insert(entry.name, *tensor);
    }
    Ok(masks)
}

/// The tensors that the masks of a call are made from: one, or one for each tensor that it reads.
pub(super) fn masks_of<'a>(entry: &Entry<'a>, call: usize, masks: &Masks<'a>) -> Result<Vec<Option<Reference<'a>>>> {
    let node = Object { value: &entry.nodes[call], place: entry.name };
    let told = match node.get("kwargs").get("mask").unwrap_or(&Value::Null) {
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    let made_from = |mask: &'a Value| {
        let mut found = Vec::new();
        tensors(mask, &mut found);
        let Some(mut tensor) = found.first().copied() else { return Ok(None) };
        for _ in 0..=masks.len() {
            tensor = masks.get(tensor.0).copied().unwrap_or(tensor);
        }
        if found.len() > 1 || tensor == found[0] {
            return Err(Error::unsupported(format!("keras: {}: a mask that is computed is not supported", entry.name)));
        }
        Ok(Some(tensor))
    };
    told.iter().map(made_from).collect()
}

/// Whether a layer reads the tensor of `input`.
pub(super) fn reads(entry: &Entry<'_>, input: &str) -> bool {
    let mut found = Vec::new();
    entry.nodes.iter().for_each(|node| tensors(node, &mut found));
    found.iter().any(|f| f.0 == input)
}

/// Every tensor that `value` refers to, in order: the layer's name, its call, its output.
pub(super) fn tensors<'a>(value: &'a Value, found: &mut Vec<Reference<'a>>) {
    match value {
        Value::Array(list) => list.iter().for_each(|v| tensors(v, found)),
        Value::Object(object) => match object.get("config").and_then(|c| c.get("keras_history")) {
            Some(history) => found.extend(reference(history)),
            None => object.values().for_each(|v| tensors(v, found)),
        },
        _ => {}
    }
}

pub(super) fn reference(value: &Value) -> Option<Reference<'_>> {
    let [name, call, tensor] = value.as_array()?.as_slice() else { return None };
    let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
    Some((name.as_str()?, number(call)?, number(tensor)?))
}

/// The references in `input_layers` or `output_layers`: one, or a list or an object of them.
pub(super) fn references(value: &Value) -> Vec<Reference<'_>> {
    match (reference(value), value) {
        (Some(one), _) => vec![one],
        (None, Value::Array(list)) => list.iter().flat_map(references).collect(),
        (None, Value::Object(object)) => object.values().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

/// Says of a configuration that its layers are in the order in which Keras lists them: theirs is not that of one model
/// where some were in models inside it.
pub(super) const IN_ORDER: &str = "in_order";

/// The entries of layers in the order in which Keras lists them.
pub(super) fn keras_order(config: Object<'_>, entries: &[Entry<'_>]) -> Vec<usize> {
    let outputs = references(config.get("output_layers"));
    if outputs.is_empty() || config.get(IN_ORDER) == &Value::Bool(true) {
        return (0..entries.len()).collect();
    }
    let places: BTreeMap<&str, usize> = entries.iter().enumerate().map(|(at, e)| (e.name, at)).collect();
    let place = |r: &Reference<'_>| places.get(r.0).map(|&at| (at, r.1));
    let called = |entry: &Entry<'_>| {
        let mut calls: Vec<Vec<(usize, usize)>> = Vec::new();
        for value in entry.nodes {
            let node = Object { value, place: entry.name };
            let mut read = Vec::new();
            tensors(node.get("args"), &mut read);
            // By name, as Keras has them.
            let arguments: BTreeMap<_, _> = node.get("kwargs").as_object().into_iter().flatten().collect();
            arguments.into_values().for_each(|value| tensors(value, &mut read));
            calls.push(read.iter().filter_map(place).collect());
        }
        if calls.is_empty() {
            calls.push(Vec::new());
        }
        Called { calls }
    };
    let all: Vec<Called> = entries.iter().map(called).collect();
    let places = |list: &[Reference<'_>]| list.iter().filter_map(place).collect::<Vec<_>>();
    let inputs: Vec<usize> = places(&references(config.get("input_layers"))).iter().map(|p| p.0).collect();
    order(&all, &inputs, &places(&outputs))
}
