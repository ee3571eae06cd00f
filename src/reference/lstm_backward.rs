//! One LSTM layer back through time: the gradients of its pre-activations and initial states.

use super::Real;
use super::activation::{slope, value};
use super::array::{Array, Call};
use super::lstm_forward::clamp;
use super::lstm_layer::{Masks, Weights, axis, normalise, normalise_backward, steps};
use super::real;
use crate::config::{Activation, GATE_F, GATE_G, GATE_I, GATE_O, GATES};
use crate::error::Result;
use crate::graph::LstmOp;
use crate::graph::lstm::backward;
use ndarray::Array2;

/// Direction `d` of a layer.
struct Layer<'a, R> {
    op: &'a LstmOp,
    d: usize,
    weights: Weights<'a, R>,
    gates: &'a Array2<R>,
    products: Option<&'a Array2<R>>,
}

/// Gradients of one step of one sequence.
struct StepGradients<R> {
    dgates: Vec<R>,
    dproduct: Vec<R>,
    dgains: Vec<R>,
    dprojected: Vec<R>,
    dcell: Vec<R>,
    cell_normed: Vec<R>,
    /// What arrives at the states of the step before.
    dh: Vec<R>,
    dc: Vec<R>,
}

impl<R: Real> Layer<'_, R> {
    /// A gate's value and its slope by its pre-activation, from what is saved of it.
    fn gate(&self, row: usize, gate: usize, unit: usize) -> (R, R) {
        let cell = &self.op.cell;
        let hidden = self.weights.hidden();
        let saved = self.gates[[row, self.d * GATES * hidden + gate * hidden + unit]];
        let one = R::one();
        if cell.saves_activated() {
            return (saved, if gate == GATE_G { one - saved * saved } else { saved * (one - saved) });
        }
        let activation: Activation = if gate == GATE_G { cell.candidate } else { cell.gate };
        let kept = cell.clip.is_none_or(|limit| saved.abs() < real(limit));
        let clipped = clamp(saved, cell.clip);
        (value(activation, clipped), if kept { slope(activation, clipped) } else { R::zero() })
    }

    /// The gradient of the recurrent product, and that of its gain before it is summed over rows.
    fn through_norm(&self, row: usize, dgates: &[R]) -> (Vec<R>, Vec<R>) {
        let (Some(norm), Some(products)) = (&self.weights.norm, self.products) else {
            return (dgates.to_vec(), Vec::new());
        };
        let product: Vec<R> = (0..dgates.len()).map(|k| products[[row, self.d * dgates.len() + k]]).collect();
        let (normed, factor) = normalise(&product, norm.epsilon);
        let dn: Vec<R> = dgates.iter().enumerate().map(|(k, &d)| d * norm.hh[[k, 0]]).collect();
        let dgains = dgates.iter().zip(&normed).map(|(&d, &n)| d * n).collect();
        (normalise_backward(&normed, factor, &dn), dgains)
    }

    /// The step at time `t` (logical row `row`), from the cell before it and what arrives at both its states.
    fn step(&self, masks: &Masks<'_>, (t, row): (usize, usize), c_prev: &[R], dh: &[R], dc: &[R]) -> StepGradients<R> {
        let (w, cell, hidden, r) = (&self.weights, &self.op.cell, self.weights.hidden(), self.weights.output());
        let (zero, one) = (R::zero(), R::one());
        let stays: Vec<R> = (0..r).map(|p| masks.zoneout_h::<R>(t, self.d * r + p)).collect();
        let dprojected: Vec<R> = dh.iter().zip(&stays).map(|(&dh, &z)| (one - z) * dh).collect();
        let dhidden: Vec<R> = match w.hr {
            Some(hr) => (0..hidden).map(|u| (0..r).fold(zero, |s, p| s + hr[[p, u]] * dprojected[p])).collect(),
            None => dprojected.clone(),
        };
        let gates: Vec<[(R, R); GATES]> =
            (0..hidden).map(|u| [GATE_I, GATE_F, GATE_G, GATE_O].map(|g| self.gate(row, g, u))).collect();
        let forget = |u: usize| if cell.coupled { one - gates[u][GATE_I].0 } else { gates[u][GATE_F].0 };
        let raw: Vec<R> =
            (0..hidden).map(|u| forget(u) * c_prev[u] + gates[u][GATE_I].0 * gates[u][GATE_G].0).collect();
        let candidate: Vec<R> = raw.iter().map(|&c| clamp(c, cell.cell_clip)).collect();
        let (cell_normed, factor) = match &w.norm {
            Some(norm) => normalise(&candidate, norm.epsilon),
            None => (Vec::new(), one),
        };
        let argument = |u: usize| match &w.norm {
            Some(norm) => cell_normed[u] * norm.gain[[u, 0]] + norm.bias[[u, 0]],
            None => candidate[u],
        };
        let dcell: Vec<R> =
            (0..hidden).map(|u| dhidden[u] * gates[u][GATE_O].0 * slope(cell.output, argument(u))).collect();
        let mut dcandidate = match &w.norm {
            Some(norm) => {
                let dn: Vec<R> = dcell.iter().enumerate().map(|(u, &d)| d * norm.gain[[u, 0]]).collect();
                normalise_backward(&cell_normed, factor, &dn)
            }
            None => dcell.clone(),
        };
        let peephole = |gate: usize, u: usize| w.peepholes.map_or(zero, |p| p[[gate * hidden + u, 0]]);
        let mut dgates = vec![zero; GATES * hidden];
        let mut dc_prev = vec![zero; hidden];
        for u in 0..hidden {
            let [(i, slope_i), (_, slope_f), (g, slope_g), (_, slope_o)] = gates[u];
            let dz_o = dhidden[u] * value(cell.output, argument(u)) * slope_o;
            let dc_now = dc[u] + dz_o * peephole(2, u);
            let z = masks.zoneout_c::<R>(t, self.d * hidden + u);
            dcandidate[u] += (one - z) * dc_now;
            let draw = if cell.cell_clip.is_none_or(|l| raw[u].abs() < real(l)) { dcandidate[u] } else { zero };
            let df = draw * c_prev[u];
            let (dz_i, dz_f) =
                if cell.coupled { ((draw * g - df) * slope_i, zero) } else { (draw * g * slope_i, df * slope_f) };
            dgates[GATE_I * hidden + u] = dz_i;
            dgates[GATE_F * hidden + u] = dz_f;
            dgates[GATE_G * hidden + u] = draw * i * slope_g;
            dgates[GATE_O * hidden + u] = dz_o;
            dc_prev[u] = z * dc_now + draw * forget(u) + peephole(0, u) * dz_i + peephole(1, u) * dz_f;
        }
        let (dproduct, dgains) = self.through_norm(row, &dgates);
        let dh = (0..r)
            .map(|j| {
                let product = (0..GATES * hidden).fold(zero, |s, k| s + w.hh[[k, j]] * dproduct[k]);
                let carried = product * masks.recurrent::<R>(t, self.d * r + j) + stays[j] * dh[j];
                clamp(carried, cell.gradient_clip)
            })
            .collect();
        StepGradients { dgates, dproduct, dgains, dprojected, dcell, cell_normed, dh, dc: dc_prev }
    }
}

/// All outputs by positions of [`crate::graph::lstm::backward`].
///
/// With a the pre-activations, from the last step of each sequence to its first, for the plain cell:
///
/// ```text
/// dh_t = dy_t + U' da_{t+1}                       (dh_n where t is the sequence's last step)
/// dc_t = dc_{t+1} f_{t+1} + dh_t o (1 - tanh² c)  (dc_n likewise)
/// da_i = dc g i (1 - i)    da_f = dc c_{t-1} f (1 - f)    da_g = dc i (1 - g²)    da_o = dh tanh(c) o (1 - o)
/// ```
///
/// A sequence's states begin as dh_n and dc_n and change only where it has a step, so one of no step keeps them.
pub(super) fn lstm_backward<R: Real>(call: &Call<'_, R>, op: &LstmOp) -> Result<Vec<Array<R>>> {
    let (gates, cells) = (call.float(backward::GATES)?, call.float(backward::CELLS)?);
    let (c0, dy) = (call.maybe(backward::C0)?, call.maybe(backward::DY)?);
    let products = call.maybe(backward::PRODUCT)?;
    let axis = axis(call, backward::GATES)?;
    let (sequences, directions, rows) = (call.batch.sequences(), op.directions(), gates.nrows());
    let first = Weights::of(call, op, 0, backward::parameter)?;
    let (hidden, r) = (first.hidden(), first.output());
    let zeros = |rows: usize, columns: usize| Array2::<R>::zeros((rows, directions * columns));
    let mut dh0 = call.maybe(backward::DH_N)?.cloned().unwrap_or_else(|| zeros(sequences, r));
    let mut dc0 = call.maybe(backward::DC_N)?.cloned().unwrap_or_else(|| zeros(sequences, hidden));
    let four_h = GATES * hidden;
    let mut all = [four_h, r, four_h, four_h, hidden, hidden].map(|columns| zeros(rows, columns));
    for d in 0..directions {
        let layer = Layer { op, d, weights: Weights::of(call, op, d, backward::parameter)?, gates, products };
        let put = |to: &mut Array2<R>, row: usize, values: &[R]| {
            values.iter().enumerate().for_each(|(j, &v)| to[[row, d * values.len() + j]] = v);
        };
        for b in 0..sequences {
            let masks = Masks { op, batch: call.batch, start: axis.start, sample: call.batch.sample(axis, b) };
            let own =
                |from: &Array2<R>, row: usize, n: usize| (0..n).map(|j| from[[row, d * n + j]]).collect::<Vec<R>>();
            let (mut dh, mut dc) = (own(&dh0, b, r), own(&dc0, b, hidden));
            let order = steps(axis, b, op, d);
            for (s, &t) in order.iter().enumerate().rev() {
                let row = t * sequences + b;
                let c_prev = match s {
                    0 => c0.map_or_else(|| vec![R::zero(); hidden], |c0| own(c0, b, hidden)),
                    _ => own(cells, order[s - 1] * sequences + b, hidden),
                };
                if let Some(dy) = dy {
                    dh.iter_mut().enumerate().for_each(|(j, dh)| *dh += dy[[row, d * r + j]]);
                }
                let step = layer.step(&masks, (t, row), &c_prev, &dh, &dc);
                let parts =
                    [&step.dgates, &step.dprojected, &step.dproduct, &step.dgains, &step.dcell, &step.cell_normed];
                all.iter_mut().zip(parts).for_each(|(to, values)| put(to, row, values));
                (dh, dc) = (step.dh, step.dc);
            }
            put(&mut dh0, b, &dh);
            put(&mut dc0, b, &dc);
        }
    }
    let mut outputs: Vec<Array<R>> = vec![Array2::zeros((0, 0)).into(); 8];
    let positions = [
        backward::DGATES,
        backward::DPROJECTED,
        backward::DPRODUCT,
        backward::DGAINS,
        backward::DCELL,
        backward::CELL_NORMED,
    ];
    positions.into_iter().zip(all).for_each(|(at, values)| outputs[at] = values.into());
    outputs[backward::DH0] = dh0.into();
    outputs[backward::DC0] = dc0.into();
    Ok(outputs)
}
