//! The gradients of one LSTM layer: back through time for the pre-activations, then for input and parameters.

use super::Real;
use super::array::{Array, Call};
use crate::config::{GATE_F, GATE_G, GATE_I, GATE_O};
use crate::error::{Error, Result};
use crate::graph::LstmPart;
use crate::graph::op::lstm_backward;
use ndarray::Array2;

/// dgates `[T, B, 4H]` of the pre-activations, dh_0 and dc_0 `[B, H]`, by positions of
/// [`crate::graph::op::lstm_backward`].
///
/// With a the pre-activations, from the last step of each sequence to its first:
///
/// ```text
/// dh_t = dy_t + U' da_{t+1}                       (dh_n where t is the sequence's last step)
/// dc_t = dc_{t+1} f_{t+1} + dh_t o (1 - tanh² c)  (dc_n likewise)
/// da_i = dc g i (1 - i)    da_f = dc c_{t-1} f (1 - f)    da_g = dc i (1 - g²)    da_o = dh tanh(c) o (1 - o)
/// ```
///
/// A sequence's states begin as dh_n and dc_n and change only where it has a step, so one of no step keeps them.
pub(super) fn lstm_backward<R: Real>(call: &Call<'_, R>) -> Result<Vec<Array<R>>> {
    let gates = call.float(lstm_backward::GATES)?;
    let cells = call.float(lstm_backward::CELLS)?;
    let c0 = call.maybe(lstm_backward::C0)?;
    let weight_hh = call.float(lstm_backward::WEIGHT_HH)?;
    let dy = call.maybe(lstm_backward::DY)?;
    let number = call.shape(lstm_backward::GATES)?.axis().ok_or_else(|| Error::internal("gates have no time axis"))?;
    let axis = call.batch.axis(number)?;
    let (sequences, hidden) = (call.batch.sequences(), weight_hh.ncols());
    let state = || Array2::zeros((sequences, hidden));
    let mut dh = call.maybe(lstm_backward::DH_N)?.cloned().unwrap_or_else(state);
    let mut dc = call.maybe(lstm_backward::DC_N)?.cloned().unwrap_or_else(state);
    let mut dgates = Array2::zeros(gates.dim());
    let (zero, one) = (R::zero(), R::one());
    for t in (0..axis.steps()).rev() {
        for b in 0..axis.rows_at(t) {
            let row = t * sequences + b;
            for unit in 0..hidden {
                let at = |gate: usize| [row, gate * hidden + unit];
                let [i, f, g, o] = [GATE_I, GATE_F, GATE_G, GATE_O].map(|gate| gates[at(gate)]);
                let c_prev = match t {
                    0 => c0.map_or(zero, |c0| c0[[b, unit]]),
                    _ => cells[[row - sequences, unit]],
                };
                let tanh_c = cells[[row, unit]].tanh();
                let dh_t = dh[[b, unit]] + dy.map_or(zero, |dy| dy[[row, unit]]);
                let dc_t = dc[[b, unit]] + dh_t * o * (one - tanh_c * tanh_c);
                dgates[at(GATE_I)] = dc_t * g * i * (one - i);
                dgates[at(GATE_F)] = dc_t * c_prev * f * (one - f);
                dgates[at(GATE_G)] = dc_t * i * (one - g * g);
                dgates[at(GATE_O)] = dh_t * tanh_c * o * (one - o);
                dc[[b, unit]] = dc_t * f;
            }
            for unit in 0..hidden {
                let mut sum = zero;
                for k in 0..gates.ncols() {
                    sum += dgates[[row, k]] * weight_hh[[k, unit]];
                }
                dh[[b, unit]] = sum;
            }
        }
    }
    let mut outputs: Vec<Array<R>> = vec![Array2::zeros((0, 0)).into(); 3];
    outputs[lstm_backward::DGATES] = dgates.into();
    outputs[lstm_backward::DH0] = dh.into();
    outputs[lstm_backward::DC0] = dc.into();
    Ok(outputs)
}

/// dx `[T, B, I]` = dgates W_ih.
pub(super) fn input_gradient<R: Real>(call: &Call<'_, R>) -> Result<Array2<R>> {
    let (dgates, weight_ih) = (call.float(0)?, call.float(1)?);
    let mut dx = Array2::zeros((dgates.nrows(), weight_ih.ncols()));
    for row in call.rows(0)? {
        for i in 0..weight_ih.ncols() {
            for k in 0..dgates.ncols() {
                dx[[row.at, i]] += dgates[[row.at, k]] * weight_ih[[k, i]];
            }
        }
    }
    Ok(dx)
}

/// Σ over timesteps and sequences of dgates times what the parameter multiplies: x for W_ih, the previous h (h_0 before
/// the first step) for W_hh, 1 for a bias.
pub(super) fn weight_gradient<R: Real>(call: &Call<'_, R>, part: LstmPart) -> Result<Array2<R>> {
    let dgates = call.float(0)?;
    let sequences = call.batch.sequences();
    let operand = if part == LstmPart::Bias { None } else { Some(call.float(1)?) };
    let h0 = if part == LstmPart::RecurrentWeights { call.maybe(2)? } else { None };
    let width = operand.map_or(1, |x| x.ncols());
    if h0.is_some_and(|h0| h0.dim() != (sequences, width)) {
        return Err(Error::internal(format!("h_0 is not of {sequences} x {width} values")));
    }
    let factor = |row: usize, j: usize| match (part, operand) {
        (LstmPart::InputWeights, Some(x)) => x[[row, j]],
        (LstmPart::RecurrentWeights, Some(y)) if row >= sequences => y[[row - sequences, j]],
        (LstmPart::RecurrentWeights, _) => h0.map_or(R::zero(), |h0| h0[[row, j]]),
        _ => R::one(),
    };
    let mut gradient = Array2::zeros((dgates.ncols(), width));
    for row in call.rows(0)? {
        for k in 0..dgates.ncols() {
            for j in 0..width {
                gradient[[k, j]] += dgates[[row.at, k]] * factor(row.at, j);
            }
        }
    }
    Ok(gradient)
}
