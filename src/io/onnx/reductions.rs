//! Operators over all features, or all steps, of a value: sums, softmaxes, normalisations.

use super::arithmetic::elementwise;
use super::host::{Data, Host, axis_of};
use super::layout::{Atom, Axis, Kind, Lifted, joined};
use super::lower::{Lower, Outputs, one};
use super::moves;
use super::node::Node;
use super::value::Val;
use crate::error::{Error, Result};
use crate::nn::{
    Activate, Activation, Columns, FeatureSum, Formula, Function, Layer, LayerNormalization, LogSoftmax, Merge,
    MergeKind, Operand, Pooling, TimeSoftmax,
};
use crate::params::Tensor;

/// The axes that a reduction runs over.
fn reduced(node: &Node<'_>, rank: usize, since: i64) -> Result<Option<Vec<usize>>> {
    let named = moves::axes(node, since)?;
    let named = named.filter(|axes| !axes.is_empty());
    if named.is_none() && node.int("noop_with_empty_axes")?.unwrap_or(0) != 0 {
        return Ok(None);
    }
    let mut axes = match named {
        Some(axes) => axes.into_iter().map(|at| axis_of(at, rank)).collect::<Result<Vec<_>>>()?,
        None => (0..rank).collect(),
    };
    let _ = node.int("noop_with_empty_axes")?;
    axes.sort_unstable();
    axes.dedup();
    Ok(Some(axes))
}

pub(super) fn reduce(lower: &mut Lower<'_>, node: &Node<'_>, kind: &str) -> Outputs {
    let x = node.input(0)?;
    let since = if kind == "Sum" { 13 } else { 18 };
    let keep = node.int("keepdims")?.unwrap_or(1) != 0;
    let Some(axes) = reduced(node, x.rank(), since)? else { return one(x.clone()) };
    if let Val::Host(h) = x {
        return one(h.reduce(&lower.budget, kind, &axes, keep)?);
    }
    // Sums of other than the values themselves.
    let (before, kind, after) = match kind {
        "L1" => (Some((Function::Absolute, 1)), "Sum", None),
        "L2" => (Some((Function::Multiply, 2)), "Sum", Some(Function::SquareRoot)),
        "SumSquare" => (Some((Function::Multiply, 2)), "Sum", None),
        other => (None, other, None),
    };
    let mut value = lower.lifted(x)?;
    if let Some((function, operands)) = before {
        value = lower.over(Formula::new(function, vec![Operand::Input(0); operands]), &value)?;
    }
    for &axis in &axes {
        value = reduce_axis(lower, &value, kind, axis)?;
    }
    if let Some(function) = after {
        value = lower.over(Formula::new(function, vec![Operand::Input(0)]), &value)?;
    }
    let dims = value.dims.clone();
    let kept = dims.into_iter().enumerate().filter(|(at, _)| keep || !axes.contains(at)).map(|d| d.1).collect();
    one(value.with_dims(kept))
}

/// One axis reduced to size 1.
fn reduce_axis(lower: &mut Lower<'_>, x: &Lifted, kind: &str, axis: usize) -> Result<Lifted> {
    let unsupported = |what: &str| Err(Error::unsupported(format!("Reduce{kind} {what}")));
    let mut dims = x.dims.clone();
    let dim = std::mem::take(&mut dims[axis]);
    Ok(match dim[..] {
        [] => match kind {
            "Sum" | "Mean" | "Max" | "Min" | "Prod" => x.clone(),
            _ => return unsupported("is not supported"),
        },
        [Atom::Steps(_)] => {
            let layer = match kind {
                "Sum" => Pooling::sum(),
                "Mean" => Pooling::average(),
                "Max" => Pooling::max(),
                "Min" => {
                    let negative = negated(lower, x)?;
                    let least = reduce_axis(lower, &negative, "Max", axis)?;
                    return negated(lower, &least);
                }
                _ => return unsupported("over steps"),
            };
            lower.over(layer, x)?.with_dims(dims)
        }
        [Atom::Features { size, stride }] if size * stride == x.features && stride == 1 => match kind {
            "Sum" | "Mean" => lower.over(FeatureSum { mean: kind == "Mean" }, x)?.with_dims(dims),
            "Max" | "Min" if size <= 64 => folded(lower, x, kind, (size, stride), dims)?,
            _ => return unsupported("over features"),
        },
        // Of the outermost features: block after block.
        [Atom::Features { size, stride }] if size * stride == x.features && size <= 64 => {
            folded(lower, x, kind, (size, stride), dims)?
        }
        _ => return unsupported("over sequences, or over some of the features of a row"),
    })
}

fn negated(lower: &mut Lower<'_>, x: &Lifted) -> Result<Lifted> {
    lower.over(Formula::new(Function::Negate, vec![Operand::Input(0)]), x)
}

/// Blocks of features that a merge makes one of.
fn folded(
    lower: &mut Lower<'_>,
    x: &Lifted,
    kind: &str,
    (size, stride): (usize, usize),
    dims: Vec<Axis>,
) -> Result<Lifted> {
    let merge = match kind {
        "Sum" => MergeKind::Add,
        "Mean" => MergeKind::Average,
        "Max" => MergeKind::Maximum,
        "Min" => MergeKind::Minimum,
        "Prod" => MergeKind::Multiply,
        _ => return Err(Error::unsupported(format!("Reduce{kind} over features"))),
    };
    let mut parts = Vec::new();
    for at in 0..size {
        parts.push(lower.add(Columns { first: at * stride, count: stride }, &[x.port])?[0]);
    }
    let port = lower.add(Merge::new(merge), &parts)?[0];
    lower.lift(port, Kind::Float, dims)
}

pub(super) fn softmax(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let value = node.input(0)?;
    let log = node.op() == "LogSoftmax";
    let own = if node.version < 13 { 1 } else { -1 };
    let axis = axis_of(node.int("axis")?.unwrap_or(own), value.rank())?;
    if let (Val::Scores(scores), false) = (value, log) {
        return one(scores.softmax(axis)?);
    }
    let x = lower.lifted(value)?;
    // Before version 13 all axes from this one on were one.
    if node.version < 13 && x.dims[axis + 1..].iter().any(|dim| !dim.is_empty()) {
        return Err(Error::unsupported("a softmax over several dimensions at once"));
    }
    let dim = &x.dims[axis];
    let layer: Layer = match (dim.as_slice(), log) {
        (_, false) if x.is_features(dim) => Activate::new(Activation::Softmax).into(),
        (_, true) if x.is_features(dim) => LogSoftmax {}.into(),
        ([Atom::Steps(_)], false) => TimeSoftmax {}.into(),
        _ => return Err(Error::unsupported("a softmax over other than features or steps")),
    };
    one(lower.over(layer, &x)?)
}

pub(super) fn argmax(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let x = lower.lifted(node.input(0)?)?;
    let axis = axis_of(node.int("axis")?.unwrap_or(0), x.dims.len())?;
    if node.int("select_last_index")?.unwrap_or(0) != 0 || !x.is_features(&x.dims[axis]) {
        return Err(Error::unsupported("the largest of other than the features, or the last of equals"));
    }
    let keep = node.int("keepdims")?.unwrap_or(1) != 0;
    let mut dims = x.dims.clone();
    if keep {
        dims[axis].clear();
    } else {
        dims.remove(axis);
    }
    one(Val::Best { of: x, dims })
}

pub(super) fn layer_normalization(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let _ = node.int("stash_type")?;
    let x = lower.lifted(node.input(0)?)?;
    let axis = axis_of(node.int("axis")?.unwrap_or(-1), x.dims.len())?;
    let epsilon = node.float("epsilon")?.unwrap_or(1e-5);
    if !x.is_features(&joined(x.dims[axis..].concat())) {
        return Err(Error::unsupported("a normalisation over other than the features of a row"));
    }
    let vector = |value: &Val| -> Result<Vec<f32>> {
        let host = value.host()?;
        match host.data.len() {
            n if n == x.features => host.as_floats(),
            1 => Ok(vec![host.as_floats()?[0]; x.features]),
            n => Err(Error::shape(format!("{n} factors or terms of {} features", x.features))),
        }
    };
    let (scale, bias) = (vector(node.input(1)?)?, node.maybe(2).map(vector).transpose()?);
    let layer = LayerNormalization { epsilon, scale: true, center: bias.is_some(), name: None };
    let y = lower.over(layer, &x)?;
    lower.parameter("weight", Tensor::new(&[x.features], scale)?, node.name(1));
    if let Some(bias) = bias {
        lower.parameter("bias", Tensor::new(&[x.features], bias)?, node.name(2));
    }
    one(y)
}

/// Of the running mean and variance: a factor and a term a channel.
pub(super) fn batch_normalization(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let epsilon = node.float("epsilon")?.unwrap_or(1e-5);
    let _ = (node.float("momentum")?, node.int("spatial")?);
    if node.int("training_mode")?.unwrap_or(0) != 0 || (1..5).any(|at| node.gives(at)) {
        return Err(Error::unsupported("a normalisation over the batch itself"));
    }
    let value = node.input(0)?;
    let rank = value.rank();
    let all = (1..5).map(|at| node.input(at)?.host()?.as_floats()).collect::<Result<Vec<_>>>()?;
    let [scale, bias, mean, variance] = &all[..] else { return Err(Error::internal("four vectors")) };
    if rank < 2 || all.iter().any(|v| v.len() != scale.len()) {
        return Err(Error::shape("a normalisation whose vectors are of different sizes"));
    }
    let factors: Vec<f32> = scale
        .iter()
        .zip(variance)
        .map(|(s, v)| (f64::from(*s) / (f64::from(*v) + f64::from(epsilon)).sqrt()) as f32)
        .collect();
    let terms = bias
        .iter()
        .zip(mean.iter().zip(&factors))
        .map(|(b, (m, f))| (f64::from(*b) - f64::from(*m) * f64::from(*f)) as f32);
    // A channel is axis 1.
    let shape: Vec<usize> = [vec![scale.len()], vec![1; rank - 2]].concat();
    let terms = Host::new(shape.clone(), Data::Float(terms.collect()))?.into();
    let factors = Host::new(shape, Data::Float(factors))?.into();
    let scaled = elementwise(lower, "Mul", Function::Multiply, &[value, &factors])?;
    elementwise(lower, "Add", Function::Add, &[&scaled, &terms]).and_then(one)
}
