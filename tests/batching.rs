//! Batches of sequences of any lengths in training: which share one, how far an epoch has come, what they cost and hold.

mod common;

use common::devices;
use mnemon::device::Device;
use mnemon::error::ErrorKind;
use mnemon::nn::{Dense, Embedding, Input, Lstm, Network, RepeatVector, Sequential};
use mnemon::optim::Adam;
use mnemon::params::Tensor;
use mnemon::train::{Batching, Fit, History, Loss, Model, Named};
use ndarray::Array;

const SAMPLES: usize = 60;
const STEPS: usize = 40;

fn lengths() -> Vec<usize> {
    (0..SAMPLES).map(|s| 1 + s * 7919 % STEPS).collect()
}

/// Which of two tokens a sequence has more of.
fn sentences() -> (Named, Named) {
    let token = |s: usize, t: usize| (1 + (s * 31 + t * t * 17 + s * t) % 9) as u32;
    let lengths = lengths();
    let tokens = (0..SAMPLES).flat_map(|s| (0..STEPS).map(move |t| token(s, t))).collect();
    let small = |s: usize| (0..lengths[s]).filter(|&t| token(s, t) < 5).count();
    let classes = (0..SAMPLES).map(|s| u32::from(2 * small(s) > lengths[s])).collect();
    let length = lengths.iter().map(|&n| n as u32).collect();
    let inputs = Named::from([
        ("x".to_string(), Tensor::from_u32(&[SAMPLES, STEPS], tokens).unwrap()),
        ("lengths".to_string(), Tensor::from_u32(&[SAMPLES], length).unwrap()),
    ]);
    (inputs, Named::from([("y".to_string(), Tensor::from_u32(&[SAMPLES], classes).unwrap())]))
}

fn classifier(device: &Device) -> Model {
    let mut network = Network::default();
    let x = network.input("x", Input::Tokens);
    let embedded = network.add(Embedding::new(10, 6), &[x]).unwrap();
    let read = network.add(Lstm::new(8), &embedded).unwrap();
    let classes = network.add(Dense::new(2), &read).unwrap();
    network.output("y", classes[0]);
    let mut model = Model::initialized(device, &network, 1).unwrap();
    model.compile(Adam::default().learning_rate(0.02), &[("y", Loss::CrossEntropy)]).unwrap();
    model
}

fn kinds() -> [Batching; 4] {
    [Batching::Plain, Batching::Sorted { batches: 3 }, Batching::Buckets, Batching::Tokens { most: 90 }]
}

#[test]
fn every_kind_of_batching_learns_and_repeats_its_bits() {
    let (inputs, targets) = sentences();
    let real: usize = lengths().iter().sum();
    for device in devices().iter().skip(1) {
        for batching in kinds() {
            let fit = Fit { epochs: 12, batch_size: 8, batching, seed: 4, ..Fit::default() };
            let run = || {
                let (mut model, mut costs) = (classifier(device), Vec::new());
                let history = model.fit_with(&inputs, &targets, &fit, |epoch| {
                    assert!(epoch.waited >= 0.0 && epoch.waited <= epoch.seconds, "{epoch:?}");
                    costs.push(epoch.cost);
                    std::ops::ControlFlow::Continue(())
                });
                (history.unwrap(), costs, model.parameters().unwrap())
            };
            let (history, costs, parameters) = run();
            assert!(history.loss[11] < 0.8 * history.loss[0], "{device:?} {batching:?}: {history:?}");
            for cost in &costs {
                assert_eq!(cost.real, real as u64, "{batching:?}");
                assert!(cost.real <= cost.computed && cost.computed <= cost.padded + 8 * real as u64, "{cost:?}");
                assert!(device.label() != "cpu" || cost.computed == cost.real, "{cost:?}");
            }
            let (again, _, same) = run();
            assert_eq!((history, parameters), (again, same), "{device:?} {batching:?}");
        }
    }
}

#[test]
fn an_epoch_that_is_cut_into_calls_has_the_bits_of_a_whole_one() {
    let (inputs, targets) = sentences();
    let device = Device::cpu_with_threads(2).unwrap();
    for batching in kinds() {
        let fit = Fit { epochs: 3, batch_size: 8, batching, seed: 9, ..Fit::default() };
        let mut whole = classifier(&device);
        let wanted = whole.fit(&inputs, &targets, &fit).unwrap();
        let (mut cut, mut got) = (classifier(&device), History::default());
        while got.loss.len() < 3 {
            let some = Fit { steps: Some(5), ..fit.clone() };
            got.loss.extend(cut.fit(&inputs, &targets, &some).unwrap().loss);
        }
        // The last call may have begun an epoch more.
        assert_eq!(got.loss[..3], wanted.loss[..], "{batching:?}");
    }
}

#[test]
fn a_model_that_is_saved_in_the_middle_of_an_epoch_goes_on_there() {
    let x = Array::from_shape_fn((30, 5, 1), |(s, t, _)| ((s + 2 * t) as f32 * 0.3).sin());
    let y = Array::from_shape_fn((30, 1), |(s, _)| (s as f32 * 0.3).cos());
    let device = Device::cpu_with_threads(2).unwrap();
    let new = || {
        let mut model = Sequential::new(&device);
        model.add(Lstm::new(6)).add(Dense::new(1));
        model.compile(Adam::default().learning_rate(0.01), Loss::MeanSquaredError).unwrap();
        model
    };
    let fit = Fit { epochs: 2, batch_size: 4, seed: 2, ..Fit::default() };
    let mut whole = new();
    let wanted = whole.fit(&x, &y, &fit).unwrap();
    let mut begun = new();
    assert!(begun.fit(&x, &y, &Fit { steps: Some(5), ..fit.clone() }).unwrap().loss.is_empty());
    let path = std::env::temp_dir().join(format!("mnemon-batching-{}.safetensors", std::process::id()));
    begun.save(&path).unwrap();
    let mut loaded = Sequential::load(&device, &path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(loaded.fit(&x, &y, &fit).unwrap(), wanted);
    let values = |model: &mut Sequential| model.parameter("lstm.weight_hh_l0").unwrap();
    assert_eq!(values(&mut loaded), values(&mut whole));
}

/// A budget that holds a part of what training would hold changes nothing but the time; one that holds too little is
/// refused before the first step.
#[test]
fn training_keeps_a_budget_with_the_same_bits() {
    let steps = 700;
    let x = Array::from_shape_fn((6, steps, 3), |(s, t, f)| ((s + t * (f + 1)) as f32 * 0.1).sin());
    let y = Array::from_shape_fn((6, 2), |(s, f)| (s as f32 * 0.3 + f as f32).cos());
    let fit = Fit { epochs: 2, batch_size: 6, seed: 2, ..Fit::default() };
    let run = |device: &Device| -> mnemon::error::Result<(History, Tensor)> {
        let mut model = Sequential::new(device);
        model.add(Lstm::new(12).return_sequences(true)).add(Lstm::new(12)).add(Dense::new(2));
        model.compile(Adam::default().learning_rate(0.01), Loss::MeanSquaredError)?;
        Ok((model.fit(&x, &y, &fit)?, model.parameter("lstm.weight_hh_l0")?))
    };
    for device in devices().iter().skip(1) {
        let wanted = run(device).unwrap();
        let extra = if device.label() == "cpu" { 0 } else { 1 << 21 };
        let small = device.clone().with_memory(900_000 + extra);
        assert_eq!(run(&small).unwrap(), wanted, "{device:?}");
        let error = run(&device.clone().with_memory(50_000)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
        assert!(error.to_string().contains("needs at least"), "{error}");
    }
}

/// A model whose only time axis is made by a layer trains too.
#[test]
fn steps_that_a_layer_makes_are_trained() {
    let device = Device::cpu_with_threads(2).unwrap();
    let mut network = Network::default();
    let x = network.input("x", Input::Rows(3));
    let repeated = network.add(RepeatVector::new(5), &[x]).unwrap();
    let read = network.add(Lstm::new(4).return_sequences(true), &repeated).unwrap();
    let y = network.add(Dense::new(1), &read).unwrap();
    network.output("y", y[0]);
    let mut model = Model::initialized(&device, &network, 1).unwrap();
    model.compile(Adam::default().learning_rate(0.02), &[("y", Loss::MeanSquaredError)]).unwrap();
    let value = |at: usize| (at as f32 * 0.7).sin();
    let inputs = Named::from([("x".to_string(), Tensor::new(&[9, 3], (0..27).map(value).collect()).unwrap())]);
    let targets = Named::from([("y".to_string(), Tensor::new(&[9, 5, 1], (0..45).map(value).collect()).unwrap())]);
    let history = model.fit(&inputs, &targets, &Fit { epochs: 10, batch_size: 4, ..Fit::default() }).unwrap();
    assert!(history.loss[9] < history.loss[0], "{history:?}");
}

/// A position in an epoch is one among these batches: with others the epoch begins anew.
#[test]
fn other_batches_begin_the_epoch_anew() {
    let (inputs, targets) = sentences();
    let device = Device::cpu_with_threads(2).unwrap();
    let mut model = classifier(&device);
    let some = Fit { batch_size: 8, steps: Some(5), ..Fit::default() };
    assert!(model.fit(&inputs, &targets, &some).unwrap().loss.is_empty());
    let mut met = 0;
    let other = Fit { batch_size: 20, ..Fit::default() };
    let history = model.fit_with(&inputs, &targets, &other, |epoch| {
        met = epoch.cost.real as usize;
        std::ops::ControlFlow::Continue(())
    });
    assert_eq!((history.unwrap().loss.len(), met), (1, lengths().iter().sum()));
}
