//! Workgroups that meet: what they compute is right, has the same bits where they meet and where they do not, and is counted.
#![cfg(feature = "gpu")]

mod common;

use common::{assert_close, gpus};
use mnemon::config::{Cell, Direction, LstmConfig};
use mnemon::device::{Device, Session};
use mnemon::graph::builder::LstmWeights;
use mnemon::graph::{B, Graph, LstmOp, N};
use mnemon::params::{Initializer, Tensor, lstm_parameters};
use mnemon::scheduler::recurrence::Layer;
use mnemon::scheduler::{Batch, Capacity, CompileOptions, Family, Kernels, Recurrence, compile};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Workgroups that wait for each other need the processor's threads to themselves.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// H, and I.
const SIZES: (usize, usize) = (37, 5);

/// A layer over two directions with peepholes, zoneout and given states, and the gradients of all that it reads.
fn graph(directions: Direction) -> (Graph, Vec<(String, Vec<usize>)>) {
    let (hidden, inputs) = SIZES;
    let cell = Cell { peepholes: true, zoneout_h: 0.2, zoneout_c: 0.1, recurrent_dropout: 0.2, ..Cell::default() };
    let config = LstmConfig::new(inputs, hidden).direction(directions).cell(cell);
    let mut g = Graph::new();
    let x = g.persistent("x", [N, inputs.into()]).unwrap();
    let d = config.direction.count();
    let h0 = g.persistent("h0", [B, (d * hidden).into()]).unwrap();
    let c0 = g.persistent("c0", [B, (d * hidden).into()]).unwrap();
    let mut weights = Vec::new();
    for p in lstm_parameters(&config, 0) {
        let value = g.persistent(&p.name, &p.shape).unwrap();
        weights.push((p, value));
    }
    let of = |d: usize, role: &str| weights.iter().find(|(p, _)| p.direction == d && p.role == role).map(|w| w.1);
    let all: Vec<_> = (0..d).map(|d| LstmWeights::by_role(|role| of(d, role)).unwrap()).collect();
    let op = LstmOp { direction: config.direction, cell, random: Some(3) };
    let layer = g.lstm_layer(x, Some((h0, c0)), &op, &all).unwrap();
    let loss = g.sum_of_squares(&[layer.y, layer.h_n, layer.c_n]).unwrap();
    let mut read = vec![("x".to_string(), x), ("h0".to_string(), h0), ("c0".to_string(), c0)];
    read.extend(weights.iter().map(|(p, value)| (p.name.clone(), *value)));
    let values: Vec<_> = read.iter().map(|r| r.1).collect();
    let gradients = g.gradients(loss, &values).unwrap();
    for ((name, _), gradient) in read.iter().zip(gradients) {
        g.output(&format!("d.{name}"), gradient).unwrap();
    }
    for (name, value) in [("y", layer.y), ("h_n", layer.h_n), ("c_n", layer.c_n)] {
        g.output(name, value).unwrap();
    }
    let shapes = weights.iter().map(|(p, _)| (p.name.clone(), p.shape.clone())).collect();
    (g, shapes)
}

/// Every output of the layer over `batch`, and how many tiles were resumed.
fn outputs(device: &Device, direction: Direction, batch: &Batch) -> (Vec<(String, Vec<f32>)>, u64) {
    let (g, shapes) = graph(direction);
    let mut session: Session = device.session().unwrap();
    let states = [batch.sequences(), direction.count() * SIZES.0];
    let rows = [batch.axis(0).unwrap().rows(), SIZES.1];
    let given = [("x", rows), ("h0", states), ("c0", states)].map(|(name, shape)| (name.to_string(), shape.to_vec()));
    for (at, (name, shape)) in given.into_iter().chain(shapes).enumerate() {
        let values = Initializer::Normal(0.3).values(&shape, 7, at as u64).unwrap();
        session.set(&name, &Tensor::new(&shape, values).unwrap()).unwrap();
    }
    let mut executable = session.load(&g, &Capacity::exactly(batch)).unwrap();
    session.run(&mut executable, batch, &[]).unwrap();
    let names: Vec<String> = g.outputs().iter().map(|o| o.0.clone()).collect();
    let read = |name: String| {
        let values = session.output(&executable, &name).unwrap().f32s().unwrap().to_vec();
        (name, values)
    };
    let all = names.into_iter().map(read).collect();
    (all, session.stalls().unwrap())
}

fn by(family: Family) -> Kernels {
    Kernels { family: Some(family), ..Kernels::default() }
}

/// What the device picks of *grid* for the layer, there and back, with `patience`.
fn picks(device: &Device, direction: Direction, sequences: usize, patience: Option<u32>) -> Kernels {
    let device = device.clone().with_kernels(by(Family::Grid));
    let mut kernels = Kernels::default();
    for backward in [false, true] {
        let layer = Layer {
            backward,
            hidden: SIZES.0,
            output: SIZES.0,
            directions: direction.count(),
            sequences: sequences.next_power_of_two(),
            normed: false,
        };
        let mut pick = layer.member(Family::Grid, &device.target()).unwrap_or_else(|| {
            panic!("expected two workgroups that meet, resident are {}", device.target().limits.resident)
        });
        if let (Recurrence::Grid { patience: own, .. }, Some(patience)) = (&mut pick, patience) {
            *own = patience;
        }
        kernels.picks.insert(layer, pick);
    }
    kernels
}

/// The device under test has to let two workgroups meet; software Vulkan has as many as it has threads.
#[test]
fn what_meets_and_what_does_not_has_the_same_bits() {
    let _alone = alone();
    for device in gpus().into_iter().take(1) {
        for (direction, lengths) in
            [(Direction::Forward, &[9, 4, 7, 0, 1][..]), (Direction::Reverse, &[70, 3]), (Direction::Forward, &[20])]
        {
            let batch = Batch::ragged(lengths).unwrap();
            let (wanted, _) = outputs(&Device::reference(), direction, &batch);
            let of = |patience| {
                let kernels = picks(&device, direction, lengths.len(), patience);
                outputs(&device.clone().with_kernels(kernels), direction, &batch)
            };
            let (met, _) = of(None);
            for ((name, got), (_, wanted)) in met.iter().zip(&wanted) {
                let [got, wanted] = [got, wanted].map(|v| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
                assert_close(&format!("{direction:?} {lengths:?} {name}"), &got, &wanted, 3e-5);
            }
            // Without patience a workgroup leaves unless it is the last to come; one leaves after a few looks sometimes.
            let mut resumed = 0;
            for patience in [0, 30] {
                let (left, stalls) = of(Some(patience));
                assert_eq!(met, left, "{direction:?} {lengths:?}, patience {patience}");
                resumed += stalls;
            }
            assert!(resumed > 0, "somebody left");
        }
    }
}

/// Patience lasts: on a device whose workgroups meet none is resumed.
#[test]
fn workgroups_meet() {
    let _alone = alone();
    for device in gpus().into_iter().take(1) {
        // More steps than one dispatch takes.
        let batch = Batch::ragged(&[70_000, 130]).unwrap();
        let kernels = picks(&device, Direction::Forward, 2, None);
        let (wanted, _) = outputs(&Device::cpu(), Direction::Forward, &batch);
        // The processors of a software GPU may be taken away for longer than it is patient.
        let tries = if device.label() == "software" { 3 } else { 1 };
        let device = device.with_kernels(kernels);
        let undisturbed = (0..tries).any(|_| {
            let (met, stalls) = outputs(&device, Direction::Forward, &batch);
            for ((name, got), (_, wanted)) in met.iter().zip(&wanted) {
                let [got, wanted] = [got, wanted].map(|v| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>());
                // Two executors in 32 bits, each with a rounding of its own at each of 70,000 steps.
                assert_close(name, &got, &wanted, 1e-4);
            }
            stalls == 0
        });
        assert!(undisturbed, "somebody left in each of {tries} runs");
    }
}

/// Nobody is given *grid* who did not ask for it, nor where the device has not shown that it can.
#[test]
fn grid_is_asked_for() {
    let _alone = alone();
    for device in gpus() {
        assert_eq!(device.target().limits.resident, 0);
        let (g, _) = graph(Direction::Forward);
        let capacity = Capacity::exactly(&Batch::dense(4, 2).unwrap());
        let options = CompileOptions { kernels: Some(by(Family::Grid)), ..CompileOptions::new(&capacity) };
        let chosen = |device: &Device| -> Vec<bool> {
            let program = compile(&g, device.target(), &options).unwrap();
            let layers = program.stage_steps().filter_map(|s| s.recurrence);
            layers.map(|r| matches!(r, Recurrence::Grid { .. })).collect()
        };
        assert_eq!(chosen(&device), [false, false]);
        let asked = device.with_kernels(by(Family::Grid));
        let can = asked.target().limits.storage_bindings >= 10 && asked.target().limits.resident >= 2;
        assert_eq!(chosen(&asked), [can, can]);
    }
}
