//! What a run uploads besides its inputs: a table of the batch, and the indices that some kernels read.

use crate::error::{Error, Result};
use crate::graph::{Gather, Op};
use crate::params::Tensor;
use crate::scheduler::strategy::row_axis;
use crate::scheduler::{Axis, Batch, Program, sources};

/// Words to which the region of an axis is aligned, for WebGPU's smallest alignment of bindings.
const ALIGNMENT: usize = 64;

/// Where the table holds what: for each time axis a region with the sample ids of its sequences, the first row of each of
/// its T steps and N, its lengths, the place of each of the batch's rows, and the batch's row of each sequence. Sequences are in the axis's
/// order.
pub(super) struct Layout<'a> {
    program: &'a Program,
    sequences: usize,
}

impl<'a> Layout<'a> {
    pub fn of(program: &'a Program) -> Self {
        Self { program, sequences: program.capacity.sequences }
    }

    fn axes(&self) -> u8 {
        self.program.capacity.axes.len() as u8
    }

    /// T of the largest batch.
    fn steps(&self, axis: u8) -> usize {
        self.program.capacity.axes.get(axis as usize).map_or(0, |a| a.0)
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
            region[self.offsets()..][..axis.offsets().len()].copy_from_slice(axis.offsets());
            let lengths = &mut region[self.lengths(number)..][..sequences];
            lengths.iter_mut().enumerate().for_each(|(b, length)| *length = axis.length(b) as u32);
            region[self.places(number)..][..sequences].copy_from_slice(axis.places());
            region[self.order(number)..][..sequences].copy_from_slice(axis.order());
        }
        Ok(table)
    }
}

/// An index that is made of the batch or of tokens, for a step.
enum Index {
    /// Rows by token.
    Tokens {
        /// The program's input that holds the tokens.
        input: usize,
        sorted: usize,
        starts: usize,
        table_rows: usize,
        axis: Option<u8>,
    },
    /// Where each unit of a gather comes from.
    Gather { gather: Gather, x: usize, y: usize, index: usize },
}

/// The indices of a program's steps.
pub(super) struct Indices(Vec<Index>);

impl Indices {
    pub fn of(program: &Program) -> Result<Self> {
        let mut all = Vec::new();
        for step in &program.steps {
            match (&step.op, step.inputs.first().copied().flatten(), step.outputs.first().copied().flatten()) {
                (Op::EmbeddingBackward { rows }, Some(tokens), _) => {
                    let tokens = program.root(tokens);
                    let input = program.inputs.iter().position(|(_, v)| *v == tokens).ok_or_else(|| {
                        Error::unsupported(
                            "embedding_backward: the gradient of an embedding needs tokens that are inputs",
                        )
                    })?;
                    all.push(Index::Tokens {
                        input,
                        sorted: step.workspace[0],
                        starts: step.workspace[1],
                        table_rows: *rows,
                        axis: row_axis(&program.values[program.inputs[input].1].shape),
                    });
                }
                (Op::Gather(gather), Some(x), Some(y)) => {
                    all.push(Index::Gather { gather: *gather, x, y, index: step.workspace[0] });
                }
                _ => {}
            }
        }
        Ok(Self(all))
    }

    /// The words of every index in a run, by value.
    pub fn words(&self, program: &Program, batch: &Batch, inputs: &[&Tensor]) -> Result<Vec<(usize, Vec<u32>)>> {
        let mut all = Vec::new();
        for index in &self.0 {
            match index {
                Index::Tokens { input, sorted, starts, table_rows, axis } => {
                    let axis = axis.map(|a| batch.axis(a)).transpose()?;
                    let rows = sort_rows(inputs[*input].u32s()?, *table_rows, axis);
                    all.extend([(*sorted, rows.0), (*starts, rows.1)]);
                }
                Index::Gather { gather, x, y, index } => {
                    let (x, y) = (&program.values[*x].shape, &program.values[*y].shape);
                    all.push((*index, sources(gather, x, y, batch)?));
                }
            }
        }
        Ok(all)
    }
}

/// Rows by token, within a token by gradient chunk (last first) and row; and where each token's rows begin.
fn sort_rows(tokens: &[u32], table_rows: usize, axis: Option<&Axis>) -> (Vec<u32>, Vec<u32>) {
    let mut starts = vec![0u32; table_rows + 1];
    for &t in tokens {
        starts[t as usize + 1] += 1;
    }
    for i in 0..table_rows {
        starts[i + 1] += starts[i];
    }
    let mut next = starts.clone();
    let mut sorted = vec![0u32; tokens.len()];
    let mut put = |row: usize| {
        let at = &mut next[tokens[row] as usize];
        sorted[*at as usize] = row as u32;
        *at += 1;
    };
    match axis {
        Some(axis) => axis.chunks().flatten().for_each(&mut put),
        None => (0..tokens.len()).for_each(&mut put),
    }
    (sorted, starts)
}
