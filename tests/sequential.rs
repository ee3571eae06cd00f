//! `Sequential` from end to end: learning, shapes, bad input, saving.

mod common;

use common::devices;
use mnemon::config::Bias;
use mnemon::device::Device;
use mnemon::error::ErrorKind;
use mnemon::nn::{Activation, Dense, Dropout, Embedding, Init, Input, Lstm, Sequential};
use mnemon::optim::{Adam, Clipping, Convention, Optimizer, Sgd};
use mnemon::params::Tensor;
use mnemon::train::{Fit, Loss};
use ndarray::{Array, Array2, Array3};
use std::ops::ControlFlow;
use std::path::PathBuf;

/// Windows of a sine with the value that follows.
fn waves(samples: usize) -> (Array3<f32>, Array2<f32>) {
    let at = |i: usize| (i as f32 * 0.4).sin();
    let x = Array::from_shape_fn((samples, 7, 1), |(s, t, _)| at(s + t));
    let y = Array::from_shape_fn((samples, 1), |(s, _)| at(s + 7));
    (x, y)
}

fn regression(device: &Device) -> Sequential {
    let mut model = Sequential::new(device);
    model.add(Lstm::new(9).return_sequences(true)).add(Dropout::new(0.2)).add(Lstm::new(5)).add(Dense::new(1));
    model.compile(Adam::default().learning_rate(1e-2), Loss::MeanSquaredError).unwrap();
    model
}

fn values(model: &mut Sequential) -> Vec<Vec<u32>> {
    let names: Vec<String> = model.parameters().into_iter().map(|p| p.name).collect();
    let bits = |t: mnemon::params::Tensor| t.f32s().unwrap().iter().map(|x| x.to_bits()).collect();
    names.iter().map(|n| bits(model.parameter(n).unwrap())).collect()
}

fn file(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("mnemon-sequential-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

/// In the middle of training the device has no memory left for another program: it is opened again, and nothing is different.
#[test]
fn a_refused_allocation_in_the_middle_of_training_changes_nothing() {
    let (x, y) = waves(40);
    for device in common::gpus() {
        let train = |refuses: bool| {
            let device = device.clone().reopen().unwrap();
            let mut model = regression(&device);
            let mut history = model.fit(&x, &y, &Fit { epochs: 1, batch_size: 8, ..Fit::default() }).unwrap();
            if refuses {
                device.refuse_beyond(model.session().unwrap().allocated().0 + 8192);
            }
            let other = Fit { epochs: 2, batch_size: 13, validation_split: 0.2, ..Fit::default() };
            history.loss.extend(model.fit(&x, &y, &other).unwrap().loss);
            (history, values(&mut model))
        };
        assert_eq!(train(true), train(false), "{device:?}");
    }
}

#[test]
fn the_keras_program_learns_on_every_device() {
    let (x_train, y_train) = waves(70);
    for device in devices() {
        let mut model = Sequential::new(&device);
        model.add(Lstm::new(10).activation(Activation::Tanh));
        model.add(Dense::new(1));
        model.compile(Adam::default().learning_rate(1e-2), Loss::MeanSquaredError).unwrap();
        let fit = Fit { epochs: 30, batch_size: 32, validation_split: 0.2, ..Fit::default() };
        let history = model.fit(&x_train, &y_train, &fit).unwrap();
        let (first, last) = (history.loss[0], history.loss[29]);
        assert!(last < 0.1 * first && history.val_loss.len() == 30, "{device:?}: {history:?}");
        let y = model.predict(&x_train).unwrap();
        assert_eq!(y.shape(), [70, 1]);
        let host = y.iter().zip(&y_train).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / 70.0;
        let loss = model.evaluate(&x_train, &y_train).unwrap();
        assert!((loss - host).abs() < 1e-5 * host.max(1e-3), "{device:?}: {loss} {host}");
    }
}

#[test]
fn the_executors_agree_and_each_repeats_its_bits() {
    let (x, y) = waves(21);
    let fit = Fit { epochs: 3, batch_size: 8, seed: 5, ..Fit::default() };
    let run = |device: &Device| {
        let mut model = regression(device);
        let adam = Optimizer::from(Adam::default().learning_rate(1e-2)).clip(Clipping::GlobalNorm(0.5));
        model.compile(adam, Loss::MeanSquaredError).unwrap();
        let history = model.fit(&x, &y, &fit).unwrap();
        (history, values(&mut model))
    };
    let wanted = run(&Device::reference());
    for device in devices() {
        let got = run(&device);
        assert_eq!(got, run(&device), "{device:?}: one seed, one result");
        for (a, b) in got.0.loss.iter().zip(&wanted.0.loss) {
            assert!((a - b).abs() <= 1e-4 * b.abs(), "{device:?}: {a} {b}");
        }
    }
}

#[test]
fn names_shapes_and_summary() {
    let mut model = Sequential::new(&Device::cpu());
    model
        .add(Embedding::new(11, 3))
        .add(Lstm::new(4).return_sequences(true).bias(Bias::Two).initializers(Init::PyTorch));
    model.add(Lstm::new(5).return_sequences(true)).add(Activation::Relu).add(Dense::new(2).name("out"));
    assert!(model.summary().contains("not built") && model.parameters().is_empty());
    model.build(Input::Tokens).unwrap();
    let names: Vec<(String, Vec<usize>)> = model.parameters().into_iter().map(|p| (p.name, p.shape)).collect();
    let wanted: [(&str, &[usize]); 10] = [
        ("embedding.weight", &[11, 3]),
        ("lstm.weight_ih_l0", &[16, 3]),
        ("lstm.weight_hh_l0", &[16, 4]),
        ("lstm.bias_ih_l0", &[16]),
        ("lstm.bias_hh_l0", &[16]),
        ("lstm_1.weight_ih_l0", &[20, 4]),
        ("lstm_1.weight_hh_l0", &[20, 5]),
        ("lstm_1.bias_ih_l0", &[20]),
        ("out.weight", &[2, 5]),
        ("out.bias", &[2]),
    ];
    assert_eq!(names, wanted.map(|(n, s)| (n.to_string(), s.to_vec())));
    let total: usize = wanted.iter().map(|w| w.1.iter().product::<usize>()).sum();
    assert!(model.summary().contains("lstm_1 (lstm)") && model.summary().contains(&total.to_string()));
    let x = Array::from_shape_fn((3, 6), |(s, t)| ((s + t) % 11) as f32);
    assert_eq!(model.predict(&x).unwrap().shape(), [3, 6, 2]);
    model.compile(Adam::default().learning_rate(5e-2), Loss::CrossEntropy).unwrap();
    let y = x.mapv(|v| v % 2.0);
    let history = model.fit(&x, &y, &Fit { epochs: 40, ..Fit::default() }).unwrap();
    assert!(history.loss[39] < 0.5 * history.loss[0], "{history:?}");
}

#[test]
fn keras_initial_values() {
    let mut model = Sequential::new(&Device::cpu());
    model.add(Lstm::new(6));
    model.build(Input::Features(4)).unwrap();
    let bias = model.parameter("lstm.bias_ih_l0").unwrap();
    assert_eq!(&bias.f32s().unwrap()[4..14], [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
    let limit = (6.0f32 / (4.0 + 24.0)).sqrt();
    let kernel = model.parameter("lstm.weight_ih_l0").unwrap();
    assert!(kernel.f32s().unwrap().iter().all(|w| w.abs() <= limit));
}

#[test]
fn bad_input_is_named() {
    let device = Device::cpu();
    let (x, y) = waves(10);
    let fit = Fit::default();
    let says = |result: Result<_, mnemon::error::Error>, kind: ErrorKind, words: &str| {
        let error = result.map(|_: mnemon::train::History| ()).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(words), "{error} lacks {words}");
    };
    let mut bare = Sequential::new(&device);
    bare.add(Lstm::new(3));
    says(bare.fit(&x, &y, &fit), ErrorKind::Argument, "not compiled");
    let error = bare.save(file("bare")).unwrap_err();
    assert!(error.to_string().contains("not built"), "{error}");

    let mut holed = x.clone();
    holed[[3, 2, 0]] = f32::NAN;
    says(regression(&device).fit(&holed, &y, &fit), ErrorKind::Data, "x: expected finite values, got NaN at [3, 2, 0]");
    let mut endless = y.clone();
    endless[[4, 0]] = f32::INFINITY;
    says(regression(&device).fit(&x, &endless, &fit), ErrorKind::Data, "y: expected finite values, got inf at [4, 0]");
    says(regression(&device).fit(&x, &waves(9).1, &fit), ErrorKind::Shape, "y: expected [10, 1]");
    says(regression(&device).fit(&y, &y, &fit), ErrorKind::Shape, "x: expected [samples, T, features], got [10, 1]");
    says(regression(&device).fit(&waves(0).0, &waves(0).1, &fit), ErrorKind::Data, "at least one sample");
    says(regression(&device).fit(&x, &y, &Fit { batch_size: 0, ..Fit::default() }), ErrorKind::Argument, "batch_size");
    let mut built = regression(&device);
    built.build(Input::Features(2)).unwrap();
    says(built.fit(&x, &y, &fit), ErrorKind::Shape, "built for Features(2)");

    let refused = |layers: fn(&mut Sequential), input: Input, kind: ErrorKind, words: &str| {
        let mut model = Sequential::new(&device);
        layers(&mut model);
        let error = model.build(input).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(words), "{error} lacks {words}");
    };
    let features = Input::Features(1);
    refused(|m| _ = m.add(Lstm::new(3).activation(Activation::Softmax)), features, ErrorKind::Argument, "softmax");
    refused(|m| _ = m.add(Lstm::new(3).return_state(true)), features, ErrorKind::Argument, "one output");
    refused(|m| _ = m.add(Lstm::new(3)).add(Lstm::new(3)), features, ErrorKind::Shape, "return_sequences");
    refused(|m| _ = m.add(Dropout::new(1.0)), features, ErrorKind::Argument, "rate");
    refused(|m| _ = m.add(Dense::new(0)), features, ErrorKind::Argument, "units");
    refused(|m| _ = m.add(Dense::new(1)), Input::Tokens, ErrorKind::Shape, "expected floats");
    refused(|_| (), features, ErrorKind::Argument, "no layer");
}

#[test]
fn tokens_and_classes_outside_their_range_are_refused() {
    let mut model = Sequential::new(&Device::cpu());
    model.add(Embedding::new(5, 2)).add(Lstm::new(3)).add(Dense::new(4));
    model.compile(Adam::default(), Loss::CrossEntropy).unwrap();
    let x = Array2::<f32>::ones((2, 3));
    for (x, y, words) in [(5.0, 1.0, "below 5"), (1.0, 4.0, "below 4"), (0.5, 1.0, "integers"), (-1.0, 1.0, "integers")]
    {
        let y = Array::from_elem(2, y);
        let error = model.fit(&Array2::from_elem((2, 3), x), &y, &Fit::default()).unwrap_err().to_string();
        assert!(error.contains(words), "{error} lacks {words}");
    }
    model.fit(&x, &Array::from_elem(2, 3.0), &Fit::default()).unwrap();
}

#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    let (x, y) = waves(60);
    for device in devices() {
        let mut model = regression(&device);
        // In the reader's order, 8 samples a step: the third step meets a square that overflows.
        let mut spiked = y.clone();
        spiked[[20, 0]] = 3e38;
        let fit = Fit { batch_size: 8, shuffle: false, ..Fit::default() };
        let error = model.fit(&x, &spiked, &fit).unwrap_err();
        assert!(error.kind() == ErrorKind::NotFinite && error.to_string().contains("at step 3;"), "{error}");
        let kept = values(&mut model);
        let mut other = regression(&device);
        other.fit(&x.slice(ndarray::s![..16, .., ..]), &y.slice(ndarray::s![..16, ..]), &fit).unwrap();
        assert_eq!(kept, values(&mut other), "{device:?}: parameters are those before the step");
        // And it can go on.
        model.fit(&x, &y, &fit).unwrap();
        assert_ne!(kept, values(&mut model));
    }
}

#[test]
fn training_resumes_bit_for_bit_from_a_file() {
    let (x, y) = waves(21);
    let path = file("resume.safetensors");
    for device in devices() {
        let fit = |epochs| Fit { epochs, batch_size: 8, seed: 3, ..Fit::default() };
        let mut whole = regression(&device);
        let history = whole.fit(&x, &y, &fit(4)).unwrap();
        let mut half = regression(&device);
        half.fit(&x, &y, &fit(2)).unwrap();
        half.save(&path).unwrap();
        let mut resumed = Sequential::load(&device, &path).unwrap();
        assert_eq!(resumed.fit(&x, &y, &fit(2)).unwrap().loss, history.loss[2..]);
        assert_eq!(values(&mut resumed), values(&mut whole));
        assert_eq!(resumed.predict(&x).unwrap(), whole.predict(&x).unwrap());
    }
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = Sequential::load(&Device::cpu(), &path).err().unwrap();
    assert!(error.kind() == ErrorKind::File && error.to_string().contains("resume.safetensors"), "{error}");
}

#[test]
fn a_file_that_claims_other_sizes_is_refused_before_it_allocates() {
    use mnemon::io;
    let path = file("claims.safetensors");
    let mut model = regression(&Device::cpu());
    model.build(Input::Features(1)).unwrap();
    model.save(&path).unwrap();
    let mut claims = io::load(&path).unwrap();
    claims.metadata["model"]["layers"][0]["units"] = 200_000_000.into();
    io::save(&path, &claims).unwrap();
    let error = Sequential::load(&Device::cpu(), &path).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Shape, "{error}");
    claims.metadata["model"]["layers"][0]["units"] = u64::MAX.into();
    io::save(&path, &claims).unwrap();
    assert!(Sequential::load(&Device::cpu(), &path).is_err());
}

#[test]
fn losses_follow_their_formulas() {
    let (x, _) = waves(9);
    let p = |k: usize, s: usize, c: usize| 0.5 + 0.4 * ((s * k + c) as f32 * 0.9).sin();
    type Formula = fn(f64, f64) -> f64;
    let binary: Formula = |p, y| -(y * p.ln() + (1.0 - y) * (1.0 - p).ln());
    let logits: Formula = |z, y| {
        let p = 1.0 / (1.0 + (-z).exp());
        -(y * p.ln() + (1.0 - y) * (1.0 - p).ln())
    };
    let rows: [(Loss, Activation, f64, Formula); 6] = [
        (Loss::MeanSquaredError, Activation::Linear, 1.0, |p, y| (p - y).powi(2)),
        (Loss::MeanAbsoluteError, Activation::Linear, 1.0, |p, y| (p - y).abs()),
        (Loss::Huber { delta: 0.3 }, Activation::Linear, 1.0, |p, y| {
            let d = (p - y).abs();
            if d <= 0.3 { d * d / 2.0 } else { 0.3 * (d - 0.15) }
        }),
        (Loss::BinaryCrossEntropy { from_logits: false }, Activation::Sigmoid, 1.0, binary),
        (Loss::BinaryCrossEntropy { from_logits: true }, Activation::Linear, 1.0, logits),
        // A mean over rows of three classes.
        (Loss::CategoricalCrossEntropy, Activation::Softmax, 3.0, |p, y| -y * p.ln()),
    ];
    for device in devices() {
        for (loss, activation, classes, formula) in rows {
            let mut model = Sequential::new(&device);
            model.add(Lstm::new(4)).add(Dense::new(3).activation(activation));
            model.compile(Adam::default().learning_rate(2e-2), loss).unwrap();
            let y = Array2::from_shape_fn((9, 3), |(s, c)| {
                if activation == Activation::Softmax { p(3, s, c) / 2.0 } else { p(2, s, c) }
            });
            model.build(Input::Features(1)).unwrap();
            let predicted = model.predict(&x).unwrap();
            let values = predicted.iter().zip(&y).map(|(&p, &y)| formula(f64::from(p), f64::from(y)));
            let wanted = values.sum::<f64>() / 27.0 * classes;
            let got = f64::from(model.evaluate(&x, &y).unwrap());
            assert!((got - wanted).abs() < 1e-5 * wanted, "{loss:?} on {device:?}: {got} {wanted}");
            let history = model.fit(&x, &y, &Fit { epochs: 40, batch_size: 9, ..Fit::default() }).unwrap();
            assert!(history.loss[39] < history.loss[0], "{loss:?} on {device:?}: {history:?}");
        }
    }
    let mut model = regression(&Device::cpu());
    let error = model.compile(Adam::default(), Loss::Huber { delta: 0.0 }).unwrap_err();
    assert!(error.to_string().contains("delta must be positive"), "{error}");
    model.compile(Adam::default(), Loss::BinaryCrossEntropy { from_logits: true }).unwrap();
    let error = model.evaluate(&x, &Array2::from_elem((9, 1), 2.0)).unwrap_err();
    assert!(error.to_string().contains("probabilities in [0, 1], got 2"), "{error}");
}

#[test]
fn a_callback_ends_training_and_stateful_layers_carry_their_state() {
    let (x, y) = waves(16);
    let mut model = Sequential::new(&Device::cpu());
    model.add(Lstm::new(4).stateful(true)).add(Dense::new(1));
    model.compile(Adam::default(), Loss::MeanSquaredError).unwrap();
    let error = model.fit(&x, &y, &Fit::default()).unwrap_err();
    assert!(error.to_string().contains("stateful"), "{error}");
    let fit = Fit { epochs: 9, batch_size: 8, shuffle: false, ..Fit::default() };
    let mut seen = 0;
    let history = model.fit_with(&x, &y, &fit, |epoch| {
        seen = epoch.epoch;
        if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((history.unwrap().loss.len(), seen), (3, 3));
    // The second window of 32 begins from the state of the first, so the same values give another output.
    let same = Array3::<f32>::ones((64, 3, 1));
    let out = model.predict(&same).unwrap();
    assert_ne!(out[[0, 0]], out[[32, 0]]);
    assert_ne!(out, model.predict(&same).unwrap(), "each call goes on from the last");
    model.reset_states().unwrap();
    assert_eq!(out, model.predict(&same).unwrap(), "from states of zero");
}

/// y = w x with one weight and one sample: the loss (w x - y)² has the gradient 2 (w x - y) x, small enough here for the
/// place of epsilon to matter.
#[test]
fn optimisers_follow_their_formulas() {
    let (x, y, steps) = (2e-4f64, 1e-3f64, 6);
    let train = |mut optimizer: Optimizer, clip_norm: Option<f32>| -> f64 {
        optimizer.clipping = clip_norm.map(Clipping::GlobalNorm);
        let mut model = Sequential::new(&Device::reference());
        model.add(Dense::new(1).bias(false));
        model.build(Input::Features(1)).unwrap();
        model.set_parameter("dense.weight", &Tensor::new(&[1, 1], vec![0.5]).unwrap()).unwrap();
        model.compile(optimizer, Loss::MeanSquaredError).unwrap();
        let fit = Fit { epochs: steps, batch_size: 1, ..Fit::default() };
        let full = |v: f64| Array3::from_elem((1, 1, 1), v as f32);
        model.fit(&full(x), &full(y), &fit).unwrap();
        f64::from(model.parameter("dense.weight").unwrap().f32s().unwrap()[0])
    };
    let gradient = |w: f64| 2.0 * (w * x - y) * x;
    let check = |got: f64, wanted: f64| assert!((got - wanted).abs() < 1e-5 * (wanted - 0.5).abs(), "{got} {wanted}");

    let (lr, mu) = (1e5, 0.9);
    for clip in [None, Some(1e-7f32)] {
        let (mut w, mut m) = (0.5, 0.0);
        for _ in 0..steps {
            let g: f64 = gradient(w);
            m = mu * m + clip.map_or(g, |c| g * (f64::from(c) / (g.abs() + 1e-6)).min(1.0));
            w -= lr * m;
        }
        check(train(Sgd { learning_rate: lr, momentum: mu, ..Sgd::default() }.into(), clip), w);
    }
    for adam in [Adam::default(), Adam::pytorch(), Adam { epsilon: 1e-7, ..Adam::pytorch() }] {
        let adam = adam.learning_rate(0.1);
        let (mut w, mut m, mut v) = (0.5, 0.0, 0.0);
        for t in 1..=steps as i32 {
            let g: f64 = gradient(w);
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            let (first, second): (f64, f64) = (1.0 - 0.9f64.powi(t), (1.0 - 0.999f64.powi(t)).sqrt());
            w -= match adam.convention {
                Convention::Keras => 0.1 * second / first * m / (v.sqrt() + adam.epsilon),
                Convention::PyTorch => 0.1 / first * m / (v.sqrt() / second + adam.epsilon),
            };
        }
        check(train(adam.into(), None), w);
    }
}
