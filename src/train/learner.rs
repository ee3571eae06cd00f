//! What `fit` and `evaluate` do, for whatever holds a network's parameters and programs.

use super::Objective;
use super::callbacks::{Callback, Training};
use super::dataset::Dataset;
use super::fit::{Compiled, Epoch, Evaluate, Fit, History, Scores, check_stateful};
use super::metrics::{Meter, Metric};
use super::monitor::{Monitor, not_finite};
use super::pack::Packed;
use super::prefetch::Prefetch;
use super::recovery::Recovery;
use super::step::{EVALUATE, TRAIN, begin_slots, evaluation_graph, is_scaled, training_graph, training_scalars};
use crate::device::{Executable, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{Description, Network};
use crate::scheduler::{Batch, Batching, Capacity, Cost, Sampler};
use std::collections::BTreeMap;
use std::ops::Range;
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
    /// What a file says of its layers, from which alone it can be made again; none where only a program knows.
    fn description(&self) -> Result<Option<Description>>;
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

/// Has parameters and their averages change places, where averages are kept and are not where they should be.
fn exchange(learner: &mut dyn Learner, averaged: bool) -> Result<()> {
    let compiled = learner.compiled()?;
    if compiled.averaged == averaged || compiled.fresh {
        return Ok(());
    }
    let parameters = learner.network()?.parameters()?;
    let Some(graph) = compiled.optimizer.exchange(&parameters)? else { return Ok(()) };
    let kept: Vec<String> = learner.session()?.names().map(String::from).collect();
    if compiled.optimizer.slots(&parameters).iter().any(|slot| !kept.contains(&slot.name)) {
        // The model was built anew since.
        learner.keep(Compiled { averaged: false, ..compiled });
        return Ok(());
    }
    let batch = Batch::dense(1, 1)?;
    let (session, program) =
        learner.program("exchange", &|session| session.load(&graph, &Capacity::exactly(&batch)))?;
    session.run(program, &batch, &[])?;
    learner.keep(Compiled { averaged, ..compiled });
    Ok(())
}

/// Trains for `fit.epochs`, on all samples but those kept for validation.
pub(super) fn fit(
    learner: &mut dyn Learner,
    data: Dataset,
    validation: Option<&Dataset>,
    fit: &Fit,
    callbacks: &mut [&mut dyn Callback],
) -> Result<History> {
    fit.validate()?;
    if validation.is_some() && fit.validation_split > 0.0 {
        return Err(Error::argument("fit: expected a validation_split or validation samples, got both"));
    }
    // Classes have weights in training alone; samples wherever they are met.
    let samples = fit.sample_weight.as_ref();
    let held_out = match fit.validation_split > 0.0 && !fit.class_weight.is_empty() {
        true => Some(data.clone().weighted(samples, &BTreeMap::new())?),
        false => None,
    };
    let data = data.weighted(samples, &fit.class_weight)?;
    exchange(learner, false)?;
    let fitted = fit_parameters(learner, &data, (validation, held_out.as_ref()), fit, callbacks);
    // The model is what was averaged, however training ended.
    match (fitted, exchange(learner, true)) {
        (Ok(history), Ok(())) => {
            callbacks.iter_mut().try_for_each(|c| c.on_train_end(&mut Training::new(learner), &history))?;
            Ok(history)
        }
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

fn fit_parameters(
    learner: &mut dyn Learner,
    data: &Dataset,
    (validation, held_out): (Option<&Dataset>, Option<&Dataset>),
    fit: &Fit,
    callbacks: &mut [&mut dyn Callback],
) -> Result<History> {
    let cut = data.samples - (data.samples as f64 * fit.validation_split) as usize;
    let size = fit.batch_size.min(cut);
    let network = learner.network()?;
    check_stateful(&network, cut, size, fit.shuffle || fit.batching != Batching::Plain)?;
    let held_out = validation
        .map(|v| (v, 0..v.samples))
        .or((cut < data.samples).then_some((held_out.unwrap_or(data), cut..data.samples)));
    if let Some((_, rows)) = &held_out {
        check_stateful(&network, rows.len(), size.min(rows.len()), false)?;
    }
    let mut compiled = learner.compiled()?;
    let slots = compiled.optimizer.slots(&network.parameters()?);
    let session = learner.session()?;
    let known: Vec<String> = session.names().map(String::from).collect();
    let missing: Vec<_> = slots.into_iter().filter(|s| compiled.fresh || !known.contains(&s.name)).collect();
    begin_slots(session, &missing)?;
    let mut epochs = fit.epochs;
    if let Some(first) = fit.initial_epoch {
        compiled.course.epoch = u32::try_from(first).map_err(|_| Error::argument("fit: initial_epoch is too large"))?;
        epochs = epochs.saturating_sub(first);
    }
    compiled.fresh = false;
    let (first, begun) = (compiled.course.epoch, compiled.course.step);
    learner.keep(compiled);
    callbacks.iter_mut().try_for_each(|c| c.on_train_begin(&mut Training::new(learner)))?;
    // A callback may have taken training on to where it was once.
    exchange(learner, false)?;
    let course = learner.compiled()?.course;
    let resumed = course.epoch.saturating_sub(first) as usize;
    let restored = course.step.saturating_sub(begun) as usize;
    let mut lengths = data.lengths()?;
    lengths.truncate(cut);
    let sampler = Sampler::new(lengths, size, fit.batching, fit.shuffle.then_some(fit.seed))?;
    let meters = Meters { metrics: &fit.metrics, objectives: data.objectives(), features: data.features() };
    let mut run = TrainingRun {
        data,
        network,
        fit,
        sampler,
        size,
        meters,
        left: fit.steps.map_or(usize::MAX, |steps| steps.saturating_sub(restored)),
        done: resumed,
        stopped: false,
        monitor: Monitor::default(),
        recovery: Recovery::default(),
    };
    let (mut done, mut told): (Vec<Epoch>, usize) = (Vec::new(), resumed);
    while run.done < epochs && !run.stopped {
        let start = Instant::now();
        let mut whole = || -> Result<_> {
            let Some(trained) = run.epoch(learner, callbacks)? else { return Ok(None) };
            // What averages there are is what is validated, and what callbacks see.
            exchange(learner, true)?;
            let last = run.done + 1 == epochs;
            let due = last || (run.done + 1).is_multiple_of(fit.validation_frequency);
            let scores = match held_out.clone().filter(|_| due) {
                Some((held_out, rows)) => {
                    let how = Evaluate { batch_size: size, metrics: fit.metrics.clone(), ..Evaluate::default() };
                    Some(evaluate(learner, held_out, rows, &how)?)
                }
                None => None,
            };
            Ok(Some((trained, scores)))
        };
        let (Trained { loss, metrics, learning_rate, waited, cost }, scores) = match whole() {
            Ok(Some(trained)) => trained,
            Ok(None) => break,
            Err(error)
                if error.kind() == ErrorKind::NotFinite && callbacks.iter_mut().any(|c| c.on_not_finite(&error)) =>
            {
                break;
            }
            Err(error) => {
                run.recover(learner, error)?;
                done.truncate(run.done - resumed);
                continue;
            }
        };
        run.done += 1;
        let mut compiled = learner.compiled()?;
        // Losses of training and of validation are not to be compared.
        let watched = if held_out.is_some() { scores.as_ref().map(|s| s.loss) } else { Some(loss) };
        let optimizer = compiled.optimizer.clone();
        watched.into_iter().for_each(|loss| optimizer.observe(&mut compiled.course, loss));
        let epoch = compiled.course.epoch as usize;
        learner.keep(compiled);
        let seconds = start.elapsed().as_secs_f64();
        let val_loss = scores.as_ref().map(|s| s.loss);
        let val_metrics = scores.map_or_else(Vec::new, |s| s.metrics);
        let epoch = Epoch { epoch, loss, metrics, val_loss, val_metrics, learning_rate, seconds, waited, cost };
        // An epoch that a lost device has had done again was told of before.
        if run.done > told {
            let mut tell = || -> Result<()> {
                for callback in callbacks.iter_mut() {
                    run.stopped |= callback.on_epoch_end(&mut Training::new(learner), &epoch)?.is_break();
                }
                exchange(learner, false)
            };
            if let Err(error) = tell() {
                run.recover(learner, error)?;
                done.truncate(run.done.saturating_sub(resumed));
                continue;
            }
        } else {
            exchange(learner, false)?;
        }
        done.push(epoch);
        told = told.max(run.done);
    }
    Ok(History::of(&done))
}

/// What is measured of which outputs.
struct Meters<'a> {
    metrics: &'a [Metric],
    objectives: Vec<Objective>,
    features: Vec<usize>,
}

impl Meters<'_> {
    /// Whether predictions have to be read.
    fn observe(&self) -> bool {
        !self.metrics.iter().all(|m| m.is_of_the_loss())
    }

    /// A meter for each metric of each objective, by its name.
    fn begin(&self) -> Result<Vec<(String, usize, Meter)>> {
        let mut all = Vec::new();
        if let (Some(metric), 2..) = (self.metrics.iter().find(|m| m.is_of_the_loss()), self.objectives.len()) {
            return Err(Error::argument(format!(
                "{}: expected one loss, got {}",
                metric.name(),
                self.objectives.len()
            )));
        }
        for (at, (objective, &features)) in self.objectives.iter().zip(&self.features).enumerate() {
            for &metric in self.metrics {
                let name = match self.objectives.len() {
                    1 => metric.name(),
                    _ => format!("{} {}", objective.name.trim_start_matches("target of "), metric.name()),
                };
                all.push((name, at, Meter::new(metric, objective, features)?));
            }
        }
        Ok(all)
    }

    /// Adds what a run gave.
    fn add(
        &self,
        meters: &mut [(String, usize, Meter)],
        session: &mut Session,
        program: &Executable,
        packed: &Packed,
    ) -> Result<()> {
        if !self.observe() {
            return Ok(());
        }
        for (at, objective) in self.objectives.iter().enumerate() {
            let targets = packed.tensors.iter().find(|t| t.0 == objective.name);
            let (_, targets) = targets.ok_or_else(|| Error::internal("metrics: a batch without targets"))?;
            let predictions = session.output(program, &objective.name)?;
            meters.iter_mut().filter(|m| m.1 == at).try_for_each(|m| m.2.add(&predictions, targets))?;
        }
        Ok(())
    }
}

fn measured(meters: Vec<(String, usize, Meter)>, loss: f32) -> Vec<(String, f64)> {
    meters.into_iter().map(|(name, _, meter)| (name, meter.value(loss))).collect()
}

/// The loss and metrics over some samples, without dropout.
pub(super) fn evaluate(
    learner: &mut dyn Learner,
    data: &Dataset,
    rows: Range<usize>,
    how: &Evaluate,
) -> Result<Scores> {
    if how.batch_size == 0 {
        return Err(Error::argument("evaluate: batch_size must be at least 1, got 0"));
    }
    let size = how.batch_size.min(rows.len());
    let network = learner.network()?;
    check_stateful(&network, rows.len(), size, false)?;
    let objectives = data.objectives();
    let of = Meters { metrics: &how.metrics, objectives: objectives.clone(), features: data.features() };
    let (mut meters, observed) = (of.begin()?, of.observe());
    let key = format!("evaluate {objectives:?} {observed} {size} {}", data.key()?);
    let (session, program) = learner.program(&key, &|session| {
        let graph = evaluation_graph(&network, &objectives, &format!("infer.{size}."), observed)?;
        EVALUATE.zero(session)?;
        session.load(&graph, &data.capacity(size)?)
    })?;
    EVALUATE.zero(session)?;
    let rows: Vec<usize> = rows.collect();
    let chunks = rows.chunks(size).take(how.steps.unwrap_or(usize::MAX));
    std::thread::scope(|scope| {
        let mut batches = Prefetch::begin(scope, chunks.map(|chunk| data.batch(chunk)))?;
        while let Some(packed) = batches.next() {
            let packed = packed?;
            session.run(program, &packed.batch, &packed.named(program))?;
            of.add(&mut meters, session, program, &packed)?;
        }
        let loss = EVALUATE.mean(session)?;
        Ok(Scores { loss, metrics: measured(meters, loss) })
    })
}

/// One call of `fit`.
struct TrainingRun<'a> {
    data: &'a Dataset,
    network: Network,
    fit: &'a Fit,
    sampler: Sampler,
    size: usize,
    meters: Meters<'a>,
    /// Steps that may still be taken.
    left: usize,
    /// Epochs so far.
    done: usize,
    /// Whether a callback has had enough.
    stopped: bool,
    monitor: Monitor,
    recovery: Recovery<Moment>,
}

/// Where a snapshot was taken: how far training had come, what was left, and the epochs that were done.
#[derive(Clone)]
struct Moment {
    compiled: Compiled,
    left: usize,
    done: usize,
}

/// What an epoch came to.
struct Trained {
    loss: f32,
    metrics: Vec<(String, f64)>,
    learning_rate: f64,
    waited: f64,
    cost: Cost,
}

impl TrainingRun<'_> {
    /// Goes on from the last snapshot on another device, where `error` is the device's.
    fn recover(&mut self, learner: &mut dyn Learner, error: Error) -> Result<()> {
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
    fn epoch(&mut self, learner: &mut dyn Learner, callbacks: &mut [&mut dyn Callback]) -> Result<Option<Trained>> {
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
