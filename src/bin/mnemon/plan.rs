//! `mnemon plan`: the program that runs for a model, a batch and a budget of memory.

use crate::configs::{ConfigOptions, Mode};
use crate::options::DeviceOptions;
use crate::output::emit;
use crate::profile::rates;
use clap::{Args, ValueEnum};
use mnemon::device::Device;
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::graph::{Expr, Graph};
use mnemon::io;
use mnemon::params::Tensor;
use mnemon::scheduler::{Batch, Capacity, CompileOptions, Program, compile};
use mnemon::train::{self, Loss};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  mnemon plan model.keras --batch 32 --steps 200 --mode train
  mnemon plan model.safetensors --lengths 300,12,7 --memory 64MiB --device cpu
  mnemon plan --configs benches/long.json --only long --mode train --memory 256MiB --device cpu

Nothing of the model is allocated. What is printed is what runs: the memory in all and of what, what is done to hold no more than
--memory, the bytes that live over the program's actions, every action, and every value with its place and lifetime.
Where weights wait away from a GPU, its speed and that of the way to it are measured, for a second, and the part of its
speed is told that is left. Without a budget that can be kept the command fails and names the least that would do.";

/// Print what would run for a model, a batch and a budget of memory
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The model's file; without it the configurations of `mnemon bench` are planned
    #[arg(value_name = "MODEL", conflicts_with_all = ["configs", "only"])]
    model: Option<PathBuf>,

    #[command(flatten)]
    configs: ConfigOptions,

    /// Sequences of a model's batch [default: 32]
    #[arg(long, value_name = "N", requires = "model")]
    batch: Option<usize>,

    /// Steps of each sequence of a model's batch [default: 100]
    #[arg(long, value_name = "N", requires = "model")]
    steps: Option<usize>,

    /// Steps of each sequence, with commas, instead of --batch and --steps
    #[arg(long, value_name = "LENGTHS", value_delimiter = ',', requires = "model", conflicts_with_all = ["batch", "steps"])]
    lengths: Vec<usize>,

    /// Plan the forward pass, or a training step
    #[arg(long, value_enum, default_value = "infer")]
    mode: Mode,

    /// The loss that a model is trained with, with --mode train [default: mean-squared-error]
    #[arg(long, value_enum, requires = "model")]
    loss: Option<LossName>,

    /// Leave out the lists of actions and values
    #[arg(long)]
    brief: bool,

    #[command(flatten)]
    device: DeviceOptions,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LossName {
    /// Of floats like the output's
    MeanSquaredError,
    /// Of classes, from logits
    CrossEntropy,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let device = arguments.device.open()?;
    let Some(path) = &arguments.model else {
        for config in arguments.configs.read()? {
            let (graph, _) = config.graph(arguments.mode)?;
            let capacity = Capacity::exactly(&config.batch()?);
            let options = CompileOptions { budget: Some(device.budget().bytes), ..CompileOptions::new(&capacity) };
            let program = compile(&graph, device.target(), &options).map_err(|e| e.within(&config.name))?;
            print(&config.name, &device, &program, &config.batch()?, arguments.brief)?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let imported = io::read_model(path, None)?;
    let lengths = if arguments.lengths.is_empty() {
        let (batch, steps) = (arguments.batch.unwrap_or(32), arguments.steps.unwrap_or(100));
        if batch == 0 || steps == 0 {
            return Err(Error::new(ErrorKind::Argument, "--batch and --steps must be at least 1"));
        }
        vec![steps; batch]
    } else {
        arguments.lengths.clone()
    };
    let loss = match (arguments.mode, arguments.loss) {
        (Mode::Infer, Some(_)) => return Err(Error::new(ErrorKind::Argument, "--loss needs --mode train")),
        (Mode::Infer, None) => None,
        (Mode::Train, Some(LossName::CrossEntropy)) => Some(Loss::CrossEntropy),
        (Mode::Train, _) => Some(Loss::MeanSquaredError),
    };
    let budget = Some(device.budget().bytes);
    let program = train::plan(&imported.network, &lengths, loss, device.target(), budget)?;
    let axes = 1..program.capacity.axes.len();
    let batch = axes.into_iter().try_fold(Batch::ragged(&lengths)?, |batch, _| batch.with_axis(&lengths))?;
    print(&path.display().to_string(), &device, &program, &batch, arguments.brief)?;
    Ok(ExitCode::SUCCESS)
}

fn print(name: &str, device: &Device, program: &Program, batch: &Batch, brief: bool) -> Result<()> {
    emit(format_args!(
        "{name} on {}, {}\n{}{}\n{}\n",
        device.name(),
        device.budget(),
        program.summary(),
        bound(device, program, batch)?,
        program.chart()
    ));
    if !brief {
        emit(format_args!("{}\n{}\n", program.stage_list(), program.value_list()));
    }
    Ok(())
}

/// What a run can reach of its speed with all weights on the device, where some are brought: they come between what is computed.
fn bound(device: &Device, program: &Program, batch: &Batch) -> Result<String> {
    let moved = program.traffic().iter().sum::<u64>() as f64;
    if moved == 0.0 {
        return Ok(String::new());
    }
    // The budget is the model's, not that of what is measured.
    let free = device.clone().with_memory(u64::MAX);
    let ((gflops, _), bus) = (rates(&free)?, bus_rate(&free)?);
    let work = program.whole_work(batch)?.flops as f64 / 1e9;
    let (compute, copy) = (work / gflops, moved / 1e9 / bus);
    Ok(format!(
        "bound     compute / (compute + copy) = {:.3}: {work:.1} GFLOP at {gflops:.1} GFLOP/s, {:.3} GB at {bus:.2} GB/s, as \
         measured\n",
        compute / (compute + copy),
        moved / 1e9
    ))
}

/// GB/s to the device: the best of a few values that are written one after the other.
fn bus_rate(device: &Device) -> Result<f64> {
    let values = 1 << 22;
    let tensor = Tensor::zeros(&[values]);
    let mut graph = Graph::new();
    let x = graph.persistent("x", [values])?;
    let y = graph.elementwise(Expr::Input(0) + Expr::Const(1.0), &[x])?;
    graph.output("y", y)?;
    let mut session = device.session()?;
    session.set("x", &tensor)?;
    // Nothing is on the device before a program needs it there.
    let _program = session.load(&graph, &Capacity::exactly(&Batch::dense(0, 1)?))?;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        session.wait()?;
        let begin = Instant::now();
        session.set("x", &tensor)?;
        session.flush();
        session.wait()?;
        best = best.min(begin.elapsed().as_secs_f64());
    }
    Ok(4.0 * values as f64 / best / 1e9)
}
