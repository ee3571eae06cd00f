//! Models larger than a device's memory: their weights come layer by layer, and nothing is different but the memory.

mod common;

use common::devices;
use mnemon::config::{Bias, Cell};
use mnemon::device::{Device, Session};
use mnemon::error::ErrorKind;
use mnemon::graph::builder::LstmWeights;
use mnemon::graph::{Expr, Graph, LstmOp, N};
use mnemon::io;
use mnemon::nn::{Dense, GraphOptions, Input, Lstm, Network};
use mnemon::optim::Adam;
use mnemon::params::random::Random;
use mnemon::params::{DType, ParameterSpec, Tensor};
use mnemon::scheduler::{Action, Batch, Capacity, CompileOptions, Keep, Measures, Target, compile};
use mnemon::train::{self, Fit, Loss, Model, Named};
use std::path::{Path, PathBuf};

const FEATURES: usize = 64;
const HIDDEN: usize = 192;
const LAYERS: usize = 16;
const LENGTHS: [usize; 5] = [7, 3, 0, 9, 7];

/// Sixteen LSTMs, of which the last gives its last h, and a layer over it.
fn network() -> Network {
    let mut network = Network::default();
    let mut h = vec![network.input("x", Input::Features(FEATURES))];
    for layer in 0..LAYERS {
        h = network.add(Lstm::new(HIDDEN).return_sequences(layer + 1 < LAYERS), &h).unwrap();
    }
    let y = network.add(Dense::new(5), &h).unwrap();
    network.output("y", y[0]);
    network
}

fn values(shape: &[usize], seed: u64) -> Tensor {
    let mut random = Random::new(seed, 3);
    Tensor::new(shape, (0..shape.iter().product()).map(|_| 0.2 * random.normal() as f32).collect()).unwrap()
}

fn parameters(network: &Network) -> Named {
    let value = |(at, p): (usize, &ParameterSpec)| (p.name.clone(), values(&p.shape, at as u64));
    network.parameters().unwrap().iter().enumerate().map(value).collect()
}

fn bytes(parameters: &Named) -> u64 {
    parameters.values().map(|t| 4 * t.len() as u64).sum()
}

/// The CPU and the GPU under test, the latter with all its limits alone.
fn two_devices() -> impl Iterator<Item = Device> {
    devices().into_iter().filter(|d| d.label() != "reference").take(2)
}

/// A file of its own for a test, removed with it.
struct Weights(PathBuf);

impl Weights {
    fn new(name: &str, parameters: &Named) -> Self {
        let path = std::env::temp_dir().join(format!("mnemon-weights-{}-{name}.safetensors", std::process::id()));
        io::write_tensors(&path, parameters.clone()).unwrap();
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn read(&self) -> Named {
        io::read_tensors(&self.0).unwrap()
    }
}

impl Drop for Weights {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn graph(network: &Network) -> Graph {
    let mut graph = Graph::new();
    let built = network.build(&mut graph, GraphOptions::default()).unwrap();
    graph.output("y", built.outputs[0].0).unwrap();
    graph
}

fn session(device: &Device, parameters: &Named) -> Session {
    let mut session = device.session().unwrap();
    parameters.iter().for_each(|(name, tensor)| session.set(name, tensor).unwrap());
    session
}

fn packed_input(batch: &Batch) -> Tensor {
    values(&[batch.axis(0).unwrap().rows(), FEATURES], 77)
}

/// The outputs of two runs of different batches.
fn run(session: &mut Session, options: &CompileOptions) -> (Vec<Tensor>, Measures, u64) {
    let mut executable = session.load_with(&graph(&network()), options).unwrap();
    let batches = [Batch::ragged(&LENGTHS).unwrap(), Batch::dense(4, 3).unwrap(), Batch::ragged(&LENGTHS).unwrap()];
    let outputs = batches.map(|batch| {
        session.run(&mut executable, &batch, &[("x", &packed_input(&batch))]).unwrap();
        session.output(&executable, "y").unwrap()
    });
    let program = executable.program();
    (outputs.to_vec(), program.measures, program.memory().bytes())
}

/// A quarter of the model holds it, from a file or from memory, with the bits of a device that holds all, and not a byte more
/// than it was given is ever allocated.
#[test]
fn a_model_four_times_as_large_as_the_budget_gives_the_same_bits() {
    let parameters = parameters(&network());
    let file = Weights::new("quarter", &parameters);
    let budget = bytes(&parameters) / 4;
    let capacity = Capacity::exactly(&Batch::ragged(&LENGTHS).unwrap());
    for device in devices().into_iter().filter(|d| d.label() != "reference") {
        for parameters in [file.read(), parameters.clone()] {
            let small = device.clone().reopen().unwrap().with_memory(budget);
            let mut session = session(&small, &parameters);
            let (outputs, measures, planned) = run(&mut session, &CompileOptions::new(&capacity));
            assert!(measures.stream, "{device:?}: {measures}");
            let most = session.allocated().1;
            assert!(planned <= budget && most <= budget, "{device:?}: {planned} planned, {most} held of {budget}");
            let whole = run(&mut self::session(&device, &parameters), &CompileOptions::new(&capacity));
            assert!(!whole.1.stream && whole.2 > 2 * bytes(&parameters) / 2, "{device:?}");
            assert_eq!(outputs, whole.0, "{device:?}");
        }
    }
}

/// The file of the weights is cut off and written anew while they are in use: what needs them says so, and goes on once it has
/// them again.
#[test]
fn a_weight_file_that_cannot_be_read_fails_the_run_and_not_the_process() {
    let parameters = parameters(&network());
    let budget = bytes(&parameters) / 4;
    let batch = Batch::ragged(&LENGTHS).unwrap();
    let (graph, x) = (graph(&network()), packed_input(&batch));
    for device in two_devices() {
        let file = Weights::new(&format!("cut-{}", device.label()), &parameters);
        let mut session = session(&device.with_memory(budget), &file.read());
        let mut executable = session.load(&graph, &Capacity::exactly(&batch)).unwrap();
        session.run(&mut executable, &batch, &[("x", &x)]).unwrap();
        let wanted = session.output(&executable, "y").unwrap();
        std::fs::OpenOptions::new().write(true).open(file.path()).unwrap().set_len(1000).unwrap();
        for _ in 0..2 {
            let error = session.run(&mut executable, &batch, &[("x", &x)]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::File, "{error}");
            for wanted in ["mnemon-weights-", "changed", "got 1000", "weight_"] {
                assert!(error.to_string().contains(wanted), "{error}");
            }
        }
        io::write_tensors(file.path(), parameters.clone()).unwrap();
        file.read().iter().for_each(|(name, tensor)| session.set(name, tensor).unwrap());
        session.run(&mut executable, &batch, &[("x", &x)]).unwrap();
        assert_eq!(session.output(&executable, "y").unwrap(), wanted);
    }
}

/// Training of a model whose parameters, gradients and optimiser state do not fit gives what training in memory gives.
#[test]
fn a_model_larger_than_the_budget_trains() {
    let network = network();
    let parameters = parameters(&network);
    // A fifth of these, as products whose sums are split hold parts of them.
    let budget = 4 * bytes(&parameters) / 5;
    let file = Weights::new("train", &parameters);
    let (inputs, targets) = (
        Named::from([("x".to_string(), values(&[12, 6, FEATURES], 5))]),
        Named::from([("y".to_string(), values(&[12, 5], 6))]),
    );
    let fit = Fit { epochs: 1, batch_size: 4, ..Fit::default() };
    let train_on = |device: &Device, parameters: &Named| {
        let mut model = Model::new(device, &network, parameters).unwrap();
        model.compile(Adam::default(), &[("y", Loss::MeanSquaredError)]).unwrap();
        let history = model.fit(&inputs, &targets, &fit).unwrap();
        (history.loss, model.parameters().unwrap(), model.allocated().1)
    };
    for device in two_devices() {
        let small = device.clone().reopen().unwrap().with_memory(budget);
        let plan = train::plan(&network, &[6; 4], Some(Loss::MeanSquaredError), small.target(), Some(budget)).unwrap();
        assert!(plan.measures.stream && plan.measures.sequences.is_none(), "{device:?}: {}", plan.measures);
        let (loss, trained, most) = train_on(&small, &file.read());
        assert!(most <= budget, "{device:?}: {most} held of {budget}");
        let (wanted_loss, wanted, _) = train_on(&device, &parameters);
        assert_eq!(loss, wanted_loss, "{device:?}");
        assert_eq!(trained, wanted, "{device:?}");
        assert_ne!(trained, parameters);
        assert_eq!(file.read(), parameters, "the file is as it was");
    }
}

/// A step of gradient descent on two layers and one over them, in parts of timesteps and of sequences: weights that wait change
/// neither parameters nor outputs.
#[test]
fn weights_wait_under_every_other_measure() {
    const WIDE: usize = 80;
    let batch = Batch::ragged(&[150, 70, 0, 129, 3]).unwrap();
    let rows = batch.axis(0).unwrap().rows();
    let mut g = Graph::new();
    let x = g.input("x", [N, WIDE.into()], DType::F32).unwrap();
    let target = g.input("target", [N, 210.into()], DType::F32).unwrap();
    let (mut named, mut all) = (Named::new(), Vec::new());
    let mut parameter = |g: &mut Graph, name: String, shape: &[usize]| {
        let value = g.persistent(&name, shape).unwrap();
        named.insert(name, values(shape, 50 + all.len() as u64));
        all.push(value);
        value
    };
    let mut y = x;
    for layer in 0..2 {
        let weight = |name: &str| format!("{layer}.{name}");
        let ih = parameter(&mut g, weight("ih"), &[4 * WIDE, WIDE]);
        let hh = parameter(&mut g, weight("hh"), &[4 * WIDE, WIDE]);
        let bias = parameter(&mut g, weight("bias"), &[4 * WIDE]);
        let weights = LstmWeights::new(ih, hh).bias(Some(bias), None);
        y = g.lstm_layer(y, None, &LstmOp::plain(), &[weights]).unwrap().y;
    }
    let weight = parameter(&mut g, "weight".to_string(), &[210, WIDE]);
    let y = g.linear(y, weight, None).unwrap();
    let loss = g.mean_squared_error(y, target).unwrap();
    g.output("loss", loss.mean).unwrap();
    let gradients = g.gradients(loss.mean, &all).unwrap();
    let squares = g.sum_of_squares(&gradients).unwrap();
    g.output("squares", squares).unwrap();
    for (&p, d) in all.iter().zip(gradients) {
        let new = g.elementwise(Expr::Input(0) - Expr::Const(0.5) * Expr::Input(1), &[p, d]).unwrap();
        g.update(p, new).unwrap();
    }
    let given = [("x", values(&[rows, WIDE], 1)), ("target", values(&[rows, 210], 2))];
    let inputs: Vec<(&str, &Tensor)> = given.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let run = |device: &Device, measures: Measures| {
        let mut session = session(device, &named);
        let options = CompileOptions { measures: Some(measures), ..CompileOptions::new(&Capacity::exactly(&batch)) };
        let mut executable = session.load_with(&g, &options).unwrap();
        for _ in 0..2 {
            session.run(&mut executable, &batch, &inputs).unwrap();
        }
        let outputs = ["loss", "squares"].map(|name| session.output(&executable, name).unwrap().f32s().unwrap()[0]);
        let after: Vec<Tensor> = named.keys().map(|name| session.get(name).unwrap()).collect();
        let waits = executable.program().memory();
        (outputs, after, waits.persistent, waits.offloaded)
    };
    let segments = [Keep::Outputs, Keep::Nothing].map(|keep| Some((keep, 64)));
    let measures = [None, segments[0], segments[1]].map(|segments| Measures { segments, ..Measures::default() });
    let cut = [2, 3].map(|sequences| Measures { sequences: Some(sequences), ..measures[2] });
    for device in two_devices() {
        for measures in measures.into_iter().chain(cut) {
            let ([loss, squares], after, resident, _) = run(&device, measures);
            let waiting = run(&device, Measures { stream: true, ..measures });
            assert_eq!((waiting.0[0], &waiting.1), (loss, &after), "{device:?}: {measures}");
            // The norm is added up in another order on a GPU.
            assert!((waiting.0[1] - squares).abs() <= 1e-5 * squares, "{device:?}: {measures}");
            assert!(waiting.2 < resident / 20 && waiting.3 > resident, "{device:?}: {measures}");
        }
    }
}

/// What sums no rows may run in parts of any number of steps; where the host's memory is the device's, weights are packed on
/// their way, whatever the layer has, and are no other numbers for it.
#[test]
fn layers_of_every_kind_run_in_parts_of_a_few_steps() {
    let mut network = Network::default();
    let x = network.input("x", Input::Features(FEATURES));
    let peepholes = Cell { peepholes: true, ..Cell::default() };
    let normed = Cell { layer_norm: Some(1e-5), ..Cell::default() };
    let layers = [
        Lstm::new(130),
        Lstm::new(150).projection(Some(131)),
        Lstm::new(141).cell(peepholes),
        Lstm::new(6000).projection(Some(3)).cell(peepholes),
        Lstm::new(140).cell(normed).bias(Bias::Two),
        Lstm::new(133).return_sequences(false),
    ];
    let mut h = vec![x];
    for (at, layer) in layers.into_iter().enumerate() {
        let sequences = at < 5;
        h = network.add(layer.return_sequences(sequences), &h).unwrap();
    }
    let y = network.add(Dense::new(127), &h).unwrap();
    network.output("y", y[0]);
    let (named, batch) = (parameters(&network), Batch::ragged(&[23, 9, 0, 30, 3]).unwrap());
    let (graph, x) = (graph(&network), packed_input(&batch));
    // Outputs, and how many workspaces the host packs, and the device.
    let run = |device: &Device, target: Target, measures: Measures| {
        let mut session = session(device, &named);
        let options = CompileOptions { measures: Some(measures), ..CompileOptions::new(&Capacity::exactly(&batch)) };
        let mut executable = session.load_program(compile(&graph, target, &options).unwrap()).unwrap();
        session.run(&mut executable, &batch, &[("x", &x)]).unwrap();
        let actions: Vec<&Action> = executable.program().stages.iter().flat_map(|s| &s.body).collect();
        let count = |is: fn(&Action) -> bool| actions.iter().filter(|a| is(a)).count();
        let packs = [count(|a| matches!(a, Action::Bring(..))), count(|a| matches!(a, Action::Pack(..)))];
        (session.output(&executable, "y").unwrap(), packs)
    };
    for device in two_devices() {
        let target = device.target();
        let (wanted, _) = run(&device, target, Measures::default());
        assert!(wanted.f32s().unwrap().iter().any(|v| *v != 0.0));
        for segments in [None, Some((Keep::Nothing, 8)), Some((Keep::Nothing, 5))] {
            for sequences in [None, Some(2)] {
                let measures = Measures { segments, sequences, stream: true, ..Measures::default() };
                // As it is, and as if it had memory of its own.
                for unified in [target.unified, false] {
                    let (y, [by_host, by_device]) = run(&device, Target { unified, ..target }, measures);
                    assert_eq!(y, wanted, "{device:?}: {measures}");
                    let gpu = device.label() != "cpu";
                    assert_eq!(by_host > 8, unified && gpu, "{device:?}: {by_host}");
                    assert_eq!(by_device > 8, !unified && gpu, "{device:?}: {by_device}");
                }
            }
        }
    }
}

/// Bytes of a binding of a device that matrices of this test are too large for.
const BINDING: u64 = 128 * 1024;

/// `device`, as one whose kernels see no more than [`BINDING`] of a value.
fn narrow(device: &Device) -> Target {
    let mut target = device.target();
    target.limits.binding = BINDING;
    target
}

/// A language model's table of tokens, which is also its last layer, and the momentum of its training are too large for a
/// binding: they are cut, whether they are on the device or come to it, and nothing is different but the order of sums.
#[test]
fn matrices_larger_than_a_binding_are_cut() {
    const WORDS: usize = 480;
    const WIDE: usize = 130;
    let batch = Batch::ragged(&[9, 4, 0, 13, 9]).unwrap();
    let rows = batch.axis(0).unwrap().rows();
    let mut g = Graph::new();
    let tokens = g.input("tokens", [N], DType::U32).unwrap();
    let target = g.input("target", [N], DType::U32).unwrap();
    let mut named = Named::new();
    let mut kept = |g: &mut Graph, name: &str, shape: &[usize]| {
        named.insert(name.to_string(), values(shape, 70 + named.len() as u64));
        g.persistent(name, shape).unwrap()
    };
    let table = kept(&mut g, "table", &[WORDS, WIDE]);
    let momentum = kept(&mut g, "momentum", &[WORDS, WIDE]);
    let seen = kept(&mut g, "seen", &[WORDS, WIDE]);
    let (middle, bias) = (kept(&mut g, "middle", &[WIDE, WIDE]), kept(&mut g, "bias", &[WORDS]));
    let read = g.embedding(table, tokens).unwrap();
    let h = g.linear(read, middle, None).unwrap();
    let h = g.tanh(h).unwrap();
    let logits = g.linear(h, table, Some(bias)).unwrap();
    g.output("logits", logits).unwrap();
    let loss = g.cross_entropy(logits, target, None).unwrap();
    g.output("loss", loss.mean).unwrap();
    let gradients = g.gradients(loss.mean, &[table, middle]).unwrap();
    let squares = g.sum_of_squares(&gradients).unwrap();
    g.output("squares", squares).unwrap();
    let moved = Expr::Const(0.9) * Expr::Input(0) + Expr::Input(1) / Expr::Input(2).sqrt();
    let moved = g.elementwise(moved, &[momentum, gradients[0], squares]).unwrap();
    let new = g.elementwise(Expr::Input(0) - Expr::Input(1), &[table, moved]).unwrap();
    g.update(momentum, moved).unwrap();
    g.update(table, new).unwrap();
    // Rows of another table become what was read, for each token once.
    let seen_rows = g.input("rows", [N], DType::U32).unwrap();
    let written = g.scatter(seen, seen_rows, h).unwrap();
    g.update(seen, written).unwrap();
    let words = |step: usize| -> Vec<u32> { (0..rows).map(|n| (n * step % WORDS) as u32).collect() };
    let given = [("tokens", words(131)), ("target", words(97)), ("rows", words(11))];
    let given = given.map(|(name, words)| (name, Tensor::from_u32(&[rows], words).unwrap()));
    let inputs: Vec<(&str, &Tensor)> = given.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let run = |device: &Device, target: Target, measures: Option<Measures>| {
        let options = CompileOptions { measures, ..CompileOptions::new(&Capacity::exactly(&batch)) };
        let program = compile(&g, target, &options).unwrap();
        let slabs = program.values.iter().filter(|v| v.name == "table").count();
        let mut session = session(device, &named);
        let mut executable = session.load_program(program).unwrap();
        for _ in 0..2 {
            session.run(&mut executable, &batch, &inputs).unwrap();
        }
        let outputs = ["logits", "loss", "squares"].map(|name| session.output(&executable, name).unwrap());
        let after: Vec<Tensor> = named.keys().map(|name| session.get(name).unwrap()).collect();
        (outputs.into_iter().chain(after).collect::<Vec<_>>(), slabs, executable.program().memory().offloaded)
    };
    let cpu = Device::cpu_with_threads(2).unwrap();
    let (wanted, whole, _) = run(&cpu, cpu.target(), None);
    assert_eq!(whole, 1);
    for device in common::gpus() {
        let (here, slabs, _) = run(&device, narrow(&device), None);
        assert_eq!(slabs, 3, "{device:?}");
        for (got, wanted) in here.iter().zip(&wanted) {
            let [got, wanted] =
                [got, wanted].map(|t| t.f32s().unwrap().iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
            // Sums of a few hundred products in another order.
            let error = common::error(&got, &wanted).unwrap();
            assert!(error < 1e-5, "{device:?}: {error}");
        }
        let streamed = Measures { stream: true, ..Measures::default() };
        let (brought, slabs, away) = run(&device, narrow(&device), Some(streamed));
        // All slabs of three tables.
        assert!(slabs == 3 && away >= 3 * 4 * (WORDS * WIDE) as u64, "{device:?}: {away}");
        // The norm is added up in another order.
        let squares = [&brought, &here].map(|outputs| outputs[2].f32s().unwrap()[0]);
        assert!((squares[0] - squares[1]).abs() <= 1e-5 * squares[1], "{device:?}: {squares:?}");
        assert_eq!(brought[0], here[0], "{device:?}");
    }
}

/// What cannot be cut says so, and what it would take.
#[test]
fn what_cannot_be_cut_is_refused() {
    let batch = Batch::dense(2, 2).unwrap();
    let options = CompileOptions::new(&Capacity::exactly(&batch));
    for device in common::gpus() {
        let refused = |g: &Graph, wanted: &str| {
            let error = compile(g, narrow(&device), &options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
            assert!(error.to_string().contains(wanted), "{error}");
        };
        let mut g = Graph::new();
        let x = g.input("x", [N, 8.into()], DType::F32).unwrap();
        let [ih, hh] = [("ih", 8), ("hh", 100)].map(|(name, columns)| g.persistent(name, [400, columns]).unwrap());
        let y = g.lstm_layer(x, None, &LstmOp::plain(), &[LstmWeights::new(ih, hh)]).unwrap().y;
        g.output("y", y).unwrap();
        refused(
            &g,
            "`hh`: its values take 160000 bytes, the device allows 131072 in one binding, and lstm cannot take it",
        );
        let mut g = Graph::new();
        let x = g.input("x", [N, 100.into()], DType::F32).unwrap();
        let w = g.persistent("w", [400, 100]).unwrap();
        let y = g.linear(x, w, None).unwrap();
        let loss = g.sum_of_squares(&[y]).unwrap();
        let dw = g.gradients(loss, &[w]).unwrap()[0];
        g.output("dw", dw).unwrap();
        refused(&g, "a run cannot be given it, nor give it");
        let mut g = Graph::new();
        let w = g.persistent("w", [4, 20_000]).unwrap();
        let loss = g.sum_of_squares(&[w]).unwrap();
        g.output("loss", loss).unwrap();
        refused(&g, "64 of its rows do not fit");
    }
}
