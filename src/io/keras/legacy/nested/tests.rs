//! Models inside of models in small files, written here as Keras 2 and 3 write them.

use super::super::settings::{model, name_models};
use super::super::tests::filled;
use super::super::{WEIGHTS, entry, read_legacy};
use super::*;
use crate::config::Activation;
use crate::io::Imported;
use crate::nn::{Layer, Port};
use hdf5_pure::{AttrValue, FileBuilder, GroupBuilder};
use serde_json::json;

fn layer(class: &str, name: &str, mut config: Value) -> Value {
    config["name"] = name.into();
    json!({ "class_name": class, "config": config })
}

fn dense(name: &str) -> Value {
    layer("Dense", name, json!({ "units": 2, "use_bias": false }))
}

fn input(name: &str) -> Value {
    layer("InputLayer", name, json!({ "batch_input_shape": [null, 2] }))
}

fn sequential(name: &str, layers: &[Value]) -> Value {
    layer("Sequential", name, json!({ "layers": layers }))
}

/// With the calls of it, as Keras 2 has them.
fn called(mut layer: Value, nodes: Value) -> Value {
    layer["inbound_nodes"] = nodes;
    layer
}

fn with(mut layer: Value, setting: &str, value: impl Into<Value>) -> Value {
    layer["config"][setting] = value.into();
    layer
}

fn functional(layers: &[Value], inputs: Value, outputs: Value) -> Value {
    let config = json!({ "layers": layers, "input_layers": inputs, "output_layers": outputs });
    layer("Functional", "functional", config)
}

/// A dataset that begins with a number: a kernel `[2, 2]` or a bias `[2]`; without one, a count of three steps.
fn put(group: &mut GroupBuilder, name: &str, first: Option<f32>) {
    let dataset = group.create_dataset(name);
    match first {
        None => dataset.with_i64_data(&[3]).with_shape(&[]),
        Some(first) if name.starts_with("bias") => dataset.with_f32_data(&[first, 0.5]).with_shape(&[2]),
        Some(first) => dataset.with_f32_data(&[first, 0.1, 0.2, 0.3]).with_shape(&[2, 2]),
    };
}

/// A file with the weights of each layer, numbered in the order of the lists.
fn file(version: &str, config: &Value, layers: &[(&str, &[&str])]) -> FileBuilder {
    let mut file = FileBuilder::new();
    file.set_attr("model_config", AttrValue::VarLenString(config.to_string()));
    file.set_attr("keras_version", AttrValue::String(version.to_string()));
    let mut weights = file.create_group(WEIGHTS);
    let names = layers.iter().map(|layer| layer.0.to_string()).collect();
    weights.set_attr("layer_names", AttrValue::VarLenStringArray(names));
    let mut number = 0.0;
    for (name, listed) in layers {
        let mut group = weights.create_group(name);
        if !listed.is_empty() {
            let names = listed.iter().map(|weight| weight.to_string()).collect();
            group.set_attr("weight_names", AttrValue::VarLenStringArray(names));
        }
        let mut next = || {
            number += 1.0;
            Some(number)
        };
        let datasets: Vec<_> = listed.iter().map(|&weight| (weight, next())).collect();
        weights.add_group(filled(group, &datasets, &put));
    }
    file.add_group(weights.finish());
    file
}

fn read(file: FileBuilder) -> Result<Imported> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.h5");
    std::fs::write(&path, file.finish().unwrap()).unwrap();
    read_legacy(&path)
}

fn refused(version: &str, config: &Value, layers: &[(&str, &[&str])], wanted: &str) {
    let error = read(file(version, config, layers)).unwrap_err().to_string();
    assert!(error.contains(wanted), "{wanted}: {error}");
}

/// The first value of a parameter.
fn first(imported: &Imported, parameter: &str) -> f32 {
    imported.parameters[parameter].f32s().unwrap()[0]
}

/// An encoder of two layers that both inputs go through.
fn siamese(encoder: Value) -> Value {
    let encoder = called(encoder, json!([[["a", 0, 0, {}]], [["b", 0, 0, { "training": false }]]]));
    let sum = called(layer("Add", "sum", json!({})), json!([[["encoder", 1, 0, {}], ["encoder", 2, 0, {}]]]));
    let last = called(dense("last"), json!([[["sum", 0, 0, {}]]]));
    let (inputs, outputs) = (json!([["a", 0, 0], ["b", 0, 0]]), json!([["last", 0, 0]]));
    functional(&[input("a"), input("b"), encoder, sum, last], inputs, outputs)
}

const SIAMESE: [(&str, &[&str]); 5] = [
    ("a", &[]),
    ("b", &[]),
    ("encoder", &["one/kernel:0", "one/bias:0", "two/kernel:0"]),
    ("sum", &[]),
    ("last", &["last/kernel:0"]),
];

#[test]
fn a_shared_model_of_keras_2_has_its_weights_once_by_the_names_of_its_datasets() {
    let config = json!({ "units": 2, "activation": "hard_sigmoid", "batch_input_shape": [null, 2] });
    let layers = [layer("Dense", "one", config), dense("two")];
    // As it is now, and as it was before Keras 2.2.3.
    let older = json!({ "class_name": "Sequential", "config": layers, "name": "encoder" });
    for encoder in [sequential("encoder", &layers), older] {
        let imported = read(file("2.9.0", &siamese(encoder), &SIAMESE)).unwrap();
        let nodes = &imported.network.nodes;
        let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["encoder_one", "encoder_one", "encoder_two", "encoder_two", "sum", "last"]);
        let read: Vec<Port> = nodes.iter().filter(|n| n.name == "encoder_one").map(|n| n.inputs[0]).collect();
        assert_eq!(read, [Port::Input(0), Port::Input(1)]);
        let Layer::Dense(one) = &nodes[0].layer else { panic!("{nodes:?}") };
        assert_eq!(one.activation, Activation::HardSigmoid { alpha: 0.2, beta: 0.5 });
        for (at, parameter, source) in [
            (1.0, "encoder_one.weight", "encoder/one/kernel:0"),
            (2.0, "encoder_one.bias", "encoder/one/bias:0"),
            (3.0, "encoder_two.weight", "encoder/two/kernel:0"),
            (4.0, "last.weight", "last/last/kernel:0"),
        ] {
            assert_eq!(
                (first(&imported, parameter), &*imported.sources[parameter]),
                (at, &*format!("{WEIGHTS}/{source}"))
            );
        }
    }
}

#[test]
fn what_an_optimiser_keeps_of_layers_inside_is_read_by_their_names() {
    let encoder = sequential("encoder", &[layer("Dense", "one", json!({ "units": 2 })), dense("two")]);
    let adam = json!({ "learning_rate": 0.5, "beta_1": 0.75, "beta_2": 0.875, "epsilon": 0.25, "amsgrad": false });
    let training = json!({ "loss": "mse", "optimizer_config": { "class_name": "Custom>Adam", "config": adam } });
    let mut file = file("2.15.0", &siamese(encoder), &SIAMESE);
    file.set_attr("training_config", AttrValue::VarLenString(training.to_string()));
    let weights = ["last/kernel:0", "two/kernel:0", "one/bias:0", "one/kernel:0"];
    let (m, v) = (weights.map(|name| format!("Adam/m/{name}")), weights.map(|name| format!("Adam/v/{name}")));
    let kept = m.iter().chain(&v).enumerate().map(|(at, name)| (name.as_str(), Some(at as f32)));
    let kept: Vec<_> = kept.chain([("iteration:0", None)]).collect();
    let group = filled(file.create_group("optimizer_weights"), &kept, &put);
    file.add_group(group);
    let training = read(file).unwrap().training.unwrap();
    assert_eq!((training.step, training.state.len()), (3, 8));
    for (at, name) in ["last.weight", "encoder_two.weight", "encoder_one.bias", "encoder_one.weight"].iter().enumerate()
    {
        let kept = |kind: &str| training.state[&format!("optimizer.{kind}.{name}")].f32s().unwrap()[0];
        assert_eq!((kept("m"), kept("v")), (at as f32, at as f32 + 4.0), "{name}");
    }
}

/// What Keras 2.21 and 3.15 list first, second and third of these.
#[test]
fn weights_that_are_not_trained_come_after_the_others() {
    // Whether `mid`, `in`, `a` and `b` in it, and `c` after it are trained.
    for (flags, older, newer) in [
        ([true, true, true, true, true], "abc", "abc"),
        ([true, true, false, true, true], "bca", "bca"),
        ([true, false, false, false, true], "cab", "cab"),
        ([true, false, true, false, true], "cab", "acb"),
        ([true, false, false, true, true], "cba", "bca"),
        ([false, true, false, true, false], "bac", "abc"),
        ([false, false, false, false, false], "abc", "abc"),
        ([false, false, false, true, false], "bac", "abc"),
    ] {
        let [mid, inside, a, b, c] = flags;
        let trained = |layer: Value, flag: bool| with(layer, "trainable", flag);
        let inner = sequential("in", &[trained(dense("a"), a), trained(dense("b"), b)]);
        let outer = sequential("mid", &[trained(inner, inside), trained(dense("c"), c)]);
        let whole = sequential("whole", &[input("x"), trained(outer, mid)]);
        for (version, order) in [("2.21.0", older), ("3.15.1", newer)] {
            let imported = read(file(version, &whole, &[("mid", &["0/kernel", "1/kernel", "2/kernel"])])).unwrap();
            for (at, letter) in order.chars().enumerate() {
                let name = if letter == 'c' { "mid_c.weight".to_string() } else { format!("mid_in_{letter}.weight") };
                assert_eq!(first(&imported, &name), at as f32 + 1.0, "{flags:?} {version} {letter}");
            }
        }
    }
}

/// The places of the weights of a Bidirectional whose directions are trained or not, in the order of the file.
fn of_directions(settings: Value, old: bool) -> Vec<String> {
    let lstm = |trained: &Value| {
        let config = json!({ "units": 2, "use_bias": false, "go_backwards": false, "trainable": trained });
        json!({ "class_name": "LSTM", "config": config })
    };
    let mut config = json!({ "name": "both", "merge_mode": "concat", "layer": lstm(&settings[0]) });
    if let Some(backward) = settings.get(1) {
        config["backward_layer"] = with(lstm(backward), "go_backwards", true);
    }
    let layer = json!({ "class_name": "Bidirectional", "config": config });
    let slots = directions(&entry(&layer).unwrap(), "layers/both", old).unwrap();
    assert!(slots.iter().all(|slot| slot.group == "layers/both" && slot.layer == "both"));
    slots.iter().map(|slot| slot.path.replace("_layer/cell/vars/", " ")).collect()
}

#[test]
fn a_direction_that_is_not_trained_comes_last() {
    let both = ["forward 0", "forward 1", "backward 0", "backward 1"];
    for old in [false, true] {
        assert_eq!(of_directions(json!([true]), old), both);
        assert_eq!(of_directions(json!([false]), old), both);
        assert_eq!(of_directions(json!([true, false]), old), both);
        assert_eq!(of_directions(json!([false, true]), old), ["backward 0", "backward 1", "forward 0", "forward 1"]);
    }
}

#[test]
fn lists_that_by_their_names_have_another_order_are_refused() {
    let slot = |path: &str, layer: &str| Slot {
        group: String::new(),
        path: path.to_string(),
        number: 0,
        layer: layer.to_string(),
    };
    let listed = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    let two = [slot("vars/0", "one"), slot("vars/0", "two")];
    for names in
        [["one/kernel:0", "two/kernel:0"], ["in/one/kernel", "in/two/kernel"], ["w0", "w1"], ["one/two", "two/one"]]
    {
        check("in", &two, &listed(&names)).unwrap();
    }
    let error = check("in", &two, &listed(&["two/kernel:0", "one/kernel:0"])).unwrap_err().to_string();
    assert!(error.contains("in: expected `vars/0` of `one` in its list of weights, got `two/kernel:0`"), "{error}");
    for both in ["both", "forward_both", "backward_both"] {
        let slots = [slot("forward_layer/cell/vars/0", both), slot("backward_layer/cell/vars/0", both)];
        let [forward, backward] = ["forward", "backward"].map(|way| format!("{both}/{way}_lstm/kernel:0"));
        check("in", &slots, &[forward.clone(), backward.clone()]).unwrap();
        let error = check("in", &slots, &[backward, forward]).unwrap_err().to_string();
        assert!(error.contains("the file does not tell which are trained"), "{error}");
    }
}

#[test]
fn weights_that_do_not_fit_are_refused_by_name() {
    let whole = |inside: &[Value]| sequential("whole", &[input("x"), sequential("in", inside)]);
    let (one, two) = (dense("one"), dense("two"));
    let both = whole(&[one.clone(), two]);
    refused("2.9.0", &both, &[("in", &["one/kernel:0"])], "in: expected a list of 2 weights, got one of 1");
    refused("2.9.0", &both, &[("other", &["one/kernel:0"])], "in: expected a list of 2 weights, got one of 0");
    let three = ["one/kernel:0", "two/kernel:0", "two/bias:0"];
    refused("3.15.1", &both, &[("in", &three)], "in: expected a list of 2 weights, got one of 3");
    let twice = file("3.15.1", &both, &[("in", &["one/kernel:0", "two/kernel:0"]), ("after", &["kernel:0"])]);
    let error = read(twice).unwrap_err().to_string();
    assert!(error.contains("the weight `model_weights/after/kernel:0` belongs to no layer of the model"), "{error}");
    let odd = layer("BatchNormalization", "odd", json!({}));
    refused("2.9.0", &whole(&[one, odd]), &[("in", &["one/kernel:0"])], "in_odd: the layer BatchNormalization is not");
    let deep = (0..17).fold(dense("dense"), |inner, _| sequential("m", &[inner]));
    let deep = sequential("whole", &[input("x"), deep]);
    refused("2.9.0", &deep, &[("m", &["dense/kernel:0"])], "expected models at most 16 deep in one another, got more");
}

#[test]
fn models_that_are_lists_of_layers_get_names_and_inputs() {
    let line = |layers: &[Value]| json!({ "class_name": "Sequential", "config": layers });
    let leaky = layer("LeakyReLU", "leaky", json!({ "batch_input_shape": [null, 2], "alpha": 0.5 }));
    let mut whole = line(&[line(&[line(&[leaky])])]);
    name_models(&mut whole, &["filed".to_string()]);
    let whole = model(whole).unwrap();
    let filed = &whole["config"]["layers"][0];
    assert_eq!(filed["config"]["name"], "filed");
    let deepest = &filed["config"]["layers"][0]["config"]["layers"];
    let input = layer("InputLayer", "leaky_input", json!({ "batch_shape": [null, 2] }));
    assert_eq!((&deepest[0], &deepest[1]["config"]["negative_slope"]), (&input, &json!(0.5)));
    assert_eq!(model(whole.clone()).unwrap(), whole);
    let odd = json!({ "class_name": "Model", "config": { "name": "odd" } });
    let error = model(sequential("whole", &[sequential("in", &[]), odd])).unwrap_err().to_string();
    assert!(error.contains("odd: expected a list of layers"), "{error}");
}

#[test]
fn calls_by_the_names_of_inputs_become_those_of_keras_3() {
    let empty = || functional(&[], json!({}), json!([]));
    let mut both = called(empty(), json!([{ "q": ["a", 0, 0, {}], "p": ["b", 1, 2, { "mask": null }] }]));
    // TensorFlow's own copy of Keras 2.
    both["module"] = "tf_keras.src.engine.functional".into();
    let whole = model(functional(&[both], json!([]), json!([]))).unwrap();
    let both = &whole["config"]["layers"][0];
    assert_eq!(both["module"], "keras.src.engine.functional");
    let tensor = |history: Value| json!({ "class_name": "__keras_tensor__", "config": { "keras_history": history } });
    let (p, q) = (tensor(json!(["b", 1, 2])), tensor(json!(["a", 0, 0])));
    let call = json!({ "args": [{ "q": q, "p": p }], "kwargs": { "mask": null } });
    assert_eq!(both["inbound_nodes"], json!([call]));
    assert_eq!(model(whole.clone()).unwrap(), whole);
    let refused = |node: Value, wanted: &str| {
        let error = model(functional(&[called(dense("odd"), json!([node]))], json!([]), json!([]))).unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
    };
    refused(json!({ "q": ["a", 0] }), "odd: expected calls as lists of tensors, got [\"a\",0]");
    refused(json!(vec![json!(["x", 0, 0]); 20_000]), "expected at most 16384 tensors that layers read, got more");
}
