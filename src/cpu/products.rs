//! Operations that are matrix products: linear layers, weight gradients.

use super::call::Call;
use super::matmul::{Left, Packed, multiply, multiply_parallel};
use super::reduce::sum_rows;
use super::rows::over_rows;
use crate::error::Result;
use crate::graph::{LstmPart, ReduceKind};
use crate::scheduler::Axis;
use std::ops::Range;

/// x `[R, I]`, W `[O, I]`, b `[O]` (optional): x Wᵀ + b `[R, O]`.
pub(super) fn linear(call: &mut Call<'_>) -> Result<()> {
    let (x, weight, bias) = (call.input(0)?, call.input(1)?, call.maybe_input(2)?);
    let (outputs, inputs) = (call.operand(1)?.rows(), call.operand(1)?.columns());
    let (out, version) = (call.output(0)?, call.operand(1)?.version);
    let packed = call.packs[0].get(version, |packed| packed.transpose(weight, inputs, outputs));
    affine(x, packed, inputs, bias, None, out);
    Ok(())
}

/// x `[R, I]` times a packed operand, plus both biases, into `out`.
pub(super) fn affine(
    x: &[f32],
    packed: &Packed,
    inputs: usize,
    bias: Option<&[f32]>,
    other_bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let mut row = bias.map(<[f32]>::to_vec);
    if let Some(other) = other_bias {
        match &mut row {
            Some(row) => row.iter_mut().zip(other).for_each(|(a, b)| *a += b),
            None => row = Some(other.to_vec()),
        }
    }
    multiply_parallel(Left::Rows { data: x, stride: inputs }, packed, out, row.is_some(), |out| {
        if let Some(row) = &row {
            out.chunks_exact_mut(row.len()).for_each(|to| to.copy_from_slice(row));
        }
    });
}

/// a `[R, K]`, b `[K, C]`: a b `[R, C]`. The same for an LSTM's input gradient, dgates W_ih.
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

/// a `[R, O]`, b `[R, I]`: aᵀ b `[O, I]`.
pub(super) fn weight_gradient(call: &mut Call<'_>) -> Result<()> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let (outputs, inputs) = (call.operand(0)?.columns(), call.operand(1)?.columns());
    let (chunks, out) = (call.chunks(0)?, call.output(0)?);
    let Call { packs: [first, _], .. } = call;
    accumulate(a, outputs, &rows_of(b, inputs), inputs, &chunks, first, out);
    Ok(())
}

/// A parameter's gradient from dgates `[N, 4H]`.
pub(super) fn lstm_weight_gradient(call: &mut Call<'_>, part: LstmPart) -> Result<()> {
    let dgates = call.input(0)?;
    let (outputs, chunks) = (call.operand(0)?.columns(), call.chunks(0)?);
    match part {
        LstmPart::Bias => sum_rows(ReduceKind::Sum, dgates, &chunks, call.output(0)?),
        LstmPart::InputWeights => weight_gradient(call)?,
        LstmPart::RecurrentWeights => {
            let (y, h0, hidden) = (call.input(1)?, call.maybe_input(2)?, call.operand(1)?.columns());
            let axis = call.batch.axis(call.operand(0)?.axis.unwrap_or(0))?;
            let zero = vec![0.0; hidden];
            let previous = previous_rows(axis, y, h0, hidden, &zero);
            let out = call.output(0)?;
            accumulate(dgates, outputs, &previous, hidden, &chunks, &mut call.packs[0], out);
        }
    }
    Ok(())
}

/// For each packed row, h of the step before: a row of y, or of h_0 (else `zero`) at the first step.
fn previous_rows<'a>(
    axis: &Axis,
    y: &'a [f32],
    h0: Option<&'a [f32]>,
    hidden: usize,
    zero: &'a [f32],
) -> Vec<&'a [f32]> {
    let mut rows = Vec::with_capacity(axis.rows());
    for t in 0..axis.steps() {
        rows.extend((0..axis.rows_at(t)).map(|b| match (t, h0) {
            (0, None) => zero,
            (0, Some(h0)) => &h0[b * hidden..][..hidden],
            _ => &y[(axis.offset(t - 1) + b) * hidden..][..hidden],
        }));
    }
    rows
}

/// Σ over rows of aᵀ b into `out` `[O, I]`, chunk by chunk. Threads own rows of `out`.
fn accumulate(
    a: &[f32],
    outputs: usize,
    b: &[&[f32]],
    inputs: usize,
    chunks: &[Range<usize>],
    packed: &mut super::call::Cached,
    out: &mut [f32],
) {
    out.fill(0.0);
    for chunk in chunks.iter().filter(|c| !c.is_empty()) {
        let packed = packed.get(None, |packed| packed.rows(&b[chunk.clone()], inputs));
        let data = &a[chunk.start * outputs..chunk.end * outputs];
        over_rows(out, inputs, inputs * chunk.len(), |first, out| {
            multiply(Left::Columns { data, stride: outputs, first }, packed, out, true);
        });
    }
}
