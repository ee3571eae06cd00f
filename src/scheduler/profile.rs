//! Where the time of a run goes: what a device did and when, and how much work each step of a program is.

use super::batch::Batch;
use super::program::{Program, Step};
use super::recurrence::{Recurrence, Weights};
use crate::error::Result;
use crate::graph::lstm::{backward, forward};
use crate::graph::memory::{by_token, recall, remember};
use crate::graph::{LstmPart, Op, Parameter};

/// One thing that a device or the host did.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// The number of the step that it was for; none for what belongs to no step.
    pub step: Option<usize>,
    /// The kernel, or what was done.
    pub what: String,
    /// When it began and ended, in seconds from some moment; none where nothing measures it.
    pub time: Option<[f64; 2]>,
}

/// What one run did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Profile {
    /// What the device computed: a dispatch each on a GPU, a step each on the CPU.
    pub device: Vec<Span>,
    /// What the host did meanwhile.
    pub host: Vec<Span>,
    /// Copies and clears between kernels.
    pub copies: usize,
    /// Batches of commands that the host sent.
    pub submissions: usize,
}

/// How much a step is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Floating-point operations of its matrix products, two a multiply-add; others count nothing.
    pub flops: u64,
    /// Bytes that have to move: every input read and every output written once, and recurrent weights read anew at each
    /// step of time where no workgroup keeps them.
    pub bytes: u64,
}

impl std::ops::Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { flops: self.flops + other.flops, bytes: self.bytes + other.bytes }
    }
}

impl Program {
    /// How much `step` is over `batch`.
    pub fn work(&self, step: &Step, batch: &Batch) -> Result<Work> {
        let sizes = |value: Option<Option<usize>>| -> Result<(u64, u64)> {
            let Some(value) = value.flatten() else { return Ok((0, 0)) };
            let sizes = batch.resolve(&self.values[value].shape)?;
            let rows = sizes.first().copied().unwrap_or(1);
            Ok((rows as u64, sizes.iter().skip(1).product::<usize>() as u64))
        };
        let input = |at: usize| sizes(step.inputs.get(at).copied());
        let output = |at: usize| sizes(step.outputs.get(at).copied());
        if matches!(step.op, Op::View { .. }) {
            return Ok(Work::default());
        }
        let mut values = 0;
        for at in 0..step.inputs.len() {
            let (rows, row) = input(at)?;
            // A table is read where its tokens are, not whole.
            values += match (&step.op, at) {
                (Op::Embedding, 0) => output(0)?.0 * row,
                (Op::Scatter | Op::Remember(_), 0) => 0,
                // Of each sequence's ring the places that are seen.
                (Op::Recall(op) | Op::RecallBackward { memory: op, .. } | Op::RecallPlaces(op), recall::RING) => {
                    let seen = op.places.min(op.window + batch.axis(0)?.steps());
                    (batch.sequences() * seen * (op.features(row as usize) + 1)) as u64
                }
                (Op::Recall(_), recall::OWN) => 0,
                (Op::RecallTokens { memory, .. }, by_token::RING) => (batch.sequences() * memory.places) as u64,
                _ => rows * row,
            };
        }
        for at in 0..step.outputs.len() {
            let (rows, row) = output(at)?;
            // Of a table that changes in place, too.
            values += match &step.op {
                Op::Scatter => input(1)?.0 * row,
                Op::Remember(_) => input(remember::OWN)?.0 * (input(remember::OWN)?.1 + 1),
                _ => rows * row,
            };
        }
        let recurrent = |parameter: fn(usize, Parameter) -> usize,
                         directions: usize,
                         rows: u64|
         -> Result<(u64, u64)> {
            let (hh, hr) = (input(parameter(0, Parameter::WeightHh))?, input(parameter(0, Parameter::WeightHr))?);
            let weights = directions as u64 * (hh.0 * hh.1 + hr.0 * hr.1);
            // The values of all weights, once a step in which they are not kept.
            let again = match step.recurrence {
                Some(Recurrence::Sequence { weights: Weights::Registers, .. } | Recurrence::Grid { .. }) | None => 0,
                Some(_) => batch.axis(0)?.steps().saturating_sub(1) as u64,
            };
            // Work is counted in values of 32 bits.
            let each = if self.target.precision.halves_weights() { 2 } else { 1 };
            Ok((2 * rows * weights, again * weights / each))
        };
        let mut flops = 0;
        match &step.op {
            Op::Linear | Op::MatMul | Op::LstmInputGradient { .. } if step.inputs.len() > 1 => {
                let ((rows, inner), (_, columns)) = (input(0)?, output(0)?);
                flops = 2 * rows * inner * columns;
            }
            Op::WeightGradient => {
                let ((rows, m), (_, n)) = (input(0)?, input(1)?);
                flops = 2 * rows * m * n;
            }
            Op::LstmWeightGradient { part, lstm, .. } if !matches!(part, LstmPart::Bias | LstmPart::Peepholes) => {
                let d = lstm.directions() as u64;
                let ((rows, m), (_, n)) = (input(0)?, input(1)?);
                flops = 2 * rows * (m / d) * if *part == LstmPart::InputWeights { n } else { n / d };
            }
            Op::Recall(op) | Op::RecallPlaces(op) => {
                let (rows, inner) = input(0)?;
                flops = 2 * rows * inner * op.window as u64;
            }
            Op::RecallBackward { memory, .. } => {
                let (rows, inner) = input(0)?;
                flops = 4 * rows * inner * memory.window as u64;
            }
            Op::Lstm(op) => {
                let (rows, inner) = input(forward::X)?;
                let gates = op.directions() as u64 * input(forward::parameter(0, Parameter::WeightHh))?.0;
                let given = step.inputs[forward::parameter(0, Parameter::WeightIh)].is_none();
                let (recurrence, again) = recurrent(forward::parameter, op.directions(), rows)?;
                flops = recurrence + if given { 0 } else { 2 * rows * inner * gates };
                values += again;
            }
            Op::LstmBackward(op) => {
                let (rows, _) = input(backward::GATES)?;
                let (recurrence, again) = recurrent(backward::parameter, op.directions(), rows)?;
                flops = recurrence;
                values += again;
            }
            _ => {}
        }
        Ok(Work { flops, bytes: 4 * values })
    }

    /// How much a run over `batch` is, what its stages compute again included.
    pub fn whole_work(&self, batch: &Batch) -> Result<Work> {
        self.stage_steps().try_fold(Work::default(), |sum, step| Ok(sum + self.work(step, batch)?))
    }
}
