//! `mnemon classify`: a classifier from labelled text, and the labels that it gives.

use crate::options::DeviceOptions;
use crate::output::say;
use clap::Args;
use mnemon::data::{Batching, Columns, Labelled};
use mnemon::device::Device;
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::optim::Adam;
use mnemon::params::random::Random;
use mnemon::train::{
    Callback, Classifier, ClassifierConfig, EarlyStopping, Epoch, Fit, Metric, Run, Training, Watched,
};
use std::io::BufRead;
use std::ops::ControlFlow;
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
    #[arg(long, short, value_name = "FILE")]
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

    /// Stacked layers
    #[arg(long, value_name = "N", default_value_t = 1)]
    layers: usize,

    /// Units of each layer in each direction
    #[arg(long, value_name = "N", default_value_t = 128)]
    hidden: usize,

    /// Values that stand for a word
    #[arg(long, value_name = "N", default_value_t = 128)]
    embedding: usize,

    /// Probability with which dropout drops a value, in [0, 1)
    #[arg(long, value_name = "RATE", default_value_t = 0.5)]
    dropout: f32,

    /// Words that the training texts have less often become one
    #[arg(long, value_name = "N", default_value_t = 2)]
    least: usize,

    /// Times to read the texts
    #[arg(long, value_name = "N", default_value_t = 6)]
    epochs: usize,

    /// Texts a step
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch: usize,

    /// Learning rate of Adam
    #[arg(long, value_name = "RATE", default_value_t = 1e-3)]
    learning_rate: f64,

    /// Seed of all random numbers
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// The folder of this training's records [default: runs/NAME beside the model, NAME-2 and so on]
    #[arg(long, value_name = "FOLDER")]
    run: Option<PathBuf>,

    #[command(flatten)]
    device: DeviceOptions,
}

/// The share of texts that validation takes where there are no others.
const HELD_OUT: usize = 10;

/// A line an epoch.
struct Shown(usize);

impl Callback for Shown {
    fn on_epoch_end(&mut self, _: &mut Training<'_>, epoch: &Epoch) -> Result<ControlFlow<()>> {
        let values = epoch.values().into_iter().filter(|v| v.0 != "learning_rate" && v.0 != "seconds");
        let values: Vec<String> = values.map(|(name, value)| format!("{name} {value:.4}")).collect();
        eprintln!("epoch {}/{} {} {:.1} s", epoch.epoch, self.0, values.join(" "), epoch.seconds);
        Ok(ControlFlow::Continue(()))
    }
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
    let (texts, dev) = match dev {
        Some(dev) => (all, dev),
        None => {
            let order = Random::new(arguments.seed, 1).permutation(all.len());
            let held = (all.len() / HELD_OUT).max(1).min(all.len() - 1);
            (all.take(&order[held..]), all.take(&order[..held]))
        }
    };
    let config = ClassifierConfig {
        layers: arguments.layers,
        hidden: arguments.hidden,
        embedding: arguments.embedding,
        dropout: arguments.dropout,
        least: arguments.least,
        seed: arguments.seed,
    };
    let mut classifier = Classifier::new(device, &config, &texts)?;
    let (words, labels) = (classifier.words(), classifier.labels().len());
    eprintln!("{} texts to train on, {} to validate, {words} words, {labels} labels", texts.len(), dev.len());
    let name = output.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let next = Run::named(&output.with_file_name("runs"), &name).1;
    let mut run = Run::create(arguments.run.as_ref().unwrap_or(&next), &config, arguments.seed, device)?;
    eprintln!("records are in {}", run.folder().display());
    let fit = Fit {
        epochs: arguments.epochs,
        batch_size: arguments.batch,
        batching: Batching::Sorted { batches: 50 },
        metrics: vec![Metric::Accuracy],
        seed: arguments.seed,
        ..Fit::default()
    };
    let mut best = EarlyStopping::new(Watched::higher("val_accuracy"), usize::MAX).restore_best(true);
    let mut shown = Shown(arguments.epochs);
    let adam = Adam::pytorch().learning_rate(arguments.learning_rate);
    classifier.fit(adam, &texts, Some(&dev), &fit, &mut [&mut shown, &mut best, &mut run])?;
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
