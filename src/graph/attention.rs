//! Attention of the steps of one sequence to those of another of the same sample.

use super::op::{Inputs, OutputSpec, float};
use super::shape::{Dim, Symbol};
use super::{Expr, Graph, Op, Value};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How well a query and a key fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// q · k (Luong et al. 2015).
    #[default]
    Dot,
    /// Σ s tanh(q + k) (Bahdanau et al. 2015), with s 1 where it is absent.
    Additive,
}

/// Attention: y of a query is Σ p v over the keys of its sample, p the softmax of their scores; zero where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionOp {
    /// How scores are made.
    pub score: Score,
    /// Whether a query sees only keys of steps up to its own.
    pub causal: bool,
}

/// Whose gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionPart {
    /// dq `[Nq, D]`
    Queries,
    /// What each query adds to ds, `[Nq, D]`.
    Scale,
    /// dk `[Nk, D]`
    Keys,
    /// dv `[Nk, V]`
    Values,
}

/// Positions of inputs and outputs of [`Op::Attention`].
pub mod forward {
    /// q `[Nq, D]`
    pub const QUERIES: usize = 0;
    /// k `[Nk, D]`
    pub const KEYS: usize = 1;
    /// v `[Nk, V]`
    pub const VALUES: usize = 2;
    /// s `[D]`, optional
    pub const SCALE: usize = 3;
    /// y `[Nq, V]`
    pub const Y: usize = 0;
    /// The logarithm of the sum of a query's exponentials, `[Nq, 1]`.
    pub const LOG_SUM_EXP: usize = 1;
}

/// Positions of inputs of [`Op::AttentionBackward`]; the first four are those of [`forward`].
pub mod backward {
    /// Of each query the log-sum-exp, Σ dy y, and dy, side by side, `[Nq, 2+V]`.
    pub const GIVEN: usize = 4;
}

/// Rows of queries and keys, D, V.
fn sizes<'a>(i: &Inputs<'a>, op: &AttentionOp) -> Result<(&'a Dim, &'a Dim, usize, usize)> {
    let (queries, d) = i.matrix(forward::QUERIES, "queries")?;
    let (keys, of_keys) = i.matrix(forward::KEYS, "keys")?;
    let (values, v) = i.matrix(forward::VALUES, "values")?;
    let on_axis = |rows: &Dim| matches!(rows, Dim::Symbol(Symbol::Rows(_)));
    if !on_axis(queries) || !on_axis(keys) || keys != values {
        return Err(Error::shape(format!(
            "expected sequences, of values as long as keys, got rows {queries}, {keys} and {values}"
        )));
    }
    if d != of_keys {
        return Err(Error::shape(format!("queries have {d} features, keys {of_keys}")));
    }
    if op.score == Score::Dot && i.maybe(forward::SCALE).is_some() {
        return Err(Error::argument("only additive attention has a scale of features"));
    }
    i.exact_if(forward::SCALE, "scale", [d])?;
    Ok((queries, keys, d, v))
}

pub(super) fn infer(i: &Inputs<'_>, op: &AttentionOp) -> Result<Vec<OutputSpec>> {
    let (queries, _, _, v) = sizes(i, op)?;
    Ok(vec![float("y", [queries.clone(), v.into()]), float("log_sum_exp", [queries.clone(), 1.into()])])
}

pub(super) fn infer_backward(i: &Inputs<'_>, op: &AttentionOp, part: AttentionPart) -> Result<Vec<OutputSpec>> {
    let (queries, keys, d, v) = sizes(i, op)?;
    i.exact(backward::GIVEN, "given", [queries.clone(), (2 + v).into()])?;
    Ok(vec![match part {
        AttentionPart::Queries => float("dq", [queries.clone(), d.into()]),
        AttentionPart::Scale => float("ds", [queries.clone(), d.into()]),
        AttentionPart::Keys => float("dk", [keys.clone(), d.into()]),
        AttentionPart::Values => float("dv", [keys.clone(), v.into()]),
    }])
}

impl Graph {
    /// Attention of q `[Nq, D]` to keys k `[Nk, D]` with values v `[Nk, V]`: `[Nq, V]`. s `[D]` is additive attention's.
    pub fn attention(&mut self, op: AttentionOp, q: Value, k: Value, v: Value, s: Option<Value>) -> Result<Value> {
        Ok(self.push(Op::Attention(op), vec![Some(q), Some(k), Some(v), s])?[forward::Y])
    }

    /// What [`backward::GIVEN`] says.
    pub(super) fn attention_given(&mut self, y: Value, log_sum_exp: Value, dy: Value) -> Result<Value> {
        let product = self.elementwise(Expr::Input(0) * Expr::Input(1), &[dy, y])?;
        let sum = self.reduce(super::ReduceKind::Sum, super::Over::Columns, product)?;
        self.concat(&[log_sum_exp, sum, dy])
    }
}
