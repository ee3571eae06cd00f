//! The working memory, by plain loops over steps and the places that they see.

use super::array::Call;
use super::{Real, real};
use crate::error::Result;
use crate::graph::memory::{NOTHING, by_token, recall, remember};
use crate::graph::{MemoryOp, MemoryPart};
use ndarray::Array2;

/// A step of a sequence: its logical row, its time in this run, its ring's row, steps that were read before this run.
struct At {
    row: usize,
    t: usize,
    slot: usize,
    before: usize,
}

/// Every step that exists.
fn steps<R: Real>(call: &Call<'_, R>, rows: usize, position: Option<usize>, slots: usize) -> Result<Vec<At>> {
    let sequences = call.batch.sequences();
    let has_slots = call.step.inputs.get(slots).copied().flatten().is_some();
    let at = |row: usize| {
        let b = row % sequences;
        let slot = if has_slots { call.index(slots)?[[b, 0]] as usize } else { b };
        let before = position.map_or(Ok(0), |at| Ok(MemoryOp::before(call.float(at)?[[b, 0]].to_double())))?;
        Ok(At { row, t: row / sequences, slot, before })
    };
    call.rows(rows)?.into_iter().map(|row| at(row.at)).collect()
}

/// Ring places that a step sees.
fn seen(op: &MemoryOp, at: &At) -> impl Iterator<Item = usize> + use<> {
    let places = op.places;
    op.seen(at.before + at.t).map(move |step| step % places)
}

fn is_token<R: Real>(kept: R, token: u32) -> bool {
    kept.to_double() == f64::from(token)
}

/// The ring with a run's h and tokens in it.
pub(super) fn remember<R: Real>(call: &Call<'_, R>, op: &MemoryOp) -> Result<Array2<R>> {
    let mut ring = call.float(remember::RING)?.clone();
    let (own, tokens) = (call.float(remember::OWN)?, call.index(remember::TOKENS)?);
    let features = own.ncols();
    for at in steps(call, remember::OWN, Some(remember::POSITION), remember::SLOTS)? {
        let step = at.before + at.t;
        for f in 0..features {
            ring[[at.slot, step % op.places * features + f]] = own[[at.row, f]];
        }
        // It follows the step before.
        if let Some(before) = step.checked_sub(1) {
            ring[[at.slot, op.places * features + before % op.places]] = R::from_double(f64::from(tokens[[at.row, 0]]));
        }
    }
    Ok(ring)
}

fn score<R: Real>(call: &Call<'_, R>, at: &At, place: usize) -> Result<R> {
    let (q, ring) = (call.float(recall::QUERIES)?, call.float(recall::RING)?);
    let features = q.ncols();
    Ok((0..features).fold(R::zero(), |sum, f| sum + q[[at.row, f]] * ring[[at.slot, place * features + f]]))
}

fn matches<R: Real>(call: &Call<'_, R>, op: &MemoryOp, at: &At, place: usize) -> Result<bool> {
    let (q, ring) = (call.float(recall::QUERIES)?, call.float(recall::RING)?);
    let kept = ring[[at.slot, op.places * q.ncols() + place]];
    Ok(is_token(kept, call.index(recall::TARGETS)?[[at.row, 0]]))
}

fn log_sum_exp<R: Real>(scores: &[R]) -> R {
    let Some(largest) = scores.iter().copied().reduce(|a, b| if a < b || b.is_nan() { b } else { a }) else {
        return real(NOTHING);
    };
    largest + scores.iter().fold(R::zero(), |sum, &s| sum + (s - largest).exp()).ln()
}

/// Both sums of each step.
pub(super) fn recall<R: Real>(call: &Call<'_, R>, op: &MemoryOp) -> Result<Array2<R>> {
    let mut sums = Array2::zeros((call.float(recall::QUERIES)?.nrows(), 2));
    for at in steps(call, recall::QUERIES, Some(recall::POSITION), recall::SLOTS)? {
        let (mut found, mut all) = (Vec::new(), Vec::new());
        for place in seen(op, &at) {
            let score = score(call, &at, place)?;
            all.push(score);
            if matches(call, op, &at, place)? {
                found.push(score);
            }
        }
        sums[[at.row, 0]] = log_sum_exp(&found);
        sums[[at.row, 1]] = log_sum_exp(&all);
    }
    Ok(sums)
}

/// One gradient.
pub(super) fn recall_backward<R: Real>(call: &Call<'_, R>, op: &MemoryOp, part: MemoryPart) -> Result<Array2<R>> {
    let (q, ring, given) = (call.float(recall::QUERIES)?, call.float(recall::RING)?, call.float(recall::GIVEN)?);
    let (features, sequences) = (q.ncols(), call.batch.sequences());
    let mut gradient = Array2::zeros(q.dim());
    for at in steps(call, recall::QUERIES, Some(recall::POSITION), recall::SLOTS)? {
        let g = |column: usize| given[[at.row, column]];
        for step in op.seen(at.before + at.t) {
            let place = step % op.places;
            let score = score(call, &at, place)?;
            let mut slope = g(3) * (score - g(1)).exp();
            if matches(call, op, &at, place)? {
                slope += g(2) * (score - g(0)).exp();
            }
            // The row of this run that the place is of.
            let own = step.checked_sub(at.before).map(|t| t * sequences + at.row % sequences);
            for f in 0..features {
                match (part, own) {
                    (MemoryPart::Queries, _) => {
                        gradient[[at.row, f]] += slope * ring[[at.slot, place * features + f]];
                    }
                    (MemoryPart::Own, Some(own)) => gradient[[own, f]] += slope * q[[at.row, f]],
                    (MemoryPart::Own, None) => {}
                }
            }
        }
    }
    Ok(gradient)
}

/// The share of each place, and the logarithm of what they are shares of.
pub(super) fn recall_places<R: Real>(call: &Call<'_, R>, op: &MemoryOp) -> Result<[Array2<R>; 2]> {
    let rows = call.float(recall::QUERIES)?.nrows();
    let (mut shares, mut total) = (Array2::zeros((rows, op.places)), Array2::zeros((rows, 1)));
    for at in steps(call, recall::QUERIES, Some(recall::POSITION), recall::SLOTS)? {
        let scores = seen(op, &at).map(|place| score(call, &at, place)).collect::<Result<Vec<R>>>()?;
        let sum = log_sum_exp(&scores);
        for (place, score) in seen(op, &at).zip(scores) {
            shares[[at.row, place]] = (score - sum).exp();
        }
        total[[at.row, 0]] = sum;
    }
    Ok([shares, total])
}

/// What each token's places come to.
pub(super) fn recall_tokens<R: Real>(call: &Call<'_, R>, op: &MemoryOp, vocabulary: usize) -> Result<Array2<R>> {
    let (places, ring) = (call.float(by_token::PLACES)?, call.float(by_token::RING)?);
    let first = ring.ncols() - op.places;
    let mut shares = Array2::zeros((places.nrows(), vocabulary));
    for at in steps(call, by_token::PLACES, None, by_token::SLOTS)? {
        for place in 0..op.places {
            let share = places[[at.row, place]];
            if share > R::zero() {
                let token = ring[[at.slot, first + place]].to_double() as usize;
                if token < vocabulary {
                    shares[[at.row, token]] += share;
                }
            }
        }
    }
    Ok(shares)
}
