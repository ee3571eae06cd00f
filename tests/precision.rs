//! Weights in 16 bits: kernels compute what the reference computes with the same weights rounded, and all else is in 32 bits.
#![cfg(feature = "gpu")]

mod common;

use common::{assert_close, error, gpus, strategies};
use half::f16;
use mnemon::config::{Cell, Direction, LstmConfig};
use mnemon::device::Device;
use mnemon::error::ErrorKind;
use mnemon::graph::builder::LstmWeights;
use mnemon::graph::{Graph, LstmOp, N};
use mnemon::nn::{Dense, Input, Lstm, Sequential};
use mnemon::params::{Initializer, Tensor, lstm_parameters};
use mnemon::scheduler::{Batch, Capacity, Family, Kernels, Precision};
use mnemon::train::{Fit, Loss};
use ndarray::{Array2, Array3};

fn halved(device: Device) -> Device {
    device.with_precision(Precision::F16Weights).unwrap()
}

/// What kernels read in 16 bits.
fn is_halved(name: &str) -> bool {
    ["weight_ih", "weight_hh", "peephole", "dense"].iter().any(|part| name.contains(part))
}

/// Outputs and gradients of a layer and a dense one on top; `rounded` rounds what kernels read in 16 bits, by hand.
fn outputs(device: &Device, config: &LstmConfig, rounded: bool) -> Vec<(String, Vec<f64>)> {
    outputs_of(device, config, rounded, &[5, 9, 1, 7])
}

/// [`outputs`] of a batch of such lengths.
fn outputs_of(device: &Device, config: &LstmConfig, rounded: bool, lengths: &[usize]) -> Vec<(String, Vec<f64>)> {
    let batch = Batch::ragged(lengths).unwrap();
    let mut g = Graph::new();
    let x = g.persistent("x", [N, config.input_size.into()]).unwrap();
    let mut shapes = vec![("x".to_string(), vec![batch.axis(0).unwrap().rows(), config.input_size])];
    let mut read = vec![("x".to_string(), x)];
    let mut weights = Vec::new();
    for p in lstm_parameters(config, 0) {
        let value = g.persistent(&p.name, &p.shape).unwrap();
        shapes.push((p.name.clone(), p.shape.clone()));
        read.push((p.name.clone(), value));
        weights.push((p, value));
    }
    let of = |d: usize, role: &str| weights.iter().find(|(p, _)| p.direction == d && p.role == role).map(|w| w.1);
    let all: Vec<_> =
        (0..config.direction.count()).map(|d| LstmWeights::by_role(|role| of(d, role)).unwrap()).collect();
    let op = LstmOp { direction: config.direction, cell: config.cell, random: None };
    let y = g.lstm_layer(x, None, &op, &all).unwrap().y;
    let width = config.direction.count() * config.projection.unwrap_or(config.hidden_size);
    let dense = g.persistent("dense", [3, width]).unwrap();
    shapes.push(("dense".to_string(), vec![3, width]));
    read.push(("dense".to_string(), dense));
    let z = g.linear(y, dense, None).unwrap();
    let loss = g.sum_of_squares(&[z]).unwrap();
    let values: Vec<_> = read.iter().map(|r| r.1).collect();
    let gradients = g.gradients(loss, &values).unwrap();
    for ((name, _), gradient) in read.iter().zip(gradients) {
        g.output(&format!("d.{name}"), gradient).unwrap();
    }
    g.output("z", z).unwrap();
    let mut session = device.session().unwrap();
    for (at, (name, shape)) in shapes.into_iter().enumerate() {
        let mut values = Initializer::Normal(0.4).values(&shape, 3, at as u64).unwrap();
        if rounded && is_halved(&name) {
            values.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
        }
        session.set(&name, &Tensor::new(&shape, values).unwrap()).unwrap();
    }
    let mut executable = session.load(&g, &Capacity::exactly(&batch)).unwrap();
    session.run(&mut executable, &batch, &[]).unwrap();
    let names: Vec<String> = g.outputs().iter().map(|o| o.0.clone()).collect();
    let read = |name: String| {
        let values =
            session.output(&executable, &name).unwrap().f32s().unwrap().iter().map(|&v| f64::from(v)).collect();
        (name, values)
    };
    names.into_iter().map(read).collect()
}

fn configs() -> Vec<LstmConfig> {
    let peepholes = Cell { peepholes: true, ..Cell::default() };
    let normed = Cell { layer_norm: Some(1e-3), ..Cell::default() };
    vec![
        LstmConfig::new(6, 35).direction(Direction::Both).cell(peepholes),
        LstmConfig::new(3, 18).projection(Some(7)),
        LstmConfig::new(5, 9).cell(normed),
    ]
}

#[test]
fn kernels_read_rounded_weights() {
    for config in configs() {
        let rounded = outputs(&Device::reference(), &config, true);
        let exact = outputs(&Device::reference(), &config, false);
        for device in gpus().into_iter().chain(strategies()) {
            let got = outputs(&halved(device.clone()), &config, false);
            for (((name, got), (_, rounded)), (_, exact)) in got.iter().zip(&rounded).zip(&exact) {
                // The bound of 32 bits: the rounded weights are all that differs.
                let what = format!("{config:?} {:?} {name}", device.kernels().family);
                assert_close(&what, got, rounded, 3e-5);
                // From weights in 32 bits: 2^-11 each, of either sign, through nine steps there and back.
                assert_close(&what, got, exact, 2e-3);
                // That weights were rounded at all shows.
                assert!(error(got, exact).unwrap() > 1e-5, "{what}");
            }
        }
    }
}

/// Matrix units multiply halves: of layers by each strategy, and of products. Without any, weights alone are halves.
#[test]
fn matrix_units_multiply_halves() {
    let lengths: Vec<usize> = (0..19).map(|b| 1 + b * 5 % 9).collect();
    let inside = LstmConfig::new(70, 40);
    for config in configs().into_iter().chain([inside]) {
        let exact = outputs_of(&Device::reference(), &config, false, &lengths);
        for device in gpus() {
            let weights = outputs_of(&halved(device.clone()), &config, false, &lengths);
            let device = device.with_precision(Precision::F16Products).unwrap();
            let has_units = device.target().matrix() > 0;
            let families = [None, Some(Family::Matrix), Some(Family::Registers)];
            for &family in &families[..if has_units { 3 } else { 1 }] {
                let kernels = Kernels { family, ..Kernels::default() };
                let got = outputs_of(&device.clone().with_kernels(kernels), &config, false, &lengths);
                for (((name, got), (_, exact)), (_, weights)) in got.iter().zip(&exact).zip(&weights) {
                    let what = format!("{config:?} {family:?} {name}");
                    // Each operand is within 2^-11 of itself: twice the bound of weights alone, and as much again for what a
                    // rounded state is made of.
                    assert_close(&what, got, exact, 5e-3);
                    assert!(!has_units || got != weights, "{what}: nothing but weights was rounded");
                    assert!(has_units || got == weights, "{what}");
                }
            }
        }
    }
}

/// Steps too small for 16 bits add up in the weights that the optimiser changes.
#[test]
fn the_optimiser_changes_weights_in_32_bits() {
    for device in gpus().into_iter().take(1) {
        let mut model = Sequential::new(&halved(device));
        model.add(Lstm::new(6)).add(Dense::new(1));
        model.build(Input::Features(2)).unwrap();
        let before = model.parameter("lstm.weight_hh_l0").unwrap();
        // A quarter of what separates halves near 1/4, where the largest weights lie, after all steps.
        model.compile(mnemon::optim::Adam::default().learning_rate(1e-6), Loss::MeanSquaredError).unwrap();
        let x = Array3::from_shape_fn((40, 5, 2), |(s, t, i)| ((s + 3 * t + 7 * i) as f32).sin());
        let y = Array2::from_elem((40, 1), 1.0);
        model.fit(&x, &y, &Fit { epochs: 2, batch_size: 8, ..Fit::default() }).unwrap();
        let after = model.parameter("lstm.weight_hh_l0").unwrap();
        let moved = before.f32s().unwrap().iter().zip(after.f32s().unwrap()).filter(|(a, b)| a != b).count();
        assert!(moved > before.len() * 9 / 10, "{moved} of {} weights moved", before.len());
        let halves = after.f32s().unwrap().iter().filter(|v| f16::from_f32(**v).to_f32() == **v).count();
        assert!(halves < after.len() / 10, "{halves} of {} weights are halves", after.len());
    }
}

#[test]
fn what_computes_in_32_bits_says_so() {
    for device in [Device::cpu(), Device::reference()] {
        let error = device.clone().with_precision(Precision::F16Weights).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(device.with_precision(Precision::F32).unwrap().precision(), Precision::F32);
    }
}
