//! Columns taken, put side by side, or padded by zeros.

use super::Real;
use super::array::Call;
use crate::error::Result;
use ndarray::Array2;

/// All inputs `[R, F]` side by side.
pub(super) fn concat<R: Real>(call: &Call<'_, R>) -> Result<Array2<R>> {
    let inputs = (0..call.step.inputs.len()).map(|at| call.float(at)).collect::<Result<Vec<_>>>()?;
    let total = inputs.iter().map(|x| x.ncols()).sum();
    let mut y = Array2::zeros((inputs[0].nrows(), total));
    let mut first = 0;
    for x in inputs {
        for ((row, column), &value) in x.indexed_iter() {
            y[[row, first + column]] = value;
        }
        first += x.ncols();
    }
    Ok(y)
}

/// Columns `first..first + count` of x.
pub(super) fn slice<R: Real>(call: &Call<'_, R>, first: usize, count: usize) -> Result<Array2<R>> {
    let x = call.float(0)?;
    Ok(Array2::from_shape_fn((x.nrows(), count), |(row, column)| x[[row, first + column]]))
}

/// x with columns of zeros around it.
pub(super) fn pad<R: Real>(call: &Call<'_, R>, before: usize, after: usize) -> Result<Array2<R>> {
    let x = call.float(0)?;
    let mut y = Array2::zeros((x.nrows(), before + x.ncols() + after));
    for ((row, column), &value) in x.indexed_iter() {
        y[[row, before + column]] = value;
    }
    Ok(y)
}
