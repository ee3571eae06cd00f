//! What both passes of an LSTM layer share: its parameters, its sequences, its random masks, normalisation.

use super::array::Call;
use super::{Real, real};
use crate::config::Mask;
use crate::error::{Error, Result};
use crate::graph::{LstmOp, Parameter};
use crate::params::random::{StreamKey, drop_threshold, keeps, unit_word};
use crate::scheduler::{Axis, Batch};
use ndarray::Array2;

/// The parameters of one direction; see [`Parameter`] for their shapes. Vectors are held as one column.
pub(super) struct Weights<'a, R> {
    pub ih: Option<&'a Array2<R>>,
    pub hh: &'a Array2<R>,
    pub biases: Vec<&'a Array2<R>>,
    pub hr: Option<&'a Array2<R>>,
    pub peepholes: Option<&'a Array2<R>>,
    pub norm: Option<Norm<'a, R>>,
}

/// The gains and the bias of a normalised cell.
pub(super) struct Norm<'a, R> {
    pub epsilon: R,
    pub hh: &'a Array2<R>,
    pub gain: &'a Array2<R>,
    pub bias: &'a Array2<R>,
}

impl<'a, R: Real> Weights<'a, R> {
    /// The parameters of direction `d`, which stand where `at` says.
    pub fn of(call: &'a Call<'_, R>, op: &LstmOp, d: usize, at: fn(usize, Parameter) -> usize) -> Result<Self> {
        let maybe = |parameter| call.maybe(at(d, parameter));
        let norm = match op.cell.layer_norm {
            Some(epsilon) => Some(Norm {
                epsilon: real(epsilon),
                hh: call.float(at(d, Parameter::NormHh))?,
                gain: call.float(at(d, Parameter::NormGain))?,
                bias: call.float(at(d, Parameter::NormBias))?,
            }),
            None => None,
        };
        Ok(Self {
            ih: None,
            hh: call.float(at(d, Parameter::WeightHh))?,
            biases: Vec::new(),
            hr: maybe(Parameter::WeightHr)?,
            peepholes: maybe(Parameter::Peepholes)?,
            norm,
        })
    }

    /// H
    pub fn hidden(&self) -> usize {
        self.hh.nrows() / crate::config::GATES
    }

    /// R
    pub fn output(&self) -> usize {
        self.hh.ncols()
    }
}

/// The time axis of a value whose rows are timesteps.
pub(super) fn axis<'a, R: Real>(call: &'a Call<'_, R>, at: usize) -> Result<&'a Axis> {
    let number = call.shape(at)?.axis().ok_or_else(|| Error::internal("an LSTM's rows have no time axis"))?;
    call.batch.axis(number)
}

/// The timesteps of sequence `b` in the order in which direction `d` reads them.
pub(super) fn steps(axis: &Axis, b: usize, op: &LstmOp, d: usize) -> Vec<usize> {
    let forward = (0..axis.steps()).take_while(|&t| axis.rows_at(t) > b);
    if op.direction.reversed(d) { forward.collect::<Vec<_>>().into_iter().rev().collect() } else { forward.collect() }
}

/// The random masks of one sequence.
pub(super) struct Masks<'a> {
    pub op: &'a LstmOp,
    pub batch: &'a Batch,
    pub start: u32,
    /// The sequence's sample id.
    pub sample: u32,
}

impl Masks<'_> {
    /// Whether random operation number `of` of the layer drops a unit at step `t`; `None` at inference.
    fn drops(&self, of: u32, mask: Mask, rate: f32, t: usize, unit: usize) -> Option<bool> {
        let operation = self.op.random? + of;
        let key = StreamKey { seed: self.batch.seed, step: self.batch.step, operation };
        let time = match mask {
            Mask::Step => self.start.wrapping_add(t as u32),
            Mask::Sequence => u32::MAX,
        };
        let word = unit_word(key.row(self.sample, time), unit as u32);
        Some(!keeps(word, drop_threshold(rate)))
    }

    /// The factor of h's element `unit` (among both directions') before it meets U at step `t`.
    pub fn recurrent<R: Real>(&self, t: usize, unit: usize) -> R {
        let rate = self.op.cell.recurrent_dropout;
        match self.drops(0, self.op.cell.recurrent_mask, rate, t, unit) {
            Some(true) if rate > 0.0 => R::zero(),
            Some(false) if rate > 0.0 => real(1.0 / (1.0 - rate)), // rounded to f32, as every executor has it
            _ => R::one(),
        }
    }

    /// How much of the last h stays.
    pub fn zoneout_h<R: Real>(&self, t: usize, unit: usize) -> R {
        self.zoneout(1, self.op.cell.zoneout_h, t, unit)
    }

    /// How much of the last c stays.
    pub fn zoneout_c<R: Real>(&self, t: usize, unit: usize) -> R {
        self.zoneout(2, self.op.cell.zoneout_c, t, unit)
    }

    fn zoneout<R: Real>(&self, of: u32, rate: f32, t: usize, unit: usize) -> R {
        match self.drops(of, Mask::Step, rate, t, unit) {
            Some(true) => R::one(),
            Some(false) => R::zero(),
            None => real(rate),
        }
    }
}

/// (x - mean) / √(variance + epsilon) of each element, and the last factor.
pub(super) fn normalise<R: Real>(x: &[R], epsilon: R) -> (Vec<R>, R) {
    let n: R = R::from_double(x.len() as f64);
    let mean = x.iter().fold(R::zero(), |s, &x| s + x) / n;
    let variance = x.iter().fold(R::zero(), |s, &x| s + (x - mean) * (x - mean)) / n;
    let factor = R::one() / (variance + epsilon).sqrt();
    (x.iter().map(|&x| (x - mean) * factor).collect(), factor)
}

/// The gradient of what was normalised, from the normalised values, their factor and their gradient:
/// factor · (dn - mean(dn) - n · mean(dn n)).
pub(super) fn normalise_backward<R: Real>(normed: &[R], factor: R, dn: &[R]) -> Vec<R> {
    let n: R = R::from_double(dn.len() as f64);
    let mean = dn.iter().fold(R::zero(), |s, &x| s + x) / n;
    let along = dn.iter().zip(normed).fold(R::zero(), |s, (&x, &y)| s + x * y) / n;
    dn.iter().zip(normed).map(|(&d, &y)| factor * (d - mean - y * along)).collect()
}
