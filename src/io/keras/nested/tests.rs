//! Models in models as a file has them, and as one model.

use super::super::archive::KerasTensor;
use super::super::model::Reader;
use super::*;
use crate::io::Imported;
use crate::nn::{Layer, Port};

/// A tensor as the argument of a call.
fn t(name: &str, call: usize, output: usize) -> Value {
    serialised(name, call, output)
}

/// A call over the tensors of `args`, with the settings of `kwargs`.
fn over(args: Value, kwargs: Value) -> Value {
    json!({ "args": [args], "kwargs": kwargs })
}

fn layer(class: &str, name: &str, mut config: Value, nodes: &[Value]) -> Value {
    config["name"] = name.into();
    json!({ "class_name": class, "config": config, "inbound_nodes": nodes })
}

fn input(name: &str, shape: Value) -> Value {
    layer("InputLayer", name, json!({ "batch_shape": shape, "dtype": "float32" }), &[])
}

fn tokens(name: &str) -> Value {
    layer("InputLayer", name, json!({ "batch_shape": [null, null], "dtype": "int32" }), &[])
}

fn steps(name: &str) -> Value {
    input(name, json!([null, null, 2]))
}

fn dense(name: &str, from: &[Value]) -> Value {
    let nodes: Vec<Value> = from.iter().map(|tensor| over(tensor.clone(), json!({}))).collect();
    layer("Dense", name, json!({ "units": 2 }), &nodes)
}

fn lstm(name: &str, more: Value, from: &[Value]) -> Value {
    let mut config = json!({ "units": 2, "return_sequences": true });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let nodes: Vec<Value> = from.iter().map(|tensor| over(tensor.clone(), json!({ "mask": null }))).collect();
    layer("LSTM", name, config, &nodes)
}

fn embedding(name: &str, from: &[Value]) -> Value {
    let nodes: Vec<Value> = from.iter().map(|tensor| over(tensor.clone(), json!({}))).collect();
    layer("Embedding", name, json!({ "input_dim": 9, "output_dim": 2, "mask_zero": true }), &nodes)
}

fn sequential(name: &str, layers: &[Value], nodes: &[Value]) -> Value {
    layer("Sequential", name, json!({ "layers": layers }), nodes)
}

fn functional(name: &str, layers: &[Value], inputs: Value, outputs: Value, nodes: &[Value]) -> Value {
    let config = json!({ "layers": layers, "input_layers": inputs, "output_layers": outputs });
    layer("Functional", name, config, nodes)
}

/// An archive whose weights lie in groups of `layers`, each with a kernel and a bias that begin with its number.
fn archive(config: Value, groups: &[(&str, &str)]) -> KerasArchive {
    let (mut weights, mut names) = (BTreeMap::new(), BTreeMap::new());
    for (at, (group, name)) in groups.iter().enumerate() {
        let first = at as f32;
        let kernel = KerasTensor { shape: vec![2, 2], data: vec![first, 0.1, 0.2, 0.3] };
        weights.insert(format!("layers/{group}/vars/0"), kernel);
        weights.insert(format!("layers/{group}/vars/1"), KerasTensor { shape: vec![2], data: vec![first, 0.5] });
        names.insert(format!("layers/{group}/vars"), name.to_string());
    }
    KerasArchive { keras_version: "3.15.1".to_string(), config, weights, names, step: None }
}

/// The layers of a model with its models taken apart, by name.
fn flat(model: &Value) -> BTreeMap<String, Value> {
    let flat = flatten(archive(model.clone(), &[])).unwrap();
    let layers = flat.config["config"]["layers"].as_array().unwrap();
    layers.iter().map(|layer| (layer["config"]["name"].as_str().unwrap().to_string(), layer.clone())).collect()
}

/// What the calls of a layer read.
fn read(layer: &Value) -> Vec<Value> {
    let history = |tensor: &Value| tensor["config"]["keras_history"].clone();
    let of = |node: &Value| node["args"][0].as_array().unwrap().iter().map(history).collect();
    layer["inbound_nodes"].as_array().unwrap().iter().map(of).collect()
}

/// What the masks of a layer's first call come from, through the operations that make them.
fn masks(layers: &BTreeMap<String, Value>, name: &str) -> Vec<Value> {
    let maker = |mask: &Value| layers.get(mask["config"]["keras_history"][0].as_str().unwrap()).unwrap();
    let from = |mask: &Value| maker(mask)["inbound_nodes"][0]["args"][0]["config"]["keras_history"].clone();
    let told = layers[name]["inbound_nodes"][0]["kwargs"]["mask"].as_array();
    told.into_iter().flatten().map(|m| if m.is_null() { Value::Null } else { from(m) }).collect()
}

fn refused(model: &Value, wanted: &str) {
    let error = flatten(archive(model.clone(), &[])).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(wanted), "{wanted}: {error}");
}

fn imported(archive: KerasArchive) -> Result<Imported> {
    Reader::new(&flatten(archive)?, false).model()
}

/// A model whose encoder, a Sequential, reads both inputs.
fn siamese() -> Value {
    let nodes = [over(t("a", 0, 0), json!({ "mask": null })), over(t("b", 0, 0), json!({ "training": false }))];
    let encoder = sequential("encoder", &[steps("own"), dense("dense", &[])], &nodes);
    let both = json!([t("encoder", 0, 0), t("encoder", 1, 0), t("a", 0, 0)]);
    let sum = layer("Add", "sum", json!({}), &[over(both, json!({}))]);
    let last = dense("dense", &[t("sum", 0, 0)]);
    let (inputs, four) = (json!([["a", 0, 0], ["b", 0, 0]]), json!([null, 4, 2]));
    let layers = [input("a", four.clone()), input("b", four), encoder, sum, last];
    functional("siamese", &layers, inputs, json!(["dense", 0, 0]), &[])
}

#[test]
fn a_model_without_others_stays_as_it_is() {
    let line = archive(sequential("line", &[steps("x"), dense("dense", &[])], &[]), &[("dense", "dense")]);
    assert_eq!(flatten(line.clone()).unwrap(), line);
    for config in [json!(null), json!([]), json!({ "class_name": "Functional" }), json!({ "config": {} })] {
        let archive = archive(config, &[]);
        assert_eq!(flatten(archive.clone()).unwrap(), archive);
    }
}

#[test]
fn a_shared_model_is_called_twice_and_has_its_parameters_once() {
    let layers = flat(&siamese());
    assert_eq!(read(&layers["encoder_dense"]), [json!([["a", 0, 0]]), json!([["b", 0, 0]])]);
    let sum = json!([["encoder_dense", 0, 0], ["encoder_dense", 1, 0], ["a", 0, 0]]);
    assert_eq!(read(&layers["sum"]), [sum]);
    // Groups carry names, or files of an older version none.
    let groups = [("dense", "dense"), ("sequential/layers/dense", "dense")];
    let named = archive(siamese(), &groups);
    let unnamed = KerasArchive { names: BTreeMap::new(), ..named.clone() };
    for archive in [named, unnamed] {
        let imported = imported(archive).unwrap();
        let names: Vec<&str> = imported.network.nodes.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(names, ["encoder_dense", "encoder_dense", "sum", "dense"]);
        assert_eq!(imported.network.nodes[1].inputs, [Port::Input(1)]);
        assert_eq!(imported.parameters["encoder_dense.bias"].f32s().unwrap(), [1.0, 0.5]);
        assert_eq!(imported.parameters["dense.bias"].f32s().unwrap(), [0.0, 0.5]);
        assert_eq!(imported.sources["encoder_dense.weight"], "layers/sequential/layers/dense/vars/0");
    }
}

#[test]
fn a_sequential_in_a_sequential_is_one() {
    let inner = sequential("inner", &[dense("one", &[]), dense("two", &[])], &[]);
    let line = sequential("line", &[steps("x"), inner, dense("three", &[])], &[]);
    let groups = [("sequential/layers/dense", "one"), ("sequential/layers/dense_1", "two"), ("dense", "three")];
    let imported = imported(archive(line, &groups)).unwrap();
    let names: Vec<&str> = imported.network.nodes.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["inner_one", "inner_two", "three"]);
    assert_eq!((imported.network.inputs[0].0.as_str(), imported.network.outputs[0].0.as_str()), ("x", "y"));
    assert_eq!(imported.parameters["inner_two.bias"].f32s().unwrap(), [1.0, 0.5]);
    assert_eq!(imported.title, "line");
}

/// A model of two inputs and outputs, each through a layer of its own.
fn pair(nodes: &[Value]) -> Value {
    let layers = [steps("p"), steps("q"), dense("one", &[t("p", 0, 0)]), dense("two", &[t("q", 0, 0)])];
    let (inputs, outputs) = (json!([["p", 0, 0], ["q", 0, 0]]), json!([["two", 0, 0], ["one", 0, 0]]));
    functional("pair", &layers, inputs, outputs, nodes)
}

#[test]
fn outputs_of_calls_go_where_they_are_read() {
    let calls = [
        over(json!([t("x", 0, 0), t("x", 0, 0)]), json!({ "mask": [null, null] })),
        over(json!([t("pair", 0, 0), t("pair", 0, 1)]), json!({})),
    ];
    // The outputs of a functional model count its calls from one.
    let outputs = json!([["pair", 2, 1], ["pair", 1, 0], ["x", 0, 0]]);
    let whole = functional("whole", &[steps("x"), pair(&calls)], json!(["x", 0, 0]), outputs, &[]);
    let layers = flat(&whole);
    assert_eq!(read(&layers["pair_one"]), [json!([["x", 0, 0]]), json!([["pair_two", 0, 0]])]);
    assert_eq!(read(&layers["pair_two"]), [json!([["x", 0, 0]]), json!([["pair_one", 0, 0]])]);
    assert_eq!(read(&layers["pair"]), [json!([["pair_one", 1, 0]]), json!([["pair_two", 0, 0]])]);
    let flat = flatten(archive(whole, &[])).unwrap();
    let outputs = json!([["pair", 0, 0], ["pair", 1, 0], ["x", 0, 0]]);
    assert_eq!(flat.config["config"]["output_layers"], outputs);
}

#[test]
fn keras_2_counts_a_models_own_call_unless_it_was_built_late() {
    for first in [0, 1] {
        let calls = [over(t("x", 0, 0), json!({})), over(t("inner", first, 0), json!({}))];
        let inner = sequential("inner", &[dense("dense", &[])], &calls);
        let outputs = json!(["inner", first + 1, 0]);
        let whole = functional("whole", &[steps("x"), inner], json!(["x", 0, 0]), outputs, &[]);
        let old = KerasArchive { keras_version: "2".to_string(), ..archive(whole, &[]) };
        let flat = flatten(old).unwrap();
        let dense = &flat.config["config"]["layers"][1];
        assert_eq!(read(dense), [json!([["x", 0, 0]]), json!([["inner_dense", 0, 0]])]);
    }
}

#[test]
fn layers_have_names_of_their_own_in_the_order_of_keras() {
    let block = |name: &str, from: &str| {
        let node = over(t(from, 0, 0), json!({}));
        sequential(name, &[steps("in"), dense("dense", &[]), dense("a.b", &[]), dense("a/b", &[])], &[node])
    };
    let outer = functional(
        "outer",
        &[steps("in"), block("block", "in")],
        json!(["in", 0, 0]),
        json!(["block", 0, 0]),
        &[over(t("x", 0, 0), json!({}))],
    );
    let layers = [
        steps("x"),
        outer,
        block("one", "x"),
        dense("outer_block_dense", &[t("one", 0, 0)]),
        layer("Add", "sum", json!({}), &[over(json!([t("outer_block_dense", 0, 0), t("outer", 0, 0)]), json!({}))]),
    ];
    let whole = functional("whole", &layers, json!(["x", 0, 0]), json!(["sum", 0, 0]), &[]);
    let flat = flatten(archive(whole, &[])).unwrap();
    let layers = flat.config["config"]["layers"].as_array().unwrap();
    let names: Vec<&str> = layers.iter().map(|layer| layer["config"]["name"].as_str().unwrap()).collect();
    let one = ["x", "one_dense", "one_a_b", "one_a_b_1", "outer_block_dense"];
    let outer = ["outer_block_dense_1", "outer_block_a_b", "outer_block_a_b_1", "sum"];
    assert_eq!(names, [&one[..], &outer].concat());
    assert_eq!(flat.names["layers/functional/layers/sequential/layers/dense_2/vars"], "outer_block_a_b_1");
}

#[test]
fn what_is_not_trained_outside_is_not_trained_inside() {
    let mut inner = sequential("inner", &[sequential("in", &[dense("dense", &[])], &[])], &[]);
    inner["config"]["trainable"] = false.into();
    let layers = flat(&sequential("line", &[steps("x"), inner, dense("last", &[])], &[]));
    assert_eq!(layers["inner_in_dense"]["config"]["trainable"], json!(false));
    assert_eq!(layers["last"]["config"]["trainable"], json!(null));
}

/// Embeddings inside, and then `layers`, as a Sequential.
fn words(layers: &[Value]) -> Value {
    let front = sequential("front", &[tokens("t"), embedding("embedding", &[])], &[]);
    sequential("line", &[&[tokens("t"), front], layers].concat(), &[])
}

#[test]
fn masks_come_out_of_models_and_go_into_others() {
    let inner = sequential("inner", &[dense("dense", &[]), lstm("lstm", json!({}), &[])], &[]);
    let layers = flat(&words(&[inner, lstm("after", json!({}), &[])]));
    for name in ["inner_lstm", "after"] {
        assert_eq!(masks(&layers, name), [json!(["x", 0, 0])], "{name}");
    }
    // After a convolution Keras knows of none, and the embedding need not mask.
    let conv = layer("Conv1D", "conv", json!({ "filters": 2, "kernel_size": [1] }), &[]);
    let layers = flat(&words(&[sequential("inner", &[conv], &[]), lstm("after", json!({}), &[])]));
    assert!(masks(&layers, "after").is_empty() && !layers.contains_key("not_equal"));
}

#[test]
fn masks_that_a_model_inside_tells_of_are_those_of_its_calls() {
    let differs = layer("NotEqual", "ne", json!({}), &[json!({ "args": [t("t", 0, 0), 0], "kwargs": {} })]);
    let told = over(t("embedding", 0, 0), json!({ "mask": t("ne", 0, 0) }));
    let told = layer("LSTM", "lstm", json!({ "units": 2, "return_sequences": true }), &[told]);
    let layers = [tokens("t"), embedding("embedding", &[t("t", 0, 0)]), differs, told];
    let nodes = [over(t("a", 0, 0), json!({ "mask": null })), over(t("b", 0, 0), json!({ "mask": null }))];
    let reader = functional("reader", &layers, json!(["t", 0, 0]), json!(["lstm", 0, 0]), &nodes);
    let (one, two) = (&[t("reader", 0, 0)], &[t("reader", 1, 0)]);
    let layers = [tokens("a"), tokens("b"), reader, lstm("one", json!({}), one), lstm("two", json!({}), two)];
    let (inputs, outputs) = (json!([["a", 0, 0], ["b", 0, 0]]), json!([["one", 0, 0], ["two", 0, 0]]));
    let layers = flat(&functional("whole", &layers, inputs, outputs, &[]));
    assert_eq!(masks(&layers, "one"), [json!(["a", 0, 0])]);
    assert_eq!(masks(&layers, "two"), [json!(["b", 0, 0])]);
    assert_eq!(layers["reader_lstm"]["inbound_nodes"].as_array().unwrap().len(), 2);
}

/// Attention inside over embeddings, whose mask it finds by itself, of what `query` makes of them.
fn attention(query: &str, more: &[Value]) -> Value {
    let called = over(json!([t(query, 0, 0), t("in", 0, 0)]), json!({ "use_causal_mask": true }));
    let layers = [&[steps("in")], more, &[layer("Attention", "at", json!({}), &[called])]].concat();
    let nodes = [over(t("embedding", 0, 0), json!({}))];
    let look = functional("look", &layers, json!(["in", 0, 0]), json!(["at", 0, 0]), &nodes);
    let layers = [tokens("t"), embedding("embedding", &[t("t", 0, 0)]), look];
    functional("whole", &layers, json!(["t", 0, 0]), json!(["look", 1, 0]), &[])
}

#[test]
fn attention_finds_the_masks_of_what_it_reads() {
    let layers = flat(&attention("lstm", &[lstm("lstm", json!({}), &[t("in", 0, 0)])]));
    assert_eq!(masks(&layers, "look_at"), [json!(["t", 0, 0]), json!(["t", 0, 0])]);
    assert_eq!(layers["look_at"]["inbound_nodes"][0]["kwargs"]["use_causal_mask"], json!(true));
    let mut archive = archive(attention("in", &[]), &[("embedding", "embedding")]);
    archive
        .weights
        .insert("layers/embedding/vars/0".to_string(), KerasTensor { shape: vec![9, 2], data: vec![0.0; 18] });
    archive.weights.remove("layers/embedding/vars/1");
    let imported = imported(archive).unwrap();
    assert_eq!(imported.network.outputs[0].0, "look");
    let Layer::Embedding(embedding) = &imported.network.nodes[0].layer else { panic!("{:?}", imported.network) };
    assert!(embedding.mask_zero);
}

#[test]
fn masks_that_would_be_others_are_refused_by_the_layers_name() {
    let joined = |class: &str, both: Value| {
        let merged = layer(class, "joined", json!({ "trainable": true }), &[over(both, json!({}))]);
        let layers = [steps("p"), steps("q"), merged, lstm("lstm", json!({}), &[t("joined", 0, 0)])];
        let nodes = [over(json!([t("embedding", 0, 0), t("other", 0, 0)]), json!({ "mask": [null, null] }))];
        let inner = functional("inner", &layers, json!([["p", 0, 0], ["q", 0, 0]]), json!(["lstm", 0, 0]), &nodes);
        let embeddings = [embedding("embedding", &[t("t", 0, 0)]), embedding("other", &[t("u", 0, 0)])];
        let layers = [&[tokens("t"), tokens("u")], &embeddings[..], &[inner]].concat();
        functional("whole", &layers, json!([["t", 0, 0], ["u", 0, 0]]), json!(["inner", 1, 0]), &[])
    };
    let both = json!([t("p", 0, 0), t("q", 0, 0)]);
    refused(&joined("Add", both.clone()), "inner_lstm: masks of several layers that are joined");
    refused(&joined("Multiply", both), "inner_joined: a Multiply of masked steps is not supported");
    flat(&joined("Add", json!([t("p", 0, 0), t("p", 0, 0)])));
    let back = lstm("back", json!({ "go_backwards": true }), &[]);
    refused(&words(&[back, lstm("after", json!({}), &[])]), "after: masks of several layers that are joined");
    let softmax = layer("Softmax", "softmax", json!({}), &[]);
    refused(&words(&[softmax]), "softmax: a Softmax over masked steps is not supported");
    let mut other = joined("Add", json!([t("p", 0, 0), t("p", 0, 0)]));
    let differs = layer("NotEqual", "ne", json!({}), &[json!({ "args": [t("u", 0, 0), 0], "kwargs": {} })]);
    other["config"]["layers"].as_array_mut().unwrap().push(differs);
    other["config"]["layers"][4]["inbound_nodes"][0]["kwargs"]["mask"] = json!([t("ne", 0, 0), null]);
    refused(&other, "inner: a mask that reaches it by another way");
}

#[test]
fn calls_that_do_not_fit_are_refused() {
    let whole = |nodes: &[Value], outputs: Value| {
        functional("whole", &[steps("x"), pair(nodes)], json!(["x", 0, 0]), outputs, &[])
    };
    let good = json!([t("x", 0, 0), t("x", 0, 0)]);
    let call = |args: Value| whole(&[over(args, json!({}))], json!(["pair", 1, 0]));
    flat(&call(good.clone()));
    refused(&call(json!([t("x", 0, 0)])), "pair: expected 2 inputs of the model, got 1");
    refused(&call(json!([t("x", 0, 0), t("y", 0, 0)])), "pair: what it reads comes from `y`");
    refused(&call(json!([t("x", 0, 0), t("x", 1, 0)])), "`x` has 1 calls, numbered from 0, and none is 1");
    refused(&call(json!([t("x", 0, 0), t("x", 0, 2)])), "`x` has no output 2, only 1");
    refused(&call(json!([t("x", 0, 0), 3])), "the argument 3, which is no tensor,");
    refused(&call(json!({ "p": t("x", 0, 0), "q": t("x", 0, 0) })), "other names than those of its inputs");
    refused(&call(json!([t("x", 0, 0), t("pair", 0, 0)])), "pair: what it reads comes from no layer of the model");
    refused(&whole(&[over(good.clone(), json!({}))], json!(["pair", 0, 0])), "numbered from 1, and none is 0");
    refused(&whole(&[over(good.clone(), json!({}))], json!(["pair", 1, 2])), "`pair` has no output 2, only 2");
    let trained = whole(&[over(good.clone(), json!({ "training": true }))], json!(["pair", 1, 0]));
    refused(&trained, "pair: the argument `training` is not supported");
    let mut rows = call(good.clone());
    rows["config"]["layers"][0] = input("x", json!([null, 2]));
    refused(&rows, "pair: expected 3 axes for its input `p`, got 2");
    let mut whole_numbers = call(good);
    whole_numbers["config"]["layers"][1]["config"]["layers"][0]["config"]["dtype"] = "int32".into();
    refused(&whole_numbers, "pair: expected int32 for its input `p`, got float32");
    let twice = sequential("in", &[dense("dense", &[]), dense("dense", &[])], &[]);
    refused(&sequential("line", &[steps("x"), twice], &[]), "dense: expected layers of different names");
    let states = sequential("in", &[lstm("lstm", json!({ "return_state": true }), &[]), dense("dense", &[])], &[]);
    refused(&sequential("line", &[steps("x"), states], &[]), "in_dense: it does not follow on one output");
}

#[test]
fn what_a_time_distributed_holds_is_no_model_inside() {
    let each = json!({ "layer": sequential("each", &[dense("dense", &[])], &[]) });
    let inner = sequential("inner", &[layer("TimeDistributed", "steps", each, &[])], &[]);
    let error = imported(archive(sequential("line", &[steps("x"), inner], &[]), &[])).unwrap_err().to_string();
    assert!(error.contains("inner_steps: TimeDistributed of Sequential is not supported"), "{error}");
}

#[test]
fn models_lie_only_so_deep_and_have_only_so_many_calls() {
    let wrapped = |depth: usize| {
        let inner = (0..depth).fold(dense("dense", &[]), |inner, _| sequential("m", &[inner], &[]));
        sequential("line", &[steps("x"), inner], &[])
    };
    assert!(flat(&wrapped(16)).contains_key("m_m_m_m_m_m_m_m_m_m_m_m_m_m_m_m_dense"));
    refused(&wrapped(17), "expected models at most 16 deep in one another");
    // Each model calls the one inside it twice.
    let doubled = |depth: usize| {
        let (mut layers, mut last) = (vec![steps("x"), dense("dense", &[t("x", 0, 0)])], json!(["dense", 0, 0]));
        for _ in 0..depth {
            let nodes = [over(t("x", 0, 0), json!({})), over(t("m", 0, 0), json!({}))];
            layers = vec![steps("x"), functional("m", &layers, json!(["x", 0, 0]), last, &nodes)];
            last = json!(["m", 2, 0]);
        }
        functional("whole", &layers, json!(["x", 0, 0]), last, &[])
    };
    let layers = flat(&doubled(5));
    assert_eq!(read(&layers["m_m_m_m_m_dense"]).len(), 32);
    refused(&doubled(15), "expected at most 2048 calls of layers, got more");
    let passes = over(t("x", 0, 0), json!({}));
    let many = json!(vec![json!(["x", 0, 0]); 3000]);
    let inner = functional("m", &[steps("x")], json!(["x", 0, 0]), many, &vec![passes; 9]);
    let whole = functional("whole", &[steps("x"), inner], json!(["x", 0, 0]), json!(["m", 1, 0]), &[]);
    refused(&whole, "expected at most 16384 tensors that layers read, got more");
    let long = sequential("line", &[steps("x"), sequential(&"m".repeat(600), &[dense("dense", &[])], &[])], &[]);
    refused(&long, "expected names of layers of at most 512 bytes, got one of 600");
}
