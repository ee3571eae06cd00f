//! Gradient descent, with momentum, and as averaging wants it.

use super::{Convention, LEARNING_RATE, M, Scalar, Slot, Update, not_negative, number, positive, share};
use crate::error::{Error, Result};
use crate::graph::Expr;
use serde::{Deserialize, Serialize};

/// Stochastic gradient descent with momentum (Polyak 1964; Nesterov 1983 as Sutskever et al. 2013 have it).
///
/// PyTorch keeps m = μ m + g and does w -= lr m, or lr (g + μ m) by Nesterov; Keras keeps m = μ m - lr g and does w += m, or
/// μ m - lr g. They are the same while the learning rate is constant.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sgd {
    /// Above 0.
    pub learning_rate: f64,
    /// μ, in [0, 1).
    pub momentum: f64,
    /// Whether the gradient is that of where momentum leads.
    pub nesterov: bool,
    /// Whose m.
    pub convention: Convention,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { learning_rate: 1e-2, momentum: 0.0, nesterov: false, convention: Convention::PyTorch }
    }
}

impl Update for Sgd {
    fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    fn validate(&self) -> Result<()> {
        share("momentum", self.momentum)?;
        match self.nesterov && self.momentum == 0.0 {
            true => Err(Error::argument("optimizer: nesterov needs a momentum above 0, got 0")),
            false => Ok(()),
        }
    }

    fn slots(&self) -> Vec<Slot> {
        if self.momentum == 0.0 { Vec::new() } else { vec![M] }
    }

    fn scalars(&self, _: f64, learning_rate: f64) -> Vec<Scalar> {
        vec![(LEARNING_RATE, learning_rate)]
    }

    fn step(&self, w: Expr, g: Expr, slots: &[Expr]) -> Vec<Expr> {
        let rate = Expr::scalar(LEARNING_RATE);
        let [m] = slots else { return vec![w - rate * g] };
        let momentum = || number(self.momentum);
        match self.convention {
            Convention::PyTorch => {
                let m = momentum() * m.clone() + g.clone();
                let by = if self.nesterov { g + momentum() * m.clone() } else { m.clone() };
                vec![w - rate * by, m]
            }
            Convention::Keras => {
                let m = momentum() * m.clone() - rate.clone() * g.clone();
                let by = if self.nesterov { momentum() * m.clone() - rate * g } else { m.clone() };
                vec![w + by, m]
            }
        }
    }
}

/// Gradient descent as Polyak and Juditsky (1992) average it, with PyTorch's settings: w -= η λ w + η g, with
/// η = lr/(1 + λ lr t)^α. The average is kept beside it from step `t0` on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AveragedSgd {
    /// Above 0.
    pub learning_rate: f64,
    /// λ, at least 0.
    pub lambda: f64,
    /// α, at least 0.
    pub alpha: f64,
    /// Steps before the average begins.
    pub t0: u32,
}

impl Default for AveragedSgd {
    fn default() -> Self {
        Self { learning_rate: 1e-2, lambda: 1e-4, alpha: 0.75, t0: 1_000_000 }
    }
}

const SHRINK: &str = "optimizer.shrink";

impl Update for AveragedSgd {
    fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    fn validate(&self) -> Result<()> {
        not_negative("lambda", self.lambda)?;
        not_negative("alpha", self.alpha)?;
        positive("1 - lambda times the learning rate", 1.0 - self.lambda * self.learning_rate)
    }

    fn slots(&self) -> Vec<Slot> {
        Vec::new()
    }

    fn scalars(&self, t: f64, learning_rate: f64) -> Vec<Scalar> {
        let rate = learning_rate / (1.0 + self.lambda * learning_rate * (t - 1.0)).powf(self.alpha);
        vec![(LEARNING_RATE, rate), (SHRINK, rate * self.lambda)]
    }

    fn step(&self, w: Expr, g: Expr, _: &[Expr]) -> Vec<Expr> {
        vec![w.clone() - Expr::scalar(SHRINK) * w - Expr::scalar(LEARNING_RATE) * g]
    }
}
