//! What is computed in the tests, and the comparison with the reference.

use super::axes;
use super::common::{assert_close, devices, strategies};
use mnemon::config::{Bias, LstmConfig};
use mnemon::graph::builder::LstmWeights;
use mnemon::graph::{B, Expr, Graph, Kind, LstmOp, N, Over, ReduceKind, TimeKind, Value};
use mnemon::params::random::Random;
use mnemon::params::{DType, LstmParameter, Tensor, lstm_parameters};
use mnemon::reference::Reference;
use mnemon::scheduler::{Batch, Capacity, CompileOptions, Target, compile};
use std::collections::BTreeMap;
use std::sync::Arc;

pub struct Case {
    pub name: String,
    pub graph: Graph,
    pub persistent: BTreeMap<String, Tensor>,
    pub inputs: BTreeMap<String, Tensor>,
    pub batch: Batch,
    pub tolerance: f64,
}

pub fn random(shape: &[usize], seed: u64, scale: f64) -> Tensor {
    let mut random = Random::new(seed, 77);
    let data = (0..shape.iter().product()).map(|_| (random.normal() * scale) as f32).collect();
    Tensor::new(shape, data).unwrap()
}

/// A stack of two layers with dropout between, a linear layer and cross entropy, with all gradients as outputs.
pub fn lstm_case(lengths: &[usize], input: usize, hidden: usize, bias: Bias, states: bool, scale: f64) -> Case {
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
pub fn kind_case(lengths: &[usize], config: &LstmConfig, training: bool) -> Case {
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

/// Every other operation, forward and gradient.
pub fn operations_case(rows: usize, features: usize) -> Case {
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
    let places = g.input("places", [B], DType::U32).unwrap();
    let slots = parameter(&mut g, "slots", &[5, 7]);
    let largest = g.over_time(TimeKind::Max, probabilities).unwrap();
    let replaced = g.scatter(slots, places, largest).unwrap();
    let squared = g.sum_of_squares(&[replaced]).unwrap();
    for (name, gradient) in ["d.slots", "d_replaced.w"].into_iter().zip(g.gradients(squared, &[slots, w]).unwrap()) {
        g.output(name, gradient).unwrap();
    }
    g.output("replaced", replaced).unwrap();
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
    let inputs = BTreeMap::from([
        ("tokens".to_string(), Tensor::from_u32(&[n], words).unwrap()),
        ("places".to_string(), Tensor::from_u32(&[3], vec![4, 0, 2]).unwrap()),
    ]);
    let mut batch = batch;
    batch.set_scalar("half", 0.5);
    Case { name: format!("operations T {rows} F {features}"), graph: g, persistent, inputs, batch, tolerance: 2e-5 }
}

/// The outputs of the f64 reference.
pub fn truth(case: &Case) -> BTreeMap<String, Vec<f64>> {
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

pub fn check(case: &Case) {
    check_on(case, &devices());
}

/// [`check`], and by every strategy.
pub fn check_layers(case: &Case) {
    check(case);
    check_on(case, &strategies());
}

pub fn check_on(case: &Case, devices: &[mnemon::device::Device]) {
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

/// A graph of [`axes`] with the loss and all gradients as outputs.
pub fn axes_case(case: &axes::AxesCase) -> Case {
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
