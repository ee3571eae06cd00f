//! `mnemon run`: a model's outputs for given inputs.

use crate::options::DeviceOptions;
use crate::output::say;
use crate::summary::ModelOptions;
use clap::Args;
use mnemon::error::Result;
use mnemon::io;
use mnemon::params::DType;
use mnemon::train::{Model, Named};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  mnemon run model.keras --input x.safetensors --output y.safetensors
  mnemon run lm.safetensors --config lm.json --input tokens.safetensors

Inputs and outputs are called as the model calls them, x and y where it has no names; an input may begin with `in.`.
Sequences are batch-first: floats [B, T, features], integers [B, T]. `lengths` [B] says how long each is.";

/// Run a model over the tensors of a file
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelOptions,

    /// A .safetensors file with the inputs
    #[arg(long, value_name = "FILE")]
    input: PathBuf,

    /// Where to write the outputs, as .safetensors
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    device: DeviceOptions,
}

/// The inputs of a file: those called `in.*` if there are any, without that prefix, else all.
pub fn inputs(path: &Path) -> Result<Named> {
    let all = io::read_tensors(path)?;
    let prefixed: Named =
        all.iter().filter_map(|(name, t)| Some((name.strip_prefix("in.")?.to_string(), t.clone()))).collect();
    Ok(if prefixed.is_empty() { all } else { prefixed })
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut given = inputs(&arguments.input)?;
    let imported = arguments.model.read_for(None, Some(&given))?;
    // What a file of cases holds beside inputs.
    if !imported.network.inputs.iter().any(|i| i.0 == "targets") {
        given.remove("targets");
    }
    let mut model = Model::new(&arguments.device.open()?, &imported.network, &imported.parameters)?;
    let outputs = imported.edges.restore(model.run(&imported.edges.arrange(&given)?)?)?;
    for (name, tensor) in &outputs {
        let kind = if tensor.dtype() == DType::F32 { "F32" } else { "U32" };
        let first: Vec<String> = match tensor.dtype() {
            DType::F32 => tensor.f32s()?.iter().take(4).map(|v| format!("{v:.6}")).collect(),
            DType::U32 => tensor.u32s()?.iter().take(4).map(u32::to_string).collect(),
        };
        let more = if tensor.len() > 4 { ", .." } else { "" };
        say!("{name} {kind} {:?}: {}{more}", tensor.shape(), first.join(", "));
    }
    if let Some(path) = &arguments.output {
        io::write_tensors(path, outputs)?;
    }
    Ok(ExitCode::SUCCESS)
}
