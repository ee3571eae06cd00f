//! Values that are there more than once along an axis.

use super::arithmetic::with_features_of;
use super::host::{Data, Host};
use super::int::Int;
use super::layout::{Atom, Axis, Kind, Lifted};
use super::lower::{Lower, Outputs, one};
use super::moves::involved;
use super::node::Node;
use super::numbers;
use super::value::Val;
use crate::error::{Error, Result};
use crate::nn::RepeatVector;
use std::rc::Rc;

/// The most values that are spread out where only their sizes may matter.
const SPREAD: i64 = 1 << 12;

/// What is spread, in full where it is small enough.
pub(super) fn settled(lower: &Lower<'_>, value: Val) -> Result<Val> {
    let Val::Spread { base, dims } = &value else { return Ok(value) };
    let known = dims.iter().map(Int::known).collect::<Option<Vec<i64>>>();
    let len = known.as_ref().and_then(|n| n.iter().try_fold(1i64, |len, &n| len.checked_mul(n)));
    match (known, len) {
        (Some(shape), Some(len)) if len <= SPREAD && shape.iter().all(|&n| n >= 0) => {
            let shape: Vec<usize> = shape.into_iter().map(|n| n as usize).collect();
            Ok(base.expand(&lower.budget, &shape)?.into())
        }
        _ => Ok(value),
    }
}

/// A value spread over `target`, and `target` over it.
pub(super) fn expand(lower: &mut Lower<'_>, x: &Val, target: Vec<Int>) -> Result<Val> {
    let own = x.dims(&lower.sizes)?;
    let rank = own.len().max(target.len());
    let wide = |sizes: &[Int], at: usize| (at + sizes.len()).checked_sub(rank).map_or(Int::ONE, |at| sizes[at].clone());
    let mut dims = Vec::with_capacity(rank);
    for at in 0..rank {
        let (a, b) = (wide(&own, at), wide(&target, at));
        if b.known().is_some_and(|n| n < 0) {
            return Err(Error::data(format!("a size of {b}")));
        }
        dims.push(match (&a, &b) {
            (a, b) if a == b => a.clone(),
            (Int::Known(1), _) => b,
            (_, Int::Known(1)) => a,
            _ => return Err(Error::unsupported(format!("a dimension of {a} spread over {b}"))),
        });
    }
    let before = rank - own.len();
    match x {
        Val::Host(_) | Val::Spread { .. } => {
            let (Val::Host(base) | Val::Spread { base, .. }) = x else { return Err(Error::internal("no constant")) };
            let shape = (0..rank).map(|at| at.checked_sub(before).map_or(1, |at| base.shape[at])).collect();
            settled(lower, Val::Spread { base: Rc::new(base.reshape(shape)?), dims })
        }
        Val::Numbers(numbers) => Ok(Val::Numbers(Rc::new(numbers.expanded(dims)?))),
        Val::Lifted(lengths) if lengths.kind == Kind::Lengths => numbers::expanded(lower, x, dims),
        _ => {
            let mut value = lower.lifted(x)?;
            let mut axes = vec![Axis::new(); before];
            axes.append(&mut value.dims);
            value.dims = axes;
            for (at, size) in dims.iter().enumerate() {
                let old = at.checked_sub(before).map_or(Int::ONE, |at| own[at].clone());
                if old != *size {
                    value = repeated(lower, &value, at, size)?;
                }
            }
            Ok(value.into())
        }
    }
}

/// A value along a dimension of size 1, as often as `count` says.
fn repeated(lower: &mut Lower<'_>, x: &Lifted, at: usize, count: &Int) -> Result<Lifted> {
    let rows = lower.rows(x)?;
    let mut dims = rows.dims.clone();
    if let (Some(count), true) = (count.known(), rows.features == 1 && at > 0 && at + 1 == dims.len()) {
        let count = usize::try_from(count).map_err(|_| involved())?;
        lower.budget.spend(count)?;
        let one = Host::new(vec![count], Data::Float(vec![1.0; count]))?;
        return with_features_of(lower, &rows, &one, dims.len());
    }
    let steps: Vec<u8> =
        lower.sizes.steps.keys().copied().chain(lower.network.input_axes()?.into_iter().flatten()).collect();
    let axis = steps.into_iter().find(|&axis| lower.sizes.atom(Atom::Steps(axis)) == *count);
    if rows.axis.is_none() && !dims.iter().flatten().any(|a| matches!(a, Atom::Steps(_))) {
        if let Some(axis) = axis {
            let like = lower.port_on(axis)?;
            dims[at] = vec![Atom::Steps(axis)];
            return Ok(lower.along(&rows, like)?.with_dims(dims));
        }
        if let Some(count) = count.known().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0) {
            let repeated = lower.over(RepeatVector { count }, &rows)?;
            let axis = repeated.axis.ok_or_else(|| Error::internal("a sequence without steps"))?;
            dims[at] = vec![Atom::Steps(axis)];
            return Ok(repeated.with_dims(dims));
        }
    }
    Err(Error::unsupported(format!("values that are there {count} times over")))
}

pub(super) fn tile(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let (x, times) = (node.input(0)?, node.input(1)?.host()?.whole()?.to_vec());
    let sizes = x.dims(&lower.sizes)?;
    if times.len() != sizes.len() {
        return Err(Error::data(format!("{} numbers of times for {} dimensions", times.len(), sizes.len())));
    }
    if let Val::Host(h) = x {
        let mut value = Rc::clone(h);
        for (axis, n) in times.iter().enumerate() {
            let n = n.known().and_then(|n| usize::try_from(n).ok()).ok_or_else(involved)?;
            let size = value.shape[axis];
            lower.budget.spend(n.saturating_mul(size))?;
            let places: Vec<usize> = (0..n).flat_map(|_| 0..size).collect();
            value = Rc::new(value.take(&lower.budget, axis, &places, &[places.len()])?);
        }
        return one(Val::Host(value));
    }
    if let Some(at) = (0..times.len()).find(|&at| times[at] != Int::ONE && sizes[at] != Int::ONE) {
        return Err(Error::unsupported(format!("a dimension of {} that is there {} times over", sizes[at], times[at])));
    }
    let target = sizes.iter().zip(times).map(|(size, n)| if n == Int::ONE { size.clone() } else { n }).collect();
    expand(lower, x, target).and_then(one)
}
