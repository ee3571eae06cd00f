//! Softmax of each row.

use super::Real;
use super::array::Call;
use crate::error::Result;
use ndarray::Array2;

/// e^x over the row's sum of them.
pub(super) fn softmax<R: Real>(call: &Call<'_, R>) -> Result<Array2<R>> {
    let x = call.float(0)?;
    let mut y = Array2::zeros(x.dim());
    for row in call.rows(0)? {
        let largest =
            x.row(row.at).iter().copied().fold(R::neg_infinity(), |a, b| if a < b || b.is_nan() { b } else { a });
        let mut sum = R::zero();
        for j in 0..x.ncols() {
            y[[row.at, j]] = (x[[row.at, j]] - largest).exp();
            sum += y[[row.at, j]];
        }
        for j in 0..x.ncols() {
            y[[row.at, j]] /= sum;
        }
    }
    Ok(y)
}
