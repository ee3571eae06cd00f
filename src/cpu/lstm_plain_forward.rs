//! The recurrence of layers whose steps are nothing but the plain cell, a chunk of timesteps at a time.
//!
//! A thread computes the input's part of a chunk's gates as one product, in the order in which the recurrent product adds
//! to it: panel by panel, and within one row by row. Sums, activations and states of a chunk stay in the thread's own cache;
//! what others read of them goes out in whole rows.
//!
//! Threads share the sequences, and then meet nobody; or where these are few, or the recurrent weights too many for one
//! processor's cache, the units, and then meet at each step. An element's bits are the same either way.

use super::lstm_layer::{Layer, SKEW, spread};
use super::math::lanes::{sigmoid, tanh};
use super::matmul::Panels;
use super::packed::Packed;
use super::room::Taken;
use super::simd::dispatch;
use super::team::{Meeting, Shared};
use super::tile::{load, store};
use crate::config::{GATE_F, GATE_G, GATE_I, GATE_O, GATES};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Sums of gates that a thread keeps of a chunk, unless these are fewer rows than a product needs to be fast.
const CHUNK: usize = 64 * 1024;
const CHUNK_ROWS: usize = 128;

/// A layer's values; packed rows have their directions side by side.
pub(super) struct Plain<'a> {
    pub layer: &'a Layer<'a>,
    /// `[N, I]`, or `[N, D·4H]` where there are no input weights
    pub x: &'a [f32],
    /// `[D·4H]`
    pub bias: &'a [f32],
    /// What is saved of the gates `[N, D·4H]`, if anything is.
    pub gates: Option<Shared<'a>>,
    /// `[N, D·H]`
    pub y: Shared<'a>,
    /// `[N, D·H]`, if anybody wants them.
    pub cells: Option<Shared<'a>>,
    /// `[B, D·H]`: h_0 and c_0, at last h_n and c_n.
    pub h: Shared<'a>,
    pub c: Shared<'a>,
}

/// What one thread computes of one direction.
struct Member<'a> {
    plain: &'a Plain<'a>,
    d: usize,
    sequences: Range<usize>,
    /// Panels of the weights, and their units.
    panels: Range<usize>,
    units: Range<usize>,
    /// h in two halves, of the step before and of this one, `[2, B, width]`
    left: &'a Shared<'a>,
    meeting: &'a Meeting,
}

/// What a thread keeps of a chunk.
struct Chunk<'a> {
    steps: Range<usize>,
    /// The first row of each step.
    starts: Vec<usize>,
    rows: usize,
    /// x of the chunk's rows.
    x: Taken<'a>,
    /// `[panels, rows, 4, lanes]`: the input's part of the gates, then the activated gates.
    sums: Taken<'a>,
    /// `[panels, rows, lanes]`, if anybody wants them.
    cells: Taken<'a>,
}

impl Plain<'_> {
    /// Runs all steps of all directions.
    pub fn run(&self, shares: &[Range<usize>]) {
        let (hidden, sequences) = (self.layer.hidden, self.layer.lengths.len());
        let each = self.layer.weights[0].hh.units();
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

    /// Floats between rows of h.
    fn width(&self) -> usize {
        self.layer.hidden.next_multiple_of(self.layer.weights[0].hh.units()) + SKEW
    }

    /// Where the columns of direction `d` begin in the packed row of sequence `b` at step `s`, of `n` for each direction.
    #[inline(always)]
    fn at(&self, d: usize, s: usize, b: usize, n: usize) -> usize {
        (self.layer.row(d, s, b) * self.layer.op.directions() + d) * n
    }
}

impl WithSimd for Member<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (layer, directions) = (self.plain.layer, self.plain.layer.op.directions());
        let (hidden, lanes) = (layer.hidden, S::F32_LANES);
        let mut c = layer.room.zeros(self.panels.len() * self.sequences.len() * lanes);
        for (n, b) in self.sequences.clone().enumerate() {
            let at = (b * directions + self.d) * hidden;
            let own = at + self.units.start..at + self.units.end;
            // SAFETY: of this thread's sequences and units, which are no other's; halves are read by others after the meeting.
            let h = unsafe { self.plain.h.read(own.clone()) };
            // SAFETY: as above.
            unsafe { self.left.write(self.left(0, b, &self.units)) }.copy_from_slice(h);
            // SAFETY: as above.
            let before = unsafe { self.plain.c.read(own) };
            for (p, part) in before.chunks(lanes).enumerate() {
                c[(p * self.sequences.len() + n) * lanes..][..part.len()].copy_from_slice(part);
            }
        }
        self.meeting.wait();
        let steps = layer.lengths[self.sequences.clone()].first().copied().unwrap_or(0);
        let mut chunk = self.chunk(lanes);
        while chunk.steps.end < steps {
            self.begin(&mut chunk, steps);
            self.project(simd, &mut chunk);
            for s in chunk.steps.clone() {
                self.step(simd, &mut chunk, s, &mut c);
                self.give(s);
                self.meeting.wait();
            }
            self.save(simd, &chunk);
        }
        for (n, b) in self.sequences.clone().enumerate() {
            let at = (b * directions + self.d) * hidden;
            // SAFETY: of this thread's sequences and units, which are no other's.
            let after = unsafe { self.plain.c.write(at + self.units.start..at + self.units.end) };
            for (p, part) in after.chunks_mut(lanes).enumerate() {
                part.copy_from_slice(&c[(p * self.sequences.len() + n) * lanes..][..part.len()]);
            }
        }
    }
}

impl Member<'_> {
    /// The place of units of row `b` in half `half` of h.
    #[inline(always)]
    fn left(&self, half: usize, b: usize, units: &Range<usize>) -> Range<usize> {
        let row = (half * self.plain.layer.lengths.len() + b) * self.plain.width();
        row + units.start..row + units.end
    }

    /// How many of the sequences take part in step `s`.
    fn active(&self, s: usize) -> usize {
        self.plain.layer.lengths[self.sequences.clone()].partition_point(|&n| n > s)
    }

    fn input(&self) -> Option<&Packed> {
        self.plain.layer.weights[self.d].ih
    }

    /// Room for chunks.
    fn chunk(&self, lanes: usize) -> Chunk<'_> {
        let panels = self.panels.len();
        let most = (CHUNK / (panels * GATES * lanes)).max(CHUNK_ROWS).max(self.sequences.len());
        let all: usize = self.plain.layer.lengths[self.sequences.clone()].iter().sum();
        let rows = most.min(all);
        let x = self.input().map_or(0, |w| rows * (w.inner() + SKEW));
        let cells = if self.plain.cells.is_some() { panels * rows * lanes } else { 0 };
        Chunk {
            steps: 0..0,
            starts: Vec::new(),
            rows,
            x: self.plain.layer.room.take(x),
            sums: self.plain.layer.room.take(panels * rows * GATES * lanes),
            cells: self.plain.layer.room.take(cells),
        }
    }

    /// Goes on to the next steps of `steps`, as many as there is room for.
    fn begin(&self, chunk: &mut Chunk<'_>, steps: usize) {
        chunk.steps = chunk.steps.end..chunk.steps.end;
        chunk.starts.clear();
        chunk.starts.push(0);
        let mut rows = 0;
        while chunk.steps.end < steps && rows + self.active(chunk.steps.end) <= chunk.rows {
            rows += self.active(chunk.steps.end);
            chunk.starts.push(rows);
            chunk.steps.end += 1;
        }
    }

    /// The input's part of the gates of a chunk.
    #[inline(always)]
    fn project<S: Simd>(&self, simd: S, chunk: &mut Chunk<'_>) {
        let (plain, hidden, lanes) = (self.plain, self.plain.layer.hidden, S::F32_LANES);
        let Chunk { steps, starts, x, sums, rows: most, .. } = chunk;
        let rows = starts[steps.len()];
        let bias = &plain.bias[self.d * GATES * hidden..][..GATES * hidden];
        let numbered = steps.clone().flat_map(|s| self.sequences.clone().take(self.active(s)).map(move |b| (s, b)));
        let Some(weights) = self.input() else {
            for (row, (s, b)) in numbered.enumerate() {
                let from = &plain.x[plain.at(self.d, s, b, GATES * hidden)..][..GATES * hidden];
                for (p, first) in (self.units.start..self.units.end).step_by(lanes).enumerate() {
                    let used = lanes.min(self.units.end - first);
                    let sums = &mut sums[(p * *most + row) * GATES * lanes..][..GATES * lanes];
                    for (gate, to) in sums.chunks_exact_mut(lanes).enumerate() {
                        let at = gate * hidden + first;
                        let sum = simd.add_f32s(load(simd, &from[at..at + used]), load(simd, &bias[at..at + used]));
                        store(simd, to, sum);
                    }
                }
            }
            return;
        };
        let (inputs, stride) = (weights.inner(), weights.inner() + SKEW);
        for (row, (s, b)) in numbered.enumerate() {
            x[row * stride..][..inputs].copy_from_slice(&plain.x[plain.layer.row(self.d, s, b) * inputs..][..inputs]);
        }
        let panels = Panels::new(weights, self.panels.clone());
        for (sums, p) in sums.chunks_exact_mut(*most * GATES * lanes).zip(self.panels.clone()) {
            let (first, sums) = (p * lanes, &mut sums[..rows * GATES * lanes]);
            let used = lanes.min(hidden - first);
            // No closure here: one that is not inlined has no vector instructions.
            let mut of_gates = [simd.splat_f32s(0.0); GATES];
            for (gate, to) in of_gates.iter_mut().enumerate() {
                *to = load(simd, &bias[gate * hidden + first..][..used]);
            }
            S::as_mut_simd_f32s(sums).0.as_chunks_mut::<GATES>().0.iter_mut().for_each(|row| *row = of_gates);
            panels.add(simd, (x, stride), p, sums);
        }
    }

    /// A step of the thread's sequences and units.
    #[inline(always)]
    fn step<S: Simd>(&self, simd: S, chunk: &mut Chunk<'_>, s: usize, c: &mut [f32]) {
        let (lanes, active) = (S::F32_LANES, self.active(s));
        let first = self.sequences.start;
        let (begin, end) = (self.left(s % 2, first, &(0..0)).start, self.left(s % 2, first + active, &(0..0)).start);
        // SAFETY: in this step all write to the other half; this one was written before the last meeting, or by this thread alone.
        let left = unsafe { self.left.read(begin..end) };
        let weights = Panels::new(self.plain.layer.weights[self.d].hh, self.panels.clone());
        let start = chunk.starts[s - chunk.steps.start];
        for (n, p) in self.panels.clone().enumerate() {
            let row = n * chunk.rows + start;
            let sums = &mut chunk.sums[row * GATES * lanes..][..active * GATES * lanes];
            weights.add(simd, (left, self.plain.width()), p, sums);
            let sums = S::as_mut_simd_f32s(sums).0.as_chunks_mut::<GATES>().0;
            let c = &mut c[n * self.sequences.len() * lanes..][..active * lanes];
            let c = S::as_mut_simd_f32s(c).0;
            let out = self.left((s + 1) % 2, first, &(p * lanes..(p + 1) * lanes));
            for (b, (sums, c)) in sums.iter_mut().zip(&mut *c).enumerate() {
                let i = sigmoid(simd, sums[GATE_I]);
                let f = sigmoid(simd, sums[GATE_F]);
                let g = tanh(simd, sums[GATE_G]);
                let o = sigmoid(simd, sums[GATE_O]);
                *c = simd.mul_add_e_f32s(f, *c, simd.mul_f32s(i, g));
                let h = simd.mul_f32s(o, tanh(simd, *c));
                let at = b * self.plain.width();
                // SAFETY: of one of this thread's rows and units, which no other touches until the next meeting.
                store(simd, unsafe { self.left.write(out.start + at..out.end + at) }, h);
                if self.plain.gates.is_some() {
                    *sums = [i, f, g, o];
                }
            }
            if self.plain.cells.is_some() {
                let cells = &mut chunk.cells[row * lanes..][..active * lanes];
                S::as_mut_simd_f32s(cells).0.copy_from_slice(c);
            }
        }
    }

    /// Hands out h after step `s`.
    fn give(&self, s: usize) {
        let (plain, layer) = (self.plain, self.plain.layer);
        for b in self.sequences.clone().take(self.active(s)) {
            // SAFETY: this thread's own units, which no other touches until the next meeting.
            let h = unsafe { self.left.read(self.left((s + 1) % 2, b, &self.units)) };
            let at = plain.at(self.d, s, b, layer.hidden);
            // SAFETY: one of this thread's rows and units, which no other thread touches.
            unsafe { plain.y.write(at + self.units.start..at + self.units.end) }.copy_from_slice(h);
            if layer.lengths[b] == s + 1 {
                let at = (b * layer.op.directions() + self.d) * layer.hidden;
                // SAFETY: as above.
                unsafe { plain.h.write(at + self.units.start..at + self.units.end) }.copy_from_slice(h);
            }
        }
    }

    /// Hands out what is saved of a chunk.
    #[inline(always)]
    fn save<S: Simd>(&self, simd: S, chunk: &Chunk<'_>) {
        let (plain, hidden, lanes) = (self.plain, self.plain.layer.hidden, S::F32_LANES);
        for (s, &start) in chunk.steps.clone().zip(&chunk.starts) {
            for (n, b) in self.sequences.clone().take(self.active(s)).enumerate() {
                let row = start + n;
                if let Some(gates) = &plain.gates {
                    let at = plain.at(self.d, s, b, GATES * hidden);
                    for gate in 0..GATES {
                        let units = at + gate * hidden + self.units.start..at + gate * hidden + self.units.end;
                        // SAFETY: one of this thread's rows and units, which no other thread touches.
                        let to = unsafe { gates.write(units) };
                        for (p, to) in to.chunks_mut(lanes).enumerate() {
                            let from = &chunk.sums[((p * chunk.rows + row) * GATES + gate) * lanes..][..lanes];
                            store(simd, to, load(simd, from));
                        }
                    }
                }
                if let Some(cells) = &plain.cells {
                    let at = plain.at(self.d, s, b, hidden);
                    // SAFETY: as above.
                    let to = unsafe { cells.write(at + self.units.start..at + self.units.end) };
                    for (p, to) in to.chunks_mut(lanes).enumerate() {
                        store(simd, to, load(simd, &chunk.cells[(p * chunk.rows + row) * lanes..][..lanes]));
                    }
                }
            }
        }
    }
}
