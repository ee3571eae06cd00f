//! One step with its operands: what the operations see of a run.

use super::aligned::Aligned;
use super::packed::Packed;
use super::room::Room;
use crate::error::{Error, Result};
use crate::scheduler::Batch;

/// An input.
#[derive(Debug, Clone, Default)]
pub(super) struct Operand<'a> {
    /// Its values; `None` where it lives in the place of an output.
    pub(super) data: Option<&'a [f32]>,
    /// Its sizes in this run.
    pub(super) shape: &'a [usize],
    /// The time axis whose rows it has.
    pub(super) axis: Option<u8>,
    /// The version of its contents if they outlive the run.
    pub(super) version: Option<u64>,
    /// The output in whose place it lives.
    pub(super) in_place_of: Option<usize>,
}

impl Operand<'_> {
    /// The outermost size.
    pub(super) fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Values in a row.
    pub(super) fn columns(&self) -> usize {
        self.shape.iter().skip(1).product()
    }
}

/// A packed right operand that is kept while its source does not change.
#[derive(Debug, Default)]
pub(super) struct Cached {
    version: Option<u64>,
    packed: Packed,
}

impl Cached {
    /// Gives it the room that it needs.
    pub(super) fn reserve(&mut self, data: Aligned) {
        self.packed.reserve(data);
    }

    /// Has it made again by whoever needs it next.
    pub(super) fn forget(&mut self) {
        self.version = None;
    }

    /// The packed operand, made by `pack` unless it was made from contents of the same `version`.
    pub(super) fn get(&mut self, version: Option<u64>, pack: impl FnOnce(&mut Packed)) -> &Packed {
        if version.is_none() || version != self.version {
            pack(&mut self.packed);
            self.version = version;
        }
        &self.packed
    }
}

/// One step of one run.
pub(super) struct Call<'a> {
    pub(super) inputs: Vec<Option<Operand<'a>>>,
    pub(super) outputs: Vec<Option<&'a mut [f32]>>,
    pub(super) batch: &'a Batch,
    /// The program's scalars in this run.
    pub(super) scalars: &'a [f32],
    /// Packed operands that are kept between runs.
    pub(super) packs: &'a mut [Cached],
    /// Whether sums over rows are added to what the outputs hold.
    pub(super) continues: bool,
    /// Room for what is needed besides.
    pub(super) room: &'a Room,
}

impl<'a> Call<'a> {
    /// The input at `at`, if it is there.
    pub(super) fn maybe(&self, at: usize) -> Option<&Operand<'a>> {
        self.inputs.get(at).and_then(Option::as_ref)
    }

    /// The input at `at`.
    pub(super) fn operand(&self, at: usize) -> Result<&Operand<'a>> {
        self.maybe(at).ok_or_else(|| Error::internal(format!("input {at} is missing")))
    }

    /// The values of the input at `at`.
    pub(super) fn input(&self, at: usize) -> Result<&'a [f32]> {
        let data = self.operand(at)?.data;
        data.ok_or_else(|| Error::internal(format!("input {at} lives in the place of an output")))
    }

    /// The values of the input at `at`, if it is there.
    pub(super) fn maybe_input(&self, at: usize) -> Result<Option<&'a [f32]>> {
        self.maybe(at).is_some().then(|| self.input(at)).transpose()
    }

    /// The output at `at`, if it is wanted; once.
    pub(super) fn maybe_output(&mut self, at: usize) -> Option<&'a mut [f32]> {
        self.outputs.get_mut(at).and_then(Option::take)
    }

    /// The output at `at`; once.
    pub(super) fn output(&mut self, at: usize) -> Result<&'a mut [f32]> {
        self.maybe_output(at).ok_or_else(|| Error::internal(format!("output {at} is missing")))
    }

    /// The row ranges over which sums over the rows of input `at` are added up, in order: chunks of its time axis.
    pub(super) fn chunks(&self, at: usize) -> Result<Vec<std::ops::Range<usize>>> {
        let operand = self.operand(at)?;
        Ok(match operand.axis {
            Some(axis) => self.batch.axis(axis)?.chunks().collect(),
            None => std::iter::once(0..operand.rows()).collect(),
        })
    }
}
