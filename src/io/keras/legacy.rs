//! Whole models in one HDF5 file (`model.save("model.h5")`), as Keras 2 wrote them and Keras 3 still can. The
//! configuration is an attribute, and each layer's weights lie under the names that it gave them, in the order of a
//! list.
//!
//! Such a file is turned into what a `.keras` file holds, and read as that. So is how the model was being trained.

use super::archive::{Contents, JSON_LIMIT, KerasArchive, KerasTensor, OPTIMIZER, read_hdf5};
use super::config::class;
use super::entry::{entry, keras_order, references};
use super::model::Reader;
use super::training::older_state;
use crate::config::Activation;
use crate::error::{Error, Result};
use crate::io::Imported;
use crate::nn::Layer;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The group of the weights.
pub(super) const WEIGHTS: &str = "model_weights";
/// Weights that belong to no layer, of models that are classes of their own.
const TOP: &str = "model_weights/top_level_model_weights/";

/// Reads a whole model from an HDF5 file.
pub(super) fn read_legacy(path: &Path) -> Result<Imported> {
    let file = read_hdf5(path)?;
    read(file).map_err(|e| e.within(path.display()))
}

fn read(file: Contents) -> Result<Imported> {
    let Some(config) = file.text("", "model_config") else {
        return Err(Error::unsupported(
            "keras: expected a whole model, got weights alone, which do not say what their layers are",
        ));
    };
    if config.len() as u64 > JSON_LIMIT {
        let length = config.len();
        return Err(Error::data(format!("keras: expected at most {JSON_LIMIT} bytes of `model_config`, got {length}")));
    }
    let config = serde_json::from_str(config)
        .map_err(|e| Error::data(format!("keras: `model_config` is not JSON: {e}")).caused_by(e))?;
    let version = file.text("", "keras_version").or_else(|| file.text(WEIGHTS, "keras_version")).unwrap_or("1");
    let old = version.starts_with("2.");
    if !old && !version.starts_with("3.") {
        return Err(Error::unsupported(format!("keras: expected a file of Keras 2 or 3, got one of Keras {version}")));
    }
    let mut config = model(config)?;
    config["compile_config"] = compiled(&file);
    if let (true, Some(optimizer)) = (old, config["compile_config"].get_mut("optimizer")) {
        older_optimizer(optimizer, version);
    }
    let (archive, sources) = archive(file, config, old)?;
    let mut imported = Reader::new(&archive, old).model()?;
    for source in imported.sources.values_mut() {
        if let Some(original) = sources.get(source) {
            source.clone_from(original);
        }
    }
    if old {
        imported.network.nodes.iter_mut().for_each(|node| hard_sigmoids(&mut node.layer));
    }
    Ok(imported)
}

/// How the model was compiled, as a `.keras` file says it; null where the file does not tell, or not as JSON.
fn compiled(file: &Contents) -> Value {
    let training = file.text("", "training_config").filter(|text| text.len() as u64 <= JSON_LIMIT);
    let training: Option<Value> = training.and_then(|text| serde_json::from_str(text).ok());
    training.map_or(Value::Null, |t| json!({ "optimizer": t["optimizer_config"], "loss": t["loss"] }))
}

/// Gives an optimiser of Keras 2 and its settings their names of now.
fn older_optimizer(optimizer: &mut Value, version: &str) {
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

/// Gives a setting another name, unless there is one of that.
fn rename(config: &mut Map<String, Value>, from: &str, to: &str) {
    if let (Some(value), false) = (config.remove(from), config.contains_key(to)) {
        config.insert(to.to_string(), value);
    }
}

/// What an optimiser of Keras 2 keeps, as a `.keras` file has it; `called` are the names of each layer's weights.
fn older_training(
    file: &Contents,
    config: &Value,
    called: &BTreeMap<String, Vec<String>>,
) -> Result<BTreeMap<String, KerasTensor>> {
    let optimizer = config.get("compile_config").and_then(|c| c.get("optimizer")).filter(|o| o.is_object());
    let Some(optimizer) = optimizer else { return Ok(BTreeMap::new()) };
    let (_, model) = class(config, "the model")?;
    let entries = model.list("layers")?.iter().map(entry).collect::<Result<Vec<_>>>()?;
    let order = keras_order(model, &entries);
    let layers = order.iter().filter_map(|&at| called.get(entries.get(at)?.name));
    let weights: Vec<&str> = layers.flatten().map(|name| name.strip_suffix(":0").unwrap_or(name)).collect();
    let inside = format!("{OPTIMIZER}/");
    let kept = file.weights.iter().filter_map(|(path, tensor)| Some((path.strip_prefix(&inside)?, tensor)));
    older_state(optimizer, &weights, &kept.collect(), file.step)
}

/// The file as an archive, and the datasets by what they are called there.
fn archive(mut file: Contents, mut config: Value, old: bool) -> Result<(KerasArchive, BTreeMap<String, String>)> {
    let (mut weights, mut names, mut sources) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut called = BTreeMap::new();
    let layers = config.get("config").and_then(|c| c.get("layers")).and_then(Value::as_array);
    for layer in layers.into_iter().flatten() {
        let class = layer.get("class_name").and_then(Value::as_str).unwrap_or_default();
        let Some(name) = layer.get("config").and_then(|c| c.get("name")).and_then(Value::as_str) else { continue };
        let (from, to) = (format!("{WEIGHTS}/{name}"), format!("layers/{}", name.replace('/', "_")));
        let listed = file.list(&from, "weight_names");
        for (at, weight) in listed.iter().enumerate() {
            let original = format!("{from}/{weight}");
            let found = file.weights.remove(&original);
            let tensor =
                found.ok_or_else(|| Error::data(format!("keras: expected the weight `{original}`, there is none")))?;
            let placed = format!("{to}/{}", place(class, listed.len(), at));
            weights.insert(placed.clone(), tensor);
            sources.insert(placed, original);
        }
        names.insert(format!("{to}/vars"), name.to_string());
        called.insert(name.to_string(), listed);
    }
    if old {
        match older_training(&file, &config, &called) {
            Ok(kept) => weights.extend(kept),
            Err(e) => {
                log::warn!("how the model was being trained is left out: {e}");
                config["compile_config"] = Value::Null;
            }
        }
    }
    // Keras 3 lists what an optimiser keeps in the order in which a `.keras` file numbers it.
    for (at, name) in file.list(OPTIMIZER, "weight_names").iter().enumerate().filter(|_| !old) {
        if let Some(tensor) = file.weights.remove(&format!("{OPTIMIZER}/{name}")) {
            weights.insert(format!("optimizer/vars/{at}"), tensor);
        }
    }
    let within = format!("{WEIGHTS}/");
    if let Some(rest) = file.weights.keys().find(|k| k.starts_with(&within) && !k.starts_with(TOP)) {
        return Err(Error::data(format!("keras: the weight `{rest}` belongs to no layer of the model")));
    }
    let keras_version = if old { "2" } else { "3" }.to_string();
    Ok((KerasArchive { keras_version, config, weights, names, step: file.step }, sources))
}

/// Where Keras 3 keeps weight number `at` of the `count` of a layer.
fn place(class: &str, count: usize, at: usize) -> String {
    let half = count / 2;
    match class {
        "LSTM" => format!("cell/vars/{at}"),
        "Bidirectional" if at < half => format!("forward_layer/cell/vars/{at}"),
        "Bidirectional" => format!("backward_layer/cell/vars/{}", at - half),
        "TimeDistributed" => format!("layer/vars/{at}"),
        _ => format!("vars/{at}"),
    }
}

/// A model's configuration as Keras 3 has it.
fn model(mut model: Value) -> Result<Value> {
    // Before Keras 2.2.3 a Sequential was its layers.
    if let Some(layers) = model.get("config").filter(|c| c.is_array()).cloned() {
        model["config"] = json!({ "name": "sequential", "layers": layers });
    }
    let sequential = model.get("class_name").and_then(Value::as_str) == Some("Sequential");
    let Some(layers) = model.get_mut("config").and_then(|c| c.get_mut("layers")).and_then(Value::as_array_mut) else {
        return Err(Error::data("keras: the model: expected a list of layers"));
    };
    layers.iter_mut().for_each(settings);
    if sequential {
        let class = |layer: &Value| layer.get("class_name").and_then(Value::as_str) == Some("InputLayer");
        let shape = layers.first().filter(|l| !class(l)).and_then(|l| l.get("config")?.get("batch_shape")).cloned();
        if let Some(batch_shape) = shape {
            let config = json!({ "name": "input", "batch_shape": batch_shape });
            layers.insert(0, json!({ "class_name": "InputLayer", "config": config }));
        }
    }
    layers.iter_mut().try_for_each(calls)?;
    Ok(model)
}

/// Gives the settings of a layer, and of those inside it, their names of now.
fn settings(layer: &mut Value) {
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

/// Turns the calls of a layer, lists of `[layer, call, output, arguments]`, into arguments with tensors in them.
fn calls(layer: &mut Value) -> Result<()> {
    let config = layer.get("config");
    let name = config.and_then(|c| c.get("name")).and_then(Value::as_str).unwrap_or("a layer").to_string();
    let causal = config.and_then(|c| c.get("causal")) == Some(&Value::Bool(true));
    let Some(nodes) = layer.get_mut("inbound_nodes").and_then(Value::as_array_mut) else { return Ok(()) };
    for node in nodes {
        let Value::Array(read) = &*node else { continue };
        // Operations that are no layers name their tensor without a list around it.
        let read = if read.first().is_some_and(Value::is_string) { std::slice::from_ref(&*node) } else { &read[..] };
        let (mut tensors, mut kwargs) = (Vec::new(), Map::new());
        for item in read {
            let list = item.as_array().map(Vec::as_slice).unwrap_or_default();
            let found = list.get(..3).map(|three| references(&Value::from(three.to_vec())).len());
            let (Some(1), Some([from, call, output])) = (found, list.get(..3)) else {
                let got = item.to_string();
                return Err(Error::data(format!("keras: {name}: expected calls as lists of tensors, got {got:.80}")));
            };
            tensors
                .push(json!({ "class_name": "__keras_tensor__", "config": { "keras_history": [from, call, output] } }));
            for (key, value) in list.get(3).and_then(Value::as_object).into_iter().flatten() {
                kwargs.insert(key.clone(), argument(&name, key, value)?);
            }
        }
        if causal {
            kwargs.insert("use_causal_mask".to_string(), true.into());
        }
        *node = json!({ "args": [tensors], "kwargs": kwargs });
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::keras::Training;
    use crate::optim::{Adagrad, Adam, Clipping, Convention, Nadam, RmsProp, Rule};
    use crate::params::Tensor;
    use hdf5_pure::{AttrValue, FileBuilder, FinishedGroup, GroupBuilder};
    use std::path::PathBuf;

    /// A file with a dense layer, in whose configuration `change` is made; its list of weights is in two parts.
    fn saved(name: &str, version: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
        written(name, dense(version, change))
    }

    fn written(name: &str, file: FileBuilder) -> PathBuf {
        let path = std::env::temp_dir().join(format!("mnemon-legacy-{}-{name}.h5", std::process::id()));
        std::fs::write(&path, file.finish().unwrap()).unwrap();
        path
    }

    fn dense(version: &str, change: impl FnOnce(&mut Value)) -> FileBuilder {
        let dense = json!({
            "class_name": "Dense",
            "config": { "name": "dense", "batch_input_shape": [null, 3], "units": 2, "activation": "hard_sigmoid" },
        });
        let mut config = json!({ "class_name": "Sequential", "config": [dense] });
        change(&mut config);
        let mut file = FileBuilder::new();
        file.set_attr("model_config", AttrValue::VarLenString(config.to_string()));
        file.set_attr("keras_version", AttrValue::String(version.to_string()));
        let mut weights = file.create_group("model_weights");
        let mut dense = weights.create_group("dense");
        for (at, name) in ["dense/kernel:0", "dense/bias:0"].into_iter().enumerate() {
            dense.set_attr(&format!("weight_names{at}"), AttrValue::VarLenStringArray(vec![name.to_string()]));
        }
        let mut inner = dense.create_group("dense");
        inner.create_dataset("kernel:0").with_f32_data(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).with_shape(&[3, 2]);
        inner.create_dataset("bias:0").with_f32_data(&[7.0, 8.0]);
        dense.add_group(inner.finish());
        weights.add_group(dense.finish());
        file.add_group(weights.finish());
        file
    }

    /// Datasets by their paths in a group: `[3, 2]` or two values from a first one on, or a count of three steps.
    fn filled(mut group: GroupBuilder, datasets: &[(&str, Option<f32>)]) -> FinishedGroup {
        let mut inner: BTreeMap<&str, Vec<(&str, Option<f32>)>> = BTreeMap::new();
        for &(path, first) in datasets {
            match (path.split_once('/'), first) {
                (Some((name, rest)), _) => inner.entry(name).or_default().push((rest, first)),
                (None, None) => {
                    group.create_dataset(path).with_i64_data(&[3]).with_shape(&[]);
                }
                (None, Some(first)) if first >= BIAS => {
                    group.create_dataset(path).with_f32_data(&[first, first + 1.0]).with_shape(&[2]);
                }
                (None, Some(first)) => {
                    let values = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0].map(|x| first + x);
                    group.create_dataset(path).with_f32_data(&values).with_shape(&[3, 2]);
                }
            }
        }
        for (name, datasets) in inner {
            let finished = filled(group.create_group(name), &datasets);
            group.add_group(finished);
        }
        group.finish()
    }

    /// Values from this one on are of the bias, those before of the kernel.
    const BIAS: f32 = 100.0;

    /// What is read of the training of [`dense`] by an optimiser, its class and settings, that keeps [these](filled).
    fn trained(
        name: &str,
        version: &str,
        (class, config): (&str, Value),
        kept: &[(&str, Option<f32>)],
    ) -> Option<Training> {
        let mut file = dense(version, |_| {});
        let optimizer = json!({ "class_name": class, "config": config });
        let training = json!({ "loss": "mse", "metrics": ["mae"], "optimizer_config": optimizer });
        file.set_attr("training_config", AttrValue::VarLenString(training.to_string()));
        let group = filled(file.create_group(OPTIMIZER), kept);
        file.add_group(group);
        crate::io::read_model(&written(name, file), None).unwrap().training
    }

    fn adam() -> Value {
        json!({ "learning_rate": 0.5, "beta_1": 0.75, "beta_2": 0.875, "epsilon": 0.25, "amsgrad": false })
    }

    /// `config` with another setting.
    fn with(mut config: Value, key: &str, value: impl Into<Value>) -> Value {
        config[key] = value.into();
        config
    }

    #[test]
    fn an_old_sequential_is_read_with_the_names_of_its_datasets() {
        let imported = crate::io::read_model(&saved("old", "2.2.4-tf", |_| {}), None).unwrap();
        assert_eq!(imported.parameters["dense.weight"].f32s().unwrap(), [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
        assert_eq!(imported.sources["dense.bias"], "model_weights/dense/dense/bias:0");
        let Layer::Dense(dense) = &imported.network.nodes[0].layer else { panic!("{:?}", imported.network) };
        assert_eq!(dense.activation, Activation::HardSigmoid { alpha: 0.2, beta: 0.5 });
    }

    #[test]
    fn what_an_optimiser_of_keras_2_keeps_is_read_by_our_names() {
        let older = with(adam(), "decay", 0.0);
        let mut lr = older.clone();
        rename(lr.as_object_mut().unwrap(), "learning_rate", "lr");
        let sgd = json!({ "learning_rate": 0.5, "momentum": 0.25, "nesterov": true });
        let (m, v, largest) = ("optimizer.m.", "optimizer.v.", "optimizer.largest.");
        for (name, version, optimizer, step, kinds) in [
            ("adam", "2.9.0", ("Adam", older.clone()), "Adam/iter:0", &[(m, "Adam/*/m:0"), (v, "Adam/*/v:0")][..]),
            (
                "graph",
                "2.2.4-tf",
                ("Adam", lr),
                "training/Adam/iter:0",
                &[(m, "training/Adam/*/m:0"), (v, "training/Adam/*/v:0")],
            ),
            (
                "amsgrad",
                "2.10.0",
                ("Adam", with(older, "amsgrad", true)),
                "Adam/iter:0",
                &[(m, "Adam/*/m:0"), (v, "Adam/*/v:0"), (largest, "Adam/*/vhat:0")],
            ),
            ("new", "2.15.0", ("Custom>Adam", adam()), "iteration:0", &[(m, "Adam/m/*:0"), (v, "Adam/v/*:0")]),
            ("bare", "2.11.0", ("Custom>Adam", adam()), "iteration:0", &[(m, "m/*:0"), (v, "v/*:0")]),
            ("sgd", "2.9.0", ("SGD", with(sgd.clone(), "decay", 0.0)), "SGD/iter:0", &[(m, "SGD/*/momentum:0")]),
            ("new_sgd", "2.12.0", ("Custom>SGD", sgd), "iteration:0", &[(m, "SGD/m/*:0")]),
        ] {
            let (mut names, mut wanted) = (vec![(step.to_string(), None)], BTreeMap::new());
            for (number, (ours, theirs)) in kinds.iter().enumerate() {
                let (x, b) = (10.0 * number as f32, BIAS + 10.0 * number as f32);
                names.push((theirs.replace('*', "dense/kernel"), Some(x)));
                names.push((theirs.replace('*', "dense/bias"), Some(b)));
                let kernel = [0.0, 2.0, 4.0, 1.0, 3.0, 5.0].map(|more| x + more).to_vec();
                wanted.insert(format!("{ours}dense.weight"), Tensor::new(&[2, 3], kernel).unwrap());
                wanted.insert(format!("{ours}dense.bias"), Tensor::new(&[2], vec![b, b + 1.0]).unwrap());
            }
            let kept: Vec<(&str, Option<f32>)> = names.iter().map(|(name, first)| (name.as_str(), *first)).collect();
            let training = trained(name, version, optimizer, &kept).unwrap_or_else(|| panic!("{name}"));
            assert_eq!((training.step, training.loss.as_deref()), (3, Some("mse")), "{name}");
            assert_eq!(training.state, wanted, "{name}");
            if name == "graph" {
                let rule = Adam { beta_1: 0.75, beta_2: 0.875, epsilon: 0.25, ..Adam::default().learning_rate(0.5) };
                assert_eq!(training.optimizer.rule, Rule::Adam(rule));
            }
        }
    }

    #[test]
    fn what_an_optimiser_of_keras_2_keeps_is_left_out_where_it_is_not_certain() {
        let all = [
            ("Adam/iter:0", None),
            ("Adam/dense/kernel/m:0", Some(1.0)),
            ("Adam/dense/bias/m:0", Some(BIAS)),
            ("Adam/dense/kernel/v:0", Some(2.0)),
            ("Adam/dense/bias/v:0", Some(BIAS)),
        ];
        let read = |class: &str, config: Value, kept: &[(&str, Option<f32>)]| {
            trained("uncertain", "2.9.0", (class, config), kept)
        };
        let older = || with(adam(), "decay", 0.0);
        assert!(read("Adam", older(), &all).is_some());
        for without in 0..all.len() {
            let some: Vec<_> = all.iter().enumerate().filter(|part| part.0 != without).map(|part| *part.1).collect();
            assert!(read("Adam", older(), &some).is_none(), "{without}");
        }
        let twice: Vec<(String, Option<f32>)> =
            all.iter().map(|(name, first)| (format!("old/{name}"), *first)).collect();
        let twice = twice.iter().skip(1).map(|(name, first)| (name.as_str(), *first));
        assert!(read("Adam", older(), &all.into_iter().chain(twice).collect::<Vec<_>>()).is_none());
        assert!(read("Adam", older(), &[all[0], ("training/Adam/Variable:0", Some(1.0))]).is_none());
        assert!(read("Adam", with(older(), "decay", 0.1), &all).is_none());
        assert!(read("Ftrl", older(), &all).is_none());
        let [step, _, bias, rest @ ..] = all;
        let narrow = [&[step, ("Adam/dense/kernel/m:0", Some(BIAS)), bias][..], &rest].concat();
        assert!(read("Adam", older(), &narrow).is_none(), "a kernel of two values");
    }

    #[test]
    fn settings_of_optimisers_of_keras_2_are_those_that_compute_the_same() {
        let read = |version: &str, class: &str, config: Value| {
            trained("settings", version, (class, config), &[]).unwrap().optimizer
        };
        let rmsprop = |momentum: f32| json!({ "learning_rate": 0.5, "rho": 0.75, "momentum": momentum, "epsilon": 0.25, "centered": false });
        let older = |momentum: f32| with(rmsprop(momentum), "decay", 0.0);
        for (class, config, momentum, convention) in [
            ("RMSprop", older(0.0), 0.0, Convention::PyTorch),
            ("RMSprop", older(0.5), 0.5, Convention::Keras),
            ("Custom>RMSprop", rmsprop(0.0), 0.0, Convention::Keras),
        ] {
            let rule = RmsProp { learning_rate: 0.5, rho: 0.75, momentum, epsilon: 0.25, centered: false, convention };
            assert_eq!(read("2.9.0", class, config).rule, Rule::RmsProp(rule), "{class} {momentum}");
        }
        let adagrad =
            json!({ "learning_rate": 0.5, "decay": 0.125, "initial_accumulator_value": 0.75, "epsilon": 0.25 });
        let convention = Convention::PyTorch;
        let rule = Adagrad { learning_rate: 0.5, learning_rate_decay: 0.125, initial: 0.75, epsilon: 0.25, convention };
        assert_eq!(read("2.9.0", "Adagrad", adagrad).rule, Rule::Adagrad(rule));
        let nadam = json!({ "lr": 0.5, "beta_1": 0.75, "beta_2": 0.875, "epsilon": 0.25, "schedule_decay": 0.125 });
        let rule = Nadam { learning_rate: 0.5, beta_1: 0.75, beta_2: 0.875, epsilon: 0.25, momentum_decay: 0.125 };
        assert_eq!(read("2.2.4", "Nadam", nadam).rule, Rule::Nadam(rule));
        for (version, clipping) in [
            ("2.2.4", Clipping::GlobalNorm(2.0)),
            ("2.3.1", Clipping::GlobalNorm(2.0)),
            ("2.2.4-tf", Clipping::Norm(2.0)),
            ("2.10.0", Clipping::Norm(2.0)),
        ] {
            assert_eq!(read(version, "Adam", with(adam(), "clipnorm", 2.0)).clipping, Some(clipping), "{version}");
        }
    }

    #[test]
    fn what_is_not_a_whole_model_of_keras_is_refused() {
        let refused = |path: PathBuf, wanted: &str| {
            let error = read_legacy(&path).unwrap_err().to_string();
            assert!(error.contains(wanted), "{wanted}: {error}");
        };
        refused(saved("one", "1.2.2", |_| {}), "expected a file of Keras 2 or 3, got one of Keras 1.2.2");
        let rename = |config: &mut Value| config["config"][0]["config"]["name"] = "other".into();
        refused(saved("name", "2.9.0", rename), "the weight `model_weights/dense/dense/bias:0` belongs to no layer");
        let path = saved("alone", "2.9.0", |_| {});
        let mut file = FileBuilder::new();
        file.create_dataset("kernel").with_f32_data(&[1.0]);
        std::fs::write(&path, file.finish().unwrap()).unwrap();
        refused(path, "expected a whole model, got weights alone");
    }

    #[test]
    fn calls_that_are_not_understood_are_refused() {
        let refused = |node: Value, wanted: &str| {
            let layer = json!({ "class_name": "LSTM", "config": { "name": "odd" }, "inbound_nodes": [node] });
            let config = json!({ "class_name": "Functional", "config": { "layers": [layer] } });
            let error = model(config).unwrap_err().to_string();
            assert!(error.contains("odd") && error.contains(wanted), "{error}");
        };
        refused(json!([["x", 0]]), "expected calls as lists of tensors");
        refused(json!([3]), "expected calls as lists of tensors");
        refused(json!([["x", 0, 0, { "mask": ["y", 0, 0] }]]), "a mask that is given by name");
        for strange in [json!(null), json!([]), json!({ "config": 3 }), json!({ "config": { "layers": {} } })] {
            assert!(model(strange).is_err());
        }
        let empty =
            json!({ "config": { "layers": [null, 1, {}, { "config": [] }, { "inbound_nodes": [[], null, 2] }] } });
        model(empty).unwrap();
    }
}
