//! `mnemon evaluate`: how well a language model predicts a text.

use crate::options::DeviceOptions;
use crate::output::say;
use crate::tune_memory::MemoryOptions;
use clap::Args;
use mnemon::data::{Level, read_corpus};
use mnemon::error::Result;
use mnemon::train::{LanguageModel, Metric};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

const EXAMPLES: &str = "\
Example:
  mnemon evaluate --model model.safetensors test.txt";

/// Say how well a model that `mnemon train` saved predicts a text, read as one stream
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Text files, or folders with all that is in them
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// The model
    #[arg(long, value_name = "FILE", default_value = "model.safetensors")]
    model: PathBuf,

    #[command(flatten)]
    memory: MemoryOptions,

    #[command(flatten)]
    device: DeviceOptions,
}

/// What a mean loss is called and is in the usual measure.
pub fn measured(level: Level, loss: f32) -> (&'static str, f64) {
    let (name, metric) = match level {
        Level::Words | Level::Tokens => ("perplexity", Metric::Perplexity),
        Level::Characters => ("bits_per_character", Metric::BitsPerCharacter),
        Level::Bytes => ("bits_per_byte", Metric::BitsPerCharacter),
    };
    (name, metric.of_loss(loss).unwrap_or(f64::NAN))
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let corpus = read_corpus(&arguments.paths)?;
    let device = arguments.device.open()?;
    let mut model = LanguageModel::load(&device, &arguments.model)?;
    arguments.memory.apply(&mut model)?;
    let tokens = model.vocabulary().encode(&corpus.text)?;
    let start = Instant::now();
    let (loss, count) = model.score(tokens)?;
    let seconds = start.elapsed().as_secs_f64();
    let level = model.vocabulary().level();
    let ((name, value), unit) = (measured(level, loss), level.unit());
    let name = name.replace('_', " ");
    say!("{count} {unit}s predicted: loss {loss:.4} nats, {name} {value:.3}");
    eprintln!("{:.0} {unit}s a second on {}", count as f64 / seconds, device.name());
    Ok(ExitCode::SUCCESS)
}
