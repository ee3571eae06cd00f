//! Operators that move values, and those that compute shapes.

use super::host::{Data, Host, axis_of};
use super::int::Int;
use super::layout::{Atom, Axis, Kind, Lifted, joined};
use super::lower::{Lower, Outputs, one};
use super::node::Node;
use super::schema::dtype;
use super::value::Val;
use crate::config::Direction;
use crate::error::{Error, Result};
use crate::nn::{Activate, Activation, Columns, Embedding, Layer, Merge, MergeKind, Port, RepeatVector, Step};
use std::rc::Rc;

/// The most pieces that one node takes a value apart into.
const PIECES: usize = 256;
/// The most values that are spread out where only their sizes may matter.
const SPREAD: i64 = 1 << 12;
/// What stands for the end of an axis.
const END: i64 = i32::MAX as i64;

pub(super) fn operator(lower: &mut Lower<'_>, node: &Node<'_>) -> Result<Option<Vec<Option<Val>>>> {
    let outputs = match node.op() {
        "Constant" => constant(node),
        "Identity" => one(node.input(0)?.clone()),
        "Dropout" => dropout(node),
        "Cast" => cast(lower, node),
        "CastLike" => {
            let like = node.input(1)?;
            let to = match like {
                Val::Host(h) | Val::Spread { base: h, .. } => match h.data {
                    Data::Float(_) => dtype::FLOAT,
                    Data::Int(_) => dtype::INT64,
                    Data::Bool(_) => dtype::BOOL,
                },
                Val::Lifted(l) if l.kind == Kind::Float => dtype::FLOAT,
                _ => return Err(Error::unsupported("a cast to a type that is not known")),
            };
            cast_to(lower, node.input(0)?, to).and_then(one)
        }
        "Shape" => shape(lower, node),
        "Size" => {
            let sizes = node.input(0)?.dims(&lower.sizes)?;
            let len = sizes.iter().try_fold(Int::ONE, |len, n| len.mul(n)).ok_or_else(involved)?;
            one(Host::new(Vec::new(), Data::Int(vec![len]))?)
        }
        "ConstantOfShape" => {
            let value = node.tensor("value")?;
            let value = value.map_or_else(|| Host::new(vec![1], Data::Float(vec![0.0])), Ok)?;
            let dims = node.input(0)?.host()?.whole()?.to_vec();
            if value.data.len() != 1 {
                return Err(Error::data("expected one value to fill a shape with"));
            }
            expand(lower, &value.reshape(vec![1; dims.len()])?.into(), dims).and_then(one)
        }
        "Range" => range(node),
        "Transpose" => transpose(lower, node),
        "Reshape" => {
            let allow_zero = node.int("allowzero")?.unwrap_or(0) != 0;
            let target = match node.version {
                ..5 => return Err(Error::unsupported("a shape as an attribute")),
                _ => node.input(1)?.host()?.whole()?.to_vec(),
            };
            reshape(lower, node.input(0)?, &target, allow_zero).and_then(one)
        }
        "Flatten" => {
            let x = node.input(0)?;
            let dims = x.dims(&lower.sizes)?;
            let axis = match node.int("axis")?.unwrap_or(1) {
                axis if axis == dims.len() as i64 => dims.len(),
                axis => axis_of(axis, dims.len())?,
            };
            let product = |dims: &[Int]| dims.iter().try_fold(Int::ONE, |n, m| n.mul(m)).ok_or_else(involved);
            reshape(lower, x, &[product(&dims[..axis])?, product(&dims[axis..])?], true).and_then(one)
        }
        "Squeeze" => squeeze(lower, node),
        "Unsqueeze" => unsqueeze(node),
        "Slice" => slice(lower, node),
        "Gather" => gather(lower, node),
        "Split" => split(lower, node),
        "Concat" => concat(lower, node),
        "Expand" => {
            let dims = node.input(1)?.host()?.whole()?.to_vec();
            expand(lower, node.input(0)?, dims).and_then(one)
        }
        "Tile" => tile(lower, node),
        _ => return Ok(None),
    };
    outputs.map(Some)
}

fn involved() -> Error {
    Error::unsupported("a size that is too involved")
}

fn constant(node: &Node<'_>) -> Outputs {
    let value = if let Some(tensor) = node.tensor("value")? {
        tensor
    } else if let Some(x) = node.float("value_float")? {
        Host::new(Vec::new(), Data::Float(vec![x]))?
    } else if let Some(all) = node.floats("value_floats")? {
        Host::new(vec![all.len()], Data::Float(all.to_vec()))?
    } else if let Some(n) = node.int("value_int")? {
        Host::new(Vec::new(), Data::Int(vec![n.into()]))?
    } else if let Some(all) = node.ints("value_ints")? {
        Host::ints(all.iter().map(|&n| n.into()).collect())
    } else {
        return Err(Error::unsupported("a constant that is no tensor of numbers"));
    };
    one(value)
}

fn dropout(node: &Node<'_>) -> Outputs {
    // Attributes of versions before 12; a seed means nothing where nothing is drawn.
    let (_, _) = (node.float("ratio")?, node.int("seed")?);
    let _ = node.maybe(1);
    let training = match node.maybe(2) {
        Some(value) => value.host()?.scalar() != Some(0.0),
        None => false,
    };
    if training {
        return Err(Error::unsupported("dropout that drops at inference"));
    }
    if node.gives(1) {
        return Err(Error::unsupported("the mask of a dropout"));
    }
    one(node.input(0)?.clone())
}

fn cast(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let _ = node.int("saturate")?;
    let to = node.int("to")?.ok_or_else(|| Error::data("expected the type `to`"))?;
    cast_to(lower, node.input(0)?, to as i32).and_then(one)
}

/// A value as another type. What the network computes is F32 whatever the file says, so a cast between floats is none.
fn cast_to(lower: &mut Lower<'_>, value: &Val, to: i32) -> Result<Val> {
    use dtype::{BFLOAT16, BOOL, DOUBLE, FLOAT, FLOAT16, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64};
    let float = matches!(to, FLOAT | DOUBLE | FLOAT16 | BFLOAT16);
    let int = matches!(to, INT8 | INT16 | INT32 | INT64 | UINT8 | UINT16 | UINT32 | UINT64);
    if !float && !int && to != BOOL {
        return Err(Error::unsupported(format!("a cast to type {to}")));
    }
    let host = |h: &Host| -> Result<Rc<Host>> {
        let data = match &h.data {
            Data::Int(v) if int => Data::Int(v.clone()),
            _ if float => Data::Float(h.as_floats()?),
            Data::Float(v) if int => Data::Int(v.iter().map(|&x| Int::Known(x as i64)).collect()),
            Data::Bool(v) if int => Data::Int(v.iter().map(|&b| Int::Known(i64::from(b))).collect()),
            _ => Data::Bool(h.as_floats()?.iter().map(|&x| x != 0.0).collect()),
        };
        Host::new(h.shape.clone(), data).map(Rc::new)
    };
    Ok(match value {
        Val::Host(h) => Val::Host(host(h)?),
        Val::Spread { base, dims } => Val::Spread { base: host(base)?, dims: dims.clone() },
        Val::Table { tokens, table } => Val::Table { tokens: tokens.clone(), table: host(table)? },
        Val::Best { .. } if int => value.clone(),
        Val::Lifted(x) => match x.kind {
            Kind::Tokens | Kind::Lengths if int => value.clone(),
            Kind::Float if float => value.clone(),
            Kind::Bool if float => Lifted { kind: Kind::Float, ..x.clone() }.into(),
            Kind::Bool if to == BOOL => value.clone(),
            Kind::Tokens if float => table(lower, x)?,
            _ => return Err(Error::unsupported(format!("a cast of {:?} to type {to}", x.kind))),
        },
        Val::Best { .. } => {
            return Err(Error::unsupported(format!("a cast of the largest feature's number to type {to}")));
        }
    })
}

/// Tokens as a function of themselves, where it is known how many there may be.
pub(super) fn table(lower: &mut Lower<'_>, tokens: &Lifted) -> Result<Val> {
    let Port::Input(at) = tokens.port else { return Err(Error::internal("tokens that are no input")) };
    let name = lower.network.inputs.get(at).map(|i| i.0.clone()).unwrap_or_default();
    let Some(&count) = lower.vocabularies.get(name.as_str()) else {
        return Err(Error::unsupported("arithmetic on tokens of which no embedding says how many there are"));
    };
    lower.budget.spend(count)?;
    let table = Host::ints((0..count as i64).map(Int::Known).collect());
    Ok(Val::Table { tokens: tokens.clone(), table: Rc::new(table) })
}

fn shape(lower: &Lower<'_>, node: &Node<'_>) -> Outputs {
    let dims = node.input(0)?.dims(&lower.sizes)?;
    let rank = dims.len() as i64;
    let place = |n: i64| (if n < 0 { n.saturating_add(rank) } else { n }).clamp(0, rank) as usize;
    let start = place(node.int("start")?.unwrap_or(0));
    let end = place(node.int("end")?.unwrap_or(rank));
    one(Host::ints(dims.get(start..end).unwrap_or(&[]).to_vec()))
}

fn range(node: &Node<'_>) -> Outputs {
    let values = [0, 1, 2].map(|at| node.input(at).and_then(|v| v.host()?.numbers()));
    let [Ok(first), Ok(limit), Ok(step)] = values else {
        return Err(Error::unsupported("a range that is not of whole numbers known beforehand"));
    };
    let (&[first], &[limit], &[step]) = (&first[..], &limit[..], &step[..]) else {
        return Err(Error::data("a range of more than single numbers"));
    };
    if step == 0 {
        return Err(Error::data("a range with a step of 0"));
    }
    let mut values = Vec::new();
    let mut n = first;
    while (step > 0 && n < limit) || (step < 0 && n > limit) {
        if values.len() as i64 >= SPREAD {
            return Err(Error::unsupported(format!("a range of more than {SPREAD} numbers")));
        }
        values.push(Int::Known(n));
        n = n.saturating_add(step);
    }
    one(Host::ints(values))
}

fn transpose(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let x = node.input(0)?;
    let rank = x.rank();
    let order = match node.ints("perm")? {
        Some(order) => order.iter().map(|&at| axis_of(at, rank)).collect::<Result<Vec<_>>>()?,
        None => (0..rank).rev().collect(),
    };
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if sorted != (0..rank).collect::<Vec<_>>() {
        return Err(Error::data(format!("{order:?} is no order of {rank} axes")));
    }
    let moved = |dims: &[Axis]| order.iter().map(|&at| dims[at].clone()).collect::<Vec<_>>();
    one(match x {
        Val::Host(h) => h.transpose(&lower.budget, &order)?.into(),
        Val::Spread { base, dims } => Val::Spread {
            base: Rc::new(base.transpose(&lower.budget, &order)?),
            dims: order.iter().map(|&at| dims[at].clone()).collect(),
        },
        Val::Lifted(x) => x.with_dims(moved(&x.dims)).into(),
        Val::Table { tokens, table } => {
            Val::Table { tokens: tokens.with_dims(moved(&tokens.dims)), table: Rc::clone(table) }
        }
        Val::Best { of, dims } => Val::Best { of: of.clone(), dims: moved(dims) },
    })
}

/// A value under other axes, `f` of them.
fn regrouped(value: &Val, f: impl Fn(Vec<Atom>) -> Result<Vec<Axis>>) -> Result<Option<Val>> {
    Ok(Some(match value {
        Val::Lifted(x) => x.with_dims(f(x.atoms())?).into(),
        Val::Table { tokens, table } => {
            Val::Table { tokens: tokens.with_dims(f(tokens.atoms())?), table: Rc::clone(table) }
        }
        Val::Best { of, dims } => {
            Val::Best { of: of.clone(), dims: f(dims.concat())?.into_iter().map(joined).collect() }
        }
        Val::Host(_) | Val::Spread { .. } => return Ok(None),
    }))
}

fn reshape(lower: &mut Lower<'_>, x: &Val, target: &[Int], allow_zero: bool) -> Result<Val> {
    let own = x.dims(&lower.sizes)?;
    let mut sizes: Vec<Option<Int>> = Vec::with_capacity(target.len());
    for (at, n) in target.iter().enumerate() {
        sizes.push(match n.known() {
            Some(-1) if sizes.iter().any(Option::is_none) => {
                return Err(Error::data("a shape with more than one open size"));
            }
            Some(-1) => None,
            Some(0) if !allow_zero => {
                Some(own.get(at).cloned().ok_or_else(|| Error::data("a shape that copies a size that there is not"))?)
            }
            Some(n) if n < 0 => return Err(Error::data(format!("a size of {n}"))),
            _ => Some(n.clone()),
        });
    }
    if let Some(value) = regrouped(x, |atoms| lower.sizes.regroup(atoms, &sizes))? {
        return Ok(value);
    }
    let product = |mut sizes: std::slice::Iter<'_, Int>| sizes.try_fold(Int::ONE, |n, m| n.mul(m)).ok_or_else(involved);
    let named: Vec<Int> = sizes.iter().flatten().cloned().collect();
    let (whole, rest) = (product(own.iter())?, product(named.iter())?);
    let open = if rest == Int::Known(0) { None } else { whole.div(&rest) };
    let missing = || Error::shape(format!("{whole} values do not make the shape"));
    let sizes =
        sizes.into_iter().map(|s| s.or_else(|| open.clone()).ok_or_else(missing)).collect::<Result<Vec<_>>>()?;
    if product(sizes.iter())? != whole {
        return Err(missing());
    }
    match x {
        Val::Host(h) => {
            let shape =
                sizes.iter().map(|n| n.known().and_then(|n| usize::try_from(n).ok())).collect::<Option<Vec<_>>>();
            lower.budget.spend(h.data.len())?;
            Ok(h.reshape(shape.ok_or_else(missing)?)?.into())
        }
        Val::Spread { base, .. } if base.data.len() == 1 => {
            Ok(Val::Spread { base: Rc::new(base.reshape(vec![1; sizes.len()])?), dims: sizes })
        }
        _ => Err(Error::unsupported("another shape of a constant whose size only a run tells")),
    }
}

/// The axes that a node names by an attribute before version 13, and by input 1 from then on.
pub(super) fn axes(node: &Node<'_>, since: i64) -> Result<Option<Vec<i64>>> {
    let attribute = node.ints("axes")?;
    if node.version < since {
        return Ok(attribute.map(<[i64]>::to_vec));
    }
    if attribute.is_some() {
        return Err(Error::data(format!("axes are an input from version {since} on")));
    }
    node.maybe(1).map(|v| v.host()?.numbers()).transpose()
}

/// What a change of dimensions makes of a value, from its number of dimensions and which of them are kept or new.
fn with_axes(x: &Val, f: &dyn Fn(usize) -> Option<usize>, rank: usize) -> Result<Val> {
    let pick = |dims: &[Axis]| (0..rank).map(|at| f(at).map_or_else(Vec::new, |from| dims[from].clone())).collect();
    Ok(match x {
        Val::Host(h) => h.reshape((0..rank).map(|at| f(at).map_or(1, |from| h.shape[from])).collect())?.into(),
        Val::Spread { base, dims } => Val::Spread {
            base: Rc::new(base.reshape((0..rank).map(|at| f(at).map_or(1, |from| base.shape[from])).collect())?),
            dims: (0..rank).map(|at| f(at).map_or(Int::ONE, |from| dims[from].clone())).collect(),
        },
        Val::Lifted(x) => x.with_dims(pick(&x.dims)).into(),
        Val::Table { tokens, table } => {
            Val::Table { tokens: tokens.with_dims(pick(&tokens.dims)), table: Rc::clone(table) }
        }
        Val::Best { of, dims } => Val::Best { of: of.clone(), dims: pick(dims) },
    })
}

fn squeeze(lower: &Lower<'_>, node: &Node<'_>) -> Outputs {
    let x = node.input(0)?;
    let sizes = x.dims(&lower.sizes)?;
    let gone: Vec<usize> = match axes(node, 13)? {
        Some(named) => named.into_iter().map(|at| axis_of(at, sizes.len())).collect::<Result<_>>()?,
        None if sizes.iter().all(|n| n.known().is_some()) => {
            (0..sizes.len()).filter(|&at| sizes[at] == Int::ONE).collect()
        }
        None => return Err(Error::unsupported("which dimensions are of size 1 only a run tells")),
    };
    if let Some(&at) = gone.iter().find(|&&at| sizes[at] != Int::ONE) {
        return Err(Error::unsupported(format!("dimension {at}, which it leaves out, is of size {}", sizes[at])));
    }
    let kept: Vec<usize> = (0..sizes.len()).filter(|at| !gone.contains(at)).collect();
    one(with_axes(x, &|at| Some(kept[at]), kept.len())?)
}

fn unsqueeze(node: &Node<'_>) -> Outputs {
    let x = node.input(0)?;
    let named = axes(node, 13)?.ok_or_else(|| Error::data("expected the axes to add"))?;
    let rank = x.rank() + named.len();
    let new = named.into_iter().map(|at| axis_of(at, rank)).collect::<Result<Vec<_>>>()?;
    let old: Vec<usize> = (0..rank).filter(|at| !new.contains(at)).collect();
    if old.len() != x.rank() {
        return Err(Error::data("the same axis added twice"));
    }
    one(with_axes(x, &|at| old.iter().position(|&o| o == at), rank)?)
}

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

fn slice(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
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
                _ => Err(Error::unsupported(format!("a slice of {count} of {size} along sequences or steps"))),
            }
        }
        Val::Best { .. } => Err(Error::unsupported("a part of the numbers of the largest features")),
    }
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

fn gather(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let (data, which) = (node.input(0)?, node.input(1)?);
    let axis = axis_of(node.int("axis")?.unwrap_or(0), data.rank())?;
    if let (Val::Lifted(tokens), Val::Host(table)) = (which, data) {
        return embedding(lower, node, tokens, table, axis);
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
    let ports = lower.add(Embedding::new(rows, size).initializers(crate::nn::Init::PyTorch), &[tokens.port])?;
    let values = table.floats()?.to_vec();
    lower.parameter("weight", crate::params::Tensor::new(&[rows, size], values)?, node.name(0));
    let mut dims = tokens.dims.clone();
    if table.shape.len() == 2 {
        dims.push(vec![Atom::Features { size, stride: 1 }]);
    }
    one(lower.lift(ports[0], Kind::Float, dims)?)
}

fn split(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
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

fn concat(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
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

/// What is spread, in full where it is small enough.
fn settled(lower: &Lower<'_>, value: Val) -> Result<Val> {
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

fn tile(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
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

/// A value of the network as one that an output may be: an input is none.
pub(super) fn as_output(lower: &mut Lower<'_>, x: &Lifted) -> Result<Lifted> {
    match x.port {
        Port::Input(_) => lower.over(Activate::new(Activation::Linear), x),
        Port::Node(..) => Ok(x.clone()),
    }
}
