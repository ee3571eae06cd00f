//! Gate gradients of one LSTM layer, back through time.
//!
//! ```text
//! dh = dy_t + dgates_{t+1} U                 (at a sequence's last step dh_n in place of the product)
//! do = dh tanh(c_t) o (1 - o)                dc += dh o (1 - tanh² c_t)
//! di = dc g i (1 - i)    df = dc c_{t-1} f (1 - f)    dg = dc i (1 - g²)    dc = dc f
//! ```
//!
//! The gradients overwrite the gates. Layers of such cells go on in [`super::lstm_plain_backward`]. Of others, which go through
//! [`super::lstm_cell`], each thread owns some sequences for all timesteps.

use super::call::Call;
use super::lstm_cell::{self, CellWeights, NormGradients, Scratch};
use super::lstm_layer::{
    Layer, Pass, Rows, begin, cut_states, lengths, normalise, normalise_backward, own_columns, put_columns, shares,
    weights,
};
use super::lstm_plain_backward::Plain;
use super::math;
use super::matmul::{Left, multiply};
use super::simd::dispatch;
use super::team::Shared;
use super::threads;
use crate::config::{GATE_F, GATE_G, GATE_O, GATES};
use crate::error::Result;
use crate::graph::lstm::backward as at;
use crate::graph::{LstmOp, Parameter};

/// What all threads read.
struct Reads<'a> {
    layer: Layer<'a>,
    cells: &'a [f32],
    c0: Option<&'a [f32]>,
    dy: Option<&'a [f32]>,
    /// Whether the product of the first step is looked at.
    wants_dh0: bool,
    /// Zeros `[H]`.
    zero: &'a [f32],
}

impl<'a> Reads<'a> {
    /// Direction `d`'s columns of packed rows, at step `t` of sequence `b`.
    fn row(&self, rows: &'a [f32], t: usize, b: usize, d: usize, n: usize) -> &'a [f32] {
        &rows[(self.layer.axis.offset(t) + b) * self.layer.op.directions() * n + d * n..][..n]
    }

    /// The cell before the step at `t`, which is number `s` in the direction's order.
    fn cell_before(&self, s: usize, t: usize, b: usize, d: usize) -> &'a [f32] {
        let hidden = self.layer.hidden;
        if s > 0 {
            let before = if self.layer.op.direction.reversed(d) { t + 1 } else { t - 1 };
            return self.row(self.cells, before, b, d, hidden);
        }
        match self.c0 {
            Some(c0) => &c0[(b * self.layer.op.directions() + d) * hidden..][..hidden],
            None => self.zero,
        }
    }
}

/// Some sequences, all their timesteps.
struct Part<'a> {
    /// Its first sequence.
    first: usize,
    /// `[D·4H]` of each row: what is saved of the gates, then their gradients.
    gates: Rows<'a>,
    /// Where h is projected.
    dprojected: Rows<'a>,
    /// The next four where the cell is normalised; products become the gradients of their gains, row by row.
    products: Rows<'a>,
    dproduct: Rows<'a>,
    dcell: Rows<'a>,
    cell_normed: Rows<'a>,
    /// dh_n, at last dh_0.
    dh: &'a mut [f32],
    /// dc_n, at last dc_0.
    dc: &'a mut [f32],
}

/// The running gradients of one direction, and room for one step of all sequences.
struct Running {
    dh: Vec<f32>,
    dc: Vec<f32>,
    /// of h before zoneout
    projected: Vec<f32>,
    /// of h before projection
    hidden: Vec<f32>,
    /// of the recurrent product
    product: Vec<f32>,
    /// what zoneout hands on to the step before
    carried: Vec<f32>,
    mask: Vec<f32>,
    scratch: Scratch,
}

impl Part<'_> {
    fn run(mut self, reads: &Reads<'_>) {
        for d in 0..reads.layer.op.directions() {
            self.direction(reads, d);
        }
    }

    fn direction(&mut self, reads: &Reads<'_>, d: usize) {
        let (layer, directions) = (&reads.layer, reads.layer.op.directions());
        let (hidden, r) = (layer.hidden, layer.r);
        let size = self.dc.len() / (directions * hidden);
        let lengths = &layer.lengths[self.first..self.first + size];
        let mut now = Running {
            dh: own_columns(self.dh, d, directions, r),
            dc: own_columns(self.dc, d, directions, hidden),
            projected: vec![0.0; size * r],
            hidden: vec![0.0; size * hidden],
            product: vec![0.0; size * GATES * hidden],
            carried: vec![0.0; size * r],
            mask: vec![0.0; r],
            scratch: Scratch::new(hidden),
        };
        let reversed = layer.op.direction.reversed(d);
        for s in (0..lengths.first().copied().unwrap_or(0)).rev() {
            let active = lengths.partition_point(|&n| n > s);
            let time = |b: usize| if reversed { lengths[b] - 1 - s } else { s };
            self.step(reads, d, s, active, time, &mut now);
        }
        put_columns(self.dh, &now.dh, d, directions, r);
        put_columns(self.dc, &now.dc, d, directions, hidden);
    }

    /// A step back of any cell, row by row.
    fn step(
        &mut self,
        reads: &Reads<'_>,
        d: usize,
        s: usize,
        active: usize,
        time: impl Fn(usize) -> usize,
        now: &mut Running,
    ) {
        let layer = &reads.layer;
        let (hidden, r, weights) = (layer.hidden, layer.r, &layer.weights[d]);
        for b in 0..active {
            self.arrive(reads, d, b, time(b), now);
        }
        if let Some(hr) = weights.hr {
            let left = Left::Rows { data: &now.projected[..active * r], stride: r };
            multiply(left, hr, &mut now.hidden[..active * hidden], false);
        } else {
            now.hidden[..active * r].copy_from_slice(&now.projected[..active * r]);
        }
        dispatch(
            #[inline(always)]
            || {
                for b in 0..active {
                    self.cell(reads, d, s, b, time(b), now);
                }
            },
        );
        if s == 0 && !reads.wants_dh0 {
            return;
        }
        let left = Left::Rows { data: &now.product[..active * GATES * hidden], stride: GATES * hidden };
        multiply(left, weights.hh, &mut now.dh[..active * r], false);
        for b in 0..active {
            let (dh, carried) = (&mut now.dh[b * r..][..r], &now.carried[b * r..][..r]);
            if layer.recurrent_mask(self.first + b, time(b), d, &mut now.mask) {
                dh.iter_mut().zip(&now.mask).for_each(|(dh, &m)| *dh *= m);
            }
            dh.iter_mut().zip(carried).for_each(|(dh, &c)| *dh += c);
            if let Some(limit) = layer.op.cell.gradient_clip {
                dh.iter_mut().for_each(|dh| *dh = dh.max(-limit).min(limit));
            }
        }
    }

    /// What arrives at h of sequence `b` at step `t`: split by zoneout into what goes on and what the step is from.
    fn arrive(&mut self, reads: &Reads<'_>, d: usize, b: usize, t: usize, now: &mut Running) {
        let r = reads.layer.r;
        let dh = &mut now.dh[b * r..][..r];
        if let Some(dy) = reads.dy {
            dh.iter_mut().zip(reads.row(dy, t, self.first + b, d, r)).for_each(|(dh, dy)| *dh += dy);
        }
        let (projected, carried) = (&mut now.projected[b * r..][..r], &mut now.carried[b * r..][..r]);
        projected.copy_from_slice(dh);
        if reads.layer.op.cell.zoneout_h > 0.0 {
            reads.layer.zoneout(1, self.first + b, t, d, &mut now.mask);
            for (j, &stay) in now.mask.iter().enumerate() {
                (projected[j], carried[j]) = ((1.0 - stay) * dh[j], stay * dh[j]);
            }
        }
        if self.dprojected.wanted() {
            self.dprojected.row(t, b, d, r).copy_from_slice(projected);
        }
    }

    /// The gradients of the gates of sequence `b` at step `t`, and of its recurrent product.
    #[inline(always)]
    fn cell(&mut self, reads: &Reads<'_>, d: usize, s: usize, b: usize, t: usize, now: &mut Running) {
        let layer = &reads.layer;
        let (hidden, weights) = (layer.hidden, &layer.weights[d]);
        let c_prev = reads.cell_before(s, t, self.first + b, d);
        let gates = self.gates.row(t, b, d, GATES * hidden);
        let (dhidden, dc) = (&mut now.hidden[b * hidden..][..hidden], &mut now.dc[b * hidden..][..hidden]);
        if layer.plain_cell() {
            differentiate(gates, reads.row(reads.cells, t, self.first + b, d, hidden), c_prev, dhidden, dc);
        } else {
            if layer.op.cell.zoneout_c > 0.0 {
                layer.zoneout(2, self.first + b, t, d, &mut now.scratch.stays);
            }
            let cell_weights = CellWeights { peepholes: weights.peepholes, norm: weights.norm };
            let norm = weights.norm.map(|_| NormGradients {
                dcell: self.dcell.row(t, b, d, hidden),
                cell_normed: self.cell_normed.row(t, b, d, hidden),
            });
            let arrives = lstm_cell::Arrives { c_prev, dhidden };
            lstm_cell::backward(&layer.op.cell, &cell_weights, gates, &arrives, dc, norm, &mut now.scratch);
        }
        let product = &mut now.product[b * GATES * hidden..][..GATES * hidden];
        product.copy_from_slice(gates);
        if let Some(norm) = &weights.norm {
            let normed = self.products.row(t, b, d, GATES * hidden);
            let factor = normalise(normed, norm.epsilon);
            product.iter_mut().zip(norm.hh).for_each(|(x, &gain)| *x *= gain);
            normalise_backward(normed, factor, product);
            normed.iter_mut().zip(&*gates).for_each(|(n, &da)| *n *= da);
            self.dproduct.row(t, b, d, GATES * hidden).copy_from_slice(product);
        }
    }
}

/// The step back of one row of the plain cell: `gates` `[4H]` become their gradients, `dc` moves one step back.
#[inline(always)]
fn differentiate(gates: &mut [f32], c: &[f32], c_prev: &[f32], dh: &[f32], dc: &mut [f32]) {
    let hidden = dh.len();
    let (left, right) = gates.split_at_mut(GATE_G * hidden);
    let (i, f) = left.split_at_mut(GATE_F * hidden);
    let (g, o) = right.split_at_mut((GATE_O - GATE_G) * hidden);
    gradients([i, f, g, o], c, c_prev, dh, dc);
}

#[inline(always)]
fn gradients(gates: [&mut [f32]; GATES], c: &[f32], c_prev: &[f32], dh: &[f32], dc: &mut [f32]) {
    let hidden = dh.len();
    let [i, f, g, o] = gates.map(|gate| &mut gate[..hidden]);
    let (c, c_prev, dc) = (&c[..hidden], &c_prev[..hidden], &mut dc[..hidden]);
    for j in 0..hidden {
        let tanh_c = math::tanh(c[j]);
        let (gate_i, gate_f, gate_g, gate_o) = (i[j], f[j], g[j], o[j]);
        let total = dc[j] + dh[j] * gate_o * (1.0 - tanh_c * tanh_c);
        o[j] = dh[j] * tanh_c * gate_o * (1.0 - gate_o);
        i[j] = total * gate_g * gate_i * (1.0 - gate_i);
        f[j] = total * c_prev[j] * gate_f * (1.0 - gate_f);
        g[j] = total * gate_i * (1.0 - gate_g * gate_g);
        dc[j] = total * gate_f;
    }
}

/// [`crate::graph::Op::LstmBackward`].
pub(super) fn lstm_backward(call: &mut Call<'_>, op: &LstmOp) -> Result<()> {
    let packs = std::mem::take(&mut call.packs);
    let (hidden, r) = Layer::sizes(call, at::parameter(0, Parameter::WeightHh))?;
    let directions = op.directions();
    let cells = call.input(at::CELLS)?;
    let axis = call.batch.axis(call.operand(at::CELLS)?.axis.unwrap_or(0))?;
    let (c0, dy) = (call.maybe_input(at::C0)?, call.maybe_input(at::DY)?);
    let (dh_n, dc_n) = (call.maybe_input(at::DH_N)?, call.maybe_input(at::DC_N)?);
    let (gates, dh, dc) = (call.output(at::DGATES)?, call.maybe_output(at::DH0), call.output(at::DC0)?);
    let others = [at::DPROJECTED, at::DGAINS, at::DPRODUCT, at::DCELL, at::CELL_NORMED].map(|o| call.maybe_output(o));
    let weights = weights(call, packs, op, at::parameter, Pass::Backward)?;
    let (mut spare, wants_dh0) = (Vec::new(), dh.is_some());
    let dh = dh.unwrap_or_else(|| {
        spare.resize(call.batch.sequences() * directions * r, 0.0);
        &mut spare
    });
    begin(dh, dh_n);
    begin(dc, dc_n);
    let (lengths, zero) = (lengths(axis, call.batch.sequences()), vec![0.0; hidden]);
    let layer = Layer { op, batch: call.batch, axis, lengths: &lengths, weights, hidden, r, room: call.room };
    let shares = shares(axis, &lengths, directions * GATES * hidden * r);
    if layer.plain(0) {
        let (gates, dh, dc) = (Shared::new(gates), Shared::new(dh), Shared::new(dc));
        Plain { layer: &layer, gates, cells, c0, dy, dh, dc, wants_dh0 }.run(&shares);
        return Ok(());
    }
    let four_h = GATES * hidden;
    let mut gates = Rows::cut(gates, directions * four_h, axis, &shares).into_iter();
    let widths = [r, four_h, four_h, hidden, hidden];
    let mut others = others
        .into_iter()
        .zip(widths)
        .map(|(rows, width)| Rows::cut_if(rows, directions * width, axis, &shares).into_iter())
        .collect::<Vec<_>>();
    let states = cut_states(dh, directions * r, &shares).into_iter().zip(cut_states(dc, directions * hidden, &shares));
    let reads = &Reads { layer, cells, c0, dy, wants_dh0, zero: &zero };
    let parts = shares.iter().zip(states).map(|(share, (dh, dc))| {
        let mut next = |at: usize| others[at].next().unwrap_or_default();
        Part {
            first: share.start,
            gates: gates.next().unwrap_or_default(),
            dprojected: next(0),
            products: next(1),
            dproduct: next(2),
            dcell: next(3),
            cell_normed: next(4),
            dh,
            dc,
        }
    });
    threads::each(parts, |part| part.run(reads));
    Ok(())
}
