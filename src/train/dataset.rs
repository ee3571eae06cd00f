//! Samples on the host, checked once, and their batches.

use super::mask;
use super::pack::{Packed, check_inputs, pack};
use super::save::check_shape;
use super::{Loss, Objective};
use crate::error::{Error, Result};
use crate::nn::{Input, Network, Signal};
use crate::params::{DType, Tensor};
use crate::scheduler::Capacity;
use ndarray::{ArrayD, ArrayViewD};
use std::collections::BTreeMap;

/// Inputs of a network by name, each with a row a sample, and targets of its outputs.
#[derive(Clone)]
pub(super) struct Dataset {
    pub(super) samples: usize,
    network: Network,
    inputs: Vec<(String, Input, Tensor)>,
    /// How long each sequence of the first input is, where the caller says.
    lengths: Option<Tensor>,
    targets: Vec<Targets>,
}

/// What an output should be, and how much each row counts.
#[derive(Clone)]
struct Targets {
    objective: Objective,
    signal: Signal,
    values: Tensor,
    /// `[samples, 1]`, or `[samples, T, 1]`.
    weights: Option<Tensor>,
}

/// Refuses what is not finite, naming where it is.
fn check_finite(name: &str, tensor: &Tensor) -> Result<()> {
    if tensor.dtype() == DType::U32 {
        return Ok(());
    }
    match tensor.f32s()?.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(place) => {
            let (mut at, mut rest) = (Vec::new(), place);
            for &size in tensor.shape().iter().rev() {
                at.insert(0, rest % size);
                rest /= size;
            }
            Err(Error::data(format!("{name}: expected finite values, got {} at {at:?}", tensor.f32s()?[place])))
        }
    }
}

/// An array as a tensor, of unsigned integers where it stands for tokens or classes.
pub(super) fn tensor_of(name: &str, array: &ArrayViewD<'_, f32>, integers: bool) -> Result<Tensor> {
    if !integers {
        return Ok(Tensor::from_array(array.view()));
    }
    let exact = |&v: &f32| (0.0..=16_777_216.0).contains(&v) && v.fract() == 0.0;
    match array.iter().find(|v| !exact(v)) {
        Some(v) => Err(Error::data(format!("{name}: expected integers of at least 0, got {v}"))),
        None => Tensor::from_u32(array.shape(), array.iter().map(|&v| v as u32).collect()),
    }
}

/// What `x` says that a model reads.
pub(super) fn input_of(x: &ArrayViewD<'_, f32>, tokens: bool) -> Result<Input> {
    match (tokens, x.shape()) {
        (true, [_, _]) => Ok(Input::Tokens),
        (false, &[_, _, features]) => Ok(Input::Features(features)),
        (true, other) => Err(Error::shape(format!("x: expected tokens [samples, T], got {other:?}"))),
        (false, other) => Err(Error::shape(format!("x: expected [samples, T, features], got {other:?}"))),
    }
}

impl Dataset {
    /// Inputs in the network's order.
    pub(super) fn new(
        network: &Network,
        inputs: Vec<(String, Input, Tensor)>,
        lengths: Option<Tensor>,
    ) -> Result<Self> {
        let given: Vec<(&str, Input, &Tensor)> = inputs.iter().map(|(name, i, t)| (name.as_str(), *i, t)).collect();
        if let Some((name, _, empty)) = given.iter().find(|g| g.2.is_empty()) {
            let shape = empty.shape();
            return Err(Error::data(format!(
                "{name}: expected at least one sample of at least one step, got {shape:?}"
            )));
        }
        let samples = check_inputs(network, &given)?;
        given.iter().try_for_each(|(name, _, tensor)| check_finite(name, tensor))?;
        lengths.as_ref().map_or(Ok(()), |l| check_shape("lengths", l.shape(), &[samples]))?;
        if u32::try_from(samples).is_err() {
            return Err(Error::data(format!("{}: more than {} samples", given[0].0, u32::MAX)));
        }
        Ok(Self { samples, network: network.clone(), inputs, lengths, targets: Vec::new() })
    }

    /// The numbers of steps of the longest sequences on each axis.
    fn steps(&self) -> Result<Vec<usize>> {
        let mut given = Vec::new();
        for ((_, _, tensor), axis) in self.inputs.iter().zip(self.network.input_axes()?) {
            if axis.is_some_and(|axis| axis as usize == given.len()) {
                given.push(vec![tensor.shape()[1]]);
            }
        }
        Ok(self.network.axes()?.lengths(&given, 1).into_iter().map(|l| l[0]).collect())
    }

    /// What tells apart data for which programs differ.
    pub(super) fn key(&self) -> Result<String> {
        Ok(format!("{:?}", self.steps()?))
    }

    /// Of programs for batches of `size` samples.
    pub(super) fn capacity(&self, size: usize) -> Result<Capacity> {
        let given: Vec<Vec<usize>> = self.steps()?.into_iter().map(|steps| vec![steps; size]).collect();
        Ok(Capacity::exactly(&mask::batch(&self.network, &given, size)?))
    }

    /// The steps of every sample on the first time axis; 1 each where there is none.
    pub(super) fn lengths(&self) -> Result<Vec<usize>> {
        let given: Vec<(&str, Input, &Tensor)> = self.inputs.iter().map(|(n, i, t)| (n.as_str(), *i, t)).collect();
        let kept = mask::kept(&self.network, &given, self.lengths.as_ref())?;
        Ok(kept.first().map_or_else(|| vec![1; self.samples], mask::Kept::lengths))
    }

    /// The steps of an output, where it has any.
    pub(super) fn steps_of(&self, signal: Signal) -> Result<Option<usize>> {
        let steps = self.steps()?;
        Ok(signal.axis().map(|axis| steps.get(axis as usize).copied().unwrap_or(0)))
    }

    /// Adds the targets of an output.
    pub(super) fn with_target(mut self, objective: Objective, y: Tensor) -> Result<Self> {
        let name = objective.name.clone();
        let signal = self.network.signal(self.network.outputs[objective.output].1)?;
        let features = signal.features().ok_or_else(|| Error::shape(format!("{name}: the output must be floats")))?;
        if signal.mirrored() {
            return Err(Error::unsupported(format!("{name}: an output in reversed order has no loss")));
        }
        let mut wanted = vec![self.samples];
        wanted.extend(self.steps_of(signal)?);
        if objective.loss != Loss::CrossEntropy {
            wanted.push(features);
        }
        let without_one = |long: &[usize], short: &[usize]| long.last() == Some(&1) && long[..long.len() - 1] == *short;
        let same = y.shape() == wanted
            || without_one(&wanted, y.shape())
            || (objective.loss == Loss::CrossEntropy && without_one(y.shape(), &wanted));
        if !same {
            let x = self.inputs[0].2.shape();
            return Err(Error::shape(format!(
                "{name}: expected {wanted:?} for {} of {x:?} and the model's output, got {:?}",
                self.inputs[0].0,
                y.shape()
            )));
        }
        check_finite(&name, &y)?;
        let y = y.reshape(&wanted)?;
        if objective.loss == Loss::CrossEntropy {
            let classes = y.u32s().map_err(|e| e.within(&name))?;
            if let Some(class) = classes.iter().find(|&&c| c as usize >= features) {
                return Err(Error::data(format!("{name}: expected classes below {features}, got {class}")));
            }
        } else {
            let values = y.f32s().map_err(|e| e.within(&name))?;
            let probabilities =
                matches!(objective.loss, Loss::BinaryCrossEntropy { .. } | Loss::CategoricalCrossEntropy);
            if let Some(v) = values.iter().find(|v| probabilities && !(0.0..=1.0).contains(*v)) {
                return Err(Error::data(format!("{name}: expected probabilities in [0, 1], got {v}")));
            }
        }
        self.targets.push(Targets { objective, signal, values: y, weights: None });
        Ok(self)
    }

    /// Has rows count by their samples' weights, `[samples]` or `[samples, T]`, and by those of their classes.
    pub(super) fn weighted(mut self, samples: Option<&ArrayD<f32>>, classes: &BTreeMap<u32, f32>) -> Result<Self> {
        if samples.is_none() && classes.is_empty() {
            return Ok(self);
        }
        let weights = samples.into_iter().flatten().chain(classes.values());
        if let Some(bad) = weights.copied().find(|w| !(*w >= 0.0 && w.is_finite())) {
            return Err(Error::data(format!("fit: weights must be at least 0, got {bad}")));
        }
        for targets in &mut self.targets {
            let Targets { objective, signal, values, weights } = targets;
            let name = &objective.name;
            let mut shape = values.shape()[..1 + usize::from(signal.axis().is_some())].to_vec();
            let rows: usize = shape.iter().product();
            let per_sample = rows / self.samples;
            let mut all = match samples {
                None => vec![1.0; rows],
                Some(given) if given.shape() == shape => given.iter().copied().collect(),
                Some(given) if given.shape() == [self.samples] => {
                    given.iter().flat_map(|&w| std::iter::repeat_n(w, per_sample)).collect()
                }
                Some(given) => {
                    let got = given.shape();
                    return Err(Error::shape(format!(
                        "{name}: expected weights of [{}] or {shape:?}, got {got:?}",
                        self.samples
                    )));
                }
            };
            if !classes.is_empty() {
                let of_row = values.u32s().map_err(|_| {
                    Error::argument(format!("{name}: only the classes of a cross entropy have weights"))
                })?;
                all.iter_mut().zip(of_row).for_each(|(w, class)| *w *= classes.get(class).copied().unwrap_or(1.0));
            }
            shape.push(1);
            *weights = Some(Tensor::new(&shape, all)?);
            objective.weighted = true;
        }
        Ok(self)
    }

    /// The targets' losses.
    pub(super) fn objectives(&self) -> Vec<Objective> {
        self.targets.iter().map(|t| t.objective.clone()).collect()
    }

    /// How many values the model gives for each row of an objective.
    pub(super) fn features(&self) -> Vec<usize> {
        self.targets.iter().map(|t| t.signal.features().unwrap_or(1)).collect()
    }

    /// The batch of `rows` as a program takes it, targets under their names.
    pub(super) fn batch(&self, rows: &[usize]) -> Result<Packed> {
        let ids: Vec<u32> = rows.iter().map(|&r| r as u32).collect();
        let taken: Vec<Tensor> = self.inputs.iter().map(|i| take(&i.2, rows)).collect::<Result<_>>()?;
        let given: Vec<(&str, Input, &Tensor)> =
            self.inputs.iter().zip(&taken).map(|((name, input, _), t)| (name.as_str(), *input, t)).collect();
        let lengths = self.lengths.as_ref().map(|l| take(l, rows)).transpose()?;
        let mut packed = pack(&self.network, &given, lengths.as_ref(), Some(&ids))?;
        for Targets { objective, signal, values, weights } in &self.targets {
            packed.add(&objective.name, *signal, &take(values, rows)?)?;
            if let Some(weights) = weights {
                packed.add(&objective.weights(), *signal, &take(weights, rows)?)?;
            }
        }
        Ok(packed)
    }
}

/// The samples `rows` of `all`.
fn take(all: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let mut shape = all.shape().to_vec();
    let size: usize = shape[1..].iter().product();
    shape[0] = rows.len();
    fn of<V: Copy>(data: &[V], rows: &[usize], size: usize) -> Vec<V> {
        rows.iter().flat_map(|&r| data[r * size..(r + 1) * size].iter().copied()).collect()
    }
    match all.dtype() {
        DType::F32 => Tensor::new(&shape, of(all.f32s()?, rows, size)),
        DType::U32 => Tensor::from_u32(&shape, of(all.u32s()?, rows, size)),
    }
}
