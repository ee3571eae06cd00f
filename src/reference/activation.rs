//! The functions of gates and layers, with their derivatives.

use super::{Real, real, sigmoid};
use crate::config::{Activation, Curve};

/// The function's value at `x`.
pub(super) fn value<R: Real>(activation: Activation, x: R) -> R {
    let (curve, alpha, beta) = activation.curve();
    let (alpha, beta): (R, R) = (real(alpha), real(beta));
    let (zero, one) = (R::zero(), R::one());
    match curve {
        Curve::Affine => alpha * x + beta,
        Curve::Leaky => {
            if x > zero {
                x
            } else {
                alpha * x
            }
        }
        Curve::Thresholded => {
            if x > alpha {
                x
            } else {
                zero
            }
        }
        Curve::Tanh => alpha * (beta * x).tanh(),
        Curve::HardSigmoid => (alpha * x + beta).max(zero).min(one),
        Curve::Elu => beta * if x > zero { x } else { alpha * x.exp_m1() },
        Curve::Softsign => x / (one + x.abs()),
        // ln(1+e^x) without overflow
        Curve::Softplus => x.max(zero) + (-x.abs()).exp().ln_1p(),
        Curve::Sigmoid => sigmoid(x),
        Curve::Swish => x * sigmoid(x),
        Curve::Exponential => x.exp(),
    }
}

/// The function's derivative at `x`; at a corner the one from the left.
pub(super) fn slope<R: Real>(activation: Activation, x: R) -> R {
    let (curve, alpha, beta) = activation.curve();
    let (alpha, beta): (R, R) = (real(alpha), real(beta));
    let (zero, one) = (R::zero(), R::one());
    match curve {
        Curve::Affine => alpha,
        Curve::Leaky => {
            if x > zero {
                one
            } else {
                alpha
            }
        }
        Curve::Thresholded => {
            if x > alpha {
                one
            } else {
                zero
            }
        }
        Curve::Tanh => {
            let t = (beta * x).tanh();
            alpha * beta * (one - t * t)
        }
        Curve::HardSigmoid => {
            let y = alpha * x + beta;
            if y > zero && y < one { alpha } else { zero }
        }
        Curve::Elu => beta * if x > zero { one } else { alpha * x.exp() },
        Curve::Softsign => one / ((one + x.abs()) * (one + x.abs())),
        Curve::Softplus => sigmoid(x),
        Curve::Sigmoid => sigmoid(x) * (one - sigmoid(x)),
        Curve::Swish => sigmoid(x) + x * sigmoid(x) * (one - sigmoid(x)),
        Curve::Exponential => x.exp(),
    }
}
