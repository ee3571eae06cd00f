//! `mnemon bench`: how fast a device computes LSTMs, as JSON lines.

use crate::configs::{Config, ConfigOptions, Mode};
use crate::options::DeviceOptions;
use crate::output::say;
use clap::Args;
use mnemon::device::{Device, Executable, Session};
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::graph::Graph;
use mnemon::params::{Initializer, Tensor};
use mnemon::scheduler::{Batch, Capacity};
use serde::Serialize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The timing rule shared with the other implementations: see the fields' uses in [`time`].
const TIMED_CALLS: usize = 5;
const TIMED_CALLS_IF_SLOW: usize = 3;
const SLOW: Duration = Duration::from_secs(10);
const TIMED_FOR: Duration = Duration::from_secs(2);
const MOST_CALLS: usize = 200;

const EXAMPLES: &str = "\
Examples:
  mnemon bench --only small,med --modes infer --device cpu
  mnemon bench --configs benches/kinds.json --modes train

A line holds milliseconds a call (the median; the least; the first with all it compiles), what the program holds and
what is done to hold no more than --memory, and GFLOP/s by one count for
everyone: 2*4*B*T*H*(I+H) a layer and direction (the true steps where ragged), three times that for training.";

/// Time LSTMs, one JSON line a configuration and mode
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    configs: ConfigOptions,

    /// What to time: infer is a forward pass, train is loss and gradients of all weights and of the input
    #[arg(long, value_enum, value_delimiter = ',', default_value = "infer,train")]
    modes: Vec<Mode>,

    /// Skip what takes longer than this many seconds a call
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    limit: f64,

    #[command(flatten)]
    device: DeviceOptions,
}

#[derive(Serialize)]
struct Line<'a> {
    peer: &'static str,
    version: &'static str,
    device: &'static str,
    adapter: String,
    config: &'a str,
    mode: Mode,
    #[serde(flatten)]
    result: Outcome,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    Times { ms: f64, gflops: f64, min_ms: f64, iters: usize, first_ms: f64, memory_bytes: u64, plan: String },
    Failed { error: String },
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let configs = arguments.configs.read()?;
    let device = arguments.device.open()?;
    let mut failed = false;
    for config in &configs {
        for &mode in &arguments.modes {
            let line = line(&device, config, mode, arguments.limit)?;
            failed |= line["error"].as_str().is_some_and(|error| !error.starts_with("skipped"));
            say!("{line}");
        }
    }
    Ok(ExitCode::from(u8::from(failed)))
}

/// What is measured of a configuration, or why it is not.
pub fn line(device: &Device, config: &Config, mode: Mode, limit: f64) -> Result<serde_json::Value> {
    let result =
        measure(device, config, mode, limit).unwrap_or_else(|error| Outcome::Failed { error: error.to_string() });
    let (version, adapter, device) = (env!("CARGO_PKG_VERSION"), device.name(), device.label());
    let line = Line { peer: "mnemon", version, device, adapter, config: &config.name, mode, result };
    serde_json::to_value(&line).map_err(|e| Error::new(ErrorKind::Internal, e))
}

/// Floating-point operations of one call over `rows` rows.
fn operations(config: &Config, mode: Mode, rows: usize) -> f64 {
    let layer = |l: usize| {
        let d = config.direction.count();
        let input = if l == 0 { config.I } else { d * config.H };
        2.0 * 4.0 * (d * rows) as f64 * config.H as f64 * (input + config.H) as f64
    };
    (0..config.layers).map(layer).sum::<f64>() * if mode == Mode::Train { 3.0 } else { 1.0 }
}

/// A session with a configuration's values on the device, what it computes, and its batch.
pub fn prepare(device: &Device, config: &Config, mode: Mode) -> Result<(Session, Graph, Batch)> {
    let batch = config.batch()?;
    let rows = batch.axis(0)?.rows();
    let mut session = device.session()?;
    let (graph, parameters) = config.graph(mode)?;
    let values = Initializer::Normal(1.0).values(&[rows, config.I], 0, u64::MAX)?;
    session.set("x", &Tensor::new(&[rows, config.I], values)?)?;
    for (at, (name, shape)) in parameters.iter().enumerate() {
        let limit = 1.0 / (config.H as f32).sqrt();
        let first = Initializer::Uniform(limit).values(shape, 0, at as u64)?;
        session.set(name, &Tensor::new(shape, first)?)?;
    }
    session.wait()?;
    Ok((session, graph, batch))
}

fn measure(device: &Device, config: &Config, mode: Mode, limit: f64) -> Result<Outcome> {
    let (mut session, graph, batch) = prepare(device, config, mode)?;
    let rows = batch.axis(0)?.rows();
    let begin = Instant::now();
    let mut executable = session.load(&graph, &Capacity::exactly(&batch))?;
    let (held, plan) = (executable.program().memory(), executable.program().measures.to_string());
    let mut call = || call(&mut session, &mut executable, &batch);
    call()?;
    let first = begin.elapsed();
    if first.as_secs_f64() > limit {
        return Ok(Outcome::Failed { error: format!("skipped: first call took {:.1} s", first.as_secs_f64()) });
    }
    let mut times = time(&mut call)?;
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    let median = if times.len() % 2 == 1 { times[middle] } else { (times[middle - 1] + times[middle]) / 2.0 };
    let round = |value: f64, places: i32| (value * 10f64.powi(places)).round() / 10f64.powi(places);
    Ok(Outcome::Times {
        ms: round(median, 4),
        gflops: round(operations(config, mode, rows) / median / 1e6, 3),
        min_ms: round(times[0], 4),
        iters: times.len(),
        first_ms: round(first.as_secs_f64() * 1e3, 1),
        memory_bytes: held.bytes(),
        plan,
    })
}

/// One call: everything stays on the device, and the call ends when the device is done.
fn call(session: &mut Session, executable: &mut Executable, batch: &Batch) -> Result<Duration> {
    let begin = Instant::now();
    session.run(executable, batch, &[])?;
    session.wait()?;
    Ok(begin.elapsed())
}

/// A second warm-up call, then at least five timed ones (three where a call takes over ten seconds), going on for about
/// two seconds; milliseconds.
fn time(call: &mut impl FnMut() -> Result<Duration>) -> Result<Vec<f64>> {
    let least = if call()? > SLOW { TIMED_CALLS_IF_SLOW } else { TIMED_CALLS };
    let (mut times, begin) = (Vec::new(), Instant::now());
    while times.len() < least || (begin.elapsed() < TIMED_FOR && times.len() < MOST_CALLS) {
        times.push(call()?.as_secs_f64() * 1e3);
    }
    Ok(times)
}
