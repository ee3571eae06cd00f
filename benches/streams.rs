//! Live streams beside a plain batch and beside a call for each step.
//!
//!     cargo bench --bench streams -- [--streams 1000] [--seconds 1] [--rounds 7] [--load 0.6] [--bound-ms 10]
//!
//! One layer, I = H = 256; MNEMON_DEVICE chooses the device (cpu unless set). Beside it:
//! `benches/step_onnxruntime.py 2 256`. JSON lines, medians of rounds, GFLOP/s counted as 2 · 4H (I + H) a step:
//! * `batch`: B 64, T 64, one call after the other;
//! * `step`: B 1, T 1, one call a step;
//! * `streams`: streams that each get 1 to 4 steps at random times, as many as there is room for; the outputs are received;
//! * `load`: the same at a part of that rate, arrivals of a Poisson process, with latencies from push to output.

use mnemon::device::{Device, GpuLimits};
use mnemon::error::Result;
use mnemon::nn::{Input, Lstm, Network};
use mnemon::params::random::Random;
use mnemon::params::{ParameterSpec, Tensor};
use mnemon::scheduler::{Batch, Capacity};
use mnemon::streams::{Stats, Stream, StreamOptions, Streams};
use mnemon::train::Named;
use std::time::{Duration, Instant};

const SIZE: usize = 256;
const FLOPS: f64 = 2.0 * 4.0 * SIZE as f64 * 2.0 * SIZE as f64;

struct Arguments {
    streams: usize,
    seconds: f64,
    rounds: usize,
    load: f64,
    bound: Duration,
}

fn arguments() -> Arguments {
    let mut all = Arguments { streams: 1000, seconds: 1.0, rounds: 7, load: 0.6, bound: Duration::from_millis(10) };
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let value: f64 = words.next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{word}: a number"));
        match word.as_str() {
            "--streams" => all.streams = value as usize,
            "--seconds" => all.seconds = value,
            "--rounds" => all.rounds = value as usize,
            "--load" => all.load = value,
            "--bound-ms" => all.bound = Duration::from_secs_f64(value / 1e3),
            _ => panic!("expected --streams, --seconds, --rounds, --load or --bound-ms, got {word}"),
        }
    }
    all
}

fn values(shape: &[usize], random: &mut Random, scale: f64) -> Tensor {
    let len = shape.iter().product();
    Tensor::new(shape, (0..len).map(|_| (scale * random.normal()) as f32).collect()).expect("as many as the shape has")
}

fn main() -> Result<()> {
    let arguments = arguments();
    let device = std::env::var("MNEMON_DEVICE").unwrap_or_else(|_| "cpu".to_string());
    let device = Device::parse(&device, GpuLimits::default(), None)?;
    let mut network = Network::default();
    let x = network.input("x", Input::Features(SIZE));
    let y = network.add(Lstm::new(SIZE).return_sequences(true), &[x])?;
    network.output("y", y[0]);
    let mut random = Random::new(0, 0);
    let value = |p: &ParameterSpec| (p.name.clone(), values(&p.shape, &mut random, 0.05));
    let parameters: Named = network.parameters()?.iter().map(value).collect();
    let report = |what: &str, rates: &[f64], more: String| {
        let rate = median(rates);
        let (device, gflops) = (device.name(), rate * FLOPS / 1e9);
        println!(r#"{{"what":"{what}","device":"{device}","gflops":{gflops:.1},"steps_per_s":{rate:.0}{more}}}"#);
    };
    let options = StreamOptions { streams: arguments.streams, bound: arguments.bound, ..StreamOptions::default() };
    let streams = Streams::open(&device, &network, parameters.clone(), options)?;
    let all = (0..arguments.streams).map(|_| streams.stream()).collect::<Result<Vec<_>>>()?;
    let mut random = Random::new(1, 0);
    let pieces: Vec<Tensor> = (0..64).map(|n| values(&[1 + n % 4, SIZE], &mut random, 1.0)).collect();
    // In turn, so that what slows the machine down slows all of them down.
    let (mut rates, mut latency) = ([const { Vec::new() }; 4], Vec::new());
    for _ in 0..arguments.rounds {
        rates[0].push(plain(&device, &network, &parameters, (64, 64), arguments.seconds)?);
        rates[1].push(plain(&device, &network, &parameters, (1, 1), arguments.seconds)?);
        let (rate, _) = offered(&streams, &all, &pieces, None, arguments.seconds)?;
        rates[2].push(rate);
        let (rate, stats) = offered(&streams, &all, &pieces, Some(arguments.load * rate), arguments.seconds)?;
        rates[3].push(rate);
        latency.push(stats);
    }
    report("batch", &rates[0], String::new());
    report("step", &rates[1], String::new());
    let beside = |at: usize| median(&rates[2].iter().zip(&rates[at]).map(|(a, b)| a / b).collect::<Vec<_>>());
    report("streams", &rates[2], format!(r#","of_batch":{:.2},"of_step":{:.2}"#, beside(0), beside(1)));
    report(&format!("load {}", arguments.load), &rates[3], latencies(&latency));
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The network on sequences that carry their state from call to call: steps a second.
fn plain(
    device: &Device,
    network: &Network,
    parameters: &Named,
    (sequences, steps): (usize, usize),
    seconds: f64,
) -> Result<f64> {
    let mut session = device.session()?;
    parameters.iter().try_for_each(|(name, tensor)| session.set(name, tensor))?;
    let mut graph = mnemon::graph::Graph::new();
    let built = network.streaming()?.build(&mut graph, Default::default())?;
    for &(state, end) in &built.states {
        graph.update(state, end)?;
    }
    graph.output("y", built.outputs[0].0)?;
    let batch = Batch::dense(steps, sequences)?;
    let mut program = session.load(&graph, &Capacity::exactly(&batch))?;
    let x = values(&[steps * sequences, SIZE], &mut Random::new(2, 0), 1.0);
    let (mut calls, mut begin) = (0, Instant::now());
    while calls < 4 || begin.elapsed().as_secs_f64() < seconds {
        session.run(&mut program, &batch, &[("x", &x)])?;
        session.output(&program, "y")?;
        calls += 1;
        if calls == 2 {
            begin = Instant::now();
        }
    }
    Ok(((calls - 2) * steps * sequences) as f64 / begin.elapsed().as_secs_f64())
}

/// Pushes pieces to random streams, `rate` steps a second or as many as there is room for, and receives: steps a second, and
/// what the streams counted meanwhile.
fn offered(
    streams: &Streams,
    all: &[Stream],
    pieces: &[Tensor],
    rate: Option<f64>,
    seconds: f64,
) -> Result<(f64, Stats)> {
    let mut random = Random::new(3, 0);
    let (before, begin) = (streams.stats(), Instant::now());
    let (mut pushed, mut turn) = (0usize, 0);
    let mut next = 0.0;
    while begin.elapsed().as_secs_f64() < seconds {
        let (stream, piece) = (&all[random.below(all.len() as u32) as usize], &pieces[random.below(64) as usize]);
        let steps = piece.shape()[0];
        if let Some(rate) = rate {
            next += -(1.0 - random.uniform()).ln() * steps as f64 / rate;
            // Sleeping is not exact: what is late is pushed at once.
            let wait = next - begin.elapsed().as_secs_f64();
            if wait > 1e-3 {
                std::thread::sleep(Duration::from_secs_f64(wait));
            }
        } else if pushed % 64 == 0 && streams.stats().waiting > 4 * all.len() as u64 {
            std::thread::sleep(Duration::from_micros(500));
        }
        pushed += stream.try_push(piece)?;
        // Each stream's outputs are received now and then.
        turn = (turn + 1) % all.len();
        all[turn].try_receive()?;
    }
    let elapsed = begin.elapsed().as_secs_f64();
    let mut after = streams.stats();
    let rate = (after.steps - before.steps) as f64 / elapsed;
    for stream in all {
        while !stream.receive()?.is_empty() {}
    }
    for (now, then) in after.latencies.iter_mut().zip(before.latencies) {
        *now -= then;
    }
    Ok((rate, after))
}

/// By the ends of their classes: the latencies that half and 99 % of the pushes are within.
fn latencies(all: &[Stats]) -> String {
    let counts: Vec<u64> = (0..=Stats::classes().len()).map(|at| all.iter().map(|s| s.latencies[at]).sum()).collect();
    let total: u64 = counts.iter().sum();
    let within = |part: f64| {
        let mut sum = 0;
        let at = counts.iter().position(|n| {
            sum += n;
            sum as f64 >= part * total as f64
        });
        at.and_then(|at| Stats::classes().get(at)).map_or("\"more\"".to_string(), |end| format!("{:.2}", end * 1e3))
    };
    format!(r#","p50_within_ms":{},"p99_within_ms":{}"#, within(0.5), within(0.99))
}
