//! Products of the steps of two sequences: how well each of one fits each of the other, which is read only as attention.

use super::layout::{Atom, Axis, Kind, Lifted};
use super::lower::Lower;
use super::value::Val;
use crate::error::{Error, Result};
use crate::nn::{Attention, Columns, Formula, Function, Merge, MergeKind, Operand, Port};
use std::rc::Rc;

/// The most heads, each of which is a layer.
const HEADS: usize = 64;

/// How well each step of a sequence fits each of another, `[.., Tq, Tk]`.
#[derive(Debug, Clone)]
pub(super) struct Scores {
    query: Lifted,
    key: Lifted,
    /// A factor of all of them.
    by: f32,
    /// Whether a softmax has made weights of them.
    weights: bool,
    /// Features are in so many parts, each with scores of its own.
    heads: usize,
    pub dims: Vec<Axis>,
}

/// What is said of scores where they are used otherwise.
pub(super) fn misused() -> Error {
    Error::unsupported(
        "how well steps fit each other can only be scaled, made weights by a softmax over the last dimension, and multiplied with values",
    )
}

/// The parts that features are in by the dimensions before the last two, and those dimensions without how far the parts are
/// from each other; each part has `size` features.
fn parts(outer: &[Axis], x: &Lifted, size: usize) -> Option<(usize, Vec<Axis>)> {
    let mut heads = 1;
    let mut bare = outer.to_vec();
    for atom in bare.iter_mut().flatten() {
        match atom {
            Atom::Batch | Atom::Sorted(_) => {}
            Atom::Features { size: n, stride } if heads == 1 && *stride == size => (heads, *stride) = (*n, 1),
            _ => return None,
        }
    }
    (heads * size == x.features && heads <= HEADS).then_some((heads, bare))
}

/// The features of a part, where an axis runs over all of them in their order.
fn part(axis: &Axis) -> Option<usize> {
    match axis[..] {
        [] => Some(1),
        [Atom::Features { size, stride: 1 }] => Some(size),
        _ => None,
    }
}

/// The product of a `[.., Tq, D]` with b `[.., D, Tk]`, if it is one.
pub(super) fn product(a: &Lifted, b: &Lifted) -> Option<Val> {
    let ([outer_a @ .., m, k], [outer_b @ .., same, n]) = (&a.dims[..], &b.dims[..]) else { return None };
    let ([Atom::Steps(_)], [Atom::Steps(_)]) = (&m[..], &n[..]) else { return None };
    let (size, also) = (part(k)?, part(same)?);
    let ((heads, outer), others) = (parts(outer_a, a, size)?, parts(outer_b, b, also)?);
    if size != also || others != (heads, outer) {
        return None;
    }
    let dims = [outer_a, &[m.clone(), n.clone()]].concat();
    Some(Val::Scores(Rc::new(Scores { query: a.clone(), key: b.clone(), by: 1.0, weights: false, heads, dims })))
}

impl Scores {
    /// All of them times `factor`.
    pub fn scaled(&self, factor: f32) -> Result<Val> {
        if self.weights {
            return Err(misused());
        }
        Ok(Val::Scores(Rc::new(Self { by: self.by * factor, ..self.clone() })))
    }

    /// The same under other axes, of which the last two are still the steps of both.
    pub fn under(&self, dims: Vec<Axis>) -> Result<Val> {
        if !dims.ends_with(&self.dims[self.dims.len() - 2..]) {
            return Err(misused());
        }
        Ok(Val::Scores(Rc::new(Self { dims, ..self.clone() })))
    }

    /// A softmax along an axis.
    pub fn softmax(&self, axis: usize) -> Result<Val> {
        if self.weights || axis + 1 != self.dims.len() {
            return Err(misused());
        }
        Ok(Val::Scores(Rc::new(Self { weights: true, ..self.clone() })))
    }

    /// The mean of values `[.., Tk, V]` by these weights.
    pub fn of(&self, lower: &mut Lower<'_>, values: &Lifted) -> Result<Lifted> {
        let [outer @ .., steps, features] = &values.dims[..] else { return Err(misused()) };
        let size = part(features).ok_or_else(misused)?;
        let own = &self.dims[..self.dims.len() - 2];
        let width = self.query.features / self.heads;
        let fits = self.weights
            && *steps == self.dims[self.dims.len() - 1]
            && parts(outer, values, size) == parts(own, &self.query, width);
        if !fits {
            return Err(misused());
        }
        let query = match self.by {
            1.0 => self.query.clone(),
            by => {
                let operands = vec![Operand::Input(0), Operand::Number(by)];
                lower.over(Formula::new(Function::Multiply, operands), &self.query)?
            }
        };
        let mut made = Vec::new();
        for head in 0..self.heads {
            let mut piece = |port: Port, count: usize| -> Result<Port> {
                match self.heads {
                    1 => Ok(port),
                    _ => Ok(lower.add(Columns { first: head * count, count }, &[port])?[0]),
                }
            };
            let read = [piece(query.port, width)?, piece(values.port, size)?, piece(self.key.port, width)?];
            made.push(lower.add(Attention::dot(), &read)?[0]);
        }
        let port = if let [one] = made[..] { one } else { lower.add(Merge::new(MergeKind::Concatenate), &made)?[0] };
        let dims = [outer, &[self.dims[own.len()].clone(), features.clone()]].concat();
        lower.lift(port, Kind::Float, dims)
    }
}
