//! What is taken of a sequence's steps.

use super::Real;
use super::array::Call;
use crate::error::{Error, Result};
use crate::graph::TimeKind;
use ndarray::Array2;

/// The sum or the largest value over the steps of each sequence, zero for no step.
pub(super) fn over_time<R: Real>(call: &Call<'_, R>, kind: TimeKind) -> Result<Array2<R>> {
    let x = call.float(0)?;
    let number = call.shape(0)?.axis().ok_or_else(|| Error::internal("x has no time axis"))?;
    let (axis, sequences) = (call.batch.axis(number)?, call.batch.sequences());
    Ok(Array2::from_shape_fn((sequences, x.ncols()), |(row, j)| {
        let b = axis.places()[row] as usize;
        let steps = (0..axis.length(b)).map(|t| x[[t * sequences + b, j]]);
        match kind {
            TimeKind::Sum => steps.fold(R::zero(), |a, x| a + x),
            TimeKind::Max => steps.reduce(|a, x| if x > a { x } else { a }).unwrap_or(R::zero()),
        }
    }))
}
