//! `mnemon classify`: a classifier from labelled text, and the labels that it gives.

use crate::options::DeviceOptions;
use crate::output::say;
use crate::words::WordsOptions;
use clap::Args;
use mnemon::data::{Columns, Labelled};
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::train::Classifier;
use std::io::BufRead;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  mnemon classify train.tsv --dev dev.tsv --output sentiment.safetensors
  mnemon classify --model sentiment.safetensors --report test.tsv
  echo 'a fine film' | mnemon classify --model sentiment.safetensors

Files are TSV (.tsv, .txt: text, tab, label) or CSV, with or without a header. What the model knows of words and labels comes
from the training texts alone; the epoch with the best accuracy on the others is kept.";

/// Train a classifier on labelled texts, or have one say which label texts have
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    words: WordsOptions,

    /// Column of the texts: a name of the header, or a number from 1
    #[arg(long, value_name = "COLUMN")]
    text: Option<String>,

    /// Column of the labels: a name of the header, or a number from 1
    #[arg(long, value_name = "COLUMN")]
    label: Option<String>,

    #[command(flatten)]
    device: DeviceOptions,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let columns = Columns { text: arguments.text.clone(), label: arguments.label.clone() };
    arguments.words.run(&arguments.device.open()?, |path| Labelled::read(path, &columns), label_lines)
}

/// Writes the likeliest label of each line of standard input, and its probability.
fn label_lines(classifier: &mut Classifier) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::new(ErrorKind::File, format!("standard input: {e}")))?;
        let row = &classifier.predict(std::slice::from_ref(&line))?[0];
        let best = (1..row.len()).fold(0, |best, at| if row[at] > row[best] { at } else { best });
        say!("{}\t{:.4}\t{line}", classifier.labels()[best], row[best]);
    }
    Ok(())
}
