//! Functions of each element as expressions of a graph.

use crate::config::{Activation, Curve};
use crate::error::Result;
use crate::graph::{Expr, Graph, Value};

/// Adds the function of `x` to `graph`.
pub fn apply(activation: Activation, graph: &mut Graph, x: Value) -> Result<Value> {
    match activation {
        Activation::Linear => Ok(x),
        Activation::Softmax => graph.softmax(x),
        _ => {
            activation.validate()?;
            graph.elementwise(expression(activation), &[x])
        }
    }
}

/// The function of input 0.
fn expression(activation: Activation) -> Expr {
    let (curve, alpha, beta) = activation.curve();
    let (x, zero, one) = (Expr::Input(0), Expr::Const(0.0), Expr::Const(1.0));
    let (alpha, beta) = (Expr::Const(alpha), Expr::Const(beta));
    // 1 where x is positive; at zero both sides of the functions below agree.
    let positive = zero.clone().less(x.clone());
    match curve {
        Curve::Affine => alpha * x + beta,
        Curve::Leaky => positive.select(x.clone(), alpha * x),
        Curve::Thresholded => alpha.less(x.clone()).select(x, zero),
        Curve::Tanh => alpha * (beta * x).tanh(),
        Curve::HardSigmoid => (alpha * x + beta).max(zero).min(one),
        // Of the smaller of x and 0, so that the other branch cannot overflow.
        Curve::Elu => beta * positive.select(x.clone(), alpha * (x.min(zero).exp() - one)),
        Curve::Softsign => x.clone() / (one + x.abs()),
        Curve::Softplus => x.clone().max(zero) + (one + (-x.abs()).exp()).ln(),
        Curve::Sigmoid => x.sigmoid(),
        Curve::Swish => x.clone() * x.sigmoid(),
        Curve::Exponential => x.exp(),
    }
}
