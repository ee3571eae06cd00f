//! The recurrence of layers whose steps are nothing but the plain cell, with the cell's work done while the sums of its gates
//! are near.
//!
//! Threads share the sequences, and then meet nobody; or where these are few, or the recurrent weights too many for one
//! processor's cache, the units, and then meet at each step. An element's bits are the same either way.

use super::lstm_layer::Layer;
use super::math::lanes::{sigmoid, tanh};
use super::matmul::{Finish, multiply_gates};
use super::team::{Meeting, Shared};
use crate::config::{GATE_F, GATE_G, GATE_I, GATE_O, GATES};
use pulp::Simd;
use rayon::prelude::*;
use std::ops::Range;

/// Between rows of h, so that they do not all fall into the same sets of the cache.
const SKEW: usize = 16;
/// Values of recurrent weights that stay in one processor's own cache beside all else.
const OWN_CACHE: usize = 192 * 1024;
/// Multiply-adds of a step that are worth a meeting.
const MEETING_COST: usize = 50_000;

/// A layer's values; packed rows have their directions side by side.
pub(super) struct Plain<'a> {
    pub layer: &'a Layer<'a>,
    /// `[N, D·4H]`: the input's part of the gates, then what is saved of them.
    pub gates: Shared<'a>,
    /// Whether anything is.
    pub saves: bool,
    /// `[N, D·H]`
    pub y: Shared<'a>,
    /// `[N, D·H]`, if anybody wants them.
    pub cells: Option<Shared<'a>>,
    /// `[B, D·H]`: h_0 and c_0, at last h_n and c_n.
    pub h: Shared<'a>,
    pub c: Shared<'a>,
}

/// What one thread computes of a layer.
struct Member<'a> {
    plain: &'a Plain<'a>,
    sequences: Range<usize>,
    /// Panels of the recurrent weights, and their units.
    panels: Range<usize>,
    units: Range<usize>,
    /// h in two halves, of the step before and of this one, `[2, B, H + SKEW]`
    left: &'a Shared<'a>,
    meeting: &'a Meeting,
}

/// Calls `work` for each thread's sequences and panels, of which there are so many: `shares` of sequences with all panels, or all
/// sequences with a share of the panels each.
fn spread(
    layer: &Layer<'_>,
    shares: &[Range<usize>],
    panels: usize,
    work: impl Fn(Range<usize>, Range<usize>, &Meeting) + Sync,
) {
    let threads = rayon::current_num_threads().min(panels);
    let step = layer.lengths.len() * GATES * layer.hidden * layer.r;
    let is_large = GATES * layer.hidden * layer.r > OWN_CACHE;
    if threads == rayon::current_num_threads() && (shares.len() < threads || is_large) && step > MEETING_COST {
        let meeting = Meeting::new(threads);
        let share = |n: usize| n * panels / threads;
        meeting.gather(|n| work(0..layer.lengths.len(), share(n)..share(n + 1), &meeting));
    } else {
        shares.par_iter().for_each(|sequences| work(sequences.clone(), 0..panels, &Meeting::new(1)));
    }
}

impl Plain<'_> {
    /// Runs all steps of all directions.
    pub fn run(&self, shares: &[Range<usize>]) {
        let (hidden, sequences) = (self.layer.hidden, self.layer.lengths.len());
        let mut left = vec![0.0; 2 * sequences * (hidden + SKEW)];
        let left = Shared::new(&mut left);
        let each = self.layer.weights[0].hh.units();
        spread(self.layer, shares, hidden.div_ceil(each), |sequences, panels, meeting| {
            let units = panels.start * each..(panels.end * each).min(hidden);
            let member = Member { plain: self, sequences, panels, units, left: &left, meeting };
            (0..self.layer.op.directions()).for_each(|d| member.direction(d));
        });
    }
}

impl Member<'_> {
    /// The place of units of row `b` in half `half` of h.
    fn left(&self, half: usize, b: usize, units: &Range<usize>) -> Range<usize> {
        let row = (half * self.plain.layer.lengths.len() + b) * (self.plain.layer.hidden + SKEW);
        row + units.start..row + units.end
    }

    fn direction(&self, d: usize) {
        let (layer, directions) = (self.plain.layer, self.plain.layer.op.directions());
        let (hidden, lengths) = (layer.hidden, layer.lengths);
        for b in self.sequences.clone() {
            let at = (b * directions + d) * hidden;
            // SAFETY: of this thread's sequences and units, which are no other's; halves are read by others after the meeting.
            let h = unsafe { self.plain.h.read(at + self.units.start..at + self.units.end) };
            // SAFETY: as above.
            unsafe { self.left.write(self.left(0, b, &self.units)) }.copy_from_slice(h);
        }
        self.meeting.wait();
        let right = layer.weights[d].hh;
        let mut sums = vec![0.0; self.sequences.len() * GATES * right.units()];
        let first = self.sequences.start;
        for s in 0..lengths[self.sequences.clone()].first().copied().unwrap_or(0) {
            let active = lengths[self.sequences.clone()].partition_point(|&n| n > s);
            let (begin, end) =
                (self.left(s % 2, first, &(0..0)).start, self.left(s % 2, first + active, &(0..0)).start);
            // SAFETY: in this step all write to the other half; this one was written before the last meeting, or by this
            // thread alone.
            let left = unsafe { self.left.read(begin..end) };
            let step = Step { member: self, d, s, active };
            let sums = &mut sums[..active * GATES * right.units()];
            multiply_gates((left, hidden + SKEW), right, self.panels.clone(), sums, step);
            self.meeting.wait();
        }
    }
}

/// One step of what a thread computes.
struct Step<'a> {
    member: &'a Member<'a>,
    d: usize,
    s: usize,
    active: usize,
}

impl Finish for Step<'_> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, first: usize, sums: &[f32]) {
        let Self { member, d, s, active } = *self;
        let Plain { layer, gates, y, cells, h, c, saves } = member.plain;
        let (hidden, lanes, directions) = (layer.hidden, S::F32_LANES, layer.op.directions());
        let used = lanes.min(hidden - first);
        for (b, sums) in (member.sequences.start..).take(active).zip(sums.chunks_exact(GATES * lanes)) {
            let length = layer.lengths[b];
            let t = if layer.op.direction.reversed(d) { length - 1 - s } else { s };
            let row = (layer.axis.offset(t) + b) * directions + d;
            let (own, state) = (row * hidden + first, (b * directions + d) * hidden + first);
            // No closures here: one that is not inlined has no vector instructions.
            let at = row * GATES * hidden + first;
            let [at_i, at_f, at_g, at_o] =
                [at + GATE_I * hidden, at + GATE_F * hidden, at + GATE_G * hidden, at + GATE_O * hidden];
            let i = sigmoid(simd, sum(simd, gates, at_i, used, &sums[GATE_I * lanes..][..lanes]));
            let f = sigmoid(simd, sum(simd, gates, at_f, used, &sums[GATE_F * lanes..][..lanes]));
            let g = tanh(simd, sum(simd, gates, at_g, used, &sums[GATE_G * lanes..][..lanes]));
            let o = sigmoid(simd, sum(simd, gates, at_o, used, &sums[GATE_O * lanes..][..lanes]));
            // SAFETY: of one of this thread's rows and units, which no other thread touches.
            let before = load(simd, unsafe { c.read(state..state + used) });
            let cell = simd.add_f32s(simd.mul_f32s(f, before), simd.mul_f32s(i, g));
            let out = simd.mul_f32s(o, tanh(simd, cell));
            put(simd, c, state, used, cell);
            put(simd, y, own, used, out);
            put(simd, member.left, member.left((s + 1) % 2, b, &(first..first)).start, used, out);
            if length == s + 1 {
                put(simd, h, state, used, out);
            }
            if *saves {
                put(simd, gates, at_i, used, i);
                put(simd, gates, at_f, used, f);
                put(simd, gates, at_g, used, g);
                put(simd, gates, at_o, used, o);
            }
            if let Some(cells) = cells {
                put(simd, cells, own, used, cell);
            }
        }
    }
}

/// The sum of so many values of this thread's and a register of others.
#[inline(always)]
fn sum<S: Simd>(simd: S, own: &Shared<'_>, at: usize, used: usize, other: &[f32]) -> S::f32s {
    // SAFETY: of one of the thread's rows and units, which no other thread touches.
    simd.add_f32s(load(simd, unsafe { own.read(at..at + used) }), load(simd, other))
}

/// Writes so many of a register's values to a place of this thread's.
#[inline(always)]
fn put<S: Simd>(simd: S, to: &Shared<'_>, at: usize, used: usize, values: S::f32s) {
    // SAFETY: of one of the thread's rows and units, which no other thread touches until the next meeting.
    store(simd, unsafe { to.write(at..at + used) }, values);
}

/// A register of values, zeros where there are fewer.
#[inline(always)]
pub(super) fn load<S: Simd>(simd: S, from: &[f32]) -> S::f32s {
    match S::as_simd_f32s(from) {
        ([all], []) => *all,
        _ => simd.partial_load_f32s(from),
    }
}

/// As many of a register's values as fit.
#[inline(always)]
pub(super) fn store<S: Simd>(simd: S, to: &mut [f32], values: S::f32s) {
    match S::as_mut_simd_f32s(to) {
        ([all], []) => *all = values,
        _ => simd.partial_store_f32s(to, values),
    }
}
