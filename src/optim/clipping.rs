//! Gradients that are kept small.

use crate::error::{Error, Result};
use crate::graph::{Expr, Graph, Value};
use serde::{Deserialize, Serialize};

/// How large a gradient may be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clipping {
    /// Each value, in size.
    Value(f32),
    /// Each parameter's gradient, in its Euclidean norm.
    Norm(f32),
    /// All gradients together, in their Euclidean norm.
    GlobalNorm(f32),
}

impl Clipping {
    pub(super) fn validate(self) -> Result<()> {
        let (Self::Value(most) | Self::Norm(most) | Self::GlobalNorm(most)) = self;
        check(most)
    }
}

fn check(most: f32) -> Result<()> {
    match most > 0.0 && most.is_finite() {
        true => Ok(()),
        false => Err(Error::argument(format!("clipping: the largest gradient must be above 0, got {most}"))),
    }
}

/// The factor min(1, max / (√norm² + 1e-6)), as PyTorch clips, from the sum of squares of all gradients `[1]`.
pub fn clip_factor(graph: &mut Graph, sum_of_squares: Value, max_norm: f32) -> Result<Value> {
    check(max_norm)?;
    let norm = Expr::Input(0).sqrt() + Expr::Const(1e-6);
    graph.elementwise((Expr::Const(max_norm) / norm).min(Expr::Const(1.0)), &[sum_of_squares])
}
