//! `mnemon tune-memory`: a working memory fitted to a language model; and the option that has a model use one.

use crate::evaluate::measured;
use crate::options::DeviceOptions;
use crate::output::say;
use clap::{Args, ValueEnum};
use mnemon::data::read_corpus;
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::nn::Mixture;
use mnemon::train::{LanguageModel, MixtureKind};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Example:
  mnemon tune-memory --model news.safetensors --window 2000 held-out.txt
  mnemon evaluate --model news.safetensors --working-memory 2000 test.txt

The text should be none that the model was trained on, nor any that it is judged by later.";

/// The option of commands that use a language model.
#[derive(Debug, Clone, Args)]
pub struct MemoryOptions {
    /// Remember so many tokens, and mix what followed in like places before into what comes next; `mnemon tune-memory` fits how. Of a
    /// model that was trained with a memory, its window
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    working_memory: Option<u32>,
}

impl MemoryOptions {
    /// The window that was asked for.
    pub fn window(&self) -> Option<usize> {
        self.working_memory.map(|n| n as usize)
    }

    /// Has the model remember, where that was asked for.
    pub fn apply(&self, model: &mut LanguageModel) -> Result<()> {
        self.window().map_or(Ok(()), |window| model.remember(window))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A share of each
    Linear,
    /// One distribution over tokens and remembered places together
    Global,
}

/// Fit a working memory to a model that `mnemon train` saved, on text that it was not trained on
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Text files, or folders with all that is in them
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// The model, whose file keeps what is found
    #[arg(long, value_name = "FILE", default_value = "model.safetensors")]
    model: PathBuf,

    /// Tokens to remember
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    window: u32,

    /// How the memory is mixed in
    #[arg(long, value_enum, default_value = "linear")]
    mixture: Kind,

    #[command(flatten)]
    device: DeviceOptions,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let corpus = read_corpus(&arguments.paths)?;
    let device = arguments.device.open()?;
    let mut model = LanguageModel::load(&device, &arguments.model)?;
    let tokens = model.vocabulary().encode(&corpus.text)?;
    let kind = match arguments.mixture {
        Kind::Linear => MixtureKind::Linear,
        Kind::Global => MixtureKind::Global,
    };
    let fitted = model.fit_memory(&tokens, arguments.window as usize, kind)?;
    model.save_fitted(&arguments.model)?;
    let level = model.vocabulary().level();
    let of = |loss: f64| {
        let (name, value) = measured(level, loss as f32);
        format!("{} {value:.3}", name.replace('_', " "))
    };
    let found = match fitted.memory.mixture {
        Mixture::Linear { theta, lambda } => format!("theta {theta:.4}, lambda {lambda:.4}"),
        Mixture::Global { theta, alpha } => format!("theta {theta:.4}, alpha {alpha:.4}"),
        Mixture::Pointer => return Err(Error::new(ErrorKind::Internal, "tune-memory: a pointer is not fitted")),
    };
    say!("{found}");
    say!("{} {}s predicted: {} alone, {} with it", fitted.tokens, level.unit(), of(fitted.alone), of(fitted.loss));
    let (window, file) = (arguments.window, arguments.model.display());
    eprintln!("kept in {file}; to use it: mnemon evaluate --model {file} --working-memory {window} PATH");
    Ok(ExitCode::SUCCESS)
}
