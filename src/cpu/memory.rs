//! The working memory. Sums over places are made block by block of [`BLOCK`] steps, each a product of the block's rows with the
//! queries of many steps, whose exponentials are added up while it is in the first cache: no score is stored.

use super::attention::dot;
use super::call::Call;
use super::math;
use super::matmul::Panels;
use super::packed::{PANEL_REGISTERS, Packed};
use super::room::Room;
use super::rows::{over_rows, rows_a_task};
use super::simd::dispatch;
use super::threads;
use crate::error::{Error, Result};
use crate::graph::memory::{BLOCK, NOTHING, by_token, recall, remember};
use crate::graph::{MemoryOp, MemoryPart};
use crate::scheduler::Axis;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Elementary operations of an exponential and what is done with it.
const EXP_COST: usize = 12;
/// The score of a place that is not seen: its exponential is zero whatever is taken from it.
const UNSEEN: f32 = -3e38;

/// The sequences of a run.
struct Sequences<'a> {
    axis: &'a Axis,
    position: Option<&'a [f32]>,
    slots: Option<&'a [f32]>,
}

impl<'a> Sequences<'a> {
    fn of(call: &Call<'a>, position: Option<usize>, slots: usize) -> Result<Self> {
        let position = position.map(|at| call.input(at)).transpose()?;
        Ok(Self { axis: call.batch.axis(0)?, position, slots: call.maybe_input(slots)? })
    }

    fn count(&self) -> usize {
        self.axis.rows_at(0)
    }

    /// Steps that sequence `b` has read before.
    fn before(&self, b: usize) -> usize {
        self.position.map_or(0, |position| MemoryOp::before(f64::from(position[b])))
    }

    /// The ring's row of sequence `b`, of so many.
    fn slot(&self, b: usize, rows: usize) -> Result<usize> {
        let slot = self.slots.map_or(b, |slots| slots[b].to_bits() as usize);
        let wrong = || Error::argument(format!("slot: expected a number below {rows}, got {slot}"));
        if slot < rows { Ok(slot) } else { Err(wrong()) }
    }

    /// The row of step `t` of sequence `b`.
    fn row(&self, b: usize, t: usize) -> usize {
        self.axis.offset(t) + b
    }

    /// The step and the sequence of a row.
    fn step(&self, row: usize) -> (usize, usize) {
        let t = self.axis.offsets().partition_point(|&first| first as usize <= row) - 1;
        (t, row - self.axis.offset(t))
    }
}

/// One sequence's ring: h of each place, then the token of each.
#[derive(Clone, Copy)]
struct Ring<'a> {
    own: &'a [f32],
    tokens: &'a [f32],
    places: usize,
    features: usize,
}

impl<'a> Ring<'a> {
    fn of(values: &'a [f32], op: &MemoryOp, len: usize, slot: usize) -> Self {
        let features = op.features(len);
        let (own, tokens) = values[slot * len..][..len].split_at(op.places * features);
        Self { own, tokens, places: op.places, features }
    }

    fn key(&self, step: usize) -> &'a [f32] {
        &self.own[step % self.places * self.features..][..self.features]
    }

    fn token(&self, step: usize) -> f32 {
        self.tokens[step % self.places]
    }
}

/// The rings of all sequences.
fn rings<'a>(call: &Call<'a>, op: &MemoryOp, at: usize, sequences: &Sequences<'_>) -> Result<Vec<Ring<'a>>> {
    let (values, len) = (call.input(at)?, call.operand(at)?.columns());
    let rows = call.operand(at)?.rows();
    (0..sequences.count()).map(|b| Ok(Ring::of(values, op, len, sequences.slot(b, rows)?))).collect()
}

/// Stores h and the token of every step of a run.
pub(super) fn remember(call: &mut Call<'_>, op: &MemoryOp) -> Result<()> {
    let sequences = Sequences::of(call, Some(remember::POSITION), remember::SLOTS)?;
    let (own, tokens) = (call.input(remember::OWN)?, call.input(remember::TOKENS)?);
    let (features, len) = (call.operand(remember::OWN)?.columns(), call.operand(remember::RING)?.columns());
    let (rows, before) = (call.operand(remember::RING)?.rows(), call.operand(remember::RING)?.data);
    let out = call.output(0)?;
    if let Some(before) = before {
        out.copy_from_slice(&before[..out.len()]);
    }
    for b in 0..sequences.count() {
        let ring = &mut out[sequences.slot(b, rows)? * len..][..len];
        let (keys, kept) = ring.split_at_mut(op.places * features);
        for t in 0..sequences.axis.length(b) {
            let (row, step) = (sequences.row(b, t), sequences.before(b) + t);
            let place = step % op.places;
            keys[place * features..][..features].copy_from_slice(&own[row * features..][..features]);
            // The token follows the step before.
            if let Some(before) = step.checked_sub(1) {
                kept[before % op.places] = tokens[row].to_bits() as f32;
            }
        }
    }
    Ok(())
}

/// The steps of one sequence, whose queries are in panels of their own.
struct Queries<'a> {
    packed: &'a Packed,
    /// Its first panel.
    first: usize,
    /// Looked for by each of its steps, as floats; further ones to fill a panel.
    targets: Vec<f32>,
    ring: Ring<'a>,
    before: usize,
    op: &'a MemoryOp,
}

/// Sums over places of as many steps as a panel has, so far: the largest score, Σ e^(score - largest), the same of matches.
struct Sums<'a> {
    largest: &'a mut [f32],
    all: &'a mut [f32],
    found: &'a mut [f32],
}

/// The sums of some panels of a sequence's steps.
struct Recall<'a, 'b> {
    queries: &'b Queries<'a>,
    /// Counted from the sequence's first.
    panels: Range<usize>,
    /// Both sums of each step of these panels, `[steps, 2]`.
    out: &'b mut [f32],
    room: &'b Room,
}

impl WithSimd for Recall<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { queries, panels, out, room } = self;
        let (width, ring) = (PANEL_REGISTERS * S::F32_LANES, queries.ring);
        let first = panels.start * width;
        let steps = out.len() / 2;
        let mut kept = room.take(3 * panels.len() * width);
        let (largest, rest) = kept.split_at_mut(panels.len() * width);
        largest.fill(NOTHING);
        rest.fill(0.0);
        let (all, found) = rest.split_at_mut(panels.len() * width);
        let mut scores = room.take(BLOCK * width);
        let products = Panels::new(queries.packed, queries.first + panels.start..queries.first + panels.end);
        let seen = |t: usize| queries.op.seen(queries.before + t);
        let (begin, end) = (seen(first).start, seen(first + steps - 1).end);
        // From a multiple of BLOCK on, each block is in one piece of the ring.
        for block in (begin / BLOCK * BLOCK..end).step_by(BLOCK) {
            let rows = BLOCK.min(end - block);
            let keys = &ring.own[block % ring.places * ring.features..];
            let tokens = &ring.tokens[block % ring.places..][..rows];
            for p in panels.clone() {
                let at = (p - panels.start) * width;
                let used = width.min(steps - at);
                let (oldest, newest) = (seen(first + at), seen(first + at + used - 1));
                if newest.end <= block || oldest.start >= block + rows {
                    continue;
                }
                let scores = &mut scores[..rows * width];
                products.multiply(simd, (keys, ring.features), queries.first + p, scores);
                // Of the panel's steps the last sees from here, the first to here.
                if newest.start > block || oldest.end < block + rows {
                    for (r, row) in scores.chunks_exact_mut(width).enumerate() {
                        let step = block + r;
                        for (t, score) in row[..used].iter_mut().enumerate() {
                            if !seen(first + at + t).contains(&step) {
                                *score = UNSEEN;
                            }
                        }
                    }
                }
                let targets = &queries.targets[first + at..];
                let part = at..at + width;
                let sums =
                    Sums { largest: &mut largest[part.clone()], all: &mut all[part.clone()], found: &mut found[part] };
                sums.add::<S>(simd, scores, tokens, targets);
            }
        }
        for (t, out) in out.chunks_exact_mut(2).enumerate() {
            let log = |sum: f32| if sum == 0.0 { NOTHING } else { largest[t] + sum.ln() };
            (out[0], out[1]) = (log(found[t]), log(all[t]));
        }
    }
}

impl Sums<'_> {
    /// Adds the places of some rows of scores, a register's steps at a time.
    #[inline(always)]
    fn add<S: Simd>(self, simd: S, scores: &[f32], tokens: &[f32], targets: &[f32]) {
        let (scores, _) = S::as_simd_f32s(scores);
        let ((largest, _), (all, _)) = (S::as_mut_simd_f32s(self.largest), S::as_mut_simd_f32s(self.all));
        let (found, _) = S::as_mut_simd_f32s(self.found);
        let (targets, _) = S::as_simd_f32s(targets);
        let (rows, _) = scores.as_chunks::<PANEL_REGISTERS>();
        for r in 0..PANEL_REGISTERS {
            let mut top = largest[r];
            for row in rows {
                top = simd.max_f32s(top, row[r]);
            }
            let shrink = math::lanes::exp(simd, simd.sub_f32s(largest[r], top));
            let mut sum = simd.mul_f32s(all[r], shrink);
            let mut hits = simd.mul_f32s(found[r], shrink);
            let zero = simd.splat_f32s(0.0);
            for (row, &token) in rows.iter().zip(tokens) {
                let e = math::lanes::exp(simd, simd.sub_f32s(row[r], top));
                sum = simd.add_f32s(sum, e);
                let is = simd.equal_f32s(simd.splat_f32s(token), targets[r]);
                hits = simd.add_f32s(hits, simd.select_f32s(is, e, zero));
            }
            (largest[r], all[r], found[r]) = (top, sum, hits);
        }
    }
}

/// Both sums of each step.
pub(super) fn recall(call: &mut Call<'_>, op: &MemoryOp) -> Result<()> {
    let sequences = Sequences::of(call, Some(recall::POSITION), recall::SLOTS)?;
    let (q, targets) = (call.input(recall::QUERIES)?, call.input(recall::TARGETS)?);
    let (features, room) = (call.operand(recall::QUERIES)?.columns(), call.room);
    let rings = rings(call, op, recall::RING, &sequences)?;
    let out = call.output(0)?;
    let lengths: Vec<usize> = (0..sequences.count()).map(|b| sequences.axis.length(b)).collect();
    let width = Packed::panel();
    // Whose step each packed column is.
    let mut columns = Vec::with_capacity(lengths.iter().map(|steps| steps.next_multiple_of(width)).sum());
    for (b, &steps) in lengths.iter().enumerate() {
        columns.extend((0..steps.next_multiple_of(width)).map(|t| (t < steps).then(|| sequences.row(b, t))));
    }
    let packed = call.packs[0].get(None, |packed| {
        let query = |column: usize| columns[column].map(|row| &q[row * features..][..features]);
        packed.columns_from(features, columns.len(), query);
    });
    let (mut all, mut first) = (Vec::with_capacity(rings.len()), 0);
    for (b, &ring) in rings.iter().enumerate() {
        let count = lengths[b].div_ceil(width);
        let own = &columns[first * width..(first + count) * width];
        let targets = own.iter().map(|row| row.map_or(-1.0, |row| targets[row].to_bits() as f32)).collect();
        all.push(Queries { packed, first, targets, ring, before: sequences.before(b), op });
        first += count;
    }
    let total: usize = lengths.iter().sum();
    let mut sums = room.take(2 * total);
    // Panels that share the places they see, as few tasks as keep all threads at work.
    let each = first.div_ceil(threads::count()).max(1);
    let (mut tasks, mut rest) = (Vec::new(), &mut sums[..]);
    for (queries, &steps) in all.iter().zip(&lengths) {
        let count = steps.div_ceil(width);
        for first in (0..count).step_by(each) {
            let panels = first..(first + each).min(count);
            let here = (panels.end * width).min(steps) - panels.start * width;
            let (out, tail) = std::mem::take(&mut rest).split_at_mut(2 * here);
            rest = tail;
            tasks.push(Recall { queries, panels, out, room });
        }
    }
    threads::each(tasks.into_iter(), dispatch);
    let mut from = sums.chunks_exact(2);
    for (b, &steps) in lengths.iter().enumerate() {
        for (t, sums) in (0..steps).zip(&mut from) {
            out[2 * sequences.row(b, t)..][..2].copy_from_slice(sums);
        }
    }
    Ok(())
}

/// What a row's gradient is made of.
struct Slopes<'a> {
    q: &'a [f32],
    given: &'a [f32],
    targets: &'a [f32],
    features: usize,
}

impl Slopes<'_> {
    fn query(&self, row: usize) -> &[f32] {
        &self.q[row * self.features..][..self.features]
    }

    /// The gradient of a row's score of a place.
    #[inline(always)]
    fn of(&self, row: usize, key: &[f32], token: f32) -> f32 {
        let &[found, all, dfound, dall] = &self.given[4 * row..][..4] else { return 0.0 };
        let score = dot(self.query(row), key);
        let mut slope = dall * math::exp(score - all);
        if self.targets[row].to_bits() as f32 == token && found > NOTHING {
            slope += dfound * math::exp(score - found);
        }
        slope
    }
}

/// One gradient.
pub(super) fn recall_backward(call: &mut Call<'_>, op: &MemoryOp, part: MemoryPart) -> Result<()> {
    let sequences = Sequences::of(call, Some(recall::POSITION), recall::SLOTS)?;
    let rings = rings(call, op, recall::RING, &sequences)?;
    let features = call.operand(recall::QUERIES)?.columns();
    let slopes = Slopes {
        q: call.input(recall::QUERIES)?,
        given: call.input(recall::GIVEN)?,
        targets: call.input(recall::TARGETS)?,
        features,
    };
    let cost = op.window * (2 * features + EXP_COST);
    over_rows(call.output(0)?, features, cost, |first, out| {
        dispatch(
            #[inline(always)]
            || {
                for (r, to) in out.chunks_exact_mut(features).enumerate() {
                    let (t, b) = sequences.step(first + r);
                    let (ring, before) = (&rings[b], sequences.before(b));
                    to.fill(0.0);
                    let mut add = |slope: f32, x: &[f32]| to.iter_mut().zip(x).for_each(|(to, x)| *to += slope * x);
                    match part {
                        MemoryPart::Queries => op.seen(before + t).for_each(|step| {
                            let key = ring.key(step);
                            add(slopes.of(first + r, key, ring.token(step)), key);
                        }),
                        MemoryPart::Own => {
                            let (key, token) = (ring.key(before + t), ring.token(before + t));
                            // The steps that see this one.
                            let end = sequences.axis.length(b).min(t + 1 + op.window);
                            for row in (t + 1..end).map(|later| sequences.row(b, later)) {
                                add(slopes.of(row, key, token), slopes.query(row));
                            }
                        }
                    }
                }
            },
        );
    });
    Ok(())
}

/// The share of each place, and the logarithm of what they are shares of.
pub(super) fn recall_places(call: &mut Call<'_>, op: &MemoryOp) -> Result<()> {
    let sequences = Sequences::of(call, Some(recall::POSITION), recall::SLOTS)?;
    let rings = rings(call, op, recall::RING, &sequences)?;
    let (q, features) = (call.input(recall::QUERIES)?, call.operand(recall::QUERIES)?.columns());
    let (shares, totals) = (call.output(0)?, call.output(1)?);
    let each = rows_a_task(totals.len(), op.window * (features + EXP_COST));
    let tasks = shares.chunks_mut(each * op.places).zip(totals.chunks_mut(each));
    threads::each(tasks.enumerate(), |(task, (shares, totals))| {
        dispatch(
            #[inline(always)]
            || {
                for (r, (to, total)) in shares.chunks_exact_mut(op.places).zip(totals).enumerate() {
                    let row = task * each + r;
                    let (t, b) = sequences.step(row);
                    let query = &q[row * features..][..features];
                    to.fill(UNSEEN);
                    for step in op.seen(sequences.before(b) + t) {
                        to[step % op.places] = dot(query, rings[b].key(step));
                    }
                    let largest = math::largest(to).max(NOTHING);
                    let sum = math::sum_of_exponentials(to, largest);
                    *total = if sum == 0.0 { NOTHING } else { largest + sum.ln() };
                    let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
                    to.iter_mut().for_each(|x| *x = math::exp(*x - largest) * scale);
                }
            },
        );
    });
    Ok(())
}

/// What each token's places come to.
pub(super) fn recall_tokens(call: &mut Call<'_>, op: &MemoryOp, vocabulary: usize) -> Result<()> {
    let sequences = Sequences::of(call, None, by_token::SLOTS)?;
    let rings = rings(call, op, by_token::RING, &sequences)?;
    let places = call.input(by_token::PLACES)?;
    let out = call.output(0)?;
    over_rows(out, vocabulary, vocabulary + 2 * op.places, |first, out| {
        for (r, to) in out.chunks_exact_mut(vocabulary).enumerate() {
            let (_, b) = sequences.step(first + r);
            to.fill(0.0);
            let shares = &places[(first + r) * op.places..][..op.places];
            for (&share, &token) in shares.iter().zip(rings[b].tokens) {
                if let Some(to) = to.get_mut(token as usize).filter(|_| share > 0.0) {
                    *to += share;
                }
            }
        }
    });
    Ok(())
}
