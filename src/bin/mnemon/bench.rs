//! `mnemon bench`: how fast a device computes LSTMs, as JSON lines.

use crate::options::DeviceOptions;
use crate::output::say;
use clap::{Args, ValueEnum};
use mnemon::config::{Bias, Cell, Direction, LstmConfig};
use mnemon::device::{Device, Executable, Session};
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::graph::builder::LstmWeights;
use mnemon::graph::{Expr, Graph, LstmOp, N, Value};
use mnemon::params::{Initializer, Tensor, lstm_parameters};
use mnemon::scheduler::{Batch, Capacity};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const BUILT_IN: &str = include_str!("../../../benches/configs.json");
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
    /// A JSON list of {"name", "B", "T", "I", "H", "layers"} instead of the built-in configurations; a row may also have
    /// "ragged", "direction", "cell" and "loss" (all or last)
    #[arg(long, value_name = "FILE")]
    configs: Option<PathBuf>,

    /// Names of configurations, with commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,

    /// What to time: infer is a forward pass, train is loss and gradients of all weights and of the input
    #[arg(long, value_enum, value_delimiter = ',', default_value = "infer,train")]
    modes: Vec<Mode>,

    /// Skip what takes longer than this many seconds a call
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    limit: f64,

    #[command(flatten)]
    device: DeviceOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    Infer,
    Train,
}

#[derive(Debug, Clone, Deserialize)]
#[allow(non_snake_case, reason = "the sizes have these names in the file")]
struct Config {
    name: String,
    B: usize,
    T: usize,
    I: usize,
    H: usize,
    layers: usize,
    /// Whether lengths are spread evenly over 1..=T, in no order, instead of T each.
    #[serde(default)]
    ragged: bool,
    #[serde(default)]
    direction: Direction,
    /// What a step computes besides the plain cell.
    #[serde(default)]
    cell: Cell,
    /// What the loss is made of, in training.
    #[serde(default)]
    loss: Of,
}

/// What a loss is made of; the last steps alone need no gradient of x.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Of {
    #[default]
    All,
    Last,
}

impl Config {
    fn batch(&self) -> Result<Batch> {
        if !self.ragged {
            return Batch::dense(self.T, self.B);
        }
        // 7919 is a prime, so every sequence has a place of its own in the spread.
        let lengths: Vec<usize> = (0..self.B).map(|b| 1 + b * 7919 % self.B * self.T / self.B).collect();
        Batch::ragged(&lengths)
    }
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
    let configs = configs(arguments)?;
    let device = arguments.device.open()?;
    let mut failed = false;
    for config in &configs {
        for &mode in &arguments.modes {
            let result = measure(&device, config, mode, arguments.limit)
                .unwrap_or_else(|error| Outcome::Failed { error: error.to_string() });
            failed |= matches!(&result, Outcome::Failed { error } if !error.starts_with("skipped"));
            let (version, adapter) = (env!("CARGO_PKG_VERSION"), device.name());
            let device = device.label();
            let line = Line { peer: "mnemon", version, device, adapter, config: &config.name, mode, result };
            let line = serde_json::to_string(&line).map_err(|e| Error::new(ErrorKind::Internal, e))?;
            say!("{line}");
        }
    }
    Ok(ExitCode::from(u8::from(failed)))
}

fn configs(arguments: &Arguments) -> Result<Vec<Config>> {
    let (text, from) = match &arguments.configs {
        Some(path) => (crate::read_text(path)?, path.display().to_string()),
        None => (BUILT_IN.to_string(), "the built-in configurations".to_string()),
    };
    let all: Vec<Config> =
        serde_json::from_str(&text).map_err(|e| Error::new(ErrorKind::File, format!("{from}: {e}")))?;
    if let Some(name) = arguments.only.iter().find(|n| all.iter().all(|c| c.name != **n)) {
        let names: Vec<&str> = all.iter().map(|c| c.name.as_str()).collect();
        return Err(Error::new(ErrorKind::Argument, format!("bench: {from} hold {}, not `{name}`", names.join(", "))));
    }
    Ok(all.into_iter().filter(|c| arguments.only.is_empty() || arguments.only.contains(&c.name)).collect())
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

fn measure(device: &Device, config: &Config, mode: Mode, limit: f64) -> Result<Outcome> {
    let batch = config.batch()?;
    let rows = batch.axis(0)?.rows();
    let mut session = device.session()?;
    let graph = build(config, mode, rows, &mut session)?;
    session.wait()?;
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

/// The stack of layers over an x that stays on the device; for training with mean(y²)/2, or that of the last h, and its gradients.
fn build(config: &Config, mode: Mode, rows: usize, session: &mut Session) -> Result<Graph> {
    let lstm = LstmConfig::new(config.I, config.H).layers(config.layers).bias(Bias::Two);
    let lstm = lstm.direction(config.direction).cell(config.cell);
    lstm.validate()?;
    let mut graph = Graph::new();
    let d = config.direction.count();
    if rows.saturating_mul(config.I.max(d * config.H)) > u32::MAX as usize {
        return Err(Error::new(ErrorKind::Argument, "bench: T*B*I and T*B*H must be below 2^32"));
    }
    let values = Initializer::Normal(1.0).values(&[rows, config.I], 0, u64::MAX)?;
    session.set("x", &Tensor::new(&[rows, config.I], values)?)?;
    let x = graph.persistent("x", [N, config.I.into()])?;
    let (mut y, mut last, mut by) = (x, None, vec![("x".to_string(), x)]);
    for layer in 0..config.layers {
        let weights = parameters(&lstm, layer, session, &mut graph, &mut by)?;
        let random = graph.random_operations(3);
        let op = LstmOp { direction: config.direction, cell: config.cell, random: Some(random) };
        let out = graph.lstm_layer(y, None, &op, &weights)?;
        graph.output(&format!("h_n_{layer}"), out.h_n)?;
        graph.output(&format!("c_n_{layer}"), out.c_n)?;
        (y, last) = (out.y, Some(out.h_n));
    }
    if config.loss == Of::All {
        graph.output("y", y)?;
    }
    if mode == Mode::Train {
        let (of, count) = match config.loss {
            Of::All => (y, rows * d * config.H),
            Of::Last => (last.unwrap_or(y), config.B * d * config.H),
        };
        let sum = graph.sum_of_squares(&[of])?;
        let half_mean = Expr::Input(0) * Expr::Const(0.5 / count as f32);
        let loss = graph.elementwise(half_mean, &[sum])?;
        graph.output("loss", loss)?;
        by.retain(|(name, _)| config.loss == Of::All || name != "x");
        let values: Vec<Value> = by.iter().map(|b| b.1).collect();
        for ((name, _), gradient) in by.iter().zip(graph.gradients(loss, &values)?) {
            graph.output(&format!("d{name}"), gradient)?;
        }
    }
    Ok(graph)
}

fn parameters(
    config: &LstmConfig,
    layer: usize,
    session: &mut Session,
    graph: &mut Graph,
    by: &mut Vec<(String, Value)>,
) -> Result<Vec<LstmWeights>> {
    let limit = 1.0 / (config.hidden_size as f32).sqrt();
    let parameters = lstm_parameters(config, layer);
    let mut values = Vec::new();
    for (at, parameter) in parameters.iter().enumerate() {
        let stream = (layer * parameters.len() + at) as u64;
        let first = Initializer::Uniform(limit).values(&parameter.shape, 0, stream)?;
        session.set(&parameter.name, &Tensor::new(&parameter.shape, first)?)?;
        let value = graph.persistent(&parameter.name, &parameter.shape)?;
        by.push((parameter.name.clone(), value));
        values.push(value);
    }
    let of = |direction: usize, role: &str| {
        parameters.iter().position(|p| p.direction == direction && p.role == role).map(|at| values[at])
    };
    (0..config.direction.count()).map(|d| LstmWeights::by_role(|role| of(d, role))).collect()
}
