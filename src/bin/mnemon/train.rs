//! `mnemon train`: a language model from text.

use crate::evaluate::measured;
use crate::optimizer::OptimizerOptions;
use crate::options::DeviceOptions;
use crate::output::say;
use crate::progress::Display;
use clap::{Args, ValueEnum};
use mnemon::data::{Corpus, Level, Vocabulary, read_corpus, split};
use mnemon::device::Device;
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::nn::WorkingMemory;
use mnemon::params::random::Random;
use mnemon::train::{Generator, LanguageConfig, LanguageModel, Record, Run, TrainOptions, Trainer};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The exit code after ctrl-C, as shells have it: 128 + the number of SIGINT.
const INTERRUPTED: u8 = 130;
/// The folder beside a model that has the records of its trainings.
const RUNS: &str = "runs";
const SAMPLE_LENGTH: usize = 300;
const SAMPLE_TEMPERATURE: f32 = 0.7;

const EXAMPLES: &str = "\
Examples:
  mnemon train src shaders                        learn to write like these folders
  mnemon train book.txt --layers 3 --hidden 512 --device gpu --output book.safetensors
  mnemon train book.txt --resume book.safetensors --epochs 20
  mnemon train news.txt --level words --tied --dropout 0.3 --validation 0.05
  mnemon train news.txt --level words --tied --dropout 0.5 --working-memory 500

Every training writes a folder: its settings, its history as CSV, JSON, TensorBoard events and a picture, and its best
model. The model is saved after each epoch, at the end, and on ctrl-C (which ends with exit code 130; a second one ends at
once). A file in the way of --output is replaced by a whole new one.";

/// What a text is cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Units {
    Characters,
    /// The bytes of UTF-8
    Bytes,
    /// What white space separates, and lines' ends
    Words,
}

impl Units {
    fn level(self) -> Level {
        match self {
            Self::Characters => Level::Characters,
            Self::Bytes => Level::Bytes,
            Self::Words => Level::Words,
        }
    }
}

/// Train a language model on text files
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Text files, or folders with all that is in them; files that are not text are skipped and counted
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// What the text is cut into
    #[arg(long, value_enum, default_value = "characters", conflicts_with = "resume")]
    level: Units,

    /// A tokenizer file of Hugging Face (tokenizer.json), whose tokens are learnt in place of --level
    #[arg(long, value_name = "FILE", conflicts_with_all = ["resume", "level", "least"])]
    tokenizer: Option<PathBuf>,

    /// Words that the training text has less often become <unk>
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "resume")]
    least: usize,

    /// Stacked LSTM layers
    #[arg(long, value_name = "N", default_value_t = 2, conflicts_with = "resume")]
    layers: usize,

    /// Units of each layer
    #[arg(long, value_name = "N", default_value_t = 128, conflicts_with = "resume")]
    hidden: usize,

    /// Values that stand for a token [default: as many as --hidden]
    #[arg(long, value_name = "N", conflicts_with = "resume")]
    embedding: Option<usize>,

    /// Tokens of each stream that a step reads
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

    /// Stop after so many epochs without a better validation; the best is in the records' checkpoints
    #[arg(long, value_name = "EPOCHS", value_parser = clap::value_parser!(u32).range(1..))]
    patience: Option<u32>,

    /// Probability with which dropout drops a value, in [0, 1)
    #[arg(long, value_name = "RATE", default_value_t = 0.0, conflicts_with = "resume")]
    dropout: f32,

    /// Give all steps of a sequence the same mask of dropout
    #[arg(long, conflicts_with = "resume")]
    variational: bool,

    /// Probability with which a recurrent weight is dropped for a batch, in [0, 1)
    #[arg(long, value_name = "RATE", default_value_t = 0.0, conflicts_with = "resume")]
    weight_drop: f32,

    /// Probability with which a token's whole row of the embedding is zero for a batch, in [0, 1)
    #[arg(long, value_name = "RATE", default_value_t = 0.0, conflicts_with = "resume")]
    embedding_dropout: f32,

    /// Add this times the mean of the last layer's h² to the loss (AR)
    #[arg(long, value_name = "FACTOR", default_value_t = 0.0, conflicts_with = "resume")]
    activation_penalty: f32,

    /// Add this times the mean square of h's changes from step to step to the loss (TAR)
    #[arg(long, value_name = "FACTOR", default_value_t = 0.0, conflicts_with = "resume")]
    temporal_penalty: f32,

    /// Use the embedding's table as the logits' matrix; needs as many values as units
    #[arg(long, conflicts_with = "resume")]
    tied: bool,

    /// Train a working memory with the model: an attention to the last N tokens that points at those to be repeated
    #[arg(long, value_name = "N", conflicts_with = "resume", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    working_memory: Option<u32>,

    /// Share of the text, at its end, that is kept for validation; must stay the same when training resumes
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    validation: f64,

    /// Seed of all random numbers
    #[arg(long, default_value_t = 0, conflicts_with = "resume")]
    seed: u64,

    /// Where to save the model [default: model.safetensors, or the file of --resume]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// The folder of this training's records [default: runs/NAME beside the model, NAME-2 and so on]
    #[arg(long, value_name = "FOLDER")]
    run: Option<PathBuf>,

    /// Go on from a file that `mnemon train` saved, over the same text
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,

    #[command(flatten)]
    optimizer: OptimizerOptions,

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
            variational: self.variational,
            weight_drop: self.weight_drop,
            embedding_dropout: self.embedding_dropout,
            activation_penalty: self.activation_penalty,
            temporal_penalty: self.temporal_penalty,
            tied: self.tied,
            seed: self.seed,
        }
    }

    /// How to train on so many tokens.
    fn training(&self, tokens: usize) -> TrainOptions {
        let windows = (tokens.saturating_sub(1) / self.batch.max(1)).div_ceil(self.sequence.max(1));
        let of = |epochs: u32| u32::try_from(windows).unwrap_or(u32::MAX).saturating_mul(epochs);
        let batches = match (self.epochs, self.steps) {
            (None, Some(steps)) => steps,
            (epochs, steps) => of(epochs.unwrap_or(TrainOptions::default().epochs)).min(steps.unwrap_or(u32::MAX)),
        };
        TrainOptions {
            batch: self.batch,
            sequence: self.sequence,
            optimizer: self.optimizer.optimizer(batches),
            seed: self.seed,
            ..TrainOptions::default()
        }
    }
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let output = arguments.output();
    if arguments.least > 1 && arguments.level != Units::Words {
        return Err(Error::new(ErrorKind::Argument, "train: --least is for --level words"));
    }
    crate::output::check_folder(&output)?;
    let corpus = read_corpus(&arguments.paths)?;
    let device = arguments.device.open()?;
    let mut trainer = trainer(arguments, &device, &corpus)?;
    limit(arguments, &mut trainer);
    introduce(&mut trainer, &device, &corpus);
    let mut run = open_run(arguments, &mut trainer, &device)?;
    eprintln!("records are in {}", run.folder().display());
    let stop = stop_flag()?;
    let mut display = Display::new(&trainer.progress());
    let outcome = train(&mut trainer, (&output, arguments.patience), &mut run, &stop, &mut display);
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
    let mut model = trainer.into_model()?;
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
    text += &arguments.patience.map(|n| format!(" --patience {n}")).unwrap_or_default();
    text += &arguments.run.as_ref().map(|folder| format!(" --run {}", folder.display())).unwrap_or_default();
    text += &arguments.epochs.map(|n| format!(" --epochs {n}")).unwrap_or_default();
    text + &arguments.steps.map(|n| format!(" --steps {n}")).unwrap_or_default()
}

/// The run that training is recorded in; training that is resumed goes on with the last of its model's name.
fn open_run(arguments: &Arguments, trainer: &mut Trainer, device: &Device) -> Result<Run> {
    // A model that is resumed was recorded beside where it is, under its own name.
    let file = arguments.resume.clone().unwrap_or_else(|| arguments.output());
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (last, next) = Run::named(&file.with_file_name(RUNS), name.strip_suffix(".safetensors").unwrap_or(&name));
    let (model, options) = (*trainer.model().config(), trainer.options().clone());
    let memory = trainer.model().memory().copied();
    let files: Vec<String> = arguments.paths.iter().map(|p| p.display().to_string()).collect();
    let mut configuration = serde_json::json!({ "model": model, "options": options, "files": files });
    if let Some(memory) = memory {
        configuration["memory"] = serde_json::json!(memory);
    }
    if arguments.resume.is_some() {
        let known = match &arguments.run {
            Some(folder) => Some(folder.clone()).filter(|folder| Run::is_in(folder)),
            None => last,
        };
        if let Some(run) = known.map(|folder| Run::resume(&folder)).transpose()? {
            let before = run.configuration()?;
            // An earlier version may not have written all that there is now.
            let known = serde_json::from_value::<LanguageConfig>(before["model"].clone());
            let same = known.is_ok_and(|known| known == model)
                && before.get("memory") == configuration.get("memory")
                && before["options"]["optimizer"] == configuration["options"]["optimizer"];
            match (same, &arguments.run) {
                (true, _) => return Ok(run),
                (false, Some(folder)) => {
                    let message = format!("{}: holds the run of another training", folder.display());
                    return Err(Error::new(ErrorKind::Argument, message));
                }
                (false, None) => {}
            }
        }
    }
    Run::create(arguments.run.as_ref().unwrap_or(&next), &configuration, options.seed, device)
}

fn trainer(arguments: &Arguments, device: &Device, corpus: &Corpus) -> Result<Trainer> {
    let (vocabulary, tokens, validation) = match &arguments.resume {
        Some(path) => divided(LanguageModel::vocabulary_of(path)?, corpus, arguments)?,
        None if arguments.tokenizer.is_some() => {
            let path = arguments.tokenizer.as_deref().unwrap_or(Path::new(""));
            let vocabulary = Vocabulary::of_tokenizer(&crate::read_text(path)?);
            divided(vocabulary.map_err(|e| e.within(path.display()))?, corpus, arguments)?
        }
        None if arguments.level == Units::Words => {
            // Validation must not say which words there are.
            let (everything, tokens, _) = divided(Vocabulary::words(&corpus.text, 1)?, corpus, arguments)?;
            let known = Vocabulary::words(&everything.decode(&tokens)?, arguments.least)?;
            divided(known, corpus, arguments)?
        }
        None => divided(Vocabulary::at(arguments.level.level(), &corpus.text, 1)?, corpus, arguments)?,
    };
    match &arguments.resume {
        Some(path) => Trainer::resume(device, path, tokens, validation),
        None => {
            let mut model = LanguageModel::new(device, &arguments.model(), vocabulary)?;
            if let Some(window) = arguments.working_memory {
                let memory = WorkingMemory::pointer(window as usize);
                let steps = memory.steps.max(arguments.sequence);
                model.set_memory(Some(memory.steps(steps)))?;
            }
            let training = arguments.training(tokens.len());
            Trainer::new(model, tokens, validation, training)
        }
    }
}

/// The text's tokens for training and for validation.
fn divided(vocabulary: Vocabulary, corpus: &Corpus, arguments: &Arguments) -> Result<(Vocabulary, Vec<u32>, Vec<u32>)> {
    let mut tokens = vocabulary.encode(&corpus.text)?;
    let validation = tokens.split_off(split(tokens.len(), arguments.validation)?);
    Ok((vocabulary, tokens, validation))
}

/// Sets how far to train: by epochs, by steps, by whichever is less; a resumed training keeps what is not given.
fn limit(arguments: &Arguments, trainer: &mut Trainer) {
    let (windows, old) = (trainer.progress().windows.max(1), trainer.options().epochs);
    match (arguments.epochs, arguments.steps) {
        (None, None) => {}
        (Some(epochs), steps) => trainer.set_limits(epochs, steps),
        (None, Some(steps)) => {
            let epochs = steps.div_ceil(windows);
            trainer.set_limits(if arguments.resume.is_some() { epochs.max(old) } else { epochs }, Some(steps));
        }
    }
}

fn introduce(trainer: &mut Trainer, device: &Device, corpus: &Corpus) {
    let characters = corpus.text.chars().count();
    let (known, level, parameters) = {
        let model = trainer.model();
        let level = model.vocabulary().level();
        let count = |shape: &Vec<usize>| shape.iter().product::<usize>();
        (model.vocabulary().len(), level, model.model().parameters().iter().map(|p| count(&p.shape)).sum::<usize>())
    };
    let (files, skipped) = (corpus.files, corpus.skipped);
    let unit = level.unit();
    eprintln!(
        "{characters} characters from {files} text files ({skipped} other files skipped); {known} distinct {unit}s"
    );
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
fn train(
    trainer: &mut Trainer,
    (output, patience): (&Path, Option<u32>),
    run: &mut Run,
    stop: &AtomicBool,
    display: &mut Display,
) -> Result<()> {
    let mut start = Instant::now();
    while !trainer.finished() && !stop.load(Ordering::Relaxed) {
        trainer.step()?;
        if display.due() {
            let loss = trainer.loss_so_far()?;
            display.update(&trainer.progress(), loss);
        }
        if trainer.end_of_epoch() || trainer.finished() {
            trainer.loss_so_far()?; // the clock stops when the device has done all
            display.stop_clock(&trainer.progress());
            let (loss, validation) = trainer.end_epoch()?;
            let level = trainer.model().vocabulary().level();
            display.epoch(&trainer.progress(), loss, validation, level);
            trainer.checkpoint(output)?;
            let seconds = start.elapsed().as_secs_f64();
            let epoch = trainer.progress().epoch as usize;
            let record = record(epoch, (loss, validation), level, trainer.learning_rate(), (seconds, display.speed()));
            if run.is_best(&record) {
                trainer.checkpoint(run.checkpoint("best")?)?;
            }
            run.record(record)?;
            if patience.is_some_and(|most| run.since_best() >= most as usize) {
                let best = run.checkpoint("best")?;
                display.print(&format!("no better for {} epochs; the best is in {}", run.since_best(), best.display()));
                trainer.set_limits(trainer.progress().epoch, None);
            }
            start = Instant::now();
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

/// What an epoch came to.
fn record(
    epoch: usize,
    (loss, validation): (f32, Option<f32>),
    level: Level,
    learning_rate: f64,
    (seconds, speed): (f64, f64),
) -> Record {
    let of = |prefix: &str, loss: f32| {
        let (name, value) = measured(level, loss);
        vec![(format!("{prefix}loss"), f64::from(loss)), (format!("{prefix}{name}"), value)]
    };
    let mut values = of("", loss);
    values.extend(validation.map(|loss| of("val_", loss)).unwrap_or_default());
    let more = [("learning_rate", learning_rate), ("seconds", seconds), ("tokens_per_second", speed)];
    values.extend(more.map(|(name, value)| (name.to_string(), value)));
    Record { epoch, values }
}

/// Text that the model writes.
fn sample(model: &mut LanguageModel, stream: u64) -> Result<String> {
    let mut random = Random::new(model.config().seed, stream);
    let mut generator = Generator::new(model)?;
    let tokens = (0..SAMPLE_LENGTH).map(|_| generator.next(SAMPLE_TEMPERATURE, 0, &mut random));
    let tokens = tokens.collect::<Result<Vec<u32>>>()?;
    model.vocabulary().decode(&tokens)
}
