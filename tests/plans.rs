//! Plans: programs that run in parts hold less and give the same.

mod common;

use common::{assert_close, devices, gpus, strategies};
use mnemon::config::{Bias, Cell, LstmConfig, Mask};
use mnemon::device::{Device, GpuLimits};
use mnemon::error::ErrorKind;
use mnemon::graph::builder::LstmWeights;
use mnemon::graph::{B, Expr, Graph, LstmOp, N, Value};
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
        let state =
            [("h", width), ("c", hidden)].map(|(s, n)| g.persistent(&format!("{s}_{layer}"), [B, n.into()]).unwrap());
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
        let shape = [
            case.batch.sequences(),
            case.persistent.get("lstm_0.weight_hr_l0").filter(|_| at.starts_with('h')).map_or(width, |w| w.shape()[0]),
        ];
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
    Measures { segments: Some((keep, steps)), ..Measures::default() }
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
    let fixed = devices().into_iter().filter(|d| d.label() != "reference").map(|d| (d, usize::MAX));
    // Every other strategy runs the first kind of cell.
    for (device, kinds) in fixed.chain(strategies().into_iter().map(|d| (d, 1))) {
        for (kind, cell, projection) in cells().into_iter().take(kinds) {
            for last in [false, true] {
                let case = case(&LENGTHS, cell, projection, last);
                let (whole, held) = run(&device, &case, Measures::default());
                for measures in [
                    segments(Keep::Outputs, 64),
                    segments(Keep::Outputs, 128),
                    segments(Keep::Nothing, 64),
                    segments(Keep::Nothing, 192),
                    Measures { offload: true, ..segments(Keep::Nothing, 64) },
                ] {
                    if measures.offload && device.label() == "cpu" {
                        continue; // it has no other memory
                    }
                    let (parts, less) = run(&device, &case, measures);
                    let shortest = measures == segments(Keep::Nothing, 64);
                    assert!(
                        less < held || !shortest,
                        "{device:?} {kind}: {measures} holds {less} bytes, all at once {held}"
                    );
                    for (name, wanted) in &whole {
                        let what = format!("{device:?} {kind} last {last}, {measures}: {name}");
                        if name == "loss" {
                            // A sum over parts; gradients do not depend on it.
                            let [got, wanted] =
                                [&parts[name], wanted].map(|v| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
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
                let measures = Measures { segments, sequences: Some(sequences), ..Measures::default() };
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
        assert!(refused.contains(&format!("needs at least {} bytes", held + 1)), "{refused}, after {held}");
    }
}

/// Sizes as `mnemon bench` has them: B, T, I, H, layers; whether lengths differ; whether gradients are computed.
struct Sizes(usize, usize, usize, usize, usize, bool, bool);

/// A stack of layers over an x that stays on the device, and the mean of y² with its gradients.
fn stack(sizes: &Sizes) -> (Graph, BTreeMap<String, Vec<usize>>, Batch) {
    let &Sizes(b, t, i, h, layers, ragged, train) = sizes;
    let lengths: Vec<usize> = (0..b).map(|s| if ragged { 1 + s * 7919 % b * t / b } else { t }).collect();
    let batch = Batch::ragged(&lengths).unwrap();
    let mut g = Graph::new();
    let x = g.persistent("x", [N, i.into()]).unwrap();
    let mut shapes = BTreeMap::from([("x".to_string(), vec![batch.axis(0).unwrap().rows(), i])]);
    let (mut y, mut by) = (x, vec![x]);
    let config = LstmConfig::new(i, h).layers(layers).bias(Bias::Two);
    for layer in 0..layers {
        let values: Vec<Value> = lstm_parameters(&config, layer)
            .into_iter()
            .map(|p| {
                let value = g.persistent(&p.name, &p.shape).unwrap();
                shapes.insert(p.name, p.shape);
                value
            })
            .collect();
        let weights = LstmWeights::new(values[0], values[1]).bias(values.get(2).copied(), values.get(3).copied());
        y = g.lstm(y, None, &weights).unwrap().y;
        by.extend(values);
    }
    g.output("y", y).unwrap();
    if train {
        let loss = g.sum_of_squares(&[y]).unwrap();
        g.output("loss", loss).unwrap();
        for (at, gradient) in g.gradients(loss, &by).unwrap().into_iter().enumerate() {
            g.output(&format!("d{at}"), gradient).unwrap();
        }
    }
    (g, shapes, batch)
}

/// What a plan says is what is allocated, for the sizes of `mnemon bench` and ragged ones, and a run allocates nothing.
#[test]
fn plans_say_what_is_allocated() {
    let configs: serde_json::Value = serde_json::from_str(include_str!("../benches/configs.json")).unwrap();
    let number = |config: &serde_json::Value, name: &str| config[name].as_u64().unwrap() as usize;
    let mut all = Vec::new();
    for config in configs.as_array().unwrap() {
        let [b, t, i, h, layers] = ["B", "T", "I", "H", "layers"].map(|name| number(config, name));
        all.extend([true, false].map(|train| Sizes(b, t, i, h, layers, false, train)));
    }
    for n in 0..10 {
        all.push(Sizes(3 + 7 * n, 20 + 31 * n, 5 + n, 16 + 12 * n, 1 + n % 3, true, n % 3 != 2));
    }
    for sizes in &all {
        let (graph, shapes, batch) = stack(sizes);
        for device in ["cpu", "software"] {
            if device == "software" && gpus().is_empty() {
                continue;
            }
            let name = std::env::var("MNEMON_TEST_GPU").unwrap_or("software".to_string());
            let name = if device == "cpu" { device } else { &name };
            // A device of its own, whose buffers nobody else's are counted with.
            let device = Device::parse(name, GpuLimits::Adapter, Some(2)).unwrap();
            for measures in [Measures::default(), segments(Keep::Nothing, 64)] {
                let mut session = device.session().unwrap();
                let options =
                    CompileOptions { measures: Some(measures), ..CompileOptions::new(&Capacity::exactly(&batch)) };
                let Ok(program) = compile(&graph, device.target(), &options) else { continue };
                for (name, shape) in &shapes {
                    session.zero(name, shape, DType::F32).unwrap();
                }
                let mut executable = session.load_program(program).unwrap();
                let small = shapes["x"].iter().product::<usize>() * sizes.3 * sizes.3 < 200_000_000;
                if small {
                    session.run(&mut executable, &batch, &[]).unwrap();
                    session.output(&executable, "y").unwrap();
                }
                let planned = executable.program().memory().bytes();
                let (held, most) = session.allocated();
                let what =
                    format!("{device:?} {:?} {measures}", (sizes.0, sizes.1, sizes.2, sizes.3, sizes.4, sizes.5));
                assert!(held <= most && held > 0, "{what}");
                let error = (most as f64 - planned as f64).abs() / planned as f64;
                assert!(error < 0.00002, "{what}: planned {planned} bytes, allocated {most}");
                drop((executable, session));
                if device.label() == "software" {
                    break; // the next session's bytes would come on top of what the driver has not freed yet
                }
            }
        }
    }
}

/// A device that refuses an allocation gets a smaller plan; where there is none, an error, and nothing is lost.
#[test]
fn refused_allocations_lead_to_a_smaller_plan_or_an_error() {
    let case = case(&[1000; 8], Cell::default(), None, true);
    let capacity = Capacity::around(&case.batch);
    for kind in ["cpu", "software"] {
        let name = std::env::var("MNEMON_TEST_GPU").unwrap_or("software".to_string());
        if kind == "software" && name == "none" {
            continue;
        }
        let device = Device::parse(if kind == "cpu" { kind } else { &name }, GpuLimits::Adapter, Some(2)).unwrap();
        let mut session = device.session().unwrap();
        for (name, tensor) in &case.persistent {
            session.set(name, tensor).unwrap();
        }
        let inputs: Vec<(&str, &Tensor)> = case.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let run = |session: &mut mnemon::device::Session| -> mnemon::error::Result<(Vec<f32>, Measures)> {
            for state in ["h_0", "c_0", "h_1", "c_1"] {
                session.zero(state, &[8, 10], DType::F32)?;
            }
            let mut executable = session.load(&case.graph, &capacity)?;
            session.run(&mut executable, &case.batch, &inputs)?;
            let gradient = session.output(&executable, "d lstm_0.weight_hh_l0")?.into_f32s()?;
            Ok((gradient, executable.program().measures))
        };
        let (whole, measures) = run(&mut session).unwrap();
        assert_eq!(measures, Measures::default());
        let (held, most) = session.allocated();
        assert!(most > held);
        session.refuse_beyond(held + (most - held) / 2);
        let (smaller, measures) = run(&mut session).unwrap();
        assert_ne!(measures, Measures::default(), "{kind}");
        assert_eq!(
            whole.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
            smaller.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        );
        session.refuse_beyond(held + 1000);
        let error = run(&mut session).unwrap_err();
        assert!(error.kind() == ErrorKind::Memory && error.to_string().contains("refused"), "{error}");
        for (name, tensor) in &case.persistent {
            assert_eq!(&session.get(name).unwrap(), tensor, "{kind}: {name}");
        }
        session.refuse_beyond(u64::MAX);
        assert_eq!(run(&mut session).unwrap().0, whole);
    }
}

/// A long sequence in segments has the bits of one that is kept whole. `MNEMON_LONG=1` takes 20,000 steps of H = 256, which
/// whole take a gigabyte.
#[test]
fn long_sequences_keep_the_bits() {
    let long = std::env::var("MNEMON_LONG").is_ok_and(|v| v == "1");
    let sizes = if long { (8, 20_000, 16, 256) } else { (3, 2_000, 4, 16) };
    let (b, t, i, h) = sizes;
    let batch = Batch::dense(t, b).unwrap();
    let mut g = Graph::new();
    let x = g.input("x", [N, i.into()], DType::F32).unwrap();
    let config = LstmConfig::new(i, h);
    let parameters = lstm_parameters(&config, 0);
    let values: Vec<Value> = parameters.iter().map(|p| g.persistent(&p.name, &p.shape).unwrap()).collect();
    let weights = LstmWeights::new(values[0], values[1]).bias(values.get(2).copied(), values.get(3).copied());
    let last = g.lstm(x, None, &weights).unwrap().h_n;
    let loss = g.sum_of_squares(&[last]).unwrap();
    for (parameter, gradient) in parameters.iter().zip(g.gradients(loss, &values).unwrap()) {
        g.output(&parameter.name, gradient).unwrap();
    }
    let input = random(&[b * t, i], 1);
    let run = |measures: Measures| {
        let mut session = Device::cpu_with_threads(2).unwrap().session().unwrap();
        for (at, parameter) in parameters.iter().enumerate() {
            session.set(&parameter.name, &random(&parameter.shape, 2 + at as u64)).unwrap();
        }
        let options = CompileOptions { measures: Some(measures), ..CompileOptions::new(&Capacity::exactly(&batch)) };
        let mut executable = session.load_with(&g, &options).unwrap();
        session.run(&mut executable, &batch, &[("x", &input)]).unwrap();
        let all: Vec<Vec<u32>> = parameters
            .iter()
            .map(|p| {
                session.output(&executable, &p.name).unwrap().f32s().unwrap().iter().map(|v| v.to_bits()).collect()
            })
            .collect();
        (all, session.allocated().1)
    };
    let (whole, held) = run(Measures::default());
    let (parts, less) = run(segments(Keep::Nothing, 128));
    assert!(whole == parts, "the bits differ");
    assert!(less * 4 < held, "{less} bytes in segments, {held} whole");
    assert!(whole[1].iter().any(|&bits| f32::from_bits(bits) != 0.0));
}

/// Two layers over one time axis, the second beginning from the states that the first ends with: four stages, of which the
/// last needs gradients that only the one before can compute.
#[test]
fn states_that_go_from_layer_to_layer_keep_their_gradients() {
    let (i, h) = (3, 6);
    let batch = Batch::ragged(&[200, 64, 130, 1, 200]).unwrap();
    let rows = batch.axis(0).unwrap().rows();
    let mut g = Graph::new();
    let x = g.input("x", [N, i.into()], DType::F32).unwrap();
    let (mut all, mut values) = (Vec::new(), Vec::new());
    let mut layer = |g: &mut Graph, x: Value, width: usize, state: Option<(Value, Value)>, name: &str| {
        let own: Vec<Value> = lstm_parameters(&LstmConfig::new(width, h), 0)
            .into_iter()
            .map(|p| {
                let value = g.persistent(&format!("{name}.{}", p.name), &p.shape).unwrap();
                all.push((format!("{name}.{}", p.name), p.shape));
                values.push(value);
                value
            })
            .collect();
        let weights = LstmWeights::new(own[0], own[1]).bias(own.get(2).copied(), own.get(3).copied());
        g.lstm(x, state, &weights).unwrap()
    };
    let first = layer(&mut g, x, i, None, "first");
    let second = layer(&mut g, first.y, h, Some((first.h_n, first.c_n)), "second");
    let ends = g.add(second.h_n, first.c_n).unwrap();
    let losses = [g.sum_of_squares(&[ends]).unwrap(), g.sum_of_squares(&[second.y]).unwrap()];
    let loss = g.sum(&losses).unwrap();
    values.push(x);
    for (at, gradient) in g.gradients(loss, &values).unwrap().into_iter().enumerate() {
        g.output(&format!("d{at}"), gradient).unwrap();
    }
    let input = random(&[rows, i], 3);
    for device in devices().into_iter().filter(|d| d.label() != "reference") {
        let run = |measures: Measures| {
            let mut session = device.session().unwrap();
            for (at, (name, shape)) in all.iter().enumerate() {
                session.set(name, &random(shape, 10 + at as u64)).unwrap();
            }
            let options =
                CompileOptions { measures: Some(measures), ..CompileOptions::new(&Capacity::exactly(&batch)) };
            let mut executable = session.load_with(&g, &options).unwrap();
            let mut bits = Vec::new();
            for _ in 0..2 {
                session.run(&mut executable, &batch, &[("x", &input)]).unwrap();
                bits = (0..values.len()).map(|at| session.output(&executable, &format!("d{at}")).unwrap()).collect();
            }
            bits
        };
        let whole = run(Measures::default());
        for keep in [Keep::Outputs, Keep::Nothing] {
            assert_eq!(run(segments(keep, 64)), whole, "{device:?} {keep:?}");
        }
        if device.label() != "cpu" {
            let offloaded = Measures { offload: true, ..segments(Keep::Nothing, 64) };
            assert_eq!(run(offloaded), whole, "{device:?} offloaded");
        }
    }
}

/// What cannot run in parts is refused where parts are asked for, and runs whole otherwise.
#[test]
fn what_cannot_run_in_parts_is_refused() {
    let batch = Batch::dense(200, 2).unwrap();
    let mut g = Graph::new();
    let x = g.input("x", [N, 3.into()], DType::F32).unwrap();
    let w = g.persistent("w", [3, 3]).unwrap();
    let y = g.linear(x, w, None).unwrap();
    let loss = g.sum_of_squares(&[y, w]).unwrap();
    g.output("loss", loss).unwrap();
    let cpu = Device::cpu_with_threads(1).unwrap();
    let options =
        |measures| CompileOptions { measures: Some(measures), ..CompileOptions::new(&Capacity::exactly(&batch)) };
    let plan = |measures| compile(&g, cpu.target(), &options(measures));
    // Of a table each part would begin with what it was.
    let mut scattered = Graph::new();
    let (table, rows) = (scattered.persistent("table", [500, 3]).unwrap(), scattered.input("rows", [N], DType::U32));
    let x = scattered.input("x", [N, 3.into()], DType::F32).unwrap();
    let table = scattered.scatter(table, rows.unwrap(), x).unwrap();
    scattered.output("table", table).unwrap();
    for parts in [segments(Keep::Nothing, 64), Measures { sequences: Some(1), ..Measures::default() }] {
        let error = compile(&scattered, cpu.target(), &options(parts)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
    assert!(plan(Measures::default()).is_ok());
    assert_eq!(plan(segments(Keep::Nothing, 64)).unwrap_err().kind(), ErrorKind::Unsupported);
    let mut sums = Graph::new();
    let x = sums.input("x", [N, 3.into()], DType::F32).unwrap();
    let squares = sums.sum_of_squares(&[x]).unwrap();
    sums.output("squares", squares).unwrap();
    assert!(compile(&sums, cpu.target(), &options(segments(Keep::Outputs, 64))).is_ok());
    let error = compile(&sums, cpu.target(), &options(segments(Keep::Outputs, 100))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("a multiple of 64 steps"), "{error}");
    for wrong in [segments(Keep::Nothing, 0), Measures { sequences: Some(0), ..Measures::default() }] {
        assert_eq!(plan(wrong).unwrap_err().kind(), ErrorKind::Argument, "{wrong:?}");
    }
    let offloads = Measures { offload: true, ..segments(Keep::Nothing, 64) };
    assert_eq!(plan(offloads).unwrap_err().kind(), ErrorKind::Unsupported);
}

/// A persistent value that another takes is read before it changes; an input that is also an output or an update stays what
/// it was.
#[test]
fn updates_read_what_was_there_before() {
    let batch = Batch::dense(3, 2).unwrap();
    let mut g = Graph::new();
    let (p, q) = (g.persistent("p", [3]).unwrap(), g.persistent("q", [3]).unwrap());
    let kept = g.persistent("kept", [3]).unwrap();
    let x = g.input("x", [3], DType::F32).unwrap();
    let product = g.elementwise(Expr::Input(0) * Expr::Input(1), &[p, x]).unwrap();
    let doubled = g.add(product, product).unwrap();
    g.update(p, doubled).unwrap();
    g.update(q, p).unwrap();
    g.update(kept, x).unwrap();
    let sum = g.sum(&[doubled]).unwrap();
    g.output("sum", sum).unwrap();
    for device in devices() {
        let mut session = device.session().unwrap();
        let tensor = |values: [f32; 3]| Tensor::new(&[3], values.to_vec()).unwrap();
        session.set("p", &tensor([1.0, 2.0, 3.0])).unwrap();
        session.zero("q", &[3], DType::F32).unwrap();
        session.zero("kept", &[3], DType::F32).unwrap();
        let mut executable = session.load(&g, &Capacity::exactly(&batch)).unwrap();
        session.run(&mut executable, &batch, &[("x", &tensor([2.0, 3.0, 4.0]))]).unwrap();
        assert_eq!(session.get("p").unwrap(), tensor([4.0, 12.0, 24.0]), "{device:?}");
        assert_eq!(session.get("q").unwrap(), tensor([1.0, 2.0, 3.0]), "{device:?}");
        assert_eq!(session.get("kept").unwrap(), tensor([2.0, 3.0, 4.0]), "{device:?}");
        // A program is its session's.
        let error = device.session().unwrap().run(&mut executable, &batch, &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Argument);
    }
}
