//! The same values under another shape: here simply a copy.

use super::Real;
use super::array::{Array, Call, Rows, columns};
use crate::error::{Error, Result};
use ndarray::Array2;

/// x under the output's shape.
pub(super) fn view<R: Real>(call: &Call<'_, R>) -> Result<Array<R>> {
    let output = call.step.outputs.iter().flatten().next().ok_or_else(|| Error::internal("nobody reads an output"))?;
    let shape = &call.program.values[*output].shape;
    let dim = (Rows::of(shape, call.batch)?.count, columns(shape, call.batch)?);
    Ok(match call.any(0)? {
        Array::Float(x) => Array::Float(reshaped(x, dim)?),
        Array::Index(x) => Array::Index(reshaped(x, dim)?),
    })
}

fn reshaped<V: Copy>(x: &Array2<V>, dim: (usize, usize)) -> Result<Array2<V>> {
    Array2::from_shape_vec(dim, x.iter().copied().collect())
        .map_err(|e| Error::internal(format!("{:?} values seen as {dim:?}: {e}", x.dim())))
}
