//! The tuner: what it finds is right, remembered, used, and travels with what was trained by it.
#![cfg(feature = "gpu")]

mod common;

use common::{assert_close, gpus};
use mnemon::config::LstmConfig;
use mnemon::device::{Device, Findings, Tuner};
use mnemon::graph::builder::LstmWeights;
use mnemon::graph::{Graph, N};
use mnemon::nn::{Dense, Input, Lstm, Sequential};
use mnemon::params::{Initializer, Tensor, lstm_parameters};
use mnemon::scheduler::recurrence::{Layer, Threads, Weights};
use mnemon::scheduler::{Batch, Capacity, CompileOptions, Family, Kernels, Recurrence, compile};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("mnemon-tuning-{}-{name}.json", std::process::id()))
}

/// The gradients of a layer's weights, and by which strategies they were computed.
fn gradients(device: &Device) -> (Vec<f64>, Vec<Recurrence>) {
    let mut g = Graph::new();
    let x = g.persistent("x", [N, 12.into()]).unwrap();
    let mut session = device.session().unwrap();
    let batch = Batch::ragged(&[9, 4, 7, 1]).unwrap();
    let rows = batch.axis(0).unwrap().rows();
    let normal =
        |shape: &[usize], of| Tensor::new(shape, Initializer::Normal(0.3).values(shape, 1, of).unwrap()).unwrap();
    session.set("x", &normal(&[rows, 12], 0)).unwrap();
    let mut values = Vec::new();
    for (at, p) in lstm_parameters(&LstmConfig::new(12, 20), 0).iter().enumerate() {
        session.set(&p.name, &normal(&p.shape, 1 + at as u64)).unwrap();
        values.push((p.role, g.persistent(&p.name, &p.shape).unwrap()));
    }
    let weights = LstmWeights::by_role(|role| values.iter().find(|v| v.0 == role).map(|v| v.1)).unwrap();
    let y = g.lstm(x, None, &weights).unwrap().y;
    let loss = g.sum_of_squares(&[y]).unwrap();
    let gradient = g.gradients(loss, &[values[0].1]).unwrap()[0];
    g.output("gradient", gradient).unwrap();
    let mut executable = session.load(&g, &Capacity::exactly(&batch)).unwrap();
    session.run(&mut executable, &batch, &[]).unwrap();
    let got = session.output(&executable, "gradient").unwrap();
    let chosen = executable.program().stage_steps().filter_map(|s| s.recurrence).collect();
    (got.f32s().unwrap().iter().map(|&v| f64::from(v)).collect(), chosen)
}

#[test]
fn findings_are_right_and_remembered() {
    let (wanted, _) = gradients(&Device::reference());
    for device in gpus().into_iter().take(1) {
        let file = file("findings");
        let tuner = Arc::new(Tuner::new(&device, Some(file.clone()), Duration::from_secs(600)).unwrap());
        assert_eq!(tuner.findings(), Findings::default());
        let (got, chosen) = gradients(&device.clone().with_tuner(Arc::clone(&tuner)));
        assert_close("tuned", &got, &wanted, 3e-5);
        let findings = tuner.findings();
        assert_eq!(findings.layers.len(), 2, "one there, one back");
        for (finding, chosen) in findings.layers.iter().zip(&chosen) {
            assert_eq!(finding.pick, *chosen);
            assert!(finding.complete);
            assert!(finding.of.admits(finding.pick, &device.target()));
            assert!((2..=6).contains(&finding.timed.len()), "{} candidates", finding.timed.len());
            let fastest = finding.timed.iter().filter_map(|t| t.1).fold(f64::INFINITY, f64::min);
            let own = finding.timed.iter().find(|t| t.0 == finding.pick).and_then(|t| t.1).unwrap();
            // The table's choice, which is timed first, stays where the difference is within noise.
            let least = if finding.pick == finding.timed[0].0 { 0.95 * own } else { own };
            assert!(least <= fastest, "{finding:?}");
        }
        // The input projection, and the gradient of its weight.
        assert_eq!(findings.products.len(), 2);
        for finding in &findings.products {
            assert!(finding.complete && (2..=6).contains(&finding.timed.len()), "{finding:?}");
            assert!(finding.timed.iter().all(|t| t.1.is_some()), "{finding:?}");
        }
        // Another process finds them there and measures nothing.
        let again = Tuner::new(&device, Some(file.clone()), Duration::ZERO).unwrap();
        assert_eq!(again.findings(), findings);
        // Without time nothing is found, and the table is used.
        let hasty = Arc::new(Tuner::new(&device, None, Duration::ZERO).unwrap());
        let (got, by_table) = gradients(&device.clone().with_tuner(Arc::clone(&hasty)));
        assert_eq!(hasty.findings(), Findings::default());
        assert_eq!((got, by_table), gradients(&device));
        std::fs::write(&file, "[1, 2").unwrap();
        let error = Tuner::new(&device, Some(file.clone()), Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("not a file of findings"), "{error}");
        std::fs::remove_file(&file).unwrap();
    }
}

/// Files of findings and models may hold anything.
#[test]
fn steps_that_no_kernel_has_are_not_taken() {
    for device in gpus() {
        let layer = Layer { backward: false, hidden: 6, output: 6, directions: 1, sequences: 4, normed: false };
        let admits = |rows, units, slices| {
            let threads = Threads { units, slices };
            layer.admits(Recurrence::Step { rows, threads, ahead: false }, &device.target())
        };
        assert!(admits(4, 4, 2));
        for [rows, units, slices] in [[0, 4, 2], [3, 4, 2], [128, 4, 2], [4, 0, 2], [4, 4, 0], [4, 4, 4096]] {
            assert!(!admits(rows, units, slices), "{rows} rows, {units} x {slices} threads");
        }
    }
}

/// What one strategy alone can run is known at once, and not measured again at each load.
#[test]
fn layers_without_a_choice_are_settled() {
    for device in gpus().into_iter().skip(1) {
        let mut g = Graph::new();
        let x = g.persistent("x", [N, 4.into()]).unwrap();
        let config = LstmConfig::new(4, 4).projection(Some(3));
        let values: Vec<_> =
            lstm_parameters(&config, 0).iter().map(|p| (p.role, g.persistent(&p.name, &p.shape).unwrap())).collect();
        let weights = LstmWeights::by_role(|role| values.iter().find(|v| v.0 == role).map(|v| v.1)).unwrap();
        let y = g.lstm(x, None, &weights).unwrap().y;
        g.output("y", y).unwrap();
        let capacity = Capacity::exactly(&Batch::dense(2, 3).unwrap());
        let program = compile(&g, device.target(), &CompileOptions::new(&capacity)).unwrap();
        let tuner = Tuner::new(&device, None, Duration::ZERO).unwrap();
        // Its product has tiles to choose from.
        assert_eq!(tuner.settle(&device, &program).unwrap(), 1);
        assert_eq!(tuner.findings().layers.len(), 1);
    }
}

/// A model that was trained by other kernels than the table's goes on by them after it is loaded, with the same bits.
#[test]
fn choices_travel_with_a_model() {
    for device in gpus().into_iter().take(1) {
        let layer = |backward| Layer { backward, hidden: 6, output: 6, directions: 1, sequences: 4, normed: false };
        let mut kernels = Kernels::default();
        for layer in [false, true].map(layer) {
            let pick = layer.member(Family::Held, &device.target()).unwrap();
            assert!(matches!(pick, Recurrence::Sequence { weights: Weights::Held(_), .. }));
            assert_ne!(pick, layer.by_table(&device.target()).unwrap());
            kernels.picks.insert(layer, pick);
        }
        let mut model = Sequential::new(&device.clone().with_kernels(kernels.clone()));
        model.add(Lstm::new(6)).add(Dense::new(2));
        model.build(Input::Features(3)).unwrap();
        let path = file("model").with_extension("safetensors");
        model.save(&path).unwrap();
        let loaded = Sequential::load(&device, &path).unwrap();
        assert_eq!(loaded.device().kernels(), kernels);
        std::fs::remove_file(&path).unwrap();
    }
}
