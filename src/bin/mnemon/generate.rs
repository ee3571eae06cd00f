//! `mnemon generate`: text from a trained model, as it comes.

use crate::options::DeviceOptions;
use crate::output::emit;
use clap::Args;
use mnemon::error::Result;
use mnemon::params::random::Random;
use mnemon::train::{Generator, LanguageModel};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Example:
  mnemon generate --model model.safetensors --prompt 'fn main() {' --temperature 0.5 --length 400";

/// Generate text from a model that `mnemon train` saved
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The model
    #[arg(long, value_name = "FILE", default_value = "model.safetensors")]
    model: PathBuf,

    /// Text to go on from; the model must have seen all its characters
    #[arg(long, value_name = "TEXT", default_value = "")]
    prompt: String,

    /// How freely to choose: 0 is always the likeliest character, 1 as the model learnt
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    temperature: f32,

    /// Choose among this many of the likeliest characters; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,

    /// Characters to generate
    #[arg(long, value_name = "N", default_value_t = 500)]
    length: usize,

    /// Seed of the choices; the same seed gives the same text
    #[arg(long, default_value_t = 0)]
    seed: u64,

    #[command(flatten)]
    device: DeviceOptions,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let device = arguments.device.open()?;
    let mut model = LanguageModel::load(&device, &arguments.model)?;
    let mut generator = Generator::new(&mut model)?;
    generator.feed(&arguments.prompt)?;
    emit(format_args!("{}", arguments.prompt));
    let mut random = Random::new(arguments.seed, 0);
    for _ in 0..arguments.length {
        let next = generator.next(arguments.temperature, arguments.top_k, &mut random)?;
        emit(format_args!("{next}"));
    }
    emit(format_args!("\n"));
    Ok(ExitCode::SUCCESS)
}
