//! What training a classifier and training a tagger have in common.

use crate::output::say;
use clap::Args;
use mnemon::data::Batching;
use mnemon::device::Device;
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::optim::{Adam, Optimizer};
use mnemon::params::random::Random;
use mnemon::train::{
    Backup, Callback, EarlyStopping, Epoch, Fit, Metric, Reader, Run, Texts, Training, Watched, WordsConfig,
};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct WordsOptions {
    /// Labelled texts to train on; without, texts are read from standard input, one a line, and their labels written
    #[arg(value_name = "FILE", conflicts_with = "model", requires = "output")]
    train: Option<PathBuf>,

    /// Labelled texts to validate on [default: a tenth of FILE's, by lot]
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    dev: Option<PathBuf>,

    /// Labelled texts to report on, which training never sees
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Where to save the model
    #[arg(long, short, value_name = "FILE", conflicts_with = "model")]
    output: Option<PathBuf>,

    /// A model that was saved
    #[arg(long, value_name = "FILE", required_unless_present = "train")]
    model: Option<PathBuf>,

    /// Stacked layers
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "model")]
    layers: usize,

    /// Units of each layer in each direction
    #[arg(long, value_name = "N", default_value_t = 128, conflicts_with = "model")]
    hidden: usize,

    /// Values that stand for a word
    #[arg(long, value_name = "N", default_value_t = 128, conflicts_with = "model")]
    embedding: usize,

    /// Probability with which dropout drops a value, in [0, 1)
    #[arg(long, value_name = "RATE", default_value_t = 0.5, conflicts_with = "model")]
    dropout: f32,

    /// Words that the training texts have less often become one
    #[arg(long, value_name = "N", default_value_t = 2, conflicts_with = "model")]
    least: usize,

    /// Times to read the texts
    #[arg(long, value_name = "N", default_value_t = 6, conflicts_with = "model")]
    epochs: usize,

    /// Texts a step
    #[arg(long, value_name = "N", default_value_t = 32, conflicts_with = "model")]
    batch: usize,

    /// Learning rate of Adam
    #[arg(long, value_name = "RATE", default_value_t = 1e-3, conflicts_with = "model")]
    learning_rate: f64,

    /// Seed of all random numbers
    #[arg(long, default_value_t = 0, conflicts_with = "model")]
    seed: u64,

    /// The folder of this training's records [default: runs/NAME beside the model, NAME-2 and so on]
    #[arg(long, value_name = "FOLDER", conflicts_with = "model")]
    run: Option<PathBuf>,

    /// Go on with the last training of this name, which was stopped, to what it would have come to
    #[arg(long, conflicts_with = "model")]
    resume: bool,
}

/// The run of a training that saves to `output`: a new one, or the last of its name to go on with, which must have begun with the
/// same settings and seed.
pub fn open_run(
    output: &Path,
    name: &OsStr,
    (folder, resume): (Option<&Path>, bool),
    (configuration, seed): (&serde_json::Value, u64),
    device: &Device,
) -> Result<Run> {
    let name = name.to_string_lossy();
    let (last, next) = Run::named(&output.with_file_name("runs"), &name);
    let run = if resume {
        let refused = |message: String| Error::new(ErrorKind::Argument, message);
        let known = folder.map(Path::to_path_buf).filter(|folder| Run::is_in(folder)).or(last);
        let known = known.ok_or_else(|| refused(format!("--resume: no training that saves to {name} was begun")))?;
        let run = Run::resume(&known)?;
        if run.configuration()? != *configuration {
            return Err(refused(format!("{}: holds the run of another training", known.display())));
        }
        run
    } else {
        Run::create(folder.unwrap_or(&next), configuration, seed, device)?
    };
    eprintln!("records are in {}", run.folder().display());
    // What is saved in the end has more than parameters.
    Ok(run.keep_checkpoints(false))
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

/// What is done while a model trains.
struct Watching {
    shown: Shown,
    best: EarlyStopping,
    run: Run,
    backup: Backup,
}

impl Watching {
    fn callbacks(&mut self) -> [&mut dyn Callback; 4] {
        [&mut self.best, &mut self.run, &mut self.backup, &mut self.shown]
    }
}

impl WordsOptions {
    /// Trains a model or loads one, and reports on it where that is asked for; else `label` has it label texts.
    pub fn run<T: Texts>(
        &self,
        device: &Device,
        read: impl Fn(&Path) -> Result<T>,
        label: impl FnOnce(&mut Reader<T>) -> Result<()>,
    ) -> Result<ExitCode> {
        let mut reader = match (&self.train, &self.model, &self.output) {
            (Some(train), _, Some(output)) => {
                crate::output::check_folder(output)?;
                let dev = self.dev.as_deref().map(&read).transpose()?;
                let reader = self.train_on(device, read(train)?, dev, output)?;
                say!("saved to {}", output.display());
                reader
            }
            (_, Some(model), _) => Reader::load(device, model)?,
            _ => {
                let message = "expected texts to train on and --output, or --model";
                return Err(Error::new(ErrorKind::Argument, message));
            }
        };
        match (&self.report, &self.train) {
            (Some(path), _) => say!("{}", reader.report(&read(path)?)?),
            (None, Some(_)) => {}
            (None, None) => label(&mut reader)?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn train_on<T: Texts>(&self, device: &Device, all: T, dev: Option<T>, output: &Path) -> Result<Reader<T>> {
        let (texts, dev) = match dev {
            Some(dev) => (all, dev),
            None => {
                let (texts, held) = self.hold_out(&all.labels())?;
                (all.choose(&texts), all.choose(&held))
            }
        };
        let mut reader = Reader::new(device, &self.config(), &texts)?;
        let (trained, held, labels) = (texts.labels().len(), dev.labels().len(), reader.labels().len());
        eprintln!("{trained} texts to train on, {held} to validate, {} words, {labels} labels", reader.words());
        let (adam, mut training) = self.training(output, device)?;
        reader.fit(adam, &texts, Some(&dev), &self.fit(), &mut training.callbacks())?;
        say!("{}", reader.report(&dev)?);
        reader.save(output)?;
        training.run.clear_progress()?;
        Ok(reader)
    }

    fn config(&self) -> WordsConfig {
        WordsConfig {
            layers: self.layers,
            hidden: self.hidden,
            embedding: self.embedding,
            dropout: self.dropout,
            least: self.least,
            seed: self.seed,
        }
    }

    fn fit(&self) -> Fit {
        Fit {
            epochs: self.epochs,
            batch_size: self.batch,
            batching: Batching::Sorted { batches: 50 },
            metrics: vec![Metric::Accuracy],
            seed: self.seed,
            ..Fit::default()
        }
    }

    /// The texts to train on and those to validate on, by lot; texts with a label that no other text has are trained on.
    fn hold_out<'a>(&self, labels: &[Vec<&'a String>]) -> Result<(Vec<usize>, Vec<usize>)> {
        if labels.len() < 2 {
            let message = format!("expected at least two texts, to train and to validate on, got {}", labels.len());
            return Err(Error::new(ErrorKind::Data, message));
        }
        let mut left: HashMap<&'a String, usize> = HashMap::new();
        labels.iter().flatten().for_each(|label| *left.entry(label).or_default() += 1);
        let (mut train, mut held) = (Vec::new(), Vec::new());
        let most = (labels.len() / HELD_OUT).max(1);
        for at in Random::new(self.seed, 1).permutation(labels.len()) {
            let of = |label: &&String| labels[at].iter().filter(|l| *l == label).count();
            if held.len() < most && labels[at].iter().all(|label| left[label] > of(label)) {
                labels[at].iter().for_each(|label| *left.entry(label).or_default() -= 1);
                held.push(at);
            } else {
                train.push(at);
            }
        }
        match held.is_empty() {
            true => Err(Error::new(
                ErrorKind::Data,
                "every text has a label that no other has: expected texts to validate on (--dev)",
            )),
            false => Ok((train, held)),
        }
    }

    /// The optimiser, and what watches the training: its epochs are shown and recorded, and the best is kept.
    fn training(&self, output: &Path, device: &Device) -> Result<(Adam, Watching)> {
        let adam = Adam::pytorch().learning_rate(self.learning_rate);
        Optimizer::from(adam).validate()?;
        self.fit().validate()?;
        let configuration = serde_json::json!({
            "model": self.config(),
            "batch": self.batch,
            "learning_rate": self.learning_rate,
            "files": [&self.train, &self.dev],
        });
        let name = output.file_stem().unwrap_or_default();
        let run = open_run(output, name, (self.run.as_deref(), self.resume), (&configuration, self.seed), device)?;
        let [best, backup] = run.progress_files()?;
        let best = EarlyStopping::new(Watched::higher("val_accuracy"), usize::MAX).restore_best(true).kept_in(best);
        Ok((adam, Watching { shown: Shown(self.epochs), best, run, backup: Backup::new(backup).stays() }))
    }
}
