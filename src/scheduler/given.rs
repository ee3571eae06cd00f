//! What a run gives a program besides rows of floats: scalars, and integers within bounds.

use super::compile::writes_rows;
use super::program::{ProgramValue, Step};
use crate::error::{Error, Result};
use crate::graph::memory::{EXACT, by_token, recall, remember};
use crate::graph::{Dim, Expr, Op, Symbol};
use crate::params::Tensor;

/// A scalar that a run gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScalarSource {
    /// Set on the batch by name.
    Named(String),
    /// A size of the batch.
    Size(Symbol),
}

/// A bound that an input's integers must keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The value.
    pub value: usize,
    /// Integers must be below this.
    pub below: usize,
    /// Except this one.
    pub except: Option<u32>,
    /// Whether none may come twice.
    pub distinct: bool,
    /// The operation that reads it.
    pub reader: &'static str,
}

impl Bound {
    /// Refuses an input, called `name`, that breaks it.
    pub fn check(&self, name: &str, tensor: &Tensor) -> Result<()> {
        let all = tensor.u32s()?;
        let refused = |at: usize, expected: String| {
            let reader = self.reader;
            Err(Error::data(format!("{reader}: input `{name}` has {} at position {at}, expected {expected}", all[at])))
        };
        if let Some(at) = all.iter().position(|&v| v as usize >= self.below && Some(v) != self.except) {
            return refused(at, format!("integers below {}", self.below));
        }
        let mut sorted = if self.distinct { all.to_vec() } else { Vec::new() };
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => refused(all.iter().position(|v| *v == pair[0]).unwrap_or(0), "it once".to_string()),
            None => Ok(()),
        }
    }
}

/// The scalars that `steps` read.
pub(super) fn scalars(steps: &[Step]) -> Vec<ScalarSource> {
    let mut all = Vec::new();
    for step in steps {
        let Op::Elementwise { exprs } = &step.op else { continue };
        for expr in exprs {
            expr.visit(&mut |e| {
                let source = match e {
                    Expr::Scalar(name) => ScalarSource::Named(name.clone()),
                    Expr::Size(symbol) => ScalarSource::Size(symbol.clone()),
                    _ => return,
                };
                if !all.contains(&source) {
                    all.push(source);
                }
            });
        }
    }
    all
}

/// The bounds that what `steps` read must keep.
pub(super) fn bounds(steps: &[Step], values: &[ProgramValue]) -> Vec<Bound> {
    let mut all = Vec::new();
    for step in steps {
        let rows = |at: usize| {
            let table = &values[step.inputs[at]?];
            table.slab.map_or_else(|| table.shape.rows().cloned(), |slab| Some(Dim::Fixed(slab.of)))
        };
        let (position, below, except) = match &step.op {
            Op::Embedding | Op::Scatter => (1, rows(0), None),
            Op::CrossEntropy { ignore } => (1, step.inputs[0].and_then(|l| values[l].shape.0.get(1).cloned()), *ignore),
            Op::Remember(_) => {
                let (reader, exact) = (step.op.name(), step.inputs[remember::TOKENS]);
                let bound = |value| Bound { value, below: EXACT, except: None, distinct: false, reader };
                all.extend(exact.map(bound));
                (remember::SLOTS, rows(remember::RING), None)
            }
            Op::Recall(_) | Op::RecallBackward { .. } | Op::RecallPlaces(_) => {
                (recall::SLOTS, rows(recall::RING), None)
            }
            Op::RecallTokens { .. } => (by_token::SLOTS, rows(by_token::RING), None),
            _ => continue,
        };
        if let (Some(value), Some(Dim::Fixed(below))) = (step.inputs[position], below) {
            let distinct = writes_rows(&step.op);
            let bound = Bound { value, below, except, distinct, reader: step.op.name() };
            // Every slab of a table has the same.
            if !all.contains(&bound) {
                all.push(bound);
            }
        }
    }
    all
}
