//! What a GPU's kernels know of a batch: one table of words.

use super::batch::{Batch, Capacity};
use super::stage::Cut;
use crate::error::Result;

/// Words to which the region of an axis is aligned, for WebGPU's smallest alignment of bindings.
const ALIGNMENT: usize = 64;

/// Where the table holds what: for each time axis a region with the sample ids of its sequences, the first row of each of
/// its T steps and N, its lengths, the place of each of the batch's rows, and the batch's row of each sequence. Sequences are in the axis's
/// order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    sequences: usize,
    /// T of the largest batch, or of its largest part where rows are met in parts alone.
    steps: Vec<usize>,
}

impl Layout {
    /// Of a program for batches up to `capacity`, which meets rows in parts alone if it is cut.
    pub fn new(capacity: &Capacity, cut: Option<Cut>) -> Self {
        let of = |capacity: &Capacity| capacity.axes.iter().map(|a| a.0).collect();
        let steps = cut.map_or_else(|| of(capacity), |cut| of(&cut.capacity(capacity)));
        Self { sequences: capacity.sequences, steps }
    }

    fn axes(&self) -> u8 {
        self.steps.len() as u8
    }

    fn steps(&self, axis: u8) -> usize {
        self.steps.get(axis as usize).copied().unwrap_or(0)
    }

    fn len(&self, axis: u8) -> usize {
        (self.order(axis) + self.sequences).next_multiple_of(ALIGNMENT)
    }

    /// The first word of an axis's region, and how many it has.
    pub fn region(&self, axis: u8) -> (usize, usize) {
        ((0..axis).map(|a| self.len(a)).sum(), self.len(axis))
    }

    /// Where the first rows of steps begin in a region.
    pub fn offsets(&self) -> usize {
        self.sequences
    }

    /// Where the lengths begin in a region.
    pub fn lengths(&self, axis: u8) -> usize {
        self.offsets() + self.steps(axis) + 1
    }

    /// Where the places of the batch's rows begin in a region.
    pub fn places(&self, axis: u8) -> usize {
        self.lengths(axis) + self.sequences
    }

    /// Where the batch's row of each sequence begins in a region.
    pub fn order(&self, axis: u8) -> usize {
        self.places(axis) + self.sequences
    }

    /// Words of the table.
    pub fn words(&self) -> usize {
        self.region(self.axes()).0.max(ALIGNMENT)
    }

    /// The table of `batch`.
    pub fn fill(&self, batch: &Batch) -> Result<Vec<u32>> {
        let mut table = vec![0u32; self.words()];
        let sequences = batch.sequences();
        for number in 0..self.axes() {
            let axis = batch.axis(number)?;
            let region = &mut table[self.region(number).0..];
            (0..sequences).for_each(|b| region[b] = batch.sample(axis, b));
            // Where rows are met in parts alone, nobody reads the offsets of a whole batch.
            let offsets = &axis.offsets()[..axis.offsets().len().min(self.steps(number) + 1)];
            region[self.offsets()..][..offsets.len()].copy_from_slice(offsets);
            let lengths = &mut region[self.lengths(number)..][..sequences];
            lengths.iter_mut().enumerate().for_each(|(b, length)| *length = axis.length(b) as u32);
            region[self.places(number)..][..sequences].copy_from_slice(axis.places());
            region[self.order(number)..][..sequences].copy_from_slice(axis.order());
        }
        Ok(table)
    }
}
