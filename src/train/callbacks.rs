//! What is done while a model trains.

use super::Named;
use super::fit::{Epoch, History};
use super::learner::Learner;
use super::monitor::{Monitor, not_finite};
use super::runs::{Record, Records};
use super::save;
use crate::error::{Error, ErrorKind, Result};
use crate::io;
use crate::optim::Course;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// A training under way.
pub struct Training<'a> {
    learner: &'a mut dyn Learner,
}

impl<'a> Training<'a> {
    pub(super) fn new(learner: &'a mut dyn Learner) -> Self {
        Self { learner }
    }

    /// Where it stands.
    pub fn course(&self) -> Result<Course> {
        Ok(self.learner.compiled()?.course)
    }

    /// The learning rate of the next batch.
    pub fn learning_rate(&self) -> Result<f64> {
        let compiled = self.learner.compiled()?;
        Ok(compiled.optimizer.learning_rate(&compiled.course))
    }

    /// The values of all parameters. Waits for the device.
    pub fn parameters(&mut self) -> Result<Named> {
        let specs = self.learner.network()?.parameters()?;
        let session = self.learner.session()?;
        specs.into_iter().map(|spec| Ok((spec.name.clone(), session.get(&spec.name)?))).collect()
    }

    /// Gives parameters other values.
    pub fn set_parameters(&mut self, parameters: &Named) -> Result<()> {
        for spec in self.learner.network()?.parameters()? {
            if let Some(tensor) = parameters.get(&spec.name) {
                save::check_shape(&spec.name, tensor.shape(), &spec.shape)?;
                self.learner.session()?.set(&spec.name, tensor)?;
            }
        }
        Ok(())
    }

    /// Writes the model and the state of its training to one file, as `save` of the model does.
    ///
    /// Refuses where a step was not finite, which changed nothing since: what was saved before it stays.
    pub fn save(&mut self, path: &Path) -> Result<()> {
        if let Some(bad) = Monitor::default().now_if_latched(self.learner.session()?)? {
            return Err(not_finite(bad));
        }
        io::save(path, &save::file(self.learner)?)
    }

    /// Goes on as a file says that [`Self::save`] wrote.
    pub fn restore(&mut self, path: &Path) -> Result<()> {
        save::restore(self.learner, &io::load(path)?).map_err(|e| e.within(path.display()))
    }
}

/// Is told of the moments of a training. `Break` ends it.
pub trait Callback {
    /// Before the first batch of a call of `fit`.
    fn on_train_begin(&mut self, _: &mut Training<'_>) -> Result<()> {
        Ok(())
    }

    /// After each batch, which the device may still compute.
    fn on_batch_end(&mut self, _: &mut Training<'_>) -> Result<ControlFlow<()>> {
        Ok(ControlFlow::Continue(()))
    }

    /// After each epoch and its validation.
    fn on_epoch_end(&mut self, _: &mut Training<'_>, _: &Epoch) -> Result<ControlFlow<()>> {
        Ok(ControlFlow::Continue(()))
    }

    /// A loss or gradient was not finite, and changed nothing: whether `fit` ends well all the same.
    fn on_not_finite(&mut self, _: &Error) -> bool {
        false
    }

    /// After the last epoch.
    fn on_train_end(&mut self, _: &mut Training<'_>, _: &History) -> Result<()> {
        Ok(())
    }
}

/// A closure that is told of epochs.
pub(super) struct OnEpoch<F>(pub(super) F);

impl<F: FnMut(&Epoch) -> ControlFlow<()>> Callback for OnEpoch<F> {
    fn on_epoch_end(&mut self, _: &mut Training<'_>, epoch: &Epoch) -> Result<ControlFlow<()>> {
        Ok(self.0(epoch))
    }
}

/// Whether values of a quantity are better the smaller they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// As losses are.
    Lower,
    /// As accuracies are.
    Higher,
}

/// What is watched: by its name in the history, and which way is better.
#[derive(Debug, Clone, PartialEq)]
pub struct Watched {
    /// `loss`, `val_loss`, or a metric's name, with `val_` before it for validation.
    pub name: String,
    /// Which way.
    pub better: Better,
}

impl Watched {
    /// A loss or an error.
    pub fn lower(name: &str) -> Self {
        Self { name: name.to_string(), better: Better::Lower }
    }

    /// An accuracy.
    pub fn higher(name: &str) -> Self {
        Self { name: name.to_string(), better: Better::Higher }
    }

    /// Its value after an epoch; none where there was no validation to have one.
    fn of(&self, epoch: &Epoch) -> Result<Option<f64>> {
        if let Some(value) = epoch.value(&self.name) {
            return Ok(Some(value));
        }
        if epoch.val_loss.is_none() && self.name.starts_with("val_") {
            log::debug!("callback: there was no validation after epoch {}", epoch.epoch);
            return Ok(None);
        }
        let known: Vec<String> = epoch.values().into_iter().map(|v| v.0).collect();
        Err(Error::argument(format!("callback: an epoch has no `{}`, only {}", self.name, known.join(", "))))
    }

    /// Whether `value` is better than `best` by more than `least`; what is not a number never is.
    fn improves(&self, value: f64, best: Option<f64>, least: f64) -> bool {
        !value.is_nan()
            && best.is_none_or(|best| match self.better {
                Better::Lower => value < best - least,
                Better::Higher => value > best + least,
            })
    }
}

/// Ends training where nothing gets better any more. Epochs without validation do not count where it is watched. What was best is
/// not known to another process, which begins anew.
pub struct EarlyStopping {
    watched: Watched,
    patience: usize,
    min_delta: f64,
    restore: bool,
    best: Option<f64>,
    waited: usize,
    kept: Option<Named>,
}

impl EarlyStopping {
    /// Waits for `patience` epochs that are no better than the best.
    pub fn new(watched: Watched, patience: usize) -> Self {
        Self { watched, patience, min_delta: 0.0, restore: false, best: None, waited: 0, kept: None }
    }

    /// What is better by less counts as no better.
    #[must_use]
    pub fn min_delta(mut self, least: f64) -> Self {
        self.min_delta = least;
        self
    }

    /// Whether the model has the best epoch's parameters in the end, which are kept in memory until then.
    #[must_use]
    pub fn restore_best(mut self, restore: bool) -> Self {
        self.restore = restore;
        self
    }
}

impl Callback for EarlyStopping {
    fn on_train_begin(&mut self, _: &mut Training<'_>) -> Result<()> {
        (self.best, self.waited, self.kept) = (None, 0, None);
        Ok(())
    }

    fn on_epoch_end(&mut self, training: &mut Training<'_>, epoch: &Epoch) -> Result<ControlFlow<()>> {
        let Some(value) = self.watched.of(epoch)? else { return Ok(ControlFlow::Continue(())) };
        if self.watched.improves(value, self.best, self.min_delta) {
            (self.best, self.waited) = (Some(value), 0);
            if self.restore {
                self.kept = Some(training.parameters()?);
            }
            return Ok(ControlFlow::Continue(()));
        }
        self.waited += 1;
        Ok(if self.waited >= self.patience { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn on_train_end(&mut self, training: &mut Training<'_>, _: &History) -> Result<()> {
        self.kept.take().map_or(Ok(()), |best| training.set_parameters(&best))
    }
}

/// Which epochs are saved.
#[derive(Debug, Clone, PartialEq)]
pub enum Saved {
    /// Whenever it is better than before, to one file.
    Best(Watched),
    /// The last so many, each to a file of its own, `NAME-EPOCH.safetensors`.
    Last(usize),
}

/// Saves models with the state of their training. What was best is not known to another process, which begins anew.
pub struct Checkpoint {
    path: PathBuf,
    saved: Saved,
    best: Option<f64>,
    written: VecDeque<PathBuf>,
}

impl Checkpoint {
    /// To `path`, a name that ends in `.safetensors`.
    pub fn new(path: impl Into<PathBuf>, saved: Saved) -> Self {
        Self { path: path.into(), saved, best: None, written: VecDeque::new() }
    }
}

impl Callback for Checkpoint {
    fn on_epoch_end(&mut self, training: &mut Training<'_>, epoch: &Epoch) -> Result<ControlFlow<()>> {
        match &self.saved {
            Saved::Best(watched) => {
                let value = watched.of(epoch)?.filter(|&value| watched.improves(value, self.best, 0.0));
                if value.is_some() {
                    training.save(&self.path)?;
                    self.best = value;
                }
            }
            Saved::Last(count) => {
                let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
                let path = self.path.with_file_name(format!("{stem}-{:04}.safetensors", epoch.epoch));
                training.save(&path)?;
                self.written.push_back(path);
                // What came last is whole before what came first goes.
                while self.written.len() > *count {
                    let Some(old) = self.written.pop_front() else { break };
                    std::fs::remove_file(&old).map_err(|e| Error::io(&old, "remove", e))?;
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Saves training after each epoch, and after every so many batches, and goes on from there where a process that was killed
/// begins again; stateful layers begin from states of zero. The file is removed when `fit` ends without an error.
pub struct Backup {
    path: PathBuf,
    every: Option<u32>,
}

impl Backup {
    /// In the file `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), every: None }
    }

    /// Saves after every so many batches besides.
    #[must_use]
    pub fn every(mut self, batches: u32) -> Self {
        self.every = Some(batches.max(1));
        self
    }
}

impl Callback for Backup {
    fn on_train_begin(&mut self, training: &mut Training<'_>) -> Result<()> {
        if self.path.exists() { training.restore(&self.path) } else { Ok(()) }
    }

    fn on_batch_end(&mut self, training: &mut Training<'_>) -> Result<ControlFlow<()>> {
        if let Some(every) = self.every
            && training.course()?.step.is_multiple_of(every)
        {
            training.save(&self.path)?;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn on_epoch_end(&mut self, training: &mut Training<'_>, _: &Epoch) -> Result<ControlFlow<()>> {
        training.save(&self.path)?;
        Ok(ControlFlow::Continue(()))
    }

    fn on_train_end(&mut self, _: &mut Training<'_>, _: &History) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&self.path, "remove", e)),
            _ => Ok(()),
        }
    }
}

/// A file with a line an epoch: its number and all its values by name, empty where there was none. Epochs of later calls follow.
pub struct CsvLog {
    path: PathBuf,
    /// What the file has, once it was read.
    records: Option<Records>,
}

impl CsvLog {
    /// To `path`, which is added to where it exists.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), records: None }
    }
}

impl Callback for CsvLog {
    fn on_epoch_end(&mut self, _: &mut Training<'_>, epoch: &Epoch) -> Result<ControlFlow<()>> {
        let records = match &mut self.records {
            Some(records) => records,
            None if self.path.exists() => self.records.insert(Records::read_csv(&self.path)?),
            None => self.records.insert(Records::default()),
        };
        records.0.push(Record { epoch: epoch.epoch, values: epoch.values() });
        io::replace(&self.path, records.csv().as_bytes())?;
        Ok(ControlFlow::Continue(()))
    }
}

/// Ends training well where a loss or gradient is not finite: the model is as it was before that step.
pub struct TerminateOnNan;

impl Callback for TerminateOnNan {
    fn on_not_finite(&mut self, error: &Error) -> bool {
        debug_assert_eq!(error.kind(), ErrorKind::NotFinite);
        log::warn!("{error}");
        true
    }
}
