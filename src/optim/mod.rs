//! Optimisers as graph updates, and clipping by global norm.
//!
//! An optimiser adds to a training graph one elementwise operation a parameter, which writes the parameter and its slots
//! in place and leaves both alone where the step is not finite. What depends on the step (bias corrections) or changes
//! between runs (learning rate) is a scalar that the host computes in f64.

use crate::error::{Error, Result};
use crate::graph::{Expr, Graph, Over, ReduceKind, Value};
use crate::params::{Constraint, ParameterSpec};
use serde::{Deserialize, Serialize};

/// Where Adam adds its epsilon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Epsilon {
    /// To the uncorrected root: w -= lr √(1-β₂ᵗ)/(1-β₁ᵗ) m/(√v + ε).
    Keras,
    /// To the corrected root: w -= lr/(1-β₁ᵗ) m/(√v/√(1-β₂ᵗ) + ε).
    #[serde(rename = "pytorch")]
    PyTorch,
}

/// Adam (Kingma and Ba 2015), by default with Keras's settings.
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
    /// Where epsilon is added.
    pub convention: Epsilon,
}

impl Default for Adam {
    fn default() -> Self {
        Self { learning_rate: 1e-3, beta_1: 0.9, beta_2: 0.999, epsilon: 1e-7, convention: Epsilon::Keras }
    }
}

impl Adam {
    /// Adam with PyTorch's settings.
    pub fn pytorch() -> Self {
        Self { epsilon: 1e-8, convention: Epsilon::PyTorch, ..Self::default() }
    }

    /// Sets the learning rate.
    #[must_use]
    pub fn learning_rate(mut self, learning_rate: f64) -> Self {
        self.learning_rate = learning_rate;
        self
    }
}

/// Stochastic gradient descent with momentum: m = μ m + g, w -= lr m, as PyTorch has it. Keras keeps lr m instead, which
/// is the same while the learning rate is constant.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sgd {
    /// Above 0.
    pub learning_rate: f64,
    /// μ, in [0, 1).
    pub momentum: f64,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { learning_rate: 1e-2, momentum: 0.0 }
    }
}

/// Any optimiser.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "class", rename_all = "snake_case")]
pub enum Optimizer {
    /// Gradient descent.
    Sgd(Sgd),
    /// Adam.
    Adam(Adam),
}

impl From<Sgd> for Optimizer {
    fn from(sgd: Sgd) -> Self {
        Self::Sgd(sgd)
    }
}

impl From<Adam> for Optimizer {
    fn from(adam: Adam) -> Self {
        Self::Adam(adam)
    }
}

/// What an optimiser's operations read besides parameters and gradients, each `[1]`.
#[derive(Debug, Clone, Copy)]
pub struct Gate {
    /// A factor of all gradients, from [`clip_factor`].
    pub scale: Option<Value>,
    /// 1 where the step counts, 0 where it changes nothing.
    pub alive: Value,
}

const M: &str = "optimizer.m.";
const V: &str = "optimizer.v.";
const LEARNING_RATE: &str = "learning_rate";
const STEP_SIZE: &str = "adam.step_size";
const ROOT_CORRECTION: &str = "adam.root_correction";

impl Optimizer {
    /// The learning rate it was made with.
    pub fn learning_rate(&self) -> f64 {
        match self {
            Self::Sgd(s) => s.learning_rate,
            Self::Adam(a) => a.learning_rate,
        }
    }

    /// Refuses settings outside their ranges.
    pub fn validate(&self) -> Result<()> {
        let share = |name: &str, x: f64| match (0.0..1.0).contains(&x) {
            true => Ok(()),
            false => Err(Error::argument(format!("optimizer: {name} must be in [0, 1), got {x}"))),
        };
        let positive = |name: &str, x: f64| match x > 0.0 && x.is_finite() {
            true => Ok(()),
            false => Err(Error::argument(format!("optimizer: {name} must be above 0, got {x}"))),
        };
        positive(LEARNING_RATE, self.learning_rate())?;
        match self {
            Self::Sgd(s) => share("momentum", s.momentum),
            Self::Adam(a) => {
                positive("epsilon", a.epsilon).and(share("beta_1", a.beta_1)).and(share("beta_2", a.beta_2))
            }
        }
    }

    fn prefixes(&self) -> &'static [&'static str] {
        match self {
            Self::Sgd(s) if s.momentum == 0.0 => &[],
            Self::Sgd(_) => &[M],
            Self::Adam(_) => &[M, V],
        }
    }

    /// The persistent values that it keeps beside `parameters`, all zero at first.
    pub fn slots(&self, parameters: &[ParameterSpec]) -> Vec<(String, Vec<usize>)> {
        let of =
            |prefix: &'static str| parameters.iter().map(move |p| (format!("{prefix}{}", p.name), p.shape.clone()));
        self.prefixes().iter().copied().flat_map(of).collect()
    }

    /// The scalars of step `step`, counted from 0.
    pub fn scalars(&self, step: u32, learning_rate: f64) -> Vec<(&'static str, f32)> {
        match self {
            Self::Sgd(_) => vec![(LEARNING_RATE, learning_rate as f32)],
            Self::Adam(a) => {
                let t = f64::from(step) + 1.0;
                let (first, root) = (1.0 - a.beta_1.powf(t), (1.0 - a.beta_2.powf(t)).sqrt());
                match a.convention {
                    Epsilon::Keras => vec![(STEP_SIZE, (learning_rate * root / first) as f32)],
                    Epsilon::PyTorch => {
                        vec![(STEP_SIZE, (learning_rate / first) as f32), (ROOT_CORRECTION, root as f32)]
                    }
                }
            }
        }
    }

    /// Adds the updates of `parameters`, which the graph keeps by their names, and of their slots by `gradients`; each
    /// then keeps to its constraint.
    pub fn apply(
        &self,
        graph: &mut Graph,
        parameters: &[ParameterSpec],
        gradients: &[Value],
        gate: Gate,
    ) -> Result<()> {
        if parameters.len() != gradients.len() {
            return Err(Error::internal("optimizer: parameters and gradients differ in number"));
        }
        for (spec, &gradient) in parameters.iter().zip(gradients) {
            let parameter = graph.persistent(&spec.name, &spec.shape)?;
            let mut targets = vec![parameter];
            for prefix in self.prefixes() {
                targets.push(graph.persistent(&format!("{prefix}{}", spec.name), &spec.shape)?);
            }
            // Operands: the values that change, the gradient, alive, scale.
            let at = targets.len();
            let mut operands = targets.clone();
            operands.extend([gradient, gate.alive]);
            let mut g = Expr::Input(at);
            if let Some(scale) = gate.scale {
                operands.push(scale);
                g = g * Expr::Input(at + 2);
            }
            let exprs = self.step(g).into_iter().enumerate();
            let guarded = exprs.map(|(i, new)| Expr::Input(at + 1).select(new, Expr::Input(i))).collect();
            let mut updated = graph.elementwise_many(guarded, &operands)?;
            if let Some(constraint) = spec.constraint {
                let kept = constrained(graph, constraint, updated[0])?;
                let guarded = Expr::Input(2).select(Expr::Input(0), Expr::Input(1));
                updated[0] = graph.elementwise(guarded, &[kept, parameter, gate.alive])?;
            }
            for (target, value) in targets.into_iter().zip(updated) {
                graph.update(target, value)?;
            }
        }
        Ok(())
    }

    /// The new parameter and slots, from input 0 the parameter, inputs 1.. the slots, and the gradient.
    fn step(&self, g: Expr) -> Vec<Expr> {
        let number = |x: f64| Expr::Const(x as f32);
        let w = Expr::Input(0);
        match self {
            Self::Sgd(s) if s.momentum == 0.0 => vec![w - Expr::scalar(LEARNING_RATE) * g],
            Self::Sgd(s) => {
                let m = number(s.momentum) * Expr::Input(1) + g;
                vec![w - Expr::scalar(LEARNING_RATE) * m.clone(), m]
            }
            Self::Adam(a) => {
                let m = number(a.beta_1) * Expr::Input(1) + number(1.0 - a.beta_1) * g.clone();
                let v = number(a.beta_2) * Expr::Input(2) + number(1.0 - a.beta_2) * (g.clone() * g);
                let root = match a.convention {
                    Epsilon::Keras => v.clone().sqrt(),
                    Epsilon::PyTorch => v.clone().sqrt() / Expr::scalar(ROOT_CORRECTION),
                };
                vec![w - Expr::scalar(STEP_SIZE) * m.clone() / (root + number(a.epsilon)), m, v]
            }
        }
    }
}

/// What a norm is divided by besides itself, as Keras has it.
const NORM_EPSILON: f32 = 1e-7;

/// w where the constraint leaves it: norms are of rows, or of the whole of a vector.
fn constrained(graph: &mut Graph, constraint: Constraint, w: Value) -> Result<Value> {
    let (value, norm, number) = (Expr::Input(0), Expr::Input(1).sqrt(), Expr::Const);
    if constraint == Constraint::NonNegative {
        return graph.elementwise(value.max(number(0.0)), &[w]);
    }
    let shape = graph.shape(w).clone();
    let (rows, squares) = match (shape.rank(), shape.rows(), shape.row_len()) {
        (0 | 1, ..) => (w, graph.sum_of_squares(&[w])?),
        (2, ..) => (w, graph.reduce(ReduceKind::SumOfSquares, Over::Columns, w)?),
        (_, Some(rows), Some(columns)) => {
            let rows = graph.view(w, [rows.clone(), columns.into()])?;
            (rows, graph.reduce(ReduceKind::SumOfSquares, Over::Columns, rows)?)
        }
        _ => return Err(Error::internal("a parameter of unknown size")),
    };
    let divided = |wanted: Expr| value.clone() * wanted / (norm.clone() + number(NORM_EPSILON));
    let within = |min: f32, max: f32| norm.clone().max(number(min)).min(number(max));
    let expr = match constraint {
        Constraint::MaxNorm(max) => divided(within(0.0, max)),
        Constraint::UnitNorm => divided(number(1.0)),
        Constraint::MinMaxNorm { min, max, rate } => {
            divided(number(rate) * within(min, max) + number(1.0 - rate) * norm.clone())
        }
        Constraint::NonNegative => value.clone(),
    };
    let kept = graph.elementwise(expr, &[rows, squares])?;
    if graph.shape(kept) == &shape { Ok(kept) } else { graph.view(kept, shape) }
}

/// The factor min(1, max / (√norm² + 1e-6)), as PyTorch clips, from the sum of squares of all gradients `[1]`.
pub fn clip_factor(graph: &mut Graph, sum_of_squares: Value, max_norm: f32) -> Result<Value> {
    if max_norm.is_nan() || max_norm <= 0.0 {
        return Err(Error::argument(format!("clipping: the largest norm must be above 0, got {max_norm}")));
    }
    let norm = Expr::Input(0).sqrt() + Expr::Const(1e-6);
    graph.elementwise((Expr::Const(max_norm) / norm).min(Expr::Const(1.0)), &[sum_of_squares])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adams_conventions_differ_only_in_epsilon() {
        let (keras, torch) = (Optimizer::from(Adam::default()), Optimizer::from(Adam::pytorch()));
        let (k, t) = (keras.scalars(0, 1e-3), torch.scalars(0, 1e-3));
        assert!((k[0].1 - t[0].1 * t[1].1).abs() < 1e-9, "{k:?} {t:?}");
        assert!((t[0].1 - 1e-2).abs() < 1e-8);
    }

    #[test]
    fn settings_outside_their_ranges_are_refused() {
        assert!(Optimizer::from(Adam { beta_1: 1.0, ..Adam::default() }).validate().is_err());
        assert!(Optimizer::from(Sgd { learning_rate: f64::NAN, momentum: 0.0 }).validate().is_err());
        assert!(Optimizer::from(Sgd::default()).validate().is_ok());
    }
}
