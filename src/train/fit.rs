//! `compile`, `fit`, `evaluate` and `predict`.

use super::dataset::{Dataset, input_of, tensor_of};
use super::learner::{self, Learner, Make};
use super::mask;
use super::prefetch::Prefetch;
use super::step::prediction_graph;
use super::{Loss, Objective};
use crate::device::{Executable, Session};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::nn::{GraphOptions, Input, Layer, Network, Sequential};
use crate::optim::Optimizer;
use crate::scheduler::{Batching, Cost};
use ndarray::{ArrayBase, ArrayD, ArrayViewD, Data, Dimension, IxDyn};
use std::ops::ControlFlow;

/// Samples a batch where the caller does not say.
pub(super) const BATCH: usize = 32;

/// How to fit.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// Times to read all samples.
    pub epochs: usize,
    /// Samples a step, at most; some batches of an epoch may be smaller.
    pub batch_size: usize,
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
    /// The largest global norm of the gradient.
    pub clip_norm: Option<f32>,
}

impl Default for Fit {
    fn default() -> Self {
        Self {
            epochs: 1,
            batch_size: BATCH,
            batching: Batching::Plain,
            steps: None,
            shuffle: true,
            seed: 0,
            validation_split: 0.0,
            clip_norm: None,
        }
    }
}

impl Fit {
    pub(super) fn validate(&self) -> Result<()> {
        if self.batch_size == 0 || !(0.0..1.0).contains(&self.validation_split) {
            return Err(Error::argument(format!(
                "fit: batch_size must be at least 1 and validation_split in [0, 1), got {} and {}",
                self.batch_size, self.validation_split
            )));
        }
        Ok(())
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
    /// How long the device waited for batches to be made ready.
    pub waited: f64,
    /// The steps of its batches: real, computed, and as many as padding would compute.
    pub cost: Cost,
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
    /// Batches of the next epoch that were trained on already.
    pub(super) batch: u32,
    /// Tells in which order.
    pub(super) order: u64,
}

impl Sequential {
    /// Chooses the optimiser and the loss. Optimiser state begins anew.
    pub fn compile(&mut self, optimizer: impl Into<Optimizer>, loss: Loss) -> Result<()> {
        let optimizer = optimizer.into();
        optimizer.validate()?;
        loss.validate()?;
        if let Ok(session) = self.session() {
            clear_optimizer(session)?;
        }
        self.compiled = Some(Box::new(Compiled { optimizer, loss, step: 0, epoch: 0, batch: 0, order: 0 }));
        Ok(())
    }

    pub(super) fn compiled(&self) -> Result<Compiled> {
        let compiled = self.compiled.as_ref().and_then(|c| c.downcast_ref::<Compiled>());
        compiled.copied().ok_or_else(|| Error::argument("sequential: the model is not compiled: call `compile` first"))
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
        learner::fit(self, &data, fit, on_epoch)
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
        let loss = self.compiled()?.loss;
        let data = self.dataset(&x.view().into_dyn(), Some((&y.view().into_dyn(), loss)))?;
        learner::evaluate(self, &data, 0..data.samples, BATCH)
    }

    /// The model's output for x: `[samples, k]`, or `[samples, T, k]` where it gives sequences.
    pub fn predict<S: Data<Elem = f32>, D: Dimension>(&mut self, x: &ArrayBase<S, D>) -> Result<ArrayD<f32>> {
        let data = self.dataset(&x.view().into_dyn(), None)?;
        let size = BATCH.min(data.samples);
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
}

/// Zeroes what an optimiser has kept.
pub(super) fn clear_optimizer(session: &mut Session) -> Result<()> {
    let names: Vec<String> = session.names().filter(|n| n.starts_with("optimizer.")).map(String::from).collect();
    names.into_iter().try_for_each(|name| {
        let old = session.get(&name)?;
        session.zero(&name, old.shape(), old.dtype())
    })
}

/// Refuses batches over which a state cannot be carried.
pub(super) fn check_stateful(network: &Network, samples: usize, batch: usize, shuffle: bool) -> Result<()> {
    let stateful = network.nodes.iter().any(|n| matches!(&n.layer, Layer::Lstm(l) if l.stateful));
    if stateful && (shuffle || !samples.is_multiple_of(batch.max(1))) {
        return Err(Error::argument(format!(
            "a stateful lstm needs `shuffle: false`, plain batching and full batches, got {} and {samples} samples in \
             batches of {batch}",
            if shuffle { "another order" } else { "the data's order" }
        )));
    }
    Ok(())
}
