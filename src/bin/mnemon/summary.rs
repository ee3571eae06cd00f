//! `mnemon summary`: what a model is.

use crate::output::emit;
use clap::Args;
use mnemon::error::Result;
use mnemon::io::{self, pytorch};
use mnemon::train::Named;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Print the layers of a model, their output shapes and parameters
///
/// MODEL is a file that mnemon saved, a .keras file of Keras 3, or a PyTorch state dict, as .safetensors or as
/// torch.save writes it, with an LSTM, and perhaps an embedding before and a linear layer after it.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mnemon summary model.keras")]
pub struct Arguments {
    #[command(flatten)]
    model: ModelOptions,
}

/// A model file, for every subcommand that reads one.
#[derive(Debug, Args)]
pub struct ModelOptions {
    /// The model's file
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,

    /// A JSON file that says what a state dict holds: the prefixes `embedding`, `lstm` and `linear`, and `tied`
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// A .weights.h5 file whose parameters a .keras file takes in place of its own
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    pub weights: Option<PathBuf>,
}

impl ModelOptions {
    /// Reads the model; `entry` is its configuration where the command line gives none.
    pub fn read(&self, entry: Option<pytorch::Config>) -> Result<io::Imported> {
        self.read_for(entry, None)
    }

    /// Reads the model for a run over `inputs`.
    pub fn read_for(&self, entry: Option<pytorch::Config>, inputs: Option<&Named>) -> Result<io::Imported> {
        if let Some(weights) = &self.weights {
            return io::read_model_with_weights(&self.model, weights);
        }
        let given = self.config.as_deref().map(pytorch::Config::read).transpose()?;
        io::read_model_for(&self.model, given.or(entry).as_ref(), inputs)
    }
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let imported = arguments.model.read(None)?;
    let name = arguments.model.model.file_name().map_or(Path::new("model"), Path::new);
    emit(format_args!("{}", imported.network.summary(&format!("{}: {}", name.display(), imported.title))?));
    Ok(ExitCode::SUCCESS)
}
