//! Gate gradients of one LSTM layer, back through time.
//!
//! ```text
//! dh = dy_t + dgates_{t+1} U                 (at a sequence's last step dh_n in place of the product)
//! do = dh tanh(c_t) o (1 - o)                dc += dh o (1 - tanh² c_t)
//! di = dc g i (1 - i)    df = dc c_{t-1} f (1 - f)    dg = dc i (1 - g²)    dc = dc f
//! ```
//!
//! The gradients overwrite the gates. Each thread owns some sequences for all timesteps; dh_0 and dc_0 hold the running
//! gradients on the way.

use super::call::Call;
use super::lstm_forward::{begin, cut, cut_states, shares};
use super::math;
use super::matmul::{Left, Packed, multiply};
use super::products::rows_of;
use crate::config::{GATE_F, GATE_G, GATE_I, GATE_O, GATES};
use crate::error::Result;
use crate::graph::op::lstm_backward as at;
use crate::scheduler::Axis;
use pulp::Arch;

/// What all threads read.
struct Layer<'a> {
    axis: &'a Axis,
    hidden: usize,
    weight_hh: &'a Packed,
    cells: &'a [f32],
    c0: Option<&'a [f32]>,
    dy: Option<&'a [f32]>,
    /// Whether the product of the first step is looked at.
    wants_dh0: bool,
}

/// Some sequences, all their timesteps.
struct Part<'a> {
    /// Its first sequence.
    first: usize,
    /// `[4H]` of each active row of each step: activated gates, then their gradients.
    gates: Vec<&'a mut [f32]>,
    /// The running dh, at last dh_0.
    dh: &'a mut [f32],
    /// The running dc, at last dc_0.
    dc: &'a mut [f32],
}

/// What one row reads, each `[H]`.
struct Row<'a> {
    c: &'a [f32],
    c_prev: &'a [f32],
    dy: Option<&'a [f32]>,
}

impl Part<'_> {
    fn run(self, layer: &Layer<'_>) {
        let hidden = layer.hidden;
        let zero = vec![0.0; hidden];
        for (t, gates) in self.gates.into_iter().enumerate().rev() {
            let active = gates.len() / (GATES * hidden);
            if active == 0 {
                continue;
            }
            let row = |data: &'_ [f32], at: usize| -> std::ops::Range<usize> {
                debug_assert!((at + 1) * hidden <= data.len());
                at * hidden..(at + 1) * hidden
            };
            Arch::new().dispatch(
                #[inline(always)]
                || {
                    for (r, gates) in gates.chunks_exact_mut(GATES * hidden).enumerate() {
                        let b = self.first + r;
                        let now = layer.axis.offset(t) + b;
                        let c_prev = match (t, layer.c0) {
                            (0, None) => &zero,
                            (0, Some(c0)) => &c0[row(c0, b)],
                            _ => &layer.cells[row(layer.cells, layer.axis.offset(t - 1) + b)],
                        };
                        let c = &layer.cells[row(layer.cells, now)];
                        let reads = Row { c, c_prev, dy: layer.dy.map(|dy| &dy[row(dy, now)]) };
                        let own = r * hidden..(r + 1) * hidden;
                        differentiate(gates, &reads, &mut self.dh[own.clone()], &mut self.dc[own]);
                    }
                },
            );
            if t == 0 && !layer.wants_dh0 {
                continue;
            }
            let left = Left::Rows { data: gates, stride: GATES * hidden };
            multiply(left, layer.weight_hh, &mut self.dh[..active * hidden], false);
        }
    }
}

/// The step back of one row: `gates` `[4H]` become their gradients, `dc` moves one step back.
#[inline(always)]
fn differentiate(gates: &mut [f32], reads: &Row<'_>, dh: &mut [f32], dc: &mut [f32]) {
    let hidden = dh.len();
    if let Some(dy) = reads.dy {
        dh.iter_mut().zip(dy).for_each(|(dh, dy)| *dh += dy);
    }
    let (left, right) = gates.split_at_mut(GATE_G * hidden);
    let (i, f) = left.split_at_mut(GATE_F * hidden);
    let (g, o) = right.split_at_mut((GATE_O - GATE_G) * hidden);
    debug_assert_eq!(GATE_I, 0);
    gradients([i, f, g, o], reads.c, reads.c_prev, dh, dc);
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
pub(super) fn lstm_backward(call: &mut Call<'_>) -> Result<()> {
    let (cells, weight_hh) = (call.input(at::CELLS)?, call.input(at::WEIGHT_HH)?);
    let hidden = call.operand(at::WEIGHT_HH)?.columns();
    let version = call.operand(at::WEIGHT_HH)?.version;
    let axis = call.batch.axis(call.operand(at::CELLS)?.axis.unwrap_or(0))?;
    let (c0, dy) = (call.maybe_input(at::C0)?, call.maybe_input(at::DY)?);
    let (dh_n, dc_n) = (call.maybe_input(at::DH_N)?, call.maybe_input(at::DC_N)?);
    let (gates, dh, dc) = (call.output(at::DGATES)?, call.maybe_output(at::DH0), call.maybe_output(at::DC0));
    if hidden == 0 {
        return Ok(());
    }
    let pack = |packed: &mut Packed| packed.rows(&rows_of(weight_hh, hidden), hidden);
    let weight_hh = call.packs[0].get(version, pack);
    let sequences = call.batch.sequences();
    let (mut spare_h, mut spare_c) = (Vec::new(), Vec::new());
    let wants_dh0 = dh.is_some();
    let dh = dh.unwrap_or_else(|| {
        spare_h.resize(sequences * hidden, 0.0);
        &mut spare_h
    });
    let dc = dc.unwrap_or_else(|| {
        spare_c.resize(sequences * hidden, 0.0);
        &mut spare_c
    });
    begin(dh, dh_n);
    begin(dc, dc_n);
    let shares = shares(axis, sequences, GATES * hidden * hidden);
    let states = cut_states(dh, hidden, &shares).into_iter().zip(cut_states(dc, hidden, &shares));
    let gates = cut(gates, GATES * hidden, axis, &shares).into_iter();
    let parts: Vec<Part<'_>> = gates
        .zip(states)
        .zip(&shares)
        .map(|((gates, (dh, dc)), share)| Part { first: share.start, gates, dh, dc })
        .collect();
    let layer = Layer { axis, hidden, weight_hh, cells, c0, dy, wants_dh0 };
    let layer = &layer;
    rayon::scope(|scope| parts.into_iter().for_each(|part| scope.spawn(move |_| part.run(layer))));
    Ok(())
}
