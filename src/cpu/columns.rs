//! Columns taken, put side by side, or padded by zeros.

use super::call::Call;
use super::rows::over_rows;
use crate::error::{Error, Result};

/// The number of columns of each row of the output, from its size and that of an input.
fn width(call: &Call<'_>) -> Result<usize> {
    let rows = call.operand(0)?.rows();
    let output = call.outputs.first().and_then(Option::as_ref);
    let output = output.ok_or_else(|| Error::internal("nobody wants the output"))?;
    Ok(output.len().checked_div(rows).unwrap_or(0))
}

/// All inputs `[R, F]` side by side.
pub(super) fn concat(call: &mut Call<'_>) -> Result<()> {
    let width = width(call)?;
    let inputs = (0..call.inputs.len()).map(|at| Ok((call.input(at)?, call.operand(at)?.columns())));
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    over_rows(call.output(0)?, width, width, |first, out| {
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            let mut at = 0;
            for &(x, columns) in &inputs {
                out[at..at + columns].copy_from_slice(&x[(first + r) * columns..][..columns]);
                at += columns;
            }
        }
    });
    Ok(())
}

/// As many columns of x from `begin` on as the output has.
pub(super) fn slice(call: &mut Call<'_>, begin: usize) -> Result<()> {
    let (width, x, columns) = (width(call)?, call.input(0)?, call.operand(0)?.columns());
    over_rows(call.output(0)?, width, width, |first, out| {
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            out.copy_from_slice(&x[(first + r) * columns + begin..][..width]);
        }
    });
    Ok(())
}

/// x with columns of zeros before and after.
pub(super) fn pad(call: &mut Call<'_>, before: usize) -> Result<()> {
    let (width, x, columns) = (width(call)?, call.input(0)?, call.operand(0)?.columns());
    over_rows(call.output(0)?, width, width, |first, out| {
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            out.fill(0.0);
            out[before..before + columns].copy_from_slice(&x[(first + r) * columns..][..columns]);
        }
    });
    Ok(())
}
