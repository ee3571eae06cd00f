//! Live streams give the bits that they give alone, whatever shares their batches and whatever happens to the device.

mod common;

use common::devices;
use mnemon::config::Direction;
use mnemon::device::Device;
use mnemon::error::ErrorKind;
use mnemon::nn::{
    Activation, Dense, Embedding, Flatten, Input, LayerNormalization, Lstm, Network, Pooling, PoolingKind,
};
use mnemon::params::random::Random;
use mnemon::params::{ParameterSpec, Tensor};
use mnemon::streams::{Stream, StreamOptions, StreamState, Streams};
use mnemon::train::{Model, Named};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const FEATURES: usize = 5;

/// Two LSTMs of different sizes, the second projected and giving its last h alone, and a layer over it.
fn network() -> Network {
    let mut network = Network::default();
    let x = network.input("x", Input::Features(FEATURES));
    let h = network.add(Lstm::new(19).return_sequences(true), &[x]).unwrap();
    let h = network.add(LayerNormalization::default(), &h).unwrap();
    let h = network.add(Lstm::new(33).projection(Some(7)), &h).unwrap();
    let h = network.add(Flatten::default(), &h).unwrap();
    let y = network.add(Dense::new(3).activation(Activation::Tanh), &h).unwrap();
    network.output("y", y[0]);
    network
}

fn values(shape: &[usize], random: &mut Random) -> Tensor {
    let len = shape.iter().product();
    Tensor::new(shape, (0..len).map(|_| 0.5 * random.normal() as f32).collect()).unwrap()
}

fn parameters(network: &Network) -> Named {
    let mut random = Random::new(7, 1);
    let value = |p: &ParameterSpec| (p.name.clone(), values(&p.shape, &mut random));
    network.parameters().unwrap().iter().map(value).collect()
}

fn open(device: &Device, options: StreamOptions) -> Streams {
    let network = network();
    let parameters = parameters(&network);
    Streams::open(device, &network, parameters, options).unwrap()
}

fn rows(x: &Tensor, first: usize, count: usize) -> Tensor {
    let width = x.shape()[1];
    Tensor::new(&[count, width], x.f32s().unwrap()[first * width..(first + count) * width].to_vec()).unwrap()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn doubles(x: &Tensor) -> Vec<f64> {
    x.f32s().unwrap().iter().map(|&x| f64::from(x)).collect()
}

fn assert_bits(a: &Tensor, b: &Tensor, what: &str) {
    assert_eq!(a.shape(), b.shape(), "{what}");
    assert_eq!(bits(a.f32s().unwrap()), bits(b.f32s().unwrap()), "{what}");
}

/// Inputs of streams of different lengths.
fn inputs(count: usize, seed: u64) -> Vec<Tensor> {
    let mut random = Random::new(seed, 2);
    (0..count).map(|n| values(&[1 + 7 * n % 40, FEATURES], &mut random)).collect()
}

/// What each stream gives when nobody else is there.
fn alone(streams: &Streams, inputs: &[Tensor]) -> Vec<Tensor> {
    inputs.iter().map(|x| streams.stream().unwrap().run(x).unwrap()).collect()
}

/// Pushes x in pieces of random sizes and receives its outputs.
fn in_pieces(stream: &Stream, x: &Tensor, seed: u64) -> Tensor {
    let (mut random, steps) = (Random::new(seed, 3), x.shape()[0]);
    let (mut first, mut got) = (0, Vec::new());
    while first < steps {
        let count = (1 + random.below(9) as usize).min(steps - first);
        stream.push(&rows(x, first, count)).unwrap();
        first += count;
        if random.below(3) == 0 {
            got.extend_from_slice(stream.receive().unwrap().f32s().unwrap());
        } else {
            got.extend_from_slice(stream.try_receive().unwrap().f32s().unwrap());
        }
    }
    while got.len() < steps * 3 {
        got.extend_from_slice(stream.receive().unwrap().f32s().unwrap());
    }
    Tensor::new(&[steps, 3], got).unwrap()
}

/// The outputs of the same network that is run over each whole sequence.
fn whole(device: &Device, inputs: &[Tensor]) -> Vec<Tensor> {
    let network = network().streaming().unwrap();
    let one = |x: &Tensor| {
        let (steps, mut model) = (x.shape()[0], Model::new(device, &network, &parameters(&network)).unwrap());
        let given = BTreeMap::from([("x".to_string(), x.clone().reshape(&[1, steps, FEATURES]).unwrap())]);
        model.run(&given).unwrap()["y"].clone().reshape(&[steps, 3]).unwrap()
    };
    inputs.iter().map(one).collect()
}

#[test]
fn streams_give_the_bits_that_they_give_alone() {
    for device in devices() {
        let count = if device.label() == "cpu" { 60 } else { 12 };
        let inputs = inputs(count, 11);
        let options = StreamOptions { streams: 64, steps: 8, sequences: 17, queued: 13, ..StreamOptions::default() };
        let streams = open(&device, options);
        let wanted = alone(&streams, &inputs);
        for (a, b) in whole(&device, &inputs[..6]).iter().zip(&wanted) {
            match device.label() {
                "cpu" => assert_bits(a, b, "one call for the whole sequence"),
                // Another capacity, so perhaps another kernel.
                _ => common::assert_close("y", &doubles(a), &doubles(b), 1e-5),
            }
        }
        std::thread::scope(|scope| {
            for (n, (x, y)) in inputs.iter().zip(&wanted).enumerate() {
                let streams = &streams;
                scope.spawn(move || {
                    let stream = streams.stream().unwrap();
                    assert_bits(&in_pieces(&stream, x, n as u64), y, &format!("stream {n}"));
                });
            }
        });
        let (stats, steps) = (streams.stats(), inputs.iter().map(|x| x.shape()[0] as u64).sum::<u64>());
        assert_eq!((stats.open, stats.opened, stats.steps), (0, 2 * count as u64, 2 * steps));
        assert_eq!((stats.waiting, stats.recoveries), (0, 0));
        assert!(stats.latencies.iter().sum::<u64>() >= 2 * count as u64, "{:?}", stats.latencies);
    }
}

/// A few streams of which one has most of the steps, on each kind of device.
#[test]
fn states_are_saved_restored_and_forked() {
    for device in devices() {
        let streams = open(&device, StreamOptions { streams: 4, ..StreamOptions::default() });
        let all = inputs(12, 5);
        let x = &all[11];
        let steps = x.shape()[0];
        let wanted = streams.stream().unwrap().run(x).unwrap();
        let stream = streams.stream().unwrap();
        let new = stream.save().unwrap();
        assert_eq!((new.steps, new.values.len()), (0, 0));
        stream.push(&rows(x, 0, 20)).unwrap();
        let state = stream.save().unwrap();
        assert_eq!(state.steps, 20);
        let names: Vec<&str> = state.values.keys().map(String::as_str).collect();
        assert_eq!(names, ["lstm.c_l0", "lstm.h_l0", "lstm_1.c_l0", "lstm_1.h_l0"]);
        let fork = stream.fork().unwrap();
        let early = streams.restore(&new).unwrap().fork().unwrap();
        assert_eq!(streams.stats().open, 3);
        // Another process has the same model and perhaps other options.
        let others = open(&device, StreamOptions { streams: 4, ..StreamOptions::default() });
        let moved = StreamState::from_tensors(state.clone().into_tensors().unwrap()).unwrap();
        assert_eq!(moved, state);
        let there = others.restore(&moved).unwrap();
        let rest = rows(x, 20, steps - 20);
        for (name, other) in [("fork", &fork), ("moved", &there)] {
            assert_bits(&other.run(&rest).unwrap(), &rows(&wanted, 20, steps - 20), name);
            assert_eq!(other.save().unwrap().steps, steps as u64);
        }
        assert_bits(&early.run(x).unwrap(), &wanted, "fork of a new one");
        let got = stream.run(&rest).unwrap();
        assert_bits(&got, &wanted, "the one that was forked, whose first outputs had waited");
    }
}

/// There is always more to do than a tick has room for, so that the next is gathered and the last delivered while one runs.
#[test]
fn streams_close_and_fork_while_ticks_overlap() {
    for device in devices() {
        let count = if device.label() == "cpu" { 60 } else { 15 };
        let options = StreamOptions { streams: 100, sequences: 4, steps: 2, ..StreamOptions::default() };
        let (streams, inputs) = (open(&device, options), inputs(count, 21));
        let twice = |x: &Tensor| {
            let values = [x.f32s().unwrap(), x.f32s().unwrap()].concat();
            Tensor::new(&[2 * x.shape()[0], FEATURES], values).unwrap()
        };
        let wanted = alone(&streams, &inputs.iter().map(twice).collect::<Vec<_>>());
        let mut all: Vec<Option<Stream>> = inputs.iter().map(|_| streams.stream().ok()).collect();
        inputs.iter().zip(&all).for_each(|(x, stream)| stream.as_ref().unwrap().push(x).unwrap());
        all.iter_mut().step_by(5).for_each(|stream| *stream = None);
        for (n, ((x, stream), wanted)) in inputs.iter().zip(&all).zip(&wanted).enumerate() {
            let Some(stream) = stream else { continue };
            let (steps, fork) = (x.shape()[0], (n % 5 == 1).then(|| stream.fork().unwrap()));
            if let Some(fork) = fork {
                assert_bits(&fork.run(x).unwrap(), &rows(wanted, steps, steps), &format!("fork of {n}"));
                assert_eq!(stream.save().unwrap().steps, steps as u64);
            }
            assert_bits(&stream.run(x).unwrap(), wanted, &format!("stream {n}"));
        }
        drop(all);
        let stats = streams.stats();
        assert_eq!((stats.open, stats.waiting), (0, 0), "{stats:?}");
    }
}

#[test]
fn a_lost_device_loses_and_repeats_no_step() {
    for device in common::gpus() {
        let inputs = inputs(10, 3);
        let options = StreamOptions { streams: 16, steps: 4, sequences: 6, ..StreamOptions::default() };
        let streams = open(&device, options);
        let wanted = alone(&streams, &inputs);
        let open: Vec<Stream> = inputs.iter().map(|_| streams.stream().unwrap()).collect();
        let mut got: Vec<Vec<f32>> = vec![Vec::new(); inputs.len()];
        for (part, first) in (0..40).step_by(10).enumerate() {
            for (x, stream) in inputs.iter().zip(&open).filter(|(x, _)| x.shape()[0] > first) {
                stream.push(&rows(x, first, (x.shape()[0] - first).min(10))).unwrap();
            }
            // In the middle of ticks, or between them.
            if part == 1 {
                device.lose();
            }
            for (got, stream) in got.iter_mut().zip(&open) {
                got.extend_from_slice(stream.try_receive().unwrap().f32s().unwrap());
            }
        }
        for (n, ((got, stream), wanted)) in got.iter_mut().zip(&open).zip(&wanted).enumerate() {
            while got.len() < wanted.len() {
                got.extend_from_slice(stream.receive().unwrap().f32s().unwrap());
            }
            assert_eq!(bits(got), bits(wanted.f32s().unwrap()), "stream {n}");
            assert_eq!(stream.save().unwrap().steps, inputs[n].shape()[0] as u64);
        }
        assert_eq!(streams.stats().recoveries, 1, "opened again, and the same one, whose bits they are");
    }
}

/// The device has no memory left: streams need none, and what is kept for a lost device goes on growing until there is some.
#[test]
fn a_refused_allocation_stops_no_stream() {
    for device in common::gpus() {
        let device = device.reopen().unwrap();
        let options = StreamOptions { streams: 4, steps: 4, sequences: 4, ..StreamOptions::default() };
        let streams = open(&device, options);
        let x = values(&[160, FEATURES], &mut Random::new(3, 3));
        let wanted = streams.stream().unwrap().run(&x).unwrap();
        let stream = streams.stream().unwrap();
        device.refuse_beyond(0);
        let mut got = Vec::new();
        for first in (0..160).step_by(8) {
            if first == 120 {
                device.lose();
            }
            got.extend_from_slice(stream.run(&rows(&x, first, 8)).unwrap().f32s().unwrap());
        }
        assert_eq!(bits(&got), bits(wanted.f32s().unwrap()));
        assert_eq!(streams.stats().recoveries, 1);
    }
}

#[test]
fn who_pushes_too_much_waits_and_who_does_not_receive_stops_only_itself() {
    let options = StreamOptions { streams: 2, queued: 8, outputs: 6, ..StreamOptions::default() };
    let streams = Arc::new(open(&Device::cpu(), options));
    let x = values(&[50, FEATURES], &mut Random::new(1, 1));
    let lazy = streams.stream().unwrap();
    let mut pushed = lazy.try_push(&x).unwrap();
    assert_eq!(pushed, 8, "a queue of eight");
    // Six of them run, and then there is room for six.
    while pushed < 14 {
        pushed += lazy.try_push(&rows(&x, pushed, 50 - pushed)).unwrap();
    }
    assert_eq!(lazy.try_push(&rows(&x, 14, 36)).unwrap(), 0);
    let other = streams.stream().unwrap();
    let wanted = other.run(&x).unwrap();
    assert!(streams.stream().is_err_and(|e| e.kind() == ErrorKind::Memory && e.to_string().contains("2 are open")));
    assert_eq!(lazy.try_push(&rows(&x, 14, 36)).unwrap(), 0, "nobody has received");
    let mut got = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| lazy.push(&rows(&x, 14, 36)).unwrap());
        while got.len() < wanted.len() {
            got.extend_from_slice(lazy.receive().unwrap().f32s().unwrap());
        }
    });
    assert_eq!(bits(&got), bits(wanted.f32s().unwrap()));
    assert_eq!(lazy.receive().unwrap().shape(), [0, 3], "nothing is to come");
    drop(other);
    assert!(streams.stream().is_ok(), "the slot is free");
}

#[test]
fn async_pushes_and_receives_wait_without_blocking() {
    let streams = open(&Device::cpu(), StreamOptions { queued: 4, outputs: 4, ..StreamOptions::default() });
    let x = values(&[30, FEATURES], &mut Random::new(2, 1));
    let wanted = streams.stream().unwrap().run(&x).unwrap();
    let (stream, mut got) = (streams.stream().unwrap(), Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| pollster::block_on(stream.push_async(&x)).unwrap());
        while got.len() < wanted.len() {
            got.extend_from_slice(pollster::block_on(stream.receive_async()).unwrap().f32s().unwrap());
        }
    });
    assert_eq!(bits(&got), bits(wanted.f32s().unwrap()));
}

#[test]
fn finishing_runs_what_waits_and_dropping_wakes_who_waits() {
    let x = values(&[40, FEATURES], &mut Random::new(3, 1));
    let streams = open(&Device::cpu(), StreamOptions { steps: 1, ..StreamOptions::default() });
    let stream = streams.stream().unwrap();
    stream.push(&x).unwrap();
    streams.finish();
    assert_eq!(stream.receive().unwrap().shape(), [40, 3]);
    for refused in [stream.push(&x).err(), stream.fork().err(), stream.save().err()] {
        assert!(refused.is_some_and(|e| e.kind() == ErrorKind::Device && e.to_string().contains("closed")));
    }
    let streams = open(&Device::cpu(), StreamOptions { outputs: 1, queued: 2, ..StreamOptions::default() });
    let stream = streams.stream().unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| stream.push(&x));
        std::thread::sleep(Duration::from_millis(50));
        drop(streams);
        assert!(waits.join().unwrap().is_err_and(|e| e.to_string().contains("stopped")));
    });
}

#[test]
fn integers_are_read_and_what_cannot_be_is_refused() {
    let mut network = Network::default();
    let x = network.input("x", Input::Tokens);
    let mut embedding = Embedding::new(11, 4);
    embedding.mask_zero = true;
    let e = network.add(embedding, &[x]).unwrap();
    let h = network.add(Lstm::new(6).return_state(true), &e).unwrap();
    network.output("y", h[0]);
    network.output("h", h[1]);
    let streams = Streams::open(&Device::cpu(), &network, parameters(&network), StreamOptions::default()).unwrap();
    assert_eq!((streams.input_features(), streams.output_features()), (None, 6));
    let stream = streams.stream().unwrap();
    let tokens = |tokens: &[u32]| Tensor::from_u32(&[tokens.len()], tokens.to_vec()).unwrap();
    let whole = stream.run(&tokens(&[1, 2, 10, 3])).unwrap();
    let other = streams.stream().unwrap();
    let parts = [1, 2, 10, 3].map(|t| other.run(&tokens(&[t])).unwrap().into_f32s().unwrap());
    assert_eq!(bits(whole.f32s().unwrap()), bits(&parts.concat()));
    for (x, what) in [
        (tokens(&[3, 11]), "below 11"),
        (tokens(&[3, 0]), "no step"),
        (Tensor::zeros(&[2]), "expected U32 of [steps], got F32 of [2]"),
        (Tensor::from_u32(&[1, 1], vec![1]).unwrap(), "got U32 of [1, 1]"),
    ] {
        let error = stream.push(&x).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
    assert_eq!(stream.save().unwrap().steps, 4, "what was refused was not read");
    let mut state = stream.save().unwrap();
    state.values.insert("other.h_l0".to_string(), Tensor::zeros(&[3]));
    assert!(streams.restore(&state).unwrap_err().to_string().contains("carries no `other.h_l0`"));
    state.values = BTreeMap::from([("lstm.h_l0".to_string(), Tensor::zeros(&[3]))]);
    assert!(streams.restore(&state).unwrap_err().to_string().contains("expected F32 of [6]"));
}

#[test]
fn networks_that_see_later_steps_are_refused_by_name() {
    let refused = |build: &dyn Fn(&mut Network)| {
        let mut network = Network::default();
        build(&mut network);
        network.streaming().unwrap_err().to_string()
    };
    let both = refused(&|n| {
        let x = n.input("x", Input::Features(2));
        let h = n.add(Lstm::new(3).direction(Direction::Both).name("both_ways"), &[x]).unwrap();
        n.output("y", h[0]);
    });
    assert!(both.contains("`both_ways` reads from the last step"), "{both}");
    let pooled = refused(&|n| {
        let x = n.input("x", Input::Features(2));
        let h = n.add(Lstm::new(3).return_sequences(true), &[x]).unwrap();
        let p = n.add(Pooling { kind: PoolingKind::Max }, &h).unwrap();
        n.output("y", p[0]);
    });
    assert!(pooled.contains("global_max_pooling1d"), "{pooled}");
    let decoder = refused(&|n| {
        let x = n.input("x", Input::Features(2));
        let h = n.add(Lstm::new(3).return_state(true), &[x]).unwrap();
        let d = n.add(Lstm::new(3).name("decoder"), &[x, h[1], h[2]]).unwrap();
        n.output("y", d[0]);
    });
    assert!(decoder.contains("`decoder` reads a final state"), "{decoder}");
    let two = refused(&|n| {
        let x = n.input("x", Input::Features(2));
        n.input("z", Input::Rows(2));
        n.output("y", x);
    });
    assert!(two.contains("one input, got 2"), "{two}");
    let options = StreamOptions { sequences: 0, ..StreamOptions::default() };
    let network = network();
    let error = Streams::open(&Device::cpu(), &network, parameters(&network), options).unwrap_err();
    assert!(error.to_string().contains("sequences must be in 1"), "{error}");
    let options = StreamOptions { output: Some("z".to_string()), ..StreamOptions::default() };
    let error = Streams::open(&Device::cpu(), &network, parameters(&network), options).unwrap_err();
    assert!(error.to_string().contains("[\"y\"] at each step, not `z`"), "{error}");
    let mut wrong = parameters(&network);
    wrong.remove("dense.bias");
    let error = Streams::open(&Device::cpu(), &network, wrong, StreamOptions::default()).unwrap_err();
    assert!(error.to_string().contains("`dense.bias`"), "{error}");
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    4096 * statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap()
}

/// `tests/run soak`: streams that come, are cut off and go for `MNEMON_SOAK` seconds, ten minutes unless set. No output is lost
/// or comes twice, and memory stays where it was.
#[test]
#[ignore = "takes ten minutes; tests/run soak"]
fn soak() {
    let seconds = std::env::var("MNEMON_SOAK").map_or(600, |s| s.parse().expect("MNEMON_SOAK: a number of seconds"));
    let streams = open(&Device::cpu(), StreamOptions { streams: 300, ..StreamOptions::default() });
    let inputs: Vec<Tensor> = (0..64).map(|n| values(&[1 + 5 * n, FEATURES], &mut Random::new(n as u64, 8))).collect();
    let wanted = alone(&streams, &inputs);
    let end = std::time::Instant::now() + Duration::from_secs(seconds);
    let (mut first, mut last) = (0, 0);
    let done: Vec<(u64, u64)> = std::thread::scope(|scope| {
        let work = |thread: u64| {
            let (streams, inputs, wanted) = (&streams, &inputs, &wanted);
            move || {
                let (mut random, mut whole, mut cut) = (Random::new(thread, 9), 0, 0);
                while std::time::Instant::now() < end {
                    let at = random.below(64) as usize;
                    let (stream, x, y) = (streams.stream().unwrap(), &inputs[at], &wanted[at]);
                    if random.below(4) == 0 {
                        // Gone with steps on the way.
                        stream.try_push(x).unwrap();
                        cut += 1;
                    } else if random.below(4) == 0 && x.shape()[0] > 1 {
                        // Half here, half in another that goes on from it.
                        let half = x.shape()[0] / 2;
                        stream.run(&rows(x, 0, half)).unwrap();
                        let other = match random.below(2) {
                            0 => stream.fork().unwrap(),
                            _ => streams.restore(&stream.save().unwrap()).unwrap(),
                        };
                        drop(stream);
                        let (rest, from) = (x.shape()[0] - half, half);
                        assert_bits(&other.run(&rows(x, from, rest)).unwrap(), &rows(y, from, rest), "the other half");
                        whole += 1;
                    } else {
                        assert_bits(&in_pieces(&stream, x, random.below(1 << 20).into()), y, "a stream");
                        whole += 1;
                    }
                }
                (whole, cut)
            }
        };
        let threads: Vec<_> = (0..24).map(|thread| scope.spawn(work(thread))).collect();
        // Once everything has reached its size, and at the end.
        std::thread::sleep(Duration::from_secs(seconds) / 10);
        first = resident();
        std::thread::sleep(Duration::from_secs(seconds) * 8 / 10);
        last = resident();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (whole, cut) = done.iter().fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1));
    let stats = streams.stats();
    println!("{whole} streams to their end, {cut} cut off, {} steps; {first} bytes, then {last}", stats.steps);
    assert_eq!((stats.open, stats.waiting), (0, 0));
    assert!(whole > 100 && cut > 30);
    // A tenth, and what an allocator keeps or gives back between.
    assert!(last < first + first / 10 + (8 << 20), "{first} bytes, then {last}");
}
