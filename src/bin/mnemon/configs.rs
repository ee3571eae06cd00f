//! Configurations of stacks of LSTMs, for `bench` and `plan`.

use clap::{Args, ValueEnum};
use mnemon::config::{Bias, Cell, Direction, LstmConfig};
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::graph::builder::LstmWeights;
use mnemon::graph::{Expr, Graph, LstmOp, N, Value};
use mnemon::params::lstm_parameters;
use mnemon::scheduler::Batch;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

const BUILT_IN: &str = include_str!("../../../benches/configs.json");

/// Names and shapes of parameters.
pub type Shapes = Vec<(String, Vec<usize>)>;

/// Which configurations.
#[derive(Debug, Args)]
pub struct ConfigOptions {
    /// A JSON list of {"name", "B", "T", "I", "H", "layers"} instead of the built-in configurations; a row may also have
    /// "ragged", "direction", "cell" and "loss" (all or last)
    #[arg(long, value_name = "FILE")]
    configs: Option<PathBuf>,

    /// Names of configurations, with commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
}

impl ConfigOptions {
    /// The chosen configurations.
    pub fn read(&self) -> Result<Vec<Config>> {
        let (text, from) = match &self.configs {
            Some(path) => (crate::read_text(path)?, path.display().to_string()),
            None => (BUILT_IN.to_string(), "the built-in configurations".to_string()),
        };
        let all: Vec<Config> =
            serde_json::from_str(&text).map_err(|e| Error::new(ErrorKind::File, format!("{from}: {e}")))?;
        if let Some(name) = self.only.iter().find(|n| all.iter().all(|c| c.name != **n)) {
            let names: Vec<&str> = all.iter().map(|c| c.name.as_str()).collect();
            return Err(Error::new(ErrorKind::Argument, format!("{from} hold {}, not `{name}`", names.join(", "))));
        }
        Ok(all.into_iter().filter(|c| self.only.is_empty() || self.only.contains(&c.name)).collect())
    }
}

/// What is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The forward pass
    Infer,
    /// Loss and gradients
    Train,
}

#[derive(Debug, Clone, Deserialize)]
#[allow(non_snake_case, reason = "the sizes have these names in the file")]
pub struct Config {
    pub name: String,
    pub B: usize,
    pub T: usize,
    pub I: usize,
    pub H: usize,
    pub layers: usize,
    /// Whether lengths are spread evenly over 1..=T, in no order, instead of T each.
    #[serde(default)]
    ragged: bool,
    #[serde(default)]
    pub direction: Direction,
    /// What a step computes besides the plain cell.
    #[serde(default)]
    cell: Cell,
    /// What the loss is made of, in training.
    #[serde(default)]
    pub loss: Of,
}

/// What a loss is made of; the last steps alone need no gradient of x.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Of {
    #[default]
    All,
    Last,
}

impl Config {
    /// The lengths of its sequences.
    pub fn batch(&self) -> Result<Batch> {
        if !self.ragged {
            return Batch::dense(self.T, self.B);
        }
        // 7919 is a prime, so every sequence has a place of its own in the spread.
        let lengths: Vec<usize> = (0..self.B).map(|b| 1 + b * 7919 % self.B * self.T / self.B).collect();
        Batch::ragged(&lengths)
    }

    /// What is timed, and the names and shapes of its parameters.
    pub fn graph(&self, mode: Mode) -> Result<(Graph, Shapes)> {
        build(self, mode, self.batch()?.axis(0)?.rows())
    }
}

/// The stack of layers over an x that stays on the device; for training with mean(y²)/2, or that of the last h, and its
/// gradients. With the names and shapes of its parameters.
fn build(config: &Config, mode: Mode, rows: usize) -> Result<(Graph, Shapes)> {
    let lstm = LstmConfig::new(config.I, config.H).layers(config.layers).bias(Bias::Two);
    let lstm = lstm.direction(config.direction).cell(config.cell);
    lstm.validate()?;
    let mut graph = Graph::new();
    let d = config.direction.count();
    if rows.saturating_mul(config.I.max(d * config.H)) > u32::MAX as usize {
        return Err(Error::new(ErrorKind::Argument, "configuration: T*B*I and T*B*H must be below 2^32"));
    }
    let mut shapes = Vec::new();
    let x = graph.persistent("x", [N, config.I.into()])?;
    let (mut y, mut last, mut by) = (x, None, vec![("x".to_string(), x)]);
    for layer in 0..config.layers {
        let weights = parameters(&lstm, layer, &mut shapes, &mut graph, &mut by)?;
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
    Ok((graph, shapes))
}

fn parameters(
    config: &LstmConfig,
    layer: usize,
    shapes: &mut Shapes,
    graph: &mut Graph,
    by: &mut Vec<(String, Value)>,
) -> Result<Vec<LstmWeights>> {
    let parameters = lstm_parameters(config, layer);
    let mut values = Vec::new();
    for parameter in &parameters {
        shapes.push((parameter.name.clone(), parameter.shape.clone()));
        let value = graph.persistent(&parameter.name, &parameter.shape)?;
        by.push((parameter.name.clone(), value));
        values.push(value);
    }
    let of = |direction: usize, role: &str| {
        parameters.iter().position(|p| p.direction == direction && p.role == role).map(|at| values[at])
    };
    (0..config.direction.count()).map(|d| LstmWeights::by_role(|role| of(d, role))).collect()
}
