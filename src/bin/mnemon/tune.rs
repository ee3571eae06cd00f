//! `mnemon tune`: strategies picked by measurement, ahead of time.

use crate::configs::{ConfigOptions, Mode};
use crate::options::DeviceOptions;
use crate::output::say;
use clap::Args;
use mnemon::device::{DeviceKind, Finding, Findings};
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::scheduler::{Capacity, CompileOptions, compile};
use std::fmt::Display;
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  mnemon tune
  mnemon tune --only small,med --device software --tuned kernels.json

Each kind of layer (its sizes, directions, the batch rounded up to a power of two, forward and back) is run by every strategy
that the device can run it by, and each matrix product in every tile, checked against the reference on a small case, and timed. The fastest is remembered for the
adapter, its driver and this version, and every command uses it from then on unless it is given --tune off. Without this,
first use takes about 2 seconds a model.";

/// Measure which strategies are fastest on a GPU, and remember it
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    configs: ConfigOptions,

    /// Stop after this many seconds a configuration; what is left is measured another time
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0)]
    budget: f64,

    #[command(flatten)]
    device: DeviceOptions,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let budget = Duration::try_from_secs_f64(arguments.budget).map_err(|e| {
        Error::new(ErrorKind::Argument, format!("--budget: expected seconds, got {}: {e}", arguments.budget))
    })?;
    let configs = arguments.configs.read()?;
    let device = arguments.device.open_untuned()?;
    if !matches!(device.kind(), DeviceKind::Gpu | DeviceKind::Software) {
        return Err(Error::new(
            ErrorKind::Argument,
            format!("tune: only a GPU has strategies to choose from, got {}", device.name()),
        ));
    }
    let tuner = arguments.device.tuner(&device, budget)?;
    let mut shown = Vec::new();
    for config in &configs {
        let (graph, _) = config.graph(Mode::Train)?;
        let options = CompileOptions::new(&Capacity::exactly(&config.batch()?));
        let program = compile(&graph, device.target(), &options)?;
        let left = tuner.settle(&device, &program)?;
        let Findings { layers, products } = tuner.findings();
        layers.iter().for_each(|f| show(f, &mut shown));
        products.iter().for_each(|f| show(f, &mut shown));
        if left > 0 {
            say!("{}: {left} layers and products left for another time", config.name);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what is not among `shown`.
fn show<Of: Display, Choice: Display + PartialEq>(finding: &Finding<Of, Choice>, shown: &mut Vec<String>) {
    let of = finding.of.to_string();
    if shown.contains(&of) {
        return;
    }
    say!("{of}");
    shown.push(of);
    for (candidate, seconds) in &finding.timed {
        let mark = if *candidate == finding.pick { "*" } else { " " };
        match seconds {
            Some(seconds) => say!("{mark} {:>10.3} ms  {candidate}", seconds * 1e3),
            None => say!("{mark}      wrong     {candidate}"),
        }
    }
}
