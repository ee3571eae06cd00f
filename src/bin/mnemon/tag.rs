//! `mnemon tag`: a tagger from labelled words, and the labels that it gives.

use crate::options::DeviceOptions;
use crate::output::say;
use crate::words::WordsOptions;
use clap::Args;
use mnemon::data::Tagged;
use mnemon::device::Device;
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::train::Tagger;
use std::io::BufRead;
use std::path::{Path, PathBuf};
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
    /// Labelled words to train on; without, texts are read from standard input, one a line, and written with their labels
    #[arg(value_name = "FILE", conflicts_with = "model", requires = "output")]
    train: Option<PathBuf>,

    /// Labelled words to validate on [default: a tenth of FILE's texts, by lot]
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    dev: Option<PathBuf>,

    /// Labelled words to report on, which training never sees
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Where to save the tagger
    #[arg(long, short, value_name = "FILE", conflicts_with = "model")]
    output: Option<PathBuf>,

    /// A tagger that was saved
    #[arg(long, value_name = "FILE", required_unless_present = "train")]
    model: Option<PathBuf>,

    #[command(flatten)]
    words: WordsOptions,

    #[command(flatten)]
    device: DeviceOptions,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let device = arguments.device.open()?;
    let mut tagger = match (&arguments.train, &arguments.model, &arguments.output) {
        (Some(train), _, Some(output)) => {
            crate::output::check_folder(output)?;
            let dev = arguments.dev.as_deref().map(Tagged::read).transpose()?;
            let tagger = train_on(&arguments.words, &device, Tagged::read(train)?, dev, output)?;
            say!("saved to {}", output.display());
            tagger
        }
        (_, Some(model), _) => Tagger::load(&device, model)?,
        _ => return Err(Error::new(ErrorKind::Argument, "tag: expected words to train on and --output, or --model")),
    };
    match (&arguments.report, &arguments.train) {
        (Some(path), _) => say!("{}", tagger.report(&Tagged::read(path)?)?),
        (None, Some(_)) => {}
        (None, None) => tag_lines(&mut tagger)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn train_on(
    options: &WordsOptions,
    device: &Device,
    all: Tagged,
    dev: Option<Tagged>,
    output: &Path,
) -> Result<Tagger> {
    let (texts, dev) = match dev {
        Some(dev) => (all, dev),
        None => {
            let labels: Vec<Vec<&str>> = all.labels.iter().map(|l| l.iter().map(String::as_str).collect()).collect();
            let (texts, held) = options.hold_out(&labels)?;
            (all.take(&texts), all.take(&held))
        }
    };
    let mut tagger = Tagger::new(device, &options.config(), &texts)?;
    options.introduce((texts.len(), dev.len()), tagger.words(), tagger.labels().len());
    let (adam, mut training) = options.training(output, device)?;
    tagger.fit(adam, &texts, Some(&dev), &options.fit(), &mut training.callbacks())?;
    say!("{}", tagger.report(&dev)?);
    tagger.save(output)?;
    Ok(tagger)
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
