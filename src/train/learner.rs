//! What `fit` and `evaluate` do, for whatever holds a network's parameters and programs.

use super::Objective;
use super::dataset::Dataset;
use super::fit::{Compiled, Epoch, Fit, History, check_stateful};
use super::monitor::{Monitor, not_finite};
use super::step::{EVALUATE, TRAIN, evaluation_graph, training_graph, training_scalars, zero_slots};
use crate::device::{Executable, Session};
use crate::error::Result;
use crate::nn::Network;
use crate::params::random::Random;
use std::ops::{ControlFlow, Range};
use std::time::Instant;

/// The stream of random numbers that shuffles; parameters count theirs from 0.
const SHUFFLE: u64 = 1 << 32;

/// Makes a program on a session.
pub(super) type Make<'a> = &'a dyn Fn(&mut Session) -> Result<Executable>;

/// Holds a network's parameters in a session, programs over them, and how it is trained.
pub(super) trait Learner {
    /// The network that is trained.
    fn network(&self) -> Result<Network>;
    /// The session with its parameters.
    fn session(&mut self) -> Result<&mut Session>;
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
    check_stateful(&network, cut, size, fit.shuffle)?;
    if cut < data.samples {
        check_stateful(&network, data.samples - cut, size.min(data.samples - cut), false)?;
    }
    let slots = learner.compiled()?.optimizer.slots(&network.parameters()?);
    let session = learner.session()?;
    let missing: Vec<_> = slots.into_iter().filter(|(slot, _)| !session.names().any(|n| n == slot)).collect();
    zero_slots(session, &missing)?;
    let mut run = TrainingRun { data, network, fit, cut, size, monitor: Monitor::default() };
    let mut history = History::default();
    for _ in 0..fit.epochs {
        let start = Instant::now();
        let loss = run.epoch(learner)?;
        let val_loss = (cut < data.samples).then(|| evaluate(learner, data, cut..data.samples, size)).transpose()?;
        history.loss.push(loss);
        history.val_loss.extend(val_loss);
        let epoch = learner.compiled()?.epoch as usize;
        let epoch = Epoch { epoch, loss, val_loss, seconds: start.elapsed().as_secs_f64() };
        if on_epoch(&epoch).is_break() {
            break;
        }
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
    for chunk in rows.chunks(size) {
        let packed = data.batch(chunk)?;
        session.run(program, &packed.batch, &packed.named(program))?;
    }
    EVALUATE.mean(session)
}

/// One call of `fit`.
struct TrainingRun<'a> {
    data: &'a Dataset,
    network: Network,
    fit: &'a Fit,
    /// Samples before this one are trained on.
    cut: usize,
    size: usize,
    monitor: Monitor,
}

impl TrainingRun<'_> {
    fn epoch(&mut self, learner: &mut dyn Learner) -> Result<f32> {
        let compiled = learner.compiled()?;
        let Compiled { optimizer, step: first, epoch, .. } = compiled;
        let order = match self.fit.shuffle {
            true => Random::new(self.fit.seed, SHUFFLE + u64::from(epoch)).permutation(self.cut),
            false => (0..self.cut).collect(),
        };
        let (size, clip) = (self.size, self.fit.clip_norm);
        let objectives: Vec<Objective> = self.data.objectives();
        let key = format!("train {optimizer:?} {objectives:?} {clip:?} {size} {}", self.data.key()?);
        let (session, program) = learner.program(&key, &|session| {
            let graph = training_graph(&self.network, &objectives, &optimizer, clip, &format!("train.{size}."))?;
            session.load(&graph, &self.data.capacity(size)?)
        })?;
        TRAIN.zero(session)?;
        let mut step = first;
        let mut bad = None;
        for rows in order.chunks(size) {
            let packed = self.data.batch(rows)?;
            let mut batch = packed.batch.clone().at_step(self.fit.seed, step);
            for (name, value) in training_scalars(&optimizer, step, optimizer.learning_rate()) {
                batch.set_scalar(name, value);
            }
            session.run(program, &batch, &packed.named(program))?;
            step += 1;
            bad = self.monitor.after_step(session)?;
            if bad.is_some() {
                break;
            }
        }
        if bad.is_none() {
            bad = self.monitor.now(session)?;
        }
        if let Some(bad) = bad {
            learner.keep(Compiled { step: bad, ..compiled });
            return Err(not_finite(bad));
        }
        let mean = TRAIN.mean(session)?;
        learner.keep(Compiled { step, epoch: epoch + 1, ..compiled });
        Ok(mean)
    }
}
