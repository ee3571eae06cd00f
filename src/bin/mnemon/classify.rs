//! `mnemon classify`: a classifier from labelled text, and the labels that it gives.

use crate::options::DeviceOptions;
use crate::output::say;
use crate::words::WordsOptions;
use clap::Args;
use mnemon::data::{Columns, Labelled};
use mnemon::device::Device;
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::train::Classifier;
use std::io::BufRead;
use std::path::{Path, PathBuf};
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
    /// Labelled texts to train on; without, texts are read from standard input, one a line, and their labels written
    #[arg(value_name = "FILE", conflicts_with = "model", requires = "output")]
    train: Option<PathBuf>,

    /// Labelled texts to validate on [default: a tenth of FILE, by lot]
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    dev: Option<PathBuf>,

    /// Labelled texts to report on, which training never sees
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Where to save the classifier
    #[arg(long, short, value_name = "FILE", conflicts_with = "model")]
    output: Option<PathBuf>,

    /// A classifier that was saved
    #[arg(long, value_name = "FILE", required_unless_present = "train")]
    model: Option<PathBuf>,

    /// Column of the texts: a name of the header, or a number from 1
    #[arg(long, value_name = "COLUMN")]
    text: Option<String>,

    /// Column of the labels: a name of the header, or a number from 1
    #[arg(long, value_name = "COLUMN")]
    label: Option<String>,

    #[command(flatten)]
    words: WordsOptions,

    #[command(flatten)]
    device: DeviceOptions,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let device = arguments.device.open()?;
    let columns = Columns { text: arguments.text.clone(), label: arguments.label.clone() };
    let read = |path: &Path| Labelled::read(path, &columns);
    let mut classifier = match (&arguments.train, &arguments.model) {
        (Some(train), _) => {
            let output = arguments.output.as_deref().unwrap_or(Path::new("classifier.safetensors"));
            crate::output::check_folder(output)?;
            let dev = arguments.dev.as_deref().map(read).transpose()?;
            let classifier = train_on(arguments, &device, read(train)?, dev, output)?;
            say!("saved to {}", output.display());
            classifier
        }
        (None, Some(model)) => Classifier::load(&device, model)?,
        (None, None) => {
            return Err(Error::new(ErrorKind::Argument, "classify: expected texts to train on, or --model"));
        }
    };
    match (&arguments.report, &arguments.train) {
        (Some(path), _) => say!("{}", classifier.report(&read(path)?)?),
        (None, Some(_)) => {}
        (None, None) => label_lines(&mut classifier)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn train_on(
    arguments: &Arguments,
    device: &Device,
    all: Labelled,
    dev: Option<Labelled>,
    output: &Path,
) -> Result<Classifier> {
    let options = &arguments.words;
    let (texts, dev) = match dev {
        Some(dev) => (all, dev),
        None => {
            let labels: Vec<Vec<&str>> = all.labels.iter().map(|l| vec![l.as_str()]).collect();
            let (texts, held) = options.hold_out(&labels)?;
            (all.take(&texts), all.take(&held))
        }
    };
    let mut classifier = Classifier::new(device, &options.config(), &texts)?;
    options.introduce((texts.len(), dev.len()), classifier.words(), classifier.labels().len());
    let (adam, mut training) = options.training(output, device)?;
    classifier.fit(adam, &texts, Some(&dev), &options.fit(), &mut training.callbacks())?;
    say!("{}", classifier.report(&dev)?);
    classifier.save(output)?;
    Ok(classifier)
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
