//! What `fit` and `evaluate` do, for whatever holds a network's parameters and programs.

use super::Objective;
use super::dataset::Dataset;
use super::fit::{Compiled, Epoch, Fit, History, check_stateful};
use super::monitor::{Monitor, not_finite};
use super::prefetch::Prefetch;
use super::recovery::Recovery;
use super::step::{EVALUATE, TRAIN, evaluation_graph, is_scaled, training_graph, training_scalars, zero_slots};
use crate::device::{Executable, Session};
use crate::error::{Error, Result};
use crate::nn::Network;
use crate::scheduler::{Batching, Cost, Sampler};
use std::ops::{ControlFlow, Range};
use std::time::Instant;

/// Makes a program on a session.
pub(super) type Make<'a> = &'a dyn Fn(&mut Session) -> Result<Executable>;

/// Holds a network's parameters in a session, programs over them, and how it is trained.
pub(super) trait Learner {
    /// The network that is trained.
    fn network(&self) -> Result<Network>;
    /// The session with its parameters.
    fn session(&mut self) -> Result<&mut Session>;
    /// Goes on with another session that holds the parameters; programs are made anew.
    fn replace_session(&mut self, session: Session);
    /// The session, and the program kept under `key`, made where there is none.
    fn program(&mut self, key: &str, make: Make<'_>) -> Result<(&mut Session, &mut Executable)>;
    /// What `compile` chose.
    fn compiled(&self) -> Result<Compiled>;
    /// Keeps how far training has come.
    fn keep(&mut self, compiled: Compiled);
}

/// Zeroes every state that layers carry from batch to batch.
pub(super) fn reset_states(learner: &mut dyn Learner) -> Result<()> {
    let session = learner.session()?;
    let carried = |name: &&str| name.ends_with(".h_l0") || name.ends_with(".c_l0");
    let names: Vec<String> = session.names().filter(|n| carried(n)).map(String::from).collect();
    names.into_iter().try_for_each(|name| {
        let old = session.get(&name)?;
        session.zero(&name, old.shape(), old.dtype())
    })
}

/// Trains for `fit.epochs`, on all samples but those kept for validation.
pub(super) fn fit(
    learner: &mut dyn Learner,
    data: &Dataset,
    fit: &Fit,
    on_epoch: &mut dyn FnMut(&Epoch) -> ControlFlow<()>,
) -> Result<History> {
    fit.validate()?;
    let cut = data.samples - (data.samples as f64 * fit.validation_split) as usize;
    let size = fit.batch_size.min(cut);
    let network = learner.network()?;
    check_stateful(&network, cut, size, fit.shuffle || fit.batching != Batching::Plain)?;
    if cut < data.samples {
        check_stateful(&network, data.samples - cut, size.min(data.samples - cut), false)?;
    }
    let slots = learner.compiled()?.optimizer.slots(&network.parameters()?);
    let session = learner.session()?;
    let missing: Vec<_> = slots.into_iter().filter(|(slot, _)| !session.names().any(|n| n == slot)).collect();
    zero_slots(session, &missing)?;
    let mut lengths = data.lengths()?;
    lengths.truncate(cut);
    let sampler = Sampler::new(lengths, size, fit.batching, fit.shuffle.then_some(fit.seed))?;
    let left = fit.steps.unwrap_or(usize::MAX);
    let (monitor, recovery) = (Monitor::default(), Recovery::default());
    let mut run = TrainingRun { data, network, fit, sampler, size, left, done: 0, monitor, recovery };
    let (mut history, mut told) = (History::default(), 0);
    while run.done < fit.epochs {
        let start = Instant::now();
        let mut whole = || -> Result<_> {
            let Some(trained) = run.epoch(learner)? else { return Ok(None) };
            let val_loss =
                (cut < data.samples).then(|| evaluate(learner, data, cut..data.samples, size)).transpose()?;
            Ok(Some((trained, val_loss)))
        };
        let (Trained { loss, waited, cost }, val_loss) = match whole() {
            Ok(Some(trained)) => trained,
            Ok(None) => break,
            Err(error) => {
                run.recover(learner, error)?;
                history.loss.truncate(run.done);
                history.val_loss.truncate(run.done);
                continue;
            }
        };
        run.done += 1;
        history.loss.push(loss);
        history.val_loss.extend(val_loss);
        let epoch = learner.compiled()?.epoch as usize;
        let epoch = Epoch { epoch, loss, val_loss, seconds: start.elapsed().as_secs_f64(), waited, cost };
        // An epoch that a lost device has had done again was told of before.
        if run.done > told && on_epoch(&epoch).is_break() {
            break;
        }
        told = told.max(run.done);
    }
    Ok(history)
}

/// The loss over some samples, without dropout.
pub(super) fn evaluate(
    learner: &mut dyn Learner,
    data: &Dataset,
    rows: Range<usize>,
    batch_size: usize,
) -> Result<f32> {
    let size = batch_size.min(rows.len());
    let network = learner.network()?;
    check_stateful(&network, rows.len(), size, false)?;
    let objectives = data.objectives();
    let key = format!("evaluate {objectives:?} {size} {}", data.key()?);
    let (session, program) = learner.program(&key, &|session| {
        let graph = evaluation_graph(&network, &objectives, &format!("infer.{size}."))?;
        EVALUATE.zero(session)?;
        session.load(&graph, &data.capacity(size)?)
    })?;
    EVALUATE.zero(session)?;
    let rows: Vec<usize> = rows.collect();
    std::thread::scope(|scope| {
        let mut batches = Prefetch::begin(scope, rows.chunks(size).map(|chunk| data.batch(chunk)))?;
        while let Some(packed) = batches.next() {
            let packed = packed?;
            session.run(program, &packed.batch, &packed.named(program))?;
        }
        EVALUATE.mean(session)
    })
}

/// One call of `fit`.
struct TrainingRun<'a> {
    data: &'a Dataset,
    network: Network,
    fit: &'a Fit,
    sampler: Sampler,
    size: usize,
    /// Steps that may still be taken.
    left: usize,
    /// Epochs so far.
    done: usize,
    monitor: Monitor,
    recovery: Recovery<Moment>,
}

/// Where a snapshot was taken: how far training had come, what was left, and the epochs that were done.
#[derive(Clone, Copy)]
struct Moment {
    compiled: Compiled,
    left: usize,
    done: usize,
}

/// What an epoch came to.
struct Trained {
    loss: f32,
    waited: f64,
    cost: Cost,
}

impl TrainingRun<'_> {
    /// Goes on from the last snapshot on another device, where `error` is the device's.
    fn recover(&mut self, learner: &mut dyn Learner, error: Error) -> Result<()> {
        let device = learner.session()?.device().clone();
        let (Self { left, done, monitor, recovery, .. }, mut session) = (self, None);
        let moment = recovery.elsewhere(error, &device, |here, &moment| {
            session = Some(here);
            Ok(moment)
        })?;
        session.into_iter().for_each(|session| learner.replace_session(session));
        learner.keep(moment.compiled);
        (*left, *done, *monitor) = (moment.left, moment.done, Monitor::default());
        Ok(())
    }

    /// Trains to the end of the epoch; nothing where the steps that may be taken end before it.
    fn epoch(&mut self, learner: &mut dyn Learner) -> Result<Option<Trained>> {
        let mut compiled = learner.compiled()?;
        let fingerprint = self.sampler.fingerprint();
        if compiled.batch > 0 && compiled.order != fingerprint {
            log::warn!("fit: the samples or their batches are others than before: the epoch begins anew");
            compiled.batch = 0;
        }
        compiled.order = fingerprint;
        let Compiled { optimizer, step: first, epoch, batch: met, .. } = compiled;
        let order = self.sampler.epoch(epoch);
        let order = &order[(met as usize).min(order.len())..];
        let (now, whole, left) = (order.len().min(self.left), order.len() <= self.left, self.left);
        self.left -= now;
        let (size, clip) = (self.size, self.fit.clip_norm);
        let objectives: Vec<Objective> = self.data.objectives();
        let mut capacity = self.data.capacity(size)?;
        let lengths_are_known = self.network.input_axes()?.contains(&Some(0));
        if let Some(axis) = capacity.axes.first_mut().filter(|_| lengths_are_known) {
            axis.1 = axis.1.min(self.sampler.most_steps());
        }
        let key = format!("train {optimizer:?} {objectives:?} {clip:?} {capacity:?}");
        let session = learner.session()?;
        if met == 0 || !session.names().any(|name| TRAIN.names().contains(&name)) {
            TRAIN.zero(session)?;
        }
        let done = self.done;
        let moment = |step: u32| {
            let taken = step - first;
            Moment { compiled: Compiled { step, batch: met + taken, ..compiled }, left: left - taken as usize, done }
        };
        // Before a program takes of the memory what there is.
        self.recovery.keep(session, &moment(first))?;
        let (session, program) = learner.program(&key, &|session| {
            let (prefix, scaled) = (format!("train.{size}."), is_scaled(session));
            let graph = training_graph(&self.network, &objectives, &optimizer, clip, &prefix, scaled)?;
            session.load(&graph, &capacity)
        })?;
        let (mut step, mut bad, mut cost) = (first, None, Cost::default());
        let target = session.device().target();
        let waited = std::thread::scope(|scope| {
            let data = self.data;
            let mut batches = Prefetch::begin(scope, order[..now].iter().map(|rows| data.batch(rows)))?;
            while let Some(packed) = batches.next() {
                let packed = packed?;
                let mut batch = packed.batch.clone().at_step(self.fit.seed, step);
                for (name, value) in training_scalars(&optimizer, step, optimizer.learning_rate()) {
                    batch.set_scalar(name, value);
                }
                session.run(program, &batch, &packed.named(program))?;
                cost.add(Cost::of(&batch, &target));
                step += 1;
                bad = self.monitor.after_step(session)?;
                if bad.is_some() {
                    break;
                }
                self.recovery.keep(session, &moment(step))?;
            }
            Ok::<_, Error>(batches.waited().as_secs_f64())
        });
        // What was trained on stays trained on, whatever came then.
        let waited = match waited {
            Ok(waited) => waited,
            Err(error) => {
                learner.keep(Compiled { step, batch: met + (step - first), ..compiled });
                return Err(error);
            }
        };
        if bad.is_none() {
            bad = self.monitor.now(session)?;
        }
        if let Some(bad) = bad {
            let batch = met + bad.saturating_sub(first);
            learner.keep(Compiled { step: bad, batch, ..compiled });
            return Err(not_finite(bad));
        }
        if !whole {
            learner.keep(Compiled { step, batch: met + now as u32, ..compiled });
            return Ok(None);
        }
        let loss = TRAIN.mean(session)?;
        learner.keep(Compiled { step, epoch: epoch + 1, batch: 0, ..compiled });
        Ok(Some(Trained { loss, waited, cost }))
    }
}
