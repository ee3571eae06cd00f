//! Every executor against the f64 reference, by name, on odd sizes, ragged lengths and both settings of a GPU's limits.

#[path = "../common/axes.rs"]
mod axes;
#[path = "../common/mod.rs"]
mod common;

use common::{assert_close, devices, gpus, strategies};
use mnemon::config::{Activation, Bias, Cell, Direction, LstmConfig, Mask};
use mnemon::device::Device;
use mnemon::graph::builder::LstmWeights;
use mnemon::graph::{B, Expr, Graph, Kind, LstmOp, N, Over, ReduceKind, TimeKind, Value};
use mnemon::params::random::Random;
use mnemon::params::{DType, LstmParameter, Tensor, lstm_parameters};
use mnemon::reference::Reference;
use mnemon::scheduler::products::Tile;
use mnemon::scheduler::recurrence::{Layer, Threads, Weights};
use mnemon::scheduler::{
    Batch, Capacity, CompileOptions, Family, Kernels, Measures, Product, Recurrence, Target, compile,
};
use std::collections::BTreeMap;
use std::sync::Arc;

struct Case {
    name: String,
    graph: Graph,
    persistent: BTreeMap<String, Tensor>,
    inputs: BTreeMap<String, Tensor>,
    batch: Batch,
    tolerance: f64,
}

fn random(shape: &[usize], seed: u64, scale: f64) -> Tensor {
    let mut random = Random::new(seed, 77);
    let data = (0..shape.iter().product()).map(|_| (random.normal() * scale) as f32).collect();
    Tensor::new(shape, data).unwrap()
}

/// A stack of two layers with dropout between, a linear layer and cross entropy, with all gradients as outputs.
fn lstm_case(lengths: &[usize], input: usize, hidden: usize, bias: Bias, states: bool, scale: f64) -> Case {
    let mut g = Graph::new();
    let batch = Batch::ragged(lengths).unwrap().at_step(5, 3);
    let rows = batch.axis(0).unwrap().rows();
    let mut persistent = BTreeMap::new();
    let mut inputs = BTreeMap::new();
    let mut wanted: Vec<(String, Value)> = Vec::new();
    let x = g.input("x", [N, input.into()], DType::F32).unwrap();
    inputs.insert("x".to_string(), random(&[rows, input], 1, scale));
    wanted.push(("x".into(), x));
    let mut y = x;
    let mut ends = Vec::new();
    for layer in 0..2usize {
        let mut values = Vec::new();
        let config = LstmConfig::new(input, hidden).layers(2).bias(bias);
        for LstmParameter { name: full, shape, .. } in lstm_parameters(&config, layer) {
            let v = g.persistent(&full, &shape).unwrap();
            persistent.insert(full.clone(), random(&shape, 10 + wanted.len() as u64, 0.3 * scale));
            wanted.push((full, v));
            values.push(v);
        }
        let weights = LstmWeights::new(values[0], values[1]).bias(values.get(2).copied(), values.get(3).copied());
        let state = states.then(|| {
            ["h0", "c0"].map(|s| {
                let name = format!("{s}_l{layer}");
                let v = g.input(&name, [B, hidden.into()], DType::F32).unwrap();
                inputs.insert(name.clone(), random(&[lengths.len(), hidden], 40 + wanted.len() as u64, 0.5));
                wanted.push((name, v));
                v
            })
        });
        let out = g.lstm(y, state.map(|[h, c]| (h, c)), &weights).unwrap();
        y = g.dropout(out.y, 0.25).unwrap();
        ends.extend([out.h_n, out.c_n]);
    }
    let classes = 5;
    let weight = g.persistent("weight", [classes, hidden]).unwrap();
    persistent.insert("weight".into(), random(&[classes, hidden], 90, 0.5));
    wanted.push(("weight".into(), weight));
    let logits = g.linear(y, weight, None).unwrap();
    let targets = g.input("targets", [N], DType::U32).unwrap();
    let words = (0..rows).map(|r| ((r * 7 + 3) % (classes + 1)) as u32).collect();
    inputs.insert("targets".into(), Tensor::from_u32(&[rows], words).unwrap());
    let loss = g.cross_entropy(logits, targets, Some(classes as u32)).unwrap();
    let squares = g.sum_of_squares(&ends).unwrap();
    let total = g.elementwise(Expr::Input(0) + Expr::Const(0.1) * Expr::Input(1), &[loss.mean, squares]).unwrap();
    let values: Vec<Value> = wanted.iter().map(|w| w.1).collect();
    let gradients = g.gradients(total, &values).unwrap();
    for ((name, _), gradient) in wanted.iter().zip(gradients) {
        g.output(&format!("d.{name}"), gradient).unwrap();
    }
    for (name, v) in [("y", y), ("loss", total), ("h_n", ends[2]), ("c_n", ends[3]), ("logits", logits)] {
        g.output(name, v).unwrap();
    }
    let name = format!("lstm {lengths:?} I {input} H {hidden} {bias:?} states {states} scale {scale}");
    let name = if name.len() > 200 { format!("lstm B {} I {input} H {hidden}", lengths.len()) } else { name };
    Case { name, graph: g, persistent, inputs, batch, tolerance: 3e-5 }
}

/// One layer of any kind over x, with all gradients as outputs.
fn kind_case(lengths: &[usize], config: &LstmConfig, training: bool) -> Case {
    let mut g = Graph::new();
    let batch = Batch::ragged(lengths).unwrap().at_step(5, 3).starting_at(7);
    let samples: Vec<u32> = (0..lengths.len() as u32).map(|b| 100 + 3 * b).collect();
    let batch = batch.with_samples(&samples).unwrap();
    let rows = batch.axis(0).unwrap().rows();
    let (mut persistent, mut inputs) = (BTreeMap::new(), BTreeMap::new());
    let x = g.input("x", [N, config.input_size.into()], DType::F32).unwrap();
    inputs.insert("x".to_string(), random(&[rows, config.input_size], 1, 1.0));
    let mut op = LstmOp { direction: config.direction, cell: config.cell, random: None };
    if training {
        op.random = Some(g.random_operations(3));
    }
    let mut wanted: Vec<(String, Value)> = vec![("x".into(), x)];
    let mut values = Vec::new();
    for p in lstm_parameters(config, 0) {
        let value = g.persistent(&p.name, &p.shape).unwrap();
        // Larger weights amplify each rounding from step to step.
        let scale = (1.0 / (config.hidden_size as f64).sqrt()).min(0.4);
        persistent.insert(p.name.clone(), random(&p.shape, 10 + wanted.len() as u64, scale));
        wanted.push((p.name.clone(), value));
        values.push((p, value));
    }
    let of = |d: usize, role: &str| values.iter().find(|(p, _)| p.direction == d && p.role == role).map(|v| v.1);
    let weights: Vec<LstmWeights> =
        (0..op.directions()).map(|d| LstmWeights::by_role(|role| of(d, role)).unwrap()).collect();
    let [h0, c0] = [("h0", config.output_size()), ("c0", config.hidden_size)].map(|(name, n)| {
        let columns = op.directions() * n;
        inputs.insert(name.to_string(), random(&[lengths.len(), columns], 40 + n as u64, 0.5));
        let value = g.input(name, [B, columns.into()], DType::F32).unwrap();
        wanted.push((name.to_string(), value));
        value
    });
    let out = g.lstm_layer(x, Some((h0, c0)), &op, &weights).unwrap();
    let mut sums = Vec::new();
    for (at, (name, value)) in [("y", out.y), ("h_n", out.h_n), ("c_n", out.c_n)].into_iter().enumerate() {
        let shape = g.shape(value).clone();
        let up = g.input(&format!("up.{name}"), shape.clone(), DType::F32).unwrap();
        let sizes = batch.resolve(&shape).unwrap();
        inputs.insert(format!("up.{name}"), random(&sizes, 70 + at as u64, 1.0));
        let product = g.elementwise(Expr::Input(0) * Expr::Input(1), &[value, up]).unwrap();
        sums.push(product);
        g.output(name, value).unwrap();
    }
    let total = g.sum(&sums).unwrap();
    let by: Vec<Value> = wanted.iter().map(|w| w.1).collect();
    for ((name, _), gradient) in wanted.iter().zip(g.gradients(total, &by).unwrap()) {
        g.output(&format!("d.{name}"), gradient).unwrap();
    }
    Case {
        name: format!("{config:?} {lengths:?} training {training}"),
        graph: g,
        persistent,
        inputs,
        batch,
        tolerance: 3e-5,
    }
}

/// Pairs of options as in `gradients.rs`, on sizes around tile edges, forward and every gradient, on every executor.
/// Normalised cells run where executors have them.
#[test]
fn lstms_of_every_kind() {
    const LENGTHS: [&[usize]; 4] = [&[2, 0, 5, 1], &[3; 17], &[65, 1, 66], &[4]];
    const SIZES: [[usize; 3]; 3] = [[3, 5, 2], [7, 17, 9], [2, 66, 65]];
    for row in 0..16u32 {
        let bit = |column: u32| (row & column).count_ones() % 2 == 1;
        let [input, hidden, projection] = SIZES[row as usize % 3];
        let lengths = LENGTHS[row as usize / 4];
        // Among thousands of elements one is close enough to a corner for f32 to fall on its other side.
        let corners = hidden * lengths.iter().sum::<usize>() < 1000;
        let cell = Cell {
            peepholes: bit(1),
            clip: (corners && bit(2)).then_some(1.5),
            recurrent_dropout: if bit(3) { 0.3 } else { 0.0 },
            recurrent_mask: if bit(4) { Mask::Step } else { Mask::Sequence },
            zoneout_h: if bit(5) { 0.25 } else { 0.0 },
            zoneout_c: if bit(6) { 0.25 } else { 0.0 },
            coupled: bit(7),
            gradient_clip: (corners && bit(8)).then_some(0.5),
            cell_clip: (corners && bit(9)).then_some(1.2),
            gate: match (bit(10), corners) {
                (true, true) => Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
                (true, false) => Activation::ScaledTanh { alpha: 0.7, beta: 0.4 },
                _ => Activation::Sigmoid,
            },
            ..Cell::default()
        };
        let direction = [Direction::Forward, Direction::Reverse, Direction::Both, Direction::Both][row as usize % 4];
        let config = LstmConfig::new(input, hidden).cell(cell).direction(direction);
        let config = config.projection(bit(13).then_some(projection));
        let case = kind_case(lengths, &config.bias(if bit(14) { Bias::Two } else { Bias::None }), bit(15));
        check(&case);
        // One strategy a row: compiling all for all would take minutes.
        if let Some(device) = strategies().into_iter().cycle().nth(row as usize / 2) {
            check_on(&case, &[device]);
        }
    }
}

/// Every activation in every place.
#[test]
fn lstms_of_every_activation() {
    let (alpha, beta) = (0.7, 0.4);
    let all = [
        Activation::Linear,
        Activation::Relu,
        Activation::Affine { alpha, beta },
        Activation::LeakyRelu { alpha },
        Activation::ThresholdedRelu { alpha: 0.1 },
        Activation::ScaledTanh { alpha, beta },
        Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
        Activation::Elu { alpha },
        Activation::Softsign,
        Activation::Softplus,
        Activation::Selu,
        Activation::Swish,
        Activation::Exponential,
    ];
    for (at, activation) in all.into_iter().enumerate() {
        let next = all[(at + 1) % all.len()];
        let last = all[(at + 5) % all.len()];
        let cell = Cell { gate: activation, candidate: next, output: last, clip: Some(1.0), ..Cell::default() };
        check(&kind_case(&[2, 0, 3], &LstmConfig::new(3, 5).cell(cell), false));
    }
}

/// A normalised cell on the executors that have it; a GPU says that it has not.
#[test]
fn lstms_with_layer_normalisation() {
    const LENGTHS: [&[usize]; 3] = [&[2, 0, 5, 1], &[3; 17], &[4]];
    for (at, (direction, projection, hidden)) in [
        (Direction::Both, None, 9),
        (Direction::Reverse, Some(3), 9),
        (Direction::Forward, None, 67),
        (Direction::Both, Some(18), 66),
        (Direction::Forward, None, 1),
    ]
    .into_iter()
    .enumerate()
    {
        let bit = |n: usize| at >> n & 1 == 1;
        let cell = Cell {
            layer_norm: Some(1e-2),
            peepholes: !bit(0),
            coupled: bit(1),
            zoneout_h: if bit(0) { 0.1 } else { 0.0 },
            zoneout_c: if bit(1) { 0.0 } else { 0.2 },
            recurrent_dropout: if bit(0) { 0.3 } else { 0.0 },
            gate: if bit(2) { Activation::ScaledTanh { alpha: 0.7, beta: 0.4 } } else { Activation::Sigmoid },
            ..Cell::default()
        };
        let config = LstmConfig::new(4, hidden).cell(cell).direction(direction).projection(projection);
        let config = config.bias(if bit(0) { Bias::None } else { Bias::Two });
        check(&kind_case(LENGTHS[at % 3], &config, bit(0)));
    }
}

/// Every other operation, forward and gradient.
fn operations_case(rows: usize, features: usize) -> Case {
    let mut g = Graph::new();
    let batch = Batch::dense(rows, 3).unwrap().at_step(9, 1);
    let n = 3 * rows;
    let vocabulary = 11;
    let mut persistent = BTreeMap::new();
    let mut parameter = |g: &mut Graph, name: &str, shape: &[usize]| {
        persistent.insert(name.to_string(), random(shape, name.len() as u64 * 31, 0.7));
        g.persistent(name, shape).unwrap()
    };
    let table = parameter(&mut g, "table", &[vocabulary, features]);
    let a = parameter(&mut g, "matrix", &[features, 6]);
    let w = parameter(&mut g, "w", &[7, 6]);
    let b = parameter(&mut g, "bias", &[7]);
    let row = parameter(&mut g, "a_row", &[7]);
    let scalar = parameter(&mut g, "one_number", &[1]);
    let tokens = g.input("tokens", [N], DType::U32).unwrap();
    let e = g.embedding(table, tokens).unwrap();
    let e = g.dropout(e, 0.4).unwrap();
    let e = g.view(e, [N, 1.into(), features.into()]).unwrap();
    let e = g.view(e, [N, features.into()]).unwrap();
    let m = g.matmul(e, a).unwrap();
    let m = g.tanh(m).unwrap();
    let z = g.linear(m, w, Some(b)).unwrap();
    let column = g.reduce(ReduceKind::SumOfSquares, Over::Columns, z).unwrap();
    let s = |i| Expr::Input(i);
    let mixed = s(0).sigmoid() * s(1) + (s(2).abs() + Expr::Const(0.5)).ln() * s(3).exp()
        - s(0).max(s(1)) / (Expr::Const(2.0) + s(2).sqrt())
        + s(0).less(s(3)).select(s(0), s(1) * s(1)).min(Expr::Const(3.0));
    let mixed = g.elementwise(mixed, &[z, row, column, scalar]).unwrap();
    let sums = g.reduce(ReduceKind::Sum, Over::Rows, mixed).unwrap();
    let target = g.elementwise(Expr::Input(0) * Expr::scalar("half"), &[z]).unwrap();
    let loss = g.mean_squared_error(mixed, target).unwrap();
    let more = g.sum(&[sums]).unwrap();
    let total = g.add(loss.mean, more).unwrap();
    let wanted = [("table", table), ("matrix", a), ("w", w), ("bias", b), ("a_row", row), ("one_number", scalar)];
    let gradients = g.gradients(total, &wanted.map(|w| w.1)).unwrap();
    for ((name, _), gradient) in wanted.iter().zip(gradients) {
        g.output(&format!("d.{name}"), gradient).unwrap();
    }
    let probabilities = g.softmax(z).unwrap();
    let largest = g.over_time(TimeKind::Max, probabilities).unwrap();
    let total_over_time = g.over_time(TimeKind::Sum, z).unwrap();
    let both = g.concat(&[largest, total_over_time, largest]).unwrap();
    let part = g.slice(both, 5, 11).unwrap();
    let each = g.each_step(0, part).unwrap();
    let normed = g.layer_norm(each, 1e-3, None, None).unwrap();
    let squares = g.sum_of_squares(&[normed, part]).unwrap();
    let d_more = g.gradients(squares, &[w]).unwrap()[0];
    g.output("d_more.w", d_more).unwrap();
    g.output("normed", normed).unwrap();
    let best = g.argmax(z).unwrap();
    for (name, v) in [("mixed", mixed), ("loss", total), ("column", column), ("sums", sums), ("best", best)] {
        g.output(name, v).unwrap();
    }
    let words = (0..n).map(|i| ((i * 5 + i / 3) % (vocabulary - 1)) as u32).collect();
    let inputs = BTreeMap::from([("tokens".to_string(), Tensor::from_u32(&[n], words).unwrap())]);
    let mut batch = batch;
    batch.set_scalar("half", 0.5);
    Case { name: format!("operations T {rows} F {features}"), graph: g, persistent, inputs, batch, tolerance: 2e-5 }
}

/// The outputs of the f64 reference.
fn truth(case: &Case) -> BTreeMap<String, Vec<f64>> {
    let options = CompileOptions::new(&Capacity::exactly(&case.batch));
    let program = Arc::new(compile(&case.graph, Target::REFERENCE, &options).unwrap());
    let mut reference = Reference::<f64>::new();
    for (name, tensor) in &case.persistent {
        reference.declare(name, tensor.shape(), tensor.dtype());
        reference.write(name, tensor).unwrap();
    }
    let mut prepared = reference.prepare(&program).unwrap();
    let inputs: Vec<&Tensor> = program.inputs.iter().map(|(n, _)| &case.inputs[n]).collect();
    reference.run(&mut prepared, &case.batch, &inputs).unwrap();
    let outputs = program.outputs.iter().enumerate();
    outputs.map(|(i, (name, _))| (name.clone(), reference.output_exact(&prepared, i).unwrap())).collect()
}

fn check(case: &Case) {
    check_on(case, &devices());
}

/// [`check`], and by every strategy.
fn check_layers(case: &Case) {
    check(case);
    check_on(case, &strategies());
}

fn check_on(case: &Case, devices: &[mnemon::device::Device]) {
    let expected = truth(case);
    for device in devices {
        let capacities = [Capacity::exactly(&case.batch), Capacity::around(&case.batch)];
        for (capacity, fresh) in capacities.iter().zip([false, true]) {
            let mut session = device.session().unwrap();
            for (name, tensor) in &case.persistent {
                session.set(name, tensor).unwrap();
            }
            let options = CompileOptions { fresh, ..CompileOptions::new(capacity) };
            let mut executable = session.load_with(&case.graph, &options).unwrap();
            let inputs: Vec<(&str, &Tensor)> = case.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
            let mut first: BTreeMap<String, Tensor> = BTreeMap::new();
            for again in [false, true] {
                session.run(&mut executable, &case.batch, &inputs).unwrap();
                for (name, wanted) in &expected {
                    let got = session.output(&executable, name).unwrap();
                    if again {
                        assert_eq!(first[name], got, "{device:?} {}: {name} differs from run to run", case.name);
                        continue;
                    }
                    let values: Vec<f64> = match got.dtype() {
                        DType::F32 => got.f32s().unwrap().iter().map(|&v| f64::from(v)).collect(),
                        DType::U32 => got.u32s().unwrap().iter().map(|&v| f64::from(v)).collect(),
                    };
                    assert_close(&format!("{device:?} {}: {name}", case.name), &values, wanted, case.tolerance);
                    first.insert(name.clone(), got);
                }
            }
        }
    }
}

/// A family that is asked for is what runs, where it can.
#[test]
fn strategies_are_what_was_asked_for() {
    let case = lstm_case(&[3; 9], 7, 50, Bias::Two, false, 1.0);
    let capacity = Capacity::exactly(&case.batch);
    for device in strategies() {
        let kernels = Some(device.kernels().clone());
        let options = CompileOptions { kernels, ..CompileOptions::new(&capacity) };
        let program = compile(&case.graph, device.target(), &options).unwrap();
        let layers: Vec<Recurrence> = program.stage_steps().filter_map(|s| s.recurrence).collect();
        assert_eq!(layers.len(), 4, "two layers, there and back");
        for layer in layers {
            let is = match (device.kernels().family.unwrap(), layer) {
                (Family::Step, Recurrence::Step { .. }) => true,
                (family, Recurrence::Sequence { weights, .. }) => match weights {
                    Weights::Streamed => family == Family::Streamed,
                    Weights::Held(rows) => family == Family::Held && rows > 0,
                    Weights::Registers => family == Family::Registers,
                },
                _ => false,
            };
            assert!(is, "{:?} was asked for, {layer} is what runs", device.kernels().family);
        }
    }
}

/// A step's operands come ahead of their use on real GPUs alone unless it is asked for: slices of no, one and many turns.
#[test]
fn steps_fetch_operands_ahead() {
    for hidden in [5, 50] {
        let case = lstm_case(&[4, 4, 4, 3, 3, 2, 2, 1, 1], 7, hidden, Bias::Two, true, 1.0);
        for device in gpus().into_iter().take(1) {
            let mut kernels = Kernels::default();
            let pick = Recurrence::Step { rows: 16, threads: Threads { units: 4, slices: 4 }, ahead: true };
            for backward in [false, true] {
                let layer = Layer { backward, hidden, output: hidden, directions: 1, sequences: 16, normed: false };
                assert!(layer.admits(pick, &device.target()));
                kernels.picks.insert(layer, pick);
            }
            let options = CompileOptions {
                kernels: Some(kernels.clone()),
                ..CompileOptions::new(&Capacity::exactly(&case.batch))
            };
            let program = compile(&case.graph, device.target(), &options).unwrap();
            assert!(program.stage_steps().filter_map(|s| s.recurrence).all(|r| r == pick));
            check_on(&case, &[device.with_kernels(kernels)]);
        }
    }
}

/// A linear layer whose products cross the edges of tiles in every dimension, over more than two chunks of timesteps.
#[test]
fn products_in_every_tile() {
    let (input, output) = (67, 133);
    let lengths = [130, 75, 3];
    let mut g = Graph::new();
    let batch = Batch::ragged(&lengths).unwrap();
    let rows = batch.axis(0).unwrap().rows();
    let x = g.input("x", [N, input.into()], DType::F32).unwrap();
    let (weight, bias) = (g.persistent("weight", [output, input]).unwrap(), g.persistent("bias", [output]).unwrap());
    let y = g.linear(x, weight, Some(bias)).unwrap();
    let up = g.input("up", [N, output.into()], DType::F32).unwrap();
    let product = g.elementwise(Expr::Input(0) * Expr::Input(1), &[y, up]).unwrap();
    let total = g.sum(&[product]).unwrap();
    for (name, gradient) in
        ["d.x", "d.weight", "d.bias"].into_iter().zip(g.gradients(total, &[x, weight, bias]).unwrap())
    {
        g.output(name, gradient).unwrap();
    }
    g.output("y", y).unwrap();
    let inputs = [("x", random(&[rows, input], 1, 1.0)), ("up", random(&[rows, output], 2, 1.0))];
    let persistent = [("weight", random(&[output, input], 3, 0.3)), ("bias", random(&[output], 4, 0.3))];
    let case = Case {
        name: "linear".into(),
        graph: g,
        persistent: persistent.into_iter().map(|(n, t)| (n.to_string(), t)).collect(),
        inputs: inputs.into_iter().map(|(n, t)| (n.to_string(), t)).collect(),
        batch,
        tolerance: 3e-5,
    };
    check_layers(&case);
    // Every tile and number of parts, none of which divides the rows of the chunks, and more chunks than one dispatch takes.
    let device = gpus().into_iter().take(1);
    let products =
        Tile::ALL.into_iter().flat_map(|t| [Product::Tiled(t), Product::Split(t, 3), Product::Split(t, 200)]);
    let of = |device: Device| {
        move |product| device.clone().with_kernels(Kernels { product: Some(product), ..Kernels::default() })
    };
    let devices: Vec<Device> = device.flat_map(|device| products.clone().map(of(device))).collect();
    check_on(&case, &devices);
}

#[test]
fn lstm_on_odd_sizes() {
    check_layers(&lstm_case(&[1], 1, 1, Bias::Two, true, 1.0));
    check_layers(&lstm_case(&[4, 4], 5, 3, Bias::None, false, 1.0));
    check_layers(&lstm_case(&[9; 3], 13, 17, Bias::One, true, 1.0));
    check_layers(&lstm_case(&[3; 9], 7, 50, Bias::Two, false, 1.0));
    check_layers(&lstm_case(&[2; 5], 6, 129, Bias::Two, true, 1.0));
    check_layers(&lstm_case(&[3; 16], 3, 5, Bias::Two, true, 1.0));
    check_layers(&lstm_case(&[2; 33], 9, 8, Bias::One, true, 1.0));
}

#[test]
fn lstm_on_lengths_in_any_order() {
    check_layers(&lstm_case(&[3, 0, 7, 7, 1], 4, 6, Bias::Two, true, 1.0));
    check_layers(&lstm_case(&[70, 130, 65, 1, 0, 64, 2, 128, 129, 3], 3, 5, Bias::Two, true, 1.0));
    check_layers(&lstm_case(&[0, 2, 0], 3, 5, Bias::One, false, 1.0));
}

/// A sequence of 70,000 steps and a batch of 70,000 sequences, by every strategy that keeps states inside a workgroup.
#[test]
fn lstms_that_are_long_and_wide() {
    let inside = strategies().into_iter().filter(|d| d.kernels().family != Some(Family::Step));
    let inside: Vec<_> = inside.collect();
    let mut wide = vec![1; 70_000];
    wide[3] = 2;
    for lengths in [&[70_000, 3][..], &wide] {
        let case = lstm_case(lengths, 2, 3, Bias::One, true, 1.0);
        check_on(&case, &inside);
    }
}

#[test]
fn lstm_with_saturated_gates() {
    // The f32 reference itself is 3.2e-5 from f64 in d.bias_hh_l0, whose norm is 2e-10: 1 - a gate near 1 cancels. So
    // the conformance cases' bound for gradients is taken. d.h0_l0 has the norm 3e-44, less than f32 can hold.
    check_layers(&Case { tolerance: 1e-4, ..lstm_case(&[6, 3, 5], 4, 9, Bias::Two, true, 40.0) });
}

#[test]
fn other_operations() {
    check(&operations_case(5, 9));
    check(&operations_case(131, 4));
    check(&operations_case(1, 1));
}

/// Different sets of lengths through one program make no pipeline, bind group or buffer, and keep the results.
/// A graph of [`axes`] with the loss and all gradients as outputs.
fn axes_case(case: &axes::AxesCase) -> Case {
    let mut g = Graph::new();
    let batch = case.batch().at_step(5, 3);
    let loss = (case.build)(&mut g).unwrap();
    let (mut persistent, mut inputs, mut wanted) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for (at, info) in g.values().to_vec().iter().enumerate() {
        let tensor = || random(&batch.resolve(&info.shape).unwrap(), 30 + at as u64, 0.6);
        match info.kind {
            Kind::Persistent => {
                persistent.insert(info.name.clone(), tensor());
                wanted.push((info.name.clone(), g.find(&info.name).unwrap()));
            }
            Kind::Input => {
                inputs.insert(info.name.clone(), tensor());
            }
            Kind::Computed => {}
        }
    }
    let gradients = g.gradients(loss, &wanted.iter().map(|w| w.1).collect::<Vec<_>>()).unwrap();
    for ((name, _), gradient) in wanted.iter().zip(gradients) {
        g.output(&format!("d.{name}"), gradient).unwrap();
    }
    g.output("loss", loss).unwrap();
    Case { name: case.name.clone(), graph: g, persistent, inputs, batch, tolerance: 2e-5 }
}

#[test]
fn several_time_axes() {
    axes::cases().iter().chain([&axes::wide()]).for_each(|case| check(&axes_case(case)));
}

/// 1,000 sets of lengths through one program, at once and in micro-batches: nothing is made for them, and they give the
/// reference's numbers.
#[test]
fn replays_create_nothing() {
    let parts = Measures { sequences: Some(2), ..Measures::default() };
    for (device, (rounds, measures)) in
        common::gpus().iter().flat_map(|d| [(1000, None), (100, Some(parts))].map(|case| (d, case)))
    {
        let case = lstm_case(&[5, 3, 6, 6, 0, 2], 3, 5, Bias::Two, true, 1.0);
        let mut session = device.session().unwrap();
        for (name, tensor) in &case.persistent {
            session.set(name, tensor).unwrap();
        }
        let capacity = Capacity { sequences: 6, axes: vec![(6, 36)] };
        let options = CompileOptions { measures, ..CompileOptions::new(&capacity) };
        let mut executable = session.load_with(&case.graph, &options).unwrap();
        let mut random = Random::new(3, 4);
        let mut created = None;
        for round in 0..rounds {
            let lengths: Vec<usize> = (0..6).map(|_| random.below(7) as usize).collect();
            let other = lstm_case(&lengths, 3, 5, Bias::Two, true, 1.0);
            let inputs: Vec<(&str, &Tensor)> = other.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
            session.run(&mut executable, &other.batch, &inputs).unwrap();
            // The weights differ from `other`'s in nothing, since they come from the same seeds.
            for (name, wanted) in &truth(&other) {
                let got = session.output(&executable, name).unwrap();
                let got: Vec<f64> = got.f32s().unwrap().iter().map(|&v| f64::from(v)).collect();
                assert_close(&format!("{device:?} {lengths:?} {name}"), &got, wanted, other.tolerance);
            }
            // The first reading makes what the others are read through.
            assert!(created.is_none_or(|c| c == session.created()), "{device:?}: round {round} created something");
            created = Some(session.created());
        }
    }
}

/// What a device cannot hold is an error that names it, and the session goes on.
#[test]
fn refused_allocations_are_errors() {
    for device in devices() {
        let mut session = device.session().unwrap();
        let kept = Tensor::new(&[2], vec![1.0, 2.0]).unwrap();
        session.set("kept", &kept).unwrap();
        let error = session.zero("vast", &[1 << 24, 1 << 26], DType::F32).unwrap_err();
        assert!(error.kind() == mnemon::error::ErrorKind::Memory && error.to_string().contains("`vast`"), "{error}");
        let mut g = Graph::new();
        let x = g.persistent("kept", [2]).unwrap();
        let vast = g.input("x", [B, (1 << 20).into()], DType::F32).unwrap();
        let sum = g.sum(&[vast, x]).unwrap();
        g.output("sum", sum).unwrap();
        let capacity = Capacity { sequences: 1 << 30, axes: vec![(1, 1 << 30)] };
        if device.kind() != mnemon::device::DeviceKind::Reference {
            // The reference makes its values when it runs.
            let error = session.load(&g, &capacity).err().expect("2^52 bytes do not fit").to_string();
            assert!(error.contains("bytes"), "{device:?}: {error}");
        }
        assert_eq!(session.get("kept").unwrap(), kept);
    }
}

/// Tensors larger than the device's binding limit are split.
#[test]
fn large_tensors_are_split() {
    for device in common::gpus() {
        split(&device, &lstm_case(&[4, 9, 300, 17, 300, 1], 3, 5, Bias::Two, true, 1.0));
        split(&device, &axes_case(&axes::long()));
        let cell = Cell { layer_norm: Some(1e-2), ..Cell::default() };
        for projection in [None, Some(3)] {
            let config = LstmConfig::new(3, 5).cell(cell).direction(Direction::Both).projection(projection);
            split(&device, &kind_case(&[4, 9, 150, 17, 150, 1], &config, false));
        }
    }
}

fn split(device: &mnemon::device::Device, case: &Case) {
    let expected = truth(case);
    // A binding of 20 kB holds 256 rows of gates.
    let mut target = device.target();
    target.limits.binding = 20 * 1024;
    target.limits.buffer = 40 * 1024;
    let options = CompileOptions::new(&Capacity::exactly(&case.batch));
    let program = compile(&case.graph, target, &options).unwrap();
    assert!(program.placement.places.values().any(|p| p.pieces.len() > 2), "nothing was split");
    let mut session = device.session().unwrap();
    for (name, tensor) in &case.persistent {
        session.set(name, tensor).unwrap();
    }
    let mut executable = session.load_program(program).unwrap();
    let inputs: Vec<(&str, &Tensor)> = case.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    session.run(&mut executable, &case.batch, &inputs).unwrap();
    for (name, wanted) in &expected {
        let got = session.output(&executable, name).unwrap();
        let got: Vec<f64> = got.f32s().unwrap().iter().map(|&v| f64::from(v)).collect();
        assert_close(&format!("split {name}"), &got, wanted, case.tolerance);
    }
}

/// Sigmoid, tanh and exp on every device: within 4 ulp of f64 (or both below the smallest normal number), finite for
/// every number, and NaN for NaN, so that a value that is not finite is never hidden.
#[test]
fn functions_are_accurate_and_keep_nan() {
    let mut xs: Vec<f32> = (-4000..=4000).map(|i| i as f32 * 0.025).collect();
    xs.extend([1e-30, -1e-30, 1e4, -1e4, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    for device in devices() {
        let mut g = Graph::new();
        let x = g.input("x", [xs.len()], DType::F32).unwrap();
        let (sigmoid, tanh) = (g.sigmoid(x).unwrap(), g.tanh(x).unwrap());
        g.output("sigmoid", sigmoid).unwrap();
        g.output("tanh", tanh).unwrap();
        let exp = g.elementwise(Expr::Input(0).exp(), &[x]).unwrap();
        g.output("exp", exp).unwrap();
        let batch = Batch::dense(1, 1).unwrap();
        let mut session = device.session().unwrap();
        let mut executable = session.load(&g, &Capacity::exactly(&batch)).unwrap();
        session.run(&mut executable, &batch, &[("x", &Tensor::new(&[xs.len()], xs.clone()).unwrap())]).unwrap();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for (name, truth) in [("sigmoid", sigmoid as fn(f64) -> f64), ("tanh", f64::tanh), ("exp", f64::exp)] {
            let got = session.output(&executable, name).unwrap();
            for (&x, &y) in xs.iter().zip(got.f32s().unwrap()) {
                let wanted = truth(f64::from(x));
                let ulp = f64::from(f32::EPSILON) * wanted.abs() / 2.0;
                let close = (f64::from(y) - wanted).abs() <= (8.0 * ulp).max(f64::from(f32::MIN_POSITIVE));
                let beyond = y == f32::INFINITY && wanted > f64::from(f32::MAX) * 0.999;
                assert!(close || beyond || (x.is_nan() && y.is_nan()), "{device:?}: {name}({x}) = {y}, not {wanted}");
            }
        }
    }
}
