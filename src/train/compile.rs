//! `compile`, `fit` and `evaluate` of a [`Model`].

use super::callbacks::{Callback, OnEpoch, Training};
use super::dataset::Dataset;
use super::fit::{Compiled, Epoch, Evaluate, Fit, History, Scores};
use super::learner::{self, Learner, Make};
use super::model::{Model, Named};
use super::{Loss, Objective, save};
use crate::device::{Device, Executable, Session};
use crate::error::{Error, Result};
use crate::io;
use crate::nn::{Description, Input, Network};
use crate::optim::Optimizer;
use crate::params::Tensor;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

impl Model {
    /// The network with parameters that begin as its layers say, from a seed.
    pub fn initialized(device: &Device, network: &Network, seed: u64) -> Result<Self> {
        let mut parameters = Named::new();
        for (stream, spec) in network.parameters()?.iter().enumerate() {
            let values = spec.initializer.values(&spec.shape, seed, stream as u64).map_err(|e| e.within(&spec.name))?;
            parameters.insert(spec.name.clone(), Tensor::new(&spec.shape, values)?);
        }
        Self::new(device, network, &parameters)
    }

    /// Chooses the optimiser, and the loss of each output that is trained, by its name. What is minimised is the sum of
    /// their means. Optimiser state begins anew.
    pub fn compile(&mut self, optimizer: impl Into<Optimizer>, losses: &[(&str, Loss)]) -> Result<()> {
        let optimizer = optimizer.into();
        optimizer.validate()?;
        let mut chosen = Vec::new();
        for &(name, loss) in losses {
            loss.validate()?;
            let output = self.one_output(name)?;
            if chosen.iter().any(|c: &(usize, Loss)| c.0 == output) {
                return Err(Error::argument(format!("compile: the output `{name}` has two losses")));
            }
            chosen.push((output, loss));
        }
        let Some(&(_, loss)) = chosen.first() else {
            return Err(Error::argument("compile: expected a loss for at least one output"));
        };
        self.compiled = Some(Compiled::new(optimizer, loss));
        self.losses = chosen;
        Ok(())
    }

    /// Trains on inputs and targets, each with a row a sample: inputs as [`Self::run`] takes them (with `lengths` too),
    /// targets by the names of the outputs, `[samples, k]`, `[samples, T, k]`, or classes without the k.
    pub fn fit(&mut self, inputs: &Named, targets: &Named, fit: &Fit) -> Result<History> {
        self.fit_with(inputs, targets, fit, |_| ControlFlow::Continue(()))
    }

    /// [`Self::fit`], calling `on_epoch` after each epoch, which may end the training.
    pub fn fit_with(
        &mut self,
        inputs: &Named,
        targets: &Named,
        fit: &Fit,
        on_epoch: impl FnMut(&Epoch) -> ControlFlow<()>,
    ) -> Result<History> {
        self.fit_with_callbacks(inputs, targets, None, fit, &mut [&mut OnEpoch(on_epoch)])
    }

    /// [`Self::fit`], telling callbacks of its moments, in their order; validated on inputs and targets where they are given.
    pub fn fit_with_callbacks(
        &mut self,
        inputs: &Named,
        targets: &Named,
        validation: Option<(&Named, &Named)>,
        fit: &Fit,
        callbacks: &mut [&mut dyn Callback],
    ) -> Result<History> {
        if fit.validation_data.is_some() {
            return Err(Error::argument("fit: a model of named inputs takes its validation data by name"));
        }
        let data = self.dataset(inputs, targets)?;
        let validation = validation.map(|(inputs, targets)| self.dataset(inputs, targets)).transpose()?;
        learner::fit(self, data, validation.as_ref(), fit, callbacks)
    }

    /// The loss over inputs and targets, without dropout.
    pub fn evaluate(&mut self, inputs: &Named, targets: &Named) -> Result<f32> {
        Ok(self.scores(inputs, targets, &Evaluate::default())?.loss)
    }

    /// The loss over inputs and targets, without dropout, and metrics.
    pub fn scores(&mut self, inputs: &Named, targets: &Named, evaluate: &Evaluate) -> Result<Scores> {
        let data = self.dataset(inputs, targets)?.weighted(evaluate.sample_weight.as_ref(), &BTreeMap::new())?;
        learner::evaluate(self, &data, 0..data.samples, evaluate)
    }

    /// Writes the parameters and the state of training to one file. Its layers are not in it: [`Self::restore`] reads it into a
    /// model of the same network.
    pub fn save(&mut self, path: impl AsRef<Path>) -> Result<()> {
        io::save(path.as_ref(), &save::file(self)?)
    }

    /// Takes on parameters, and the training if there is one, that [`Self::save`] wrote; training goes on to the same bits.
    /// The model has to be compiled with the losses that it had.
    pub fn restore(&mut self, path: impl AsRef<Path>) -> Result<()> {
        Learner::compiled(self)?;
        Training::new(self).restore(path.as_ref())
    }

    /// Zeroes the states that stateful layers carry from run to run.
    pub fn reset_states(&mut self) -> Result<()> {
        learner::reset_states(self)
    }

    fn dataset(&self, inputs: &Named, targets: &Named) -> Result<Dataset> {
        Learner::compiled(self)?;
        let (given, lengths) = self.given(inputs)?;
        let given: Vec<(String, Input, Tensor)> =
            given.into_iter().map(|(name, input, tensor)| (name.to_string(), input, tensor.clone())).collect();
        let mut data = Dataset::new(self.network(), given, lengths.cloned())?;
        let mut unknown: Vec<&String> = targets.keys().collect();
        for &(output, loss) in &self.losses {
            let name = &self.network().outputs[output].0;
            let alias = (self.losses.len() == 1).then_some("y");
            let found = targets.get_key_value(name).or_else(|| targets.get_key_value(alias?));
            let Some((called, target)) = found else {
                return Err(Error::argument(format!("fit: expected targets of the output `{name}`")));
            };
            unknown.retain(|n| *n != called);
            let objective = Objective { output, name: format!("target of {name}"), loss, weighted: false };
            data = data.with_target(objective, target.clone())?;
        }
        match unknown.first() {
            Some(name) => Err(Error::argument(format!("fit: no output called `{name}` is trained"))),
            None => Ok(data),
        }
    }
}

impl Learner for Model {
    fn network(&self) -> Result<Network> {
        Ok(Self::network(self).clone())
    }

    fn session(&mut self) -> Result<&mut Session> {
        Ok(&mut self.session)
    }

    fn replace_session(&mut self, session: Session) {
        Self::replace_session(self, session);
    }

    fn program(&mut self, key: &str, make: Make<'_>) -> Result<(&mut Session, &mut Executable)> {
        self.kept_program(key, make)
    }

    fn compiled(&self) -> Result<Compiled> {
        self.compiled.clone().ok_or_else(|| Error::argument("model: it is not compiled: call `compile` first"))
    }

    fn keep(&mut self, compiled: Compiled) {
        self.compiled = Some(compiled);
    }

    fn description(&self) -> Result<Option<Description>> {
        Ok(None)
    }
}
