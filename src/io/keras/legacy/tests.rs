//! Whole models in small files, written here as Keras 2 wrote them.

use super::settings::{model, rename};
use super::*;
use crate::io::keras::Training;
use crate::optim::{Adagrad, Adam, Clipping, Convention, Nadam, RmsProp, Rule};
use crate::params::Tensor;
use hdf5_pure::{AttrValue, FileBuilder, FinishedGroup, GroupBuilder};
use serde_json::json;
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

/// Datasets by their paths in a group, each as `put` makes it.
pub(super) fn filled<T: Copy>(
    mut group: GroupBuilder,
    datasets: &[(&str, T)],
    put: &dyn Fn(&mut GroupBuilder, &str, T),
) -> FinishedGroup {
    let mut inner: BTreeMap<&str, Vec<(&str, T)>> = BTreeMap::new();
    for &(path, what) in datasets {
        match path.split_once('/') {
            Some((name, rest)) => inner.entry(name).or_default().push((rest, what)),
            None => put(&mut group, path, what),
        }
    }
    for (name, datasets) in inner {
        let finished = filled(group.create_group(name), &datasets, put);
        group.add_group(finished);
    }
    group.finish()
}

/// A dataset of an optimiser: `[3, 2]` or two values from a first one on, or a count of three steps.
fn keep(group: &mut GroupBuilder, name: &str, first: Option<f32>) {
    let dataset = group.create_dataset(name);
    match first {
        None => dataset.with_i64_data(&[3]).with_shape(&[]),
        Some(first) if first >= BIAS => dataset.with_f32_data(&[first, first + 1.0]).with_shape(&[2]),
        Some(first) => {
            let values = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0].map(|x| first + x);
            dataset.with_f32_data(&values).with_shape(&[3, 2])
        }
    };
}

/// Values from this one on are of the bias, those before of the kernel.
const BIAS: f32 = 100.0;

/// What is read of the training of [`dense`] by an optimiser, its class and settings, that keeps [these](keep).
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
    let group = filled(file.create_group(OPTIMIZER), kept, &keep);
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
    let read =
        |class: &str, config: Value, kept: &[(&str, Option<f32>)]| trained("uncertain", "2.9.0", (class, config), kept);
    let older = || with(adam(), "decay", 0.0);
    assert!(read("Adam", older(), &all).is_some());
    for without in 0..all.len() {
        let some: Vec<_> = all.iter().enumerate().filter(|part| part.0 != without).map(|part| *part.1).collect();
        assert!(read("Adam", older(), &some).is_none(), "{without}");
    }
    let twice: Vec<(String, Option<f32>)> = all.iter().map(|(name, first)| (format!("old/{name}"), *first)).collect();
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
    let rmsprop = |momentum: f32| {
        let config = json!({ "learning_rate": 0.5, "rho": 0.75, "epsilon": 0.25, "centered": false });
        with(config, "momentum", momentum)
    };
    let older = |momentum: f32| with(rmsprop(momentum), "decay", 0.0);
    for (class, config, momentum, convention) in [
        ("RMSprop", older(0.0), 0.0, Convention::PyTorch),
        ("RMSprop", older(0.5), 0.5, Convention::Keras),
        ("Custom>RMSprop", rmsprop(0.0), 0.0, Convention::Keras),
    ] {
        let rule = RmsProp { learning_rate: 0.5, rho: 0.75, momentum, epsilon: 0.25, centered: false, convention };
        assert_eq!(read("2.9.0", class, config).rule, Rule::RmsProp(rule), "{class} {momentum}");
    }
    let adagrad = json!({ "learning_rate": 0.5, "decay": 0.125, "initial_accumulator_value": 0.75, "epsilon": 0.25 });
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
    let empty = json!({ "config": { "layers": [null, 1, {}, { "config": [] }, { "inbound_nodes": [[], null, 2] }] } });
    model(empty).unwrap();
}
