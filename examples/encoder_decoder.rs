//! Two LSTMs through the public graph: one reads a string of digits, the other starts from the first's final state and
//! writes the string backwards. Training is one graph; decoding is two, with states and the last digit kept on the device.
//!
//! Exits with 1 unless nine strings of ten that it never saw come out right.

use mnemon::config::LstmConfig;
use mnemon::device::Device;
use mnemon::device::Session;
use mnemon::error::Result;
use mnemon::graph::builder::{LstmOutputs, LstmWeights};
use mnemon::graph::{B, Dim, Expr, Graph, N, Symbol, Value};
use mnemon::optim::{Adam, Clipping, Course, Gate, Optimizer, Schedule};
use mnemon::params::random::Random;
use mnemon::params::{DType, Initializer, ParameterSpec, Rules, Tensor, lstm_parameters};
use mnemon::scheduler::{Batch, Capacity};
use std::process::ExitCode;

const DIGITS: usize = 10;
/// What the decoder reads first.
const START: u32 = 10;
const EMBEDDING: usize = 16;
const HIDDEN: usize = 96;
const LENGTH: usize = 5;
const BATCH: usize = 64;
const STEPS: u32 = 1500;
const LEARNING_RATE: f64 = 5e-3;

fn parameters() -> Vec<ParameterSpec> {
    let uniform = Initializer::Uniform(1.0 / (HIDDEN as f32).sqrt());
    let spec = |name: String, shape: Vec<usize>, initializer| Rules::default().spec(name, shape, initializer);
    let mut all = vec![spec("embedding.weight".into(), vec![DIGITS + 1, EMBEDDING], Initializer::Normal(1.0))];
    for layer in ["encoder", "decoder"] {
        let lstm = lstm_parameters(&LstmConfig::new(EMBEDDING, HIDDEN), 0);
        all.extend(lstm.into_iter().map(|p| spec(format!("{layer}.{}", p.name), p.shape, uniform)));
    }
    all.push(spec("dense.weight".into(), vec![DIGITS, HIDDEN], uniform));
    all
}

/// The parameter `name` in a graph.
fn parameter(graph: &mut Graph, name: &str) -> Result<Value> {
    let all = parameters();
    let spec = all.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no parameter {name}"));
    graph.persistent(name, &spec.shape)
}

fn lstm(graph: &mut Graph, layer: &str, tokens: Value, state: Option<(Value, Value)>) -> Result<LstmOutputs> {
    let table = parameter(graph, "embedding.weight")?;
    let x = graph.embedding(table, tokens)?;
    let mut weight = |role: &str| parameter(graph, &format!("{layer}.{role}_l0"));
    let weights = LstmWeights::new(weight("weight_ih")?, weight("weight_hh")?);
    let weights = weights.bias(Some(weight("bias_ih")?), Some(weight("bias_hh")?));
    graph.lstm(x, state, &weights)
}

fn logits(graph: &mut Graph, h: Value) -> Result<Value> {
    let weight = parameter(graph, "dense.weight")?;
    graph.linear(h, weight, None)
}

/// The source lies along time axis 0, the target along axis 1.
fn training_graph(optimizer: &Optimizer) -> Result<Graph> {
    let mut graph = Graph::new();
    let g = &mut graph;
    let target_rows = Dim::Symbol(Symbol::Rows(1));
    let source = g.input("source", [N], DType::U32)?;
    let read = g.input("read", [target_rows.clone()], DType::U32)?;
    let written = g.input("written", [target_rows], DType::U32)?;
    let encoded = lstm(g, "encoder", source, None)?;
    let decoded = lstm(g, "decoder", read, Some((encoded.h_n, encoded.c_n)))?;
    let y = logits(g, decoded.y)?;
    let loss = g.cross_entropy(y, written, None)?;
    let specs = parameters();
    let values = specs.iter().map(|spec| g.persistent(&spec.name, &spec.shape)).collect::<Result<Vec<Value>>>()?;
    let gradients = g.gradients(loss.mean, &values)?;
    let squares = g.sum_of_squares(&gradients)?;
    let alive = g.elementwise(Expr::Input(0).is_finite(), &[squares])?;
    optimizer.apply(g, &specs, &gradients, Gate { scale: None, squares: Some(squares), alive })?;
    g.output("loss", loss.mean)?;
    Ok(graph)
}

/// Reads the source; its final state becomes the decoder's, kept on the device.
fn encoding_graph() -> Result<Graph> {
    let mut graph = Graph::new();
    let source = graph.input("source", [N], DType::U32)?;
    let encoded = lstm(&mut graph, "encoder", source, None)?;
    for (name, value) in [("state.h", encoded.h_n), ("state.c", encoded.c_n)] {
        let state = graph.persistent(name, [B, Dim::Fixed(HIDDEN)])?;
        graph.update(state, value)?;
    }
    Ok(graph)
}

/// One step of the decoder: state and digit come from the device and stay there.
fn decoding_graph() -> Result<Graph> {
    let mut graph = Graph::new();
    let digit = graph.persistent_typed("state.digit", [N], DType::U32)?;
    let h = graph.persistent("state.h", [B, Dim::Fixed(HIDDEN)])?;
    let c = graph.persistent("state.c", [B, Dim::Fixed(HIDDEN)])?;
    let decoded = lstm(&mut graph, "decoder", digit, Some((h, c)))?;
    let y = logits(&mut graph, decoded.y)?;
    let likeliest = graph.argmax(y)?;
    graph.update(h, decoded.h_n)?;
    graph.update(c, decoded.c_n)?;
    graph.update(digit, likeliest)?;
    graph.output("digit", likeliest)?;
    Ok(graph)
}

/// Random strings, `[T, B]`. A quarter of all strings, told by their last digits, is kept for testing.
fn strings(random: &mut Random, test: bool) -> Vec<u32> {
    let mut all = vec![0; LENGTH * BATCH];
    for b in 0..BATCH {
        loop {
            (0..LENGTH).for_each(|t| all[t * BATCH + b] = random.below(DIGITS as u32));
            let last = all[(LENGTH - 2) * BATCH + b] * 10 + all[(LENGTH - 1) * BATCH + b];
            if (last % 4 == 3) == test {
                break;
            }
        }
    }
    all
}

fn reversed(strings: &[u32]) -> Vec<u32> {
    strings.chunks(BATCH).rev().flatten().copied().collect()
}

fn train(session: &mut Session, random: &mut Random) -> Result<()> {
    let falling = Schedule::Linear { steps: STEPS, least: 0.0 };
    let adam = Adam::pytorch().learning_rate(LEARNING_RATE);
    let optimizer = Optimizer::from(adam).clip(Clipping::GlobalNorm(1.0)).schedule(falling);
    for (stream, spec) in parameters().iter().enumerate() {
        let values = spec.initializer.values(&spec.shape, 1, stream as u64)?;
        session.set(&spec.name, &Tensor::new(&spec.shape, values)?)?;
    }
    for slot in optimizer.slots(&parameters()) {
        let first = slot.begin(|name| session.get(name))?;
        session.set(&slot.name, &first)?;
    }
    let shape = Batch::dense(LENGTH, BATCH)?.with_axis(&[LENGTH; BATCH])?;
    let mut program = session.load(&training_graph(&optimizer)?, &Capacity::exactly(&shape))?;
    let tensor = |tokens: Vec<u32>| Tensor::from_u32(&[LENGTH * BATCH], tokens);
    for step in 0..STEPS {
        let source = strings(random, false);
        let written = reversed(&source);
        let mut read = vec![START; BATCH];
        read.extend(&written[..(LENGTH - 1) * BATCH]);
        let mut batch = shape.clone().at_step(0, step);
        optimizer.scalars(&Course::at(step)).into_iter().for_each(|(name, value)| batch.set_scalar(name, value));
        let inputs = [("source", &tensor(source)?), ("read", &tensor(read)?), ("written", &tensor(written)?)];
        session.run(&mut program, &batch, &inputs)?;
        if (step + 1) % 250 == 0 {
            println!("step {} loss {:.4}", step + 1, session.output(&program, "loss")?.f32s()?[0]);
        }
    }
    Ok(())
}

fn main() -> Result<ExitCode> {
    let device = Device::best()?;
    println!("on {}", device.name());
    let mut session = device.session()?;
    let mut random = Random::new(1, 1 << 40);
    train(&mut session, &mut random)?;

    let (whole, one) = (Batch::dense(LENGTH, BATCH)?, Batch::dense(1, BATCH)?);
    let mut encoder = session.load(&encoding_graph()?, &Capacity::exactly(&whole))?;
    let mut decoder = session.load(&decoding_graph()?, &Capacity::exactly(&one))?;
    let (mut right, mut total) = (0, 0);
    for round in 0..8 {
        let source = strings(&mut random, true);
        session.run(&mut encoder, &whole, &[("source", &Tensor::from_u32(&[LENGTH * BATCH], source.clone())?)])?;
        session.set("state.digit", &Tensor::from_u32(&[BATCH], vec![START; BATCH])?)?;
        let mut written = Vec::new();
        for _ in 0..LENGTH {
            session.run(&mut decoder, &one, &[])?;
            written.extend_from_slice(session.output(&decoder, "digit")?.u32s()?);
        }
        let wanted = reversed(&source);
        let string = |all: &[u32], b: usize| -> String { all[b..].iter().step_by(BATCH).map(u32::to_string).collect() };
        right += (0..BATCH).filter(|&b| string(&written, b) == string(&wanted, b)).count();
        total += BATCH;
        if round == 0 {
            (0..5).for_each(|b| println!("{} -> {}", string(&source, b), string(&written, b)));
        }
    }
    let accuracy = right as f64 / f64::from(total as u32);
    println!("{right} of {total} unseen strings reversed: accuracy {accuracy:.3}");
    Ok(if accuracy >= 0.9 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
