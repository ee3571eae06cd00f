//! The working memory: what a sequence has read, in a ring of places, and what is found there again.
//!
//! A sequence's place i mod R holds h of its step i and the token that was read next, that of step i + 1. A step sees the
//! places of the `window` steps before it: each with a token that it has read already, so that it never sees what it predicts.

use super::op::{Inputs, OutputSpec, float};
use super::shape::{B, Dim, N, Symbol};
use super::{Graph, Op, Value};
use crate::error::{Error, Result};
use crate::params::DType;

/// Places are summed up so many at a time, from a multiple of it on: a sum depends on which steps it is over, not on how a
/// sequence was cut into runs.
pub const BLOCK: usize = 64;
/// The logarithm of a sum over nothing: far below that of any, and finite, so that it may be subtracted from itself.
pub const NOTHING: f32 = -1e30;
/// Tokens and positions are kept as floats, which are exact up to this.
pub const EXACT: usize = 1 << 24;
/// More places than any memory has, so that sizes can be multiplied.
const MOST: usize = 1 << 40;

/// A ring, and how far back a step sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryOp {
    /// R, places of a sequence: a multiple of [`BLOCK`], at least the window and the steps of a run together. What a run writes
    /// is then out of sight of the steps before it.
    pub places: usize,
    /// Steps that are seen.
    pub window: usize,
}

impl MemoryOp {
    /// A ring for runs of at most so many steps.
    pub fn new(window: usize, steps: usize) -> Self {
        let places = window.saturating_add(steps).min(MOST);
        Self { places: places.next_multiple_of(BLOCK), window: window.min(places) }
    }

    /// The most steps of a run.
    pub fn steps(&self) -> usize {
        self.places.saturating_sub(self.window)
    }

    /// Values of a sequence's ring, where h has so many: h of each place, then the token of each.
    pub fn len(&self, features: usize) -> usize {
        self.places.saturating_mul(features.saturating_add(1))
    }

    /// Features of h in a ring of so many values.
    pub fn features(&self, len: usize) -> usize {
        (len / self.places.max(1)).saturating_sub(1)
    }

    /// Refuses sizes that mean nothing.
    fn check(&self) -> Result<()> {
        let Self { places, window } = *self;
        if window == 0 || places <= window || !places.is_multiple_of(BLOCK) || places > MOST {
            let wanted = format!("a window of at least 1 and more places, a multiple of {BLOCK}");
            return Err(Error::argument(format!("expected {wanted}, got a window of {window} and {places} places")));
        }
        Ok(())
    }

    /// The steps before, of a position as a float holds it: what is no count is none, and what no float counts is the last that
    /// one does.
    pub fn before(position: f64) -> usize {
        (position as usize).min(EXACT)
    }

    /// Places that a step at `position` sees, by the steps that they are of.
    pub fn seen(&self, position: usize) -> std::ops::Range<usize> {
        position.saturating_sub(self.window)..position
    }
}

/// Whose gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryPart {
    /// dq `[N, H]`
    Queries,
    /// dh of this run's own steps `[N, H]`; what was read before is constant.
    Own,
}

/// Positions of inputs of [`Op::Remember`], which gives the ring.
pub mod remember {
    /// The ring `[S, R(H+1)]`.
    pub const RING: usize = 0;
    /// Steps that each sequence has read before, `[B, 1]`.
    pub const POSITION: usize = 1;
    /// The ring's row of each sequence `[B]`, its own number where absent.
    pub const SLOTS: usize = 2;
    /// h `[N, H]`
    pub const OWN: usize = 3;
    /// The token that each step reads, `[N]`.
    pub const TOKENS: usize = 4;
}

/// Positions of inputs of [`Op::Recall`], [`Op::RecallBackward`] and [`Op::RecallPlaces`].
pub mod recall {
    /// q `[N, H]`
    pub const QUERIES: usize = 0;
    /// The ring `[S, R(H+1)]`, with this run's steps in it.
    pub const RING: usize = 1;
    /// Steps that each sequence has read before, `[B, 1]`.
    pub const POSITION: usize = 2;
    /// The ring's row of each sequence `[B]`, its own number where absent.
    pub const SLOTS: usize = 3;
    /// The token that each step looks for, `[N]`.
    pub const TARGETS: usize = 4;
    /// h of this run's steps `[N, H]`, which has a gradient.
    pub const OWN: usize = 5;
    /// Of a gradient: both sums and their gradients, `[N, 4]`.
    pub const GIVEN: usize = 6;
}

/// Positions of inputs of [`Op::RecallTokens`].
pub mod by_token {
    /// p of each place, `[N, R]`.
    pub const PLACES: usize = 0;
    /// The ring `[S, R(H+1)]`.
    pub const RING: usize = 1;
    /// The ring's row of each sequence `[B]`, its own number where absent.
    pub const SLOTS: usize = 2;
}

fn integers(i: &Inputs<'_>, at: usize, role: &str, rows: Dim) -> Result<()> {
    match i.rank(at, role, 1, DType::U32)? {
        shape if shape.0[0] == rows => Ok(()),
        shape => Err(Error::shape(format!("{role}: expected [{rows}], got {shape}"))),
    }
}

/// The ring's values, which must hold h of `features`, and its row of each sequence.
fn ring(i: &Inputs<'_>, op: &MemoryOp, at: usize, slots: usize, features: usize) -> Result<()> {
    op.check()?;
    let (rows, len) = i.matrix(at, "ring")?;
    if features == 0 || len != op.len(features) {
        let wanted = op.len(features);
        return Err(Error::shape(format!(
            "expected a ring of {} places for {features} features, at least one, {wanted} values, got {len}",
            op.places
        )));
    }
    match (rows, i.maybe(slots)) {
        (Dim::Fixed(_), Some(_)) => integers(i, slots, "slots", B),
        (rows, None) if *rows == B => Ok(()),
        _ => Err(Error::shape(format!("expected a ring of {B} rows, or of a number of them and slots, got {rows}"))),
    }
}

/// The columns of a value with a row for each step of the first time axis.
fn steps(i: &Inputs<'_>, at: usize, role: &str) -> Result<usize> {
    match i.matrix(at, role)? {
        (Dim::Symbol(Symbol::Rows(0)), columns) => Ok(columns),
        (rows, _) => {
            Err(Error::unsupported(format!("{role}: expected the rows {N} of the first time axis, got {rows}")))
        }
    }
}

pub(super) fn infer_remember(i: &Inputs<'_>, op: &MemoryOp) -> Result<Vec<OutputSpec>> {
    let features = steps(i, remember::OWN, "h")?;
    ring(i, op, remember::RING, remember::SLOTS, features)?;
    i.exact(remember::POSITION, "position", [B, 1.into()])?;
    integers(i, remember::TOKENS, "tokens", N)?;
    Ok(vec![float("ring", i.get(remember::RING, "ring")?.shape.clone())])
}

fn recalls(i: &Inputs<'_>, op: &MemoryOp) -> Result<usize> {
    let features = steps(i, recall::QUERIES, "queries")?;
    ring(i, op, recall::RING, recall::SLOTS, features)?;
    i.exact(recall::POSITION, "position", [B, 1.into()])?;
    Ok(features)
}

pub(super) fn infer_recall(i: &Inputs<'_>, op: &MemoryOp) -> Result<Vec<OutputSpec>> {
    let features = recalls(i, op)?;
    integers(i, recall::TARGETS, "targets", N)?;
    i.exact(recall::OWN, "h", [N, features.into()])?;
    Ok(vec![float("sums", [N, 2.into()])])
}

pub(super) fn infer_backward(i: &Inputs<'_>, op: &MemoryOp) -> Result<Vec<OutputSpec>> {
    infer_recall(i, op)?;
    i.exact(recall::GIVEN, "given", [N, 4.into()])?;
    Ok(vec![float("dx", i.get(recall::QUERIES, "queries")?.shape.clone())])
}

pub(super) fn infer_places(i: &Inputs<'_>, op: &MemoryOp) -> Result<Vec<OutputSpec>> {
    recalls(i, op)?;
    Ok(vec![float("places", [N, op.places.into()]), float("total", [N, 1.into()])])
}

pub(super) fn infer_tokens(i: &Inputs<'_>, op: &MemoryOp, vocabulary: usize) -> Result<Vec<OutputSpec>> {
    let places = steps(i, by_token::PLACES, "places")?;
    if places != op.places || !(1..EXACT).contains(&vocabulary) {
        let wanted = format!("{} places and from 1 to {} tokens", op.places, EXACT - 1);
        return Err(Error::shape(format!("expected {wanted}, got {places} and {vocabulary}")));
    }
    let len = i.matrix(by_token::RING, "ring")?.1;
    ring(i, op, by_token::RING, by_token::SLOTS, op.features(len))?;
    Ok(vec![float("tokens", [N, vocabulary.into()])])
}

/// A ring with what a run reads in it, and where its sequences stood before.
#[derive(Debug, Clone, Copy)]
pub struct Ring {
    /// Its size.
    pub op: MemoryOp,
    /// `[S, R(H+1)]`
    pub values: Value,
    /// `[B, 1]`
    pub position: Value,
    /// `[B]`
    pub slots: Option<Value>,
}

impl Graph {
    /// `ring` with h `[N, H]` and the tokens `[N]` of a run in it.
    pub fn remember(&mut self, ring: Ring, own: Value, tokens: Value) -> Result<Value> {
        let inputs = vec![Some(ring.values), Some(ring.position), ring.slots, Some(own), Some(tokens)];
        Ok(self.push(Op::Remember(ring.op), inputs)?[0])
    }

    /// For each of the queries `[N, H]`, two sums over the places that its step sees, `[N, 2]`: ln Σ e^(q·h) of those whose token
    /// is its target, and of all; [`NOTHING`] for none. `own` `[N, H]` is h of this run's steps, which the ring has, and gets
    /// their gradient. The first sum is `NOTHING` too where its share is below what a float can hold.
    pub fn recall(&mut self, ring: Ring, queries: Value, own: Value, targets: Value) -> Result<Value> {
        let inputs = vec![Some(queries), Some(ring.values), Some(ring.position), ring.slots, Some(targets), Some(own)];
        Ok(self.push(Op::Recall(ring.op), inputs)?[0])
    }

    /// e^(q·h) of each place that a step sees over their sum, `[N, R]`, zero elsewhere; and the logarithm of the sum `[N, 1]`.
    pub fn recall_places(&mut self, ring: Ring, queries: Value) -> Result<(Value, Value)> {
        let inputs = vec![Some(queries), Some(ring.values), Some(ring.position), ring.slots];
        let out = self.push(Op::RecallPlaces(ring.op), inputs)?;
        Ok((out[0], out[1]))
    }

    /// What the places `[N, R]` of each token come to, `[N, V]`.
    pub fn recall_tokens(&mut self, ring: Ring, places: Value, vocabulary: usize) -> Result<Value> {
        let op = Op::RecallTokens { memory: ring.op, vocabulary };
        Ok(self.push(op, vec![Some(places), Some(ring.values), ring.slots])?[0])
    }

    /// Whether `value` is a ring that a run has written to: what it takes the place of is not seen any more.
    pub fn is_remembered(&self, value: Value) -> bool {
        self.nodes.iter().any(|n| matches!(n.op, Op::Remember(_)) && n.outputs.contains(&value))
    }
}
