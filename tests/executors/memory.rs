//! The operations of the working memory, on every executor, against the reference.

use super::cases::{Case, check, random};
use super::common::devices;
use mnemon::graph::memory::NOTHING;
use mnemon::graph::{B, Expr, Graph, MemoryOp, N, Ring, Value};
use mnemon::params::{DType, Tensor};
use mnemon::scheduler::{Batch, Capacity};
use std::collections::BTreeMap;

/// Tokens, of which some come often.
const VOCABULARY: usize = 7;

/// Sums, shares and gradients of sequences that stand at `before`, over rings in some rows of a larger table, or in their own
/// rows.
fn case(lengths: &[usize], before: &[usize], features: usize, op: MemoryOp, slotted: bool) -> Case {
    let mut g = Graph::new();
    let batch = Batch::ragged(lengths).unwrap();
    let (rows, sequences) = (batch.axis(0).unwrap().rows(), lengths.len());
    let mut inputs = BTreeMap::new();
    let mut given = |g: &mut Graph, name: &str, seed: u64| {
        inputs.insert(name.to_string(), random(&[rows, features], seed, 0.6));
        g.input(name, [N, features.into()], DType::F32).unwrap()
    };
    let (q, h) = (given(&mut g, "q", 3), given(&mut g, "h", 4));
    inputs.insert("up".into(), random(&[rows, 2], 5, 1.0));
    let up = g.input("up", [N, 2.into()], DType::F32).unwrap();
    let mut tokens = |g: &mut Graph, name: &str, by: usize| {
        let words = (0..rows).map(|row| ((row * by + row / 5) % VOCABULARY) as u32).collect();
        inputs.insert(name.to_string(), Tensor::from_u32(&[rows], words).unwrap());
        g.input(name, [N], DType::U32).unwrap()
    };
    let (read, targets) = (tokens(&mut g, "read", 3), tokens(&mut g, "targets", 5));
    let place = batch.sort_rows(&before.iter().map(|&n| n as f32).collect::<Vec<_>>(), 1);
    inputs.insert("position".into(), Tensor::new(&[sequences, 1], place).unwrap());
    let position = g.input("position", [B, 1.into()], DType::F32).unwrap();
    let slots = slotted.then(|| {
        let slots = (0..sequences as u32).map(|b| (2 * b + 3) % (2 * sequences as u32 + 1)).collect();
        inputs.insert("slots".into(), Tensor::from_u32(&[sequences], slots).unwrap());
        g.input("slots", [B], DType::U32).unwrap()
    });
    // What was read before, and rows of nobody.
    let (count, len) = (if slotted { 2 * sequences + 1 } else { sequences }, op.len(features));
    let mut kept = random(&[count, len], 9, 0.6).into_f32s().unwrap();
    for ring in kept.chunks_mut(len) {
        for (at, token) in ring[op.places * features..].iter_mut().enumerate() {
            *token = (at * at % VOCABULARY) as f32;
        }
    }
    let persistent = BTreeMap::from([("ring".to_string(), Tensor::new(&[count, len], kept).unwrap())]);
    let shape = if slotted { mnemon::graph::Dim::Fixed(count) } else { B };
    let table = g.persistent("ring", [shape, len.into()]).unwrap();

    let ring = Ring { op, values: table, position, slots };
    let values = g.remember(ring, h, read).unwrap();
    g.update(table, values).unwrap();
    let ring = Ring { values, ..ring };
    let finite = |g: &mut Graph, x: Value| {
        let some = Expr::Const(NOTHING / 2.0).less(Expr::Input(0));
        g.elementwise(some.select(Expr::Input(0), Expr::Const(-3.0)), &[x]).unwrap()
    };
    let sums = g.recall(ring, q, h, targets).unwrap();
    let sums = finite(&mut g, sums);
    let (shares, total) = g.recall_places(ring, q).unwrap();
    let by_token = g.recall_tokens(ring, shares, VOCABULARY).unwrap();
    let total = finite(&mut g, total);
    let loss = g.elementwise(Expr::Input(0) * Expr::Input(1), &[sums, up]).unwrap();
    let loss = g.sum(&[loss]).unwrap();
    let gradients = g.gradients(loss, &[q, h]).unwrap();
    let outputs = [sums, shares, total, by_token, gradients[0], gradients[1]];
    for (name, value) in ["sums", "shares", "total", "tokens", "dq", "dh"].into_iter().zip(outputs) {
        g.output(name, value).unwrap();
    }
    let name = format!("memory {lengths:?} after {before:?} H {features} {op:?} slots {slotted}");
    // Sums of up to 150 exponentials of scores up to 10, each of hundreds of products.
    Case { name, graph: g, persistent, inputs, batch, tolerance: 3e-5 }
}

#[test]
fn what_was_read_is_found_again() {
    check(&case(&[3, 0, 9, 1], &[0, 0, 0, 0], 3, MemoryOp::new(4, 9), false));
    check(&case(&[70, 3, 0, 41], &[0, 5, 130, 77], 5, MemoryOp::new(9, 70), true));
    check(&case(&[131, 17], &[1000, 60], 33, MemoryOp::new(150, 131), false));
    check(&case(&[66], &[63], 120, MemoryOp::new(100, 66), true));
    // More columns than one workgroup of a gradient has.
    check(&case(&[7, 12], &[3, 90], 300, MemoryOp::new(20, 12), false));
}

#[test]
fn slots_and_positions_that_are_none_do_no_harm() {
    for device in devices() {
        let mut wrong = case(&[5, 3], &[0, 7], 4, MemoryOp::new(9, 5), true);
        let run = |case: &Case| {
            let mut session = device.session().unwrap();
            case.persistent.iter().for_each(|(name, tensor)| session.set(name, tensor).unwrap());
            let mut program = session.load(&case.graph, &Capacity::exactly(&case.batch)).unwrap();
            let inputs: Vec<(&str, &Tensor)> = case.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
            session.run(&mut program, &case.batch, &inputs)?;
            session.output(&program, "sums")?.into_f32s()
        };
        for slots in [vec![5, 0], vec![2, 2]] {
            wrong.inputs.insert("slots".into(), Tensor::from_u32(&[2], slots).unwrap());
            let error = run(&wrong).unwrap_err().to_string();
            assert!(error.contains("slots"), "{device:?}: {error}");
        }
        // A position that no sequence can have is read as one that one can.
        for position in [f32::NAN, -3.0, 1e30, f32::INFINITY] {
            let mut odd = case(&[5, 3], &[0, 7], 4, MemoryOp::new(9, 5), true);
            odd.inputs.insert("position".into(), Tensor::new(&[2, 1], vec![position; 2]).unwrap());
            assert_eq!(run(&odd).unwrap().len(), 16, "{device:?} {position}");
        }
    }
}

/// What is not a number is not taken for nothing.
#[test]
fn what_is_not_a_number_stays_so() {
    for device in devices() {
        let mut bad = case(&[6], &[0], 4, MemoryOp::new(9, 6), false);
        let mut h = bad.inputs["h"].clone().into_f32s().unwrap();
        h[5] = f32::NAN;
        bad.inputs.insert("h".into(), Tensor::new(&[6, 4], h).unwrap());
        let mut session = device.session().unwrap();
        bad.persistent.iter().for_each(|(name, tensor)| session.set(name, tensor).unwrap());
        let mut program = session.load(&bad.graph, &Capacity::exactly(&bad.batch)).unwrap();
        let inputs: Vec<(&str, &Tensor)> = bad.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        session.run(&mut program, &bad.batch, &inputs).unwrap();
        let shares = session.output(&program, "shares").unwrap().into_f32s().unwrap();
        // The second step's h is seen from the third on.
        let of_step = |t: usize| &shares[t * shares.len() / 6..(t + 1) * shares.len() / 6];
        assert!(of_step(1).iter().all(|x| x.is_finite()), "{device:?}");
        assert!((2..6).all(|t| of_step(t).iter().any(|x| x.is_nan())), "{device:?}");
    }
}

#[test]
fn a_ring_of_other_sizes_is_refused() {
    let op = MemoryOp::new(10, 20);
    assert_eq!((op.places, op.steps()), (64, 54));
    let mut g = Graph::new();
    let h = g.input("h", [N, 4.into()], DType::F32).unwrap();
    let tokens = g.input("tokens", [N], DType::U32).unwrap();
    let position = g.input("position", [B, 1.into()], DType::F32).unwrap();
    let values = g.input("ring", [B, 64.into()], DType::F32).unwrap();
    let error = g.remember(Ring { op, values, position, slots: None }, h, tokens).unwrap_err().to_string();
    assert!(error.contains("320 values, got 64"), "{error}");
}
