//! Functions of elements that are several layers here.

use super::arithmetic::{elementwise, number};
use super::lower::{Lower, Outputs, one};
use super::node::Node;
use super::value::Val;
use crate::error::{Error, Result};
use crate::nn::{Activate, Activation, Function};

pub(super) fn operator(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let x = node.input(0)?;
    match node.op() {
        "PRelu" => {
            let scaled = product(lower, x, node.input(1)?)?;
            let below = elementwise(lower, "Less", Function::Less, &[x, &number(0.0)?])?;
            elementwise(lower, "Where", Function::Where, &[&below, &scaled, x]).and_then(one)
        }
        "HardSwish" => {
            let share = activated(lower, Activation::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 }, x)?;
            product(lower, x, &share).and_then(one)
        }
        "Mish" => {
            let soft = activated(lower, Activation::Softplus, x)?;
            let share = activated(lower, Activation::Tanh, &soft)?;
            product(lower, x, &share).and_then(one)
        }
        // An elu of x over alpha, times alpha.
        "Celu" => {
            let alpha = node.float("alpha")?.unwrap_or(1.0);
            let inner = elementwise(lower, "Div", Function::Divide, &[x, &number(alpha)?])?;
            let y = activated(lower, Activation::Elu { alpha: 1.0 }, &inner)?;
            product(lower, &y, &number(alpha)?).and_then(one)
        }
        _ => gelu(lower, node),
    }
}

fn product(lower: &mut Lower<'_>, a: &Val, b: &Val) -> Result<Val> {
    elementwise(lower, "Mul", Function::Multiply, &[a, b])
}

fn activated(lower: &mut Lower<'_>, activation: Activation, x: &Val) -> Result<Val> {
    let x = lower.lifted(x)?;
    Ok(lower.over(Activate::new(activation), &x)?.into())
}

fn gelu(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let x = node.input(0)?;
    let half = number(0.5)?;
    let mut step = |op: &str, function, a: &Val, b: &Val| elementwise(lower, op, function, &[a, b]);
    let inner = match node.text("approximate")?.unwrap_or("none") {
        "none" => step("Mul", Function::Multiply, x, &number(std::f32::consts::FRAC_1_SQRT_2)?)?,
        "tanh" => {
            let cube = step("Pow", Function::Power, x, &number(3.0)?)?;
            let part = step("Mul", Function::Multiply, &cube, &number(0.044_715)?)?;
            let sum = step("Add", Function::Add, x, &part)?;
            step("Mul", Function::Multiply, &sum, &number((2.0 / std::f32::consts::PI).sqrt())?)?
        }
        other => return Err(Error::unsupported(format!("a gelu by `{other}`"))),
    };
    let share = if node.text("approximate")? == Some("tanh") {
        activated(lower, Activation::Tanh, &inner)?
    } else {
        elementwise(lower, "Erf", Function::Erf, &[&inner])?
    };
    let share = elementwise(lower, "Add", Function::Add, &[&share, &number(1.0)?])?;
    let scaled = elementwise(lower, "Mul", Function::Multiply, &[x, &half])?;
    elementwise(lower, "Mul", Function::Multiply, &[&scaled, &share]).and_then(one)
}
