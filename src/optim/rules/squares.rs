//! Rules that divide gradients by the size that they had.

use super::{Convention, LEARNING_RATE, M, Scalar, Slot, Update, V, mean, not_negative, number, positive, share};
use crate::error::Result;
use crate::graph::Expr;
use serde::{Deserialize, Serialize};

const MEAN: Slot = Slot::zero("optimizer.mean.");
const CHANGE: Slot = Slot::zero("optimizer.change.");

/// Gradients by the root of their mean square (Tieleman and Hinton 2012), by default with Keras's settings.
///
/// Keras divides by √(v + ε) and PyTorch by √v + ε; with momentum Keras keeps m = μ m + lr g/√, PyTorch m = μ m + g/√.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RmsProp {
    /// Above 0.
    pub learning_rate: f64,
    /// Decay of the mean of squares, in [0, 1).
    pub rho: f64,
    /// μ, in [0, 1).
    pub momentum: f64,
    /// Above 0.
    pub epsilon: f64,
    /// Whether the mean is taken away from gradients before they are squared, so that v is their variance.
    pub centered: bool,
    /// Where ε is added, and whose m.
    pub convention: Convention,
}

impl Default for RmsProp {
    fn default() -> Self {
        let convention = Convention::Keras;
        Self { learning_rate: 1e-3, rho: 0.9, momentum: 0.0, epsilon: 1e-7, centered: false, convention }
    }
}

impl RmsProp {
    /// With PyTorch's settings.
    pub fn pytorch() -> Self {
        let convention = Convention::PyTorch;
        Self { learning_rate: 1e-2, rho: 0.99, epsilon: 1e-8, convention, ..Self::default() }
    }
}

impl Update for RmsProp {
    fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    fn validate(&self) -> Result<()> {
        positive("epsilon", self.epsilon).and(share("rho", self.rho)).and(share("momentum", self.momentum))
    }

    fn slots(&self) -> Vec<Slot> {
        let momentum = (self.momentum > 0.0).then_some(M);
        let mean = self.centered.then_some(MEAN);
        [V].into_iter().chain(mean).chain(momentum).collect()
    }

    fn scalars(&self, _: f64, learning_rate: f64) -> Vec<Scalar> {
        vec![(LEARNING_RATE, learning_rate)]
    }

    fn step(&self, w: Expr, g: Expr, slots: &[Expr]) -> Vec<Expr> {
        let mut slots = slots.iter().cloned();
        let mut next = || slots.next().unwrap_or(Expr::Const(0.0));
        let v = mean(self.rho, next(), g.clone() * g.clone());
        let middle = self.centered.then(|| mean(self.rho, next(), g.clone()));
        let variance = middle.clone().map_or(v.clone(), |m| (v.clone() - m.clone() * m).max(number(0.0)));
        let by = match self.convention {
            Convention::Keras => g / (variance + number(self.epsilon)).sqrt(),
            Convention::PyTorch => g / (variance.sqrt() + number(self.epsilon)),
        };
        let rate = Expr::scalar(LEARNING_RATE);
        let (w, momentum) = match (self.momentum > 0.0, self.convention) {
            (false, _) => (w - rate * by, None),
            (true, Convention::Keras) => {
                let m = number(self.momentum) * next() + rate * by;
                (w - m.clone(), Some(m))
            }
            (true, Convention::PyTorch) => {
                let m = number(self.momentum) * next() + by;
                (w - rate * m.clone(), Some(m))
            }
        };
        [w, v].into_iter().chain(middle).chain(momentum).collect()
    }
}

/// Gradients by the root of the sum of their squares (Duchi et al. 2011), by default with Keras's settings. Keras divides by
/// √(v + ε), PyTorch by √v + ε.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Adagrad {
    /// Above 0.
    pub learning_rate: f64,
    /// What the learning rate is divided by at step t: 1 + (t-1) times this; at least 0.
    pub learning_rate_decay: f64,
    /// What sums begin from, at least 0.
    pub initial: f64,
    /// Above 0.
    pub epsilon: f64,
    /// Where ε is added.
    pub convention: Convention,
}

impl Default for Adagrad {
    fn default() -> Self {
        let convention = Convention::Keras;
        Self { learning_rate: 1e-3, learning_rate_decay: 0.0, initial: 0.1, epsilon: 1e-7, convention }
    }
}

impl Adagrad {
    /// With PyTorch's settings.
    pub fn pytorch() -> Self {
        let convention = Convention::PyTorch;
        Self { learning_rate: 1e-2, learning_rate_decay: 0.0, initial: 0.0, epsilon: 1e-10, convention }
    }
}

impl Update for Adagrad {
    fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    fn validate(&self) -> Result<()> {
        positive("epsilon", self.epsilon)
            .and(not_negative("initial", self.initial))
            .and(not_negative("learning_rate_decay", self.learning_rate_decay))
    }

    fn slots(&self) -> Vec<Slot> {
        vec![Slot { initial: self.initial as f32, ..V }]
    }

    fn scalars(&self, t: f64, learning_rate: f64) -> Vec<Scalar> {
        vec![(LEARNING_RATE, learning_rate / (1.0 + (t - 1.0) * self.learning_rate_decay))]
    }

    fn step(&self, w: Expr, g: Expr, slots: &[Expr]) -> Vec<Expr> {
        let v = slots[0].clone() + g.clone() * g.clone();
        let by = match self.convention {
            Convention::Keras => (v.clone() + number(self.epsilon)).sqrt(),
            Convention::PyTorch => v.clone().sqrt() + number(self.epsilon),
        };
        vec![w - Expr::scalar(LEARNING_RATE) * g / by, v]
    }
}

/// Gradients by their size, times the size of changes (Zeiler 2012): d = √(u + ε)/√(v + ε) g, w -= lr d, with v and u the mean
/// squares of g and d. By default with Keras's settings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Adadelta {
    /// Above 0.
    pub learning_rate: f64,
    /// Decay of both means, in [0, 1).
    pub rho: f64,
    /// Above 0.
    pub epsilon: f64,
}

impl Default for Adadelta {
    fn default() -> Self {
        Self { learning_rate: 1e-3, rho: 0.95, epsilon: 1e-7 }
    }
}

impl Adadelta {
    /// With PyTorch's settings.
    pub fn pytorch() -> Self {
        Self { learning_rate: 1.0, rho: 0.9, epsilon: 1e-6 }
    }
}

impl Update for Adadelta {
    fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    fn validate(&self) -> Result<()> {
        positive("epsilon", self.epsilon).and(share("rho", self.rho))
    }

    fn slots(&self) -> Vec<Slot> {
        vec![V, CHANGE]
    }

    fn scalars(&self, _: f64, learning_rate: f64) -> Vec<Scalar> {
        vec![(LEARNING_RATE, learning_rate)]
    }

    fn step(&self, w: Expr, g: Expr, slots: &[Expr]) -> Vec<Expr> {
        let root = |x: Expr| (x + number(self.epsilon)).sqrt();
        let v = mean(self.rho, slots[0].clone(), g.clone() * g.clone());
        let change = root(slots[1].clone()) / root(v.clone()) * g;
        let u = mean(self.rho, slots[1].clone(), change.clone() * change.clone());
        vec![w - Expr::scalar(LEARNING_RATE) * change, v, u]
    }
}
