//! Whole programs on the host, against plain loops in float64.

use super::{Cpu, Prepared};
use crate::config::GATES;
use crate::graph::builder::LstmWeights;
use crate::graph::{B, Expr, Graph, Kind, N};
use crate::params::random::Random;
use crate::params::{DType, Tensor};
use crate::scheduler::{Batch, Capacity, CompileOptions, Target, compile};
use std::sync::Arc;

/// A processor that holds random values for all that `graph` keeps, with `graph` compiled for `batch`.
fn prepare(graph: &Graph, batch: &Batch, threads: usize) -> (Cpu, Prepared) {
    let options = CompileOptions::new(&Capacity::around(batch));
    let program = Arc::new(compile(graph, Target::CPU, &options).unwrap());
    let mut cpu = Cpu::new(Some(threads)).unwrap();
    for (at, value) in graph.values().iter().enumerate().filter(|(_, v)| v.kind == Kind::Persistent) {
        let shape = options.capacity.resolve(&value.shape).unwrap();
        cpu.declare(&value.name, &shape, DType::F32).unwrap();
        cpu.write(&value.name, &numbers(&shape, at as u64)).unwrap();
    }
    let prepared = cpu.prepare(&program).unwrap();
    (cpu, prepared)
}

fn numbers(shape: &[usize], seed: u64) -> Tensor {
    let mut random = Random::new(seed, 3);
    Tensor::new(shape, (0..shape.iter().product()).map(|_| random.uniform() as f32 - 0.5).collect()).unwrap()
}

fn doubles(tensor: &Tensor) -> Vec<f64> {
    tensor.f32s().unwrap().iter().map(|&x| f64::from(x)).collect()
}

#[test]
fn an_lstm_over_ragged_sequences_matches_plain_loops_on_any_number_of_threads() {
    let (input, hidden) = (5, 19);
    let mut graph = Graph::new();
    let x = graph.input("x", [N, input.into()], DType::F32).unwrap();
    let w = graph.persistent("w", [GATES * hidden, input]).unwrap();
    let u = graph.persistent("u", [GATES * hidden, hidden]).unwrap();
    let bias = graph.persistent("b", [GATES * hidden]).unwrap();
    let weights = LstmWeights::new(w, u).bias(Some(bias), None);
    let h0 = graph.persistent("h0", [B, hidden.into()]).unwrap();
    let c0 = graph.persistent("c0", [B, hidden.into()]).unwrap();
    let out = graph.lstm(x, Some((h0, c0)), &weights).unwrap();
    graph.output("y", out.y).unwrap();
    graph.output("h_n", out.h_n).unwrap();
    graph.output("c_n", out.c_n).unwrap();
    // More rows than one chunk of timesteps has.
    let batch = Batch::ragged(&[3, 370, 0, 12, 370]).unwrap();
    let axis = batch.axis(0).unwrap();
    let x = numbers(&[axis.rows(), input], 99);

    let mut runs = Vec::new();
    for threads in [1, 2, 3] {
        let (mut cpu, mut prepared) = prepare(&graph, &batch, threads);
        cpu.run(&mut prepared, &batch, std::slice::from_ref(&x)).unwrap();
        runs.push([0, 1, 2].map(|i| cpu.output(&prepared, i).unwrap()));
        if threads > 1 {
            assert_eq!(runs[0], runs[threads - 1], "{threads} threads");
            continue;
        }
        let read = |name| doubles(&cpu.read(name).unwrap());
        let (x, w, u, bias, mut h, mut c) = (doubles(&x), read("w"), read("u"), read("b"), read("h0"), read("c0"));
        let got = runs[0].each_ref().map(doubles);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-5, "expected {b}, got {a}");
        for t in 0..axis.steps() {
            for b in 0..axis.rows_at(t) {
                let row = axis.offset(t) + b;
                let before: Vec<f64> = h[b * hidden..(b + 1) * hidden].to_vec();
                let gate = |k: usize| -> f64 {
                    let of_x: f64 = (0..input).map(|i| w[k * input + i] * x[row * input + i]).sum();
                    bias[k] + of_x + (0..hidden).map(|i| u[k * hidden + i] * before[i]).sum::<f64>()
                };
                let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
                for j in 0..hidden {
                    let [i, f, g, o] = [0, 1, 2, 3].map(|block| gate(block * hidden + j));
                    let at = b * hidden + j;
                    c[at] = sigmoid(f) * c[at] + sigmoid(i) * g.tanh();
                    h[at] = sigmoid(o) * c[at].tanh();
                    close(got[0][row * hidden + j], h[at]);
                }
            }
        }
        got[1].iter().zip(&h).chain(got[2].iter().zip(&c)).for_each(|(&a, &b)| close(a, b));
    }
}

/// Two sequences of more rows than a chunk, whose threads share the units where there are more than two; more sequences than a
/// tile, whose threads share them, or where few of them are active at a time the units, as the weights are many: the same bits,
/// forward and of every gradient.
#[test]
fn threads_that_share_units_change_no_bit_of_a_gradient() {
    check_threads(150, &[250, 190]);
    let many: Vec<usize> = (0..300).map(|b| b * 7 % 4).collect();
    check_threads(230, &many);
    let mut few = [1; 300];
    few[7] = 30;
    check_threads(230, &few);
    // So few of these that two threads share the units, and so many that they share the sequences.
    check_threads(230, &[3; 40]);
    check_threads(230, &[3; 80]);
}

fn check_threads(hidden: usize, lengths: &[usize]) {
    let input = 5;
    let mut graph = Graph::new();
    let x = graph.input("x", [N, input.into()], DType::F32).unwrap();
    let w = graph.persistent("w", [GATES * hidden, input]).unwrap();
    let u = graph.persistent("u", [GATES * hidden, hidden]).unwrap();
    let h0 = graph.persistent("h0", [B, hidden.into()]).unwrap();
    let c0 = graph.persistent("c0", [B, hidden.into()]).unwrap();
    let out = graph.lstm(x, Some((h0, c0)), &LstmWeights::new(w, u)).unwrap();
    let squares = graph.elementwise(Expr::Input(0) * Expr::Input(0), &[out.y]).unwrap();
    let loss = graph.sum(&[squares]).unwrap();
    for (name, gradient) in ["w", "u", "h0", "c0"].iter().zip(graph.gradients(loss, &[w, u, h0, c0]).unwrap()) {
        graph.output(name, gradient).unwrap();
    }
    graph.output("y", out.y).unwrap();
    let batch = Batch::ragged(lengths).unwrap();
    let x = numbers(&[batch.axis(0).unwrap().rows(), input], 99);
    let run = |threads| {
        let (mut cpu, mut prepared) = prepare(&graph, &batch, threads);
        cpu.run(&mut prepared, &batch, std::slice::from_ref(&x)).unwrap();
        [0, 1, 2, 3, 4].map(|i| cpu.output(&prepared, i).unwrap())
    };
    let one = run(1);
    assert!(one.iter().all(|tensor| tensor.f32s().unwrap().iter().any(|&v| v != 0.0)));
    for threads in [2, 3, 5] {
        assert!(one == run(threads), "{threads} threads");
    }
}

#[test]
fn operands_spread_and_values_change_places() {
    let mut graph = Graph::new();
    let x = graph.input("x", [N, 3.into()], DType::F32).unwrap();
    let (p, q) = (graph.persistent("p", [3]).unwrap(), graph.persistent("q", [3]).unwrap());
    let column = graph.input("column", [N, 1.into()], DType::F32).unwrap();
    let expr = Expr::Input(0) * Expr::Input(1) + Expr::Input(2) * Expr::scalar("a");
    let y = graph.elementwise(expr, &[x, p, column]).unwrap();
    graph.output("y", y).unwrap();
    let swapped = graph.elementwise_many(vec![Expr::Input(1), Expr::Input(0)], &[p, q]).unwrap();
    graph.update(p, swapped[0]).unwrap();
    graph.update(q, swapped[1]).unwrap();
    let mut batch = Batch::dense(600, 2).unwrap();
    batch.set_scalar("a", 2.0);
    let (mut cpu, mut prepared) = prepare(&graph, &batch, 2);
    let (p, q) = (cpu.read("p").unwrap(), cpu.read("q").unwrap());
    let (x, column) = (numbers(&[1200, 3], 50), numbers(&[1200, 1], 51));
    cpu.run(&mut prepared, &batch, &[x.clone(), column.clone()]).unwrap();
    let got = cpu.output(&prepared, 0).unwrap();
    let (x, column, weight) = (x.f32s().unwrap(), column.f32s().unwrap(), p.f32s().unwrap());
    for (i, &y) in got.f32s().unwrap().iter().enumerate() {
        assert_eq!(y, x[i] * weight[i % 3] + column[i / 3] * 2.0, "{i}");
    }
    assert_eq!((cpu.read("p").unwrap(), cpu.read("q").unwrap()), (q, p));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut graph = Graph::new();
    let table = graph.persistent("table", [4, 2]).unwrap();
    let tokens = graph.input("tokens", [N], DType::U32).unwrap();
    let y = graph.embedding(table, tokens).unwrap();
    graph.output("y", y).unwrap();
    let batch = Batch::dense(2, 1).unwrap();
    let (mut cpu, mut prepared) = prepare(&graph, &batch, 1);
    let tokens = |t: Vec<u32>| [Tensor::from_u32(&[t.len()], t).unwrap()];
    assert!(cpu.output(&prepared, 0).is_err());
    assert!(cpu.run(&mut prepared, &batch, &tokens(vec![0, 4])).is_err());
    assert!(cpu.run(&mut prepared, &batch, &tokens(vec![0])).is_err());
    assert!(cpu.run(&mut prepared, &batch, &[Tensor::zeros(&[2])]).is_err());
    assert!(cpu.run(&mut prepared, &Batch::dense(99, 1).unwrap(), &[] as &[Tensor]).is_err());
    assert!(cpu.write("table", &Tensor::zeros(&[9])).is_err() && cpu.read("other").is_err());
    cpu.run(&mut prepared, &batch, &tokens(vec![3, 0])).unwrap();
    assert_eq!(cpu.output(&prepared, 0).unwrap().shape(), [2, 2]);
    cpu.declare("table", &[1, 2], DType::F32).unwrap();
    assert!(cpu.run(&mut prepared, &batch, &tokens(vec![3, 0])).is_err());
}
