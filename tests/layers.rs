//! Layers around the LSTM in `Sequential`: what rules of parameters do, what layers over steps take and refuse.

mod common;

use common::devices;
use mnemon::config::Mask;
use mnemon::device::Device;
use mnemon::graph::Graph;
use mnemon::nn::{
    Activation, Constraint, Conv1D, Dense, Dropout, Embedding, Flatten, Flip, GraphOptions, Initializer, Input, Layer,
    Lstm, Merge, MergeKind, Network, Padding, Permute, Pooling, Pooling1D, Regularizer, Reshape, Rules, Sequential,
};
use mnemon::optim::{Adam, Sgd};
use mnemon::params::Tensor;
use mnemon::scheduler::{Batch, Capacity};
use mnemon::train::{Fit, Loss, Model, Named};
use ndarray::{Array, Array2, Array3};

fn data(samples: usize, steps: usize, features: usize) -> Array3<f32> {
    Array::from_shape_fn((samples, steps, features), |(s, t, f)| ((s * 7 + t * 3 + f * 5) as f32 * 0.37).sin())
}

fn whole() -> Fit {
    Fit { epochs: 1, batch_size: 100, shuffle: false, ..Fit::default() }
}

/// A layer over rows that the loss does not pull anywhere: its gradient is the regulariser's alone.
#[test]
fn regularisers_pull_and_are_part_of_the_loss() {
    for device in devices() {
        let mut model = Sequential::new(&device);
        let kernel =
            Rules::default().initializer(Initializer::Constant(0.5)).regularizer(Regularizer { l1: 0.25, l2: 0.125 });
        model.add(Pooling::average()).add(Dense::new(3).kernel(kernel).bias(false).activity(Regularizer::l2(0.5)));
        model.compile(Sgd { learning_rate: 0.1, ..Sgd::default() }, Loss::MeanSquaredError).unwrap();
        // x is zero, so y is zero whatever W is.
        let (x, y) = (Array3::<f32>::zeros((4, 2, 2)), Array2::<f32>::zeros((4, 3)));
        let history = model.fit(&x, &y, &whole()).unwrap();
        // Six weights of a half: 0.25 · 3 + 0.125 · 1.5.
        assert!((history.loss[0] - (0.75 + 0.1875)).abs() < 1e-6, "{device:?} {history:?}");
        let wanted = 0.5 - 0.1 * (0.25 + 2.0 * 0.125 * 0.5);
        let w = model.parameter("dense.weight").unwrap().into_f32s().unwrap();
        assert!(w.iter().all(|w| (w - wanted).abs() < 1e-6), "{device:?} {w:?}");
        let loss = model.evaluate(&x, &y).unwrap();
        assert!((loss - 6.0 * (0.25 * wanted + 0.125 * wanted * wanted)).abs() < 1e-6, "{device:?} {loss}");
    }
}

/// What is flipped is read from its end, each sequence from its own; flipped again it is what it was.
#[test]
fn flipped_sequences_are_read_from_their_ends() {
    for device in devices() {
        let mut network = Network::default();
        let x = network.input("x", Input::Features(2));
        let flipped = network.add(Flip {}, &[x]).unwrap()[0];
        let forth = network.add(Lstm::new(3).return_sequences(true), &[flipped]).unwrap()[0];
        let back = network.add(Flip {}, &[forth]).unwrap()[0];
        let backwards = network.add(Lstm::new(3).return_sequences(true).go_backwards(true), &[x]).unwrap()[0];
        for (name, port) in [("forth", forth), ("back", back), ("backwards", backwards), ("flipped", flipped)] {
            network.output(name, port);
        }
        // The same for both layers.
        let values = |shape: &[usize]| (0..shape.iter().product()).map(|at: usize| (at as f32 * 0.7).sin()).collect();
        let specs = network.parameters().unwrap();
        let parameters = specs.iter().map(|s| (s.name.clone(), Tensor::new(&s.shape, values(&s.shape)).unwrap()));
        let mut model = Model::new(&device, &network, &parameters.collect()).unwrap();
        let lengths = [4, 1, 3];
        let x = data(3, 4, 2);
        let given = Named::from([
            ("x".to_string(), Tensor::from_array(x.view().into_dyn())),
            ("lengths".to_string(), Tensor::from_u32(&[3], lengths.to_vec()).unwrap()),
        ]);
        let got = model.run(&given).unwrap();
        assert_eq!(got["forth"], got["backwards"], "{device:?}");
        let array = |name: &str| got[name].to_array().unwrap();
        let (forth, back, flipped) = (array("forth"), array("back"), array("flipped"));
        for (b, &length) in lengths.iter().enumerate() {
            for t in 0..length as usize {
                let last = length as usize - 1 - t;
                assert!((0..3).all(|f| forth[[b, t, f]] == back[[b, last, f]]), "{device:?} {b} {t}");
                assert!((0..2).all(|f| flipped[[b, t, f]] == x[[b, last, f]]), "{device:?} {b} {t}");
            }
        }
        // Values of both orders meet nowhere.
        let [forth, back] = [0, 1].map(|at| network.outputs[at].1);
        let error = network.add(Merge::new(MergeKind::Add), &[back, forth]).unwrap_err();
        assert!(error.to_string().contains("expected inputs alike"), "{error}");
    }
}

/// AR and TAR are means over the steps and the pairs of steps that there are, and part of training alone.
#[test]
fn size_and_changes_of_the_state_add_to_the_loss_of_training() {
    let lengths = [4, 1, 0, 3];
    for device in devices() {
        let mut network = Network::default();
        let x = network.input("x", Input::Features(2));
        let lstm = Lstm::new(3).return_sequences(true).activation_penalty(0.7).temporal_penalty(1.3);
        let h = network.add(lstm, &[x]).unwrap();
        network.output("h", h[0]);
        let mut graph = Graph::new();
        let built = network.build(&mut graph, GraphOptions { training: true, ..GraphOptions::default() }).unwrap();
        let &[penalty] = &built.steady[..] else { panic!("{:?}", built.steady) };
        let weight = graph.find("lstm.weight_hh_l0").unwrap();
        let gradient = graph.gradients(penalty, &[weight]).unwrap()[0];
        for (name, value) in [("penalty", penalty), ("h", built.outputs[0].0), ("gradient", gradient)] {
            graph.output(name, value).unwrap();
        }
        let evaluated = network.build(&mut Graph::new(), GraphOptions::default()).unwrap();
        assert!(evaluated.steady.is_empty() && built.penalties.is_empty());

        let batch = Batch::ragged(&lengths).unwrap();
        let x = Tensor::new(&[8, 2], (0..16).map(|i| (i as f32 * 0.7).sin()).collect()).unwrap();
        let mut session = device.session().unwrap();
        let mut values = std::collections::BTreeMap::new();
        for (at, spec) in network.parameters().unwrap().iter().enumerate() {
            let len = spec.shape.iter().product::<usize>();
            let data = (0..len).map(|i| ((i * 3 + at) as f32 * 1.1).cos()).collect();
            values.insert(spec.name.clone(), Tensor::new(&spec.shape, data).unwrap());
            session.set(&spec.name, &values[&spec.name]).unwrap();
        }
        let mut program = session.load(&graph, &Capacity::exactly(&batch)).unwrap();
        let mut run = |session: &mut mnemon::device::Session| -> (f64, Vec<f32>) {
            session.run(&mut program, &batch, &[("x", &x)]).unwrap();
            let h = session.output(&program, "h").unwrap().into_f32s().unwrap();
            // Packed step by step, the longest first: of 3, 2, 2 and 1 sequences.
            let row = |at: usize| &h[3 * at..3 * at + 3];
            let squares = h.iter().map(|&h| f64::from(h).powi(2)).sum::<f64>() / 24.0;
            let pairs = [(0, 3), (1, 4), (3, 5), (4, 6), (5, 7)];
            let change = |&(a, b): &(usize, usize)| {
                row(a).iter().zip(row(b)).map(|(a, b)| f64::from(b - a).powi(2)).sum::<f64>()
            };
            let changes = pairs.iter().map(change).sum::<f64>() / 15.0;
            let got = f64::from(session.output(&program, "penalty").unwrap().f32s().unwrap()[0]);
            assert!((got - (0.7 * squares + 1.3 * changes)).abs() < 1e-6, "{device:?}: {got} {squares} {changes}");
            (got, session.output(&program, "gradient").unwrap().into_f32s().unwrap())
        };
        let gradient = run(&mut session).1;
        // A central difference of floats, over 0.02.
        let mut moved = |by: f32| {
            let mut data = values["lstm.weight_hh_l0"].f32s().unwrap().to_vec();
            data[5] += by;
            session.set("lstm.weight_hh_l0", &Tensor::new(&[12, 3], data).unwrap()).unwrap();
            run(&mut session).0
        };
        let slope = (moved(0.01) - moved(-0.01)) / 0.02;
        assert!((slope - f64::from(gradient[5])).abs() < 1e-4, "{device:?}: {slope} {}", gradient[5]);
    }
}

#[test]
fn tokens_are_dropped_whole_and_alike_in_a_batch() {
    let mut network = Network::default();
    let x = network.input("x", Input::Tokens);
    let e = network.add(Embedding::new(40, 3).dropout(0.25), &[x]).unwrap();
    network.output("e", e[0]);
    let mut graph = Graph::new();
    let built = network.build(&mut graph, GraphOptions { training: true, ..GraphOptions::default() }).unwrap();
    graph.output("e", built.outputs[0].0).unwrap();
    let words: Vec<u32> = (0..80).map(|at| at % 40).collect();
    let x = Tensor::from_u32(&[80], words).unwrap();
    let mut seen = Vec::new();
    for device in devices() {
        let mut session = device.session().unwrap();
        session.set("embedding.weight", &Tensor::new(&[40, 3], vec![3.0; 120]).unwrap()).unwrap();
        let mut step = |step: u32| {
            let batch = Batch::dense(40, 2).unwrap().at_step(9, step);
            let mut program = session.load(&graph, &Capacity::exactly(&batch)).unwrap();
            session.run(&mut program, &batch, &[("x", &x)]).unwrap();
            session.output(&program, "e").unwrap().into_f32s().unwrap()
        };
        let (first, second) = (step(1), step(2));
        assert_eq!(first[..120], first[120..], "{device:?}: a token is dropped or not, wherever it is");
        let rows: Vec<f32> = first[..120].chunks(3).map(|row| row[0]).collect();
        assert!(first[..120].chunks(3).all(|row| row.iter().all(|&x| x == row[0] && (x == 0.0 || x == 4.0))));
        let dropped = rows.iter().filter(|&&x| x == 0.0).count();
        assert!((3..20).contains(&dropped) && first != second, "{device:?}: {dropped}");
        seen.push(first);
    }
    assert!(seen.iter().all(|all| all == &seen[0]), "the same masks on every device");
}

/// The outputs' regulariser is taken over the number of samples, as Keras 3 does.
#[test]
fn outputs_add_to_the_loss_over_the_number_of_sequences() {
    let mut model = Sequential::new(&Device::reference());
    let ones = Rules::default().initializer(Initializer::Constant(1.0));
    model.add(Pooling::average()).add(Dense::new(2).kernel(ones).activity(Regularizer::l2(0.1)));
    model.compile(Sgd::default(), Loss::MeanSquaredError).unwrap();
    let (x, y) = (Array3::<f32>::ones((4, 1, 3)), Array2::<f32>::from_elem((4, 2), 3.0));
    // Eight outputs of 3: 0.1 · 72 / 4, which is what Keras 3.15 prints for the same.
    assert!((model.evaluate(&x, &y).unwrap() - 1.8).abs() < 1e-6);
}

#[test]
fn constraints_hold_after_every_update() {
    let (x, y) = (data(6, 5, 3), Array2::<f32>::from_elem((6, 4), 2.0));
    let norms = |w: &Tensor| -> Vec<f32> {
        let columns = w.shape()[1..].iter().product::<usize>();
        w.f32s().unwrap().chunks(columns).map(|row| row.iter().map(|v| v * v).sum::<f32>().sqrt()).collect()
    };
    for device in devices() {
        let rule = |constraint| Rules::default().constraint(constraint);
        let mut model = Sequential::new(&device);
        model.add(Conv1D::new(3, 2).kernel(rule(Constraint::UnitNorm)));
        model.add(
            Lstm::new(4)
                .kernel(rule(Constraint::MaxNorm(0.5)))
                .recurrent(rule(Constraint::MinMaxNorm { min: 0.7, max: 0.9, rate: 1.0 }))
                .bias_rules(rule(Constraint::NonNegative)),
        );
        model.add(Dense::new(4));
        model.compile(Adam::default().learning_rate(0.1), Loss::MeanSquaredError).unwrap();
        let history = model.fit(&x, &y, &Fit { epochs: 8, ..whole() }).unwrap();
        assert!(history.loss[7] < history.loss[0], "{device:?}");
        let mut get = |name: &str| model.parameter(name).unwrap();
        assert!(norms(&get("conv1d.weight")).iter().all(|n| (n - 1.0).abs() < 1e-5), "{device:?}");
        let kernel = norms(&get("lstm.weight_ih_l0"));
        assert!(kernel.iter().all(|n| *n < 0.5 + 1e-5) && kernel.iter().any(|n| *n > 0.49), "{device:?} {kernel:?}");
        assert!(norms(&get("lstm.weight_hh_l0")).iter().all(|n| (0.7 - 1e-5..0.9 + 1e-5).contains(n)), "{device:?}");
        let bias = get("lstm.bias_ih_l0").into_f32s().unwrap();
        assert!(bias.iter().all(|b| *b >= 0.0) && bias.contains(&0.0), "{device:?} {bias:?}");
    }
}

#[test]
fn rules_that_mean_nothing_are_refused() {
    let rules = [
        Rules::default().regularizer(Regularizer::l1(-1.0)),
        Rules::default().constraint(Constraint::MaxNorm(f32::NAN)),
        Rules::default().constraint(Constraint::MinMaxNorm { min: 2.0, max: 1.0, rate: 1.0 }),
        Rules::default().initializer(Initializer::Normal(f32::INFINITY)),
    ];
    for rule in rules {
        for layer in [Layer::from(Dense::new(2).kernel(rule)), Lstm::new(2).recurrent(rule).into()] {
            let mut model = Sequential::new(&Device::reference());
            model.add(layer);
            assert!(model.build(Input::Features(3)).is_err(), "{rule:?}");
        }
    }
}

#[test]
fn initialisers_are_the_users_choice() {
    let mut model = Sequential::new(&Device::reference());
    let bias = Rules::default().initializer(Initializer::ForgetBias(2.0));
    model.add(Lstm::new(2).bias_rules(bias).recurrent(Rules::default().initializer(Initializer::HeNormal)));
    model.build(Input::Features(3)).unwrap();
    let values = model.parameter("lstm.bias_ih_l0").unwrap().into_f32s().unwrap();
    assert_eq!(values, [0.0, 0.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
}

/// The usual front ends of an LSTM, trained on every device to the same losses.
#[test]
fn front_ends_train_alike_on_every_device() {
    let (x, y) = (data(9, 11, 3), Array2::from_shape_fn((9, 1), |(s, _)| (s as f32 * 0.7).cos()));
    let fronts: Vec<Vec<Layer>> = vec![
        vec![
            Conv1D::new(5, 3).activation(Activation::Relu).into(),
            Pooling1D::max(2).into(),
            Dropout::new(0.2).mask(Mask::Sequence).into(),
            Lstm::new(4).into(),
        ],
        vec![
            Conv1D::new(4, 3).padding(Padding::Causal).dilation(2).into(),
            Pooling1D::average(3).stride(2).padding(Padding::Same).into(),
            Lstm::new(3).return_sequences(true).into(),
            Flatten {}.into(),
        ],
        // More taps than a kernel binds buffers, below a layer that wants its gradient.
        vec![
            Dense::new(3).into(),
            Conv1D::new(3, 9).padding(Padding::Same).into(),
            Pooling1D::max(10).stride(1).padding(Padding::Same).into(),
            Lstm::new(3).into(),
        ],
        vec![Permute {}.into(), Lstm::new(3).into()],
        vec![Reshape::new(&[Some(3), None]).into(), Lstm::new(3).return_sequences(true).into(), Pooling::max().into()],
    ];
    for front in fronts {
        let run = |device: &Device| {
            let mut model = Sequential::new(device);
            for layer in &front {
                model.add(layer.clone());
            }
            model.add(Dense::new(1));
            model.compile(Adam::default().learning_rate(0.02), Loss::MeanSquaredError).unwrap();
            let history = model.fit(&x, &y, &Fit { epochs: 4, batch_size: 4, seed: 3, ..Fit::default() }).unwrap();
            (history.loss, model.predict(&x).unwrap())
        };
        let wanted = run(&Device::reference());
        assert!(wanted.0[3] < wanted.0[0], "{front:?} {wanted:?}");
        for device in devices() {
            let got = run(&device);
            assert_eq!(got, run(&device), "{device:?}: one seed, one result");
            assert!(got.0.iter().zip(&wanted.0).all(|(a, b)| (a - b).abs() < 1e-4 * b), "{device:?} {front:?}");
        }
    }
}

#[test]
fn a_model_for_a_number_of_steps_is_saved_with_it() {
    let path = std::env::temp_dir().join(format!("mnemon-layers-{}.safetensors", std::process::id()));
    let (x, y) = (data(4, 6, 2), Array2::<f32>::ones((4, 1)));
    let mut model = Sequential::new(&Device::reference());
    model.add(Flatten {}).add(Dense::new(1).kernel(Rules::default().regularizer(Regularizer::l2(0.1))));
    model.compile(Sgd::default(), Loss::MeanSquaredError).unwrap();
    model.fit(&x, &y, &whole()).unwrap();
    model.save(&path).unwrap();
    let mut loaded = Sequential::load(&Device::reference(), &path).unwrap();
    assert_eq!((loaded.steps(), loaded.layers()), (Some(6), model.layers()));
    assert_eq!(loaded.predict(&x).unwrap(), model.predict(&x).unwrap());
    let error = loaded.predict(&data(4, 7, 2)).unwrap_err().to_string();
    assert!(error.contains("at most 6 steps, got 7"), "{error}");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn what_layers_over_steps_cannot_take_is_refused() {
    let refused = |layers: Vec<Layer>, input: Input, steps: Option<usize>, why: &str| {
        let mut model = Sequential::new(&Device::reference());
        for layer in layers {
            model.add(layer);
        }
        let error = model.build_for(input, steps).unwrap_err().to_string();
        assert!(error.contains(why), "{error} should say {why}");
    };
    let three = Input::Features(3);
    refused(vec![Flatten {}.into()], three, None, "must be known");
    refused(vec![Conv1D::new(2, 5).into()], three, Some(4), "no window fits");
    refused(vec![Conv1D::new(0, 5).into()], three, None, "filters");
    refused(vec![Conv1D::new(2, 0).into()], three, None, "taps");
    refused(vec![Reshape::new(&[Some(5), None]).into()], three, Some(4), "12 values do not make");
    refused(vec![Reshape::new(&[Some(2), Some(2), Some(3)]).into()], three, Some(4), "a shape of 3 sizes");
    let back = Lstm::new(2).go_backwards(true).return_sequences(true);
    refused(vec![back.into(), Conv1D::new(2, 2).into()], three, None, "reversed");
    refused(vec![Pooling::max().into(), Conv1D::new(2, 2).into()], three, None, "expected a sequence");
    let masked = Embedding::new(5, 2).mask_zero(true);
    let mut model = Sequential::new(&Device::reference());
    model.add(masked).add(Conv1D::new(2, 2)).add(Lstm::new(2));
    model.compile(Sgd::default(), Loss::MeanSquaredError).unwrap();
    let (x, y) = (Array2::<f32>::ones((2, 4)), Array2::<f32>::ones((2, 2)));
    let error = model.fit(&x, &y, &whole()).unwrap_err().to_string();
    assert!(error.contains("masked"), "{error}");
}
