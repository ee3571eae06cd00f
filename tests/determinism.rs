//! The determinism that docs/architecture.md promises, for every kind of layer on every executor: a sequence's results are
//! the same bits in any batch, at any place of it, with any number of threads, and read in pieces.

mod common;

use common::devices;
use mnemon::config::{Activation, Bias, Cell, Direction, LstmConfig, Mask};
use mnemon::device::Device;
use mnemon::graph::builder::LstmWeights;
use mnemon::graph::{B, Graph, LstmOp, N};
use mnemon::nn::{Attention, Conv1D, Dense, Input, Lstm, Network, Padding, Pooling, Pooling1D};
use mnemon::params::random::Random;
use mnemon::params::{DType, Initializer, Tensor, lstm_parameters};
use mnemon::scheduler::{Batch, Capacity};
use mnemon::train::{Model, Named};

const INPUT: usize = 3;
const LENGTHS: [usize; 7] = [5, 1, 0, 9, 3, 9, 2];
const STEPS: usize = 9;

fn random(len: usize, seed: u64, scale: f64) -> Vec<f32> {
    let mut random = Random::new(seed, 7);
    (0..len).map(|_| (random.normal() * scale) as f32).collect()
}

fn kinds() -> Vec<(&'static str, LstmConfig, bool)> {
    let config = |hidden: usize| LstmConfig::new(INPUT, hidden).bias(Bias::Two);
    let cell = |change: fn(&mut Cell)| {
        let mut cell = Cell::default();
        change(&mut cell);
        config(9).cell(cell)
    };
    vec![
        ("plain", config(67), false),
        ("both directions", config(9).direction(Direction::Both), false),
        ("reverse, projected", config(9).direction(Direction::Reverse).projection(Some(5)), false),
        ("peepholes", cell(|c| c.peepholes = true), false),
        ("coupled", cell(|c| c.coupled = true), false),
        ("clipped", cell(|c| (c.clip, c.cell_clip) = (Some(0.9), Some(0.4))), false),
        (
            "other functions",
            cell(|c| (c.gate, c.output) = (Activation::HardSigmoid { alpha: 0.2, beta: 0.5 }, Activation::Softsign)),
            false,
        ),
        ("normalised", cell(|c| c.layer_norm = Some(1e-3)), false),
        (
            "normalised, both, projected",
            cell(|c| c.layer_norm = Some(1e-3)).direction(Direction::Both).projection(Some(4)),
            false,
        ),
        ("dropout of a sequence", cell(|c| (c.recurrent_dropout, c.recurrent_mask) = (0.3, Mask::Sequence)), true),
        ("dropout of a step", cell(|c| (c.recurrent_dropout, c.recurrent_mask) = (0.3, Mask::Step)), true),
        ("zoneout", cell(|c| (c.zoneout_h, c.zoneout_c) = (0.2, 0.3)).direction(Direction::Both), true),
        ("zoneout's expectation", cell(|c| (c.zoneout_h, c.zoneout_c) = (0.2, 0.3)), false),
    ]
}

/// Sequences `which` of the data, `steps` of each from `from` on, after these states: y of each, and the final states.
struct Reader<'a> {
    device: &'a Device,
    config: &'a LstmConfig,
    training: bool,
    /// Of a batch of all sequences: the kernels of every run are those chosen for it.
    capacity: Capacity,
}

/// y, h and c of a sequence.
type Bits = [Vec<u32>; 3];

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

impl Reader<'_> {
    fn graph(&self) -> Graph {
        let mut g = Graph::new();
        let random = self.training.then(|| g.random_operations(3));
        let op = LstmOp { direction: self.config.direction, cell: self.config.cell, random };
        let parameters = lstm_parameters(self.config, 0);
        let weights: Vec<LstmWeights> = (0..op.directions())
            .map(|d| {
                LstmWeights::by_role(|role| {
                    let p = parameters.iter().find(|p| p.role == role && p.direction == d)?;
                    Some(g.persistent(&p.name, &p.shape).unwrap())
                })
                .unwrap()
            })
            .collect();
        let d = op.directions();
        let x = g.input("x", [N, INPUT.into()], DType::F32).unwrap();
        let h = g.input("h", [B, (d * self.config.output_size()).into()], DType::F32).unwrap();
        let c = g.input("c", [B, (d * self.config.hidden_size).into()], DType::F32).unwrap();
        let out = g.lstm_layer(x, Some((h, c)), &op, &weights).unwrap();
        for (name, value) in [("y", out.y), ("h_n", out.h_n), ("c_n", out.c_n)] {
            g.output(name, value).unwrap();
        }
        g
    }

    fn read(&self, which: &[usize], (from, steps): (usize, usize), states: Option<&[Bits]>) -> Vec<Bits> {
        let length = |b: usize| LENGTHS[b].saturating_sub(from).min(steps);
        let ids: Vec<u32> = which.iter().map(|&b| 40 + b as u32).collect();
        let lengths: Vec<usize> = which.iter().map(|&b| length(b)).collect();
        let batch = Batch::ragged(&lengths).unwrap().with_samples(&ids).unwrap();
        let batch = batch.at_step(11, 2).starting_at(from as u32);
        let mut x = Vec::new();
        for &b in which {
            let all = random(STEPS * INPUT, 100 + b as u64, 1.0);
            let mut own = all[from * INPUT..].to_vec();
            own.resize(steps * INPUT, 0.0);
            x.extend(own);
        }
        let d = self.config.direction.count();
        let (r, hidden) = (d * self.config.output_size(), d * self.config.hidden_size);
        let state = |part: usize, size: usize, seed: u64| -> Tensor {
            let rows = which.iter().enumerate().flat_map(|(at, &b)| match states {
                Some(states) => states[at][part].iter().map(|&v| f32::from_bits(v)).collect(),
                None => random(size, seed + b as u64, 0.5),
            });
            Tensor::new(&[which.len(), size], batch.sort_rows(&rows.collect::<Vec<f32>>(), size)).unwrap()
        };
        let (h, c) = (state(1, r, 200), state(2, hidden, 300));
        let packed = batch.pack(0, &x, steps, INPUT, true).unwrap();
        let x = Tensor::new(&[packed.len() / INPUT, INPUT], packed).unwrap();
        let mut session = self.device.session().unwrap();
        for (at, p) in lstm_parameters(self.config, 0).iter().enumerate() {
            let values = random(p.shape.iter().product(), at as u64, 0.4);
            session.set(&p.name, &Tensor::new(&p.shape, values).unwrap()).unwrap();
        }
        let mut program = session.load(&self.graph(), &self.capacity).unwrap();
        session.run(&mut program, &batch, &[("x", &x), ("h", &h), ("c", &c)]).unwrap();
        let mut get = |name: &str| session.output(&program, name).unwrap().into_f32s().unwrap();
        let y = batch.unpack(0, &get("y"), steps, r, true, 0.0).unwrap();
        let (h_n, c_n) = (batch.unsort_rows(&get("h_n"), r), batch.unsort_rows(&get("c_n"), hidden));
        let of = |at: usize| {
            let own = &y[at * steps * r..][..length(which[at]) * r];
            [bits(own), bits(&h_n[at * r..][..r]), bits(&c_n[at * hidden..][..hidden])]
        };
        (0..which.len()).map(of).collect()
    }
}

fn threads() -> Vec<Device> {
    let mut all = devices();
    all.extend([1, 3].map(|n| Device::cpu_with_threads(n).unwrap()));
    all
}

#[test]
fn a_sequence_gives_the_same_bits_in_any_batch() {
    let all: Vec<usize> = (0..LENGTHS.len()).collect();
    for (name, config, training) in kinds() {
        let mut of_cpu: Option<Vec<Bits>> = None;
        for device in threads() {
            let capacity = Capacity::exactly(&Batch::ragged(&LENGTHS).unwrap());
            let reader = Reader { device: &device, config: &config, training, capacity };
            let whole = reader.read(&all, (0, STEPS), None);
            assert!(whole.iter().flatten().flatten().all(|&v| f32::from_bits(v).is_finite()), "{device:?} {name}");
            let backwards: Vec<usize> = all.iter().rev().copied().collect();
            for subset in [&backwards[..], &[3], &[0, 4], &[2], &[1, 5, 3]] {
                for (got, &b) in reader.read(subset, (0, STEPS), None).iter().zip(subset) {
                    assert!(got == &whole[b], "{device:?} {name}: sequence {b} among {subset:?}");
                }
            }
            if format!("{device:?}").contains("cpu") {
                assert!(of_cpu.get_or_insert_with(|| whole.clone()) == &whole, "{name}: threads change bits");
            }
        }
        assert!(of_cpu.is_some(), "no device was a CPU");
    }
}

/// Of large layers, and of batches of fewer sequences than threads, threads share the units; of others the sequences.
#[test]
fn threads_that_share_units_change_no_bit() {
    let all: Vec<usize> = (0..LENGTHS.len()).collect();
    for (hidden, direction) in [(250, Direction::Forward), (130, Direction::Both), (130, Direction::Reverse)] {
        let config = LstmConfig::new(INPUT, hidden).bias(Bias::Two).direction(direction);
        let capacity = Capacity::exactly(&Batch::ragged(&LENGTHS).unwrap());
        let mut wanted: Option<Vec<Bits>> = None;
        for threads in [1, 2, 3, 8] {
            let device = Device::cpu_with_threads(threads).unwrap();
            let reader = Reader { device: &device, config: &config, training: false, capacity: capacity.clone() };
            let got = reader.read(&all, (0, STEPS), None);
            assert!(wanted.get_or_insert_with(|| got.clone()) == &got, "{threads} threads, H {hidden}, {direction:?}");
            let alone = reader.read(&[3], (0, STEPS), None);
            assert!(alone[0] == got[3], "{threads} threads, H {hidden}, {direction:?}: alone");
        }
    }
}

#[test]
fn a_sequence_read_in_pieces_gives_the_bits_of_one_run() {
    let all: Vec<usize> = (0..LENGTHS.len()).collect();
    for (name, config, training) in kinds().into_iter().filter(|k| k.1.direction == Direction::Forward) {
        for device in devices() {
            let capacity = Capacity::exactly(&Batch::ragged(&LENGTHS).unwrap());
            let reader = Reader { device: &device, config: &config, training, capacity };
            let whole = reader.read(&all, (0, STEPS), None);
            let first = reader.read(&all, (0, 4), None);
            let second = reader.read(&all, (4, 3), Some(&first));
            let third = reader.read(&all, (7, STEPS - 7), Some(&second));
            for (b, whole) in whole.iter().enumerate() {
                let y = [&first[b][0][..], &second[b][0], &third[b][0]].concat();
                let same = y == whole[0] && third[b][1..] == whole[1..];
                assert!(same, "{device:?} {name}: sequence {b} in pieces");
            }
        }
    }
}

/// What stands around LSTMs, from windows over steps to attention: each sequence alone and all together.
#[test]
fn a_network_gives_each_sequence_the_same_bits_in_any_batch() {
    let mut network = Network::default();
    let x = network.input("x", Input::Features(INPUT));
    let seen = network.add(Conv1D::new(7, 3).padding(Padding::Same), &[x]).unwrap();
    let read = network.add(Lstm::new(6).direction(Direction::Both).return_sequences(true), &seen).unwrap();
    let halves = network.add(Pooling1D::max(2), &read).unwrap();
    let met = network.add(Attention::additive(), &[read[0], halves[0]]).unwrap();
    let classes = network.add(Dense::new(5).activation(Activation::Softmax), &met).unwrap();
    let mean = network.add(Pooling::average(), &met).unwrap();
    network.output("classes", classes[0]);
    network.output("mean", mean[0]);
    let parameters: Named = (network.parameters().unwrap().into_iter().enumerate())
        .map(|(at, p)| {
            let values = Initializer::Normal(0.4).values(&p.shape, 5, at as u64).unwrap();
            (p.name, Tensor::new(&p.shape, values).unwrap())
        })
        .collect();
    let sequence = |b: usize| random(STEPS * INPUT, 100 + b as u64, 1.0);
    for device in threads() {
        let run = |which: &[usize]| {
            let mut model = Model::new(&device, &network, &parameters).unwrap();
            let x = which.iter().flat_map(|&b| sequence(b)).collect();
            let lengths = which.iter().map(|&b| LENGTHS[b] as u32).collect();
            let inputs = Named::from([
                ("x".to_string(), Tensor::new(&[which.len(), STEPS, INPUT], x).unwrap()),
                ("lengths".to_string(), Tensor::from_u32(&[which.len()], lengths).unwrap()),
            ]);
            let out = model.run(&inputs).unwrap();
            let rows = |name: &str| {
                let values = bits(out[name].f32s().unwrap());
                values.chunks(values.len() / which.len()).map(<[u32]>::to_vec).collect::<Vec<_>>()
            };
            rows("classes").into_iter().zip(rows("mean")).collect::<Vec<_>>()
        };
        let whole = run(&[0, 1, 2, 3, 4, 5, 6]);
        for subset in [&[3][..], &[6, 0], &[5, 4, 1]] {
            for (got, &b) in run(subset).iter().zip(subset) {
                assert!(got == &whole[b], "{device:?}: sequence {b} among {subset:?}");
            }
        }
    }
}
