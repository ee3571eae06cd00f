//! Networks written as files of Keras 3. The files stay in `target/tmp/keras`, where `tests/interchange/check.py` has
//! Keras itself run them.

mod common;

use common::{assert_close, devices};
use mnemon::config::{Bias, Cell, Mask};
use mnemon::device::Device;
use mnemon::error::ErrorKind;
use mnemon::io::{self, keras};
use mnemon::nn::{
    Activate, Activation, Attention, Constraint, Conv1D, Cropping1D, Dense, Direction, Dropout, Embedding, Init,
    Initializer, Input, Layer, LayerNormalization, Lstm, Masking, Merge, MergeKind, MergeMode, Network, Padding,
    Pooling, Pooling1D, Regularizer, RepeatVector, Rules, WorkingMemory,
};
use mnemon::optim::{Clipping, Course, Rule, Schedule, WeightDecay};
use mnemon::params::Tensor;
use mnemon::params::random::Random;
use mnemon::train::{Model, Named};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models")
}

/// A place for a file of `name` that stays.
fn place(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("keras");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

fn values(seed: u64, shape: &[usize]) -> Tensor {
    let mut random = Random::new(seed, 0);
    Tensor::new(shape, (0..shape.iter().product()).map(|_| random.normal() as f32 * 0.4).collect()).unwrap()
}

fn parameters(network: &Network) -> Named {
    let specs = network.parameters().unwrap();
    specs.iter().enumerate().map(|(at, spec)| (spec.name.clone(), values(at as u64, &spec.shape))).collect()
}

#[test]
fn what_is_read_and_written_is_read_the_same() {
    let mut count = 0;
    for entry in std::fs::read_dir(models()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.ends_with(".keras") || name == "gru.keras" {
            continue;
        }
        let first = io::read_model(&path, None).unwrap();
        let to = place(name);
        keras::write_model(&to, &first.title, &first.network, &first.parameters).unwrap();
        let again = io::read_model(&to, None).unwrap();
        // Outputs are called after their layers; those of a model inside were called after it.
        let named = |network: &Network| match name {
            "inside.keras" => Network { outputs: first.network.outputs.clone(), ..network.clone() },
            _ => network.clone(),
        };
        let ports = |network: &Network| network.outputs.iter().map(|o| o.1).collect::<Vec<_>>();
        assert_eq!(ports(&again.network), ports(&first.network), "{name}");
        assert_eq!(named(&again.network), first.network, "{name}");
        assert_eq!((again.title, again.parameters), (first.title, first.parameters), "{name}");
        count += 1;
    }
    assert!(count > 15, "{count}");
}

#[test]
fn whole_models_in_hdf5_give_what_keras_gives() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/legacy");
    for name in ["functional2", "sequential2", "functional3", "sequential3"] {
        let imported = io::read_model(&folder.join(format!("{name}.h5")), None).unwrap();
        let data = io::read_tensors(&folder.join(format!("{name}.safetensors"))).unwrap();
        let inputs: Named =
            data.iter().filter_map(|(n, t)| Some((n.strip_prefix("in.")?.to_string(), t.clone()))).collect();
        let output = imported.network.outputs[0].0.clone();
        let doubles = |tensor: &Tensor| tensor.f32s().unwrap().iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        for device in devices() {
            let mut model = Model::new(&device, &imported.network, &imported.parameters).unwrap();
            let got = model.run_for(&inputs, &[&output]).unwrap_or_else(|e| panic!("{name} on {device:?}: {e}"));
            assert_eq!(got[&output].shape(), data["out.y"].shape(), "{name}");
            assert_close(&format!("{name} on {device:?}"), &doubles(&got[&output]), &doubles(&data["out.y"]), 1e-5);
        }
        assert!(imported.sources.values().all(|s| s.starts_with("model_weights/")), "{:?}", imported.sources);
    }
    let training = io::read_model(&folder.join("sequential3.h5"), None).unwrap().training.unwrap();
    assert_eq!((training.step, training.loss.as_deref()), (1, Some("mse")));
    // Two moments of six parameters, whose layouts are ours.
    assert_eq!(training.state.len(), 2 * 7, "{:?}", training.state.keys());
    let config = io::pytorch::Config::default();
    let error = io::read_model(&folder.join("sequential3.h5"), Some(&config)).unwrap_err();
    assert!(error.to_string().contains("takes no configuration"), "{error}");
}

/// The place in our own parameter, `[outputs, inputs]` or a vector, of value number `at` of Keras's.
fn place_of(at: usize, shape: &[usize]) -> usize {
    match *shape {
        [outputs, inputs] => at % outputs * inputs + at / outputs,
        _ => at,
    }
}

#[test]
fn what_an_optimiser_of_keras_keeps_is_read_by_our_names() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/legacy");
    let (m, v) = ("optimizer.m.", "optimizer.v.");
    for (file, kinds) in [
        ("adam", &[(m, "_momentums"), (v, "_velocities"), ("optimizer.largest.", "_velocity_hats")][..]),
        ("sgd", &[(m, "momentums")]),
        ("rmsprop", &[(m, "_momentums"), (v, "_velocities"), ("optimizer.mean.", "_average_gradients")]),
    ] {
        let imported = io::read_model(&folder.join(format!("{file}.keras")), None).unwrap();
        let kept = io::read_tensors(&folder.join(format!("{file}.safetensors"))).unwrap();
        let training = imported.training.unwrap();
        assert_eq!((training.step, training.loss.as_deref()), (3, Some("mse")), "{file}");
        assert_eq!(training.state.len(), kinds.len() * imported.parameters.len(), "{file}");
        let specs = imported.network.parameters().unwrap();
        assert!(training.optimizer.slots(&specs).iter().all(|slot| training.state[&slot.name].shape() == slot.shape));
        for (name, (prefix, kind)) in imported.parameters.keys().flat_map(|name| kinds.iter().map(move |k| (name, k))) {
            let (layer, role) = name.split_once('.').unwrap();
            let end = match role {
                role if role.starts_with("weight_hh") => "/recurrent_kernel",
                role if role.starts_with("weight") => "/kernel",
                _ => "/bias",
            };
            let is = |path: &str| {
                path.starts_with(&format!("{kind}/{layer}/"))
                    && path.ends_with(end)
                    && path.contains("/backward") == role.ends_with("reverse")
            };
            let theirs = kept.iter().find(|(path, _)| is(path)).unwrap().1.f32s().unwrap();
            let ours = &training.state[&format!("{prefix}{name}")];
            let values = ours.f32s().unwrap();
            assert_eq!(values.len(), theirs.len(), "{file} {name}");
            for (at, value) in theirs.iter().enumerate() {
                assert_eq!(values[place_of(at, ours.shape())], *value, "{file} {kind} of {name}");
            }
        }
        let rate = training.optimizer.learning_rate(&Course::at(0));
        match training.optimizer.rule {
            Rule::Adam(adam) => {
                assert!(adam.amsgrad && (rate - 3e-3).abs() < 1e-9, "{adam:?}");
                assert_eq!(training.optimizer.clipping, Some(Clipping::Norm(1.0)));
            }
            Rule::Sgd(sgd) => {
                assert!(sgd.nesterov && sgd.momentum == 0.9 && rate == 0.1, "{sgd:?}");
                assert_eq!(training.optimizer.schedule, Schedule::Exponential { every: 10, factor: 0.9 });
                assert_eq!(training.optimizer.weight_decay, WeightDecay::decoupled(0.01));
            }
            Rule::RmsProp(rule) => assert!(rule.centered && rule.momentum == 0.5, "{rule:?}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(io::read_model(&models().join("pooled.keras"), None).unwrap().training.is_none());
}

/// Writes a network with the inputs and what it gives here; `y` is its output. Gives what is read back.
fn round(name: &str, network: &Network, inputs: Named) -> io::Imported {
    let (path, parameters) = (place(&format!("{name}.keras")), parameters(network));
    keras::write_model(&path, name, network, &parameters).unwrap();
    keras::write_weights(&place(&format!("{name}.weights.h5")), network, &parameters).unwrap();
    let run = |network: &Network, parameters: &Named| {
        let mut model = Model::new(&Device::cpu(), network, parameters).unwrap();
        let output = network.outputs[0].0.clone();
        model.run_for(&inputs, &[&output]).unwrap().remove(&output).unwrap()
    };
    let y = run(network, &parameters);
    let read = io::read_model(&path, None).unwrap_or_else(|e| panic!("{name}: {e}"));
    let doubles = |tensor: &Tensor| tensor.f32s().unwrap().iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    // Two biases are added in another order.
    assert_close(name, &doubles(&run(&read.network, &read.parameters)), &doubles(&y), 1e-6);
    let mut data: Named = inputs.into_iter().map(|(name, tensor)| (format!("in.{name}"), tensor)).collect();
    data.insert("out.y".to_string(), y);
    io::write_tensors(&place(&format!("{name}.safetensors")), data).unwrap();
    read
}

fn only(name: &str, tensor: Tensor) -> Named {
    Named::from([(name.to_string(), tensor)])
}

#[test]
fn a_row_of_layers_is_a_sequential_and_two_biases_are_their_sum() {
    let layers: [Layer; 6] = [
        Conv1D::new(6, 3).padding(Padding::Causal).dilation(2).activation(Activation::LeakyRelu { alpha: 0.1 }).into(),
        Pooling1D::max(2).into(),
        Lstm::new(5).bias(Bias::Two).initializers(Init::PyTorch).return_sequences(true).into(),
        Dropout::new(0.25).mask(Mask::Sequence).into(),
        Lstm::new(4).direction(Direction::Reverse).activation(Activation::Elu { alpha: 0.5 }).into(),
        Dense::new(3).activation(Activation::Softmax).into(),
    ];
    let network = Network::chain(Input::Features(4), Some(9), &layers).unwrap();
    let read = round("row", &network, only("x", values(77, &[2, 9, 4])));
    assert_eq!(read.network.inputs, network.inputs);
    let parameters = parameters(&network);
    let sum = |name: &str| -> Vec<f32> {
        let of = |bias: &str| parameters[&format!("{name}.{bias}_l0")].f32s().unwrap().to_vec();
        of("bias_ih").iter().zip(of("bias_hh")).map(|(a, b)| a + b).collect()
    };
    assert_eq!(read.parameters["lstm.bias_ih_l0"].f32s().unwrap(), sum("lstm"));
    assert!(!read.parameters.contains_key("lstm.bias_hh_l0"));
    let Layer::Lstm(last) = &read.network.nodes[4].layer else { panic!("{:?}", read.network.nodes[4]) };
    assert!(last.go_backwards && last.direction == Direction::Forward);
}

#[test]
fn rules_and_settings_of_layers_are_kept() {
    let rules = Rules::default().regularizer(Regularizer { l1: 0.1, l2: 0.03 }).constraint(Constraint::MaxNorm(1.5));
    let ring = Constraint::MinMaxNorm { min: 0.1, max: 0.7, rate: 0.3 };
    let begun = Rules::default().initializer(Initializer::TruncatedNormal(0.2)).constraint(Constraint::UnitNorm);
    let layers: [Layer; 5] = [
        Embedding::new(7, 4).kernel(Rules::default().constraint(Constraint::MaxNorm(1.0))).into(),
        Conv1D::new(4, 2).kernel(Rules::default().constraint(ring)).into(),
        Lstm::new(3).kernel(rules).recurrent(rules).dropout(0.1).recurrent_dropout(0.2).return_sequences(true).into(),
        LayerNormalization { epsilon: 2e-4, center: false, ..LayerNormalization::default() }.into(),
        Dense::new(2).kernel(begun).activity(Regularizer::l1(0.2)).bias(false).into(),
    ];
    let network = Network::chain(Input::Tokens, None, &layers).unwrap();
    let tokens = Tensor::from_u32(&[2, 5], (0..10).map(|i| i * 3 % 7).collect()).unwrap();
    let mut wanted = network.clone();
    if let Layer::Dense(dense) = &mut wanted.nodes[4].layer {
        // How values began is written and not read.
        dense.kernel.initializer = None;
    }
    assert_eq!(round("rules", &network, only("x", tokens)).network, wanted);
}

/// Two inputs, one of them with a mask that goes through a sum, a shared layer, states, attention, and a layer whose
/// output is not read.
#[test]
fn a_graph_of_layers_is_a_functional_model() {
    let mut n = Network::default();
    let (a, b) = (n.input("a", Input::Features(3)), n.input("b", Input::Rows(4)));
    n.fix_steps(a, 6).unwrap();
    let masked = n.add(Masking { value: 0.0 }, &[a]).unwrap()[0];
    let shared = || Layer::from(Lstm::new(4).return_sequences(true).bias(Bias::None));
    let both =
        Lstm::new(4).direction(Direction::Both).merge(MergeMode::Apart).return_sequences(true).return_state(true);
    let both = both.zero_output_for_mask(true);
    let both = n.add(both, &[masked]).unwrap();
    let first = n.add_named("shared", shared(), &[both[0]]).unwrap()[0];
    let second = n.add_named("shared", shared(), &[first]).unwrap()[0];
    let sum = n.add(Merge::new(MergeKind::Add), &[first, second]).unwrap()[0];
    n.add(Dense::new(2), &[sum]).unwrap();
    let seen = n.add(Attention::dot().scale(true), &[sum, both[1]]).unwrap()[0];
    let joined = n.add(Merge::new(MergeKind::Concatenate), &[sum, seen]).unwrap()[0];
    let last = n.add(Lstm::new(4), &[joined, both[2], both[5]]).unwrap()[0];
    let repeated = n.add(RepeatVector::new(3), &[b]).unwrap()[0];
    let added = n.add(Attention::additive().causal(true), &[repeated, repeated, repeated]).unwrap()[0];
    let cropped = n.add(Cropping1D::new(1, 0), &[added]).unwrap()[0];
    let padded = n.add(Cropping1D::new(0, -2), &[cropped]).unwrap()[0];
    let mean = n.add(Pooling::average(), &[padded]).unwrap()[0];
    let steep = n.add(Activate::new(Activation::LeakyRelu { alpha: 0.3 }), &[mean]).unwrap()[0];
    let y = n.add(Merge::new(MergeKind::Maximum), &[last, steep]).unwrap()[0];
    n.output("y", y);
    let mut x = values(5, &[3, 6, 3]).into_f32s().unwrap();
    for (sample, step) in [(0, 4), (0, 5), (1, 0), (2, 3)] {
        (0..3).for_each(|feature| x[(sample * 6 + step) * 3 + feature] = 0.0);
    }
    let inputs =
        Named::from([("a".to_string(), Tensor::new(&[3, 6, 3], x).unwrap()), ("b".to_string(), values(6, &[3, 4]))]);
    let read = round("graph", &n, inputs);
    assert_eq!(read.network.outputs[0].0, "maximum");
    assert_eq!((read.network.inputs, read.network.nodes.len()), (n.inputs.clone(), n.nodes.len()));
}

#[test]
fn weights_of_a_file_of_their_own_take_the_place_of_a_models() {
    let network = Network::chain(Input::Features(4), None, &[Lstm::new(3).into(), Dense::new(2).into()]).unwrap();
    let (own, others) = (parameters(&network), parameters(&network));
    let others: BTreeMap<String, Tensor> = others
        .into_iter()
        .map(|(name, t)| {
            let halved = t.f32s().unwrap().iter().map(|v| v / 2.0).collect();
            (name, Tensor::new(t.shape(), halved).unwrap())
        })
        .collect();
    let (model, weights) = (place("own.keras"), place("others.weights.h5"));
    keras::write_model(&model, "m", &network, &own).unwrap();
    keras::write_weights(&weights, &network, &others).unwrap();
    assert_eq!(io::read_model(&model, None).unwrap().parameters, own);
    assert_eq!(io::read_model_with_weights(&model, &weights).unwrap().parameters, others);
    let error = io::read_model_with_weights(&weights, &weights).unwrap_err();
    assert!(error.to_string().contains("expected a whole zip archive") || error.kind() == ErrorKind::File, "{error}");
    let wider = Network::chain(Input::Features(4), None, &[Lstm::new(5).into(), Dense::new(2).into()]).unwrap();
    keras::write_weights(&weights, &wider, &parameters(&wider)).unwrap();
    let error = io::read_model_with_weights(&model, &weights).unwrap_err();
    assert!(error.kind() == ErrorKind::Shape && error.to_string().contains("cell/vars/0"), "{error}");
}

#[test]
fn what_keras_cannot_say_is_refused_by_name() {
    let refused = |layers: &[Layer], wanted: &str| {
        let network = Network::chain(Input::Features(4), None, layers).unwrap();
        let error = keras::write_model(&place("refused.keras"), "m", &network, &parameters(&network)).unwrap_err();
        let text = error.to_string();
        assert!(error.kind() == ErrorKind::Unsupported && text.contains(wanted), "{wanted}: {error}");
    };
    let lstm = || Lstm::new(4).name("odd");
    let cell = |cell: Cell| Layer::from(lstm().cell(cell));
    let plain = Cell::default();
    for (layer, wanted) in [
        (cell(Cell { peepholes: true, ..plain }), "odd: Keras's LSTM has no peepholes"),
        (cell(Cell { layer_norm: Some(1e-3), ..plain }), "odd: Keras's LSTM has no layer normalisation"),
        (cell(Cell { cell_clip: Some(1.0), ..plain }), "odd: Keras's LSTM has no clipping"),
        (cell(Cell { coupled: true, ..plain }), "odd: Keras's LSTM has no coupled gates"),
        (cell(Cell { recurrent_dropout: 0.1, recurrent_mask: Mask::Step, ..plain }), "a mask a step"),
        (lstm().zoneout(0.1, 0.0).into(), "odd: Keras's LSTM has no zoneout"),
        (lstm().projection(Some(2)).into(), "odd: Keras's LSTM has no projection"),
        (lstm().weight_drop(0.5).into(), "odd: Keras's LSTM has no dropout of recurrent weights"),
        (lstm().stateful(true).into(), "odd: Keras's stateful layers"),
        (
            lstm().direction(Direction::Reverse).return_sequences(true).into(),
            "odd: an LSTM of Keras that reads backwards",
        ),
        (lstm().activation(Activation::ThresholdedRelu { alpha: 1.0 }).into(), "odd: Keras has no activation"),
        (Pooling1D::max(2).padding(Padding::Causal).into(), "max_pooling1d: Keras pools"),
    ] {
        refused(&[layer], wanted);
    }
    let over_masked =
        [Layer::from(Masking { value: 0.0 }), lstm().direction(Direction::Both).return_sequences(true).into()];
    refused(&over_masked, "odd: Keras's Bidirectional gives zeros");

    let write = |network: &Network| {
        let error = keras::write_model(&place("refused.keras"), "m", network, &parameters(network)).unwrap_err();
        error.to_string()
    };
    let mut tied = Network::default();
    let x = tied.input("tokens", Input::Tokens);
    let embedded = tied.add(Embedding::new(5, 4), &[x]).unwrap()[0];
    let h = tied.add(Lstm::new(4).return_sequences(true), &[embedded]).unwrap()[0];
    let logits = tied.add(Dense::new(5).tied("embedding").name("head"), &[h]).unwrap()[0];
    let recalled = tied.add(WorkingMemory::new(8), &[h, logits, x]).unwrap()[0];
    tied.output("y", logits);
    assert!(write(&tied).contains("head: Keras has no layer whose weights are those of an embedding"));
    if let Layer::Dense(dense) = &mut tied.nodes[2].layer {
        dense.tied = None;
    }
    tied.output("recalled", recalled);
    assert!(write(&tied).contains("working_memory: Keras has no working memory"));

    // One table that masks for one reader and not for another masks for both in Keras.
    let mut table = Network::default();
    let (a, b) = (table.input("a", Input::Tokens), table.input("b", Input::Tokens));
    for (input, mask) in [(a, true), (b, false)] {
        let rows = table.add_named("table", Embedding::new(5, 4).mask_zero(mask).into(), &[input]).unwrap()[0];
        let h = table.add(Lstm::new(3), &[rows]).unwrap()[0];
        table.output(if mask { "first" } else { "second" }, h);
    }
    assert!(write(&table).contains("lstm_1: Keras would mask what it reads"));

    let mut named = Network::default();
    let x = named.input("x", Input::Features(2));
    let h = named.add_named("x", Lstm::new(3).into(), &[x]).unwrap()[0];
    named.output("h", h);
    assert!(write(&named).contains("x: expected an input with a name of its own"));
    named.nodes[0].name = "a/b".to_string();
    assert!(write(&named).contains("a/b: expected a name of letters"));
    named.nodes[0].name = "lstm".to_string();
    let error = keras::write_model(&place("refused.keras"), "m", &named, &Named::new()).unwrap_err();
    assert!(error.to_string().contains("expected the parameter `lstm.weight_ih_l0`"), "{error}");
    assert!(!place("refused.keras").exists());
}
