//! Rows taken from other places: windows over steps, sequences as single rows and back, other orders.

use super::Real;
use super::array::Call;
use crate::error::{Error, Result};
use crate::graph::Gather;
use crate::scheduler::Axis;
use ndarray::Array2;

/// y of `rows` logical rows and `columns` columns, on the time axis `to` where it has one.
pub(super) fn gather<R: Real>(
    call: &Call<'_, R>,
    gather: &Gather,
    (rows, columns): (usize, usize),
    to: Option<u8>,
) -> Result<Array2<R>> {
    let (x, batch) = (call.float(0)?, call.batch);
    let (sequences, features) = (batch.sequences(), x.ncols());
    let to = to.map(|a| batch.axis(a)).transpose()?;
    let from = call.shape(0)?.axis().map(|a| batch.axis(a)).transpose()?;
    let missing = || Error::internal("a gather without its time axis");
    let mut y = Array2::from_elem((rows, columns), R::from_double(f64::from(gather.fill())));
    // Logical rows are t·B + b, with b a place on the axis; the batch's row tells places on two axes together.
    let length = |axis: &Axis, row: usize| axis.length(axis.places()[row] as usize);
    let at = |axis: &Axis, row: usize, t: usize| t * sequences + axis.places()[row] as usize;
    for row in 0..sequences {
        match *gather {
            Gather::Windows { window, .. } => {
                let (from, to) = (from.ok_or_else(missing)?, to.ok_or_else(missing)?);
                for t in 0..length(to, row) {
                    for tap in 0..window.taps {
                        let Some(step) = window.step(length(from, row), t, tap) else { continue };
                        for j in 0..features {
                            y[[at(to, row, t), tap * features + j]] = x[[at(from, row, step), j]];
                        }
                    }
                }
            }
            Gather::Tap { window, tap, .. } => {
                let (from, to) = (from.ok_or_else(missing)?, to.ok_or_else(missing)?);
                for t in 0..length(from, row) {
                    let Some(step) = window.step(length(to, row), t, tap) else { continue };
                    for j in 0..features {
                        y[[at(to, row, step), j]] = x[[at(from, row, t), j]];
                    }
                }
            }
            Gather::EachStep { .. } => {
                let to = to.ok_or_else(missing)?;
                for t in 0..length(to, row) {
                    for j in 0..features {
                        y[[at(to, row, t), j]] = x[[row, j]];
                    }
                }
            }
            Gather::Along { .. } => {
                let (from, to) = (from.ok_or_else(missing)?, to.ok_or_else(missing)?);
                for t in 0..length(to, row).min(length(from, row)) {
                    for j in 0..features {
                        y[[at(to, row, t), j]] = x[[at(from, row, t), j]];
                    }
                }
            }
            Gather::Step { at: step } => {
                let from = from.ok_or_else(missing)?;
                if let Some(t) = Gather::step(step, length(from, row)) {
                    for j in 0..features {
                        y[[row, j]] = x[[at(from, row, t), j]];
                    }
                }
            }
            Gather::AtStep { at: step, .. } => {
                let to = to.ok_or_else(missing)?;
                if let Some(t) = Gather::step(step, length(to, row)) {
                    for j in 0..features {
                        y[[at(to, row, t), j]] = x[[row, j]];
                    }
                }
            }
            Gather::IntoOrder { axis } => {
                let place = batch.axis(axis)?.places()[row] as usize;
                y.row_mut(place).assign(&x.row(row));
            }
            Gather::OutOfOrder { axis } => {
                let place = batch.axis(axis)?.places()[row] as usize;
                y.row_mut(row).assign(&x.row(place));
            }
            Gather::Flatten { .. } => {
                let from = from.ok_or_else(missing)?;
                for t in 0..length(from, row) {
                    for j in 0..features {
                        y[[row, t * features + j]] = x[[at(from, row, t), j]];
                    }
                }
            }
            Gather::Unflatten { .. } => {
                let to = to.ok_or_else(missing)?;
                for t in 0..length(to, row) {
                    for j in 0..columns {
                        y[[at(to, row, t), j]] = x[[row, t * columns + j]];
                    }
                }
            }
            Gather::Transpose { .. } => {
                let (from, to) = (from.ok_or_else(missing)?, to.ok_or_else(missing)?);
                for t in 0..length(from, row) {
                    for j in 0..length(to, row).min(features) {
                        y[[at(to, row, j), t]] = x[[at(from, row, t), j]];
                    }
                }
            }
        }
    }
    Ok(y)
}
