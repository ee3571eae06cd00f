//! Operators that take values apart along their axes, and put them side by side.

use super::attention::misused;
use super::constants;
use super::host::{Host, axis_of};
use super::int::Int;
use super::layout::{Atom, Kind, Lifted};
use super::lower::{Lower, Outputs, one};
use super::moves::with_axes;
use super::node::Node;
use super::numbers;
use super::spread::settled;
use super::value::Val;
use crate::config::Direction;
use crate::error::{Error, Result};
use crate::nn::{Columns, Cropping1D, Embedding, Flip, Init, Layer, Merge, MergeKind, Port, Reshape, Step};
use crate::params::Tensor;
use std::rc::Rc;

/// The most pieces that one node takes a value apart into.
const PIECES: usize = 256;
/// What stands for the end of an axis.
const END: i64 = i32::MAX as i64;

/// Where a slice of an axis of `size` begins and how much it takes; a start may count from the end.
fn bounds(size: &Int, (start, end): (&Int, &Int), step: i64) -> Result<(Int, Int)> {
    let unknown = || Error::unsupported(format!("a slice from {start} to {end} of an axis of {size}"));
    if let (Some(n), Some(start), Some(end)) = (size.known(), start.known(), end.known()) {
        // A step beyond the axis is the same as one to its end.
        let step = step.clamp(-n.max(1), n.max(1));
        let place = |at: i64| if at < 0 { at.saturating_add(n) } else { at };
        let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
        let (start, end) = (place(start).clamp(low.max(0), high.max(0)), place(end).clamp(low, high.max(low)));
        let count = if step > 0 { (end - start + step - 1) / step } else { (end - start + step + 1) / step };
        return Ok((Int::Known(start), Int::Known(count.max(0))));
    }
    // All of it, from the last on.
    if step == -1 && start.known() == Some(-1) && end.known().is_some_and(|n| n <= -END) {
        return Ok((start.clone(), size.clone()));
    }
    if step != 1 {
        return Err(unknown());
    }
    let first = start.clone();
    let last = match end.known() {
        Some(end) if end >= END => size.clone(),
        Some(end) if end < 0 => size.add(&Int::Known(end)).ok_or_else(unknown)?,
        _ if end == size => size.clone(),
        // A known end of an axis that may be shorter.
        _ => return Err(unknown()),
    };
    let from = match first.known() {
        Some(n) if n < 0 => size.add(&first).ok_or_else(unknown)?,
        _ => first.clone(),
    };
    let count = last.sub(&from).ok_or_else(unknown)?;
    Ok((first, count))
}

pub(super) fn slice(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let x = node.input(0)?;
    let whole =
        |at: usize| -> Result<Option<Vec<Int>>> { node.maybe(at).map(|v| Ok(v.host()?.whole()?.to_vec())).transpose() };
    let known = |values: Option<&[i64]>| values.map(|v| v.iter().map(|&n| Int::Known(n)).collect::<Vec<_>>());
    let (starts, ends, axes, steps) = match node.version {
        ..10 => (known(node.ints("starts")?), known(node.ints("ends")?), known(node.ints("axes")?), None),
        _ => (whole(1)?, whole(2)?, whole(3)?, whole(4)?),
    };
    let (Some(starts), Some(ends)) = (starts, ends) else { return Err(Error::data("expected starts and ends")) };
    let count = starts.len();
    let axes = axes.unwrap_or_else(|| (0..count as i64).map(Int::Known).collect());
    let steps = steps.unwrap_or_else(|| vec![Int::ONE; count]);
    if [ends.len(), axes.len(), steps.len()] != [count; 3] {
        return Err(Error::data("starts, ends, axes and steps of different numbers"));
    }
    let mut value = x.clone();
    for at in 0..count {
        let (Some(axis), Some(step)) = (axes[at].known(), steps[at].known().filter(|&s| s != 0)) else {
            return Err(Error::unsupported("axes or steps of a slice that are not known, or a step of 0"));
        };
        let axis = axis_of(axis, value.rank())?;
        let sizes = value.dims(&lower.sizes)?;
        let (first, count) = bounds(&sizes[axis], (&starts[at], &ends[at]), step)?;
        value = part(lower, &value, axis, (&first, &count, step), &sizes[axis])?;
    }
    one(value)
}

/// `count` of an axis, from `first` on, each `step` after the one before.
fn part(
    lower: &mut Lower<'_>,
    value: &Val,
    axis: usize,
    (first, count, step): (&Int, &Int, i64),
    size: &Int,
) -> Result<Val> {
    if count == size && step == 1 {
        return Ok(value.clone());
    }
    let place = |n: &Int| n.known().and_then(|n| usize::try_from(n).ok());
    let unknown = || Error::unsupported(format!("{count} from {first} on, of an axis of {size}"));
    match value {
        Val::Host(h) => {
            let (first, count) = (place(first).ok_or_else(unknown)?, place(count).ok_or_else(unknown)?);
            if count > 0 && first >= h.shape[axis] {
                return Err(unknown());
            }
            Ok(h.slice(&lower.budget, axis, (first, count, step))?.into())
        }
        Val::Spread { base, dims } => {
            let mut dims = dims.clone();
            dims[axis] = count.clone();
            let base = if base.shape[axis] == 1 {
                Rc::clone(base)
            } else {
                let (first, count) = (place(first).ok_or_else(unknown)?, place(count).ok_or_else(unknown)?);
                Rc::new(base.slice(&lower.budget, axis, (first, count, step))?)
            };
            settled(lower, Val::Spread { base, dims })
        }
        Val::Lifted(_) | Val::Table { .. } => {
            let x = lower.lifted(value)?;
            match x.dims[axis][..] {
                [Atom::Steps(_)] if *count == Int::ONE && x.dims[axis].len() == 1 => {
                    let at = first.known().ok_or_else(unknown)?;
                    let mut dims = x.dims.clone();
                    dims[axis] = Vec::new();
                    let last = at == -1 || size.known() == Some(at + 1);
                    if let (Some(port), true) = (last_output(lower, x.port), last) {
                        return Ok(lower.lift(port, Kind::Float, dims)?.into());
                    }
                    Ok(lower.over(Step { at }, &x)?.with_dims(dims).into())
                }
                [Atom::Features { .. }] if step == 1 => {
                    let (first, count) = (place(first).ok_or_else(unknown)?, place(count).ok_or_else(unknown)?);
                    let which: Vec<usize> = (first..first + count).collect();
                    Ok(features(lower, &x, axis, &which)?.into())
                }
                [Atom::Steps(_)] => Ok(steps(lower, &x, axis, (first, count, step), size)?.into()),
                _ => Err(Error::unsupported(format!("a slice of {count} of {size} along sequences"))),
            }
        }
        Val::Scores(_) => Err(misused()),
        Val::Numbers(_) | Val::Order(_) => Err(numbers::misused()),
        Val::Best { .. } => Err(Error::unsupported("a part of the numbers of the largest features")),
    }
}

/// `count` steps from `first` on, each `step` after the one before.
fn steps(
    lower: &mut Lower<'_>,
    x: &Lifted,
    axis: usize,
    (first, count, step): (&Int, &Int, i64),
    size: &Int,
) -> Result<Lifted> {
    let refused = || Error::unsupported(format!("{count} steps from {first} on of {size}"));
    if step == -1 && count == size {
        return lower.over(Flip {}, x);
    }
    let place = |n: &Int| n.known().and_then(|n| i32::try_from(n).ok()).filter(|&n| n >= 0);
    // What is left after the last one that is taken.
    let reach = match count.known() {
        Some(count) => Some(Int::Known((count - 1).checked_mul(step).ok_or_else(refused)? + 1)),
        None => (step == 1).then(|| count.clone()),
    };
    let after = reach.and_then(|reach| place(&size.sub(first)?.sub(&reach)?));
    let (Some(after), 1..) = (after, step) else { return Err(refused()) };
    match (place(first), place(count)) {
        (Some(before), _) => {
            let layer = Cropping1D { before, after, stride: step as usize };
            cropped(lower, x, axis, layer, count)
        }
        // The last of an unknown number, one by one.
        (None, Some(number)) if (1..=PIECES as i32).contains(&number) => {
            let at = |n: i32| i64::from(n - number - after);
            let taken = (0..number).map(|n| Ok(lower.add(Step { at: at(n) }, &[x.port])?[0]));
            let taken = taken.collect::<Result<Vec<_>>>()?;
            let row =
                if let [one] = taken[..] { one } else { lower.add(Merge::new(MergeKind::Concatenate), &taken)?[0] };
            let port = lower.add(Reshape::new(&[Some(number as usize), None]), &[row])?[0];
            on_steps(lower, x, axis, port, count)
        }
        _ => Err(refused()),
    }
}

/// Zeros before and after the steps of sequences, or steps of them left out.
pub(super) fn pad(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let x = lower.lifted(node.input(0)?)?;
    let rank = x.dims.len();
    let (pads, value) = match node.version {
        ..11 => (node.ints("pads")?.unwrap_or_default().to_vec(), node.float("value")?.unwrap_or(0.0)),
        _ => {
            let value = node.maybe(2).map(|v| v.host()?.as_floats()).transpose()?;
            (node.input(1)?.host()?.numbers()?, value.and_then(|v| v.first().copied()).unwrap_or(0.0))
        }
    };
    let axes = node.maybe(3).map(|v| v.host()?.numbers()).transpose()?;
    let axes = axes.unwrap_or_else(|| (0..rank as i64).collect());
    if pads.len() != 2 * axes.len() || node.text("mode")?.unwrap_or("constant") != "constant" || value != 0.0 {
        return Err(Error::unsupported("other than as many zeros before and after each dimension as are named"));
    }
    let mut y = x;
    for (at, &axis) in axes.iter().enumerate() {
        let (axis, around) = (axis_of(axis, rank)?, [pads[at], pads[axes.len() + at]]);
        if around == [0, 0] {
            continue;
        }
        let [before, after] = around.map(|n| i32::try_from(n).unwrap_or(i32::MAX).saturating_neg());
        if !matches!(y.dims[axis][..], [Atom::Steps(_)]) {
            return Err(Error::unsupported("zeros around other than steps"));
        }
        let added = Int::Known(around[0].saturating_add(around[1]));
        let count = lower.sizes.axis(&y.dims[axis])?.add(&added).ok_or_else(|| Error::unsupported("such a size"))?;
        y = cropped(lower, &y, axis, Cropping1D::new(before, after), &count)?;
    }
    one(y)
}

/// Some of the steps along an axis, `count` of them.
fn cropped(lower: &mut Lower<'_>, x: &Lifted, axis: usize, layer: impl Into<Layer>, count: &Int) -> Result<Lifted> {
    let port = lower.add(layer, &[x.port])?[0];
    on_steps(lower, x, axis, port, count)
}

/// The axes of `x` with the steps that `port` has along one of them.
fn on_steps(lower: &mut Lower<'_>, x: &Lifted, axis: usize, port: Port, count: &Int) -> Result<Lifted> {
    let made = lower.network.signal(port)?.axis().ok_or_else(|| Error::internal("steps without an axis"))?;
    lower.sizes.steps.entry(made).or_insert_with(|| count.clone());
    let mut dims = x.dims.clone();
    dims[axis] = lower.sizes.as_axis(Atom::Steps(made));
    lower.lift(port, x.kind, dims)
}

/// The final h of an LSTM, which is what it gives at its last step where it reads forward.
fn last_output(lower: &Lower<'_>, port: Port) -> Option<Port> {
    let Port::Node(at, 0) = port else { return None };
    match &lower.network.nodes.get(at)?.layer {
        Layer::Lstm(lstm) if lstm.direction == Direction::Forward => Some(Port::Node(at, 1)),
        _ => None,
    }
}

/// The indices `which` of an axis of features.
fn features(lower: &mut Lower<'_>, x: &Lifted, axis: usize, which: &[usize]) -> Result<Lifted> {
    let [Atom::Features { size, stride }] = x.dims[axis][..] else {
        return Err(Error::internal("an axis that is not of features"));
    };
    if which.is_empty() || which.iter().any(|&at| at >= size) {
        return Err(Error::shape(format!("features {which:?} of {size}")));
    }
    // Runs of indices that follow each other, for each block that lies outside of them.
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &at in which {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == at => *count += 1,
            _ => runs.push((at, 1)),
        }
    }
    let blocks = x.features / (size * stride);
    if blocks.saturating_mul(runs.len()) > PIECES {
        return Err(Error::unsupported(format!("features that are taken apart into more than {PIECES} pieces")));
    }
    let mut pieces = Vec::new();
    for block in 0..blocks {
        for &(first, count) in &runs {
            let layer = Columns { first: (block * size + first) * stride, count: count * stride };
            pieces.push(lower.add(layer, &[x.port])?[0]);
        }
    }
    let port = if let [one] = pieces[..] { one } else { lower.add(Merge::new(MergeKind::Concatenate), &pieces)?[0] };
    let dims = x.dims.iter().enumerate().map(|(at, dim)| {
        let of = |atom: &Atom| match *atom {
            Atom::Features { .. } if at == axis => Atom::Features { size: which.len(), stride },
            Atom::Features { size: n, stride: by } if by >= size * stride => {
                Atom::Features { size: n, stride: by / size * which.len() }
            }
            other => other,
        };
        dim.iter().map(of).collect()
    });
    let dims = dims.collect();
    lower.lift(port, x.kind, dims)
}

pub(super) fn gather(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let (data, which) = (node.input(0)?, node.input(1)?);
    let axis = axis_of(node.int("axis")?.unwrap_or(0), data.rank())?;
    if let (Val::Lifted(tokens), Val::Host(table)) = (which, data) {
        return embedding(lower, node, tokens, table, axis);
    }
    if matches!(which, Val::Numbers(_) | Val::Order(_)) {
        return one(numbers::gather(lower, data, which, axis)?);
    }
    let which = which.host()?;
    let sizes = data.dims(&lower.sizes)?;
    let numbers = which.numbers()?;
    if let Val::Host(h) = data {
        let places = numbers.iter().map(|&n| axis_of(n, h.shape[axis])).collect::<Result<Vec<_>>>()?;
        return one(h.take(&lower.budget, axis, &places, &which.shape)?);
    }
    if which.shape.len() > 1 {
        return Err(Error::unsupported(format!("indices of {:?} of a value that the network computes", which.shape)));
    }
    // One index without a dimension of its own leaves the axis out.
    let finish = |value: Val| -> Outputs {
        if !which.shape.is_empty() {
            return one(value);
        }
        let rank = value.rank() - 1;
        one(with_axes(&value, &|at| Some(if at < axis { at } else { at + 1 }), rank)?)
    };
    if let [at] = numbers[..] {
        let size = &sizes[axis];
        let inside = size.known().is_none_or(|n| (-n..n).contains(&at));
        if !inside {
            return Err(Error::shape(format!("index {at} of an axis of {size}")));
        }
        let first = match size.known() {
            Some(n) if at < 0 => Int::Known(at + n),
            _ => Int::Known(at),
        };
        let value = part(lower, data, axis, (&first, &Int::ONE, 1), size)?;
        return finish(value);
    }
    let x = lower.lifted(data)?;
    match x.dims[axis][..] {
        [Atom::Features { size, .. }] => {
            let places = numbers.iter().map(|&n| axis_of(n, size)).collect::<Result<Vec<_>>>()?;
            finish(features(lower, &x, axis, &places)?.into())
        }
        _ => Err(Error::unsupported("more than one index along sequences or steps")),
    }
}

/// A feature for each token, of two values.
pub(super) fn one_hot(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let tokens = node.input(0)?;
    let axis = node.int("axis")?.unwrap_or(-1);
    let (depth, values) = (node.input(1)?.host()?.as_floats()?, node.input(2)?.host()?.as_floats()?);
    let (Val::Lifted(tokens), &[depth], &[off, on]) = (tokens, &depth[..], &values[..]) else {
        return Err(Error::unsupported("other than tokens of an input, their number and two values"));
    };
    if ![-1, tokens.dims.len() as i64].contains(&axis) || depth < 1.0 || depth.fract() != 0.0 {
        return Err(Error::unsupported(format!("{depth} tokens along axis {axis}")));
    }
    let table = constants::one_hot(lower, depth as usize, [off, on])?;
    embedding(lower, node, tokens, &Rc::new(table), 0)
}

/// Rows of a table by tokens.
fn embedding(lower: &mut Lower<'_>, node: &Node<'_>, tokens: &Lifted, table: &Rc<Host>, axis: usize) -> Outputs {
    if tokens.kind != Kind::Tokens {
        return Err(Error::unsupported("indices that are not tokens of an input"));
    }
    let (rows, size) = match (&table.shape[..], axis) {
        (&[rows], 0) => (rows, 1),
        (&[rows, size], 0) => (rows, size),
        _ => return Err(Error::unsupported(format!("rows of a table of {:?} along axis {axis}", table.shape))),
    };
    let ports = lower.add(Embedding::new(rows, size).initializers(Init::PyTorch), &[tokens.port])?;
    let values = table.floats()?.to_vec();
    let source = if node.op() == "Gather" { node.name(0) } else { "" };
    lower.parameter("weight", Tensor::new(&[rows, size], values)?, source);
    let mut dims = tokens.dims.clone();
    if table.shape.len() == 2 {
        dims.push(vec![Atom::Features { size, stride: 1 }]);
    }
    one(lower.lift(ports[0], Kind::Float, dims)?)
}

pub(super) fn split(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let x = node.input(0)?;
    let axis = axis_of(node.int("axis")?.unwrap_or(0), x.rank())?;
    let size = x.dims(&lower.sizes)?[axis].clone();
    let named = match node.version {
        ..13 => node.ints("split")?.map(<[i64]>::to_vec),
        _ => node.maybe(1).map(|v| v.host()?.numbers()).transpose()?,
    };
    let outputs = node.message.output.len() as i64;
    let parts = node.int("num_outputs")?.unwrap_or(outputs);
    if parts != outputs || parts == 0 {
        return Err(Error::data(format!("{parts} parts, and {outputs} outputs")));
    }
    let counts = match (named, size.known()) {
        (Some(counts), _) => counts,
        (None, Some(n)) => {
            let each = n / parts + i64::from(n % parts != 0);
            (0..parts).map(|at| n.saturating_sub(at.saturating_mul(each)).clamp(0, each)).collect()
        }
        _ => return Err(Error::unsupported(format!("equal parts of an axis of {size}"))),
    };
    let whole = counts.iter().try_fold(0i64, |sum, &n| sum.checked_add(n).filter(|_| n >= 0));
    if whole.is_none() || size.known().is_some_and(|n| whole != Some(n)) {
        return Err(Error::shape(format!("parts of {counts:?} of an axis of {size}")));
    }
    let mut first = 0;
    let mut all = Vec::new();
    for count in counts {
        all.push(Some(part(lower, x, axis, (&Int::Known(first), &Int::Known(count), 1), &size)?));
        first += count;
    }
    Ok(all)
}

pub(super) fn concat(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let parts = (0..node.len()).map(|at| node.input(at)).collect::<Result<Vec<_>>>()?;
    let Some(first) = parts.first() else { return Err(Error::data("expected values side by side, got none")) };
    let axis = axis_of(node.int("axis")?.ok_or_else(|| Error::data("expected an axis"))?, first.rank())?;
    if parts.iter().any(|p| p.rank() != first.rank()) {
        return Err(Error::shape("values of different numbers of dimensions side by side"));
    }
    if parts.iter().all(|p| matches!(p, Val::Host(_))) {
        let hosts = parts.iter().map(|p| p.host().map(|h| &**h)).collect::<Result<Vec<_>>>()?;
        return one(Host::concat(&lower.budget, &hosts, axis)?);
    }
    if let [one_part] = parts[..] {
        return one(one_part.clone());
    }
    if let Some(value) = numbers::concat(lower, &parts, axis)? {
        return one(value);
    }
    let mut all = parts.iter().map(|p| lower.lifted(p)).collect::<Result<Vec<_>>>()?;
    let steps = |x: &Lifted| x.axis.filter(|&axis| x.has(Atom::Steps(axis)));
    let axes: Vec<u8> = all.iter().filter_map(steps).collect();
    if axes.is_empty() {
        for x in &mut all {
            *x = lower.rows(x)?;
        }
    } else if let Some(&other) = axes.iter().find(|&&a| a != axes[0])
        && !lower.same_steps(axes[0], other)?
    {
        return Err(Error::unsupported("values of different sequences side by side"));
    }
    // Features lie in blocks: what is outside of the axis, the axis, what is inside.
    let block = |x: &Lifted| match x.dims[axis][..] {
        [] => Some((1, None)),
        [Atom::Features { size, stride }] => Some((size, Some(stride))),
        _ => None,
    };
    let blocks = all.iter().map(block).collect::<Option<Vec<_>>>();
    let blocks = blocks.ok_or_else(|| Error::unsupported("values one after another along sequences or steps"))?;
    let Some(inner) = blocks.iter().find_map(|b| b.1).or_else(|| all.first().map(|x| x.features)) else {
        return Err(Error::internal("no values"));
    };
    let outside = |at: usize| all[at].dims.iter().enumerate().filter(|d| d.0 != axis).map(|d| d.1);
    let total: usize = blocks.iter().map(|b| b.0).sum();
    let outer = all[0].features / (blocks[0].0 * inner).max(1);
    for (at, (x, &(size, stride))) in all.iter().zip(&blocks).enumerate() {
        let alike = stride.is_none_or(|s| s == inner) && x.features == outer * size * inner;
        let same = outside(at).zip(outside(0)).all(|(a, b)| {
            a.len() == b.len()
                && a.iter().zip(b).all(|(a, b)| match (*a, *b) {
                    (Atom::Features { size: n, stride: s }, Atom::Features { size: m, stride: t }) => {
                        let (s, t) = if s >= inner && t >= inner { (s / size, t / blocks[0].0) } else { (s, t) };
                        n == m && s == t
                    }
                    (a, b) => a == b,
                })
        });
        if !alike || !same {
            return Err(Error::unsupported("values side by side whose features lie in different orders"));
        }
    }
    if outer.saturating_mul(all.len()) > PIECES {
        return Err(Error::unsupported(format!("values side by side in more than {PIECES} pieces")));
    }
    let mut pieces = Vec::new();
    for o in 0..outer {
        for (x, &(size, _)) in all.iter().zip(&blocks) {
            let run = size * inner;
            pieces.push(match outer {
                1 => x.port,
                _ => lower.add(Columns { first: o * run, count: run }, &[x.port])?[0],
            });
        }
    }
    let port = lower.add(Merge::new(MergeKind::Concatenate), &pieces)?[0];
    let dims = all[0].dims.iter().enumerate().map(|(at, dim)| {
        if at == axis {
            return vec![Atom::Features { size: total, stride: inner }];
        }
        let of = |atom: &Atom| match *atom {
            Atom::Features { size, stride } if stride >= inner * blocks[0].0 && size * stride > inner * blocks[0].0 => {
                Atom::Features { size, stride: stride / blocks[0].0 * total }
            }
            other => other,
        };
        dim.iter().map(of).collect()
    });
    let dims = dims.collect();
    one(lower.lift(port, Kind::Float, dims)?)
}
