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
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
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
        self.save_with(path, json!({}))
    }

    /// [`Self::save`], with more parts of the file.
    fn save_with(&mut self, path: &Path, parts: Value) -> Result<()> {
        if let Some(bad) = Monitor::default().now_if_latched(self.learner.session()?)? {
            return Err(not_finite(bad));
        }
        let mut file = save::file(self.learner)?;
        for (name, part) in parts.as_object().into_iter().flatten() {
            file.metadata[name] = part.clone();
        }
        io::save(path, &file)
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

/// Ends training where nothing gets better any more. Epochs without validation do not count where it is watched.
pub struct EarlyStopping {
    watched: Watched,
    patience: usize,
    min_delta: f64,
    restore: bool,
    file: Option<PathBuf>,
    seen: Seen,
    /// The best epoch's parameters, and its number.
    kept: Option<(usize, Named)>,
}

/// The values of what is watched, by epoch.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Seen(Vec<(usize, f64)>);

impl Seen {
    /// The best before an epoch, and how many epochs since were no better. What was seen of that epoch and later ones was before
    /// training was taken back.
    fn before(&mut self, epoch: usize, watched: &Watched, least: f64) -> (Option<f64>, usize) {
        self.0.retain(|seen| seen.0 < epoch);
        self.0.iter().fold((None, 0), |(best, waited), &(_, value)| match watched.improves(value, best, least) {
            true => (Some(value), 0),
            false => (best, waited + 1),
        })
    }
}

/// Parts of an [`EarlyStopping`]'s file.
const SEEN: &str = "seen";
const BEST: &str = "best";

impl EarlyStopping {
    /// Waits for `patience` epochs that are no better than the best.
    pub fn new(watched: Watched, patience: usize) -> Self {
        Self { watched, patience, min_delta: 0.0, restore: false, file: None, seen: Seen::default(), kept: None }
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

    /// Keeps what was seen, and the best parameters, in a file besides, so that training that another process goes on with
    /// ([`Backup`]) ends as it would have in one. A training from its beginning does not mind what is there.
    #[must_use]
    pub fn kept_in(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    fn read(&mut self, path: &Path) -> Result<()> {
        let file = io::load(path)?;
        self.seen = file.part(SEEN)?;
        let best: Option<usize> = file.part(BEST)?;
        self.kept = best.map(|epoch| (epoch, file.tensors));
        Ok(())
    }

    fn write(&self, path: &Path) -> Result<()> {
        let (best, tensors) = self.kept.clone().unzip();
        let metadata = json!({ SEEN: self.seen, BEST: best });
        io::save(path, &io::ModelFile { metadata, tensors: tensors.unwrap_or_default() })
    }
}

impl Callback for EarlyStopping {
    fn on_train_begin(&mut self, _: &mut Training<'_>) -> Result<()> {
        (self.seen, self.kept) = (Seen::default(), None);
        match self.file.clone() {
            Some(path) if path.exists() => self.read(&path).map_err(|e| e.within(path.display())),
            _ => Ok(()),
        }
    }

    fn on_epoch_end(&mut self, training: &mut Training<'_>, epoch: &Epoch) -> Result<ControlFlow<()>> {
        let Some(value) = self.watched.of(epoch)? else { return Ok(ControlFlow::Continue(())) };
        let (best, waited) = self.seen.before(epoch.epoch, &self.watched, self.min_delta);
        self.kept.take_if(|kept| kept.0 >= epoch.epoch);
        self.seen.0.push((epoch.epoch, value));
        let improved = self.watched.improves(value, best, self.min_delta);
        if improved && self.restore {
            self.kept = Some((epoch.epoch, training.parameters()?));
        }
        if let Some(path) = &self.file {
            self.write(path)?;
        }
        Ok(if improved || waited + 1 < self.patience { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    }

    fn on_train_end(&mut self, training: &mut Training<'_>, _: &History) -> Result<()> {
        self.kept.take().map_or(Ok(()), |(_, best)| training.set_parameters(&best))
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

/// Saves models with the state of their training. What was best is in the file: training that goes on after its first epoch, in this
/// process or another, goes on from there.
pub struct Checkpoint {
    path: PathBuf,
    saved: Saved,
    seen: Option<Seen>,
    written: VecDeque<PathBuf>,
}

impl Checkpoint {
    /// To `path`, a name that ends in `.safetensors`.
    pub fn new(path: impl Into<PathBuf>, saved: Saved) -> Self {
        Self { path: path.into(), saved, seen: None, written: VecDeque::new() }
    }
}

impl Checkpoint {
    /// The best epochs that the file of a training knows which did not begin with this one.
    fn seen_in(path: &Path, epoch: &Epoch) -> Result<Seen> {
        if epoch.epoch <= 1 || !path.exists() {
            return Ok(Seen::default());
        }
        let file = io::load(path)?;
        file.metadata.get(SEEN).map_or(Ok(Seen::default()), |_| file.part(SEEN)).map_err(|e| e.within(path.display()))
    }
}

impl Callback for Checkpoint {
    fn on_epoch_end(&mut self, training: &mut Training<'_>, epoch: &Epoch) -> Result<ControlFlow<()>> {
        match &self.saved {
            Saved::Best(watched) => {
                let Some(value) = watched.of(epoch)? else { return Ok(ControlFlow::Continue(())) };
                let seen = match &mut self.seen {
                    Some(seen) => seen,
                    None => self.seen.insert(Self::seen_in(&self.path, epoch)?),
                };
                let best = seen.before(epoch.epoch, watched, 0.0).0;
                if watched.improves(value, best, 0.0) {
                    seen.0.push((epoch.epoch, value));
                    training.save_with(&self.path, json!({ SEEN: seen }))?;
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
/// begins again; stateful layers begin from states of zero. The file is removed when `fit` ends without an error, unless it is to stay.
pub struct Backup {
    path: PathBuf,
    every: Option<u32>,
    stays: bool,
}

impl Backup {
    /// In the file `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), every: None, stays: false }
    }

    /// Saves after every so many batches besides.
    #[must_use]
    pub fn every(mut self, batches: u32) -> Self {
        self.every = Some(batches.max(1));
        self
    }

    /// Leaves the file where it is in the end, for whoever removes it once what was trained is safe elsewhere.
    #[must_use]
    pub fn stays(mut self) -> Self {
        self.stays = true;
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
        if self.stays {
            return Ok(());
        }
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
