//! `mnemon generate`: text from a trained model, as it comes.

use crate::options::DeviceOptions;
use crate::output::emit;
use crate::tune_memory::MemoryOptions;
use clap::Args;
use mnemon::data::{Decoder, Vocabulary};
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::params::random::Random;
use mnemon::train::{Explanation, Generator, LanguageModel};
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

    /// Text to go on from; a model of characters must have seen all of them
    #[arg(long, value_name = "TEXT", default_value = "")]
    prompt: String,

    /// How freely to choose: 0 is always the likeliest, 1 as the model learnt
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    temperature: f32,

    /// Choose among this many of the likeliest; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,

    /// Tokens to generate: characters, bytes or words
    #[arg(long, value_name = "N", default_value_t = 500)]
    length: usize,

    /// Seed of the choices; the same seed gives the same text
    #[arg(long, default_value_t = 0)]
    seed: u64,

    #[command(flatten)]
    memory: MemoryOptions,

    /// Say where each token came from: what the working memory had to do with it, and which remembered places; on standard error
    #[arg(long)]
    explain: bool,

    #[command(flatten)]
    device: DeviceOptions,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let device = arguments.device.open()?;
    let mut model = LanguageModel::load(&device, &arguments.model)?;
    arguments.memory.apply(&mut model)?;
    if arguments.explain && model.memory().is_none() {
        let message = "--explain is for a model with a working memory: give --working-memory, or train one with it";
        return Err(Error::new(ErrorKind::Argument, message));
    }
    let vocabulary = model.vocabulary().clone();
    let mut decoder = Decoder::new(&vocabulary);
    for &token in &vocabulary.encode(&arguments.prompt)? {
        decoder.push(token)?; // a word that follows the prompt has a space before it
    }
    let mut generator = Generator::new(&mut model)?;
    if arguments.explain {
        generator = generator.explaining();
    }
    generator.feed(&arguments.prompt)?;
    // What explains it comes as it is chosen, and the text after that.
    let mut later = String::new();
    let mut write = |text: &str| if arguments.explain { later += text } else { emit(format_args!("{text}")) };
    write(&arguments.prompt);
    let mut random = Random::new(arguments.seed, 0);
    for _ in 0..arguments.length {
        let next = generator.next(arguments.temperature, arguments.top_k, &mut random)?;
        write(&decoder.push(next)?);
        if let Some(explanation) = generator.explain() {
            eprintln!("{}", explained(&vocabulary, explanation, generator.read_so_far())?);
        }
    }
    write(&decoder.finish());
    emit(format_args!("{later}\n"));
    Ok(ExitCode::SUCCESS)
}

/// Places that are named for a token, and tokens before each that are shown.
const PLACES: usize = 3;
const CONTEXT: usize = 4;

/// A line: the token, its probability, the memory's part of it, and the places that this came from, with what is before each.
fn explained(vocabulary: &Vocabulary, explanation: &Explanation, read: &[u32]) -> Result<String> {
    let text = |tokens: &[u32]| Ok::<String, Error>(format!("{:?}", vocabulary.decode(tokens)?));
    let mut line = format!(
        "{:<16} p {:.4}  memory {:3.0} %",
        text(&[explanation.token])?,
        explanation.probability,
        100.0 * explanation.memory
    );
    for remembered in explanation.remembered.iter().take(PLACES) {
        // The token itself was read since.
        let back = read.len() - 1 - remembered.at;
        let before = text(&read[remembered.at.saturating_sub(CONTEXT)..=remembered.at])?;
        line += &format!("  {back} back {before} {:.0} %", 100.0 * remembered.share);
    }
    Ok(line)
}
