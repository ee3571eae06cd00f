//! The column of each row's largest value.

use super::Real;
use super::array::Call;
use crate::error::Result;
use ndarray::Array2;

/// `[R]` from x `[R, C]`: the first of equals.
pub(super) fn argmax<R: Real>(call: &Call<'_, R>) -> Result<Array2<u32>> {
    let x = call.float(0)?;
    let mut best = Array2::zeros((x.nrows(), 1));
    for row in call.rows(0)? {
        let mut at = 0;
        for c in 1..x.ncols() {
            if x[[row.at, c]] > x[[row.at, at]] {
                at = c;
            }
        }
        best[[row.at, 0]] = at as u32;
    }
    Ok(best)
}
