//! Rows of a table by number, and the table's gradient.

use super::Real;
use super::array::Call;
use crate::error::{Error, Result};
use ndarray::Array2;

fn within(token: u32, rows: usize) -> Result<usize> {
    let at = token as usize;
    if at < rows { Ok(at) } else { Err(Error::data(format!("token {token} is not below {rows}, the table's rows"))) }
}

/// y `[R, D]`, the rows of the table `[V, D]` that tokens `[R]` name.
pub(super) fn embedding<R: Real>(call: &Call<'_, R>) -> Result<Array2<R>> {
    let (table, tokens) = (call.float(0)?, call.index(1)?);
    let mut y = Array2::zeros((tokens.nrows(), table.ncols()));
    // A table over a time axis is held as [T, B, D], but tokens count its packed rows.
    let from = call.rows(0)?;
    for row in call.rows(1)? {
        let token = within(tokens[[row.at, 0]], from.len())?;
        for c in 0..table.ncols() {
            y[[row.at, c]] = table[[from[token].at, c]];
        }
    }
    Ok(y)
}

/// The table `[V, D]` with the rows that rows `[R]` name replaced by those of x `[R, D]`.
pub(super) fn scatter<R: Real>(call: &Call<'_, R>) -> Result<Array2<R>> {
    let (table, rows, x) = (call.float(0)?, call.index(1)?, call.float(2)?);
    let mut y = table.clone();
    let to = call.rows(0)?;
    for row in call.rows(1)? {
        let at = to[within(rows[[row.at, 0]], to.len())?].at;
        for c in 0..table.ncols() {
            y[[at, c]] = x[[row.at, c]];
        }
    }
    Ok(y)
}

/// dtable `[V, D]`, where each row is the sum of the rows of dy `[R, D]` whose token names it.
pub(super) fn embedding_backward<R: Real>(call: &Call<'_, R>, rows: usize) -> Result<Array2<R>> {
    let (tokens, dy) = (call.index(0)?, call.float(1)?);
    let mut dtable = Array2::zeros((rows, dy.ncols()));
    for row in call.rows(0)? {
        let token = within(tokens[[row.at, 0]], rows)?;
        for c in 0..dy.ncols() {
            dtable[[token, c]] += dy[[row.at, c]];
        }
    }
    Ok(dtable)
}
