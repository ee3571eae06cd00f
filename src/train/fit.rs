//! `compile`, `fit`, `evaluate` and `predict`.

use super::callbacks::{Callback, OnEpoch};
use super::dataset::{Dataset, input_of, tensor_of};
use super::learner::{self, Learner, Make};
use super::mask;
use super::metrics::Metric;
use super::prefetch::Prefetch;
use super::step::prediction_graph;
use super::{Loss, Objective};
use crate::device::{Executable, Session};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::nn::{Description, GraphOptions, Input, Layer, Network, Sequential};
use crate::optim::{Course, Optimizer};
use crate::scheduler::{Batching, Cost};
use ndarray::{ArrayBase, ArrayD, ArrayViewD, Data, Dimension, IxDyn};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Samples a batch where the caller does not say.
pub(super) const BATCH: usize = 32;

/// How to fit.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// Times to read all samples.
    pub epochs: usize,
    /// The number of epochs that count as done before this call; `epochs` counts from 0, so that so many fewer are left. Schedules
    /// that go by epochs go by this.
    pub initial_epoch: Option<usize>,
    /// Samples a step, at most; some batches of an epoch may be smaller.
    pub batch_size: usize,
    /// Batches of an epoch, where that is not all of them: the next epoch goes on with those that are left.
    pub steps_per_epoch: Option<usize>,
    /// Which samples share a batch. With lengths or a mask that tells them, sorting saves steps at which few run.
    pub batching: Batching,
    /// The most steps to take in this call. The next call goes on where this one stopped, in the middle of an epoch too.
    pub steps: Option<usize>,
    /// Whether each epoch reads the samples in another order.
    pub shuffle: bool,
    /// For shuffling and dropout.
    pub seed: u64,
    /// The share of the samples, taken from the end, that is kept for validation; in [0, 1).
    pub validation_split: f64,
    /// Samples and targets to validate on, instead.
    pub validation_data: Option<(ArrayD<f32>, ArrayD<f32>)>,
    /// Samples of a batch of validation, at most; as many as of training where nothing is said.
    pub validation_batch_size: Option<usize>,
    /// The most batches of validation; all where nothing is said.
    pub validation_steps: Option<usize>,
    /// Validation follows every so many epochs, and the last.
    pub validation_frequency: usize,
    /// What is measured besides the loss, of training and of validation. For most, each step's predictions are read from the
    /// device.
    pub metrics: Vec<Metric>,
    /// How much samples of each class count in the loss, 1 where nothing is said.
    pub class_weight: BTreeMap<u32, f32>,
    /// How much each sample `[samples]`, or each of its steps `[samples, T]`, counts in the loss. Means are over samples, not over
    /// weights, as in Keras.
    pub sample_weight: Option<ArrayD<f32>>,
}

impl Default for Fit {
    fn default() -> Self {
        Self {
            epochs: 1,
            initial_epoch: None,
            batch_size: BATCH,
            steps_per_epoch: None,
            batching: Batching::Plain,
            steps: None,
            shuffle: true,
            seed: 0,
            validation_split: 0.0,
            validation_data: None,
            validation_batch_size: None,
            validation_steps: None,
            validation_frequency: 1,
            metrics: Vec::new(),
            class_weight: BTreeMap::new(),
            sample_weight: None,
        }
    }
}

impl Fit {
    /// Refuses what means nothing.
    pub fn validate(&self) -> Result<()> {
        if self.batch_size == 0 || !(0.0..1.0).contains(&self.validation_split) {
            return Err(Error::argument(format!(
                "fit: batch_size must be at least 1 and validation_split in [0, 1), got {} and {}",
                self.batch_size, self.validation_split
            )));
        }
        if self.validation_split > 0.0 && self.validation_data.is_some() {
            return Err(Error::argument("fit: expected a validation_split or validation_data, got both"));
        }
        let counts = [self.steps_per_epoch, self.validation_batch_size, self.validation_steps];
        if self.validation_frequency == 0 || counts.contains(&Some(0)) {
            return Err(Error::argument(
                "fit: steps per epoch and what is said of validation must be at least 1, got 0",
            ));
        }
        Ok(())
    }
}

/// How to evaluate.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluate {
    /// Samples a batch, at most.
    pub batch_size: usize,
    /// The most batches to take; all where nothing is said.
    pub steps: Option<usize>,
    /// What is measured besides the loss.
    pub metrics: Vec<Metric>,
    /// How much each sample counts in the loss, as for [`Fit`].
    pub sample_weight: Option<ArrayD<f32>>,
}

impl Default for Evaluate {
    fn default() -> Self {
        Self { batch_size: BATCH, steps: None, metrics: Vec::new(), sample_weight: None }
    }
}

/// What a model is worth on some samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// The mean loss.
    pub loss: f32,
    /// Metrics by name; of more than one output by the output's name, a space and theirs.
    pub metrics: Vec<(String, f64)>,
}

/// What an epoch came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Epoch {
    /// Its number, counted from 1 over all calls of `fit`.
    pub epoch: usize,
    /// The mean loss over its samples, as they were met.
    pub loss: f32,
    /// Metrics of its predictions, as they were met; of an epoch that was entered in its middle, by what was met since.
    pub metrics: Vec<(String, f64)>,
    /// The loss over the validation samples after it.
    pub val_loss: Option<f32>,
    /// Metrics over the validation samples after it.
    pub val_metrics: Vec<(String, f64)>,
    /// The learning rate of its last step.
    pub learning_rate: f64,
    /// How long it took.
    pub seconds: f64,
    /// How long the device waited for batches to be made ready.
    pub waited: f64,
    /// The steps of its batches: real, computed, and as many as padding would compute.
    pub cost: Cost,
}

impl Epoch {
    /// What it came to, by the names of a history: `loss`, metrics, the same of validation with `val_` before them,
    /// `learning_rate` and `seconds`.
    pub fn values(&self) -> Vec<(String, f64)> {
        let mut all = vec![("loss".to_string(), f64::from(self.loss))];
        all.extend(self.metrics.iter().cloned());
        if let Some(loss) = self.val_loss {
            all.push(("val_loss".to_string(), f64::from(loss)));
        }
        all.extend(self.val_metrics.iter().map(|(name, value)| (format!("val_{name}"), *value)));
        all.push(("learning_rate".to_string(), self.learning_rate));
        all.push(("seconds".to_string(), self.seconds));
        all
    }

    /// One of [`Self::values`].
    pub fn value(&self, name: &str) -> Option<f64> {
        self.values().into_iter().find(|v| v.0 == name).map(|v| v.1)
    }
}

/// What all epochs came to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct History {
    /// Training loss of each epoch.
    pub loss: Vec<f32>,
    /// Validation loss of each epoch that had validation.
    pub val_loss: Vec<f32>,
    /// Metrics of each epoch, and of validation with `val_` before their names.
    pub metrics: BTreeMap<String, Vec<f64>>,
}

impl History {
    /// Of these epochs.
    pub(super) fn of(epochs: &[Epoch]) -> Self {
        let mut history = Self::default();
        for epoch in epochs {
            history.loss.push(epoch.loss);
            history.val_loss.extend(epoch.val_loss);
            for (name, value) in &epoch.metrics {
                history.metrics.entry(name.clone()).or_default().push(*value);
            }
            for (name, value) in &epoch.val_metrics {
                history.metrics.entry(format!("val_{name}")).or_default().push(*value);
            }
        }
        history
    }
}

/// What `compile` and training keep.
#[derive(Debug, Clone)]
pub(super) struct Compiled {
    pub(super) optimizer: Optimizer,
    pub(super) loss: Loss,
    /// Steps and epochs so far, and what schedules have seen.
    pub(super) course: Course,
    /// Times that all batches were taken.
    pub(super) pass: u32,
    /// Batches of the next pass that were trained on already.
    pub(super) batch: u32,
    /// Batches of the next epoch that were trained on already.
    pub(super) taken: u32,
    /// Tells in which order.
    pub(super) order: u64,
    /// Whether the optimiser's state has yet to begin.
    pub(super) fresh: bool,
    /// Whether parameters are in the place of their averages, and averages in that of parameters.
    pub(super) averaged: bool,
}

impl Compiled {
    pub(super) fn new(optimizer: Optimizer, loss: Loss) -> Self {
        let course = Course::default();
        Self { optimizer, loss, course, pass: 0, batch: 0, taken: 0, order: 0, fresh: true, averaged: false }
    }
}

impl Sequential {
    /// Chooses the optimiser and the loss. Optimiser state begins anew.
    pub fn compile(&mut self, optimizer: impl Into<Optimizer>, loss: Loss) -> Result<()> {
        let optimizer = optimizer.into();
        optimizer.validate()?;
        loss.validate()?;
        self.compiled = Some(Box::new(Compiled::new(optimizer, loss)));
        Ok(())
    }

    pub(super) fn compiled(&self) -> Result<Compiled> {
        let compiled = self.compiled.as_ref().and_then(|c| c.downcast_ref::<Compiled>());
        compiled.cloned().ok_or_else(|| Error::argument("sequential: the model is not compiled: call `compile` first"))
    }

    /// Trains on x `[samples, T, features]` (tokens `[samples, T]` where the first layer is an embedding) and y
    /// `[samples, k]`, `[samples, T, k]`, or classes without the k. Builds the model first where it is not.
    ///
    /// Stateful layers carry their state from batch to batch, over epochs and calls, until [`Self::reset_states`]; they
    /// need unshuffled samples in full batches.
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
        on_epoch: impl FnMut(&Epoch) -> ControlFlow<()>,
    ) -> Result<History>
    where
        S: Data<Elem = f32>,
        R: Data<Elem = f32>,
        D: Dimension,
        E: Dimension,
    {
        self.fit_with_callbacks(x, y, fit, &mut [&mut OnEpoch(on_epoch)])
    }

    /// [`Self::fit`], telling callbacks of its moments, in their order.
    pub fn fit_with_callbacks<S, D, R, E>(
        &mut self,
        x: &ArrayBase<S, D>,
        y: &ArrayBase<R, E>,
        fit: &Fit,
        callbacks: &mut [&mut dyn Callback],
    ) -> Result<History>
    where
        S: Data<Elem = f32>,
        R: Data<Elem = f32>,
        D: Dimension,
        E: Dimension,
    {
        let loss = self.compiled()?.loss;
        let (x, y) = (x.view().into_dyn(), y.view().into_dyn());
        let data = self.dataset(&x, Some((&y, loss)))?;
        let validation = match &fit.validation_data {
            Some((x, y)) => Some(self.dataset(&x.view(), Some((&y.view(), loss)))?),
            None => None,
        };
        learner::fit(self, data, validation.as_ref(), fit, callbacks)
    }

    /// Checks data against the model, which is built first where it is not.
    fn dataset(&mut self, x: &ArrayViewD<'_, f32>, targets: Option<(&ArrayViewD<'_, f32>, Loss)>) -> Result<Dataset> {
        if self.input().is_none() {
            let input = input_of(x, matches!(self.layers().first(), Some(Layer::Embedding(_))))?;
            let steps = Network::needs_steps(self.layers()).then(|| x.shape()[1]);
            self.build_for(input, steps)?;
        }
        let Some(input) = self.input() else { return Err(Error::internal("sequential: not built")) };
        let tokens = input == Input::Tokens;
        let found = input_of(x, tokens)?;
        if found != input {
            return Err(Error::shape(format!("x: the model was built for {input:?}, got {:?}", x.shape())));
        }
        let x = tensor_of("x", x, tokens)?;
        let data = Dataset::new(&self.network(input)?, vec![("x".to_string(), input, x)], None)?;
        let Some((y, loss)) = targets else { return Ok(data) };
        data.with_target(Objective::sole(loss), tensor_of("y", y, loss == Loss::CrossEntropy)?)
    }

    /// Zeroes the states that stateful layers carry from batch to batch and from call to call. Training has states of its
    /// own, so that validation does not disturb them; both are zeroed.
    pub fn reset_states(&mut self) -> Result<()> {
        if self.input().is_none() {
            return Ok(()); // nothing is carried yet
        }
        learner::reset_states(self)
    }

    /// The loss over x and y, without dropout.
    pub fn evaluate<S, D, R, E>(&mut self, x: &ArrayBase<S, D>, y: &ArrayBase<R, E>) -> Result<f32>
    where
        S: Data<Elem = f32>,
        R: Data<Elem = f32>,
        D: Dimension,
        E: Dimension,
    {
        Ok(self.scores(x, y, &Evaluate::default())?.loss)
    }

    /// The loss over x and y, without dropout, and metrics.
    pub fn scores<S, D, R, E>(
        &mut self,
        x: &ArrayBase<S, D>,
        y: &ArrayBase<R, E>,
        evaluate: &Evaluate,
    ) -> Result<Scores>
    where
        S: Data<Elem = f32>,
        R: Data<Elem = f32>,
        D: Dimension,
        E: Dimension,
    {
        let loss = self.compiled()?.loss;
        let data = self.dataset(&x.view().into_dyn(), Some((&y.view().into_dyn(), loss)))?;
        let data = data.weighted(evaluate.sample_weight.as_ref(), &BTreeMap::new())?;
        learner::evaluate(self, &data, 0..data.samples, evaluate)
    }

    /// The model's output for x: `[samples, k]`, or `[samples, T, k]` where it gives sequences.
    pub fn predict<S: Data<Elem = f32>, D: Dimension>(&mut self, x: &ArrayBase<S, D>) -> Result<ArrayD<f32>> {
        self.predict_by(x, BATCH)
    }

    /// [`Self::predict`], so many samples at a time.
    pub fn predict_by<S: Data<Elem = f32>, D: Dimension>(
        &mut self,
        x: &ArrayBase<S, D>,
        batch_size: usize,
    ) -> Result<ArrayD<f32>> {
        if batch_size == 0 {
            return Err(Error::argument("predict: expected batches of at least one sample, got 0"));
        }
        let data = self.dataset(&x.view().into_dyn(), None)?;
        let size = batch_size.min(data.samples);
        let input = self.input().ok_or_else(|| Error::internal("sequential: not built"))?;
        let network = self.network(input)?;
        check_stateful(&network, data.samples, size, false)?;
        let flow = self.build_graph(&mut Graph::new(), GraphOptions::default())?;
        let fill = network.output_fills()?[0];
        let (session, program) = self.program(&format!("predict {size} {}", data.key()?), |model| {
            let (graph, _) = prediction_graph(model, &format!("infer.{size}."))?;
            model.session()?.load(&graph, &data.capacity(size)?)
        })?;
        let rows: Vec<usize> = (0..data.samples).collect();
        let mut all = Vec::new();
        std::thread::scope(|scope| {
            let mut batches = Prefetch::begin(scope, rows.chunks(size).map(|chunk| data.batch(chunk)))?;
            while let Some(packed) = batches.next() {
                let packed = packed?;
                session.run(program, &packed.batch, &packed.named(program))?;
                let (batch, kept) = (&packed.batch, flow.axis.and_then(|axis| packed.kept.get(axis as usize)));
                if kept.is_some_and(|k| mask::needs_zero_row(k, fill)) {
                    return Err(Error::unsupported(
                        "predict: what layers over an LSTM give at masked steps needs a `Model` of the network",
                    ));
                }
                let values = session.output(program, "y")?.into_f32s()?;
                all.extend(match flow.axis {
                    Some(axis) => mask::unpack(batch, axis, kept, &values, flow.features, (fill, &[]))?,
                    None => batch.unsort_rows(&values, flow.features),
                });
            }
            Ok::<(), Error>(())
        })?;
        let mut shape = vec![data.samples, flow.features];
        if let Some(steps) = data.steps_of(network.signal(network.outputs[0].1)?)? {
            shape.insert(1, steps);
        }
        ArrayD::from_shape_vec(IxDyn(&shape), all).map_err(|e| Error::internal(format!("predict: {e}")))
    }
}

impl Learner for Sequential {
    fn network(&self) -> Result<Network> {
        Self::network(self, self.input().ok_or_else(|| Error::argument("sequential: the model is not built"))?)
    }

    fn session(&mut self) -> Result<&mut Session> {
        Self::session(self)
    }

    fn replace_session(&mut self, session: Session) {
        Self::replace_session(self, session);
    }

    fn program(&mut self, key: &str, make: Make<'_>) -> Result<(&mut Session, &mut Executable)> {
        Self::program(self, key, |model| make(Self::session(model)?))
    }

    fn compiled(&self) -> Result<Compiled> {
        Self::compiled(self)
    }

    fn keep(&mut self, compiled: Compiled) {
        self.compiled = Some(Box::new(compiled));
    }

    fn description(&self) -> Result<Option<Description>> {
        let input =
            self.input().ok_or_else(|| Error::argument("sequential: a model that is not built has nothing to save"))?;
        Ok(Some(Description { input, steps: self.steps(), layers: self.layers().to_vec() }))
    }
}

/// Refuses batches over which a state cannot be carried.
pub(super) fn check_stateful(network: &Network, samples: usize, batch: usize, shuffle: bool) -> Result<()> {
    let stateful = network.nodes.iter().any(|n| n.layer.is_stateful());
    if stateful && (shuffle || !samples.is_multiple_of(batch.max(1))) {
        return Err(Error::argument(format!(
            "a stateful layer needs `shuffle: false`, plain batching and full batches, got {} and {samples} samples in \
             batches of {batch}",
            if shuffle { "another order" } else { "the data's order" }
        )));
    }
    Ok(())
}
