//! The rules by which gradients change parameters, one family a file.

mod adam;
mod gradient;
mod squares;

pub use adam::{Adam, AdamW, Adamax, Lion, Nadam};
pub use gradient::{AveragedSgd, Sgd};
pub use squares::{Adadelta, Adagrad, RmsProp};

use crate::error::{Error, Result};
use crate::graph::Expr;
use serde::{Deserialize, Serialize};

/// Whose formula, where PyTorch's and Keras's differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Convention {
    /// Keras 3's.
    Keras,
    /// PyTorch's.
    #[serde(rename = "pytorch")]
    PyTorch,
}

/// Any rule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "class", rename_all = "snake_case")]
pub enum Rule {
    /// Gradient descent.
    Sgd(Sgd),
    /// Gradient descent with a rate that falls and a pull to zero, made to be averaged.
    AveragedSgd(AveragedSgd),
    /// Adam and AMSGrad.
    Adam(Adam),
    /// Adam with Nesterov's momentum.
    Nadam(Nadam),
    /// Adam by the largest gradient.
    Adamax(Adamax),
    /// The sign of momentum.
    Lion(Lion),
    /// Gradients by the root of their mean square.
    RmsProp(RmsProp),
    /// Gradients by the root of the sum of their squares.
    Adagrad(Adagrad),
    /// Gradients by their size, times the size of changes.
    Adadelta(Adadelta),
}

/// What a rule keeps of each parameter, in its shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Slot {
    pub(super) prefix: &'static str,
    pub(super) initial: f32,
}

impl Slot {
    pub(super) const fn zero(prefix: &'static str) -> Self {
        Self { prefix, initial: 0.0 }
    }
}

const M: Slot = Slot::zero("optimizer.m.");
const V: Slot = Slot::zero("optimizer.v.");
/// The scalar that every rule has.
const LEARNING_RATE: &str = "optimizer.learning_rate";

/// A scalar that the host computes in 64 bits for each step.
type Scalar = (&'static str, f64);

/// What a family does for each of its rules.
pub(super) trait Update {
    fn learning_rate(&self) -> f64;
    fn validate(&self) -> Result<()>;
    fn slots(&self) -> Vec<Slot>;
    /// The scalars of step `t`, counted from 1.
    fn scalars(&self, t: f64, learning_rate: f64) -> Vec<Scalar>;
    /// The new parameter and the new slots.
    fn step(&self, w: Expr, g: Expr, slots: &[Expr]) -> Vec<Expr>;
}

impl Rule {
    pub(super) fn update(&self) -> &dyn Update {
        match self {
            Self::Sgd(rule) => rule,
            Self::AveragedSgd(rule) => rule,
            Self::Adam(rule) => rule,
            Self::Nadam(rule) => rule,
            Self::Adamax(rule) => rule,
            Self::Lion(rule) => rule,
            Self::RmsProp(rule) => rule,
            Self::Adagrad(rule) => rule,
            Self::Adadelta(rule) => rule,
        }
    }
}

fn share(name: &str, x: f64) -> Result<()> {
    match (0.0..1.0).contains(&x) {
        true => Ok(()),
        false => Err(Error::argument(format!("optimizer: {name} must be in [0, 1), got {x}"))),
    }
}

pub(super) fn positive(name: &str, x: f64) -> Result<()> {
    match x as f32 > 0.0 && x.is_finite() {
        true => Ok(()),
        false => Err(Error::argument(format!("optimizer: {name} must be above 0, got {x}"))),
    }
}

pub(super) fn not_negative(name: &str, x: f64) -> Result<()> {
    match x >= 0.0 && x.is_finite() {
        true => Ok(()),
        false => Err(Error::argument(format!("optimizer: {name} must be at least 0, got {x}"))),
    }
}

fn number(x: f64) -> Expr {
    Expr::Const(x as f32)
}

/// β a + (1-β) b
fn mean(beta: f64, a: Expr, b: Expr) -> Expr {
    number(beta) * a + number(1.0 - beta) * b
}
