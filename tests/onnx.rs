//! Graphs of ONNX: the package's own LSTM nodes and others with expected values of ONNX Runtime, and models that both
//! exporters of PyTorch wrote, with what PyTorch gives.

mod common;

use common::{assert_close, devices};
use mnemon::config::Cell;
use mnemon::device::Device;
use mnemon::error::ErrorKind;
use mnemon::io::{self, onnx};
use mnemon::nn::{Activation, Cropping1D, Dense, Direction, Embedding, Input, Layer, Lstm, Network, WorkingMemory};
use mnemon::params::Tensor;
use mnemon::train::{Model, Named};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// f32 against f32 of another program: both round at every operation.
const FORWARD: f64 = 1e-5;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/onnx")
}

fn doubles(tensor: &Tensor) -> Vec<f64> {
    match tensor.f32s() {
        Ok(values) => values.iter().map(|&v| f64::from(v)).collect(),
        Err(_) => tensor.u32s().unwrap().iter().map(|&v| f64::from(v)).collect(),
    }
}

fn part(all: &Named, prefix: &str) -> Named {
    all.iter().filter_map(|(n, t)| Some((n.strip_prefix(prefix)?.to_string(), t.clone()))).collect()
}

#[test]
fn graphs_give_what_other_programs_give() {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "onnx"));
    files.sort();
    assert!(files.len() > 20, "{files:?}");
    for file in files {
        let name = file.file_stem().unwrap().to_string_lossy().to_string();
        let all = io::read_tensors(&folder().join(format!("{name}.safetensors"))).unwrap();
        let (given, expected) = (part(&all, "in."), part(&all, "out."));
        let imported = io::read_model_for(&file, None, Some(&given)).unwrap_or_else(|e| panic!("{e}"));
        for device in devices() {
            let mut model = Model::new(&device, &imported.network, &imported.parameters).unwrap();
            let got = model.run(&imported.edges.arrange(&given).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
            let got = imported.edges.restore(got).unwrap();
            for (output, wanted) in &expected {
                assert_eq!(got[output].shape(), wanted.shape(), "{name} {output}");
                let what = format!("{name} {output} on {device:?}");
                assert_close(&what, &doubles(&got[output]), &doubles(wanted), FORWARD);
            }
        }
    }
}

#[test]
fn networks_come_back_from_graphs() {
    let mut network = Network::default();
    let tokens = network.input("tokens", Input::Tokens);
    let e = network.add(Embedding::new(11, 6), &[tokens]).unwrap();
    let both = Lstm::new(5).direction(Direction::Both).return_sequences(true);
    let h = network.add(both, &e).unwrap();
    let cropped = network.add(Cropping1D::new(1, 1), &h).unwrap();
    let padded = network.add(Cropping1D::new(-2, 0), &cropped).unwrap();
    let last = network.add(Lstm::new(4).activation(Activation::Relu).return_state(true), &padded).unwrap();
    let y = network.add(Dense::new(3).activation(Activation::Softmax), &[last[0]]).unwrap();
    network.output("y", y[0]);
    network.output("c", last[2]);
    let parameters = filled(&network);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("network.onnx");
    onnx::write_model(&path, "network", &network, &parameters, &onnx::Edges::default()).unwrap();
    // As a graph, whatever the file says of the network.
    replaced(&path, b"{\"network\":", b"{\"notwork\":");
    let back = io::read_model(&path, None).unwrap();
    let tokens = Tensor::from_u32(&[2, 4], vec![1, 5, 3, 9, 10, 2, 7, 4]).unwrap();
    let given = Named::from([("tokens".to_string(), tokens)]);
    let device = Device::cpu();
    let ours = Model::new(&device, &network, &parameters).unwrap().run(&given).unwrap();
    let mut model = Model::new(&device, &back.network, &back.parameters).unwrap();
    let theirs = back.edges.restore(model.run(&back.edges.arrange(&given).unwrap()).unwrap()).unwrap();
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (name, wanted) in &ours {
        assert_eq!(theirs[name].shape(), wanted.shape(), "{name}");
        assert_close(name, &doubles(&theirs[name]), &doubles(wanted), FORWARD);
    }
}

/// Each value another one.
fn filled(network: &Network) -> BTreeMap<String, Tensor> {
    let mut next = 0.0f32;
    let mut values = |len: usize| -> Vec<f32> {
        (0..len)
            .map(|_| {
                next += 1.7;
                next.sin() * 0.4
            })
            .collect()
    };
    let specs = network.parameters().unwrap();
    specs.iter().map(|s| (s.name.clone(), Tensor::new(&s.shape, values(s.shape.iter().product())).unwrap())).collect()
}

/// A file with bytes in place of others, as many.
fn replaced(path: &Path, from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(path).unwrap();
    let places: Vec<usize> = (0..bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from)).collect();
    assert_eq!(places.len(), 1, "{from:?} once in {}", path.display());
    bytes[places[0]..places[0] + to.len()].copy_from_slice(to);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn what_was_written_here_is_the_network_that_it_was() {
    let mut network = Network::default();
    let tokens = network.input("tokens", Input::Tokens);
    let e = network.add(Embedding::new(11, 6), &[tokens]).unwrap();
    // No operator says this step.
    let cell = Cell { layer_norm: Some(1e-3), peepholes: true, ..Cell::default() };
    let h = network.add(Lstm::new(5).direction(Direction::Both).return_sequences(true).cell(cell), &e).unwrap();
    let h = network.add(Lstm::new(4).return_sequences(true), &h).unwrap();
    let logits = network.add(Dense::new(11), &h).unwrap();
    let memory = WorkingMemory::pointer(3).stateful(false);
    let y = network.add(memory, &[h[0], logits[0], tokens]).unwrap();
    network.output("y", y[0]);
    let parameters = filled(&network);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("own.onnx");
    let write = || onnx::write_model(&path, "own", &network, &parameters, &onnx::Edges::default()).unwrap();
    write();
    let back = io::read_model(&path, None).unwrap();
    assert_eq!((&back.network, &back.parameters), (&network, &parameters));
    // Blocks of gates are in another order there.
    assert_eq!(back.sources["lstm.weight_hh_l0"], "lstm.weight_hh");

    // Another value of a weight is that weight's.
    let values = parameters["lstm.weight_hh_l0"].f32s().unwrap();
    replaced(&path, &values[7].to_le_bytes(), &9.5f32.to_le_bytes());
    let mut changed = parameters.clone();
    let mut other = values.to_vec();
    other[7] = 9.5;
    changed.insert("lstm.weight_hh_l0".to_string(), Tensor::new(&[16, 4], other).unwrap());
    assert_eq!(io::read_model(&path, None).unwrap().parameters, changed);

    // A graph that is not the network's is read as a graph, and so is one of no network.
    write();
    replaced(&path, b"ReduceLogSumExp", b"ReduceMystery!!");
    let error = io::read_model(&path, None).unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("Scan"), "{error}");
    write();
    replaced(&path, b"{\"network\":", b"{\"notwork\":");
    let error = io::read_model(&path, None).unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("Scan"), "{error}");
}

#[test]
fn damaged_graphs_are_refused_and_nothing_panics() {
    let whole = std::fs::read(folder().join("lm_state.ts_dyn.onnx")).unwrap();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("damaged.onnx");
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = io::read_model(&path, None).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Data | ErrorKind::Unsupported), "{error}");
    // Each byte of the graph's nodes another one; the tensors behind them may be anything.
    for at in (0..whole.len().min(4000)).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x15;
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(imported) = io::read_model(&path, None) {
            assert!(!imported.network.nodes.is_empty());
        }
    }
}

#[test]
fn graphs_of_thousands_of_nodes_are_read_and_those_said_twice_refused() {
    // Of two files one after the other all lists are one list: each name is there as often.
    let whole = std::fs::read(folder().join("lm_state.ts_dyn.onnx")).unwrap();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("many.onnx");
    std::fs::write(&path, whole.repeat(300)).unwrap();
    let error = io::read_model(&path, None).unwrap_err();
    assert!(error.kind() == ErrorKind::Data && error.to_string().contains("twice"), "{error}");

    let layers = vec![Layer::from(Activation::Relu); 3000];
    let network = Network::chain(Input::Features(3), None, &layers).unwrap();
    onnx::write_model(&path, "many", &network, &BTreeMap::new(), &onnx::Edges::default()).unwrap();
    replaced(&path, b"{\"network\":", b"{\"notwork\":");
    let read = io::read_model(&path, None).unwrap();
    assert_eq!(read.network.nodes.len(), 3000);
}
