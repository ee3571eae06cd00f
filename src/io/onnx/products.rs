//! Products with matrices, and windows over steps.

use super::attention;
use super::host::{Data, Host, binary};
use super::layout::{Atom, Axis, Kind, Lifted, joined};
use super::lower::{Lower, Outputs, one, tensor};
use super::node::Node;
use super::value::Val;
use crate::error::{Error, Result};
use crate::nn::{
    Conv1D, Dense, FeatureSum, Flatten, Formula, Function, Init, Merge, MergeKind, Operand, Padding, Pooling,
    Pooling1D, PoolingKind, Window,
};
use crate::params::Tensor;
use std::rc::Rc;

pub(super) fn operator(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    match node.op() {
        "Gemm" => gemm(lower, node),
        "MatMul" => {
            let output = node.message.output.first().map_or("", String::as_str);
            one(product(lower, node.input(0)?, node.input(1)?, [node.name(1), output])?)
        }
        "Conv" => conv(lower, node),
        "GlobalAveragePool" | "GlobalMaxPool" => {
            let x = lower.lifted(node.input(0)?)?;
            let [_, _, steps] = &x.dims[..] else { return Err(Error::unsupported("a pool over two dimensions")) };
            if !matches!(steps[..], [Atom::Steps(_)]) {
                return Err(Error::unsupported("a pool over other than steps"));
            }
            let layer = if node.op() == "GlobalMaxPool" { Pooling::max() } else { Pooling::average() };
            let dims = vec![x.dims[0].clone(), x.dims[1].clone(), Axis::new()];
            one(lower.over(layer, &x)?.with_dims(dims))
        }
        _ => pool(lower, node),
    }
}

/// x Wᵀ + b of a value whose last axis is all features of a row.
fn dense(lower: &mut Lower<'_>, x: &Lifted, weight: Tensor, bias: Option<Tensor>, names: [&str; 2]) -> Result<Lifted> {
    let units = weight.shape()[0];
    let port = lower.add(Dense::new(units).bias(bias.is_some()).initializers(Init::PyTorch), &[x.port])?[0];
    lower.parameter("weight", weight, names[0]);
    if let Some(bias) = bias {
        lower.parameter("bias", bias, names[1]);
    }
    let mut dims = x.dims.clone();
    dims.pop();
    dims.push(vec![Atom::Features { size: units, stride: 1 }]);
    lower.lift(port, Kind::Float, dims)
}

/// A value whose last axis is all features of a row, `inputs` of them: where it runs over steps too, they become so.
fn contracted(lower: &mut Lower<'_>, x: &Lifted, inputs: usize) -> Result<Lifted> {
    let Some(last) = x.dims.last() else { return Err(Error::shape("a product of a single number")) };
    let mut x = x.clone();
    if let [Atom::Steps(axis), rest @ ..] = &last[..]
        && x.is_features(&rest.to_vec())
        && x.axis == Some(*axis)
    {
        let mut dims = x.dims.clone();
        dims.pop();
        let flat = lower.add(Flatten {}, &[x.port])?[0];
        let features = lower.network.signal(flat)?.features().unwrap_or(0);
        dims.push(vec![Atom::Features { size: features, stride: 1 }]);
        x = lower.lift(flat, Kind::Float, dims)?;
    }
    match x.dims.last() {
        Some(last) if x.is_features(last) && x.features == inputs => Ok(x),
        Some(last) if x.is_features(last) => {
            Err(Error::shape(format!("a product of {} features with a matrix for {inputs}", x.features)))
        }
        _ => Err(Error::unsupported("a product over other than all features of a row, in their order")),
    }
}

fn transposed(lower: &Lower<'_>, host: &Rc<Host>) -> Result<Tensor> {
    tensor(&Rc::new(host.transpose(&lower.budget, &[1, 0])?))
}

fn gemm(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let (alpha, beta) = (node.float("alpha")?.unwrap_or(1.0), node.float("beta")?.unwrap_or(1.0));
    let (trans_a, trans_b) = (node.int("transA")?.unwrap_or(0) != 0, node.int("transB")?.unwrap_or(0) != 0);
    let (a, b) = (node.input(0)?, node.input(1)?.host()?);
    if a.rank() != 2 || b.shape.len() != 2 {
        return Err(Error::shape(format!("expected matrices, got {} and {} dimensions", a.rank(), b.shape.len())));
    }
    if let Val::Host(a) = a {
        return gemm_on_host(lower, node, [(a, trans_a), (b, trans_b)], [alpha, beta]);
    }
    let mut a = lower.lifted(a)?;
    if trans_a {
        let dims = a.dims.iter().rev().cloned().collect();
        a = a.with_dims(dims);
    }
    let weight = if trans_b { tensor(b)? } else { transposed(lower, b)? };
    let scaled = |tensor: Tensor, by: f32| -> Result<Tensor> {
        let shape = tensor.shape().to_vec();
        Tensor::new(&shape, tensor.into_f32s()?.into_iter().map(|x| x * by).collect())
    };
    let (units, inputs) = (weight.shape()[0], weight.shape()[1]);
    let bias = match node.maybe(2) {
        None => None,
        Some(value) => {
            let c = value.host()?;
            let row = c.shape.len() <= 2 && c.shape.iter().rev().skip(1).all(|&n| n == 1);
            if !row || ![1, units].contains(&c.data.len()) {
                return Err(Error::unsupported(format!("a matrix of {:?} that is added to a product", c.shape)));
            }
            let all = if c.data.len() == units { c.floats()?.to_vec() } else { vec![c.floats()?[0]; units] };
            Some(scaled(Tensor::new(&[units], all)?, beta)?)
        }
    };
    let x = contracted(lower, &a, inputs)?;
    let names = [node.name(1), node.name(2)];
    one(dense(lower, &x, scaled(weight, alpha)?, bias, names)?)
}

/// The same of constants.
fn gemm_on_host(
    lower: &Lower<'_>,
    node: &Node<'_>,
    [a, b]: [(&Rc<Host>, bool); 2],
    [alpha, beta]: [f32; 2],
) -> Outputs {
    let budget = &lower.budget;
    let scaled = |x: &Host, by: f32| binary(budget, "Mul", x, &Host::new(Vec::new(), Data::Float(vec![by]))?);
    let turned = |(x, turn): (&Rc<Host>, bool)| if turn { x.transpose(budget, &[1, 0]) } else { Ok((**x).clone()) };
    let product = scaled(&turned(a)?.matmul(budget, &turned(b)?)?, alpha)?;
    match node.maybe(2) {
        None => one(product),
        Some(value) => one(binary(budget, "Add", &product, &scaled(value.host()?, beta)?)?),
    }
}

/// The product of matrices a and b; `names` are those of b and of what comes.
pub(super) fn product(lower: &mut Lower<'_>, a: &Val, b: &Val, names: [&str; 2]) -> Result<Val> {
    Ok(match (a, b) {
        (Val::Host(a), Val::Host(b)) => a.matmul(&lower.budget, b)?.into(),
        (a, Val::Host(b)) => {
            let a = lower.lifted(a)?;
            let column = b.shape.len() == 1;
            let matrix = match &b.shape[..] {
                [_] => Rc::new(b.reshape(vec![b.shape[0], 1])?),
                [.., k, n] if b.data.len() == k * n => Rc::new(b.reshape(vec![*k, *n])?),
                _ => return Err(Error::unsupported(format!("a product with matrices of {:?}", b.shape))),
            };
            if b.shape.len() > a.dims.len() {
                return Err(Error::unsupported("a product with a matrix of more dimensions"));
            }
            let weight = transposed(lower, &matrix)?;
            let inputs = weight.shape()[1];
            let x = contracted(lower, &a, inputs)?;
            let y = dense(lower, &x, weight, None, [names[0], ""])?;
            if let crate::nn::Port::Node(at, _) = y.port {
                lower.note_product(names[1], at);
            }
            if column {
                let mut dims = y.dims.clone();
                dims.pop();
                return Ok(y.with_dims(dims).into());
            }
            y.into()
        }
        (Val::Scores(weights), values) => {
            let values = lower.lifted(values)?;
            weights.of(lower, &values)?.into()
        }
        (a, b) if !matches!(a, Val::Host(_) | Val::Spread { .. }) => {
            let (a, b) = (lower.lifted(a)?, lower.lifted(b)?);
            match attention::product(&a, &b) {
                Some(scores) => scores,
                None => pairwise(lower, &a, &b)?.into(),
            }
        }
        _ => return Err(Error::unsupported("a product of a constant with a computed value")),
    })
}

/// A product of two values of each sequence: a `[.., M, K]`, b `[.., K, N]`.
fn pairwise(lower: &mut Lower<'_>, a: &Lifted, b: &Lifted) -> Result<Lifted> {
    let unsupported = || Error::unsupported("a product of two computed values of this form");
    let ([outer_a @ .., m, k], [outer_b @ .., same, n]) = (&a.dims[..], &b.dims[..]) else { return Err(unsupported()) };
    if outer_a != outer_b {
        return Err(unsupported());
    }
    let dims = [outer_a, &[m.clone(), n.clone()]].concat();
    let multiply = |lower: &mut Lower<'_>, x: &Lifted, y: &Lifted| -> Result<Lifted> {
        // The wider one first, which tells how many features there are.
        let (x, y) = if x.features >= y.features { (x, y) } else { (y, x) };
        let product = Merge::new(MergeKind::Multiply);
        let ports = match x.features == y.features {
            true => lower.add(product, &[x.port, y.port])?,
            false => {
                let operands = vec![Operand::Input(0), Operand::Input(1)];
                lower.add(Formula::new(Function::Multiply, operands), &[x.port, y.port])?
            }
        };
        lower.lift(ports[0], Kind::Float, x.dims.clone())
    };
    match (&k[..], &same[..]) {
        // Over steps: a weighted sum of them, by a weight each.
        ([Atom::Steps(x)], [Atom::Steps(y)]) if x == y && (a.features == 1 || b.features == 1) => {
            if !(a.is_features(m) && b.is_features(n)) {
                return Err(unsupported());
            }
            let product = multiply(lower, a, b)?;
            Ok(lower.over(Pooling::sum(), &product)?.with_dims(dims))
        }
        // Over features: how well each step fits a row.
        (_, _) if a.is_features(k) && b.is_features(same) && a.features == b.features => {
            let (mut a, mut b) = (lower.rows(a)?, lower.rows(b)?);
            match (&m[..], &n[..], a.axis, b.axis) {
                ([], [], None, None) => {}
                ([Atom::Steps(_)], [], Some(axis), None) => {
                    let like = lower.port_on(axis)?;
                    b = lower.along(&b, like)?;
                }
                ([], [Atom::Steps(_)], None, Some(axis)) => {
                    let like = lower.port_on(axis)?;
                    a = lower.along(&a, like)?;
                }
                _ => return Err(unsupported()),
            }
            let product = multiply(lower, &a, &b)?;
            Ok(lower.over(FeatureSum { mean: false }, &product)?.with_dims(dims))
        }
        _ => Err(unsupported()),
    }
}

/// The one size of a window, by an attribute.
fn size(node: &Node<'_>, name: &'static str) -> Result<Option<usize>> {
    match node.ints(name)? {
        None => Ok(None),
        Some(&[n]) if (1..=1 << 12).contains(&n) => Ok(Some(n as usize)),
        Some(other) => Err(Error::unsupported(format!("`{name}` of {other:?}; expected windows over steps alone"))),
    }
}

/// Windows of `taps` steps as a node's attributes say, over a value `[B, F, T]`.
fn window(node: &Node<'_>, taps: usize, default_stride: usize) -> Result<Window> {
    let stride = size(node, "strides")?.unwrap_or(default_stride);
    let dilation = size(node, "dilations")?.unwrap_or(1);
    let auto = node.text("auto_pad")?.unwrap_or("NOTSET");
    let pads = node.ints("pads")?.unwrap_or(&[0, 0]);
    let beyond = (taps - 1) * dilation;
    let padding = match (auto, pads) {
        ("VALID", _) | ("NOTSET", [0, 0]) => Padding::Valid,
        ("SAME_UPPER", _) => Padding::Same,
        ("NOTSET", &[before, 0]) if usize::try_from(before) == Ok(beyond) => Padding::Causal,
        ("NOTSET", &[before, after])
            if stride == 1
                && before >= 0
                && (after == before || Some(after) == before.checked_add(1))
                && usize::try_from(before.saturating_add(after)) == Ok(beyond) =>
        {
            Padding::Same
        }
        ("NOTSET", &[before, after]) if [before, after].iter().all(|n| (0..=1 << 12).contains(n)) => {
            Padding::Explicit { before: before as i32, after: after as i32 }
        }
        _ => return Err(Error::unsupported(format!("padding by {pads:?} ({auto})"))),
    };
    Ok(Window { taps, stride, dilation, padding })
}

/// A value `[B, F, T]`, its features in their order.
fn channels_first(lower: &mut Lower<'_>, value: &Val) -> Result<Lifted> {
    let x = lower.lifted(value)?;
    match &x.dims[..] {
        [batch, features, steps]
            if lower.sizes.are_sequences(batch) && x.is_features(features) && matches!(steps[..], [Atom::Steps(_)]) =>
        {
            Ok(x)
        }
        _ => Err(Error::unsupported("expected sequences, features and steps, in this order")),
    }
}

/// The same axes over the steps of another time axis.
fn windowed(lower: &Lower<'_>, x: &Lifted, port: crate::nn::Port, features: usize) -> Result<Lifted> {
    let axis = lower.network.signal(port)?.axis().ok_or_else(|| Error::internal("windows without steps"))?;
    let steps = lower.sizes.as_axis(Atom::Steps(axis));
    lower.lift(
        port,
        Kind::Float,
        vec![x.dims[0].clone(), joined(vec![Atom::Features { size: features, stride: 1 }]), steps],
    )
}

fn conv(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let x = channels_first(lower, node.input(0)?)?;
    let w = node.input(1)?.host()?;
    let &[filters, inputs, taps] = &w.shape[..] else {
        return Err(Error::unsupported(format!("a kernel of {:?}; expected windows over steps alone", w.shape)));
    };
    if node.int("group")?.unwrap_or(1) != 1 {
        return Err(Error::unsupported("a convolution in groups"));
    }
    if size(node, "kernel_shape")?.is_some_and(|n| n != taps) || inputs != x.features || taps == 0 {
        return Err(Error::shape(format!("a kernel of {:?} over {} features", w.shape, x.features)));
    }
    let window = window(node, taps, 1)?;
    let bias = node.maybe(2).map(|v| tensor(v.host()?)).transpose()?;
    let layer = Conv1D::new(filters, taps)
        .stride(window.stride)
        .dilation(window.dilation)
        .padding(window.padding)
        .bias(bias.is_some())
        .initializers(Init::PyTorch);
    let port = lower.add(layer, &[x.port])?[0];
    let kernel = w.transpose(&lower.budget, &[0, 2, 1])?;
    lower.parameter("weight", tensor(&Rc::new(kernel))?, node.name(1));
    if let Some(bias) = bias {
        lower.parameter("bias", bias, node.name(2));
    }
    one(windowed(lower, &x, port, filters)?)
}

fn pool(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let x = channels_first(lower, node.input(0)?)?;
    let taps = size(node, "kernel_shape")?.ok_or_else(|| Error::data("expected the size of windows"))?;
    let max = node.op() == "MaxPool";
    let window = window(node, taps, 1)?;
    // The mean here is over the steps that a window sees.
    let counts = node.int("count_include_pad")?.unwrap_or(0) != 0 && window.padding != Padding::Valid;
    if node.int("ceil_mode")?.unwrap_or(0) != 0 || node.int("storage_order")?.unwrap_or(0) != 0 || counts {
        return Err(Error::unsupported("windows that are counted otherwise"));
    }
    let kind = if max { PoolingKind::Max } else { PoolingKind::Average };
    let port = lower.add(Pooling1D { kind, window }, &[x.port])?[0];
    one(windowed(lower, &x, port, x.features)?)
}
