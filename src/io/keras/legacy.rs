//! Whole models in one HDF5 file (`model.save("model.h5")`), as Keras 2 wrote them and Keras 3 still can. The
//! configuration is an attribute, and each layer's weights lie under the names that it gave them, in the order of a
//! list.
//!
//! Such a file is turned into what a `.keras` file holds, and read as that. So is how the model was being trained.

mod nested;
mod settings;
#[cfg(test)]
mod tests;
mod training;

use super::archive::{Contents, JSON_LIMIT, KerasArchive, OPTIMIZER, read_hdf5};
use super::entry::entry;
use super::model::Reader;
use super::nested::flatten;
use crate::config::Activation;
use crate::error::{Error, Result};
use crate::io::Imported;
use crate::nn::Layer;
use nested::{check, directions, places};
use serde_json::Value;
use settings::{model, name_models};
use std::collections::BTreeMap;
use std::path::Path;
use training::{compiled, older_optimizer, older_training};

/// The group of the weights.
pub(super) const WEIGHTS: &str = "model_weights";
/// The version of an archive that is read as Keras 2 means it: calls have other numbers, and layers pass on masks.
const OLD: &str = "2";
/// Weights that belong to no layer, of models that are classes of their own.
const TOP: &str = "model_weights/top_level_model_weights/";

/// Reads a whole model from an HDF5 file.
pub(super) fn read_legacy(path: &Path) -> Result<Imported> {
    let file = read_hdf5(path)?;
    read(file).map_err(|e| e.within(path.display()))
}

fn read(mut file: Contents) -> Result<Imported> {
    let Some(config) = file.text("", "model_config") else {
        return Err(Error::unsupported(
            "keras: expected a whole model, got weights alone, which do not say what their layers are",
        ));
    };
    if config.len() as u64 > JSON_LIMIT {
        let length = config.len();
        return Err(Error::data(format!("keras: expected at most {JSON_LIMIT} bytes of `model_config`, got {length}")));
    }
    let mut config = serde_json::from_str(config)
        .map_err(|e| Error::data(format!("keras: `model_config` is not JSON: {e}")).caused_by(e))?;
    let version = file.text("", "keras_version").or_else(|| file.text(WEIGHTS, "keras_version")).unwrap_or("1");
    let version = version.to_string();
    let old = version.starts_with("2.");
    if !old && !version.starts_with("3.") {
        return Err(Error::unsupported(format!("keras: expected a file of Keras 2 or 3, got one of Keras {version}")));
    }
    name_models(&mut config, &file.list(WEIGHTS, "layer_names"));
    let mut config = model(config)?;
    config["compile_config"] = compiled(&file);
    if let (true, Some(optimizer)) = (old, config["compile_config"].get_mut("optimizer")) {
        older_optimizer(optimizer, &version);
    }
    let version = if old { OLD.to_string() } else { version };
    let (archive, origins) = archive(&mut file, config, version)?;
    let mut archive = flatten(archive)?;
    if old {
        match older_training(&file, &archive, &origins.called) {
            Ok(kept) => archive.weights.extend(kept),
            Err(e) => {
                log::warn!("how the model was being trained is left out: {e}");
                archive.config["compile_config"] = Value::Null;
            }
        }
    }
    let mut imported = Reader::new(&archive, old).model()?;
    for source in imported.sources.values_mut() {
        if let Some(original) = origins.sources.get(source) {
            source.clone_from(original);
        }
    }
    if old {
        imported.network.nodes.iter_mut().for_each(|node| hard_sigmoids(&mut node.layer));
    }
    Ok(imported)
}

/// What the file calls what an archive has.
#[derive(Debug, Default)]
struct Origins {
    /// The datasets by what they are called there.
    sources: BTreeMap<String, String>,
    /// The names of the weights of each group of a layer, by their numbers in its order.
    called: BTreeMap<String, BTreeMap<usize, String>>,
}

/// The file as an archive, which takes the weights out of it.
fn archive(file: &mut Contents, config: Value, keras_version: String) -> Result<(KerasArchive, Origins)> {
    let old = keras_version == OLD;
    let (weights, names) = (BTreeMap::new(), BTreeMap::new());
    let mut archive = KerasArchive { keras_version, config, weights, names, step: file.step };
    let layers = archive.config.get("config").and_then(|c| c.get("layers")).and_then(Value::as_array);
    let name = |layer: &Value| layer.get("config")?.get("name")?.as_str().map(str::to_string);
    let layers: Vec<(&Value, String)> =
        layers.into_iter().flatten().filter_map(|layer| Some((layer, name(layer)?))).collect();
    let group = |name: &str| format!("layers/{}", name.replace('/', "_"));
    archive.names = layers.iter().map(|(_, name)| (format!("{}/vars", group(name)), name.clone())).collect();
    let mut inside = places(&archive, old)?;
    let mut origins = Origins::default();
    for (layer, name) in &layers {
        let class = layer.get("class_name").and_then(Value::as_str).unwrap_or_default();
        let (from, to) = (format!("{WEIGHTS}/{name}"), group(name));
        let listed = file.list(&from, "weight_names");
        let slots = match class {
            "Bidirectional" => Some(directions(&entry(layer)?, &to, old)?),
            _ => inside.remove(name),
        };
        if let Some(slots) = &slots {
            check(name, slots, &listed)?;
        }
        for (at, weight) in listed.into_iter().enumerate() {
            let original = format!("{from}/{weight}");
            let found = file.weights.remove(&original);
            let tensor =
                found.ok_or_else(|| Error::data(format!("keras: expected the weight `{original}`, there is none")))?;
            let (group, path, number) = match slots.as_ref().and_then(|slots| slots.get(at)) {
                Some(slot) => (slot.group.clone(), slot.path.clone(), slot.number),
                None => (to.clone(), place(class, at), at),
            };
            let placed = format!("{group}/{path}");
            archive.weights.insert(placed.clone(), tensor);
            origins.sources.insert(placed, original);
            origins.called.entry(group).or_default().insert(number, weight);
        }
    }
    // Keras 3 lists what an optimiser keeps in the order in which a `.keras` file numbers it.
    for (at, name) in file.list(OPTIMIZER, "weight_names").iter().enumerate().filter(|_| !old) {
        if let Some(tensor) = file.weights.remove(&format!("{OPTIMIZER}/{name}")) {
            archive.weights.insert(format!("optimizer/vars/{at}"), tensor);
        }
    }
    let within = format!("{WEIGHTS}/");
    if let Some(rest) = file.weights.keys().find(|k| k.starts_with(&within) && !k.starts_with(TOP)) {
        return Err(Error::data(format!("keras: the weight `{rest}` belongs to no layer of the model")));
    }
    Ok((archive, origins))
}

/// Where Keras 3 keeps weight number `at` of a layer, in its group.
fn place(class: &str, at: usize) -> String {
    match class {
        "LSTM" => format!("cell/vars/{at}"),
        "TimeDistributed" => format!("layer/vars/{at}"),
        _ => format!("vars/{at}"),
    }
}

/// Keras 2's hard sigmoid is another than that of Keras 3: 0.2 x + 0.5.
fn hard_sigmoids(layer: &mut Layer) {
    let older = |activation: &mut Activation| {
        if let Activation::HardSigmoid { alpha, .. } = activation {
            *alpha = 0.2;
        }
    };
    match layer {
        Layer::Lstm(l) => {
            older(&mut l.activation);
            older(&mut l.recurrent_activation);
        }
        Layer::Dense(l) => older(&mut l.activation),
        Layer::Conv1D(l) => older(&mut l.activation),
        Layer::Activation(l) => older(&mut l.activation),
        _ => {}
    }
}
