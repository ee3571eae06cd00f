//! Networks that are no straight line, trained: an encoder and a decoder with attention, several outputs, ragged inputs.

mod common;

use common::devices;
use mnemon::device::Device;
use mnemon::error::ErrorKind;
use mnemon::nn::{
    Activation, Attention, Conv1D, Dense, Direction, Dropout, Embedding, Flatten, Input, Lstm, Merge, MergeKind,
    Network, Padding, Pooling, Regularizer, Rules,
};
use mnemon::optim::{Adam, Clipping, Optimizer, Sgd};
use mnemon::params::Tensor;
use mnemon::params::random::Random;
use mnemon::train::{Fit, Loss, Model, Named};

const SAMPLES: usize = 24;
const SOURCE: usize = 6;
const TARGET: usize = 5;

/// Reads a source and says it back with attention; a second output tells which half of the digits is more common.
fn translator() -> Network {
    let mut network = Network::default();
    let source = network.input("source", Input::Tokens);
    let target = network.input("target", Input::Tokens);
    let words = Embedding::new(9, 7).mask_zero(true);
    let read = network.add_named("words", words.clone().into(), &[source]).unwrap();
    let encoded = network.add(Lstm::new(10).return_sequences(true).return_state(true), &read).unwrap();
    let before = network.add_named("words", words.into(), &[target]).unwrap();
    let decoder = Lstm::new(10).return_sequences(true);
    let decoded = network.add(decoder, &[before[0], encoded[1], encoded[2]]).unwrap();
    let seen = network.add(Attention::dot().scale(true), &[decoded[0], encoded[0]]).unwrap();
    let both = network.add(Merge::new(MergeKind::Concatenate), &[decoded[0], seen[0]]).unwrap();
    let both = network.add(Dropout::new(0.1), &both).unwrap();
    let said = network.add(Dense::new(9), &both).unwrap();
    let mean = network.add(Pooling::average(), &encoded[..1]).unwrap();
    let rule = Rules::default().regularizer(Regularizer::l2(1e-3));
    let half = network.add(Dense::new(1).activation(Activation::Sigmoid).kernel(rule), &mean).unwrap();
    network.output("said", said[0]);
    network.output("half", half[0]);
    network
}

/// Digits with zeros behind them, the same shifted by one, and the answers.
fn sentences() -> (Named, Named) {
    let mut random = Random::new(4, 4);
    let (mut source, mut target, mut said, mut half) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        let length = 1 + random.below(SOURCE as u32) as usize;
        let digits: Vec<u32> = (0..length).map(|_| 1 + random.below(7)).collect();
        let at = |i: usize| digits.get(i).copied().unwrap_or(0);
        source.extend((0..SOURCE).map(at));
        // 8 begins, and what was said last is read next.
        target.extend((0..TARGET).map(|t| if t == 0 { 8 } else { at(t - 1) }));
        said.extend((0..TARGET).map(at));
        half.push(f32::from(digits.iter().filter(|&&d| d > 4).count() * 2 > length));
    }
    let tokens = |steps: usize, values: Vec<u32>| Tensor::from_u32(&[SAMPLES, steps], values).unwrap();
    let inputs =
        Named::from([("source".to_string(), tokens(SOURCE, source)), ("target".to_string(), tokens(TARGET, target))]);
    let targets = Named::from([
        ("said".to_string(), tokens(TARGET, said)),
        ("half".to_string(), Tensor::new(&[SAMPLES, 1], half).unwrap()),
    ]);
    (inputs, targets)
}

fn train(device: &Device, epochs: usize) -> (Vec<f32>, f32, Named) {
    let (inputs, targets) = sentences();
    let mut model = Model::initialized(device, &translator(), 3).unwrap();
    let losses = [("said", Loss::CrossEntropy), ("half", Loss::BinaryCrossEntropy { from_logits: false })];
    let adam = Optimizer::from(Adam::default().learning_rate(0.02));
    model.compile(adam.clip(Clipping::GlobalNorm(1.0)), &losses).unwrap();
    let fit = Fit { epochs, batch_size: 7, seed: 2, validation_split: 0.25, ..Fit::default() };
    let history = model.fit(&inputs, &targets, &fit).unwrap();
    assert_eq!(history.val_loss.len(), epochs);
    let loss = model.evaluate(&inputs, &targets).unwrap();
    (history.loss, loss, model.parameters().unwrap())
}

/// Source and target are as long as they are, in no common order, in one batch.
#[test]
fn an_encoder_and_decoder_with_attention_train_alike_on_every_device() {
    let wanted = train(&Device::reference(), 3);
    for device in devices() {
        let got = train(&device, 3);
        assert_eq!(got, train(&device, 3), "{device:?}: one seed, one result");
        for (a, b) in got.0.iter().chain([&got.1]).zip(wanted.0.iter().chain([&wanted.1])) {
            assert!((a - b).abs() <= 2e-4 * b, "{device:?}: {a} {b}");
        }
    }
    let (losses, after, _) = train(&Device::cpu(), 60);
    assert!(losses[59] < 0.4 * losses[0] && after < 0.5 * losses[0], "{losses:?} {after}");
}

/// A sum of two losses is the sum of each alone, and so are the steps that it takes.
#[test]
fn losses_of_several_outputs_add() {
    let (inputs, targets) = sentences();
    let evaluate = |losses: &[(&str, Loss)]| {
        let mut model = Model::initialized(&Device::reference(), &translator(), 3).unwrap();
        model.compile(Sgd::default(), losses).unwrap();
        let named = targets.iter().filter(|(name, _)| losses.iter().any(|l| l.0 == *name));
        model.evaluate(&inputs, &named.map(|(n, t)| (n.clone(), t.clone())).collect()).unwrap()
    };
    let (said, half) = (("said", Loss::CrossEntropy), ("half", Loss::BinaryCrossEntropy { from_logits: false }));
    let (a, b, both) = (evaluate(&[said]), evaluate(&[half]), evaluate(&[said, half]));
    // The regulariser is part of each.
    let penalty = a + b - both;
    assert!(penalty > 1e-5 && penalty < 1e-2, "{a} + {b} = {both} + {penalty}");
}

#[test]
fn ragged_sequences_are_trained_by_their_lengths() {
    let mut network = Network::default();
    let x = network.input("x", Input::Features(2));
    let read = network.add(Lstm::new(5).direction(Direction::Both).return_sequences(true), &[x]).unwrap();
    let y = network.add(Dense::new(1), &read).unwrap();
    network.output("y", y[0]);
    let values = |n: usize, seed: u64| {
        let mut random = Random::new(seed, 1);
        (0..n).map(|_| random.normal() as f32).collect::<Vec<f32>>()
    };
    let lengths = Tensor::from_u32(&[5], vec![4, 0, 7, 2, 7]).unwrap();
    let run = |device: &Device, past: f32| {
        let (mut x, mut y) = (values(5 * 7 * 2, 1), values(5 * 7, 2));
        for (b, &length) in lengths.u32s().unwrap().iter().enumerate() {
            x[(b * 7 + length as usize) * 2..(b + 1) * 14].fill(past);
            y[b * 7 + length as usize..(b + 1) * 7].fill(past);
        }
        let mut model = Model::initialized(device, &network, 1).unwrap();
        model
            .compile(Sgd { learning_rate: 0.1, momentum: 0.9, ..Sgd::default() }, &[("y", Loss::MeanSquaredError)])
            .unwrap();
        let inputs = Named::from([
            ("x".to_string(), Tensor::new(&[5, 7, 2], x).unwrap()),
            ("lengths".to_string(), lengths.clone()),
        ]);
        let targets = Named::from([("y".to_string(), Tensor::new(&[5, 7], y).unwrap())]);
        let fit = Fit { epochs: 5, batch_size: 3, ..Fit::default() };
        let history = model.fit(&inputs, &targets, &fit).unwrap();
        (history.loss, model.parameters().unwrap())
    };
    for device in devices() {
        let (losses, parameters) = run(&device, 0.0);
        assert!(losses[4] < losses[0], "{device:?} {losses:?}");
        assert_eq!((losses, parameters), run(&device, 123.0), "{device:?}: what is past the end has no effect");
    }
}

#[test]
fn states_are_carried_from_run_to_run_until_they_are_reset() {
    let mut network = Network::default();
    let x = network.input("x", Input::Features(1));
    let y = network.add(Lstm::new(3).stateful(true), &[x]).unwrap();
    network.output("y", y[0]);
    for device in devices() {
        let mut model = Model::initialized(&device, &network, 1).unwrap();
        let inputs = Named::from([("x".to_string(), Tensor::new(&[2, 2, 1], vec![1.0, 0.5, -1.0, 0.2]).unwrap())]);
        let first = model.run(&inputs).unwrap();
        assert_ne!(first, model.run(&inputs).unwrap(), "{device:?}");
        model.reset_states().unwrap();
        assert_eq!(first, model.run(&inputs).unwrap(), "{device:?}");
        // Fewer sequences, and none that is shorter than one after it: states have no order of their own.
        let one = Named::from([("x".to_string(), Tensor::zeros(&[1, 2, 1]))]);
        model.run(&one).unwrap();
        model.reset_states().unwrap();
        assert_eq!(first, model.run(&inputs).unwrap(), "{device:?}");
        let mut ragged = inputs.clone();
        ragged.insert("lengths".into(), Tensor::from_u32(&[2], vec![1, 2]).unwrap());
        assert_eq!(model.run(&ragged).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let (inputs, targets) = sentences();
    let mut model = Model::initialized(&Device::reference(), &translator(), 3).unwrap();
    let fit = Fit::default();
    let refused = |model: &mut Model, inputs: &Named, targets: &Named, why: &str| {
        let error = model.fit(inputs, targets, &fit).unwrap_err();
        assert!(error.to_string().contains(why), "{error} should say {why}");
        error.kind()
    };
    assert_eq!(refused(&mut model, &inputs, &targets, "not compiled"), ErrorKind::Argument);
    for (losses, why) in [(&[][..], "at least one output"), (&[("none", Loss::CrossEntropy)], "no one output `none`")] {
        let error = model.compile(Sgd::default(), losses).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let twice = [("said", Loss::CrossEntropy), ("said", Loss::CrossEntropy)];
    assert!(model.compile(Sgd::default(), &twice).unwrap_err().to_string().contains("two losses"));
    model.compile(Sgd::default(), &[("said", Loss::CrossEntropy)]).unwrap();
    refused(&mut model, &inputs, &targets, "no output called `half` is trained");
    let mut only = Named::from([("said".to_string(), targets["said"].clone())]);
    model.fit(&inputs, &only, &fit).unwrap();
    refused(&mut model, &Named::new(), &only, "expected the inputs");
    only.insert("said".into(), Tensor::from_u32(&[SAMPLES, TARGET + 1], vec![0; SAMPLES * (TARGET + 1)]).unwrap());
    assert_eq!(refused(&mut model, &inputs, &only, "expected [24, 5]"), ErrorKind::Shape);
    only.insert("said".into(), Tensor::from_u32(&[SAMPLES, TARGET], vec![9; SAMPLES * TARGET]).unwrap());
    refused(&mut model, &inputs, &only, "classes below 9, got 9");
    only.insert("said".into(), Tensor::new(&[SAMPLES, TARGET], vec![1.0; SAMPLES * TARGET]).unwrap());
    refused(&mut model, &inputs, &only, "said");
}

#[test]
fn sizes_from_elsewhere_are_bounded() {
    let mut network = Network::default();
    let x = network.input("x", Input::Features(1 << 20));
    let fixed = network.fix_steps(x, usize::MAX).unwrap_err();
    assert!(fixed.to_string().contains("steps"), "{fixed}");
    network.fix_steps(x, 1 << 20).unwrap();
    let error = network.add(Flatten {}, &[x]).unwrap_err().to_string();
    assert!(error.contains("values a row"), "{error}");

    let mut lines = Network::default();
    let x = lines.input("x", Input::Features(2));
    lines.output("y", x);
    let y = lines.add(Dense::new(1), &[x]).unwrap();
    lines.outputs[0].1 = y[0];
    let mut model = Model::initialized(&Device::reference(), &lines, 0).unwrap();
    model.compile(Sgd::default(), &[("y", Loss::MeanSquaredError)]).unwrap();
    let mut inputs = Named::from([("x".to_string(), Tensor::zeros(&[3, 2, 2]))]);
    let targets = Named::from([("y".to_string(), Tensor::zeros(&[3, 2, 1]))]);
    for lengths in [vec![1, 2], vec![1, 2, 3], vec![]] {
        inputs.insert("lengths".into(), Tensor::from_u32(&[lengths.len()], lengths).unwrap());
        assert!(model.fit(&inputs, &targets, &Fit::default()).is_err());
    }
}

/// Only states are carried from token to token, so a layer that looks at other steps cannot go on.
#[test]
fn going_on_from_a_prompt_needs_layers_of_one_step() {
    let mut network = Network::default();
    let tokens = network.input("tokens", Input::Tokens);
    let read = network.add(Embedding::new(5, 3), &[tokens]).unwrap();
    let seen = network.add(Conv1D::new(3, 3).padding(Padding::Causal), &read).unwrap();
    let read = network.add(Lstm::new(3).return_sequences(true), &seen).unwrap();
    let logits = network.add(Dense::new(5), &read).unwrap();
    network.output("logits", logits[0]);
    let mut model = Model::initialized(&Device::reference(), &network, 0).unwrap();
    let error = model.greedy(&[1, 2], 3).unwrap_err().to_string();
    assert!(error.contains("conv1d"), "{error}");
}
