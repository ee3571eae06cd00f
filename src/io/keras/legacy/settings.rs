//! Configurations of models in HDF5 as `.keras` files have them: the settings of layers, and their calls.
//!
//! JSON is parsed only so deep, and what is in it is turned no deeper.

use super::super::entry::{reference, references};
use super::super::inner::{count, is_model};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

/// Gives models that are no more than lists of layers the names by which their weights are filed: `names` are those of
/// the layers of the whole.
pub(super) fn name_models(whole: &mut Value, names: &[String]) {
    let Some(config) = whole.get_mut("config") else { return };
    let layers = if config.is_array() { Some(config) } else { config.get_mut("layers") };
    let Some(layers) = layers.and_then(Value::as_array_mut).filter(|layers| layers.len() == names.len()) else {
        return;
    };
    for (layer, name) in layers.iter_mut().zip(names) {
        if layer.get("config").is_some_and(Value::is_array) && layer.get("name").is_none() {
            layer["name"] = name.as_str().into();
        }
    }
}

/// A model's configuration as Keras 3 has it.
pub(super) fn model(mut model: Value) -> Result<Value> {
    convert(&mut model, "the model", "sequential", &mut 0)?;
    Ok(model)
}

/// Turns a model and those in it, called `place` in errors, and by `name` where it has none; `reads` counts the tensors
/// that calls read.
fn convert(model: &mut Value, place: &str, name: &str, reads: &mut usize) -> Result<()> {
    // Before Keras 2.2.3 a Sequential was its layers.
    if let Some(layers) = model.get_mut("config").filter(|c| c.is_array()).map(Value::take) {
        let name = model.get("name").and_then(Value::as_str).unwrap_or(name).to_string();
        model["config"] = json!({ "name": name, "layers": layers });
    }
    let sequential = model.get("class_name").and_then(Value::as_str) == Some("Sequential");
    let Some(layers) = model.get_mut("config").and_then(|c| c.get_mut("layers")).and_then(Value::as_array_mut) else {
        return Err(Error::data(format!("keras: {place}: expected a list of layers")));
    };
    for (at, layer) in layers.iter_mut().enumerate() {
        settings(layer);
        if layer.get("class_name").and_then(Value::as_str).is_some_and(is_model) {
            let name = format!("{name}_{at}");
            let known = layer.get("config").and_then(|c| c.get("name")).and_then(Value::as_str);
            let place = known.unwrap_or(&name).to_string();
            convert(layer, &place, &name, reads)?;
        }
    }
    if sequential {
        let class = |layer: &Value| layer.get("class_name").and_then(Value::as_str) == Some("InputLayer");
        let first = layers.first().filter(|l| !class(l)).and_then(|l| l.get("config"));
        if let Some(batch_shape) = first.and_then(|config| config.get("batch_shape")).cloned() {
            let first = first.and_then(|config| config.get("name")).and_then(Value::as_str).unwrap_or_default();
            let config = json!({ "name": format!("{first}_input"), "batch_shape": batch_shape });
            layers.insert(0, json!({ "class_name": "InputLayer", "config": config }));
        }
    }
    layers.iter_mut().try_for_each(|layer| calls(layer, reads))
}

/// Gives a setting another name, unless there is one of that.
pub(super) fn rename(config: &mut Map<String, Value>, from: &str, to: &str) {
    if let (Some(value), false) = (config.remove(from), config.contains_key(to)) {
        config.insert(to.to_string(), value);
    }
}

/// Gives the settings of a layer, and of those inside it, their names of now.
fn settings(layer: &mut Value) {
    // Keras 2 has had another name since Keras 3 took over its own.
    let module = layer.get("module").and_then(Value::as_str).and_then(|module| module.strip_prefix("tf_keras"));
    if let Some(module) = module.map(|rest| format!("keras{rest}")) {
        layer["module"] = module.into();
    }
    let class = layer.get("class_name").and_then(Value::as_str).unwrap_or_default().to_string();
    let Some(config) = layer.get_mut("config").and_then(Value::as_object_mut) else { return };
    rename(config, "batch_input_shape", "batch_shape");
    match class.as_str() {
        "LeakyReLU" => rename(config, "alpha", "negative_slope"),
        // A layer that was built says which axis its last one is; no sequence here has more than three.
        "LayerNormalization" if config.get("axis").is_some_and(|axis| [json!([2]), json!(2)].contains(axis)) => {
            config.insert("axis".to_string(), json!(-1));
        }
        _ => {}
    }
    for key in ["layer", "backward_layer", "activation", "recurrent_activation"] {
        if let Some(inner) = config.get_mut(key) {
            settings(inner);
        }
    }
}

/// Turns the calls of a layer, which read tensors `[layer, call, output, arguments]`, into arguments with tensors in
/// them.
fn calls(layer: &mut Value, reads: &mut usize) -> Result<()> {
    let config = layer.get("config");
    let name = config.and_then(|c| c.get("name")).and_then(Value::as_str).unwrap_or("a layer").to_string();
    let causal = config.and_then(|c| c.get("causal")) == Some(&Value::Bool(true));
    let Some(nodes) = layer.get_mut("inbound_nodes").and_then(Value::as_array_mut) else { return Ok(()) };
    for node in nodes {
        let mut kwargs = Map::new();
        let mut given = |item: &Value| {
            count(reads, 1)?;
            read(&name, item, &mut kwargs)
        };
        let first = match &*node {
            // Operations that are no layers name their tensor without a list around it.
            Value::Array(one) if one.first().is_some_and(Value::is_string) => json!([given(node)?]),
            Value::Array(all) => all.iter().map(given).collect::<Result<_>>()?,
            // By the names of a model's inputs, unless it is a call as Keras 3 has it.
            Value::Object(named) if !named.is_empty() && !named.contains_key("kwargs") => {
                let named = named.iter().map(|(input, item)| Ok((input.clone(), given(item)?)));
                Value::Object(named.collect::<Result<_>>()?)
            }
            _ => continue,
        };
        if causal {
            kwargs.insert("use_causal_mask".to_string(), true.into());
        }
        *node = json!({ "args": [first], "kwargs": kwargs });
    }
    Ok(())
}

/// One tensor that a call of `layer` reads; puts the arguments beside it into `kwargs`.
fn read(layer: &str, item: &Value, kwargs: &mut Map<String, Value>) -> Result<Value> {
    let list = item.as_array().map(Vec::as_slice).unwrap_or_default();
    let history = list.get(..3).map(|history| Value::from(history.to_vec()));
    let Some(history) = history.filter(|history| reference(history).is_some()) else {
        let got = item.to_string();
        return Err(Error::data(format!("keras: {layer}: expected calls as lists of tensors, got {got:.80}")));
    };
    for (key, value) in list.get(3).and_then(Value::as_object).into_iter().flatten() {
        kwargs.insert(key.clone(), argument(layer, key, value)?);
    }
    Ok(tensor(&history))
}

/// A tensor as it is serialised, from its layer, call and output.
fn tensor(history: &Value) -> Value {
    json!({ "class_name": "__keras_tensor__", "config": { "keras_history": history } })
}

/// An argument that has a name.
fn argument(layer: &str, key: &str, value: &Value) -> Result<Value> {
    match key {
        "mask" if !value.is_null() => {
            Err(Error::unsupported(format!("keras: {layer}: a mask that is given by name is not supported")))
        }
        "initial_state" if !value.is_null() => {
            let given = references(value).into_iter().map(|(from, call, output)| tensor(&json!([from, call, output])));
            Ok(given.collect())
        }
        _ => Ok(value.clone()),
    }
}
