//! Gate gradients of layers whose steps are nothing but the plain cell, back through time; the formulas stand in
//! [`super::lstm_backward`].
//!
//! Of each step the gates become their gradients in place, and go into the left operand of the product that gives the step before
//! its gradient of h. Threads share the sequences or the units, as forward.

use super::lstm_layer::{Layer, SKEW, spread};
use super::math::lanes::tanh;
use super::matmul::Panels;
use super::prefetch::prefetch;
use super::room::Taken;
use super::simd::dispatch;
use super::team::{Meeting, Shared};
use super::tile::{load, store};
use crate::config::{GATE_F, GATE_G, GATE_I, GATE_O, GATES};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// A layer's values; packed rows have their directions side by side.
pub(super) struct Plain<'a> {
    pub layer: &'a Layer<'a>,
    /// `[N, D·4H]`: what is saved of the gates, then their gradients.
    pub gates: Shared<'a>,
    /// `[N, D·H]`
    pub cells: &'a [f32],
    /// `[B, D·H]`; zeros if absent.
    pub c0: Option<&'a [f32]>,
    /// `[N, D·H]`; zeros if absent.
    pub dy: Option<&'a [f32]>,
    /// `[B, D·H]`: dh_n and dc_n, at last dh_0 and dc_0.
    pub dh: Shared<'a>,
    pub dc: Shared<'a>,
    /// Whether anybody wants dh_0.
    pub wants_dh0: bool,
}

/// What one thread computes of one direction.
struct Member<'a> {
    plain: &'a Plain<'a>,
    d: usize,
    sequences: Range<usize>,
    /// Panels of the weights, and their units.
    panels: Range<usize>,
    units: Range<usize>,
    /// The gradients of the gates in two halves, of this step and of the one after, `[2, B, width]`
    left: &'a Shared<'a>,
    meeting: &'a Meeting,
}

/// The running gradients of a thread's units, by panels `[panels, B, units of a panel]`.
struct Running<'a> {
    dh: Taken<'a>,
    dc: Taken<'a>,
}

impl Plain<'_> {
    /// Runs all steps of all directions, the last step first.
    pub fn run(&self, shares: &[Range<usize>]) {
        let (hidden, sequences) = (self.layer.hidden, self.layer.lengths.len());
        let each = self.layer.weights[0].hh.width();
        let mut left = self.layer.room.take(2 * sequences * self.width());
        let left = Shared::new(&mut left);
        spread(self.layer, shares, hidden.div_ceil(each), |sequences, panels, meeting| {
            for d in 0..self.layer.op.directions() {
                let units = panels.start * each..(panels.end * each).min(hidden);
                let (sequences, panels) = (sequences.clone(), panels.clone());
                let member = Member { plain: self, d, sequences, panels, units, left: &left, meeting };
                dispatch(member);
            }
        });
    }

    /// Floats between rows of the left operand.
    fn width(&self) -> usize {
        GATES * self.layer.hidden + SKEW
    }
}

impl WithSimd for Member<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let layer = self.plain.layer;
        let each = layer.weights[self.d].hh.width();
        let room = || layer.room.zeros(self.panels.len() * self.sequences.len() * each);
        let mut now = Running { dh: room(), dc: room() };
        for (state, own) in [(&self.plain.dh, &mut now.dh), (&self.plain.dc, &mut now.dc)] {
            for (n, b) in self.sequences.clone().enumerate() {
                // SAFETY: of this thread's sequences and units, which are no other's.
                let given = unsafe { state.read(self.state(b)) };
                for (p, part) in given.chunks(each).enumerate() {
                    own[(p * self.sequences.len() + n) * each..][..part.len()].copy_from_slice(part);
                }
            }
        }
        for s in (0..layer.lengths[self.sequences.clone()].first().copied().unwrap_or(0)).rev() {
            let active = layer.lengths[self.sequences.clone()].partition_point(|&n| n > s);
            self.differentiate(simd, s, active, &mut now);
            self.meeting.wait();
            if s > 0 || self.plain.wants_dh0 {
                self.product(simd, s, active, &mut now);
            }
        }
        // All have read what this thread wrote of the last steps before it begins another direction.
        self.meeting.wait();
        for (state, own) in [(&self.plain.dh, &now.dh), (&self.plain.dc, &now.dc)] {
            for (n, b) in self.sequences.clone().enumerate() {
                // SAFETY: as above.
                let taken = unsafe { state.write(self.state(b)) };
                for (p, part) in taken.chunks_mut(each).enumerate() {
                    part.copy_from_slice(&own[(p * self.sequences.len() + n) * each..][..part.len()]);
                }
            }
        }
    }
}

impl Member<'_> {
    /// The place of this thread's units in the states of sequence `b`.
    fn state(&self, b: usize) -> Range<usize> {
        let layer = self.plain.layer;
        let at = (b * layer.op.directions() + self.d) * layer.hidden;
        at + self.units.start..at + self.units.end
    }

    /// Where row `b` of half `half` of the left operand begins.
    #[inline(always)]
    fn left(&self, half: usize, b: usize) -> usize {
        (half * self.plain.layer.lengths.len() + b) * self.plain.width()
    }

    /// Step `s`: the gates of the thread's sequences and units become their gradients.
    #[inline(always)]
    fn differentiate<S: Simd>(&self, simd: S, s: usize, active: usize, now: &mut Running<'_>) {
        let (plain, layer) = (self.plain, self.plain.layer);
        let (hidden, lanes, directions) = (layer.hidden, S::F32_LANES, layer.op.directions());
        let each = layer.weights[self.d].hh.width();
        let one = simd.splat_f32s(1.0);
        for (n, b) in self.sequences.clone().take(active).enumerate() {
            let at = layer.row(self.d, s, b) * directions + self.d;
            let before = match (s, plain.c0) {
                (0, None) => None,
                (0, Some(c0)) => Some(&c0[(b * directions + self.d) * hidden..]),
                _ => Some(&plain.cells[(layer.row(self.d, s - 1, b) * directions + self.d) * hidden..]),
            };
            let (cells, dy) = (&plain.cells[at * hidden..], plain.dy.map(|dy| &dy[at * hidden..]));
            let left = self.left(s % 2, b);
            // What the step before reads of this row: it comes while this step is computed.
            let ahead = s.checked_sub(1).map(|s| layer.row(self.d, s, b) * directions + self.d);
            for first in (self.units.start..self.units.end).step_by(lanes) {
                let used = lanes.min(self.units.end - first);
                let own = first..first + used;
                if let Some(ahead) = ahead {
                    for gate in 0..GATES {
                        let at = (ahead * GATES + gate) * hidden + first;
                        // SAFETY: of one of this thread's rows and units, which no other thread touches.
                        prefetch(unsafe { plain.gates.read(at..at + used) }.as_ptr());
                    }
                    if s > 1 {
                        let at = (layer.row(self.d, s - 2, b) * directions + self.d) * hidden + first;
                        prefetch(plain.cells[at..].as_ptr());
                    }
                    plain.dy.iter().for_each(|dy| prefetch(dy[ahead * hidden + first..].as_ptr()));
                }
                // No closures here: one that is not inlined has no vector instructions.
                let at_gate = |gate: usize| (at * GATES + gate) * hidden + first;
                let i = read(simd, &plain.gates, at_gate(GATE_I), used);
                let f = read(simd, &plain.gates, at_gate(GATE_F), used);
                let g = read(simd, &plain.gates, at_gate(GATE_G), used);
                let o = read(simd, &plain.gates, at_gate(GATE_O), used);
                let panel = (first - self.units.start) / each;
                let state = (panel * self.sequences.len() + n) * each + (first - self.units.start) % each;
                let mut dh = load(simd, &now.dh[state..state + lanes]);
                if let Some(dy) = dy {
                    dh = simd.add_f32s(dh, load(simd, &dy[own.clone()]));
                }
                let y = tanh(simd, load(simd, &cells[own.clone()]));
                let through = simd.mul_f32s(simd.mul_f32s(dh, o), simd.negate_mul_add_e_f32s(y, y, one));
                let total = simd.add_f32s(load(simd, &now.dc[state..state + lanes]), through);
                let previous = match before {
                    Some(before) => load(simd, &before[own]),
                    None => simd.splat_f32s(0.0),
                };
                let di = simd.mul_f32s(simd.mul_f32s(total, g), slope(simd, i));
                let df = simd.mul_f32s(simd.mul_f32s(total, previous), slope(simd, f));
                let dg = simd.mul_f32s(simd.mul_f32s(total, i), simd.negate_mul_add_e_f32s(g, g, one));
                let d_o = simd.mul_f32s(simd.mul_f32s(dh, y), slope(simd, o));
                store(simd, &mut now.dc[state..state + lanes], simd.mul_f32s(total, f));
                for (gate, value) in [(GATE_I, di), (GATE_F, df), (GATE_G, dg), (GATE_O, d_o)] {
                    let to = [(&plain.gates, at_gate(gate)), (self.left, left + gate * hidden + first)];
                    for (to, at) in to {
                        // SAFETY: of one of this thread's rows and units, which no other thread touches; of the left operand
                        // others read this half after the next meeting, and have read it before the last one.
                        store(simd, unsafe { to.write(at..at + used) }, value);
                    }
                }
            }
        }
    }

    /// The gradient of h of the step before step `s`, but for what its own output has.
    #[inline(always)]
    fn product<S: Simd>(&self, simd: S, s: usize, active: usize, now: &mut Running<'_>) {
        let weights = self.plain.layer.weights[self.d].hh;
        let first = self.sequences.start;
        // SAFETY: in this half all have written before the last meeting, and nobody writes it before the next.
        let left = unsafe { self.left.read(self.left(s % 2, first)..self.left(s % 2, first + active)) };
        let size = self.sequences.len() * weights.width();
        let panels = Panels::new(weights, self.panels.clone());
        for (p, dh) in self.panels.clone().zip(now.dh.chunks_exact_mut(size)) {
            panels.multiply(simd, (left, self.plain.width()), p, &mut dh[..active * weights.width()]);
        }
    }
}

/// So many values of this thread's.
#[inline(always)]
fn read<S: Simd>(simd: S, own: &Shared<'_>, at: usize, used: usize) -> S::f32s {
    // SAFETY: of one of the thread's rows and units, which no other thread touches.
    load(simd, unsafe { own.read(at..at + used) })
}

/// The slope of a sigmoid with this value: y (1 - y).
#[inline(always)]
fn slope<S: Simd>(simd: S, y: S::f32s) -> S::f32s {
    simd.negate_mul_add_e_f32s(y, y, y)
}
