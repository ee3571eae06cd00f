//! How a model in HDF5 was being trained, as a `.keras` file says it.

use super::super::archive::{Contents, JSON_LIMIT, KerasArchive, KerasTensor, OPTIMIZER};
use super::super::config::class;
use super::super::entry::{entry, keras_order};
use super::super::training::older_state;
use super::settings::rename;
use crate::error::Result;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// How the model was compiled, as a `.keras` file says it; null where the file does not tell, or not as JSON.
pub(super) fn compiled(file: &Contents) -> Value {
    let training = file.text("", "training_config").filter(|text| text.len() as u64 <= JSON_LIMIT);
    let training: Option<Value> = training.and_then(|text| serde_json::from_str(text).ok());
    training.map_or(Value::Null, |t| json!({ "optimizer": t["optimizer_config"], "loss": t["loss"] }))
}

/// Gives an optimiser of Keras 2 and its settings their names of now.
pub(super) fn older_optimizer(optimizer: &mut Value, version: &str) {
    // Since 2.11 Keras 2 files its own optimisers as it does a user's.
    let own = optimizer.get("class_name").and_then(Value::as_str).and_then(|name| name.strip_prefix("Custom>"));
    if let Some(own) = own.map(str::to_string) {
        optimizer["class_name"] = own.into();
    }
    let Some(config) = optimizer.get_mut("config").and_then(Value::as_object_mut) else { return };
    rename(config, "lr", "learning_rate");
    rename(config, "schedule_decay", "decay");
    // The Keras of several backends, before TensorFlow's took its place, clipped by the norm of all gradients.
    let several = ["2.0.", "2.1.", "2.2.", "2.3."].iter().any(|older| version.starts_with(older));
    if several && !version.ends_with("-tf") {
        rename(config, "clipnorm", "global_clipnorm");
    }
}

/// What an optimiser of Keras 2 keeps, as a `.keras` file has it. `called` are the names of the weights of each group
/// of the archive, in which no model lies in another.
pub(super) fn older_training(
    file: &Contents,
    archive: &KerasArchive,
    called: &BTreeMap<String, BTreeMap<usize, String>>,
) -> Result<BTreeMap<String, KerasTensor>> {
    let optimizer = archive.config.get("compile_config").and_then(|c| c.get("optimizer")).filter(|o| o.is_object());
    let Some(optimizer) = optimizer else { return Ok(BTreeMap::new()) };
    let (_, model) = class(&archive.config, "the model")?;
    let entries = model.list("layers")?.iter().map(entry).collect::<Result<Vec<_>>>()?;
    let order = keras_order(model, &entries);
    let groups = archive.names.iter().filter_map(|(path, name)| Some((name.as_str(), path.strip_suffix("/vars")?)));
    let groups: BTreeMap<&str, &str> = groups.collect();
    let layers = order.iter().filter_map(|&at| called.get(*groups.get(entries.get(at)?.name)?));
    let weights = layers.flat_map(BTreeMap::values).map(|name| name.strip_suffix(":0").unwrap_or(name));
    let weights: Vec<&str> = weights.collect();
    let inside = format!("{OPTIMIZER}/");
    let kept = file.weights.iter().filter_map(|(path, tensor)| Some((path.strip_prefix(&inside)?, tensor)));
    older_state(optimizer, &weights, &kept.collect(), file.step)
}
