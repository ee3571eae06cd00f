//! Sums over everything, over rows, or over columns.

use super::Real;
use super::array::Call;
use crate::error::Result;
use crate::graph::{Over, ReduceKind};
use ndarray::Array2;

/// Σ x or Σ x² over all inputs together `[1]`, over the rows of one `[F]`, or over its columns `[R, 1]`.
pub(super) fn reduce<R: Real>(call: &Call<'_, R>, kind: ReduceKind, over: Over) -> Result<Array2<R>> {
    let first = call.float(0)?;
    let mut sum = Array2::zeros(match over {
        Over::All => (1, 1),
        Over::Rows => (first.ncols(), 1),
        Over::Columns => (first.nrows(), 1),
    });
    for at in 0..call.step.inputs.len() {
        let x = call.float(at)?;
        for row in call.rows(at)? {
            for c in 0..x.ncols() {
                let to = match over {
                    Over::All => 0,
                    Over::Rows => c,
                    Over::Columns => row.at,
                };
                let x = x[[row.at, c]];
                sum[[to, 0]] += match kind {
                    ReduceKind::Sum => x,
                    ReduceKind::SumOfSquares => x * x,
                };
            }
        }
    }
    Ok(sum)
}
