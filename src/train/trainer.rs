//! Stateful truncated backpropagation through a text.
//!
//! `batch` streams read contiguous shares of the text, `sequence` characters a step; the recurrent state is carried from
//! window to window, and is zero where an epoch begins. Where training stands follows from the number of steps alone.

use super::language::LanguageModel;
use super::monitor::{Monitor, not_finite};
use super::prefetch::Prefetch;
use super::recovery::Recovery;
use super::save::check_shape;
use super::scaling::LossScale;
use super::step::{
    EVALUATE, LATCH, TRAIN, begin_slots, evaluation_graph, is_scaled, states, training_graph, training_scalars,
    zero_states,
};
use super::text::{Streams, Window};
use super::{Loss, Objective};
use crate::device::{Device, Executable, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{self, ModelFile};
use crate::nn::{Input, Network, WorkingMemory};
use crate::optim::{Adam, Clipping, Course, Optimizer};
use crate::params::fingerprint;
use crate::scheduler::{Batch, Capacity};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What the name of a working memory's ring ends with.
const RING: &str = ".ring";

/// How to train a language model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainOptions {
    /// Streams read side by side.
    pub batch: usize,
    /// Tokens of each stream a step.
    pub sequence: usize,
    /// Times to read the text.
    pub epochs: u32,
    /// The largest number of steps, where that is fewer.
    pub steps: Option<u32>,
    /// How parameters change.
    pub optimizer: Optimizer,
    /// For dropout.
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            batch: 50,
            sequence: 50,
            epochs: 5,
            steps: None,
            optimizer: Optimizer::from(Adam::pytorch().learning_rate(2e-3)).clip(Clipping::GlobalNorm(5.0)),
            seed: 0,
        }
    }
}

/// Where training stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Steps taken.
    pub step: u32,
    /// Steps in all.
    pub steps: u32,
    /// The epoch of the last step, counted from 1.
    pub epoch: u32,
    /// Epochs in all.
    pub epochs: u32,
    /// Steps of this epoch taken.
    pub window: u32,
    /// Steps an epoch has.
    pub windows: u32,
    /// Tokens trained on.
    pub tokens: u64,
}

/// What a checkpoint says of training.
#[derive(Serialize, Deserialize)]
struct Training {
    options: TrainOptions,
    course: Course,
    text: [u64; 2],
}

struct Validation {
    streams: Arc<Streams>,
    executable: Executable,
}

/// Trains a language model, a window at a time.
pub struct Trainer {
    model: LanguageModel,
    options: TrainOptions,
    train: Arc<Streams>,
    windows: Option<Prefetch<Window>>,
    executable: Executable,
    validation: Option<Validation>,
    /// Has parameters and their averages change places, where averages are kept.
    exchange: Option<Executable>,
    monitor: Monitor,
    recovery: Recovery<Course>,
    course: Course,
    rate: f64,
    /// What the schedule had seen when each epoch began, for what a lost device has done again.
    seen: BTreeMap<u32, Course>,
    failed: Option<u32>,
    text: [u64; 2],
    /// The memory that training began with.
    memory: Option<WorkingMemory>,
}

/// The network of a language model.
fn network(model: &LanguageModel) -> Result<Network> {
    model.model.network(Input::Tokens)
}

impl Trainer {
    /// Training from its beginning. Without at least two validation tokens there is no validation.
    pub fn new(
        mut model: LanguageModel,
        train_tokens: Vec<u32>,
        valid_tokens: Vec<u32>,
        options: TrainOptions,
    ) -> Result<Self> {
        options.optimizer.validate()?;
        let text = [&train_tokens, &valid_tokens].map(|tokens| fingerprint(tokens.iter().map(|&t| u64::from(t))));
        let train = Streams::for_training(train_tokens, options.batch, options.sequence)?;
        let slots = options.optimizer.slots(&model.model.parameters());
        begin_slots(model.model.session()?, &slots)?;
        TRAIN.zero(model.model.session()?)?;
        let valid = Streams::for_validation(valid_tokens, options.batch, options.sequence).map(Arc::new);
        let (executable, validation) = Self::programs(&mut model, &options, &train, valid)?;
        zero_states(model.model.session()?, &executable)?;
        let (monitor, recovery) = (Monitor::default(), Recovery::default());
        let rate = options.optimizer.learning_rate(&Course::default());
        let memory = model.memory().copied();
        Ok(Self {
            memory,
            model,
            options,
            train: Arc::new(train),
            windows: None,
            executable,
            validation,
            exchange: None,
            monitor,
            recovery,
            course: Course::default(),
            rate,
            seen: BTreeMap::new(),
            failed: None,
            text,
        })
    }

    /// The program of a training step.
    fn program(model: &mut LanguageModel, options: &TrainOptions, train: &Streams) -> Result<Executable> {
        let graph = training_graph(
            &network(model)?,
            &[Objective::sole(Loss::CrossEntropy)],
            &options.optimizer,
            "train.",
            is_scaled(model.model.session()?),
            false,
        )?;
        model.model.session()?.load(&graph, &train.capacity()?)
    }

    /// The programs of a training step and of validation.
    fn programs(
        model: &mut LanguageModel,
        options: &TrainOptions,
        train: &Streams,
        valid: Option<Arc<Streams>>,
    ) -> Result<(Executable, Option<Validation>)> {
        // Before the training step, which takes of the memory what it can use.
        let validation = valid.map(|streams| Self::validating(model, streams)).transpose()?;
        match (Self::program(model, options, train), validation) {
            // Where one program needs weights on the device and the other away from it, training has its way.
            (Err(e), Some(Validation { streams, executable })) if e.kind() == ErrorKind::Memory => {
                drop(executable);
                let program = Self::program(model, options, train)?;
                Ok((program, Some(Self::validating(model, streams)?)))
            }
            (program, validation) => Ok((program?, validation)),
        }
    }

    fn validating(model: &mut LanguageModel, streams: Arc<Streams>) -> Result<Validation> {
        let graph = evaluation_graph(&network(model)?, &[Objective::sole(Loss::CrossEntropy)], "evaluate.", false)?;
        let session = model.model.session()?;
        EVALUATE.zero(session)?;
        let executable = session.load(&graph, &streams.capacity()?)?;
        Ok(Validation { streams, executable })
    }

    /// Does `work`, elsewhere if the device fails: training goes on from what was kept of it last, to where it stood, and then
    /// does it.
    fn lasting<R>(&mut self, mut work: impl FnMut(&mut Self) -> Result<R>) -> Result<R> {
        let stood = self.course.step;
        let error = match work(self) {
            Err(error) if error.is_of_the_device() => error,
            other => return other,
        };
        let device = self.model.model.device().clone();
        let mut recovery = std::mem::take(&mut self.recovery);
        let done = recovery.elsewhere(error, &device, |session, course| {
            self.go_on(session, course.clone())?;
            while self.course.step < stood {
                self.advance()?;
            }
            let epoch = stood / self.train.windows() as u32;
            if let Some(seen) = self.seen.get(&epoch).filter(|_| self.end_of_epoch()) {
                self.course = seen.clone();
            }
            work(self)
        });
        self.recovery = recovery;
        done
    }

    /// Stands where a snapshot was taken, on another session.
    fn go_on(&mut self, session: Session, course: Course) -> Result<()> {
        self.model.model.replace_session(session);
        // Kept until there are programs, so that the next device has it where this one fails too.
        let valid = self.validation.as_ref().map(|v| Arc::clone(&v.streams));
        let Self { model, options, train, .. } = self;
        (self.executable, self.validation) = Self::programs(model, options, train, valid)?;
        (self.windows, self.monitor, self.failed, self.course) = (None, Monitor::default(), None, course);
        self.exchange = None;
        Ok(())
    }

    /// Training as a checkpoint left it, bit for bit, over the same text.
    pub fn resume(
        device: &Device,
        path: impl AsRef<Path>,
        train_tokens: Vec<u32>,
        valid_tokens: Vec<u32>,
    ) -> Result<Self> {
        let path = path.as_ref();
        let file = io::load(path)?;
        let resume = || {
            let training: Training = file.part("training")?;
            let model = LanguageModel::from_file(device, &file)?;
            let mut trainer = Self::new(model, train_tokens, valid_tokens, training.options)?;
            if trainer.text != training.text {
                return Err(Error::data("the text or its validation share is not the one that training began with"));
            }
            trainer.course = training.course;
            // Training that did not scale its loss goes on with the scale where it begins.
            let here = |name: &str| {
                let may_lack = LossScale::NAMES.contains(&name) || trainer.end_of_epoch() && name.ends_with(RING);
                !may_lack || file.tensors.contains_key(name)
            };
            let kept: Vec<_> = trainer.kept()?.into_iter().filter(|(name, _)| here(name)).collect();
            for (name, shape) in kept {
                let tensor = file.tensor(&name)?;
                check_shape(&name, tensor.shape(), &shape)?;
                trainer.model.model.session()?.set(&name, tensor)?;
            }
            trainer.exchange()?;
            Ok(trainer)
        };
        resume().map_err(|e: Error| e.within(path.display()))
    }

    /// Sets other limits than those it began with.
    pub fn set_limits(&mut self, epochs: u32, steps: Option<u32>) {
        self.options.epochs = epochs;
        self.options.steps = steps;
    }

    /// What training keeps on the device besides parameters.
    fn kept(&self) -> Result<Vec<(String, Vec<usize>)>> {
        let slots = self.options.optimizer.slots(&self.model.model.parameters()).into_iter();
        let mut kept: Vec<_> = slots.map(|slot| (slot.name, slot.shape)).collect();
        kept.extend(states(&self.executable)?);
        let scale = LossScale::NAMES.into_iter().filter(|_| self.executable.program().target.matrix() > 0);
        kept.extend(TRAIN.names().into_iter().chain(scale).map(|name| (name.to_string(), vec![1])));
        Ok(kept)
    }

    /// The model, for generating in between. Training is of the working memory that it began with, and is not saved while the model
    /// has another.
    pub fn model(&mut self) -> &mut LanguageModel {
        &mut self.model
    }

    /// The model, of averaged parameters where the optimiser averages.
    pub fn into_model(mut self) -> Result<LanguageModel> {
        self.lasting(Self::exchange)?;
        Ok(self.model)
    }

    /// Has parameters and their averages change places, where averages are kept.
    fn exchange(&mut self) -> Result<()> {
        let batch = Batch::dense(1, 1)?;
        if self.exchange.is_none() {
            let Some(graph) = self.options.optimizer.exchange(&self.model.model.parameters())? else { return Ok(()) };
            self.exchange = Some(self.model.model.session()?.load(&graph, &Capacity::exactly(&batch))?);
        }
        let session = self.model.model.session()?;
        self.exchange.as_mut().map_or(Ok(()), |program| session.run(program, &batch, &[]))
    }

    /// How it trains.
    pub fn options(&self) -> &TrainOptions {
        &self.options
    }

    /// Where it stands.
    pub fn progress(&self) -> Progress {
        let windows = self.train.windows() as u32;
        let total = windows.saturating_mul(self.options.epochs);
        let (epochs, window) = match self.course.step.checked_sub(1) {
            Some(last) => (last / windows, last % windows + 1),
            None => (0, 0),
        };
        let of_epoch = (window as usize * self.train.sequence).min(self.train.length);
        Progress {
            step: self.course.step,
            steps: self.options.steps.map_or(total, |steps| steps.min(total)),
            epoch: epochs + 1,
            epochs: self.options.epochs,
            window,
            windows,
            tokens: ((epochs as usize * self.train.length + of_epoch) * self.train.count) as u64,
        }
    }

    /// Whether all steps are taken.
    pub fn finished(&self) -> bool {
        let progress = self.progress();
        progress.step >= progress.steps
    }

    /// Whether the last step was the last of its epoch.
    pub fn end_of_epoch(&self) -> bool {
        self.course.step > 0 && self.course.step.is_multiple_of(self.train.windows() as u32)
    }

    /// Advances one window. A step whose loss or gradient is not finite changes nothing; this or one of the next steps
    /// says so, and the trainer stands where that step began.
    pub fn step(&mut self) -> Result<()> {
        self.lasting(Self::advance)
    }

    fn advance(&mut self) -> Result<()> {
        self.healthy(false)?;
        let windows = self.train.windows() as u32;
        let (step, epoch, window) = (self.course.step, self.course.step / windows, self.course.step % windows);
        if window == 0 {
            if let Some(seen) = self.seen.get(&epoch) {
                self.course = seen.clone();
            }
            (self.course.step, self.course.epoch) = (step, epoch);
            // The states of an epoch that failed at its end must not be lost.
            self.healthy(true)?;
            let session = self.model.model.session()?;
            TRAIN.zero(session)?;
            zero_states(session, &self.executable)?;
        }
        self.recovery.keep(self.model.model.session()?, &self.course)?;
        let (batch, x, y) = self.next_window()?;
        let mut batch = batch.at_step(self.options.seed, step);
        self.rate = self.options.optimizer.learning_rate(&self.course);
        for (name, value) in training_scalars(&self.options.optimizer, &self.course) {
            batch.set_scalar(name, value);
        }
        let session = self.model.model.session()?;
        if let Err(error) = session.run(&mut self.executable, &batch, &[("x", &x), ("y", &y)]) {
            self.windows = None; // the next call reads the same window again
            return Err(error);
        }
        self.course.step += 1;
        if let Some(bad) = self.monitor.after_step(session)? {
            self.fail(bad);
        }
        self.healthy(false)
    }

    /// The window of this step, made ready on another thread while the device computed the last.
    fn next_window(&mut self) -> Result<Window> {
        let windows = match &mut self.windows {
            Some(windows) => windows,
            None => {
                // Which window a step reads follows from its number.
                let (streams, count) = (Arc::clone(&self.train), self.train.windows() as u32);
                let all =
                    (self.course.step..).map(move |step| streams.window((step % count) as usize * streams.sequence));
                self.windows.insert(Prefetch::spawn(all)?)
            }
        };
        windows.next().unwrap_or_else(|| Err(Error::internal("training: there are no more windows")))
    }

    /// How long the device has waited for windows of the text to be made ready.
    pub fn waited(&self) -> Duration {
        self.windows.as_ref().map_or(Duration::ZERO, Prefetch::waited)
    }

    fn fail(&mut self, bad: u32) {
        self.failed = Some(bad);
        self.course.step = bad;
        self.windows = None;
    }

    /// Refuses to go on after a step that was not finite; waits for the device to know if `now`.
    fn healthy(&mut self, now: bool) -> Result<()> {
        if now
            && self.failed.is_none()
            && let Some(bad) = self.monitor.now(self.model.model.session()?)?
        {
            self.fail(bad);
        }
        self.failed.map_or(Ok(()), |bad| Err(not_finite(bad)))
    }

    /// The mean loss over this epoch so far, in nats a token. Waits for the device.
    pub fn loss_so_far(&mut self) -> Result<f32> {
        self.lasting(|trainer| {
            trainer.healthy(true)?;
            TRAIN.mean(trainer.model.model.session()?)
        })
    }

    /// The loss over this epoch and over the validation text after it, which the optimiser's schedule is told of. To be called
    /// after the last step of each epoch, see [`Self::end_of_epoch`].
    pub fn end_epoch(&mut self) -> Result<(f32, Option<f32>)> {
        let loss = self.loss_so_far()?;
        let validation = self.validate()?;
        let epoch = self.course.step / self.train.windows() as u32;
        if self.end_of_epoch() && self.course.epoch < epoch {
            self.course.epoch = epoch;
            self.options.optimizer.observe(&mut self.course, validation.unwrap_or(loss));
            self.seen.insert(epoch, self.course.clone());
        }
        Ok((loss, validation))
    }

    /// The learning rate of the last step; of the first, before there was one.
    pub fn learning_rate(&self) -> f64 {
        self.rate
    }

    /// The loss over the validation text, read with a state of its own from zero, in nats a token.
    pub fn validate(&mut self) -> Result<Option<f32>> {
        self.lasting(|trainer| {
            trainer.exchange()?;
            let loss = trainer.validate_here();
            trainer.exchange()?;
            loss
        })
    }

    fn validate_here(&mut self) -> Result<Option<f32>> {
        let Some(Validation { streams, executable }) = &mut self.validation else { return Ok(None) };
        streams.evaluate(self.model.model.session()?, executable).map(Some)
    }

    /// Writes all that [`Self::resume`] needs. After a step that was not finite it writes what was before that step.
    pub fn checkpoint(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let file = self.lasting(Self::file)?;
        io::save(path.as_ref(), &file)
    }

    fn file(&mut self) -> Result<ModelFile> {
        if self.model.memory() != self.memory.as_ref() {
            return Err(Error::argument(format!(
                "training: expected the working memory that it began with, {:?}, the model has {:?}",
                self.memory,
                self.model.memory()
            )));
        }
        match self.healthy(true) {
            Err(e) if self.failed.is_none() => return Err(e),
            _ => {}
        }
        // What averages the optimiser keeps is the model, for whoever reads the file.
        self.exchange()?;
        let mut file = self.model.model_file()?;
        let training = Training { options: self.options.clone(), course: self.course.clone(), text: self.text };
        file.metadata["training"] = json!(training);
        // What was read is forgotten where an epoch begins.
        let ends = self.end_of_epoch();
        for (name, _) in self.kept()?.into_iter().filter(|(name, _)| !(ends && name.ends_with(RING))) {
            file.tensors.insert(name.clone(), self.model.model.session()?.get(&name)?);
        }
        self.exchange()?;
        debug_assert!(!file.tensors.contains_key(LATCH), "a resumed training begins healthy");
        Ok(file)
    }
}
