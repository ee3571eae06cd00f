//! One call of `fit`: its epochs, and going on where a device fails.

use super::Learner;
use super::evaluate::{Meters, measured};
use crate::device::Session;
use crate::error::{Error, Result};
use crate::nn::Network;
use crate::scheduler::{Cost, Sampler};
use crate::train::callbacks::{Callback, Training};
use crate::train::dataset::Dataset;
use crate::train::fit::{Compiled, Fit};
use crate::train::monitor::{Monitor, not_finite};
use crate::train::prefetch::Prefetch;
use crate::train::recovery::Recovery;
use crate::train::step::{TRAIN, is_scaled, training_graph, training_scalars};

/// One call of `fit`.
pub(super) struct TrainingRun<'a> {
    pub(super) data: &'a Dataset,
    pub(super) network: Network,
    pub(super) fit: &'a Fit,
    pub(super) sampler: Sampler,
    pub(super) size: usize,
    pub(super) meters: Meters<'a>,
    /// Steps that may still be taken.
    pub(super) left: usize,
    /// Epochs so far.
    pub(super) done: usize,
    /// Whether a callback has had enough.
    pub(super) stopped: bool,
    pub(super) monitor: Monitor,
    pub(super) recovery: Recovery<Moment>,
}

/// Where a snapshot was taken: how far training had come, what was left, and the epochs that were done.
#[derive(Clone)]
pub(super) struct Moment {
    compiled: Compiled,
    left: usize,
    done: usize,
}

/// What an epoch came to.
pub(super) struct Trained {
    pub(super) loss: f32,
    pub(super) metrics: Vec<(String, f64)>,
    pub(super) learning_rate: f64,
    pub(super) waited: f64,
    pub(super) cost: Cost,
}

impl TrainingRun<'_> {
    /// Goes on from the last snapshot on another device, where `error` is the device's.
    pub(super) fn recover(&mut self, learner: &mut dyn Learner, error: Error) -> Result<()> {
        let device = learner.session()?.device().clone();
        let (Self { left, done, monitor, recovery, .. }, mut session) = (self, None);
        let moment = recovery.elsewhere(error, &device, |here, moment| {
            session = Some(here);
            Ok(moment.clone())
        })?;
        session.into_iter().for_each(|session| learner.replace_session(session));
        learner.keep(moment.compiled);
        (*left, *done, *monitor) = (moment.left, moment.done, Monitor::default());
        Ok(())
    }

    /// The batches that an epoch has left after where it stands, by pass and number.
    fn order(&self, compiled: &Compiled) -> Vec<Place> {
        let Compiled { pass, batch, taken, .. } = *compiled;
        let of = |pass: u32| {
            let all = self.sampler.epoch(pass);
            let count = all.len();
            all.into_iter().enumerate().map(move |(at, rows)| Place {
                pass,
                at: at as u32,
                last: at + 1 == count,
                rows,
            })
        };
        let first = of(pass).skip(batch as usize);
        match self.fit.steps_per_epoch {
            Some(steps) => {
                // One more than may be taken says that the epoch is not whole.
                let left = steps.saturating_sub(taken as usize).min(self.left.saturating_add(1));
                first.chain((pass + 1..).flat_map(of)).take(left).collect()
            }
            None => first.collect(),
        }
    }

    /// Trains to the end of the epoch; nothing where it ends before.
    pub(super) fn epoch(
        &mut self,
        learner: &mut dyn Learner,
        callbacks: &mut [&mut dyn Callback],
    ) -> Result<Option<Trained>> {
        let mut compiled = learner.compiled()?;
        let fingerprint = self.sampler.fingerprint();
        if (compiled.batch > 0 || compiled.taken > 0) && compiled.order != fingerprint {
            log::warn!("fit: the samples or their batches are others than before: the epoch begins anew");
            (compiled.batch, compiled.taken) = (0, 0);
        }
        compiled.order = fingerprint;
        learner.keep(compiled.clone());
        let mut order = self.order(&compiled);
        let whole = order.len() <= self.left;
        order.truncate(self.left);
        let objectives = self.data.objectives();
        let mut capacity = self.data.capacity(self.size)?;
        let lengths_are_known = self.network.input_axes()?.contains(&Some(0));
        if let Some(axis) = capacity.axes.first_mut().filter(|_| lengths_are_known) {
            axis.1 = axis.1.min(self.sampler.most_steps());
        }
        let (optimizer, observed) = (&compiled.optimizer, self.meters.observe());
        let key = format!("train {optimizer:?} {objectives:?} {observed} {capacity:?}");
        let session = learner.session()?;
        if compiled.taken == 0 || !session.names().any(|name| TRAIN.names().contains(&name)) {
            TRAIN.zero(session)?;
        }
        // Before a program takes of the memory what there is.
        let (left, done) = (self.left, self.done);
        self.recovery.keep(session, &Moment { compiled: compiled.clone(), left, done })?;
        let make = |session: &mut Session| {
            let (prefix, scaled) = (format!("train.{}.", self.size), is_scaled(session));
            let graph = training_graph(&self.network, &objectives, optimizer, &prefix, scaled, observed)?;
            session.load(&graph, &capacity)
        };
        let mut meters = self.meters.begin()?;
        let (mut bad, mut cost, mut learning_rate) = (None, Cost::default(), optimizer.learning_rate(&compiled.course));
        let places: Vec<(u32, u32, bool)> = order.iter().map(|p| (p.pass, p.at, p.last)).collect();
        let (data, monitor, recovery) = (self.data, &mut self.monitor, &mut self.recovery);
        let (left, stopped) = (&mut self.left, &mut self.stopped);
        let first = compiled.course.step;
        let waited = std::thread::scope(|scope| {
            let mut batches = Prefetch::begin(scope, order.iter().map(|place| data.batch(&place.rows)))?;
            let mut places = places.iter();
            while let (false, Some(packed)) = (*stopped, batches.next()) {
                let packed = packed?;
                let mut now = learner.compiled()?;
                let mut batch = packed.batch.clone().at_step(self.fit.seed, now.course.step);
                learning_rate = optimizer.learning_rate(&now.course);
                for (name, value) in training_scalars(optimizer, &now.course) {
                    batch.set_scalar(name, value);
                }
                let (session, program) = learner.program(&key, &make)?;
                session.run(program, &batch, &packed.named(program))?;
                cost.add(Cost::of(&batch, &session.device().target()));
                self.meters.add(&mut meters, session, program, &packed)?;
                // What was trained on stays trained on, whatever comes then.
                let (pass, at, last) = places.next().copied().unwrap_or_default();
                (now.pass, now.batch) = if last { (pass + 1, 0) } else { (pass, at + 1) };
                now.course.step += 1;
                now.taken += 1;
                *left -= 1;
                learner.keep(now.clone());
                let session = learner.session()?;
                bad = monitor.after_step(session)?;
                if bad.is_some() {
                    break;
                }
                recovery.keep(session, &Moment { compiled: now, left: *left, done })?;
                for callback in callbacks.iter_mut() {
                    *stopped |= callback.on_batch_end(&mut Training::new(learner))?.is_break();
                }
            }
            Ok::<_, Error>(batches.waited().as_secs_f64())
        });
        let waited = match waited {
            Err(error) if error.is_of_the_device() => return Err(error),
            other => other,
        };
        if bad.is_none() {
            bad = self.monitor.now(learner.session()?)?;
        }
        if let Some(bad) = bad {
            // Where it stood before that step.
            let behind = bad.saturating_sub(first) as usize;
            let mut stood = compiled.clone();
            stood.course.step = bad;
            stood.taken += behind as u32;
            if let Some(&(pass, at, last)) = behind.checked_sub(1).and_then(|at| places.get(at)) {
                (stood.pass, stood.batch) = if last { (pass + 1, 0) } else { (pass, at + 1) };
            }
            learner.keep(stood);
            return Err(not_finite(bad));
        }
        let waited = waited?;
        if !whole || learner.compiled()?.taken < compiled.taken + places.len() as u32 {
            return Ok(None);
        }
        let loss = TRAIN.mean(learner.session()?)?;
        let mut ended = learner.compiled()?;
        (ended.course.epoch, ended.taken) = (ended.course.epoch + 1, 0);
        learner.keep(ended);
        Ok(Some(Trained { loss, metrics: measured(meters, loss), learning_rate, waited, cost }))
    }
}

/// A batch of samples, and where it is among those of a pass over all.
struct Place {
    pass: u32,
    at: u32,
    last: bool,
    rows: Vec<usize>,
}
