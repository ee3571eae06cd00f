//! Attention and its gradients. Threads own rows of the output, and each row is summed over its own sample in the order of
//! steps, so that no sum depends on threads or on other samples.

use super::call::Call;
use super::math;
use super::rows::over_rows;
use super::simd::dispatch;
use crate::error::{Error, Result};
use crate::graph::attention::{backward, forward};
use crate::graph::{AttentionOp, AttentionPart, Score};
use crate::scheduler::{Axis, Batch};
use std::ops::Range;

/// Elementary operations of a tanh or an exponential.
const FUNCTION_COST: usize = 10;

/// The operands of one step.
struct Operands<'a> {
    op: AttentionOp,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    s: Option<&'a [f32]>,
    /// D and V.
    features: usize,
    columns: usize,
}

#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    lanes.iter_mut().zip(a_rest.iter().zip(b_rest)).for_each(|(sum, (a, b))| *sum += a * b);
    lanes.iter().sum()
}

impl<'a> Operands<'a> {
    fn of(call: &Call<'a>, op: &AttentionOp) -> Result<Self> {
        Ok(Self {
            op: *op,
            q: call.input(forward::QUERIES)?,
            k: call.input(forward::KEYS)?,
            v: call.input(forward::VALUES)?,
            s: call.maybe_input(forward::SCALE)?,
            features: call.operand(forward::QUERIES)?.columns(),
            columns: call.operand(forward::VALUES)?.columns(),
        })
    }

    fn query(&self, row: usize) -> &'a [f32] {
        &self.q[row * self.features..][..self.features]
    }

    fn key(&self, row: usize) -> &'a [f32] {
        &self.k[row * self.features..][..self.features]
    }

    fn value(&self, row: usize) -> &'a [f32] {
        &self.v[row * self.columns..][..self.columns]
    }

    #[inline(always)]
    fn score(&self, query: usize, key: usize) -> f32 {
        let (q, k) = (self.query(query), self.key(key));
        match (self.op.score, self.s) {
            (Score::Dot, _) => dot(q, k),
            (Score::Additive, Some(s)) => {
                q.iter().zip(k).zip(s).fold(0.0, |sum, ((q, k), s)| sum + s * math::tanh(q + k))
            }
            (Score::Additive, None) => q.iter().zip(k).fold(0.0, |sum, (q, k)| sum + math::tanh(q + k)),
        }
    }

    /// Operations of one pair.
    fn cost(&self) -> usize {
        let a_feature = if self.op.score == Score::Additive { FUNCTION_COST } else { 1 };
        self.features * a_feature + 2 * self.columns + FUNCTION_COST
    }
}

/// The rows of the other axis that a row of one meets: the row of step t is `offset(t) + place`.
struct Partners<'a> {
    own: &'a Axis,
    other: &'a Axis,
    causal: bool,
    /// Whether the own rows are those of queries.
    queries: bool,
}

impl<'a> Partners<'a> {
    fn new(call: &Call<'_>, batch: &'a Batch, causal: bool, queries: bool) -> Result<Self> {
        let axis = |at: usize| {
            let axis = call.operand(at)?.axis.ok_or_else(|| Error::internal("a value has no time axis"))?;
            batch.axis(axis)
        };
        let (q, k) = (axis(forward::QUERIES)?, axis(forward::KEYS)?);
        let (own, other) = if queries { (q, k) } else { (k, q) };
        Ok(Self { own, other, causal, queries })
    }

    /// Steps of the other sequence that `row` meets, and that sequence's place.
    fn of(&self, row: usize) -> (Range<usize>, usize) {
        let t = self.own.offsets().partition_point(|&first| first as usize <= row) - 1;
        let place = self.other.places()[self.own.order()[row - self.own.offset(t)] as usize] as usize;
        let length = self.other.length(place);
        let steps = match (self.causal, self.queries) {
            (false, _) => 0..length,
            (true, true) => 0..length.min(t + 1),
            (true, false) => t.min(length)..length,
        };
        (steps, place)
    }
}

/// y and the log-sum-exp of each query.
pub(super) fn attention(call: &mut Call<'_>, op: &AttentionOp) -> Result<()> {
    let operands = Operands::of(call, op)?;
    let partners = Partners::new(call, call.batch, op.causal, true)?;
    let (width, steps) = (operands.columns, partners.other.steps());
    let (y, normalizer) = (call.output(forward::Y)?, call.maybe_output(forward::LOG_SUM_EXP));
    let cost = operands.cost() * steps.max(1);
    let scores = |row: usize, scores: &mut Vec<f32>| -> (f32, f32) {
        let (seen, place) = partners.of(row);
        scores.clear();
        scores.extend(seen.map(|t| operands.score(row, partners.other.offset(t) + place)));
        let largest = math::largest(scores);
        (largest, math::sum_of_exponentials(scores, largest))
    };
    over_rows(y, width, cost, |first, out| {
        dispatch(
            #[inline(always)]
            || {
                let mut all = Vec::new();
                for (r, y) in out.chunks_exact_mut(width).enumerate() {
                    let (largest, sum) = scores(first + r, &mut all);
                    let (seen, place) = partners.of(first + r);
                    y.fill(0.0);
                    for (t, &score) in seen.zip(&all) {
                        let p = math::exp(score - largest) / sum;
                        let v = operands.value(partners.other.offset(t) + place);
                        y.iter_mut().zip(v).for_each(|(y, v)| *y += p * v);
                    }
                }
            },
        );
    });
    if let Some(normalizer) = normalizer {
        over_rows(normalizer, 1, cost, |first, out| {
            let mut all = Vec::new();
            for (r, to) in out.iter_mut().enumerate() {
                let (largest, sum) = scores(first + r, &mut all);
                *to = if all.is_empty() { 0.0 } else { largest + sum.ln() };
            }
        });
    }
    Ok(())
}

/// One gradient.
pub(super) fn attention_backward(call: &mut Call<'_>, op: &AttentionOp, part: AttentionPart) -> Result<()> {
    let operands = Operands::of(call, op)?;
    let of_queries = matches!(part, AttentionPart::Queries | AttentionPart::Scale);
    let partners = Partners::new(call, call.batch, op.causal, of_queries)?;
    let given = call.input(backward::GIVEN)?;
    let width = if part == AttentionPart::Values { operands.columns } else { operands.features };
    let cost = (operands.cost() + width) * partners.other.steps().max(1);
    over_rows(call.output(0)?, width, cost, |first, out| {
        dispatch(
            #[inline(always)]
            || {
                for (r, to) in out.chunks_exact_mut(width).enumerate() {
                    to.fill(0.0);
                    let (steps, place) = partners.of(first + r);
                    for t in steps {
                        let other = partners.other.offset(t) + place;
                        let (query, key) = if of_queries { (first + r, other) } else { (other, first + r) };
                        add(&operands, part, (query, key), &given[query * (2 + operands.columns)..], to);
                    }
                }
            },
        );
    });
    Ok(())
}

/// Adds what one query and one key give to a row of a gradient.
#[inline(always)]
fn add(operands: &Operands<'_>, part: AttentionPart, (query, key): (usize, usize), given: &[f32], to: &mut [f32]) {
    let p = math::exp(operands.score(query, key) - given[0]);
    let dy = &given[2..2 + operands.columns];
    if part == AttentionPart::Values {
        to.iter_mut().zip(dy).for_each(|(to, dy)| *to += p * dy);
        return;
    }
    let dscore = p * (dot(dy, operands.value(key)) - given[1]);
    let (q, k) = (operands.query(query), operands.key(key));
    let pairs = q.iter().zip(k);
    match (operands.op.score, part, operands.s) {
        (_, AttentionPart::Scale, _) => {
            to.iter_mut().zip(pairs).for_each(|(to, (q, k))| *to += dscore * math::tanh(q + k));
        }
        (Score::Additive, _, s) => {
            for (d, (to, (q, k))) in to.iter_mut().zip(pairs).enumerate() {
                let u = math::tanh(q + k);
                *to += dscore * s.map_or(1.0, |s| s[d]) * (1.0 - u * u);
            }
        }
        (Score::Dot, AttentionPart::Keys, _) => to.iter_mut().zip(q).for_each(|(to, q)| *to += dscore * q),
        (Score::Dot, ..) => to.iter_mut().zip(k).for_each(|(to, k)| *to += dscore * k),
    }
}
