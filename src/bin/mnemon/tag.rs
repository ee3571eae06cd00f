//! `mnemon tag`: a tagger from labelled words, and the labels that it gives.

use crate::options::DeviceOptions;
use crate::output::say;
use crate::words::WordsOptions;
use clap::Args;
use mnemon::data::Tagged;
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::train::Tagger;
use std::io::BufRead;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  mnemon tag train.conll --dev dev.conll --output names.safetensors
  mnemon tag --model names.safetensors --report test.conll
  echo 'Peter went to Paris' | mnemon tag --model names.safetensors

Files have a word and its label on each line, the first and the last of what tabs or else spaces separate, and an empty line
between texts. What the model knows of words and labels comes from the training texts alone; the epoch with the best accuracy
on the others is kept.";

/// Train a tagger on labelled words, or have one say which label each word of a text has
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    words: WordsOptions,

    #[command(flatten)]
    device: DeviceOptions,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    arguments.words.run(&arguments.device.open()?, Tagged::read, tag_lines)
}

/// Writes each word of each line of standard input with its label, and an empty line after it.
fn tag_lines(tagger: &mut Tagger) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::new(ErrorKind::File, format!("standard input: {e}")))?;
        let words: Vec<String> = line.split_whitespace().map(String::from).collect();
        let labels = tagger.predict(std::slice::from_ref(&words))?.remove(0);
        words.iter().zip(labels).for_each(|(word, label)| say!("{word}\t{label}"));
        say!("");
    }
    Ok(())
}
