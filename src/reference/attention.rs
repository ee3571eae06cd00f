//! Attention and its gradients, by plain loops over queries and keys.

use super::Real;
use super::array::Call;
use crate::error::{Error, Result};
use crate::graph::attention::{backward, forward};
use crate::graph::{AttentionOp, AttentionPart, Score};
use ndarray::Array2;

/// A query and a key of one sample, as logical rows.
struct Pair {
    query: usize,
    key: usize,
}

/// For each query that exists, in packed order, the keys that it sees.
fn pairs<R: Real>(call: &Call<'_, R>, op: &AttentionOp) -> Result<Vec<Vec<Pair>>> {
    let axis = |at: usize| {
        let number = call.shape(at)?.axis().ok_or_else(|| Error::internal("a value has no time axis"))?;
        call.batch.axis(number)
    };
    let (queries, keys, sequences) = (axis(forward::QUERIES)?, axis(forward::KEYS)?, call.batch.sequences());
    let mut all = Vec::new();
    for t in 0..queries.steps() {
        for b in 0..queries.rows_at(t) {
            let other = keys.places()[queries.order()[b] as usize] as usize;
            let seen = if op.causal { keys.length(other).min(t + 1) } else { keys.length(other) };
            let pair = |step: usize| Pair { query: t * sequences + b, key: step * sequences + other };
            all.push((0..seen).map(pair).collect());
        }
    }
    Ok(all)
}

fn score<R: Real>(call: &Call<'_, R>, op: &AttentionOp, pair: &Pair) -> Result<R> {
    let (q, k) = (call.float(forward::QUERIES)?, call.float(forward::KEYS)?);
    let s = call.maybe(forward::SCALE)?;
    let terms = (0..q.ncols()).map(|d| {
        let (q, k) = (q[[pair.query, d]], k[[pair.key, d]]);
        match op.score {
            Score::Dot => q * k,
            Score::Additive => s.map_or(R::one(), |s| s[[d, 0]]) * (q + k).tanh(),
        }
    });
    Ok(terms.fold(R::zero(), |sum, term| sum + term))
}

/// y and the log-sum-exp of each query.
pub(super) fn attention<R: Real>(call: &Call<'_, R>, op: &AttentionOp) -> Result<[Array2<R>; 2]> {
    let (q, v) = (call.float(forward::QUERIES)?, call.float(forward::VALUES)?);
    let (mut y, mut normalizer) = (Array2::zeros((q.nrows(), v.ncols())), Array2::zeros((q.nrows(), 1)));
    for seen in pairs(call, op)?.iter().filter(|seen| !seen.is_empty()) {
        let scores = seen.iter().map(|pair| score(call, op, pair)).collect::<Result<Vec<R>>>()?;
        let largest = scores.iter().copied().fold(R::neg_infinity(), |a, b| if a < b || b.is_nan() { b } else { a });
        let sum = scores.iter().fold(R::zero(), |sum, &s| sum + (s - largest).exp());
        for (pair, &s) in seen.iter().zip(&scores) {
            let p = (s - largest).exp() / sum;
            for j in 0..v.ncols() {
                y[[pair.query, j]] += p * v[[pair.key, j]];
            }
        }
        normalizer[[seen[0].query, 0]] = largest + sum.ln();
    }
    Ok([y, normalizer])
}

/// One gradient.
pub(super) fn attention_backward<R: Real>(
    call: &Call<'_, R>,
    op: &AttentionOp,
    part: AttentionPart,
) -> Result<Array2<R>> {
    let (q, k) = (call.float(forward::QUERIES)?, call.float(forward::KEYS)?);
    let (v, s) = (call.float(forward::VALUES)?, call.maybe(forward::SCALE)?);
    let given = call.float(backward::GIVEN)?;
    let mut gradient = match part {
        AttentionPart::Queries | AttentionPart::Scale => Array2::zeros(q.dim()),
        AttentionPart::Keys => Array2::zeros(k.dim()),
        AttentionPart::Values => Array2::zeros(v.dim()),
    };
    for pair in pairs(call, op)?.iter().flatten() {
        let p = (score(call, op, pair)? - given[[pair.query, 0]]).exp();
        if part == AttentionPart::Values {
            for j in 0..v.ncols() {
                gradient[[pair.key, j]] += p * given[[pair.query, 2 + j]];
            }
            continue;
        }
        let dp = (0..v.ncols()).fold(R::zero(), |sum, j| sum + given[[pair.query, 2 + j]] * v[[pair.key, j]]);
        let dscore = p * (dp - given[[pair.query, 1]]);
        let row = if part == AttentionPart::Keys { pair.key } else { pair.query };
        for d in 0..q.ncols() {
            let u = (q[[pair.query, d]] + k[[pair.key, d]]).tanh();
            let scale = s.map_or(R::one(), |s| s[[d, 0]]);
            gradient[[row, d]] += dscore
                * match (op.score, part) {
                    (_, AttentionPart::Scale) => u,
                    (Score::Additive, _) => scale * (R::one() - u * u),
                    (Score::Dot, AttentionPart::Keys) => q[[pair.query, d]],
                    (Score::Dot, _) => k[[pair.key, d]],
                };
        }
    }
    Ok(gradient)
}
