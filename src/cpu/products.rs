//! Operations that are matrix products: linear layers, weight gradients.

use super::call::{Cached, Call};
use super::lstm_layer::Layer;
use super::matmul::{Left, multiply, multiply_parallel};
use super::packed::Packed;
use super::reduce::{begin, sum_rows};
use super::rows::over_rows;
use crate::config::{GATE_F, GATE_I, GATE_O, GATES};
use crate::error::Result;
use crate::graph::{LstmOp, LstmPart, ReduceKind};
use crate::scheduler::Axis;
use std::ops::Range;

/// x `[R, I]`, W `[O, I]`, b `[O]` (optional): x Wᵀ + b `[R, O]`.
pub(super) fn linear(call: &mut Call<'_>) -> Result<()> {
    let (x, weight, bias) = (call.input(0)?, call.input(1)?, call.maybe_input(2)?);
    let (outputs, inputs) = (call.operand(1)?.rows(), call.operand(1)?.columns());
    let (out, version) = (call.output(0)?, call.operand(1)?.version);
    let packed = call.packs[0].get(version, |packed| packed.transpose(weight, inputs, outputs));
    multiply_parallel(Left::Rows { data: x, stride: inputs }, packed, out, bias.is_some(), |out| {
        if let Some(bias) = bias {
            out.chunks_exact_mut(bias.len()).for_each(|to| to.copy_from_slice(bias));
        }
    });
    Ok(())
}

/// a `[R, K]`, b `[K, C]`: a b `[R, C]`.
pub(super) fn matmul(call: &mut Call<'_>) -> Result<()> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let (inner, columns) = (call.operand(1)?.rows(), call.operand(1)?.columns());
    let (out, version) = (call.output(0)?, call.operand(1)?.version);
    let pack = |packed: &mut Packed| packed.rows(&rows_of(b, columns), columns);
    let packed = call.packs[0].get(version, pack);
    multiply_parallel(Left::Rows { data: a, stride: inner }, packed, out, false, |_| ());
    Ok(())
}

/// The rows of a matrix.
pub(super) fn rows_of(data: &[f32], columns: usize) -> Vec<&[f32]> {
    data.chunks_exact(columns.max(1)).collect()
}

/// dgates `[N, D·4H]` times every direction's W_ih `[4H, I]`, one below the other; without weights dgates themselves.
pub(super) fn lstm_input_gradient(call: &mut Call<'_>) -> Result<()> {
    let (dgates, stride) = (call.input(0)?, call.operand(0)?.columns());
    let out = call.output(0)?;
    if call.inputs.len() == 1 {
        out.copy_from_slice(dgates);
        return Ok(());
    }
    let columns = call.operand(1)?.columns();
    let (mut rows, mut version) = (Vec::new(), Some(0));
    for at in 1..call.inputs.len() {
        rows.extend(rows_of(call.input(at)?, columns));
        // Versions only grow, so the last one tells of any change.
        version = version.zip(call.operand(at)?.version).map(|(a, b)| a.max(b));
    }
    let packed = call.packs[0].get(version, |packed| packed.rows(&rows, columns));
    multiply_parallel(Left::Rows { data: dgates, stride }, packed, out, false, |_| ());
    Ok(())
}

/// Columns of a left operand, and the rows that it meets.
struct Operands<'a> {
    /// `[N, stride]`
    a: &'a [f32],
    stride: usize,
    /// The first of the columns that count.
    first: usize,
    /// A row of `inputs` values for each row of `a`.
    b: &'a [&'a [f32]],
    inputs: usize,
}

/// a `[R, O]`, b `[R, I]`: aᵀ b `[O, I]`.
pub(super) fn weight_gradient(call: &mut Call<'_>) -> Result<()> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let (stride, inputs) = (call.operand(0)?.columns(), call.operand(1)?.columns());
    let (chunks, out) = (call.chunks(0)?, call.output(0)?);
    accumulate(
        &Operands { a, stride, first: 0, b: &rows_of(b, inputs), inputs },
        &chunks,
        &mut call.packs[0],
        out,
        call.continues,
    );
    Ok(())
}

/// A parameter's gradient of direction `d`, from what [`LstmPart`] says.
pub(super) fn lstm_weight_gradient(call: &mut Call<'_>, part: LstmPart, d: usize, op: &LstmOp) -> Result<()> {
    let a = call.input(0)?;
    let (stride, chunks, out) = (call.operand(0)?.columns(), call.chunks(0)?, call.output(0)?);
    let (directions, own) = (op.directions(), stride / op.directions());
    let first = d * own;
    let axis = call.batch.axis(call.operand(0)?.axis.unwrap_or(0))?;
    let columns = |at: usize| call.operand(at).map(|o| o.columns() / directions);
    match part {
        LstmPart::Bias => {
            sum_rows(ReduceKind::Sum, &a[first.min(a.len())..], stride, &chunks, begin(out, call.continues));
        }
        LstmPart::InputWeights => {
            let inputs = call.operand(1)?.columns();
            let b = rows_of(call.input(1)?, inputs);
            accumulate(&Operands { a, stride, first, b: &b, inputs }, &chunks, &mut call.packs[0], out, call.continues);
        }
        LstmPart::Projection => {
            let inputs = columns(1)?;
            let b: Vec<&[f32]> = own_rows(call.input(1)?, d, directions, inputs).collect();
            accumulate(&Operands { a, stride, first, b: &b, inputs }, &chunks, &mut call.packs[0], out, call.continues);
        }
        LstmPart::RecurrentWeights => {
            let inputs = columns(1)?;
            let zero = vec![0.0; inputs];
            let states =
                States { axis, of: call.input(1)?, initial: call.maybe_input(2)?, columns: inputs, zero: &zero };
            let mut b = states.before(d, op);
            let masked = masked_rows(call, axis, &b, d, op, inputs);
            if let Some(masked) = &masked {
                b = rows_of(masked, inputs);
            }
            accumulate(&Operands { a, stride, first, b: &b, inputs }, &chunks, &mut call.packs[0], out, call.continues);
        }
        LstmPart::Peepholes => {
            let hidden = columns(1)?;
            let zero = vec![0.0; hidden];
            let cells = call.input(1)?;
            let states = States { axis, of: cells, initial: call.maybe_input(2)?, columns: hidden, zero: &zero };
            let now: Vec<&[f32]> = own_rows(cells, d, directions, hidden).collect();
            peepholes(
                &Operands { a, stride, first, b: &now, inputs: hidden },
                &states.before(d, op),
                &chunks,
                begin(out, call.continues),
            );
        }
    }
    Ok(())
}

/// The columns of direction `d` in each row.
fn own_rows(rows: &[f32], d: usize, directions: usize, n: usize) -> impl Iterator<Item = &[f32]> {
    rows.chunks_exact((directions * n).max(1)).map(move |row| &row[d * n..][..n])
}

/// States of every row and those before the first steps.
struct States<'a> {
    axis: &'a Axis,
    /// `[N, D·columns]`
    of: &'a [f32],
    /// `[B, D·columns]`
    initial: Option<&'a [f32]>,
    columns: usize,
    /// What stands for an absent initial state.
    zero: &'a [f32],
}

impl<'a> States<'a> {
    /// For each packed row the state of the step before in direction `d`'s order.
    fn before(&self, d: usize, op: &LstmOp) -> Vec<&'a [f32]> {
        let (axis, n, directions) = (self.axis, self.columns, op.directions());
        let own = |rows: &'a [f32], row: usize| &rows[row * directions * n + d * n..][..n];
        let initial = |b: usize| self.initial.map_or(self.zero, |initial| own(initial, b));
        let mut rows = Vec::with_capacity(axis.rows());
        for t in 0..axis.steps() {
            rows.extend((0..axis.rows_at(t)).map(|b| match op.direction.reversed(d) {
                true if b < axis.rows_at(t + 1) => own(self.of, axis.offset(t + 1) + b),
                false if t > 0 => own(self.of, axis.offset(t - 1) + b),
                _ => initial(b),
            }));
        }
        rows
    }
}

/// The rows under the layer's recurrent dropout, if it drops.
fn masked_rows(call: &Call<'_>, axis: &Axis, rows: &[&[f32]], d: usize, op: &LstmOp, r: usize) -> Option<Vec<f32>> {
    op.dropout()?;
    let (batch, room) = (call.batch, call.room);
    let layer = Layer { op, batch, axis, lengths: &[], weights: Vec::new(), hidden: 0, r, room };
    let mut masked = vec![0.0; rows.len() * r];
    over_rows(&mut masked, r, 16 * r, |first, out| {
        for (at, out) in out.chunks_exact_mut(r).enumerate() {
            let row = first + at;
            let t = axis.offsets().partition_point(|&start| start as usize <= row) - 1;
            layer.recurrent_mask(row - axis.offset(t), t, d, out);
            out.iter_mut().zip(rows[row]).for_each(|(m, &h)| *m *= h);
        }
    });
    Some(masked)
}

/// Σ over rows of the gradients of i and f times the cell before, and of o times the cell, added to `out`; chunk by chunk.
fn peepholes(now: &Operands<'_>, before: &[&[f32]], chunks: &[Range<usize>], out: &mut [f32]) {
    let hidden = now.inputs;
    for chunk in chunks {
        let mut part = vec![0.0; out.len()];
        for row in chunk.clone() {
            let gates = &now.a[row * now.stride + now.first..][..GATES * hidden];
            for (block, (gate, cell)) in
                [(GATE_I, before[row]), (GATE_F, before[row]), (GATE_O, now.b[row])].into_iter().enumerate()
            {
                let (part, da) = (&mut part[block * hidden..][..hidden], &gates[gate * hidden..][..hidden]);
                part.iter_mut().zip(da).zip(cell).for_each(|((p, &da), &c)| *p += da * c);
            }
        }
        out.iter_mut().zip(&part).for_each(|(a, &x)| *a += x);
    }
}

/// Σ over rows of aᵀ b in `out`, or where it `continues` added to it, chunk by chunk. Threads own rows of `out`.
fn accumulate(operands: &Operands<'_>, chunks: &[Range<usize>], packed: &mut Cached, out: &mut [f32], continues: bool) {
    let &Operands { a, stride, first: begin, b, inputs } = operands;
    let mut add = continues;
    for chunk in chunks.iter().filter(|c| !c.is_empty()) {
        let packed = packed.get(None, |packed| packed.rows(&b[chunk.clone()], inputs));
        let data = &a[chunk.start * stride..chunk.end * stride];
        over_rows(out, inputs, inputs * chunk.len(), |first, out| {
            multiply(Left::Columns { data, stride, first: begin + first }, packed, out, add);
        });
        add = true;
    }
    if !add {
        out.fill(0.0);
    }
}
