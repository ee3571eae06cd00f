//! Adam and what was made of it.

use super::{Convention, LEARNING_RATE, M, Scalar, Slot, Update, V, mean, not_negative, number, positive, share};
use crate::error::Result;
use crate::graph::Expr;
use serde::{Deserialize, Serialize};

const LARGEST: Slot = Slot::zero("optimizer.largest.");
const STEP_SIZE: &str = "optimizer.step_size";
const ROOT_CORRECTION: &str = "optimizer.root_correction";
const GRADIENT_SIZE: &str = "optimizer.gradient_size";

/// Adam (Kingma and Ba 2015), by default with Keras's settings.
///
/// Keras adds ε to the uncorrected root: w -= lr √(1-β₂ᵗ)/(1-β₁ᵗ) m/(√v + ε); PyTorch to the corrected one:
/// w -= lr/(1-β₁ᵗ) m/(√v/√(1-β₂ᵗ) + ε).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Adam {
    /// Above 0.
    pub learning_rate: f64,
    /// Decay of the mean of gradients, in [0, 1).
    pub beta_1: f64,
    /// Decay of the mean of their squares, in [0, 1).
    pub beta_2: f64,
    /// Above 0.
    pub epsilon: f64,
    /// Whether v is the largest that it ever was (AMSGrad, Reddi et al. 2018).
    #[serde(default)]
    pub amsgrad: bool,
    /// Where ε is added.
    pub convention: Convention,
}

impl Default for Adam {
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-7,
            amsgrad: false,
            convention: Convention::Keras,
        }
    }
}

impl Adam {
    /// Adam with PyTorch's settings.
    pub fn pytorch() -> Self {
        Self { epsilon: 1e-8, convention: Convention::PyTorch, ..Self::default() }
    }

    /// Sets the learning rate.
    #[must_use]
    pub fn learning_rate(mut self, learning_rate: f64) -> Self {
        self.learning_rate = learning_rate;
        self
    }
}

/// Adam with decoupled weight decay (Loshchilov and Hutter 2019), by default with PyTorch's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// What is done besides.
    pub adam: Adam,
    /// Each step also does w -= lr · this · w; at least 0.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { adam: Adam::pytorch(), weight_decay: 1e-2 }
    }
}

fn betas(beta_1: f64, beta_2: f64, epsilon: f64) -> Result<()> {
    positive("epsilon", epsilon).and(share("beta_1", beta_1)).and(share("beta_2", beta_2))
}

impl Update for Adam {
    fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    fn validate(&self) -> Result<()> {
        betas(self.beta_1, self.beta_2, self.epsilon)
    }

    fn slots(&self) -> Vec<Slot> {
        if self.amsgrad { vec![M, V, LARGEST] } else { vec![M, V] }
    }

    fn scalars(&self, t: f64, learning_rate: f64) -> Vec<Scalar> {
        let (first, root) = (1.0 - self.beta_1.powf(t), (1.0 - self.beta_2.powf(t)).sqrt());
        match self.convention {
            Convention::Keras => vec![(STEP_SIZE, learning_rate * root / first)],
            Convention::PyTorch => vec![(STEP_SIZE, learning_rate / first), (ROOT_CORRECTION, root)],
        }
    }

    fn step(&self, w: Expr, g: Expr, slots: &[Expr]) -> Vec<Expr> {
        let m = mean(self.beta_1, slots[0].clone(), g.clone());
        let v = mean(self.beta_2, slots[1].clone(), g.clone() * g);
        let largest = slots.get(2).map(|largest| largest.clone().max(v.clone()));
        let root = largest.clone().unwrap_or_else(|| v.clone()).sqrt();
        let root = match self.convention {
            Convention::Keras => root,
            Convention::PyTorch => root / Expr::scalar(ROOT_CORRECTION),
        };
        let w = w - Expr::scalar(STEP_SIZE) * m.clone() / (root + number(self.epsilon));
        [w, m, v].into_iter().chain(largest).collect()
    }
}

/// Adam with Nesterov's momentum (Dozat 2016), whose β₁ rises: μₜ = β₁ (1 - 0.96^(t·decay)/2).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Nadam {
    /// Above 0.
    pub learning_rate: f64,
    /// Where the decay of the mean of gradients ends, in [0, 1).
    pub beta_1: f64,
    /// Decay of the mean of their squares, in [0, 1).
    pub beta_2: f64,
    /// Above 0.
    pub epsilon: f64,
    /// How fast μ rises, at least 0: 1 in Keras, 0.004 in PyTorch.
    pub momentum_decay: f64,
}

impl Default for Nadam {
    fn default() -> Self {
        Self { learning_rate: 1e-3, beta_1: 0.9, beta_2: 0.999, epsilon: 1e-7, momentum_decay: 1.0 }
    }
}

impl Nadam {
    /// With PyTorch's settings.
    pub fn pytorch() -> Self {
        Self { learning_rate: 2e-3, epsilon: 1e-8, momentum_decay: 4e-3, ..Self::default() }
    }

    fn momentum(&self, t: f64) -> f64 {
        self.beta_1 * (1.0 - 0.5 * 0.96f64.powf(t * self.momentum_decay))
    }
}

impl Update for Nadam {
    fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    fn validate(&self) -> Result<()> {
        betas(self.beta_1, self.beta_2, self.epsilon).and(not_negative("momentum_decay", self.momentum_decay))
    }

    fn slots(&self) -> Vec<Slot> {
        vec![M, V]
    }

    fn scalars(&self, t: f64, learning_rate: f64) -> Vec<Scalar> {
        // Π μ; what is below the rounding of 1 is nothing.
        let mut product = 1.0;
        for s in 1..=t as u64 {
            product *= self.momentum(s as f64);
            if product < 1e-20 {
                break;
            }
        }
        let (now, next) = (self.momentum(t), self.momentum(t + 1.0));
        vec![
            (GRADIENT_SIZE, learning_rate * (1.0 - now) / (1.0 - product)),
            (STEP_SIZE, learning_rate * next / (1.0 - product * next)),
            (ROOT_CORRECTION, (1.0 - self.beta_2.powf(t)).sqrt()),
        ]
    }

    fn step(&self, w: Expr, g: Expr, slots: &[Expr]) -> Vec<Expr> {
        let m = mean(self.beta_1, slots[0].clone(), g.clone());
        let v = mean(self.beta_2, slots[1].clone(), g.clone() * g.clone());
        let root = v.clone().sqrt() / Expr::scalar(ROOT_CORRECTION) + number(self.epsilon);
        let by = Expr::scalar(GRADIENT_SIZE) * g + Expr::scalar(STEP_SIZE) * m.clone();
        vec![w - by / root, m, v]
    }
}

/// Adam by the largest gradient, decayed (Kingma and Ba 2015, section 7): u = max(β₂ u, |g|), w -= lr/(1-β₁ᵗ) m/u. Keras adds
/// ε to u where it divides, PyTorch to |g|.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Adamax {
    /// Above 0.
    pub learning_rate: f64,
    /// Decay of the mean of gradients, in [0, 1).
    pub beta_1: f64,
    /// Decay of the largest, in [0, 1).
    pub beta_2: f64,
    /// Above 0.
    pub epsilon: f64,
    /// Where ε is added.
    pub convention: Convention,
}

impl Default for Adamax {
    fn default() -> Self {
        Self { learning_rate: 1e-3, beta_1: 0.9, beta_2: 0.999, epsilon: 1e-7, convention: Convention::Keras }
    }
}

impl Adamax {
    /// With PyTorch's settings.
    pub fn pytorch() -> Self {
        Self { learning_rate: 2e-3, epsilon: 1e-8, convention: Convention::PyTorch, ..Self::default() }
    }
}

impl Update for Adamax {
    fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    fn validate(&self) -> Result<()> {
        betas(self.beta_1, self.beta_2, self.epsilon)
    }

    fn slots(&self) -> Vec<Slot> {
        vec![M, LARGEST]
    }

    fn scalars(&self, t: f64, learning_rate: f64) -> Vec<Scalar> {
        vec![(STEP_SIZE, learning_rate / (1.0 - self.beta_1.powf(t)))]
    }

    fn step(&self, w: Expr, g: Expr, slots: &[Expr]) -> Vec<Expr> {
        let m = mean(self.beta_1, slots[0].clone(), g.clone());
        let before = number(self.beta_2) * slots[1].clone();
        let (largest, by) = match self.convention {
            Convention::Keras => {
                let largest = before.max(g.abs());
                (largest.clone(), largest + number(self.epsilon))
            }
            Convention::PyTorch => {
                let largest = before.max(g.abs() + number(self.epsilon));
                (largest.clone(), largest)
            }
        };
        vec![w - Expr::scalar(STEP_SIZE) * m.clone() / by, m, largest]
    }
}

/// The sign of momentum (Chen et al. 2023): w -= lr sign(β₁ m + (1-β₁) g), then m = β₂ m + (1-β₂) g.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Lion {
    /// Above 0; a tenth or a third of Adam's.
    pub learning_rate: f64,
    /// In [0, 1).
    pub beta_1: f64,
    /// In [0, 1).
    pub beta_2: f64,
}

impl Default for Lion {
    fn default() -> Self {
        Self { learning_rate: 1e-3, beta_1: 0.9, beta_2: 0.99 }
    }
}

impl Update for Lion {
    fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    fn validate(&self) -> Result<()> {
        share("beta_1", self.beta_1).and(share("beta_2", self.beta_2))
    }

    fn slots(&self) -> Vec<Slot> {
        vec![M]
    }

    fn scalars(&self, _: f64, learning_rate: f64) -> Vec<Scalar> {
        vec![(LEARNING_RATE, learning_rate)]
    }

    fn step(&self, w: Expr, g: Expr, slots: &[Expr]) -> Vec<Expr> {
        let of = |beta: f64| mean(beta, slots[0].clone(), g.clone());
        vec![w - Expr::scalar(LEARNING_RATE) * of(self.beta_1).sign(), of(self.beta_2)]
    }
}
