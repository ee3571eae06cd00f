//! Matrix products: x Wᵀ + b, a b, and aᵀ b for weights.

use super::Real;
use super::array::Call;
use crate::error::Result;
use ndarray::Array2;

/// y `[R, O]` = x Wᵀ + b, from x `[R, I]`, W `[O, I]` and b `[O]` (optional).
pub(super) fn linear<R: Real>(call: &Call<'_, R>) -> Result<Array2<R>> {
    let (x, weight, bias) = (call.float(0)?, call.float(1)?, call.maybe(2)?);
    let mut y = Array2::zeros((x.nrows(), weight.nrows()));
    for row in call.rows(0)? {
        for o in 0..weight.nrows() {
            let mut sum = bias.map_or(R::zero(), |b| b[[o, 0]]);
            for i in 0..x.ncols() {
                sum += x[[row.at, i]] * weight[[o, i]];
            }
            y[[row.at, o]] = sum;
        }
    }
    Ok(y)
}

/// c `[R, C]` = a b, from a `[R, K]` and b `[K, C]`.
pub(super) fn matmul<R: Real>(call: &Call<'_, R>) -> Result<Array2<R>> {
    let (a, b) = (call.float(0)?, call.float(1)?);
    let mut c = Array2::zeros((a.nrows(), b.ncols()));
    for row in call.rows(0)? {
        for column in 0..b.ncols() {
            for k in 0..a.ncols() {
                c[[row.at, column]] += a[[row.at, k]] * b[[k, column]];
            }
        }
    }
    Ok(c)
}

/// `[O, I]` = aᵀ b, summed over the rows of a `[R, O]` and b `[R, I]`.
pub(super) fn weight_gradient<R: Real>(call: &Call<'_, R>) -> Result<Array2<R>> {
    let (a, b) = (call.float(0)?, call.float(1)?);
    let mut gradient = Array2::zeros((a.ncols(), b.ncols()));
    for row in call.rows(0)? {
        for o in 0..a.ncols() {
            for i in 0..b.ncols() {
                gradient[[o, i]] += a[[row.at, o]] * b[[row.at, i]];
            }
        }
    }
    Ok(gradient)
}
