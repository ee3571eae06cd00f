//! Sums: of everything, over rows, over columns.

use super::call::Call;
use super::math;
use super::rows::over_rows;
use super::simd::dispatch;
use super::threads;
use crate::error::Result;
use crate::graph::{Over, ReduceKind};
use crate::scheduler::strategy::REDUCE_BLOCK;
use std::ops::Range;

/// Rows that are added up before they are added to the rest of a sum over rows.
const SUM_ROWS: usize = 128;
/// Blocks of a sum of everything that are worth a task.
const BLOCKS_A_TASK: usize = 16;

/// The sum of a block by `kind`, in float64.
fn block_sum(kind: ReduceKind, values: &[f32]) -> f64 {
    dispatch(
        #[inline(always)]
        || match kind {
            ReduceKind::Sum => math::sum(values, |x| x),
            ReduceKind::SumOfSquares => math::sum(values, |x| x * x),
        },
    )
}

/// `out` as a sum begins: as it is where it goes on, else zeros.
pub(super) fn begin(out: &mut [f32], continues: bool) -> &mut [f32] {
    if !continues {
        out.fill(0.0);
    }
    out
}

/// A sum over everything `[1]`, over rows `[F]`, or over columns `[R, 1]`.
pub(super) fn reduce(call: &mut Call<'_>, kind: ReduceKind, over: Over) -> Result<()> {
    match over {
        Over::All => {
            let continues = call.continues;
            let out = call.output(0)?;
            let mut total = if continues { f64::from(out[0]) } else { 0.0 };
            for at in 0..call.inputs.len() {
                let values = call.input(at)?;
                let mut partial = vec![0.0; values.len().div_ceil(REDUCE_BLOCK)];
                let tasks = partial.chunks_mut(BLOCKS_A_TASK).zip(values.chunks(BLOCKS_A_TASK * REDUCE_BLOCK));
                threads::each(tasks, |(sums, values)| {
                    for (sum, block) in sums.iter_mut().zip(values.chunks(REDUCE_BLOCK)) {
                        *sum = block_sum(kind, block);
                    }
                });
                total += partial.iter().sum::<f64>();
            }
            out[0] = total as f32;
        }
        Over::Columns => {
            let (x, columns) = (call.input(0)?, call.operand(0)?.columns());
            over_rows(call.output(0)?, 1, columns, |first, out| {
                for (r, to) in out.iter_mut().enumerate() {
                    *to = block_sum(kind, &x[(first + r) * columns..][..columns]) as f32;
                }
            });
        }
        Over::Rows => {
            let (x, chunks) = (call.input(0)?, call.chunks(0)?);
            let (stride, out) = (call.operand(0)?.columns(), call.output(0)?);
            sum_rows(kind, x, stride, &chunks, begin(out, call.continues));
        }
    }
    Ok(())
}

/// The sum of rows of x, `stride` values apart, added to `out`, as many values as it holds: blocks of at most [`SUM_ROWS`] rows, in the order of `chunks`.
/// Threads own columns.
pub(super) fn sum_rows(kind: ReduceKind, x: &[f32], stride: usize, chunks: &[Range<usize>], out: &mut [f32]) {
    let rows: usize = chunks.iter().map(Range::len).sum();
    over_rows(out, 1, rows, |first, out| {
        let mut part = vec![0.0; out.len()];
        dispatch(
            #[inline(always)]
            || {
                for chunk in chunks {
                    for begin in chunk.clone().step_by(SUM_ROWS) {
                        part.fill(0.0);
                        for row in begin..chunk.end.min(begin + SUM_ROWS) {
                            let from = &x[row * stride + first..][..part.len()];
                            match kind {
                                ReduceKind::Sum => part.iter_mut().zip(from).for_each(|(a, x)| *a += x),
                                ReduceKind::SumOfSquares => part.iter_mut().zip(from).for_each(|(a, x)| *a += x * x),
                            }
                        }
                        out.iter_mut().zip(&part).for_each(|(a, x)| *a += x);
                    }
                }
            },
        );
    });
}
