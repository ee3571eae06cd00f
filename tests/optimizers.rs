//! Optimisers and schedules do what PyTorch's and Keras's do. The fixture's script is `data/make_optimizers.py`.

mod common;

use mnemon::device::Device;
use mnemon::nn::{Dense, Input, Sequential};
use mnemon::optim::{
    Adadelta, Adagrad, Adam, AdamW, Adamax, Average, AveragedSgd, Clipping, Convention, Course, Lion, Nadam, Optimizer,
    Plateau, RmsProp, Schedule, Sgd, WeightDecay,
};
use mnemon::params::Tensor;
use mnemon::train::{Fit, Loss};
use ndarray::Array3;
use serde::Deserialize;
use std::collections::BTreeMap;

const STEPS: usize = 50;
const SIZES: [usize; 3] = [12, 5, 3];
/// Of the largest weight; the fixture is computed in 64 bits, ours in 32. Rates are small enough for gradients to stay far above their
/// rounding, which rules that divide by a gradient's size make larger.
const TOLERANCE: f64 = 1e-5;

#[derive(Deserialize)]
struct Fixture {
    x: Vec<f32>,
    y: Vec<f32>,
    w: Vec<f32>,
    losses: Vec<f32>,
    optimizers: BTreeMap<String, Vec<f64>>,
    schedules: BTreeMap<String, Vec<f64>>,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("data/optimizers.json")).unwrap()
}

/// A model after all steps, with what it was trained on.
fn trained(device: &Device, fixture: &Fixture, optimizer: Optimizer) -> Sequential {
    let [samples, inputs, outputs] = SIZES;
    let array = |values: &Vec<f32>, width| Array3::from_shape_vec((samples, 1, width), values.clone()).unwrap();
    let mut model = Sequential::new(device);
    model.add(Dense::new(outputs).bias(false));
    model.build(Input::Features(inputs)).unwrap();
    model.set_parameter("dense.weight", &Tensor::new(&[outputs, inputs], fixture.w.clone()).unwrap()).unwrap();
    model.compile(optimizer, Loss::MeanSquaredError).unwrap();
    let fit = Fit { epochs: STEPS, batch_size: samples, shuffle: false, ..Fit::default() };
    model.fit(&array(&fixture.x, inputs), &array(&fixture.y, outputs), &fit).unwrap();
    model
}

fn all() -> Vec<(&'static str, Optimizer)> {
    let torch_sgd = |learning_rate: f64, momentum: f64| Sgd { learning_rate, momentum, ..Sgd::default() };
    let keras_sgd =
        |momentum: f64, nesterov: bool| Sgd { learning_rate: 0.02, momentum, nesterov, convention: Convention::Keras };
    let sgd = || Optimizer::from(torch_sgd(0.05, 0.0));
    let adam = || Adam::pytorch().learning_rate(0.005);
    let centered = |rate, of: RmsProp| RmsProp { momentum: 0.5, centered: true, learning_rate: rate, ..of };
    let decayed = Adagrad { learning_rate_decay: 0.1, initial: 0.2, learning_rate: 0.03, ..Adagrad::pytorch() };
    let asgd = AveragedSgd { learning_rate: 0.1, lambda: 0.01, t0: 20, ..AveragedSgd::default() };
    let cosine = Schedule::Cosine { steps: 40, least: 0.1 };
    let scheduled = Sgd { learning_rate: 0.1, ..keras_sgd(0.9, false) };
    vec![
        ("torch_sgd", sgd()),
        ("torch_sgd_momentum", torch_sgd(0.02, 0.9).into()),
        ("torch_sgd_nesterov", Sgd { nesterov: true, ..torch_sgd(0.02, 0.9) }.into()),
        ("torch_sgd_decay", Optimizer::from(torch_sgd(0.05, 0.5)).weight_decay(WeightDecay::l2(0.1))),
        ("torch_adam", adam().into()),
        ("torch_adam_l2", Optimizer::from(adam()).weight_decay(WeightDecay::l2(0.1))),
        ("torch_adamw", AdamW { adam: adam(), weight_decay: 0.1 }.into()),
        ("torch_amsgrad", Adam { amsgrad: true, ..adam().learning_rate(0.01) }.into()),
        ("torch_nadam", Nadam { learning_rate: 0.005, ..Nadam::pytorch() }.into()),
        ("torch_adamax", Adamax { learning_rate: 0.005, ..Adamax::pytorch() }.into()),
        ("torch_rmsprop", RmsProp { learning_rate: 0.002, ..RmsProp::pytorch() }.into()),
        ("torch_rmsprop_centered", centered(0.002, RmsProp::pytorch()).into()),
        ("torch_adagrad", Adagrad { learning_rate: 0.03, ..Adagrad::pytorch() }.into()),
        ("torch_adagrad_decay", decayed.into()),
        ("torch_adadelta", Adadelta::pytorch().into()),
        ("torch_asgd_average", asgd.into()),
        ("torch_clip_value", sgd().clip(Clipping::Value(0.05))),
        ("torch_clip_norm", Optimizer::from(adam()).clip(Clipping::GlobalNorm(0.1))),
        ("torch_accumulate", Optimizer::from(adam()).accumulate(3)),
        ("keras_sgd_momentum", keras_sgd(0.9, false).into()),
        ("keras_sgd_nesterov", keras_sgd(0.9, true).into()),
        ("keras_adam", Adam::default().learning_rate(0.005).into()),
        ("keras_amsgrad", Adam { amsgrad: true, ..Adam::default().learning_rate(0.01) }.into()),
        ("keras_adamw", AdamW { adam: Adam::default().learning_rate(0.005), weight_decay: 0.1 }.into()),
        ("keras_nadam", Nadam { learning_rate: 0.005, ..Nadam::default() }.into()),
        ("keras_adamax", Adamax { learning_rate: 0.005, ..Adamax::default() }.into()),
        ("keras_rmsprop", RmsProp { learning_rate: 0.002, ..RmsProp::default() }.into()),
        ("keras_rmsprop_centered", centered(0.002, RmsProp::default()).into()),
        ("keras_adagrad", Adagrad { learning_rate: 0.03, ..Adagrad::default() }.into()),
        ("keras_adadelta", Adadelta { learning_rate: 1.0, ..Adadelta::default() }.into()),
        ("keras_lion", Lion { learning_rate: 0.01, ..Lion::default() }.into()),
        (
            "keras_lion_decay",
            Optimizer::from(Lion { learning_rate: 0.01, ..Lion::default() }).weight_decay(WeightDecay::decoupled(0.1)),
        ),
        ("keras_clip_value", sgd().clip(Clipping::Value(0.05))),
        ("keras_clip_norm", sgd().clip(Clipping::Norm(0.1))),
        ("keras_ema", sgd().average(Average::Exponential { momentum: 0.9 })),
        ("keras_schedule", Optimizer::from(scheduled).schedule(cosine)),
    ]
}

#[test]
fn fifty_steps_of_each_are_those_of_pytorch_or_keras_on_every_device() {
    let fixture = fixture();
    let all = all();
    let untested = fixture.optimizers.keys().filter(|name| all.iter().all(|a| a.0 != *name));
    // The parameters themselves beside their average, checked below.
    assert_eq!(untested.collect::<Vec<_>>(), ["torch_asgd"]);
    for device in common::devices() {
        for (name, optimizer) in &all {
            optimizer.validate().unwrap();
            let mut model = trained(&device, &fixture, optimizer.clone());
            check(&device, name, &fixture.optimizers[*name], &model.parameter("dense.weight").unwrap());
            if *name == "torch_asgd_average" {
                let raw = model.session().unwrap().get("optimizer.average.dense.weight").unwrap();
                check(&device, "torch_asgd", &fixture.optimizers["torch_asgd"], &raw);
            }
        }
    }
}

fn check(device: &Device, name: &str, wanted: &[f64], got: &Tensor) {
    let largest = wanted.iter().fold(0.0f64, |most, w| most.max(w.abs()));
    for (got, wanted) in got.f32s().unwrap().iter().zip(wanted) {
        let error = (f64::from(*got) - wanted).abs() / largest;
        assert!(error <= TOLERANCE, "{name} on {}: expected {wanted}, got {got}: {error:.1e}", device.name());
    }
}

#[test]
fn schedules_are_those_of_pytorch_and_keras() {
    use Schedule::*;
    let fixture = fixture();
    let falling = Cosine { steps: 45, least: 0.0 };
    let all = [
        ("step", Step { every: 7, factor: 0.5 }),
        ("milestones", Milestones { at: vec![5, 9, 30], factor: 0.3 }),
        ("exponential", Exponential { every: 1, factor: 0.9 }),
        ("cosine", Cosine { steps: 50, least: 0.1 }),
        ("restarts", CosineRestarts { steps: 6, longer: 2.0, lower: 1.0, least: 0.05 }),
        ("warmup", Warmup { steps: 10, from: 0.1 }),
        ("one_cycle", OneCycle { steps: 51, rise: 0.3, first: 0.05, last: 0.0005 }),
        ("sequence", Sequence(vec![(5, Warmup { steps: 5, from: 0.2 }), (0, falling)])),
        ("product", Product(vec![Step { every: 7, factor: 0.5 }, Exponential { every: 1, factor: 0.95 }])),
        ("keras_exponential", Exponential { every: 10, factor: 0.5 }),
        ("keras_cosine", Cosine { steps: 30, least: 0.2 }),
        ("keras_restarts", CosineRestarts { steps: 8, longer: 1.5, lower: 0.8, least: 0.1 }),
    ];
    assert_eq!(all.len() + 1, fixture.schedules.len());
    for (name, schedule) in &all {
        schedule.validate().unwrap();
        for (step, wanted) in fixture.schedules[*name].iter().enumerate() {
            let got = schedule.factor(step as u32, 0);
            assert!((got - wanted).abs() < 1e-6, "{name} at step {step}: expected {wanted}, got {got}");
            assert_eq!(PerEpoch(Box::new(schedule.clone())).factor(1000, step as u32), got);
        }
    }
    // Keras computes in 32 bits, hence the tolerance. A plateau is told of losses instead.
    let plateau = Plateau { factor: 0.5, patience: 2, cooldown: 1, least: 0.1, ..Plateau::default() };
    let optimizer = Optimizer::from(Sgd { learning_rate: 1.0, ..Sgd::default() }).plateau(plateau);
    let mut course = Course::default();
    for (epoch, wanted) in fixture.schedules["plateau"].iter().enumerate() {
        assert_eq!(optimizer.learning_rate(&course), *wanted, "plateau at epoch {epoch}");
        optimizer.observe(&mut course, fixture.losses[epoch]);
    }
}
