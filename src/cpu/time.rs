//! What is taken of a sequence's steps, and what is given to each.

use super::call::Call;
use super::rows::over_rows;
use crate::error::Result;
use crate::graph::TimeKind;

/// The sum or the largest value over the steps of each sequence, zero for no step. Threads own sequences.
pub(super) fn over_time(call: &mut Call<'_>, kind: TimeKind) -> Result<()> {
    let (x, width) = (call.input(0)?, call.operand(0)?.columns());
    let axis = call.batch.axis(call.operand(0)?.axis.unwrap_or(0))?;
    over_rows(call.output(0)?, width, width * axis.steps(), |first, out| {
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            let b = first + r;
            out.fill(if kind == TimeKind::Max && axis.length(b) > 0 { f32::NEG_INFINITY } else { 0.0 });
            for t in 0..axis.length(b) {
                let row = &x[(axis.offset(t) + b) * width..][..width];
                match kind {
                    TimeKind::Sum => out.iter_mut().zip(row).for_each(|(a, &x)| *a += x),
                    TimeKind::Max => out.iter_mut().zip(row).for_each(|(a, &x)| *a = if x > *a { x } else { *a }),
                }
            }
        }
    });
    Ok(())
}

/// The row of each sequence at each of its steps.
pub(super) fn each_step(call: &mut Call<'_>, axis: u8) -> Result<()> {
    let (x, width, axis) = (call.input(0)?, call.operand(0)?.columns(), call.batch.axis(axis)?);
    over_rows(call.output(0)?, width, width, |first, out| {
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            let row = first + r;
            let t = axis.offsets().partition_point(|&start| start as usize <= row) - 1;
            out.copy_from_slice(&x[(row - axis.offset(t)) * width..][..width]);
        }
    });
    Ok(())
}
