//! One LSTM layer over all timesteps.
//!
//! ```text
//! i, f, o = sigmoid(W x_t + b + U h_{t-1})    g = tanh(...)      blocks of H columns, in the order i f g o
//! c_t = f * c_{t-1} + i * g                   h_t = o * tanh(c_t)
//! ```
//!
//! The input's part of all gates is one product over all rows. Then each thread owns some sequences for all timesteps
//! and meets no other. The final states hold the running ones on the way: a sequence that has ended is left alone.

use super::call::Call;
use super::math;
use super::matmul::{Left, Packed, multiply};
use super::products::affine;
use super::rows::TASK_COST;
use crate::config::{GATE_F, GATE_G, GATE_I, GATE_O, GATES};
use crate::error::Result;
use crate::graph::op::lstm;
use crate::scheduler::Axis;
use pulp::Arch;
use std::ops::Range;

/// The sequences of each thread: contiguous, with about as many rows each. `cost` is that of one row.
pub(super) fn shares(axis: &Axis, sequences: usize, cost: usize) -> Vec<Range<usize>> {
    let wanted = (axis.rows() * cost / TASK_COST).clamp(1, rayon::current_num_threads());
    // Sequence b takes part in the steps whose rows exceed b; lengths descend.
    let mut lengths = vec![0; sequences];
    (0..axis.steps()).for_each(|t| lengths[..axis.rows_at(t)].iter_mut().for_each(|l| *l += 1));
    let (mut shares, mut first, mut rows) = (Vec::new(), 0, 0);
    for (b, length) in lengths.iter().enumerate() {
        rows += length;
        if rows * wanted >= axis.rows() * (shares.len() + 1) && shares.len() + 1 < wanted {
            shares.push(first..b + 1);
            first = b + 1;
        }
    }
    if first < sequences {
        shares.push(first..sequences);
    }
    shares
}

/// Cuts packed rows of `width` values into each share's rows of each step.
pub(super) fn cut<'a>(
    mut rows: &'a mut [f32],
    width: usize,
    axis: &Axis,
    shares: &[Range<usize>],
) -> Vec<Vec<&'a mut [f32]>> {
    let mut parts: Vec<Vec<&'a mut [f32]>> = shares.iter().map(|_| Vec::with_capacity(axis.steps())).collect();
    for t in 0..axis.steps() {
        for (share, part) in shares.iter().zip(&mut parts) {
            let active = axis.rows_at(t).min(share.end).saturating_sub(share.start);
            let (head, tail) = std::mem::take(&mut rows).split_at_mut(active * width);
            part.push(head);
            rows = tail;
        }
    }
    parts
}

/// Cuts `[B, width]` into each share's rows.
pub(super) fn cut_states<'a>(mut rows: &'a mut [f32], width: usize, shares: &[Range<usize>]) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(shares.len());
    for share in shares {
        let (head, tail) = std::mem::take(&mut rows).split_at_mut(share.len() * width);
        parts.push(head);
        rows = tail;
    }
    parts
}

/// Copies `from` to `to`, or zeros.
pub(super) fn begin(to: &mut [f32], from: Option<&[f32]>) {
    match from {
        Some(from) => to.copy_from_slice(&from[..to.len()]),
        None => to.fill(0.0),
    }
}

/// Some sequences, all their timesteps.
struct Part<'a> {
    /// `[4H]` of each active row of each step: the input's part, then the activated gates.
    gates: Vec<&'a mut [f32]>,
    y: Vec<&'a mut [f32]>,
    /// Empty if nobody wants the cells.
    cells: Vec<&'a mut [f32]>,
    /// The running h, at last the final one.
    h: &'a mut [f32],
    /// The running c, at last the final one.
    c: &'a mut [f32],
}

impl Part<'_> {
    fn run(self, hidden: usize, weight_hh: &Packed) {
        let Self { gates, y, cells, h, c } = self;
        let mut cells = cells.into_iter();
        for (gates, y) in gates.into_iter().zip(y) {
            let size = y.len();
            let (h, c) = (&mut h[..size], &mut c[..size]);
            multiply(Left::Rows { data: h, stride: hidden }, weight_hh, gates, true);
            activate(gates, c, h, hidden);
            y.copy_from_slice(h);
            if let Some(cells) = cells.next() {
                cells.copy_from_slice(c);
            }
        }
    }
}

/// Activates rows of gates `[4H]` in place and updates c and h `[H]`.
fn activate(gates: &mut [f32], c: &mut [f32], h: &mut [f32], hidden: usize) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let rows = gates.chunks_exact_mut(GATES * hidden);
            for ((gates, c), h) in rows.zip(c.chunks_exact_mut(hidden)).zip(h.chunks_exact_mut(hidden)) {
                gates[..GATE_G * hidden].iter_mut().for_each(|x| *x = math::sigmoid(*x));
                gates[GATE_G * hidden..GATE_O * hidden].iter_mut().for_each(|x| *x = math::tanh(*x));
                gates[GATE_O * hidden..].iter_mut().for_each(|x| *x = math::sigmoid(*x));
                update(gates, c, h);
            }
        },
    );
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

/// [`crate::graph::Op::Lstm`].
pub(super) fn lstm_forward(call: &mut Call<'_>) -> Result<()> {
    let x = call.input(lstm::X)?;
    let (weight_ih, weight_hh) = (call.operand(lstm::WEIGHT_IH)?.clone(), call.operand(lstm::WEIGHT_HH)?.clone());
    let (inputs, hidden) = (weight_ih.columns(), weight_hh.columns());
    let axis = call.batch.axis(call.operand(lstm::X)?.axis.unwrap_or(0))?;
    let sequences = call.batch.sequences();
    let (h0, c0) = (call.maybe_input(lstm::H0)?, call.maybe_input(lstm::C0)?);
    let (bias_ih, bias_hh) = (call.maybe_input(lstm::BIAS_IH)?, call.maybe_input(lstm::BIAS_HH)?);
    let (ih, hh) = (call.input(lstm::WEIGHT_IH)?, call.input(lstm::WEIGHT_HH)?);
    let (gates, y) = (call.output(lstm::GATES)?, call.output(lstm::Y)?);
    let (cells, h, c) = (call.maybe_output(lstm::CELLS), call.output(lstm::H_N)?, call.output(lstm::C_N)?);
    if hidden == 0 {
        return Ok(());
    }
    let [pack_ih, pack_hh] = &mut *call.packs;
    let pack_ih = pack_ih.get(weight_ih.version, |p| p.transpose(ih, inputs, GATES * hidden));
    let pack_hh = pack_hh.get(weight_hh.version, |p| p.transpose(hh, hidden, GATES * hidden));
    affine(x, pack_ih, inputs, bias_ih, bias_hh, gates);
    begin(h, h0);
    begin(c, c0);
    let shares = shares(axis, sequences, GATES * hidden * hidden);
    let mut cells = cells.map(|cells| cut(cells, hidden, axis, &shares)).unwrap_or_default().into_iter();
    let all = cut(gates, GATES * hidden, axis, &shares).into_iter().zip(cut(y, hidden, axis, &shares));
    let states = cut_states(h, hidden, &shares).into_iter().zip(cut_states(c, hidden, &shares));
    let parts: Vec<Part<'_>> = all
        .zip(states)
        .map(|((gates, y), (h, c))| Part { gates, y, cells: cells.next().unwrap_or_default(), h, c })
        .collect();
    rayon::scope(|scope| parts.into_iter().for_each(|part| scope.spawn(move |_| part.run(hidden, pack_hh))));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Batch;

    #[test]
    fn shares_cover_all_sequences_and_cuts_all_rows() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for lengths in [vec![5, 0, 3, 3, 1, 0], vec![], vec![0, 0], vec![9], vec![4; 7]] {
            let batch = Batch::ragged(&lengths).unwrap();
            let axis = batch.axis(0).unwrap();
            let shares = pool.install(|| shares(axis, lengths.len(), 1_000_000));
            let covered: Vec<usize> = shares.iter().flat_map(|s| s.clone()).collect();
            assert_eq!(covered, (0..lengths.len()).collect::<Vec<_>>());
            let mut rows = vec![0.0; axis.rows() * 2];
            let parts = cut(&mut rows, 2, axis, &shares);
            assert_eq!(parts.iter().flatten().map(|p| p.len()).sum::<usize>(), axis.rows() * 2);
        }
    }
}
