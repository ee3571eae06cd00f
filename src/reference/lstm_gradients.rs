//! The gradients of an LSTM's input and parameters, from those of its pre-activations.

use super::Real;
use super::array::Call;
use super::lstm_layer::{Masks, axis, steps};
use crate::config::{GATE_F, GATE_I, GATE_O, PEEPHOLES};
use crate::error::Result;
use crate::graph::{LstmOp, LstmPart};
use ndarray::Array2;

/// dx `[T, B, I]`, the sum over directions of dgates W_ih; without weights dgates themselves.
pub(super) fn input_gradient<R: Real>(call: &Call<'_, R>) -> Result<Array2<R>> {
    let dgates = call.float(0)?;
    let directions = call.step.inputs.len() - 1;
    if directions == 0 {
        return Ok(dgates.clone());
    }
    let mut dx = Array2::zeros((dgates.nrows(), call.float(1)?.ncols()));
    for d in 0..directions {
        let weight_ih = call.float(1 + d)?;
        for row in call.rows(0)? {
            for i in 0..weight_ih.ncols() {
                for k in 0..weight_ih.nrows() {
                    dx[[row.at, i]] += dgates[[row.at, d * weight_ih.nrows() + k]] * weight_ih[[k, i]];
                }
            }
        }
    }
    Ok(dx)
}

/// Σ over timesteps and sequences of a gradient times what the parameter multiplies: x for W_ih, the masked h of the
/// step before for W_hh, what was projected for W_hr, 1 for a bias, the cell for peepholes.
pub(super) fn weight_gradient<R: Real>(call: &Call<'_, R>, part: LstmPart, d: usize, op: &LstmOp) -> Result<Array2<R>> {
    let a = call.float(0)?;
    let (directions, sequences) = (op.directions(), call.batch.sequences());
    let axis = axis(call, 0)?;
    let own = a.ncols() / directions;
    let other = if part == LstmPart::Bias { None } else { Some(call.float(1)?) };
    let width = match (part, other) {
        (LstmPart::Bias | LstmPart::Peepholes, _) | (_, None) => 1,
        (LstmPart::InputWeights, Some(x)) => x.ncols(),
        (_, Some(other)) => other.ncols() / directions,
    };
    let initial = if matches!(part, LstmPart::RecurrentWeights | LstmPart::Peepholes) { call.maybe(2)? } else { None };
    let mut gradient = match part {
        LstmPart::Peepholes => Array2::zeros((own / 4 * PEEPHOLES, 1)),
        _ => Array2::zeros((own, width)),
    };
    for b in 0..sequences {
        let masks = Masks { op, batch: call.batch, start: axis.start, sample: call.batch.sample(axis, b) };
        let order = steps(axis, b, op, d);
        for (s, &t) in order.iter().enumerate() {
            let row = t * sequences + b;
            // An element of a state at the step before, in the direction's order.
            let before = |states: &Array2<R>, j: usize| match s {
                0 => initial.map_or(R::zero(), |initial| initial[[b, j]]),
                _ => states[[order[s - 1] * sequences + b, j]],
            };
            if let (LstmPart::Peepholes, Some(cells)) = (part, other) {
                let hidden = own / 4;
                for u in 0..hidden {
                    let da = |gate: usize| a[[row, d * own + gate * hidden + u]];
                    let c_prev = before(cells, d * hidden + u);
                    gradient[[u, 0]] += da(GATE_I) * c_prev;
                    gradient[[hidden + u, 0]] += da(GATE_F) * c_prev;
                    gradient[[2 * hidden + u, 0]] += da(GATE_O) * cells[[row, d * hidden + u]];
                }
                continue;
            }
            let factor = |j: usize| match (part, other) {
                (LstmPart::InputWeights, Some(x)) => x[[row, j]],
                (LstmPart::Projection, Some(hidden)) => hidden[[row, d * width + j]],
                (LstmPart::RecurrentWeights, Some(y)) => {
                    before(y, d * width + j) * masks.recurrent::<R>(t, d * width + j)
                }
                _ => R::one(),
            };
            for k in 0..own {
                for j in 0..width {
                    gradient[[k, j]] += a[[row, d * own + k]] * factor(j);
                }
            }
        }
    }
    Ok(gradient)
}
