//! Where a gather takes each of its units from, in one batch.

use super::{Axis, Batch};
use crate::error::{Error, Result};
use crate::graph::{Gather, Shape};

/// The source of a unit that comes from nowhere.
pub const NOWHERE: u32 = u32::MAX;

/// For each unit of the output y, in order, the unit of x that it is, or [`NOWHERE`]. A unit is [`Gather::unit`] values.
pub fn sources(gather: &Gather, x: &Shape, y: &Shape, batch: &Batch) -> Result<Vec<u32>> {
    let axis = |shape: &Shape| -> Result<&Axis> {
        batch.axis(shape.axis().ok_or_else(|| Error::internal("a gather without its time axis"))?)
    };
    let columns = |shape: &Shape| shape.columns().ok_or_else(|| Error::internal("a gather of unknown columns"));
    let mut all = Vec::new();
    let word = |unit: Option<usize>| unit.map_or(NOWHERE, |u| u as u32);
    match *gather {
        Gather::Windows { window, .. } => {
            let (from, to) = (axis(x)?, axis(y)?);
            let lengths = checked(batch, from, to, |length| window.steps(length))?;
            for_rows(to, |row, t| {
                let (b, length) = (from.places()[row] as usize, lengths[row]);
                let step = |tap| window.step(length, t, tap).map(|s| from.offset(s) + b);
                all.extend((0..window.taps).map(|tap| word(step(tap))));
            });
        }
        Gather::Tap { window, tap, .. } => {
            let (from, to) = (axis(x)?, axis(y)?);
            let lengths: Vec<usize> = (0..batch.sequences()).map(|row| to.length(to.places()[row] as usize)).collect();
            for_rows(to, |row, t| {
                let at = window.window(lengths[row], t, tap);
                all.push(word(at.map(|at| from.offset(at) + from.places()[row] as usize)));
            });
        }
        Gather::EachStep { .. } => for_rows(axis(y)?, |row, _| all.push(row as u32)),
        Gather::Along { .. } => {
            let (from, to) = (axis(x)?, axis(y)?);
            for_rows(to, |row, t| {
                let b = from.places()[row] as usize;
                all.push(word((t < from.length(b)).then(|| from.offset(t) + b)));
            });
        }
        Gather::Step { at } => {
            let from = axis(x)?;
            all.extend(
                from.places()
                    .iter()
                    .map(|&b| word(Gather::step(at, from.length(b as usize)).map(|t| from.offset(t) + b as usize))),
            );
        }
        Gather::AtStep { at, .. } => {
            let to = axis(y)?;
            for_rows(to, |row, t| {
                let here = Gather::step(at, to.length(to.places()[row] as usize)) == Some(t);
                all.push(word(here.then_some(row)));
            });
        }
        Gather::IntoOrder { axis } => all.extend(batch.axis(axis)?.order()),
        Gather::OutOfOrder { axis } => all.extend(batch.axis(axis)?.places()),
        Gather::Flatten { steps } => {
            let from = axis(x)?;
            fits(from, steps)?;
            for &b in from.places() {
                all.extend((0..steps).map(|t| {
                    let reached = (b as usize) < from.rows_at(t);
                    word(reached.then(|| from.offset(t) + b as usize))
                }));
            }
        }
        Gather::Unflatten { steps, .. } => {
            let to = axis(y)?;
            fits(to, steps)?;
            for_rows(to, |row, t| all.push((row * steps + t) as u32));
        }
        Gather::Transpose { steps, .. } => {
            let (from, to, features) = (axis(x)?, axis(y)?, columns(x)?);
            fits(from, steps)?;
            fits(to, features)?;
            for_rows(to, |row, feature| {
                let b = from.places()[row] as usize;
                all.extend((0..steps).map(|t| {
                    let reached = b < from.rows_at(t);
                    word(reached.then(|| (from.offset(t) + b) * features + feature))
                }));
            });
        }
    }
    Ok(all)
}

/// Calls `visit` with the batch's row and the step of each packed row.
fn for_rows(axis: &Axis, mut visit: impl FnMut(usize, usize)) {
    for t in 0..axis.steps() {
        axis.order()[..axis.rows_at(t)].iter().for_each(|&row| visit(row as usize, t));
    }
}

/// The lengths of the batch's rows on `from`, of which those on `to` must follow.
fn checked(batch: &Batch, from: &Axis, to: &Axis, steps: impl Fn(usize) -> usize) -> Result<Vec<usize>> {
    let length = |axis: &Axis, row: usize| axis.length(axis.places()[row] as usize);
    let lengths: Vec<usize> = (0..batch.sequences()).map(|row| length(from, row)).collect();
    for (row, &own) in lengths.iter().enumerate() {
        if length(to, row) != steps(own) {
            return Err(Error::shape(format!(
                "gather: {} windows over a sequence of {own} steps, the batch has {}",
                steps(own),
                length(to, row)
            )));
        }
    }
    Ok(lengths)
}

fn fits(axis: &Axis, steps: usize) -> Result<()> {
    match axis.steps() > steps {
        true => Err(Error::shape(format!("gather: expected sequences of at most {steps} steps, got {}", axis.steps()))),
        false => Ok(()),
    }
}
