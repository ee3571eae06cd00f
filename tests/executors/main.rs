//! Every executor against the f64 reference, by name, on odd sizes, ragged lengths and both settings of a GPU's limits.

#[path = "../common/axes.rs"]
mod axes;
mod cases;
#[path = "../common/mod.rs"]
mod common;
mod memory;

use cases::{Case, axes_case, check, check_layers, check_on, kind_case, lstm_case, operations_case, random, truth};
use common::{assert_close, devices, gpus, strategies};
use mnemon::config::{Activation, Bias, Cell, Direction, LstmConfig, Mask};
use mnemon::device::Device;
use mnemon::graph::{B, Expr, Graph, N};
use mnemon::params::random::Random;
use mnemon::params::{DType, Tensor};
use mnemon::scheduler::products::Tile;
use mnemon::scheduler::recurrence::{Layer, Threads, Weights};
use mnemon::scheduler::{Batch, Capacity, CompileOptions, Family, Kernels, Measures, Product, Recurrence, compile};

/// Pairs of options as in `gradients.rs`, on sizes around tile edges, forward and every gradient, on every executor.
/// Normalised cells run where executors have them.
#[test]
fn lstms_of_every_kind() {
    const LENGTHS: [&[usize]; 4] = [&[2, 0, 5, 1], &[3; 17], &[65, 1, 66], &[4]];
    const SIZES: [[usize; 3]; 3] = [[3, 5, 2], [7, 17, 9], [2, 66, 65]];
    for row in 0..16u32 {
        let bit = |column: u32| (row & column).count_ones() % 2 == 1;
        let [input, hidden, projection] = SIZES[row as usize % 3];
        let lengths = LENGTHS[row as usize / 4];
        // Among thousands of elements one is close enough to a corner for f32 to fall on its other side.
        let corners = hidden * lengths.iter().sum::<usize>() < 1000;
        let cell = Cell {
            peepholes: bit(1),
            clip: (corners && bit(2)).then_some(1.5),
            recurrent_dropout: if bit(3) { 0.3 } else { 0.0 },
            recurrent_mask: if bit(4) { Mask::Step } else { Mask::Sequence },
            zoneout_h: if bit(5) { 0.25 } else { 0.0 },
            zoneout_c: if bit(6) { 0.25 } else { 0.0 },
            coupled: bit(7),
            gradient_clip: (corners && bit(8)).then_some(0.5),
            cell_clip: (corners && bit(9)).then_some(1.2),
            gate: match (bit(10), corners) {
                (true, true) => Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
                (true, false) => Activation::ScaledTanh { alpha: 0.7, beta: 0.4 },
                _ => Activation::Sigmoid,
            },
            ..Cell::default()
        };
        let direction = [Direction::Forward, Direction::Reverse, Direction::Both, Direction::Both][row as usize % 4];
        let config = LstmConfig::new(input, hidden).cell(cell).direction(direction);
        let config = config.projection(bit(13).then_some(projection));
        let case = kind_case(lengths, &config.bias(if bit(14) { Bias::Two } else { Bias::None }), bit(15));
        check(&case);
        // One strategy a row: compiling all for all would take minutes.
        if let Some(device) = strategies().into_iter().cycle().nth(row as usize / 2) {
            check_on(&case, &[device]);
        }
    }
}

/// Every activation in every place.
#[test]
fn lstms_of_every_activation() {
    let (alpha, beta) = (0.7, 0.4);
    let all = [
        Activation::Linear,
        Activation::Relu,
        Activation::Affine { alpha, beta },
        Activation::LeakyRelu { alpha },
        Activation::ThresholdedRelu { alpha: 0.1 },
        Activation::ScaledTanh { alpha, beta },
        Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
        Activation::Elu { alpha },
        Activation::Softsign,
        Activation::Softplus,
        Activation::Selu,
        Activation::Swish,
        Activation::Exponential,
    ];
    for (at, activation) in all.into_iter().enumerate() {
        let next = all[(at + 1) % all.len()];
        let last = all[(at + 5) % all.len()];
        let cell = Cell { gate: activation, candidate: next, output: last, clip: Some(1.0), ..Cell::default() };
        check(&kind_case(&[2, 0, 3], &LstmConfig::new(3, 5).cell(cell), false));
    }
}

/// A normalised cell on the executors that have it; a GPU says that it has not.
#[test]
fn lstms_with_layer_normalisation() {
    const LENGTHS: [&[usize]; 3] = [&[2, 0, 5, 1], &[3; 17], &[4]];
    for (at, (direction, projection, hidden)) in [
        (Direction::Both, None, 9),
        (Direction::Reverse, Some(3), 9),
        (Direction::Forward, None, 67),
        (Direction::Both, Some(18), 66),
        (Direction::Forward, None, 1),
    ]
    .into_iter()
    .enumerate()
    {
        let bit = |n: usize| at >> n & 1 == 1;
        let cell = Cell {
            layer_norm: Some(1e-2),
            peepholes: !bit(0),
            coupled: bit(1),
            zoneout_h: if bit(0) { 0.1 } else { 0.0 },
            zoneout_c: if bit(1) { 0.0 } else { 0.2 },
            recurrent_dropout: if bit(0) { 0.3 } else { 0.0 },
            gate: if bit(2) { Activation::ScaledTanh { alpha: 0.7, beta: 0.4 } } else { Activation::Sigmoid },
            ..Cell::default()
        };
        let config = LstmConfig::new(4, hidden).cell(cell).direction(direction).projection(projection);
        let config = config.bias(if bit(0) { Bias::None } else { Bias::Two });
        check(&kind_case(LENGTHS[at % 3], &config, bit(0)));
    }
}

/// A family that is asked for is what runs, where it can.
#[test]
fn strategies_are_what_was_asked_for() {
    let case = lstm_case(&[3; 9], 7, 50, Bias::Two, false, 1.0);
    let capacity = Capacity::exactly(&case.batch);
    for device in strategies() {
        let kernels = Some(device.kernels().clone());
        let options = CompileOptions { kernels, ..CompileOptions::new(&capacity) };
        let program = compile(&case.graph, device.target(), &options).unwrap();
        let layers: Vec<Recurrence> = program.stage_steps().filter_map(|s| s.recurrence).collect();
        assert_eq!(layers.len(), 4, "two layers, there and back");
        for layer in layers {
            let is = match (device.kernels().family.unwrap(), layer) {
                (Family::Step, Recurrence::Step { .. }) => true,
                (family, Recurrence::Sequence { weights, .. }) => match weights {
                    Weights::Streamed => family == Family::Streamed,
                    Weights::Held(rows) => family == Family::Held && rows > 0,
                    Weights::Registers => family == Family::Registers,
                },
                _ => false,
            };
            assert!(is, "{:?} was asked for, {layer} is what runs", device.kernels().family);
        }
    }
}

/// A step's operands come ahead of their use on real GPUs alone unless it is asked for: slices of no, one and many turns.
#[test]
fn steps_fetch_operands_ahead() {
    for hidden in [5, 50] {
        let case = lstm_case(&[4, 4, 4, 3, 3, 2, 2, 1, 1], 7, hidden, Bias::Two, true, 1.0);
        for device in gpus().into_iter().take(1) {
            let mut kernels = Kernels::default();
            let pick = Recurrence::Step { rows: 16, threads: Threads { units: 4, slices: 4 }, ahead: true };
            for backward in [false, true] {
                let layer = Layer { backward, hidden, output: hidden, directions: 1, sequences: 16, normed: false };
                assert!(layer.admits(pick, &device.target()));
                kernels.picks.insert(layer, pick);
            }
            let options = CompileOptions {
                kernels: Some(kernels.clone()),
                ..CompileOptions::new(&Capacity::exactly(&case.batch))
            };
            let program = compile(&case.graph, device.target(), &options).unwrap();
            assert!(program.stage_steps().filter_map(|s| s.recurrence).all(|r| r == pick));
            check_on(&case, &[device.with_kernels(kernels)]);
        }
    }
}

/// A linear layer whose products cross the edges of tiles in every dimension, over more than two chunks of timesteps.
#[test]
fn products_in_every_tile() {
    let (input, output) = (67, 133);
    let lengths = [130, 75, 3];
    let mut g = Graph::new();
    let batch = Batch::ragged(&lengths).unwrap();
    let rows = batch.axis(0).unwrap().rows();
    let x = g.input("x", [N, input.into()], DType::F32).unwrap();
    let (weight, bias) = (g.persistent("weight", [output, input]).unwrap(), g.persistent("bias", [output]).unwrap());
    let y = g.linear(x, weight, Some(bias)).unwrap();
    let up = g.input("up", [N, output.into()], DType::F32).unwrap();
    let product = g.elementwise(Expr::Input(0) * Expr::Input(1), &[y, up]).unwrap();
    let total = g.sum(&[product]).unwrap();
    for (name, gradient) in
        ["d.x", "d.weight", "d.bias"].into_iter().zip(g.gradients(total, &[x, weight, bias]).unwrap())
    {
        g.output(name, gradient).unwrap();
    }
    g.output("y", y).unwrap();
    let inputs = [("x", random(&[rows, input], 1, 1.0)), ("up", random(&[rows, output], 2, 1.0))];
    let persistent = [("weight", random(&[output, input], 3, 0.3)), ("bias", random(&[output], 4, 0.3))];
    let case = Case {
        name: "linear".into(),
        graph: g,
        persistent: persistent.into_iter().map(|(n, t)| (n.to_string(), t)).collect(),
        inputs: inputs.into_iter().map(|(n, t)| (n.to_string(), t)).collect(),
        batch,
        tolerance: 3e-5,
    };
    check_layers(&case);
    // Every tile and number of parts, none of which divides the rows of the chunks, and more chunks than one dispatch takes.
    let device = gpus().into_iter().take(1);
    let products =
        Tile::ALL.into_iter().flat_map(|t| [Product::Tiled(t), Product::Split(t, 3), Product::Split(t, 200)]);
    let of = |device: Device| {
        move |product| device.clone().with_kernels(Kernels { product: Some(product), ..Kernels::default() })
    };
    let devices: Vec<Device> = device.flat_map(|device| products.clone().map(of(device))).collect();
    check_on(&case, &devices);
}

#[test]
fn lstm_on_odd_sizes() {
    check_layers(&lstm_case(&[1], 1, 1, Bias::Two, true, 1.0));
    check_layers(&lstm_case(&[4, 4], 5, 3, Bias::None, false, 1.0));
    check_layers(&lstm_case(&[9; 3], 13, 17, Bias::One, true, 1.0));
    check_layers(&lstm_case(&[3; 9], 7, 50, Bias::Two, false, 1.0));
    check_layers(&lstm_case(&[2; 5], 6, 129, Bias::Two, true, 1.0));
    check_layers(&lstm_case(&[3; 16], 3, 5, Bias::Two, true, 1.0));
    check_layers(&lstm_case(&[2; 33], 9, 8, Bias::One, true, 1.0));
}

#[test]
fn lstm_on_lengths_in_any_order() {
    check_layers(&lstm_case(&[3, 0, 7, 7, 1], 4, 6, Bias::Two, true, 1.0));
    check_layers(&lstm_case(&[70, 130, 65, 1, 0, 64, 2, 128, 129, 3], 3, 5, Bias::Two, true, 1.0));
    check_layers(&lstm_case(&[0, 2, 0], 3, 5, Bias::One, false, 1.0));
}

/// A sequence of 70,000 steps and a batch of 70,000 sequences, by every strategy that keeps states inside a workgroup.
#[test]
fn lstms_that_are_long_and_wide() {
    let inside = strategies().into_iter().filter(|d| d.kernels().family != Some(Family::Step));
    let inside: Vec<_> = inside.collect();
    let mut wide = vec![1; 70_000];
    wide[3] = 2;
    for lengths in [&[70_000, 3][..], &wide] {
        let case = lstm_case(lengths, 2, 3, Bias::One, true, 1.0);
        check_on(&case, &inside);
    }
}

#[test]
fn lstm_with_saturated_gates() {
    // The f32 reference itself is 3.2e-5 from f64 in d.bias_hh_l0, whose norm is 2e-10: 1 - a gate near 1 cancels. So
    // the conformance cases' bound for gradients is taken. d.h0_l0 has the norm 3e-44, less than f32 can hold.
    check_layers(&Case { tolerance: 1e-4, ..lstm_case(&[6, 3, 5], 4, 9, Bias::Two, true, 40.0) });
}

#[test]
fn other_operations() {
    check(&operations_case(5, 9));
    check(&operations_case(131, 4));
    check(&operations_case(1, 1));
}

#[test]
fn several_time_axes() {
    axes::cases().iter().chain([&axes::wide()]).for_each(|case| check(&axes_case(case)));
}

/// 1,000 sets of lengths through one program, at once and in micro-batches: nothing is made for them, and they give the
/// reference's numbers.
/// Different sets of lengths through one program make no pipeline, bind group or buffer, and keep the results.
#[test]
fn replays_create_nothing() {
    let parts = Measures { sequences: Some(2), ..Measures::default() };
    for (device, (rounds, measures)) in
        common::gpus().iter().flat_map(|d| [(1000, None), (100, Some(parts))].map(|case| (d, case)))
    {
        let case = lstm_case(&[5, 3, 6, 6, 0, 2], 3, 5, Bias::Two, true, 1.0);
        let mut session = device.session().unwrap();
        for (name, tensor) in &case.persistent {
            session.set(name, tensor).unwrap();
        }
        let capacity = Capacity { sequences: 6, axes: vec![(6, 36)] };
        let options = CompileOptions { measures, ..CompileOptions::new(&capacity) };
        let mut executable = session.load_with(&case.graph, &options).unwrap();
        let mut random = Random::new(3, 4);
        let mut created = None;
        for round in 0..rounds {
            let lengths: Vec<usize> = (0..6).map(|_| random.below(7) as usize).collect();
            let other = lstm_case(&lengths, 3, 5, Bias::Two, true, 1.0);
            let inputs: Vec<(&str, &Tensor)> = other.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
            session.run(&mut executable, &other.batch, &inputs).unwrap();
            // The weights differ from `other`'s in nothing, since they come from the same seeds.
            for (name, wanted) in &truth(&other) {
                let got = session.output(&executable, name).unwrap();
                let got: Vec<f64> = got.f32s().unwrap().iter().map(|&v| f64::from(v)).collect();
                assert_close(&format!("{device:?} {lengths:?} {name}"), &got, wanted, other.tolerance);
            }
            // The first reading makes what the others are read through.
            assert!(created.is_none_or(|c| c == session.created()), "{device:?}: round {round} created something");
            created = Some(session.created());
        }
    }
}

/// What a device cannot hold is an error that names it, and the session goes on.
#[test]
fn refused_allocations_are_errors() {
    for device in devices() {
        let mut session = device.session().unwrap();
        let kept = Tensor::new(&[2], vec![1.0, 2.0]).unwrap();
        session.set("kept", &kept).unwrap();
        let error = session.zero("vast", &[1 << 24, 1 << 26], DType::F32).unwrap_err();
        assert!(error.kind() == mnemon::error::ErrorKind::Memory && error.to_string().contains("`vast`"), "{error}");
        let mut g = Graph::new();
        let x = g.persistent("kept", [2]).unwrap();
        let vast = g.input("x", [B, (1 << 20).into()], DType::F32).unwrap();
        let vast = g.tanh(vast).unwrap();
        let sum = g.sum(&[vast, x]).unwrap();
        g.output("sum", sum).unwrap();
        let capacity = Capacity { sequences: 1 << 30, axes: vec![(1, 1 << 30)] };
        if device.kind() != mnemon::device::DeviceKind::Reference {
            // The reference makes its values when it runs.
            let error = session.load(&g, &capacity).err().expect("2^52 bytes do not fit").to_string();
            assert!(error.contains("bytes"), "{device:?}: {error}");
        }
        assert_eq!(session.get("kept").unwrap(), kept);
    }
}

/// Tensors larger than the device's binding limit are split.
#[test]
fn large_tensors_are_split() {
    for device in common::gpus() {
        split(&device, &lstm_case(&[4, 9, 300, 17, 300, 1], 3, 5, Bias::Two, true, 1.0));
        split(&device, &axes_case(&axes::long()));
        let cell = Cell { layer_norm: Some(1e-2), ..Cell::default() };
        for projection in [None, Some(3)] {
            let config = LstmConfig::new(3, 5).cell(cell).direction(Direction::Both).projection(projection);
            split(&device, &kind_case(&[4, 9, 150, 17, 150, 1], &config, false));
        }
    }
}

fn split(device: &mnemon::device::Device, case: &Case) {
    let expected = truth(case);
    // A binding of 20 kB holds 256 rows of gates.
    let mut target = device.target();
    target.limits.binding = 20 * 1024;
    target.limits.buffer = 40 * 1024;
    let options = CompileOptions::new(&Capacity::exactly(&case.batch));
    let program = compile(&case.graph, target, &options).unwrap();
    assert!(program.placement.places.values().any(|p| p.pieces.len() > 2), "nothing was split");
    let mut session = device.session().unwrap();
    for (name, tensor) in &case.persistent {
        session.set(name, tensor).unwrap();
    }
    let mut executable = session.load_program(program).unwrap();
    let inputs: Vec<(&str, &Tensor)> = case.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    session.run(&mut executable, &case.batch, &inputs).unwrap();
    for (name, wanted) in &expected {
        let got = session.output(&executable, name).unwrap();
        let got: Vec<f64> = got.f32s().unwrap().iter().map(|&v| f64::from(v)).collect();
        assert_close(&format!("split {name}"), &got, wanted, case.tolerance);
    }
}

/// Sigmoid, tanh and exp on every device: within 4 ulp of f64 (or both below the smallest normal number), finite for
/// every number, and NaN for NaN, so that a value that is not finite is never hidden.
#[test]
fn functions_are_accurate_and_keep_nan() {
    let mut xs: Vec<f32> = (-4000..=4000).map(|i| i as f32 * 0.025).collect();
    xs.extend([1e-30, -1e-30, 1e4, -1e4, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    for device in devices() {
        let mut g = Graph::new();
        let x = g.input("x", [xs.len()], DType::F32).unwrap();
        let (sigmoid, tanh) = (g.sigmoid(x).unwrap(), g.tanh(x).unwrap());
        g.output("sigmoid", sigmoid).unwrap();
        g.output("tanh", tanh).unwrap();
        let exp = g.elementwise(Expr::Input(0).exp(), &[x]).unwrap();
        g.output("exp", exp).unwrap();
        let batch = Batch::dense(1, 1).unwrap();
        let mut session = device.session().unwrap();
        let mut executable = session.load(&g, &Capacity::exactly(&batch)).unwrap();
        session.run(&mut executable, &batch, &[("x", &Tensor::new(&[xs.len()], xs.clone()).unwrap())]).unwrap();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for (name, truth) in [("sigmoid", sigmoid as fn(f64) -> f64), ("tanh", f64::tanh), ("exp", f64::exp)] {
            let got = session.output(&executable, name).unwrap();
            for (&x, &y) in xs.iter().zip(got.f32s().unwrap()) {
                let wanted = truth(f64::from(x));
                let ulp = f64::from(f32::EPSILON) * wanted.abs() / 2.0;
                let close = (f64::from(y) - wanted).abs() <= (8.0 * ulp).max(f64::from(f32::MIN_POSITIVE));
                let beyond = y == f32::INFINITY && wanted > f64::from(f32::MAX) * 0.999;
                assert!(close || beyond || (x.is_nan() && y.is_nan()), "{device:?}: {name}({x}) = {y}, not {wanted}");
            }
        }
    }
}
