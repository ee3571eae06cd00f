//! Sequences in the order of their lengths, as PyTorch packs those that come in any.

use super::host::axis_of;
use super::int::Int;
use super::layout::{Atom, Kind, Lifted};
use super::lower::{Lower, Outputs, one};
use super::node::Node;
use super::numbers::Numbers;
use super::value::Val;
use crate::error::{Error, Result};
use crate::nn::Port;

/// The order of sequences by the lengths of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Order {
    input: u8,
    /// Where each sequence is in it, rather than which comes next.
    inverse: bool,
}

impl Order {
    /// The axis of sequences in this order.
    fn sorted(self) -> Atom {
        Atom::Sorted(self.input)
    }

    /// Sequences along an axis in this order, or from it into their own.
    pub fn taken(self, lower: &Lower<'_>, x: &Lifted, axis: usize) -> Result<Val> {
        let (from, to) = (Atom::Batch, self.sorted());
        let (from, to) = if self.inverse { (to, from) } else { (from, to) };
        // One sequence is in any order.
        if x.dims[axis] != lower.sizes.as_axis(from) {
            return Err(Error::unsupported("an order of sequences along what is in another"));
        }
        let mut dims = x.dims.clone();
        dims[axis] = lower.sizes.as_axis(to);
        Ok(x.with_dims(dims).into())
    }
}

/// Sequences by their lengths, the longest first.
pub(super) fn top_k(lower: &Lower<'_>, node: &Node<'_>) -> Outputs {
    let refused = || Error::unsupported("other than all lengths of sequences, the largest first");
    let Val::Lifted(x) = node.input(0)? else { return Err(refused()) };
    let count = match node.version {
        ..10 => node.int("k")?.map(Int::Known),
        _ => node.input(1)?.host()?.whole()?.first().cloned(),
    };
    let axis = axis_of(node.int("axis")?.unwrap_or(-1), x.dims.len())?;
    let falling = node.int("largest")?.unwrap_or(1) == 1 && node.int("sorted")?.unwrap_or(1) == 1;
    let Port::Input(at) = x.port else { return Err(refused()) };
    let own = x.dims[..] == [lower.sizes.as_axis(Atom::Batch)];
    let (Ok(input), true) = (u8::try_from(at), x.kind == Kind::Lengths && own && axis == 0 && falling) else {
        return Err(refused());
    };
    if count.as_ref() != Some(&lower.sizes.batch) {
        return Err(refused());
    }
    let order = Order { input, inverse: false };
    let sorted = x.with_dims(vec![lower.sizes.as_axis(order.sorted())]);
    Ok(vec![Some(sorted.into()), Some(Val::Order(order))])
}

/// Where each sequence is in an order, as the numbers of sequences that are written to its places.
pub(super) fn scatter(lower: &Lower<'_>, node: &Node<'_>) -> Outputs {
    let refused = || Error::unsupported("other than the places of sequences in an order");
    let Val::Order(order @ Order { inverse: false, .. }) = node.input(1)? else { return Err(refused()) };
    let size = node.input(0)?.dims(&lower.sizes)?;
    let axis = node.int("axis")?.unwrap_or(0);
    let plain = node.text("reduction")?.unwrap_or("none") == "none" && matches!(axis, 0 | -1);
    let numbers = Numbers::of(lower, node.input(2)?)?.ok_or_else(refused)?;
    let batch = [lower.sizes.batch.clone()];
    let counts = numbers.lengths.is_none() && numbers.plus == Int::Known(0) && numbers.dims == batch;
    let one_by_one = lower.sizes.batch == Int::ONE || numbers.each == [Int::ONE];
    if !plain || size != batch || !counts || !one_by_one {
        return Err(refused());
    }
    one(Val::Order(Order { inverse: true, ..*order }))
}
