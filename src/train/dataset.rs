//! Samples on the host, checked once, and their batches.

use super::Loss;
use super::mask::{self, Kept};
use crate::error::{Error, Result};
use crate::nn::{Input, Network};
use crate::params::{DType, Tensor};
use crate::scheduler::{Batch, Capacity};
use ndarray::ArrayViewD;

/// What a model expects of targets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    pub(super) loss: Loss,
    /// Whether there is one a step.
    pub(super) sequence: bool,
    /// Features of the model's output.
    pub(super) features: usize,
}

/// x `[samples, T, F]` or tokens `[samples, T]`, and y where there are targets.
pub(super) struct Dataset {
    pub(super) samples: usize,
    pub(super) steps: usize,
    input: Input,
    x: Tensor,
    y: Option<(Tensor, Target)>,
    /// The model, which may leave out steps by their values and make time axes of its own.
    network: Network,
}

/// Samples as a program takes them.
pub(super) struct Samples {
    pub(super) batch: Batch,
    pub(super) x: Tensor,
    pub(super) y: Option<Tensor>,
    pub(super) kept: Option<Kept>,
}

/// Refuses what is not finite, naming where it is.
fn check_finite(name: &str, array: &ArrayViewD<'_, f32>) -> Result<()> {
    match array.indexed_iter().find(|(_, v)| !v.is_finite()) {
        None => Ok(()),
        Some((at, v)) => {
            let at = ndarray::Dimension::slice(&at).to_vec();
            Err(Error::data(format!("{name}: expected finite values, got {v} at {at:?}")))
        }
    }
}

/// The values as unsigned integers.
fn integers(name: &str, array: &ArrayViewD<'_, f32>, shape: &[usize]) -> Result<Tensor> {
    let exact = |&v: &f32| (0.0..=16_777_216.0).contains(&v) && v.fract() == 0.0;
    match array.iter().find(|v| !exact(v)) {
        Some(v) => Err(Error::data(format!("{name}: expected integers of at least 0, got {v}"))),
        None => Tensor::from_u32(shape, array.iter().map(|&v| v as u32).collect()),
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
    pub(super) fn new(x: &ArrayViewD<'_, f32>, input: Input, network: &Network) -> Result<Self> {
        let found = input_of(x, input == Input::Tokens)?;
        if found != input {
            return Err(Error::shape(format!("x: the model was built for {input:?}, got {:?}", x.shape())));
        }
        if x.is_empty() {
            return Err(Error::data(format!(
                "x: expected at least one sample of at least one step, got {:?}",
                x.shape()
            )));
        }
        check_finite("x", x)?;
        let (samples, steps) = (x.shape()[0], x.shape()[1]);
        if let Some((_, most)) = network.steps.iter().find(|s| s.1 < steps) {
            return Err(Error::shape(format!("x: the model was built for at most {most} steps, got {steps}")));
        }
        if u32::try_from(samples).is_err() {
            return Err(Error::data(format!("x: more than {} samples", u32::MAX)));
        }
        let x = match input {
            Input::Tokens => integers("x", x, x.shape())?,
            Input::Features(_) | Input::Rows(_) => Tensor::from_array(x.view()),
        };
        Ok(Self { samples, steps, input, x, y: None, network: network.clone() })
    }

    /// Of programs for batches of `size` samples.
    pub(super) fn capacity(&self, size: usize) -> Result<Capacity> {
        Ok(Capacity::exactly(&mask::batch(&self.network, &[vec![self.steps; size]], size)?))
    }

    /// With targets.
    pub(super) fn with_targets(mut self, y: &ArrayViewD<'_, f32>, target: Target) -> Result<Self> {
        let mut wanted = vec![self.samples];
        if target.sequence {
            wanted.push(self.steps);
        }
        if target.loss != Loss::CrossEntropy {
            wanted.push(target.features);
        }
        let without_one = |long: &[usize], short: &[usize]| long.last() == Some(&1) && long[..long.len() - 1] == *short;
        let same = y.shape() == wanted
            || without_one(&wanted, y.shape())
            || (target.loss == Loss::CrossEntropy && without_one(y.shape(), &wanted));
        if !same {
            return Err(Error::shape(format!(
                "y: expected {wanted:?} for x of {:?} and the model's output, got {:?}",
                self.x.shape(),
                y.shape()
            )));
        }
        check_finite("y", y)?;
        let probabilities = matches!(target.loss, Loss::BinaryCrossEntropy { .. } | Loss::CategoricalCrossEntropy);
        if let Some(v) = y.iter().find(|v| probabilities && !(0.0..=1.0).contains(*v)) {
            return Err(Error::data(format!("y: expected probabilities in [0, 1], got {v}")));
        }
        let y = match target.loss {
            Loss::CrossEntropy => {
                let y = integers("y", y, &wanted)?;
                if let Some(class) = y.u32s()?.iter().find(|&&c| c as usize >= target.features) {
                    return Err(Error::data(format!("y: expected classes below {}, got {class}", target.features)));
                }
                y
            }
            _ => Tensor::from_array(y.view()).reshape(&wanted)?,
        };
        self.y = Some((y, target));
        Ok(self)
    }

    /// The batch of `rows`, with the tensors `x` and `y` packed for it.
    pub(super) fn batch(&self, rows: &[usize]) -> Result<Samples> {
        let ids: Vec<u32> = rows.iter().map(|&r| r as u32).collect();
        let mut kept = None;
        if self.network.masks() {
            let x = take(&self.x, rows)?;
            kept = mask::kept(&self.network, &[("x", self.input, &x)], None)?.pop();
        }
        let lengths = kept.as_ref().map_or_else(|| vec![self.steps; rows.len()], Kept::lengths);
        let batch = mask::batch(&self.network, &[lengths], rows.len())?.with_samples(&ids)?;
        let x = self.pack(&batch, kept.as_ref(), &self.x, rows, true)?;
        let targets = self.y.as_ref();
        let y = targets.map(|(y, target)| self.pack(&batch, kept.as_ref(), y, rows, target.sequence)).transpose()?;
        Ok(Samples { batch, x, y, kept })
    }

    /// Rows of `all` as a program takes them: `[N, ..]` of sequences, `[B, ..]` of single rows.
    fn pack(&self, batch: &Batch, kept: Option<&Kept>, all: &Tensor, rows: &[usize], sequence: bool) -> Result<Tensor> {
        let taken = take(all, rows)?;
        let mut shape = taken.shape().to_vec();
        let size: usize = shape[1..].iter().product();
        if sequence {
            shape.remove(0);
            shape[0] = batch.axis(0)?.rows();
        }
        let width = if sequence { size / self.steps } else { size };
        match taken.dtype() {
            DType::F32 => Tensor::new(&shape, self.place(batch, kept, taken.f32s()?, width, sequence)?),
            DType::U32 => Tensor::from_u32(&shape, self.place(batch, kept, taken.u32s()?, width, sequence)?),
        }
    }

    fn place<V: Copy>(
        &self,
        batch: &Batch,
        kept: Option<&Kept>,
        data: &[V],
        width: usize,
        sequence: bool,
    ) -> Result<Vec<V>> {
        match sequence {
            true => mask::pack(batch, 0, kept, data, self.steps, width),
            false => Ok(batch.sort_rows(data, width)),
        }
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
