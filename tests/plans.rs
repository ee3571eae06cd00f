//! Plans: programs that run in parts hold less and give the same.

mod common;

use common::{assert_close, devices};
use mnemon::config::{Bias, Cell, LstmConfig, Mask};
use mnemon::device::Device;
use mnemon::graph::builder::LstmWeights;
use mnemon::graph::{B, Graph, LstmOp, N, Value};
use mnemon::params::random::Random;
use mnemon::params::{DType, LstmParameter, Tensor, lstm_parameters};
use mnemon::scheduler::{Batch, Capacity, CompileOptions, Keep, Measures, compile};
use std::collections::BTreeMap;

const VOCABULARY: usize = 11;

/// A model with all that it reads, whose loss, logits, states and gradients are outputs.
struct Case {
    graph: Graph,
    persistent: BTreeMap<String, Tensor>,
    inputs: BTreeMap<String, Tensor>,
    batch: Batch,
}

fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut random = Random::new(seed, 5);
    Tensor::new(shape, (0..shape.iter().product()).map(|_| random.normal() as f32 * 0.4).collect()).unwrap()
}

/// Embedding, dropout, two layers with carried states, logits, cross entropy of every step that counts; or, with
/// `last`, a squared error of the last step alone.
fn case(lengths: &[usize], cell: Cell, projection: Option<usize>, last: bool) -> Case {
    let (embedding, hidden) = (6, 10);
    let batch = Batch::ragged(lengths).unwrap().at_step(3, 4).starting_at(7);
    let rows = batch.axis(0).unwrap().rows();
    let mut g = Graph::new();
    let mut persistent = BTreeMap::new();
    let mut wanted: Vec<(String, Value)> = Vec::new();
    let mut parameter = |g: &mut Graph, name: &str, shape: &[usize]| {
        let v = g.persistent(name, shape).unwrap();
        persistent.insert(name.to_string(), random(shape, wanted.len() as u64));
        wanted.push((name.to_string(), v));
        v
    };
    let table = parameter(&mut g, "table", &[VOCABULARY, embedding]);
    let tokens = g.input("tokens", [N], DType::U32).unwrap();
    let mut y = g.embedding(table, tokens).unwrap();
    let mut width = embedding;
    let mut states = Vec::new();
    for layer in 0..2 {
        y = g.dropout_masked(y, 0.2, if layer == 0 { Mask::Step } else { Mask::Sequence }).unwrap();
        let mut config = LstmConfig::new(width, hidden).bias(Bias::Two).cell(cell);
        config.projection = projection;
        let named: BTreeMap<String, Value> = lstm_parameters(&config, 0)
            .into_iter()
            .map(|LstmParameter { name, role, shape, .. }| {
                let v = parameter(&mut g, &format!("lstm_{layer}.{name}"), &shape);
                (role.to_string(), v)
            })
            .collect();
        let weights = LstmWeights::by_role(|role| named.get(role).copied()).unwrap();
        width = projection.unwrap_or(hidden);
        let state = [("h", width), ("c", hidden)].map(|(s, n)| g.persistent(&format!("{s}_{layer}"), [B, n.into()]).unwrap());
        let op = LstmOp { cell, random: Some(g.random_operations(3)), ..LstmOp::plain() };
        let out = g.lstm_layer(y, Some((state[0], state[1])), &op, &[weights]).unwrap();
        states.push((state, [out.h_n, out.c_n]));
        y = out.y;
    }
    let weight = parameter(&mut g, "weight", &[VOCABULARY, width]);
    let bias = parameter(&mut g, "bias", &[VOCABULARY]);
    let mut inputs = BTreeMap::new();
    let token = |i: usize| ((i * 7 + i / 5) % VOCABULARY) as u32;
    inputs.insert("tokens".to_string(), Tensor::from_u32(&[rows], (0..rows).map(token).collect()).unwrap());
    let loss = if last {
        let end = g.linear(states[1].1[0], weight, Some(bias)).unwrap();
        let target = g.input("target", [B, VOCABULARY.into()], DType::F32).unwrap();
        inputs.insert("target".to_string(), random(&[lengths.len(), VOCABULARY], 99));
        g.mean_squared_error(end, target).unwrap()
    } else {
        let logits = g.linear(y, weight, Some(bias)).unwrap();
        g.output("logits", logits).unwrap();
        let target = g.input("target", [N], DType::U32).unwrap();
        let next = (0..rows).map(|i| token(i + 3)).collect();
        inputs.insert("target".to_string(), Tensor::from_u32(&[rows], next).unwrap());
        g.cross_entropy(logits, target, Some(2)).unwrap()
    };
    g.output("loss", loss.mean).unwrap();
    g.output("count", loss.count).unwrap();
    for (layer, (state, next)) in states.iter().enumerate() {
        for ((s, &state), &next) in ["h", "c"].iter().zip(state).zip(next) {
            g.update(state, next).unwrap();
            g.output(&format!("{s}_n_{layer}"), next).unwrap();
            wanted.push((format!("{s}_{layer}"), state));
        }
    }
    let values: Vec<Value> = wanted.iter().map(|w| w.1).collect();
    let gradients = g.gradients(loss.mean, &values).unwrap();
    for ((name, _), gradient) in wanted.iter().zip(gradients) {
        g.output(&format!("d {name}"), gradient).unwrap();
    }
    Case { graph: g, persistent, inputs, batch }
}

/// All outputs, and the carried states after the run, of a run under `measures`; and what the program holds.
fn run(device: &Device, case: &Case, measures: Measures) -> (BTreeMap<String, Vec<f32>>, u64) {
    let mut session = device.session().unwrap();
    for (name, tensor) in &case.persistent {
        session.set(name, tensor).unwrap();
    }
    for (at, width) in [("h_0", 10), ("c_0", 10), ("h_1", 10), ("c_1", 10)] {
        let shape = [case.batch.sequences(), case.persistent.get("lstm_0.weight_hr_l0").filter(|_| at.starts_with('h')).map_or(width, |w| w.shape()[0])];
        session.set(at, &random(&shape, 1000 + u64::from(at.as_bytes()[0]))).unwrap();
    }
    let options = CompileOptions { measures: Some(measures), ..CompileOptions::new(&Capacity::around(&case.batch)) };
    let mut executable = session.load_with(&case.graph, &options).unwrap();
    let inputs: Vec<(&str, &Tensor)> = case.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    session.run(&mut executable, &case.batch, &inputs).unwrap();
    let names: Vec<String> = executable.program().outputs.iter().map(|o| o.0.clone()).collect();
    let mut all = BTreeMap::new();
    for name in names {
        all.insert(name.clone(), session.output(&executable, &name).unwrap().into_f32s().unwrap());
    }
    for name in ["h_0", "c_0", "h_1", "c_1"] {
        all.insert(name.to_string(), session.get(name).unwrap().into_f32s().unwrap());
    }
    (all, executable.program().memory().arenas)
}

fn segments(keep: Keep, steps: usize) -> Measures {
    Measures { segments: Some((keep, steps)), sequences: None }
}

const LENGTHS: [usize; 7] = [300, 64, 129, 1, 0, 200, 300];

fn cells() -> Vec<(&'static str, Cell, Option<usize>)> {
    let all = Cell {
        peepholes: true,
        recurrent_dropout: 0.2,
        zoneout_h: 0.1,
        zoneout_c: 0.2,
        clip: Some(3.0),
        ..Cell::default()
    };
    let norm = Cell { layer_norm: Some(1e-3), ..Cell::default() };
    vec![("plain", Cell::default(), None), ("all", all, Some(7)), ("norm", norm, None)]
}

/// Gradients have the same bits whether gates are kept, computed again, or everything is.
#[test]
fn recomputation_keeps_the_bits() {
    let devices = devices().into_iter().filter(|d| d.label() != "reference");
    for device in devices {
        for (kind, cell, projection) in cells() {
            for last in [false, true] {
                let case = case(&LENGTHS, cell, projection, last);
                let (whole, held) = run(&device, &case, Measures::default());
                for measures in [
                    segments(Keep::Outputs, 64),
                    segments(Keep::Outputs, 128),
                    segments(Keep::Nothing, 64),
                    segments(Keep::Nothing, 192),
                ] {
                    let (parts, less) = run(&device, &case, measures);
                    let shortest = measures == segments(Keep::Nothing, 64);
                    assert!(less < held || !shortest, "{device:?} {kind}: {measures} holds {less} bytes, all at once {held}");
                    for (name, wanted) in &whole {
                        let what = format!("{device:?} {kind} last {last}, {measures}: {name}");
                        if name == "loss" {
                            // A sum over parts; gradients do not depend on it.
                            let [got, wanted] = [&parts[name], wanted].map(|v| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
                            assert_close(&what, &got, &wanted, 1e-6);
                            continue;
                        }
                        let differ = parts[name].iter().zip(wanted).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                        assert_eq!((differ, parts[name].len()), (0, wanted.len()), "{what}");
                    }
                }
            }
        }
    }
}

/// Micro-batches give the reference's numbers, in another order of sums.
#[test]
fn micro_batches_agree_with_the_reference() {
    let reference = Device::reference();
    for (kind, cell, projection) in cells() {
        let case = case(&LENGTHS, cell, projection, kind == "all");
        let (wanted, _) = run(&reference, &case, Measures::default());
        for device in devices().into_iter().filter(|d| d.label() != "reference") {
            for (segments, sequences) in
                [(None, 3), (None, 1), (Some((Keep::Nothing, 64)), 4), (Some((Keep::Outputs, 128)), 2)]
            {
                let measures = Measures { segments, sequences: Some(sequences) };
                let (got, _) = run(&device, &case, measures);
                for (name, wanted) in &wanted {
                    let [got, wanted] =
                        [&got[name], wanted].map(|v| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
                    // The reference runs in f32 too, and sums of 300 steps differ in their order.
                    assert_close(&format!("{device:?} {kind}, {measures}: {name}"), &got, &wanted, 2e-5);
                }
            }
        }
    }
}

/// The cheapest measures that keep a budget are taken; one that cannot be kept is refused with one that can.
#[test]
fn budgets_are_kept_or_refused() {
    let case = case(&[1000; 8], Cell::default(), None, true);
    let capacity = Capacity::around(&case.batch);
    for device in devices().into_iter().filter(|d| d.label() != "reference") {
        let plan = |budget| {
            compile(&case.graph, device.target(), &CompileOptions { budget, ..CompileOptions::new(&capacity) })
        };
        let mut held = plan(None).unwrap().memory().bytes();
        let mut taken = Vec::new();
        let refused = loop {
            match plan(Some(held)) {
                Ok(program) => {
                    assert!(program.memory().bytes() <= held);
                    taken.push(program.measures);
                    held = program.memory().bytes() - 1;
                }
                Err(e) => break e.to_string(),
            }
        };
        let keeps = |keep| move |m: &Measures| m.sequences.is_none() && matches!(m.segments, Some((k, _)) if k == keep);
        let at = |wanted: &dyn Fn(&Measures) -> bool| taken.iter().position(wanted).expect("a measure is missing");
        assert_eq!(at(&|m| *m == Measures::default()), 0);
        let (gates, micro) = (at(&keeps(Keep::Outputs)), at(&|m| m.sequences.is_some()));
        assert!(gates > 0 && micro > gates, "{taken:?}");
        let least = mnemon::scheduler::amount(held + 1);
        assert!(refused.contains(&format!("needs at least {least}")), "{refused}, after {held}");
    }
}
