//! One LSTM layer over all timesteps.
//!
//! ```text
//! i, f, o = sigmoid(W x_t + b + U h_{t-1})    g = tanh(...)      blocks of H columns, in the order i f g o
//! c_t = f * c_{t-1} + i * g                   h_t = o * tanh(c_t)
//! ```
//!
//! Layers of such cells run in [`super::lstm_plain_forward`]. Of others, which go through [`super::lstm_cell`], the input's part of all
//! gates is one product over all rows, and then each thread owns some sequences for all timesteps and meets no other.

use super::call::Call;
use super::lstm_cell::{self, CellWeights, Scratch};
use super::lstm_layer::{
    Layer, Pass, Rows, begin, cut_states, lengths, normalise, own_columns, put_columns, shares, weights,
};
use super::lstm_plain_forward::Plain;
use super::math;
use super::matmul::{Finish, Left, multiply, multiply_gates};
use super::packed::Packed;
use super::rows::over_rows;
use super::simd::dispatch;
use super::team::Shared;
use super::threads;
use super::tile::{load, store};
use crate::config::{GATE_F, GATE_G, GATE_I, GATE_O, GATES};
use crate::error::{Error, Result};
use crate::graph::lstm::forward;
use crate::graph::{LstmOp, Parameter};
use pulp::Simd;

/// Rows of a product of which the sums of one panel stay in the first cache.
const PROJECTED_ROWS: usize = 64;

/// Some sequences, all their timesteps.
struct Part<'a> {
    /// Its first sequence.
    first: usize,
    /// `[D·4H]` of each row: the input's part, then what is saved of the gates.
    gates: Rows<'a>,
    y: Rows<'a>,
    /// The next three are absent if nobody wants them.
    cells: Rows<'a>,
    hidden: Rows<'a>,
    products: Rows<'a>,
    /// h_0, at last the final h.
    h: &'a mut [f32],
    /// c_0, at last the final c.
    c: &'a mut [f32],
}

/// The running states of one direction, and room for one step of all sequences.
struct Running {
    h: Vec<f32>,
    c: Vec<f32>,
    /// h as it meets U
    masked: Vec<f32>,
    /// U h
    product: Vec<f32>,
    /// U h of the units of a panel
    sums: Vec<f32>,
    /// h before projection and zoneout
    hidden: Vec<f32>,
    /// h after projection, before zoneout
    projected: Vec<f32>,
    stays: Vec<f32>,
    scratch: Scratch,
}

impl Part<'_> {
    fn run(mut self, layer: &Layer<'_>) {
        for d in 0..layer.op.directions() {
            self.direction(layer, d);
        }
    }

    fn direction(&mut self, layer: &Layer<'_>, d: usize) {
        let (directions, hidden, r) = (layer.op.directions(), layer.hidden, layer.r);
        let size = self.c.len() / (directions * hidden);
        let lengths = &layer.lengths[self.first..self.first + size];
        let mut now = Running {
            h: own_columns(self.h, d, directions, r),
            c: own_columns(self.c, d, directions, hidden),
            masked: vec![0.0; size * r],
            product: vec![0.0; size * GATES * hidden],
            sums: vec![0.0; size * GATES * layer.weights[d].hh.units()],
            hidden: vec![0.0; size * hidden],
            projected: vec![0.0; size * r],
            stays: vec![0.0; r],
            scratch: Scratch::new(hidden),
        };
        let reversed = layer.op.direction.reversed(d);
        for s in 0..lengths.first().copied().unwrap_or(0) {
            let active = lengths.partition_point(|&n| n > s);
            let time = |b: usize| if reversed { lengths[b] - 1 - s } else { s };
            self.step(layer, d, active, time, &mut now);
        }
        put_columns(self.h, &now.h, d, directions, r);
        put_columns(self.c, &now.c, d, directions, hidden);
    }

    /// A step of any cell, row by row.
    fn step(&mut self, layer: &Layer<'_>, d: usize, active: usize, time: impl Fn(usize) -> usize, now: &mut Running) {
        let (hidden, r, weights) = (layer.hidden, layer.r, &layer.weights[d]);
        let left = masked(layer, d, active, self.first, &time, now);
        let (product, units) = (&mut now.product[..active * GATES * hidden], weights.hh.units());
        multiply_gates(
            (if left { &now.masked } else { &now.h }, r),
            weights.hh,
            0..hidden.div_ceil(units),
            &mut now.sums[..active * GATES * units],
            Spread { hidden, product, stride: GATES * hidden, first: 0 },
        );
        dispatch(
            #[inline(always)]
            || {
                for b in 0..active {
                    self.cell(layer, d, b, time(b), now);
                }
            },
        );
        if let Some(hr) = weights.hr {
            let left = Left::Rows { data: &now.hidden[..active * hidden], stride: hidden };
            multiply(left, hr, &mut now.projected[..active * r], false);
        } else {
            now.projected[..active * r].copy_from_slice(&now.hidden[..active * r]);
        }
        for b in 0..active {
            let (h, new) = (&mut now.h[b * r..][..r], &now.projected[b * r..][..r]);
            if layer.op.cell.zoneout_h > 0.0 {
                layer.zoneout(1, self.first + b, time(b), d, &mut now.stays);
                for ((h, &new), &stay) in h.iter_mut().zip(new).zip(&now.stays) {
                    *h = stay * *h + (1.0 - stay) * new;
                }
            } else {
                h.copy_from_slice(new);
            }
            self.y.row(time(b), b, d, r).copy_from_slice(h);
        }
    }

    /// The row of sequence `b` at step `t`: gates, cell, and h before projection.
    #[inline(always)]
    fn cell(&mut self, layer: &Layer<'_>, d: usize, b: usize, t: usize, now: &mut Running) {
        let (hidden, weights) = (layer.hidden, &layer.weights[d]);
        let product = &mut now.product[b * GATES * hidden..][..GATES * hidden];
        if self.products.wanted() {
            self.products.row(t, b, d, GATES * hidden).copy_from_slice(product);
        }
        if let Some(norm) = &weights.norm {
            normalise(product, norm.epsilon);
            product.iter_mut().zip(norm.hh).for_each(|(x, &gain)| *x *= gain);
        }
        let gates = self.gates.row(t, b, d, GATES * hidden);
        gates.iter_mut().zip(&*product).for_each(|(a, &x)| *a += x);
        let (c, out) = (&mut now.c[b * hidden..][..hidden], &mut now.hidden[b * hidden..][..hidden]);
        if layer.op.cell.zoneout_c > 0.0 {
            layer.zoneout(2, self.first + b, t, d, &mut now.scratch.stays);
        }
        if layer.plain_cell() {
            activate_row(gates, c, out, hidden);
        } else {
            let cell_weights = CellWeights { peepholes: weights.peepholes, norm: weights.norm };
            lstm_cell::forward(&layer.op.cell, &cell_weights, gates, c, out, &mut now.scratch);
        }
        if self.cells.wanted() {
            self.cells.row(t, b, d, hidden).copy_from_slice(c);
        }
        if self.hidden.wanted() {
            self.hidden.row(t, b, d, hidden).copy_from_slice(out);
        }
    }
}

/// Fills `now.masked` with h under its masks; whether there are any.
fn masked(
    layer: &Layer<'_>,
    d: usize,
    active: usize,
    first: usize,
    time: &impl Fn(usize) -> usize,
    now: &mut Running,
) -> bool {
    let r = layer.r;
    (0..active).all(|b| {
        let row = &mut now.masked[b * r..][..r];
        let any = layer.recurrent_mask(first + b, time(b), d, row);
        if any {
            row.iter_mut().zip(&now.h[b * r..]).for_each(|(m, &h)| *m *= h);
        }
        any
    })
}

/// Products of every row `[4H]`, gate by gate.
struct Spread<'a> {
    hidden: usize,
    product: &'a mut [f32],
    /// Values between rows of `product`, and where in each those of the gates begin.
    stride: usize,
    first: usize,
}

impl Finish for Spread<'_> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, first: usize, sums: &[f32]) {
        let used = S::F32_LANES.min(self.hidden - first);
        for (sums, row) in sums.chunks_exact(GATES * S::F32_LANES).zip(self.product.chunks_exact_mut(self.stride)) {
            let gates = row[self.first..].chunks_exact_mut(self.hidden);
            for (sums, gate) in sums.chunks_exact(S::F32_LANES).zip(gates) {
                store(simd, &mut gate[first..first + used], load(simd, sums));
            }
        }
    }
}

#[inline(always)]
fn activate_row(gates: &mut [f32], c: &mut [f32], h: &mut [f32], hidden: usize) {
    gates[..GATE_G * hidden].iter_mut().for_each(|x| *x = math::sigmoid(*x));
    gates[GATE_G * hidden..GATE_O * hidden].iter_mut().for_each(|x| *x = math::tanh(*x));
    gates[GATE_O * hidden..].iter_mut().for_each(|x| *x = math::sigmoid(*x));
    update(gates, c, h);
}

#[inline(always)]
fn update(gates: &[f32], c: &mut [f32], h: &mut [f32]) {
    let hidden = c.len();
    let gate = |at: usize| &gates[at * hidden..][..hidden];
    let (i, f, g, o) = (gate(GATE_I), gate(GATE_F), gate(GATE_G), gate(GATE_O));
    let h = &mut h[..hidden];
    for j in 0..hidden {
        c[j] = f[j] * c[j] + i[j] * g[j];
        h[j] = o[j] * math::tanh(c[j]);
    }
}

/// The sum of a layer's biases, `[D·4H]`.
fn biases(call: &Call<'_>, op: &LstmOp, four_h: usize) -> Result<Vec<f32>> {
    let mut bias = vec![0.0; op.directions() * four_h];
    for parameter in [Parameter::BiasIh, Parameter::BiasHh] {
        for (d, bias) in bias.chunks_exact_mut(four_h).enumerate() {
            if let Some(own) = call.maybe_input(forward::parameter(d, parameter))? {
                bias.iter_mut().zip(own).for_each(|(a, b)| *a += b);
            }
        }
    }
    Ok(bias)
}

/// x W_ihᵀ + b of every direction into `gates` `[N, D·4H]`; where there is no W_ih, x itself is the product.
fn project(layer: &Layer<'_>, x: &[f32], bias: &[f32], gates: &mut [f32]) {
    let (hidden, width) = (layer.hidden, bias.len());
    let inputs = layer.weights[0].ih.map_or(width, Packed::inner);
    over_rows(gates, width, width * inputs, |first, gates| {
        for (block, gates) in gates.chunks_mut(PROJECTED_ROWS * width).enumerate() {
            let rows = gates.len() / width;
            let x = &x[(first + block * PROJECTED_ROWS) * inputs..][..rows * inputs];
            if layer.weights[0].ih.is_none() {
                gates.copy_from_slice(x);
            }
            for (d, ih) in layer.weights.iter().enumerate().filter_map(|(d, w)| Some((d, w.ih?))) {
                let mut sums = layer.room.take(rows * GATES * ih.units());
                let spread = Spread { hidden, product: gates, stride: width, first: d * GATES * hidden };
                multiply_gates((x, inputs), ih, 0..hidden.div_ceil(ih.units()), &mut sums, spread);
            }
            gates.chunks_exact_mut(width).for_each(|row| row.iter_mut().zip(bias).for_each(|(a, b)| *a += b));
        }
    });
}

/// [`crate::graph::Op::Lstm`].
pub(super) fn lstm_forward(call: &mut Call<'_>, op: &LstmOp) -> Result<()> {
    let packs = std::mem::take(&mut call.packs);
    let (hidden, r) = Layer::sizes(call, forward::parameter(0, Parameter::WeightHh))?;
    let directions = op.directions();
    let axis = call.batch.axis(call.operand(forward::X)?.axis.unwrap_or(0))?;
    let (h0, c0) = (call.maybe_input(forward::H0)?, call.maybe_input(forward::C0)?);
    let (gates, y) = (call.maybe_output(forward::GATES), call.output(forward::Y)?);
    let (h, c) = (call.output(forward::H_N)?, call.output(forward::C_N)?);
    let [cells, hiddens, products] =
        [forward::CELLS, forward::HIDDEN, forward::PRODUCT].map(|at| call.maybe_output(at));
    let products = products.filter(|_| op.cell.layer_norm.is_some());
    let weights = weights(call, packs, op, forward::parameter, Pass::Forward)?;
    let (x, bias) = (call.input(forward::X)?, biases(call, op, GATES * hidden)?);
    begin(h, h0);
    begin(c, c0);
    let lengths = lengths(axis, call.batch.sequences());
    let layer = Layer { op, batch: call.batch, axis, lengths: &lengths, weights, hidden, r, room: call.room };
    let shares = shares(axis, &lengths, directions * GATES * hidden * r);
    if layer.plain(0) {
        let cells = cells.map(Shared::new);
        let (gates, y, h, c) = (gates.map(Shared::new), Shared::new(y), Shared::new(h), Shared::new(c));
        Plain { layer: &layer, x, bias: &bias, gates, y, cells, h, c }.run(&shares);
        return Ok(());
    }
    let gates = gates.ok_or_else(|| Error::internal("a layer that is not plain has no room for its gates"))?;
    project(&layer, x, &bias, gates);
    let mut gates = Rows::cut(gates, directions * GATES * hidden, axis, &shares).into_iter();
    let mut y = Rows::cut(y, directions * r, axis, &shares).into_iter();
    let mut cells = Rows::cut_if(cells, directions * hidden, axis, &shares).into_iter();
    let mut hiddens = Rows::cut_if(hiddens, directions * hidden, axis, &shares).into_iter();
    let mut products = Rows::cut_if(products, directions * GATES * hidden, axis, &shares).into_iter();
    let states = cut_states(h, directions * r, &shares).into_iter().zip(cut_states(c, directions * hidden, &shares));
    let layer = &layer;
    let parts = shares.iter().zip(states).map(|(share, (h, c))| Part {
        first: share.start,
        gates: gates.next().unwrap_or_default(),
        y: y.next().unwrap_or_default(),
        cells: cells.next().unwrap_or_default(),
        hidden: hiddens.next().unwrap_or_default(),
        products: products.next().unwrap_or_default(),
        h,
        c,
    });
    threads::each(parts, |part| part.run(layer));
    Ok(())
}
