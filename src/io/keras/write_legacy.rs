//! Networks as whole models in one HDF5 file, as Keras 3 writes them (`model.save("model.h5")`): the configuration is an
//! attribute, and each layer's weights lie under the names that it gives them, in the order of a list.

use super::legacy::WEIGHTS;
use super::variables::{Variable, variables};
use super::write::{Group, VERSION, Written};
use crate::error::{Error, Result};
use crate::io::model::check;
use crate::io::safetensors::replace;
use crate::nn::{Layer, Network};
use crate::params::Tensor;
use hdf5_pure::AttrValue;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The most bytes of a list in one attribute, as Keras has it: HDF5 itself keeps no more than 64 KiB with a group.
const LIST_LIMIT: usize = 64_512;
/// The group, beside those of layers, of weights that belong to none.
const TOP: &str = "top_level_model_weights";
/// What the file says computed the model. Keras 2 turned kernels of some others; Keras 3 does not ask.
const BACKEND: &str = "tensorflow";

/// Writes a network and its parameters as a whole model in one HDF5 file, which Keras 3 loads as a model that gives the
/// same. What becomes of layers, outputs and `title` is as in [`write_model`](super::write_model).
///
/// What Keras cannot say is an error that names the layer. So is a layer with weights that no output follows from: Keras
/// counts the layers of such a file, and knows of none but those that outputs follow from.
pub fn write_legacy(path: &Path, title: &str, network: &Network, parameters: &BTreeMap<String, Tensor>) -> Result<()> {
    let write = || {
        check(network, parameters, &BTreeMap::new())?;
        whole(&Written::of(title, network)?, network, parameters)?.bytes()
    };
    let bytes = write().map_err(|e: Error| e.within(path.display()))?;
    replace(path, &bytes)
}

/// The root of the file.
fn whole(model: &Written, network: &Network, parameters: &BTreeMap<String, Tensor>) -> Result<Group> {
    let text = |name: &str, text: &str| (name.to_string(), AttrValue::VarLenString(text.to_string()));
    let origin = [text("keras_version", VERSION), text("backend", BACKEND)];
    let mut root = Group::default();
    root.attributes.extend(origin.clone());
    root.attributes.push(text("model_config", &config(&model.config).to_string()));
    let weights = root.at(WEIGHTS);
    weights.attributes.extend(origin);
    let names: Vec<String> = model.layers.iter().map(|layer| layer.1.clone()).collect();
    list(weights, "layer_names", &names)?;
    list(weights.at(TOP), "weight_names", &[])?;
    for (number, name) in names.iter().enumerate() {
        if name == TOP {
            return Err(Error::argument(format!(
                "keras: {name}: expected another name, since the file has a group of this one"
            )));
        }
        let group = weights.at(name);
        let node = network.nodes.iter().find(|node| &node.name == name);
        let written = node.map_or_else(|| Ok(Vec::new()), |node| layer(group, name, &node.layer, parameters))?;
        if number >= model.known && !written.is_empty() {
            let what = "no output follows from it, and Keras takes no weights of such a layer from a file of HDF5";
            return Err(Error::unsupported(format!("keras: {name}: {what}")));
        }
        list(group, "weight_names", &written)?;
    }
    Ok(root)
}

/// A model's configuration as these files have it. Layers keep the module of their class, though Keras leaves that out:
/// without it Keras finds no longer what makes masks, and takes `dot`, a setting of attention, for its layer of that name.
fn config(whole: &Value) -> Value {
    let mut config = whole.clone();
    if let Some(object) = config.as_object_mut() {
        object.retain(|key, _| ["class_name", "config"].contains(&key.as_str()));
    }
    config
}

/// Puts the weights of a layer into its group; gives their names in Keras's order.
fn layer(group: &mut Group, name: &str, layer: &Layer, parameters: &BTreeMap<String, Tensor>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for variable in variables(name, layer) {
        let parameter = &variable.parameter;
        let missing = || Error::internal(format!("keras: the parameter `{parameter}` is missing"));
        let tensor = parameters.get(parameter).ok_or_else(missing)?;
        let called = called(name, layer, &variable);
        group.put(&called, variable.form.write(tensor).map_err(|e| e.within(parameter))?);
        // The two biases of an LSTM are one, their sum.
        if !names.contains(&called) {
            names.push(called);
        }
    }
    Ok(names)
}

/// What Keras calls a weight.
fn called(name: &str, layer: &Layer, variable: &Variable) -> String {
    let role = variable.parameter.rsplit_once('.').map_or("", |(_, role)| role);
    let path = variable.path.as_str();
    match layer {
        Layer::Lstm(_) => {
            let cell = match path.split_once("_layer/") {
                Some((direction, _)) => format!("{name}/{direction}_{name}/lstm_cell"),
                None => format!("{name}/lstm_cell"),
            };
            let kernels = [("weight_ih", "kernel"), ("weight_hh", "recurrent_kernel")];
            let kernel = kernels.iter().find(|kernel| role.starts_with(kernel.0));
            format!("{cell}/{}", kernel.map_or("bias", |kernel| kernel.1))
        }
        Layer::Embedding(_) => format!("{name}/embeddings"),
        Layer::Attention(_) => format!("{name}/scale"),
        Layer::LayerNormalization(_) => format!("{name}/{}", if role == "weight" { "gamma" } else { "beta" }),
        _ => format!("{name}/{}", if role == "weight" { "kernel" } else { "bias" }),
    }
}

/// Gives a group a list of names, in parts called `name0`, `name1` and so on where it is long.
fn list(group: &mut Group, name: &str, items: &[String]) -> Result<()> {
    // All are as wide as the widest.
    let widest = items.iter().map(String::len).max().unwrap_or(0);
    if widest > LIST_LIMIT {
        return Err(Error::argument(format!("keras: expected names of at most {LIST_LIMIT} bytes, got {widest}")));
    }
    if items.is_empty() {
        // What NumPy makes of a list without names, and so Keras.
        group.attributes.push((name.to_string(), AttrValue::F64Array(Vec::new())));
    }
    let parts = items.chunks(LIST_LIMIT / widest.max(1));
    let whole = parts.len() == 1;
    for (number, part) in parts.enumerate() {
        let name = if whole { name.to_string() } else { format!("{name}{number}") };
        group.attributes.push((name, AttrValue::AsciiStringArray(part.to_vec())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Bias, Direction};
    use crate::error::ErrorKind;
    use crate::io::samples::parameters;
    use crate::io::{Imported, read_model};
    use crate::nn::{Attention, Conv1D, Dense, Embedding, Input, LayerNormalization, Lstm, Pooling};
    use std::path::PathBuf;

    fn place(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("mnemon-write-legacy-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder.join(name)
    }

    /// What is read of a network that was written; written again, it is the same.
    fn round(name: &str, network: &Network, parameters: &BTreeMap<String, Tensor>) -> Imported {
        let path = place(name);
        write_legacy(&path, "my model", network, parameters).unwrap();
        let read = read_model(&path, None).unwrap();
        write_legacy(&path, &read.title, &read.network, &read.parameters).unwrap();
        let again = read_model(&path, None).unwrap();
        assert_eq!((&again.network, &again.parameters), (&read.network, &read.parameters));
        assert_eq!(read.title, "my_model");
        assert!(read.sources.values().all(|s| s.starts_with("model_weights/")), "{:?}", read.sources);
        assert!(read.training.is_none());
        read
    }

    #[test]
    fn a_row_of_layers_is_read_as_it_was_written() {
        let layers: [Layer; 3] =
            [Embedding::new(7, 4).into(), Lstm::new(3).direction(Direction::Both).into(), Dense::new(2).into()];
        let network = Network::chain(Input::Tokens, None, &layers).unwrap();
        let parameters = parameters(&network);
        let read = round("row.h5", &network, &parameters);
        assert_eq!(read.parameters, parameters);
        assert_eq!((&read.network.inputs, read.network.nodes.len()), (&network.inputs, 3));
        let source = |name: &str| read.sources[name].strip_prefix("model_weights/").unwrap().to_string();
        assert_eq!(source("embedding.weight"), "embedding/embedding/embeddings");
        let backwards = "bidirectional/bidirectional/backward_bidirectional/lstm_cell/recurrent_kernel";
        assert_eq!(source("bidirectional.weight_hh_l0_reverse"), backwards);
        assert_eq!(source("dense.bias"), "dense/dense/bias");
    }

    #[test]
    fn a_graph_with_two_inputs_and_states_is_read_as_it_was_written() {
        let mut n = Network::default();
        let (a, b) = (n.input("a", Input::Features(3)), n.input("b", Input::Rows(4)));
        let h = n.add(Dense::new(5).name("first_h"), &[b]).unwrap()[0];
        let c = n.add(Dense::new(5).name("first_c").bias(false), &[b]).unwrap()[0];
        let read = n.add(Lstm::new(5).return_sequences(true), &[a, h, c]).unwrap()[0];
        let normal = LayerNormalization { scale: false, ..LayerNormalization::default() };
        let normal = n.add(normal, &[read]).unwrap()[0];
        let seen = n.add(Attention::dot().scale(true), &[normal, normal]).unwrap()[0];
        let windows = n.add(Conv1D::new(2, 2), &[seen]).unwrap()[0];
        let y = n.add(Pooling::max(), &[windows]).unwrap()[0];
        n.output("y", y);
        let parameters = parameters(&n);
        let read = round("graph.h5", &n, &parameters);
        assert_eq!(read.parameters, parameters);
        assert_eq!((&read.network.inputs, read.network.nodes.len()), (&n.inputs, n.nodes.len()));
        let lstm = read.network.nodes.iter().find(|node| node.name == "lstm").unwrap();
        assert_eq!(lstm.inputs.len(), 3);
        let source = |name: &str| read.sources[name].rsplit_once('/').unwrap().1.to_string();
        assert_eq!(source("layer_normalization.bias"), "beta");
        assert_eq!(source("attention.scale"), "scale");
        assert_eq!(source("conv1d.weight"), "kernel");
    }

    #[test]
    fn two_biases_become_their_sum() {
        let lstm = Lstm::new(2).direction(Direction::Both).bias(Bias::Two);
        let network = Network::chain(Input::Features(3), None, &[lstm.into()]).unwrap();
        let parameters = parameters(&network);
        let read = round("biases.h5", &network, &parameters);
        for direction in ["", "_reverse"] {
            let of = |bias: &str| parameters[&format!("bidirectional.{bias}_l0{direction}")].f32s().unwrap();
            let sum: Vec<f32> = of("bias_ih").iter().zip(of("bias_hh")).map(|(a, b)| a + b).collect();
            let got = &read.parameters[&format!("bidirectional.bias_ih_l0{direction}")];
            assert_eq!(got.f32s().unwrap(), sum);
        }
    }

    #[test]
    fn long_lists_are_in_parts() {
        let names = |lengths: &[usize]| -> Vec<String> { lengths.iter().map(|&n| "n".repeat(n)).collect() };
        let written = |items: &[String]| {
            let mut group = Group::default();
            list(&mut group, "names", items).map(|()| group.attributes)
        };
        let parts = |lengths: &[usize]| -> Vec<(String, usize)> {
            let attributes = written(&names(lengths)).unwrap();
            let count = |value: &AttrValue| value.as_strings().map_or(0, <[String]>::len);
            attributes.iter().map(|(name, value)| (name.clone(), count(value))).collect()
        };
        let part = |name: &str, count: usize| (name.to_string(), count);
        assert_eq!(parts(&[]), [part("names", 0)]);
        assert_eq!(parts(&[3, 1]), [part("names", 2)]);
        assert_eq!(parts(&[1, 30_000, 2]), [part("names0", 2), part("names1", 1)]);
        assert_eq!(parts(&[LIST_LIMIT, 1]), [part("names0", 1), part("names1", 1)]);
        let error = written(&names(&[LIST_LIMIT + 1])).unwrap_err();
        assert!(error.kind() == ErrorKind::Argument && error.to_string().contains("got 64513"), "{error}");
    }

    #[test]
    fn what_the_file_cannot_say_is_refused_by_name() {
        let refused = |network: &Network, parameters: &BTreeMap<String, Tensor>, wanted: &str| {
            let path = place("refused.h5");
            let error = write_legacy(&path, "m", network, parameters).unwrap_err().to_string();
            assert!(error.contains(wanted) && !path.exists(), "{wanted}: {error}");
        };
        let mut network = Network::default();
        let x = network.input("x", Input::Features(3));
        let h = network.add(Lstm::new(2), &[x]).unwrap();
        network.output("h", h[0]);
        refused(&network, &BTreeMap::new(), "expected the parameter `lstm.weight_ih_l0`");
        network.add(Dense::new(2), &h).unwrap();
        refused(&network, &parameters(&network), "dense: no output follows from it");
        let peephole = Lstm::new(2).zoneout(0.1, 0.0).name("odd");
        let network = Network::chain(Input::Features(3), None, &[peephole.into()]).unwrap();
        refused(&network, &parameters(&network), "odd: Keras's LSTM has no zoneout");
        let network = Network::chain(Input::Rows(3), None, &[Dense::new(2).name(TOP).into()]).unwrap();
        refused(&network, &parameters(&network), "top_level_model_weights: expected another name");
    }
}
