//! `compile`, `fit`, `evaluate` and `predict`.

use super::Loss;
use super::dataset::{Dataset, Samples, Target, input_of};
use super::mask;
use super::monitor::{Monitor, not_finite};
use super::step::{
    EVALUATE, TRAIN, evaluation_graph, prediction_graph, training_graph, training_scalars, zero_slots, zero_states,
};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::nn::{GraphOptions, Layer, Network, Sequential};
use crate::optim::Optimizer;
use crate::params::random::Random;
use ndarray::{ArrayBase, ArrayD, ArrayViewD, Data, Dimension, IxDyn};
use std::ops::{ControlFlow, Range};
use std::time::Instant;

/// Samples a batch where the caller does not say.
const BATCH: usize = 32;
/// The stream of random numbers that shuffles; parameters count theirs from 0.
const SHUFFLE: u64 = 1 << 32;

/// How to fit.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// Times to read all samples.
    pub epochs: usize,
    /// Samples a step; the last batch of an epoch may be smaller.
    pub batch_size: usize,
    /// Whether each epoch reads the samples in another order.
    pub shuffle: bool,
    /// For shuffling and dropout.
    pub seed: u64,
    /// The share of the samples, taken from the end, that is kept for validation; in [0, 1).
    pub validation_split: f64,
    /// The largest global norm of the gradient.
    pub clip_norm: Option<f32>,
}

impl Default for Fit {
    fn default() -> Self {
        Self { epochs: 1, batch_size: BATCH, shuffle: true, seed: 0, validation_split: 0.0, clip_norm: None }
    }
}

/// What an epoch came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Epoch {
    /// Its number, counted from 1 over all calls of `fit`.
    pub epoch: usize,
    /// The mean loss over its samples, as they were met.
    pub loss: f32,
    /// The loss over the validation samples after it.
    pub val_loss: Option<f32>,
    /// How long it took.
    pub seconds: f64,
}

/// The losses of all epochs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct History {
    /// Training loss of each epoch.
    pub loss: Vec<f32>,
    /// Validation loss of each epoch; empty without validation samples.
    pub val_loss: Vec<f32>,
}

/// What `compile` and training keep.
#[derive(Debug, Clone, Copy)]
pub(super) struct Compiled {
    pub(super) optimizer: Optimizer,
    pub(super) loss: Loss,
    /// Steps so far.
    pub(super) step: u32,
    /// Epochs so far.
    pub(super) epoch: u32,
}

impl Sequential {
    /// Chooses the optimiser and the loss. Optimiser state begins anew.
    pub fn compile(&mut self, optimizer: impl Into<Optimizer>, loss: Loss) -> Result<()> {
        let optimizer = optimizer.into();
        optimizer.validate()?;
        loss.validate()?;
        if let Ok(session) = self.session() {
            let names: Vec<String> =
                session.names().filter(|n| n.starts_with("optimizer.")).map(String::from).collect();
            for name in names {
                let old = session.get(&name)?;
                session.zero(&name, old.shape(), old.dtype())?;
            }
        }
        self.compiled = Some(Box::new(Compiled { optimizer, loss, step: 0, epoch: 0 }));
        Ok(())
    }

    pub(super) fn compiled(&self) -> Result<Compiled> {
        let compiled = self.compiled.as_ref().and_then(|c| c.downcast_ref::<Compiled>());
        compiled.copied().ok_or_else(|| Error::argument("sequential: the model is not compiled: call `compile` first"))
    }

    /// Trains on x `[samples, T, features]` (tokens `[samples, T]` where the first layer is an embedding) and y
    /// `[samples, k]`, `[samples, T, k]`, or classes without the k. Builds the model first where it is not.
    ///
    /// Stateful layers begin each epoch with a state of zero, carry it from batch to batch, and need unshuffled samples
    /// in full batches.
    pub fn fit<S, D, R, E>(&mut self, x: &ArrayBase<S, D>, y: &ArrayBase<R, E>, fit: &Fit) -> Result<History>
    where
        S: Data<Elem = f32>,
        R: Data<Elem = f32>,
        D: Dimension,
        E: Dimension,
    {
        self.fit_with(x, y, fit, |_| ControlFlow::Continue(()))
    }

    /// [`Self::fit`], calling `on_epoch` after each epoch, which may end the training.
    pub fn fit_with<S, D, R, E>(
        &mut self,
        x: &ArrayBase<S, D>,
        y: &ArrayBase<R, E>,
        fit: &Fit,
        mut on_epoch: impl FnMut(&Epoch) -> ControlFlow<()>,
    ) -> Result<History>
    where
        S: Data<Elem = f32>,
        R: Data<Elem = f32>,
        D: Dimension,
        E: Dimension,
    {
        self.fit_dyn(x.view().into_dyn(), y.view().into_dyn(), fit, &mut on_epoch)
    }

    fn fit_dyn(
        &mut self,
        x: ArrayViewD<'_, f32>,
        y: ArrayViewD<'_, f32>,
        fit: &Fit,
        on_epoch: &mut dyn FnMut(&Epoch) -> ControlFlow<()>,
    ) -> Result<History> {
        let loss = self.compiled()?.loss;
        let data = self.dataset(&x, Some((&y, loss)))?;
        if fit.batch_size == 0 || !(0.0..1.0).contains(&fit.validation_split) {
            return Err(Error::argument(format!(
                "fit: batch_size must be at least 1 and validation_split in [0, 1), got {} and {}",
                fit.batch_size, fit.validation_split
            )));
        }
        let cut = data.samples - (data.samples as f64 * fit.validation_split) as usize;
        let size = fit.batch_size.min(cut);
        self.check_stateful(cut, size, fit.shuffle)?;
        let mut run = TrainingRun { data: &data, fit, cut, size, monitor: Monitor::default() };
        run.prepare(self)?;
        let mut history = History::default();
        for _ in 0..fit.epochs {
            let start = Instant::now();
            let loss_value = run.epoch(self)?;
            let val_loss =
                (cut < data.samples).then(|| self.evaluate_rows(&data, cut..data.samples, loss, size)).transpose()?;
            history.loss.push(loss_value);
            history.val_loss.extend(val_loss);
            let epoch = self.compiled()?.epoch as usize;
            let epoch = Epoch { epoch, loss: loss_value, val_loss, seconds: start.elapsed().as_secs_f64() };
            if on_epoch(&epoch).is_break() {
                break;
            }
        }
        Ok(history)
    }

    /// Checks data against the model, which is built first where it is not.
    fn dataset(&mut self, x: &ArrayViewD<'_, f32>, targets: Option<(&ArrayViewD<'_, f32>, Loss)>) -> Result<Dataset> {
        if self.input().is_none() {
            let input = input_of(x, matches!(self.layers().first(), Some(Layer::Embedding(_))))?;
            let steps = Network::needs_steps(self.layers()).then(|| x.shape()[1]);
            self.build_for(input, steps)?;
        }
        let Some(input) = self.input() else { return Err(Error::internal("sequential: not built")) };
        let data = Dataset::new(x, input, &self.network(input)?)?;
        let Some((y, loss)) = targets else { return Ok(data) };
        let flow = self.build_graph(&mut Graph::new(), GraphOptions::default())?;
        data.with_targets(y, Target { loss, sequence: flow.sequence, features: flow.features })
    }

    fn check_stateful(&self, samples: usize, batch: usize, shuffle: bool) -> Result<()> {
        let stateful = self.layers().iter().any(|l| matches!(l, Layer::Lstm(l) if l.stateful));
        if stateful && (shuffle || !samples.is_multiple_of(batch.max(1))) {
            return Err(Error::argument(format!(
                "sequential: a stateful lstm needs `shuffle: false` and full batches, got shuffle {shuffle} and {samples} \
                 samples in batches of {batch}"
            )));
        }
        Ok(())
    }

    /// The loss over x and y, without dropout.
    pub fn evaluate<S, D, R, E>(&mut self, x: &ArrayBase<S, D>, y: &ArrayBase<R, E>) -> Result<f32>
    where
        S: Data<Elem = f32>,
        R: Data<Elem = f32>,
        D: Dimension,
        E: Dimension,
    {
        let loss = self.compiled()?.loss;
        let data = self.dataset(&x.view().into_dyn(), Some((&y.view().into_dyn(), loss)))?;
        self.evaluate_rows(&data, 0..data.samples, loss, BATCH)
    }

    fn evaluate_rows(&mut self, data: &Dataset, rows: Range<usize>, loss: Loss, batch_size: usize) -> Result<f32> {
        let size = batch_size.min(rows.len());
        self.check_stateful(rows.len(), size, false)?;
        let key = format!("evaluate {loss:?} {size} {}", data.steps);
        let (session, program) = self.program(&key, |model| {
            let graph = evaluation_graph(model, loss, &format!("evaluate.{size}."))?;
            EVALUATE.zero(model.session()?)?;
            model.session()?.load(&graph, &data.capacity(size)?)
        })?;
        EVALUATE.zero(session)?;
        zero_states(session, program)?;
        let rows: Vec<usize> = rows.collect();
        for chunk in rows.chunks(size) {
            let Samples { batch, x, y, .. } = data.batch(chunk)?;
            let y = y.ok_or_else(|| Error::internal("evaluate: no targets"))?;
            session.run(program, &batch, &[("x", &x), ("y", &y)])?;
        }
        EVALUATE.mean(session)
    }

    /// The model's output for x: `[samples, k]`, or `[samples, T, k]` where it gives sequences.
    pub fn predict<S: Data<Elem = f32>, D: Dimension>(&mut self, x: &ArrayBase<S, D>) -> Result<ArrayD<f32>> {
        let data = self.dataset(&x.view().into_dyn(), None)?;
        let size = BATCH.min(data.samples);
        self.check_stateful(data.samples, size, false)?;
        let flow = self.build_graph(&mut Graph::new(), GraphOptions::default())?;
        let input = self.input().ok_or_else(|| Error::internal("sequential: not built"))?;
        let fill = self.network(input)?.output_fills()?[0];
        let (session, program) = self.program(&format!("predict {size} {}", data.steps), |model| {
            let (graph, _) = prediction_graph(model, &format!("evaluate.{size}."))?;
            model.session()?.load(&graph, &data.capacity(size)?)
        })?;
        zero_states(session, program)?;
        let rows: Vec<usize> = (0..data.samples).collect();
        let mut all = Vec::new();
        for chunk in rows.chunks(size) {
            let Samples { batch, x, kept, .. } = data.batch(chunk)?;
            session.run(program, &batch, &[("x", &x)])?;
            if kept.as_ref().is_some_and(|k| flow.sequence && mask::needs_zero_row(k, fill)) {
                return Err(Error::unsupported(
                    "predict: what layers over an LSTM give at masked steps needs a `Model` of the network",
                ));
            }
            let packed = session.output(program, "y")?.into_f32s()?;
            all.extend(match flow.sequence {
                true => mask::unpack(&batch, 0, kept.as_ref(), &packed, flow.features, (fill, &[]))?,
                false => batch.unsort_rows(&packed, flow.features),
            });
        }
        let mut shape = vec![data.samples, flow.features];
        if flow.sequence {
            shape.insert(1, data.steps);
        }
        ArrayD::from_shape_vec(IxDyn(&shape), all).map_err(|e| Error::internal(format!("predict: {e}")))
    }
}

/// One call of `fit`.
struct TrainingRun<'a> {
    data: &'a Dataset,
    fit: &'a Fit,
    /// Samples before this one are trained on.
    cut: usize,
    size: usize,
    monitor: Monitor,
}

impl TrainingRun<'_> {
    /// Makes what training keeps on the device where it is not there yet.
    fn prepare(&self, model: &mut Sequential) -> Result<()> {
        let slots = model.compiled()?.optimizer.slots(&model.parameters());
        let session = model.session()?;
        let missing: Vec<_> = slots.into_iter().filter(|(slot, _)| !session.names().any(|n| n == slot)).collect();
        zero_slots(session, &missing)
    }

    fn epoch(&mut self, model: &mut Sequential) -> Result<f32> {
        let Compiled { optimizer, loss, step: first, epoch } = model.compiled()?;
        let order = match self.fit.shuffle {
            true => Random::new(self.fit.seed, SHUFFLE + u64::from(epoch)).permutation(self.cut),
            false => (0..self.cut).collect(),
        };
        let (size, clip) = (self.size, self.fit.clip_norm);
        let key = format!("train {optimizer:?} {loss:?} {clip:?} {size} {}", self.data.steps);
        let (session, program) = model.program(&key, |model| {
            let graph = training_graph(model, &optimizer, loss, clip, &format!("train.{size}."))?;
            model.session()?.load(&graph, &self.data.capacity(size)?)
        })?;
        TRAIN.zero(session)?;
        zero_states(session, program)?;
        let mut step = first;
        let mut bad = None;
        for rows in order.chunks(size) {
            let Samples { batch, x, y, .. } = self.data.batch(rows)?;
            let y = y.ok_or_else(|| Error::internal("fit: no targets"))?;
            let mut batch = batch.at_step(self.fit.seed, step);
            for (name, value) in training_scalars(&optimizer, step, optimizer.learning_rate()) {
                batch.set_scalar(name, value);
            }
            session.run(program, &batch, &[("x", &x), ("y", &y)])?;
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
            model.compiled = Some(Box::new(Compiled { optimizer, loss, step: bad, epoch }));
            return Err(not_finite(bad));
        }
        let mean = TRAIN.mean(session)?;
        model.compiled = Some(Box::new(Compiled { optimizer, loss, step, epoch: epoch + 1 }));
        Ok(mean)
    }
}
