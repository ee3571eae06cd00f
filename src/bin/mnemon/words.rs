//! What training a classifier and training a tagger have in common.

use clap::Args;
use mnemon::data::Batching;
use mnemon::device::Device;
use mnemon::error::Result;
use mnemon::optim::Adam;
use mnemon::params::random::Random;
use mnemon::train::{Callback, EarlyStopping, Epoch, Fit, Metric, Run, Training, Watched, WordsConfig};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct WordsOptions {
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
pub struct Watching {
    shown: Shown,
    best: EarlyStopping,
    run: Run,
}

impl Watching {
    pub fn callbacks(&mut self) -> [&mut dyn Callback; 3] {
        [&mut self.shown, &mut self.best, &mut self.run]
    }
}

impl WordsOptions {
    pub fn config(&self) -> WordsConfig {
        WordsConfig {
            layers: self.layers,
            hidden: self.hidden,
            embedding: self.embedding,
            dropout: self.dropout,
            least: self.least,
            seed: self.seed,
        }
    }

    pub fn fit(&self) -> Fit {
        Fit {
            epochs: self.epochs,
            batch_size: self.batch,
            batching: Batching::Sorted { batches: 50 },
            metrics: vec![Metric::Accuracy],
            seed: self.seed,
            ..Fit::default()
        }
    }

    /// The texts to train on and those to validate on, by lot.
    pub fn hold_out(&self, texts: usize) -> (Vec<usize>, Vec<usize>) {
        let order: Vec<usize> = Random::new(self.seed, 1).permutation(texts).into_iter().map(|n| n as usize).collect();
        let held = (texts / HELD_OUT).max(1).min(texts.saturating_sub(1));
        (order[held..].to_vec(), order[..held].to_vec())
    }

    pub fn introduce(&self, (texts, held_out): (usize, usize), words: usize, labels: usize) {
        eprintln!("{texts} texts to train on, {held_out} to validate, {words} words, {labels} labels");
    }

    /// The optimiser, and what watches the training: its epochs are shown and recorded, and the best is kept.
    pub fn training(&self, output: &Path, device: &Device) -> Result<(Adam, Watching)> {
        let name = output.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let next = Run::named(&output.with_file_name("runs"), &name).1;
        let run = Run::create(self.run.as_ref().unwrap_or(&next), &self.config(), self.seed, device)?;
        eprintln!("records are in {}", run.folder().display());
        let best = EarlyStopping::new(Watched::higher("val_accuracy"), usize::MAX).restore_best(true);
        let adam = Adam::pytorch().learning_rate(self.learning_rate);
        Ok((adam, Watching { shown: Shown(self.epochs), best, run }))
    }
}
