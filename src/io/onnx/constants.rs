//! Constants that a network has to compute: the same row for each sequence, and rows that differ from step to step.

use super::host::{Data, Host, strides};
use super::layout::{Atom, Axis, Kind, Lifted};
use super::lower::Lower;
use super::value::Val;
use crate::error::{Error, Result};
use crate::nn::{Columns, Dense, Embedding, Formula, Function, Operand, Port, Reshape, Signal, Step};
use crate::params::Tensor;
use std::rc::Rc;

/// Rows with the same values for each sequence that `like` has: biases over a column of zeros.
pub(super) fn rows(lower: &mut Lower<'_>, like: Port, rows: &[&[f32]]) -> Result<Vec<Port>> {
    let first = match lower.network.signal(like)? {
        Signal::Sequence { .. } => lower.add(Step { at: 0 }, &[like])?[0],
        _ => like,
    };
    let column = lower.add(Columns { first: 0, count: 1 }, &[first])?[0];
    // Nothing is less than itself, not even what is not finite.
    let zero = Formula::new(Function::Less, vec![Operand::Input(0), Operand::Input(0)]);
    let zeros = lower.add(zero, &[column])?[0];
    let mut ports = Vec::new();
    for values in rows {
        ports.push(lower.add(Dense::new(values.len()), &[zeros])?[0]);
        lower.parameter("weight", Tensor::zeros(&[values.len(), 1]), "");
        lower.parameter("bias", Tensor::new(&[values.len()], values.to_vec())?, "");
    }
    Ok(ports)
}

/// A constant among operands that are under `dims` together: without axes of sequences or steps along which it does not
/// change, and computed where it differs from step to step.
pub(super) fn along_steps(lower: &mut Lower<'_>, host: &Rc<Host>, dims: &[Axis], like: &Lifted) -> Result<Val> {
    let before = dims.len() - host.shape.len();
    let (mut host, mut steps) = (Rc::clone(host), None);
    for at in 0..host.shape.len() {
        let (dim, size) = (&dims[before + at], host.shape[at]);
        let rows = matches!(dim[..], [Atom::Batch | Atom::Steps(_)]);
        if size < 2 || !rows || lower.sizes.axis(dim)?.known() != Some(size as i64) {
            continue;
        }
        let stride = strides(&host.shape)[at];
        let values = host.as_floats()?;
        let same = (0..values.len()).all(|n| values[n].to_bits() == values[n - n / stride % size * stride].to_bits());
        match dim[..] {
            _ if same => host = Rc::new(host.slice(&lower.budget, at, (0, 1, 1))?),
            [Atom::Steps(axis)] => steps = Some((at, axis)),
            _ => {}
        }
    }
    let Some((at, axis)) = steps else { return Ok(Val::Host(host)) };
    let count = host.shape[at];
    let order: Vec<usize> = std::iter::once(at).chain((0..host.shape.len()).filter(|&n| n != at)).collect();
    let turned = host.transpose(&lower.budget, &order)?;
    let features = turned.data.len() / count;
    let row = rows(lower, like.port, &[&turned.as_floats()?])?[0];
    let port = lower.add(Reshape::new(&[Some(count), Some(features)]), &[row])?[0];
    let mut stride = features;
    let mut own = vec![Axis::new(); before];
    for (n, &size) in host.shape.iter().enumerate() {
        own.push(match size {
            _ if n == at => vec![Atom::Steps(axis)],
            1 => Axis::new(),
            size => {
                stride /= size;
                vec![Atom::Features { size, stride }]
            }
        });
    }
    let made = lower.lift(port, Kind::Float, own.clone())?;
    if made.axis == Some(axis) {
        return Ok(made.into());
    }
    let like = lower.port_on(axis)?;
    Ok(lower.along(&made, like)?.with_dims(own).into())
}

/// Whether tokens are each of several numbers, along a last dimension of their own.
pub(super) fn compared(lower: &mut Lower<'_>, op: &str, operands: &[&Val]) -> Result<Option<Val>> {
    let ("Equal", [a, b]) = (op, operands) else { return Ok(None) };
    let ((Val::Lifted(tokens), Val::Host(host)) | (Val::Host(host), Val::Lifted(tokens))) = (*a, *b) else {
        return Ok(None);
    };
    let open = tokens.dims.last().is_some_and(Vec::is_empty) && host.shape.len() <= tokens.dims.len();
    let count = host.shape.last().copied().unwrap_or(1);
    if tokens.kind != Kind::Tokens || !open || count < 2 || count != host.data.len() {
        return Ok(None);
    }
    equal(lower, tokens, &host.numbers()?).map(Some)
}

/// Whether tokens are each of `numbers`, along their last dimension.
fn equal(lower: &mut Lower<'_>, tokens: &Lifted, numbers: &[i64]) -> Result<Val> {
    // A token beyond the largest of them is none.
    let rows = numbers.iter().filter_map(|&n| usize::try_from(n).ok()).max().map_or(1, |n| n.saturating_add(1));
    let len = rows.checked_mul(numbers.len()).ok_or_else(|| Error::shape(format!("{rows} tokens")))?;
    lower.budget.spend(len)?;
    let values = (0..rows as i64).flat_map(|row| numbers.iter().map(move |&n| f32::from(u8::from(n == row))));
    let values = Tensor::new(&[rows, numbers.len()], values.collect())?;
    let port = lower.add(Embedding::new(rows, numbers.len()), &[tokens.port])?[0];
    lower.parameter("weight", values, "");
    let mut dims = tokens.dims.clone();
    if let Some(last) = dims.last_mut() {
        *last = vec![Atom::Features { size: numbers.len(), stride: 1 }];
    }
    Ok(lower.lift(port, Kind::Bool, dims)?.into())
}

/// Rows of zeros but for one: what each of `depth` tokens gives, `[depth, depth]`.
pub(super) fn one_hot(lower: &Lower<'_>, depth: usize, [off, on]: [f32; 2]) -> Result<Host> {
    let len = depth.checked_mul(depth).ok_or_else(|| Error::shape(format!("{depth} tokens")))?;
    lower.budget.spend(len)?;
    let value = |at: usize| if at / depth == at % depth { on } else { off };
    Host::new(vec![depth, depth], Data::Float((0..len).map(value).collect()))
}
