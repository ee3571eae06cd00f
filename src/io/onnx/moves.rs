//! Operators that move values, and those that compute shapes.

use super::attention::misused;
use super::host::{Data, Host, axis_of};
use super::int::Int;
use super::layout::{Atom, Axis, Kind, Lifted, joined};
use super::lower::{Lower, Outputs, one};
use super::node::Node;
use super::numbers::{self, Numbers};
use super::schema::dtype;
use super::value::Val;
use super::{order, pieces, spread};
use crate::error::{Error, Result};
use crate::nn::{Activate, Activation, Port};
use std::rc::Rc;

/// The most numbers of a range.
const RANGE: i64 = 1 << 12;

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
            spread::expand(lower, &value.reshape(vec![1; dims.len()])?.into(), dims).and_then(one)
        }
        "Range" => range(node),
        "TopK" => order::top_k(lower, node),
        "ScatterElements" => order::scatter(lower, node),
        "GatherElements" => numbers::gather_elements(lower, node),
        "GatherND" => numbers::gather_nd(lower, node),
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
        "Slice" => pieces::slice(lower, node),
        "Gather" => pieces::gather(lower, node),
        "OneHot" => pieces::one_hot(lower, node),
        "Pad" => pieces::pad(lower, node),
        "Split" => pieces::split(lower, node),
        "Concat" => pieces::concat(lower, node),
        "Expand" => {
            let dims = node.input(1)?.host()?.whole()?.to_vec();
            spread::expand(lower, node.input(0)?, dims).and_then(one)
        }
        "Tile" => spread::tile(lower, node),
        _ => return Ok(None),
    };
    outputs.map(Some)
}

pub(super) fn involved() -> Error {
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
        Val::Numbers(_) | Val::Order(_) if int => value.clone(),
        Val::Numbers(_) if float => numbers::as_floats(lower, value)?,
        Val::Numbers(_) | Val::Order(_) => return Err(numbers::misused()),
        Val::Scores(_) if float => value.clone(),
        Val::Scores(_) => return Err(misused()),
        Val::Lifted(x) => match x.kind {
            Kind::Tokens | Kind::Lengths if int => value.clone(),
            Kind::Lengths if float => numbers::as_floats(lower, value)?,
            Kind::Float if float => value.clone(),
            Kind::Bool | Kind::Whole if int => Lifted { kind: Kind::Whole, ..x.clone() }.into(),
            Kind::Whole if to == BOOL => Lifted { kind: Kind::Bool, ..x.clone() }.into(),
            Kind::Bool | Kind::Whole if float => Lifted { kind: Kind::Float, ..x.clone() }.into(),
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
    let Some(count) = lower.vocabulary(&name) else {
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
    // As many as a run tells.
    let whole = |at: usize| -> Result<Option<Int>> { Ok(node.input(at)?.host()?.whole()?.first().cloned()) };
    if let [Ok(Some(Int::Known(first))), Ok(Some(limit @ Int::Of(_))), Ok(Some(Int::ONE))] = [0, 1, 2].map(whole) {
        let count = limit.sub(&Int::Known(first)).ok_or_else(involved)?;
        return one(Val::Numbers(Rc::new(Numbers::range(first, count))));
    }
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
        if values.len() as i64 >= RANGE {
            return Err(Error::unsupported(format!("a range of more than {RANGE} numbers")));
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
    transposed(lower, x, &order).and_then(one)
}

/// A value with its axes in another order.
pub(super) fn transposed(lower: &Lower<'_>, x: &Val, order: &[usize]) -> Result<Val> {
    let rank = order.len();
    let moved = |dims: &[Axis]| order.iter().map(|&at| dims[at].clone()).collect::<Vec<_>>();
    Ok(match x {
        Val::Host(h) => h.transpose(&lower.budget, order)?.into(),
        Val::Spread { base, dims } => Val::Spread {
            base: Rc::new(base.transpose(&lower.budget, order)?),
            dims: order.iter().map(|&at| dims[at].clone()).collect(),
        },
        Val::Lifted(x) => x.with_dims(moved(&x.dims)).into(),
        Val::Table { tokens, table } => {
            Val::Table { tokens: tokens.with_dims(moved(&tokens.dims)), table: Rc::clone(table) }
        }
        Val::Best { of, dims } => Val::Best { of: of.clone(), dims: moved(dims) },
        Val::Numbers(numbers) => Val::Numbers(Rc::new(numbers.with_axes(&|at| order.get(at).copied(), rank)?)),
        Val::Order(order) => Val::Order(*order),
        Val::Scores(scores) if rank >= 2 && order[rank - 2..] == [rank - 2, rank - 1] => {
            scores.under(moved(&scores.dims))?
        }
        Val::Scores(_) => return Err(misused()),
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
        Val::Scores(scores) => scores.under(f(scores.dims.concat())?.into_iter().map(joined).collect())?,
        Val::Host(_) | Val::Spread { .. } | Val::Numbers(_) | Val::Order(_) => return Ok(None),
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
    match x {
        Val::Numbers(numbers) => return Ok(Val::Numbers(Rc::new(numbers.reshaped(sizes)?))),
        Val::Order(order) if sizes.len() == 1 => return Ok(Val::Order(*order)),
        _ => {}
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
pub(super) fn with_axes(x: &Val, f: &dyn Fn(usize) -> Option<usize>, rank: usize) -> Result<Val> {
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
        Val::Scores(scores) => scores.under(pick(&scores.dims))?,
        Val::Numbers(numbers) => Val::Numbers(Rc::new(numbers.with_axes(f, rank)?)),
        Val::Order(order) if rank == 1 => Val::Order(*order),
        Val::Order(_) => return Err(numbers::misused()),
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

/// A value of the network as one that an output may be: an input is none.
pub(super) fn as_output(lower: &mut Lower<'_>, x: &Lifted) -> Result<Lifted> {
    match x.port {
        Port::Input(_) => lower.over(Activate::new(Activation::Linear), x),
        Port::Node(..) => Ok(x.clone()),
    }
}
