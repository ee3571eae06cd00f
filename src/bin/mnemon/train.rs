//! `mnemon train`: a character language model from text.

use crate::options::DeviceOptions;
use crate::output::say;
use crate::progress::Display;
use clap::Args;
use mnemon::data::{Corpus, Vocabulary, read_corpus, split};
use mnemon::device::Device;
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::params::random::Random;
use mnemon::train::{Generator, LanguageConfig, LanguageModel, TrainOptions, Trainer};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code after ctrl-C, as shells have it: 128 + the number of SIGINT.
const INTERRUPTED: u8 = 130;
const SAMPLE_LENGTH: usize = 300;
const SAMPLE_TEMPERATURE: f32 = 0.7;

const EXAMPLES: &str = "\
Examples:
  mnemon train src shaders                        learn to write like these folders
  mnemon train book.txt --layers 3 --hidden 512 --device gpu --output book.safetensors
  mnemon train book.txt --resume book.safetensors --epochs 20

The model is saved after each epoch, at the end, and on ctrl-C (which ends with exit code 130; a second one ends at
once). A file in the way of --output is replaced by a whole new one.";

/// Train a character language model on text files
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Text files, or folders with all that is in them; files that are not text are skipped and counted
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// Stacked LSTM layers
    #[arg(long, value_name = "N", default_value_t = 2, conflicts_with = "resume")]
    layers: usize,

    /// Units of each layer
    #[arg(long, value_name = "N", default_value_t = 128, conflicts_with = "resume")]
    hidden: usize,

    /// Values that stand for a character [default: as many as --hidden]
    #[arg(long, value_name = "N", conflicts_with = "resume")]
    embedding: Option<usize>,

    /// Characters of each stream that a step reads
    #[arg(long, value_name = "N", default_value_t = 50, conflicts_with = "resume")]
    sequence: usize,

    /// Streams read side by side
    #[arg(long, value_name = "N", default_value_t = 50, conflicts_with = "resume")]
    batch: usize,

    /// Times to read the text [default: 5, or as many as --steps takes]
    #[arg(long, value_name = "N")]
    epochs: Option<u32>,

    /// Steps to take, where that is fewer
    #[arg(long, value_name = "N")]
    steps: Option<u32>,

    /// Learning rate of Adam
    #[arg(long, value_name = "RATE", default_value_t = 2e-3, conflicts_with = "resume")]
    learning_rate: f64,

    /// Factor of the learning rate after each epoch
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, conflicts_with = "resume")]
    decay: f64,

    /// Probability with which dropout drops a value, in [0, 1)
    #[arg(long, value_name = "RATE", default_value_t = 0.0, conflicts_with = "resume")]
    dropout: f32,

    /// Largest norm of the gradient; 0 for no limit
    #[arg(long, value_name = "NORM", default_value_t = 5.0, conflicts_with = "resume")]
    clip: f32,

    /// Share of the text, at its end, that is kept for validation; must stay the same when training resumes
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    validation: f64,

    /// Seed of all random numbers
    #[arg(long, default_value_t = 0, conflicts_with = "resume")]
    seed: u64,

    /// Where to save the model [default: model.safetensors, or the file of --resume]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Go on from a file that `mnemon train` saved, over the same text
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,

    #[command(flatten)]
    device: DeviceOptions,
}

impl Arguments {
    fn output(&self) -> PathBuf {
        let output = self.output.clone().or_else(|| self.resume.clone());
        output.unwrap_or_else(|| PathBuf::from("model.safetensors"))
    }

    fn model(&self) -> LanguageConfig {
        LanguageConfig {
            layers: self.layers,
            hidden: self.hidden,
            embedding: self.embedding.unwrap_or(self.hidden),
            dropout: self.dropout,
            seed: self.seed,
        }
    }

    fn training(&self) -> TrainOptions {
        TrainOptions {
            batch: self.batch,
            sequence: self.sequence,
            learning_rate: self.learning_rate,
            decay: self.decay,
            clip: (self.clip != 0.0).then_some(self.clip),
            seed: self.seed,
            ..TrainOptions::default()
        }
    }
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let output = arguments.output();
    check_folder(&output)?;
    let corpus = read_corpus(&arguments.paths)?;
    let device = arguments.device.open()?;
    let mut trainer = trainer(arguments, &device, &corpus)?;
    limit(arguments, &mut trainer);
    introduce(&mut trainer, &device, &corpus);
    let stop = stop_flag()?;
    let mut display = Display::new(&trainer.progress());
    let outcome = train(&mut trainer, &output, &stop, &mut display);
    display.finish();
    if let Err(error) = &outcome
        && error.kind() == ErrorKind::NotFinite
    {
        trainer.checkpoint(&output)?;
        eprintln!("the model as it was before that step is in {}", output.display());
    }
    outcome?;
    trainer.checkpoint(&output)?;
    eprintln!("the device waited {:.3} s for text to be made ready", trainer.waited().as_secs_f64());
    if !trainer.finished() {
        let paths: Vec<String> = arguments.paths.iter().map(|p| p.display().to_string()).collect();
        let (step, file) = (trainer.progress().step, output.display());
        eprintln!("stopped at step {step}, saved to {file}; to go on:");
        eprintln!("  mnemon train {} --resume {file}{}", paths.join(" "), limits(arguments));
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let mut model = trainer.into_model();
    say!("{}\n", sample(&mut model, u64::MAX)?);
    say!("saved to {}; for more: mnemon generate --model {}", output.display(), output.display());
    Ok(ExitCode::SUCCESS)
}

/// What of the command line a resumed training needs again.
fn limits(arguments: &Arguments) -> String {
    let mut text = String::new();
    if arguments.validation != 0.1 {
        text += &format!(" --validation {}", arguments.validation);
    }
    text += &arguments.epochs.map(|n| format!(" --epochs {n}")).unwrap_or_default();
    text + &arguments.steps.map(|n| format!(" --steps {n}")).unwrap_or_default()
}

/// Refuses, before hours of training, an output that could not be written after them.
fn check_folder(output: &Path) -> Result<()> {
    let folder = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if output.is_dir() || !folder.is_dir() {
        let message = format!("{}: cannot be written: expected a file in a folder that exists", output.display());
        return Err(Error::new(ErrorKind::File, message));
    }
    Ok(())
}

fn trainer(arguments: &Arguments, device: &Device, corpus: &Corpus) -> Result<Trainer> {
    let vocabulary = match &arguments.resume {
        Some(path) => LanguageModel::vocabulary_of(path)?,
        None => Vocabulary::of(&corpus.text)?,
    };
    let mut tokens = vocabulary.encode(&corpus.text)?;
    let validation = tokens.split_off(split(tokens.len(), arguments.validation)?);
    match &arguments.resume {
        Some(path) => Trainer::resume(device, path, tokens, validation),
        None => {
            let model = LanguageModel::new(device, &arguments.model(), vocabulary)?;
            Trainer::new(model, tokens, validation, arguments.training())
        }
    }
}

/// Sets how far to train: by epochs, by steps, by whichever is less; a resumed training keeps what is not given.
fn limit(arguments: &Arguments, trainer: &mut Trainer) {
    let (windows, old) = (trainer.progress().windows.max(1), *trainer.options());
    match (arguments.epochs, arguments.steps) {
        (None, None) => {}
        (Some(epochs), steps) => trainer.set_limits(epochs, steps),
        (None, Some(steps)) => {
            let epochs = steps.div_ceil(windows);
            trainer.set_limits(if arguments.resume.is_some() { epochs.max(old.epochs) } else { epochs }, Some(steps));
        }
    }
}

fn introduce(trainer: &mut Trainer, device: &Device, corpus: &Corpus) {
    let characters = corpus.text.chars().count();
    let (known, parameters) = {
        let model = trainer.model();
        let count = |shape: &Vec<usize>| shape.iter().product::<usize>();
        (model.vocabulary().len(), model.model().parameters().iter().map(|p| count(&p.shape)).sum::<usize>())
    };
    let (files, skipped) = (corpus.files, corpus.skipped);
    eprintln!("{characters} characters, {known} distinct, from {files} text files ({skipped} other files skipped)");
    let progress = trainer.progress();
    eprintln!(
        "{parameters} parameters on {}; {} steps an epoch, {} in all",
        device.name(),
        progress.windows,
        progress.steps
    );
    if trainer.finished() {
        eprintln!("nothing is left to do after step {}: ask for more --epochs or --steps", progress.step);
    }
}

/// A flag that ctrl-C raises; a second ctrl-C ends the process.
fn stop_flag() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&stop);
    let handler = move || {
        if raised.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
    };
    ctrlc::set_handler(handler).map_err(|e| Error::new(ErrorKind::Internal, format!("train: ctrl-C: {e}")))?;
    Ok(stop)
}

/// Trains until all steps are taken or `stop` is raised.
fn train(trainer: &mut Trainer, output: &Path, stop: &AtomicBool, display: &mut Display) -> Result<()> {
    while !trainer.finished() && !stop.load(Ordering::Relaxed) {
        trainer.step()?;
        if display.due() {
            let loss = trainer.loss_so_far()?;
            display.update(&trainer.progress(), loss);
        }
        if trainer.end_of_epoch() || trainer.finished() {
            let loss = trainer.loss_so_far()?;
            display.stop_clock(&trainer.progress());
            let validation = trainer.validate()?;
            display.epoch(&trainer.progress(), loss, validation);
            trainer.checkpoint(output)?;
            if display.is_live() && !trainer.finished() {
                let step = trainer.progress().step;
                match sample(trainer.model(), u64::from(step)) {
                    Ok(text) => display.print(&format!("{text}\n")),
                    // A budget that holds the training need not hold this beside it.
                    Err(e) if e.kind() == ErrorKind::Memory => log::warn!("no sample: {e}"),
                    Err(e) => return Err(e),
                }
            }
            display.start_clock(&trainer.progress());
        }
    }
    Ok(())
}

/// Text that the model writes.
fn sample(model: &mut LanguageModel, stream: u64) -> Result<String> {
    let mut random = Random::new(model.config().seed, stream);
    let mut generator = Generator::new(model)?;
    (0..SAMPLE_LENGTH).map(|_| generator.next(SAMPLE_TEMPERATURE, 0, &mut random)).collect()
}
