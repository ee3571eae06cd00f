//! The indices that some kernels read: what a run uploads besides its inputs and its batch's table.

use crate::error::{Error, Result};
use crate::graph::{Gather, Op};
use crate::params::{DType, Tensor};
use crate::scheduler::strategy::row_axis;
use crate::scheduler::{Action, Axis, Move, Part, Program, Side, Stage, sources};
use std::ops::Range;

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
    pub fn of(program: &Program, stage: &Stage) -> Result<Self> {
        let mut all = Vec::new();
        // The part's rows of an input stand for the input.
        let loaded = |value: usize| {
            stage.body.iter().find_map(|action| match action {
                Action::Move(Move { from: Side::Input(input), to: Side::Whole(to) }) if *to == value => Some(*input),
                _ => None,
            })
        };
        for step in stage.steps() {
            match (&step.op, step.inputs.first().copied().flatten(), step.outputs.first().copied().flatten()) {
                (Op::EmbeddingBackward { rows }, Some(tokens), _) => {
                    let tokens = program.root(tokens);
                    let input = program.inputs.iter().position(|(_, v)| *v == tokens).or_else(|| loaded(tokens));
                    let input = input.ok_or_else(|| {
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

    /// The words of every index in a part of a run, by value.
    pub fn words(&self, program: &Program, part: &Part<'_>, inputs: &[&Tensor]) -> Result<Vec<(usize, Vec<u32>)>> {
        let (mut all, batch) = (Vec::new(), part.batch);
        for index in &self.0 {
            match index {
                Index::Tokens { input, sorted, starts, table_rows, axis } => {
                    let axis = axis.map(|a| batch.axis(a)).transpose()?;
                    let tokens = inputs[*input].u32s()?;
                    let here = part.rows(&program.values[program.inputs[*input].1].shape)?;
                    let tokens: Vec<u32> = here.into_iter().flat_map(|rows| tokens[rows].iter().copied()).collect();
                    let rows = sort_rows(&tokens, *table_rows, axis);
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

/// A tensor's bytes.
pub(super) fn bytes_of(tensor: &Tensor) -> Result<&[u8]> {
    Ok(match tensor.dtype() {
        DType::F32 => bytemuck::cast_slice(tensor.f32s()?),
        DType::U32 => bytemuck::cast_slice(tensor.u32s()?),
    })
}

/// The bytes of some rows of a tensor.
pub(super) fn take_rows(tensor: &Tensor, rows: &[Range<usize>]) -> Result<Vec<u8>> {
    let row = tensor.len() / tensor.shape().first().copied().unwrap_or(1).max(1);
    let bytes = bytes_of(tensor)?;
    Ok(rows.iter().flat_map(|r| bytes[4 * row * r.start..4 * row * r.end].iter().copied()).collect())
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
