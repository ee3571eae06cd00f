//! Operators over elements, and over the features or the steps of each sequence.

use super::attention::misused;
use super::host::{self, Data, Host};
use super::int::Int;
use super::layout::{Atom, Axis, Kind, Lifted};
use super::lower::{Lower, Outputs, one};
use super::moves;
use super::node::Node;
use super::numbers;
use super::reductions;
use super::value::Val;
use super::{composed, constants};
use crate::error::{Error, Result};
use crate::nn::{Activate, Activation, Dense, Formula, Function, Layer, Operand, Port};
use crate::params::Tensor;
use std::rc::Rc;

pub(super) fn operator(lower: &mut Lower<'_>, node: &Node<'_>) -> Result<Option<Vec<Option<Val>>>> {
    let op = node.op();
    if let Some(reduction) = op.strip_prefix("Reduce") {
        return reductions::reduce(lower, node, reduction).map(Some);
    }
    if let Some(function) = function(op) {
        if node.version < 7 || node.int("broadcast")?.is_some() {
            return Err(Error::unsupported("operands that spread as an attribute says"));
        }
        let count = if matches!(op, "Max" | "Min" | "Sum" | "Mean") { node.len() } else { function.operands() };
        let operands = (0..count).map(|at| node.input(at)).collect::<Result<Vec<_>>>()?;
        return elementwise(lower, op, function, &operands).and_then(one).map(Some);
    }
    if let Some(activation) = activation(node)? {
        let value = node.input(0)?;
        if let Val::Host(h) = value {
            return one(host::unary(op, h)?).map(Some);
        }
        let x = lower.lifted(value)?;
        return one(lower.over(Activate::new(activation), &x)?).map(Some);
    }
    let outputs = match op {
        "Softmax" | "LogSoftmax" => reductions::softmax(lower, node),
        "ArgMax" => reductions::argmax(lower, node),
        "Clip" => clip(lower, node),
        "Gelu" | "PRelu" | "HardSwish" | "Mish" | "Celu" => composed::operator(lower, node),
        "LayerNormalization" => reductions::layer_normalization(lower, node),
        "BatchNormalization" => reductions::batch_normalization(lower, node),
        "LessOrEqual" | "GreaterOrEqual" => {
            let (a, b) = (node.input(0)?, node.input(1)?);
            if let (Val::Host(a), Val::Host(b)) = (a, b) {
                one(host::binary(&lower.budget, op, a, b)?)
            } else {
                let (op, function) =
                    if op == "LessOrEqual" { ("Greater", Function::Greater) } else { ("Less", Function::Less) };
                let over = elementwise(lower, op, function, &[a, b])?;
                elementwise(lower, "Not", Function::Not, &[&over]).and_then(one)
            }
        }
        "Floor" | "Ceil" | "Round" | "Sin" | "Cos" | "Mod" | "Xor" => {
            let operands = (0..node.len()).map(|at| node.input(at)?.host()).collect::<Result<Vec<_>>>()?;
            if node.int("fmod")?.unwrap_or(0) != 0 {
                return Err(Error::unsupported("the remainder of floats"));
            }
            match operands[..] {
                [x] => one(host::unary(op, x)?),
                [a, b] => one(host::binary(&lower.budget, op, a, b)?),
                _ => Err(Error::data(format!("{} operands", operands.len()))),
            }
        }
        _ => return Ok(None),
    };
    outputs.map(Some)
}

fn function(op: &str) -> Option<Function> {
    Some(match op {
        "Add" | "Sum" => Function::Add,
        "Sub" => Function::Subtract,
        "Mul" => Function::Multiply,
        "Div" => Function::Divide,
        "Max" => Function::Maximum,
        "Min" => Function::Minimum,
        "Pow" => Function::Power,
        "Neg" => Function::Negate,
        "Exp" => Function::Exponential,
        "Log" => Function::Logarithm,
        "Sqrt" => Function::SquareRoot,
        "Abs" => Function::Absolute,
        "Sign" => Function::Sign,
        "Reciprocal" => Function::Reciprocal,
        "Erf" => Function::Erf,
        "Less" => Function::Less,
        "Greater" => Function::Greater,
        "Equal" => Function::Equal,
        "Not" => Function::Not,
        "And" => Function::And,
        "Or" => Function::Or,
        "Where" => Function::Where,
        _ => return None,
    })
}

fn activation(node: &Node<'_>) -> Result<Option<Activation>> {
    let alpha = |own: f32| Ok::<f32, Error>(node.float("alpha")?.unwrap_or(own));
    let beta = |own: f32| Ok::<f32, Error>(node.float("beta")?.unwrap_or(own));
    Ok(Some(match node.op() {
        "Relu" => Activation::Relu,
        "Sigmoid" => Activation::Sigmoid,
        "Tanh" => Activation::Tanh,
        "Softplus" => Activation::Softplus,
        "Softsign" => Activation::Softsign,
        "LeakyRelu" => Activation::LeakyRelu { alpha: alpha(0.01)? },
        "ThresholdedRelu" => Activation::ThresholdedRelu { alpha: alpha(1.0)? },
        "HardSigmoid" => Activation::HardSigmoid { alpha: alpha(0.2)?, beta: beta(0.5)? },
        "Elu" => Activation::Elu { alpha: alpha(1.0)? },
        "Selu" => {
            let (given, gamma) = (node.float("alpha")?, node.float("gamma")?);
            if given.is_some_and(|a| (a - 1.673_263_2).abs() > 1e-5)
                || gamma.is_some_and(|g| (g - 1.050_701).abs() > 1e-5)
            {
                return Err(Error::unsupported("a selu of other parameters than its own"));
            }
            Activation::Selu
        }
        _ => return Ok(None),
    }))
}

pub(super) fn number(x: f32) -> Result<Val> {
    Ok(Host::new(Vec::new(), Data::Float(vec![x]))?.into())
}

/// A function of operands that spread over each other.
pub(super) fn elementwise(lower: &mut Lower<'_>, op: &str, function: Function, operands: &[&Val]) -> Result<Val> {
    if let ("Max" | "Min" | "Sum", [a, b, rest @ ..]) = (op, operands)
        && !rest.is_empty()
    {
        let pair = elementwise(lower, op, function, &[a, b])?;
        return elementwise(lower, op, function, &[&[&pair], rest].concat());
    }
    if let ("Max" | "Min" | "Sum", [only]) = (op, operands) {
        return Ok((*only).clone());
    }
    let known = |v: &&&Val| matches!(v, Val::Host(_));
    if operands.iter().all(|v| known(&v)) {
        let hosts = operands.iter().map(|v| v.host()).collect::<Result<Vec<_>>>()?;
        return Ok(on_host(lower, op, &hosts)?.into());
    }
    if let Some(value) = numbers::elementwise(lower, op, operands)? {
        return Ok(value);
    }
    if let Some(value) = of_scores(op, operands)? {
        return Ok(value);
    }
    if let Some(value) = of_spread(lower, op, operands)? {
        return Ok(value);
    }
    if let Some(value) = constants::compared(lower, op, operands)? {
        return Ok(value);
    }
    if let Some(value) = of_tokens(lower, op, operands)? {
        return Ok(value);
    }
    if let Some(value) = as_bias(lower, function, operands)? {
        return Ok(value);
    }
    formula(lower, function, operands)
}

fn on_host(lower: &Lower<'_>, op: &str, operands: &[&Rc<Host>]) -> Result<Host> {
    let op = if op == "Sum" { "Add" } else { op };
    match operands {
        [x] => host::unary(op, x),
        [a, b] => host::binary(&lower.budget, op, a, b),
        [c, a, b] => host::choose(&lower.budget, c, a, b),
        _ => Err(Error::internal("operands of a function")),
    }
}

/// Of how well steps fit each other, times a number.
fn of_scores(op: &str, operands: &[&Val]) -> Result<Option<Val>> {
    if !operands.iter().any(|v| matches!(v, Val::Scores(_))) {
        return Ok(None);
    }
    let factor = |value: &Val| match value {
        Val::Host(h) if h.data.len() == 1 => Ok(h.as_floats()?[0]),
        _ => Err(misused()),
    };
    match (op, operands) {
        ("Mul", [Val::Scores(scores), other] | [other, Val::Scores(scores)]) => scores.scaled(factor(other)?),
        ("Div", [Val::Scores(scores), other]) => scores.scaled(1.0 / factor(other)?),
        _ => Err(misused()),
    }
    .map(Some)
}

/// Of constants that spread over sizes which a run tells, and of others that do not change their sizes.
fn of_spread(lower: &Lower<'_>, op: &str, operands: &[&Val]) -> Result<Option<Val>> {
    let Some(Val::Spread { dims, .. }) = operands.iter().find(|v| matches!(v, Val::Spread { .. })) else {
        return Ok(None);
    };
    let mut bases = Vec::new();
    for operand in operands {
        match operand {
            Val::Spread { base, dims: other } if other == dims => bases.push(base),
            Val::Host(h) if h.data.len() == 1 && h.shape.len() <= dims.len() => bases.push(h),
            _ => return Ok(None),
        }
    }
    Ok(Some(Val::Spread { base: Rc::new(on_host(lower, op, &bases)?), dims: dims.clone() }))
}

/// Of tokens and constants alone, by the token.
fn of_tokens(lower: &mut Lower<'_>, op: &str, operands: &[&Val]) -> Result<Option<Val>> {
    let (mut found, mut tables): (Option<Lifted>, Vec<Rc<Host>>) = (None, Vec::new());
    for operand in operands {
        let table = match operand {
            Val::Lifted(x) if x.kind == Kind::Tokens => moves::table(lower, x)?,
            other => (*other).clone(),
        };
        match table {
            Val::Table { tokens, table } if found.as_ref().is_none_or(|f| *f == tokens) => {
                found = Some(tokens);
                tables.push(table);
            }
            Val::Host(h) if h.data.len() == 1 => tables.push(Rc::new(h.reshape(vec![1])?)),
            Val::Host(_) | Val::Lifted(_) | Val::Table { .. } => return Ok(None),
            _ => return Ok(None),
        }
    }
    let Some(tokens) = found else { return Ok(None) };
    let rank = tokens.dims.len();
    if operands.iter().any(|v| v.rank() > rank) {
        return Ok(None);
    }
    let tables: Vec<&Rc<Host>> = tables.iter().collect();
    Ok(Some(Val::Table { tokens, table: Rc::new(on_host(lower, op, &tables)?) }))
}

/// The sum of a product that nothing else reads and a constant, as the product's bias.
fn as_bias(lower: &mut Lower<'_>, function: Function, operands: &[&Val]) -> Result<Option<Val>> {
    let (Function::Add, [a, b]) = (function, operands) else { return Ok(None) };
    let ((Val::Lifted(x), Val::Host(bias)) | (Val::Host(bias), Val::Lifted(x))) = (*a, *b) else {
        return Ok(None);
    };
    let Port::Node(at, 0) = x.port else { return Ok(None) };
    let fresh = lower.products.iter().find(|p| *p.1 == at).map(|p| p.0.clone());
    let Some(name) = fresh.filter(|name| lower.read_once(name)) else { return Ok(None) };
    let last = x.dims.last().is_some_and(|axis| x.is_features(axis));
    let whole = bias.shape.iter().rev().skip(1).all(|&n| n == 1) && bias.shape.len() <= x.dims.len();
    if !last || !whole || bias.shape.last() != Some(&x.features) || lower.network.nodes.len() != at + 1 {
        return Ok(None);
    }
    let Some(Layer::Dense(dense)) = lower.network.last_layer() else { return Ok(None) };
    dense.bias = true;
    lower.products.remove(&name);
    let values = Tensor::new(&[x.features], bias.floats()?.to_vec())?;
    lower.parameter("bias", values, "");
    Ok(Some(Val::Lifted(x.clone())))
}

/// A function of what the network computes and constants.
fn formula(lower: &mut Lower<'_>, function: Function, operands: &[&Val]) -> Result<Val> {
    let mut values: Vec<Option<Lifted>> = Vec::new();
    for operand in operands {
        values.push(match operand {
            Val::Host(_) | Val::Spread { .. } => None,
            other => Some(lower.lifted(other)?),
        });
    }
    let rank = operands.iter().map(|v| v.rank()).max().unwrap_or(0);
    // All under as many axes.
    for value in values.iter_mut().flatten() {
        let mut dims = vec![Axis::new(); rank - value.dims.len()];
        dims.append(&mut value.dims);
        value.dims = dims;
    }
    let mut dims: Vec<Axis> = vec![Axis::new(); rank];
    for value in values.iter().flatten() {
        for (dim, own) in dims.iter_mut().zip(&value.dims) {
            if dim.is_empty() {
                dim.clone_from(own);
            }
        }
    }
    let like = values.iter().flatten().next().cloned();
    let like = like.ok_or_else(|| Error::internal("a formula of constants"))?;
    let mut settled: Vec<Val> = operands.iter().map(|v| (*v).clone()).collect();
    for (operand, value) in settled.iter_mut().zip(&mut values) {
        let Val::Host(host) = operand else { continue };
        *operand = constants::along_steps(lower, host, &dims, &like)?;
        if let Val::Lifted(computed) = operand {
            *value = Some(computed.clone());
        }
    }
    let operands: Vec<&Val> = settled.iter().collect();
    let order = |value: &Lifted| value.atoms().into_iter().find(|a| a.is_sequences());
    let mut orders = values.iter().flatten().filter_map(order);
    if orders.next().is_some_and(|first| orders.any(|other| other != first)) {
        return Err(Error::unsupported("values of sequences in two orders at once"));
    }
    // One time axis.
    let mut steps: Option<u8> = None;
    for axis in dims.iter().flatten() {
        if let Atom::Steps(axis) = *axis {
            match steps {
                Some(other) if other != axis => {
                    return Err(Error::unsupported("values over the steps of two sequences at once"));
                }
                _ => steps = Some(axis),
            }
        }
    }
    for value in values.iter_mut().flatten() {
        *value = lower.rows(value)?;
        let own = value.axis;
        match (own, steps) {
            (Some(a), Some(b)) if a != b && !lower.same_steps(a, b)? => {
                if lower.sizes.atom(Atom::Steps(a)) != lower.sizes.atom(Atom::Steps(b)) || lower.together.is_some() {
                    return Err(Error::unsupported("values of two sequences, whose steps may differ"));
                }
                let (like, axes) = (lower.port_on(b)?, value.dims.clone());
                let renamed = |dim: &Axis| -> Axis {
                    dim.iter().map(|&atom| if atom == Atom::Steps(a) { Atom::Steps(b) } else { atom }).collect()
                };
                *value = lower.along(value, like)?.with_dims(axes.iter().map(renamed).collect());
            }
            (None, Some(axis)) => {
                let like = lower.port_on(axis)?;
                *value = lower.along(value, like)?;
            }
            _ => {}
        }
    }
    // One order of features, that of the value with most of them; others have the same or one for all.
    let constants: Vec<Option<&Rc<Host>>> = operands
        .iter()
        .map(|v| match v {
            Val::Host(base) | Val::Spread { base, .. } => Some(base),
            _ => None,
        })
        .collect();
    if let Some(first) = values.iter().position(Option::is_some)
        && values.iter().flatten().all(|v| v.features == 1)
    {
        // A constant may bring features of its own.
        for host in constants.iter().flatten() {
            let grown = values[first].as_ref().map(|x| with_features_of(lower, x, host, rank)).transpose()?;
            values[first] = grown;
        }
    }
    let lead = values.iter().flatten().max_by_key(|v| v.features).cloned();
    let lead = lead.ok_or_else(|| Error::internal("a formula of constants"))?;
    let spread_dims = |value: &Lifted| -> bool {
        value.dims.iter().zip(&lead.dims).all(|(own, whole)| own == whole || own.iter().all(|a| !is_feature(a)))
    };
    for value in values.iter().flatten() {
        let features = |dims: &[Axis]| {
            dims.iter().map(|d| d.iter().copied().filter(is_feature).collect::<Axis>()).collect::<Vec<_>>()
        };
        if value.features != 1 && (features(&value.dims) != features(&lead.dims) || !spread_dims(value)) {
            return Err(Error::unsupported(
                "values whose features lie in different orders, or spread over some of them",
            ));
        }
    }
    for (dim, own) in dims.iter_mut().zip(&lead.dims) {
        if own.iter().any(is_feature) {
            dim.clone_from(own);
        }
    }
    let (mut inputs, mut list, mut vectors) = (Vec::new(), Vec::new(), Vec::new());
    for (at, value) in values.iter().enumerate() {
        list.push(match (value, constants[at]) {
            (Some(value), _) => {
                let place = inputs.iter().position(|p| *p == value.port).unwrap_or_else(|| {
                    inputs.push(value.port);
                    inputs.len() - 1
                });
                Operand::Input(place)
            }
            (None, Some(host)) => {
                if let Val::Spread { dims: sizes, .. } = operands[at] {
                    check_spread(lower, sizes, &dims)?;
                }
                let vector = vector(host, &dims, lead.features)?;
                match vector.first() {
                    Some(&x) if vector.iter().all(|y| y.to_bits() == x.to_bits()) => Operand::Number(x),
                    _ => {
                        vectors.push(vector);
                        Operand::Vector(vectors.len() - 1)
                    }
                }
            }
            (None, None) => return Err(Error::internal("an operand that is nothing")),
        });
    }
    // The layer's first input tells how many features its parameters have.
    if let Some(widest) =
        inputs.iter().position(|p| values.iter().flatten().any(|v| v.port == *p && v.features == lead.features))
        && widest != 0
    {
        inputs.swap(0, widest);
        for operand in &mut list {
            match operand {
                Operand::Input(at) if *at == 0 => *at = widest,
                Operand::Input(at) if *at == widest => *at = 0,
                _ => {}
            }
        }
    }
    let ports = lower.add(Formula::new(function, list), &inputs)?;
    for (at, vector) in vectors.into_iter().enumerate() {
        lower.parameter(&format!("constant_{at}"), Tensor::new(&[lead.features], vector)?, "");
    }
    let truth = matches!(function, Function::Less | Function::Greater | Function::Equal | Function::Not)
        || matches!(function, Function::And | Function::Or);
    let kind = if truth { Kind::Bool } else { Kind::Float };
    Ok(lower.lift(ports[0], kind, dims)?.into())
}

fn is_feature(atom: &Atom) -> bool {
    matches!(atom, Atom::Features { .. })
}

/// A value of one feature with as many as a constant has along axes that the value has not.
pub(super) fn with_features_of(lower: &mut Lower<'_>, x: &Lifted, host: &Host, rank: usize) -> Result<Lifted> {
    if x.features > 1 {
        return Ok(x.clone());
    }
    let before = rank - host.shape.len();
    let mut dims = x.dims.clone();
    let features: usize = host.shape.iter().product();
    let mut stride = features;
    let mut brings = false;
    for (at, &size) in host.shape.iter().enumerate() {
        if size == 1 {
            continue;
        }
        if !dims[before + at].is_empty() {
            // Along sequences or steps; refused where the constant is read.
            return Ok(x.clone());
        }
        stride /= size.max(1);
        dims[before + at] = vec![Atom::Features { size, stride }];
        brings = true;
    }
    if !brings || features <= 1 {
        return Ok(x.clone());
    }
    lower.budget.spend(features)?;
    let port = lower.add(Dense::new(features).bias(false), &[x.port])?[0];
    lower.parameter("weight", Tensor::new(&[features, 1], vec![1.0; features])?, "");
    lower.lift(port, x.kind, dims)
}

/// Refuses a constant that spreads over more than the other operands have.
fn check_spread(lower: &Lower<'_>, sizes: &[Int], dims: &[Axis]) -> Result<()> {
    let before = dims.len() - sizes.len();
    for (at, size) in sizes.iter().enumerate() {
        if *size != Int::ONE && *size != lower.sizes.axis(&dims[before + at])? {
            return Err(Error::unsupported(format!("a constant spread over {size}, which no other operand has")));
        }
    }
    Ok(())
}

/// A constant as a value for each feature of a row under `dims`.
fn vector(host: &Host, dims: &[Axis], features: usize) -> Result<Vec<f32>> {
    let values = host.as_floats()?;
    if let [x] = values[..] {
        return Ok(vec![x]);
    }
    let before = dims.len() - host.shape.len();
    let strides = host::strides(&host.shape);
    let mut places = vec![0usize; features];
    for (at, &size) in host.shape.iter().enumerate() {
        if size == 1 {
            continue;
        }
        match dims[before + at][..] {
            [Atom::Features { size: own, stride }] if own == size => {
                for (feature, place) in places.iter_mut().enumerate() {
                    *place += feature / stride % size * strides[at];
                }
            }
            _ => return Err(Error::unsupported("a constant that differs along sequences or steps")),
        }
    }
    Ok(places.into_iter().map(|at| values[at]).collect())
}

fn clip(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let (low, high) = match node.version {
        ..11 => (node.float("min")?.map(number).transpose()?, node.float("max")?.map(number).transpose()?),
        _ => (node.maybe(1).cloned(), node.maybe(2).cloned()),
    };
    let mut value = node.input(0)?.clone();
    for (limit, op, function) in [(low, "Max", Function::Maximum), (high, "Min", Function::Minimum)] {
        if let Some(limit) = limit {
            value = elementwise(lower, op, function, &[&value, &limit])?;
        }
    }
    one(value)
}
