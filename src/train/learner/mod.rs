//! What `fit` and `evaluate` do, for whatever holds a network's parameters and programs.

mod evaluate;
mod run;

pub(super) use evaluate::evaluate;

use super::callbacks::{Callback, Training};
use super::dataset::Dataset;
use super::fit::{Compiled, Epoch, Evaluate, Fit, History, check_stateful};
use super::monitor::Monitor;
use super::recovery::Recovery;
use super::step::begin_slots;
use crate::device::{Executable, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{Description, Network};
use crate::scheduler::{Batch, Batching, Capacity, Sampler};
use evaluate::Meters;
use run::{Trained, TrainingRun};
use std::collections::BTreeMap;
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
    let carried = learner.network()?.carried();
    let session = learner.session()?;
    // Each kind of program has states of its own, with something before their names.
    let is_carried = |name: &&str| carried.iter().any(|state| name.ends_with(state.as_str()));
    let names: Vec<String> = session.names().filter(is_carried).map(String::from).collect();
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
        let size = fit.validation_batch_size.unwrap_or(size);
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
                    let how = Evaluate {
                        batch_size: fit.validation_batch_size.unwrap_or(size),
                        steps: fit.validation_steps,
                        metrics: fit.metrics.clone(),
                        sample_weight: None,
                    };
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
