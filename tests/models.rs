//! Models that Keras and PyTorch saved, and networks of every layer, on every device.

mod common;

use common::{assert_close, devices};
use mnemon::device::Device;
use mnemon::error::ErrorKind;
use mnemon::io::{self, pytorch};
use mnemon::nn::{
    Activation, Dense, Direction, Embedding, Input, Layer, LayerNormalization, Lstm, Masking, Merge, MergeKind,
    MergeMode, Network, Pooling, PoolingKind, RepeatVector, Sequential,
};
use mnemon::optim::Adam;
use mnemon::params::Tensor;
use mnemon::params::random::Random;
use mnemon::train::{Fit, Loss, Model, Named};
use ndarray::{Array2, Array3};
use std::path::{Path, PathBuf};

/// f32 against f32 of another program or executor: both round at every operation.
const FORWARD: f64 = 1e-5;
/// Gradients sum over every step and sequence.
const GRADIENT: f64 = 1e-4;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name)
}

fn doubles(tensor: &Tensor) -> Vec<f64> {
    match tensor.f32s() {
        Ok(values) => values.iter().map(|&v| f64::from(v)).collect(),
        Err(_) => tensor.u32s().unwrap().iter().map(|&v| f64::from(v)).collect(),
    }
}

/// The inputs and the expected outputs of a file.
fn cases(name: &str) -> (Named, Named) {
    let all = io::read_tensors(&file(&format!("{name}.safetensors"))).unwrap();
    let part = |prefix: &str| -> Named {
        all.iter().filter_map(|(n, t)| Some((n.strip_prefix(prefix)?.to_string(), t.clone()))).collect()
    };
    (part("in."), part("out."))
}

#[test]
fn models_of_keras_give_what_keras_gives() {
    for name in ["average", "pooled", "backwards", "masked", "tagger", "translate", "states", "shared"] {
        let imported = io::read_model(&file(&format!("{name}.keras")), None).unwrap();
        let (inputs, expected) = cases(name);
        for device in devices() {
            let mut model = Model::new(&device, &imported.network, &imported.parameters).unwrap();
            let names: Vec<&str> = expected.keys().map(String::as_str).collect();
            let got = model.run_for(&inputs, &names).unwrap_or_else(|e| panic!("{name} on {device:?}: {e}"));
            for (output, wanted) in &expected {
                assert_eq!(got[output].shape(), wanted.shape(), "{name} {output}");
                let what = format!("{name} {output} on {device:?}");
                assert_close(&what, &doubles(&got[output]), &doubles(wanted), FORWARD);
            }
        }
    }
}

/// PyTorch's language models, with what their state dicts do not say.
fn language_models() -> [(&'static str, Option<pytorch::Config>); 3] {
    let config = pytorch::Config {
        embedding: Some("a".to_string()),
        lstm: Some("b".to_string()),
        linear: Some("c".to_string()),
        ..pytorch::Config::default()
    };
    [("tied", None), ("deep", None), ("square", Some(config))]
}

#[test]
fn a_tensor_of_two_names_is_read_under_both() {
    // As `save_model` writes a tied model: one of both, and the other's name.
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shared.safetensors");
    let whole = std::fs::read(file("tied.state.safetensors")).unwrap();
    let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&whole[8..8 + length]).unwrap();
    let tied = io::read_model(&file("tied.state.safetensors"), None).unwrap();
    let held = header.as_object_mut().unwrap().remove("embedding.weight").unwrap();
    header["linear.weight"] = held;
    header["__metadata__"] = serde_json::json!({ "format": "pt", "embedding.weight": "linear.weight" });
    let header = header.to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &whole[8 + length..]].concat();
    std::fs::write(&path, bytes).unwrap();
    let read = io::read_model(&path, None).unwrap();
    assert_eq!(read.parameters["embedding.weight"], tied.parameters["embedding.weight"]);
    assert_eq!(read.network.inputs, tied.network.inputs);
}

#[test]
fn language_models_of_pytorch_give_what_pytorch_gives() {
    for (name, config) in language_models() {
        let imported = io::read_model(&file(&format!("{name}.state.safetensors")), config.as_ref()).unwrap();
        let all = io::read_tensors(&file(&format!("{name}.safetensors"))).unwrap();
        let (mut inputs, expected) = cases(name);
        let targets = inputs.remove("targets").unwrap();
        for device in devices() {
            let mut model = Model::new(&device, &imported.network, &imported.parameters).unwrap();
            let got = model.run(&inputs).unwrap();
            for output in ["logits", "h_n", "c_n"] {
                assert_eq!(got[output].shape(), expected[output].shape(), "{name} {output}");
                let what = format!("{name} {output} on {device:?}");
                assert_close(&what, &doubles(&got[output]), &doubles(&expected[output]), FORWARD);
            }
            let (loss, gradients) = model.loss_and_gradients(&inputs, &targets).unwrap();
            assert_close(&format!("{name} loss"), &[f64::from(loss)], &doubles(&expected["loss"]), FORWARD);
            for (ours, gradient) in &gradients {
                let theirs = format!("grad.{}", imported.sources[ours]);
                assert_close(
                    &format!("{name} {theirs} on {device:?}"),
                    &doubles(gradient),
                    &doubles(&all[&theirs]),
                    GRADIENT,
                );
            }
            let tokens = &inputs["tokens"];
            let greedy = model.greedy(&tokens.u32s().unwrap()[..tokens.shape()[1]], expected["greedy"].len()).unwrap();
            assert_eq!(greedy, expected["greedy"].u32s().unwrap(), "{name} on {device:?}");
        }
    }
}

#[test]
fn files_of_torch_save_hold_what_safetensors_do() {
    for (name, config) in language_models() {
        let of = |kind: &str| io::read_model(&file(&format!("{name}.{kind}")), config.as_ref()).unwrap();
        let (saved, state) = (of("pt"), of("state.safetensors"));
        assert_eq!(saved.parameters, state.parameters, "{name}");
        assert_eq!((saved.network, saved.sources), (state.network, state.sources), "{name}");
    }
    let deep = pytorch::read_checkpoint(&file("deep.pt")).unwrap();
    assert_eq!(deep, io::read_tensors(&file("deep.state.safetensors")).unwrap());
    let error = pytorch::read_checkpoint(&file("average.keras")).unwrap_err();
    assert!(error.kind() == ErrorKind::File && error.to_string().contains("expected one `data.pkl`"), "{error}");
}

#[test]
fn what_is_written_for_pytorch_gives_the_same_when_it_is_read() {
    let both = || Lstm::new(5).direction(Direction::Both).return_sequences(true);
    let mut network = Network::default();
    let tokens = network.input("tokens", Input::Tokens);
    let mut at = tokens;
    let layers: [Layer; 4] = [Embedding::new(11, 6).into(), both().into(), both().into(), Dense::new(7).into()];
    for layer in layers {
        at = network.add(layer, &[at]).unwrap()[0];
    }
    network.output("logits", at);
    let specs = network.parameters().unwrap();
    let parameters: Named =
        specs.iter().enumerate().map(|(i, s)| (s.name.clone(), values(i as u64, &s.shape))).collect();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("written.safetensors");
    io::write_tensors(&path, pytorch::state_dict(&network, &parameters).unwrap()).unwrap();
    let back = io::read_model(&path, None).unwrap();
    let tokens = Tensor::from_u32(&[3, 4], (0..12).map(|i| i * 5 % 11).collect()).unwrap();
    let inputs = Named::from([("tokens".to_string(), tokens)]);
    let logits = |network: &Network, parameters: &Named| {
        let mut model = Model::new(&Device::reference(), network, parameters).unwrap();
        doubles(&model.run(&inputs).unwrap()["logits"])
    };
    assert_close("logits", &logits(&back.network, &back.parameters), &logits(&network, &parameters), FORWARD);
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let refused = |name: &str, kind: ErrorKind, wanted: &str| {
        let error = io::read_model(&file(name), None).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(wanted), "{name}: {error}");
    };
    refused("gru.keras", ErrorKind::Unsupported, "the layer GRU is not supported");
    refused("square.state.safetensors", ErrorKind::Unsupported, "`a` may be either");
    refused("average.safetensors", ErrorKind::Unsupported, "expected the parameters of an LSTM");
    refused("none.keras", ErrorKind::File, "cannot open");
    let config = pytorch::Config { tied: Some(true), ..pytorch::Config::default() };
    let error = io::read_model(&file("deep.state.safetensors"), Some(&config)).unwrap_err();
    assert!(error.to_string().contains("their weights differ"), "{error}");
    let error = io::read_model(&file("average.keras"), Some(&config)).unwrap_err();
    assert!(error.to_string().contains("takes no configuration"), "{error}");

    let imported = io::read_model(&file("average.keras"), None).unwrap();
    let mut model = Model::new(&Device::cpu(), &imported.network, &imported.parameters).unwrap();
    for (name, tensor, wanted) in [
        ("x", Tensor::zeros(&[2, 7, 3]), "expected floats [2, T, 4], got F32 [2, 7, 3]"),
        ("x", Tensor::from_u32(&[2, 7], vec![1; 14]).unwrap(), "got U32 [2, 7]"),
        ("z", Tensor::zeros(&[2, 7, 4]), "expected the inputs [\"x\"], got [\"z\"]"),
    ] {
        let error = model.run(&Named::from([(name.to_string(), tensor)])).unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
    }
    let mut parameters = imported.parameters.clone();
    parameters.remove("time_distributed.bias");
    let error = Model::new(&Device::cpu(), &imported.network, &parameters).err().unwrap();
    assert!(error.to_string().contains("time_distributed.bias"), "{error}");
}

#[test]
fn an_archive_of_keras_2_is_refused() {
    use std::io::{Cursor, Read as _, Write as _};
    let mut from = zip::ZipArchive::new(std::fs::File::open(file("pooled.keras")).unwrap()).unwrap();
    let mut to = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for at in 0..from.len() {
        let mut entry = from.by_index(at).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if entry.name() == "metadata.json" {
            bytes = br#"{"keras_version": "2.15.0"}"#.to_vec();
        }
        to.start_file(entry.name(), zip::write::SimpleFileOptions::default()).unwrap();
        to.write_all(&bytes).unwrap();
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("keras2.keras");
    std::fs::write(&path, to.finish().unwrap().into_inner()).unwrap();
    let error = io::read_model(&path, None).unwrap_err();
    let text = error.to_string();
    assert!(error.kind() == ErrorKind::Unsupported && text.contains("got one of Keras 2.15.0"), "{text}");
}

fn values(seed: u64, shape: &[usize]) -> Tensor {
    let mut random = Random::new(seed, 0);
    Tensor::new(shape, (0..shape.iter().product()).map(|_| random.normal() as f32 * 0.4).collect()).unwrap()
}

/// An encoder and a decoder that share a table and states, and every layer that has no test of its own elsewhere.
fn everything() -> Network {
    let mut n = Network::default();
    let (source, target) = (n.input("source", Input::Tokens), n.input("target", Input::Tokens));
    let table = || Layer::from(Embedding::new(11, 6));
    let s = n.add_named("table", table(), &[source]).unwrap()[0];
    let t = n.add_named("table", table(), &[target]).unwrap()[0];
    let both = Lstm::new(5).direction(Direction::Both).merge(MergeMode::Sum).return_sequences(true);
    let s = n.add(both, &[s]).unwrap()[0];
    let s = n.add(LayerNormalization::default(), &[s]).unwrap()[0];
    let encoded = n.add(Lstm::new(6).projection(Some(4)).return_sequences(true).return_state(true), &[s]).unwrap();
    let back =
        n.add(Lstm::new(6).projection(Some(4)).go_backwards(true).return_sequences(true), &[encoded[0]]).unwrap()[0];
    let back = n.add(Lstm::new(3).return_sequences(true), &[back]).unwrap()[0];
    let mean = n.add(Pooling { kind: PoolingKind::Average }, &[back]).unwrap()[0];
    let max = n.add(Pooling { kind: PoolingKind::Max }, &[encoded[0]]).unwrap()[0];
    let context = n.add(Merge { kind: MergeKind::Concatenate }, &[mean, max]).unwrap()[0];
    let context = n.add(Dense::new(3).activation(Activation::Softmax), &[context]).unwrap()[0];
    let repeated = n.add(RepeatVector { count: 3 }, &[context]).unwrap()[0];
    let plan = n.add(Lstm::new(6), &[repeated]).unwrap()[0];
    let decoder = Lstm::new(6).projection(Some(4)).return_sequences(true);
    let decoded = n.add(decoder, &[t, encoded[1], plan]).unwrap()[0];
    let wide = n.add(Dense::new(6).activation(Activation::Tanh), &[decoded]).unwrap()[0];
    let logits = n.add(Dense::new(11).tied("table"), &[wide]).unwrap()[0];
    n.output("logits", logits);
    n
}

#[test]
fn a_network_of_every_layer_agrees_on_every_device() {
    let network = everything();
    let parameters: Named = network
        .parameters()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(i, s)| (s.name.clone(), values(i as u64, &s.shape)))
        .collect();
    assert_eq!(parameters.keys().filter(|n| n.starts_with("table")).count(), 1);
    let tokens =
        |steps: usize, step: u32| Tensor::from_u32(&[3, steps], (0..3 * steps as u32).map(|i| i * step % 11).collect());
    let inputs = Named::from([
        ("source".to_string(), tokens(7, 3).unwrap()),
        ("target".to_string(), tokens(4, 5).unwrap()),
        ("lengths".to_string(), Tensor::from_u32(&[3], vec![4, 7, 1]).unwrap()),
    ]);
    let targets = tokens(4, 7).unwrap();
    let of = |device: &Device| {
        let mut model = Model::new(device, &network, &parameters).unwrap();
        let logits = model.run(&inputs).unwrap().remove("logits").unwrap();
        let (loss, gradients) = model.loss_and_gradients(&inputs, &targets).unwrap();
        (logits, loss, gradients)
    };
    let (logits, loss, gradients) = of(&Device::reference());
    assert_eq!(logits.shape(), [3, 4, 11]);
    for device in devices() {
        let (l, o, g) = of(&device);
        assert_close(&format!("logits on {device:?}"), &doubles(&l), &doubles(&logits), FORWARD);
        assert!((o - loss).abs() < 1e-5 * loss, "{device:?}: {o} {loss}");
        for (name, gradient) in &g {
            assert_close(&format!("{name} on {device:?}"), &doubles(gradient), &doubles(&gradients[name]), GRADIENT);
        }
    }

    // A gradient along a random direction, against a central difference of the loss; f32 leaves 1e-2 of it.
    let mut directional = 0.0;
    let (mut up, mut down) = (parameters.clone(), parameters.clone());
    for (at, (name, value)) in parameters.iter().enumerate() {
        let direction = values(100 + at as u64, value.shape());
        let moved = |sign: f32| {
            let pairs = value.f32s().unwrap().iter().zip(direction.f32s().unwrap());
            Tensor::new(value.shape(), pairs.map(|(v, d)| v + sign * 3e-3 * d).collect()).unwrap()
        };
        up.insert(name.clone(), moved(1.0));
        down.insert(name.clone(), moved(-1.0));
        let pairs = doubles(&gradients[name]).into_iter().zip(doubles(&direction));
        directional += pairs.map(|(g, d)| g * d).sum::<f64>();
    }
    let at = |p: &Named| {
        let mut model = Model::new(&Device::reference(), &network, p).unwrap();
        f64::from(model.loss_and_gradients(&inputs, &targets).unwrap().0)
    };
    let difference = (at(&up) - at(&down)) / 6e-3;
    assert!((difference - directional).abs() < 1e-2 * directional.abs(), "{difference} {directional}");
}

#[test]
fn masked_steps_change_nothing_in_training() {
    // The same samples with and without steps that the mask leaves out, before, between and after the others.
    let short = Array3::from_shape_fn((12, 4, 2), |(s, t, f)| 0.3 + ((s * 5 + t * 3 + f) as f32 * 0.7).sin().abs());
    let mut long = Array3::zeros((12, 7, 2));
    for s in 0..12 {
        let places = [[0, 1, 2, 3], [3, 4, 5, 6], [1, 2, 4, 6]][s % 3];
        for (t, &to) in places.iter().enumerate() {
            (0..2).for_each(|f| long[[s, to, f]] = short[[s, t, f]]);
        }
    }
    let y = Array2::from_shape_fn((12, 1), |(s, _)| (s as f32 * 0.5).cos());
    let fit = Fit { epochs: 3, batch_size: 5, ..Fit::default() };
    for device in devices() {
        let train = |x: &Array3<f32>| {
            let mut model = Sequential::new(&device);
            model.add(Masking { value: 0.0 }).add(Lstm::new(6).return_sequences(true).dropout(0.2));
            model
                .add(Lstm::new(4).zoneout(0.1, 0.2).recurrent_dropout(0.1).direction(Direction::Both))
                .add(Dense::new(1));
            model.compile(Adam::default(), Loss::MeanSquaredError).unwrap();
            let history = model.fit(x, &y, &fit).unwrap();
            (history.loss, model.predict(x).unwrap())
        };
        assert_eq!(train(&long), train(&short), "{device:?}");
    }
}

#[test]
fn aligned_inputs_are_joined_step_by_step() {
    let mut n = Network::default();
    let (a, b) = (n.input("a", Input::Features(2)), n.input("b", Input::Features(1)));
    assert!(n.add(Merge { kind: MergeKind::Concatenate }, &[a, b]).unwrap_err().to_string().contains("inputs alike"));
    n.align(b, a).unwrap();
    let joined = n.add(Merge { kind: MergeKind::Concatenate }, &[a, b]).unwrap()[0];
    let y = n.add(Lstm::new(3).return_sequences(true), &[joined]).unwrap()[0];
    n.output("y", y);
    let mut one = Network::default();
    let x = one.input("x", Input::Features(3));
    let y = one.add(Lstm::new(3).return_sequences(true), &[x]).unwrap()[0];
    one.output("y", y);
    let parameters: Named = one
        .parameters()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(i, s)| (s.name.clone(), values(i as u64, &s.shape)))
        .collect();
    let whole = values(9, &[2, 5, 3]);
    let columns = |from: usize, to: usize| {
        let rows = whole.f32s().unwrap().chunks_exact(3).flat_map(|row| row[from..to].to_vec()).collect();
        Tensor::new(&[2, 5, to - from], rows).unwrap()
    };
    let lengths = Tensor::from_u32(&[2], vec![3, 5]).unwrap();
    for device in devices() {
        let mut joined = Model::new(&device, &n, &parameters).unwrap();
        let mut plain = Model::new(&device, &one, &parameters).unwrap();
        let parts = [("a", columns(0, 2)), ("b", columns(2, 3)), ("lengths", lengths.clone())];
        let got = joined.run(&parts.map(|(name, t)| (name.to_string(), t)).into()).unwrap();
        let all = [("x", whole.clone()), ("lengths", lengths.clone())];
        assert_eq!(got, plain.run(&all.map(|(name, t)| (name.to_string(), t)).into()).unwrap(), "{device:?}");
        let short = [("a", columns(0, 2)), ("b", Tensor::zeros(&[2, 4, 1]))].map(|(name, t)| (name.to_string(), t));
        let error = joined.run(&short.into()).unwrap_err();
        assert!(error.to_string().contains("expected the 5 steps of the input that it is aligned with"), "{error}");
    }
}

#[test]
fn networks_that_mean_nothing_are_refused() {
    let mut n = Network::default();
    let x = n.input("x", Input::Features(3));
    let mut refused = |layer: Layer, wanted: &str| {
        let error = n.add(layer, &[x]).unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
    };
    refused(Embedding::new(4, 2).into(), "expected tokens, got floats");
    refused(Lstm::new(3).merge(MergeMode::Apart).into(), "only two directions can be kept apart");
    refused(Lstm::new(3).go_backwards(true).direction(Direction::Both).into(), "go_backwards");
    refused(Lstm::new(3).projection(Some(3)).into(), "smaller than hidden_size");
    refused(RepeatVector { count: 2 }.into(), "expected one row a sample");
    let h = n.add(Lstm::new(4), &[x]).unwrap()[0];
    let error = n.add(Lstm::new(4), &[x, h]).unwrap_err();
    assert!(error.to_string().contains("expected the initial states [B, 4], [B, 4], got [B, 4]"), "{error}");
    let error = n.add(Merge { kind: MergeKind::Add }, &[x, h]).unwrap_err();
    assert!(error.to_string().contains("expected inputs alike"), "{error}");
    n.add(Dense::new(4).tied("table"), &[h]).unwrap();
    assert!(n.parameters().unwrap_err().to_string().contains("no embedding of that name"));
}
