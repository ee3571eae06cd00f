//! What is taken of a sequence's steps.

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
            let b = axis.places()[first + r] as usize;
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
