//! One LSTM layer over all timesteps, by the formulas of [`crate::config::Cell`].

use super::activation::value;
use super::array::{Array, Call};
use super::lstm_layer::{Masks, Weights, axis, normalise, steps};
use super::{Real, real};
use crate::config::{GATE_F, GATE_G, GATE_I, GATE_O, GATES};
use crate::error::Result;
use crate::graph::lstm::forward;
use crate::graph::{LstmOp, Parameter};
use ndarray::Array2;

/// What one step of one sequence gives, each per unit.
struct StepResult<R> {
    /// As they are saved.
    gates: Vec<R>,
    /// The recurrent product before normalisation.
    product: Vec<R>,
    c: Vec<R>,
    /// h before projection and zoneout.
    hidden: Vec<R>,
}

/// x kept in ± limit.
pub(super) fn clamp<R: Real>(x: R, limit: Option<f32>) -> R {
    match limit {
        Some(limit) => x.max(-real::<R>(limit)).min(real(limit)),
        None => x,
    }
}

/// Direction `d` of a layer.
struct Layer<'a, R> {
    op: &'a LstmOp,
    d: usize,
    weights: Weights<'a, R>,
    x: &'a Array2<R>,
}

impl<R: Real> Layer<'_, R> {
    /// Gate row `k` of W x + b at logical row `row`.
    fn input_part(&self, row: usize, k: usize) -> R {
        let mut sum = R::zero();
        for bias in &self.weights.biases {
            sum += bias[[k, 0]];
        }
        match self.weights.ih {
            Some(ih) => {
                for i in 0..self.x.ncols() {
                    sum += ih[[k, i]] * self.x[[row, i]];
                }
            }
            None => sum += self.x[[row, self.d * self.weights.hh.nrows() + k]],
        }
        sum
    }

    /// One step at time `t` (logical row `row`) from the states before it.
    fn step(&self, masks: &Masks<'_>, t: usize, row: usize, h: &[R], c: &[R]) -> StepResult<R> {
        let (w, cell, hidden) = (&self.weights, &self.op.cell, self.weights.hidden());
        let masked: Vec<R> =
            h.iter().enumerate().map(|(j, &h)| h * masks.recurrent::<R>(t, self.d * w.output() + j)).collect();
        let mut product: Vec<R> = (0..GATES * hidden)
            .map(|k| masked.iter().enumerate().fold(R::zero(), |s, (j, &h)| s + w.hh[[k, j]] * h))
            .collect();
        let raw = product.clone();
        if let Some(norm) = &w.norm {
            let normed = normalise(&raw, norm.epsilon).0;
            product = normed.iter().enumerate().map(|(k, &n)| n * norm.hh[[k, 0]]).collect();
        }
        let gates = vec![R::zero(); GATES * hidden];
        let mut result = StepResult { gates, product: raw, c: c.to_vec(), hidden: Vec::new() };
        let peephole = |gate: usize, unit: usize| w.peepholes.map_or(R::zero(), |p| p[[gate * hidden + unit, 0]]);
        let mut arguments = vec![R::zero(); hidden];
        let mut output = arguments.clone();
        for unit in 0..hidden {
            let a = |gate: usize| self.input_part(row, gate * hidden + unit) + product[gate * hidden + unit];
            let activated = |gate: usize, a: R| {
                let activation = if gate == GATE_G { cell.candidate } else { cell.gate };
                value(activation, clamp(a, cell.clip))
            };
            let a_i = a(GATE_I) + peephole(0, unit) * c[unit];
            let a_f = a(GATE_F) + peephole(1, unit) * c[unit];
            let i = activated(GATE_I, a_i);
            let f = if cell.coupled { R::one() - i } else { activated(GATE_F, a_f) };
            let g = activated(GATE_G, a(GATE_G));
            let candidate = clamp(f * c[unit] + i * g, cell.cell_clip);
            let z = masks.zoneout_c::<R>(t, self.d * hidden + unit);
            result.c[unit] = z * c[unit] + (R::one() - z) * candidate;
            let a_o = a(GATE_O) + peephole(2, unit) * result.c[unit];
            output[unit] = activated(GATE_O, a_o);
            arguments[unit] = candidate;
            let saved = if cell.saves_activated() { [i, f, g, output[unit]] } else { [a_i, a_f, a(GATE_G), a_o] };
            for (gate, saved) in saved.into_iter().enumerate() {
                result.gates[gate * hidden + unit] = saved;
            }
        }
        if let Some(norm) = &w.norm {
            let normed = normalise(&arguments, norm.epsilon).0;
            arguments = (0..hidden).map(|u| normed[u] * norm.gain[[u, 0]] + norm.bias[[u, 0]]).collect();
        }
        result.hidden = (0..hidden).map(|u| output[u] * value(cell.output, arguments[u])).collect();
        result
    }

    /// h from h before projection and zoneout.
    fn finish(&self, masks: &Masks<'_>, t: usize, hidden: &[R], h: &[R]) -> Vec<R> {
        let r = self.weights.output();
        (0..r)
            .map(|p| {
                let new = match self.weights.hr {
                    Some(hr) => hidden.iter().enumerate().fold(R::zero(), |s, (u, &m)| s + hr[[p, u]] * m),
                    None => hidden[p],
                };
                let z = masks.zoneout_h::<R>(t, self.d * r + p);
                z * h[p] + (R::one() - z) * new
            })
            .collect()
    }
}

/// All outputs by positions of [`crate::graph::lstm::forward`]. A sequence of no step ends in h_0 and c_0.
pub(super) fn lstm<R: Real>(call: &Call<'_, R>, op: &LstmOp) -> Result<Vec<Array<R>>> {
    let x = call.float(forward::X)?;
    let axis = axis(call, forward::X)?;
    let (sequences, directions) = (call.batch.sequences(), op.directions());
    let first = Weights::of(call, op, 0, forward::parameter)?;
    let (hidden, r) = (first.hidden(), first.output());
    let zeros = |rows: usize, columns: usize| Array2::<R>::zeros((rows, directions * columns));
    let rows = x.nrows();
    let mut h_n = call.maybe(forward::H0)?.cloned().unwrap_or_else(|| zeros(sequences, r));
    let mut c_n = call.maybe(forward::C0)?.cloned().unwrap_or_else(|| zeros(sequences, hidden));
    let (mut y, mut cells, mut before) = (zeros(rows, r), zeros(rows, hidden), zeros(rows, hidden));
    let (mut gates, mut products) = (zeros(rows, GATES * hidden), zeros(rows, GATES * hidden));
    for d in 0..directions {
        let mut weights = Weights::of(call, op, d, forward::parameter)?;
        weights.ih = call.maybe(forward::parameter(d, Parameter::WeightIh))?;
        let biases = [Parameter::BiasIh, Parameter::BiasHh].map(|b| call.maybe(forward::parameter(d, b)));
        weights.biases = biases.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        let layer = Layer { op, d, weights, x };
        let put = |to: &mut Array2<R>, row: usize, values: &[R]| {
            values.iter().enumerate().for_each(|(j, &v)| to[[row, d * values.len() + j]] = v);
        };
        for b in 0..sequences {
            let masks = Masks { op, batch: call.batch, start: axis.start, sample: call.batch.sample(axis, b) };
            let mut h: Vec<R> = (0..r).map(|j| h_n[[b, d * r + j]]).collect();
            let mut c: Vec<R> = (0..hidden).map(|j| c_n[[b, d * hidden + j]]).collect();
            for t in steps(axis, b, op, d) {
                let row = t * sequences + b;
                let step = layer.step(&masks, t, row, &h, &c);
                h = layer.finish(&masks, t, &step.hidden, &h);
                c = step.c;
                put(&mut y, row, &h);
                put(&mut cells, row, &c);
                put(&mut before, row, &step.hidden);
                put(&mut gates, row, &step.gates);
                put(&mut products, row, &step.product);
            }
            put(&mut h_n, b, &h);
            put(&mut c_n, b, &c);
        }
    }
    let mut outputs: Vec<Array<R>> = vec![Array2::zeros((0, 0)).into(); 7];
    outputs[forward::Y] = y.into();
    outputs[forward::H_N] = h_n.into();
    outputs[forward::C_N] = c_n.into();
    outputs[forward::GATES] = gates.into();
    outputs[forward::CELLS] = cells.into();
    outputs[forward::HIDDEN] = before.into();
    outputs[forward::PRODUCT] = products.into();
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use crate::graph::builder::LstmWeights;
    use crate::graph::{B, Graph, N};
    use crate::params::DType;
    use crate::reference::Reference;
    use crate::scheduler::{Batch, Capacity, CompileOptions, Target, compile};
    use std::sync::Arc;

    /// Two sequences of one unit, of 2 and of 0 steps, against the formula written out for numbers.
    #[test]
    fn one_unit_follows_the_formula_and_no_step_keeps_the_state() {
        let mut g = Graph::new();
        let x = g.persistent("x", [N, 1.into()]).unwrap();
        let state = ["h", "c"].map(|name| g.persistent(name, [B, 1.into()]).unwrap());
        let [ih, hh] = ["ih", "hh"].map(|name| g.persistent(name, [4, 1]).unwrap());
        let [b, bb] = ["b", "bb"].map(|name| g.persistent(name, [4]).unwrap());
        let weights = LstmWeights::new(ih, hh).bias(Some(b), Some(bb));
        let out = g.lstm(x, Some((state[0], state[1])), &weights).unwrap();
        for (name, value) in [("y", out.y), ("h_n", out.h_n), ("c_n", out.c_n)] {
            g.output(name, value).unwrap();
        }
        let batch = Batch::ragged(&[0, 2]).unwrap();
        let options = CompileOptions::new(&Capacity::exactly(&batch));
        let program = Arc::new(compile(&g, Target::REFERENCE, &options).unwrap());
        let mut reference = Reference::<f64>::new();
        let (ih, hh, b, bb) =
            ([0.5, -0.4, 0.3, 0.9], [0.2, 0.7, -0.6, 0.1], [0.1, 1.0, -0.2, 0.4], [0.0, 0.1, 0.2, -0.3]);
        let all = [("ih", &[4, 1][..], &ih[..]), ("hh", &[4, 1], &hh), ("b", &[4], &b), ("bb", &[4], &bb)];
        let states =
            [("x", &[2, 1][..], &[0.8, -1.5][..]), ("h", &[2, 1], &[0.25, 7.0]), ("c", &[2, 1], &[-0.75, 9.0])];
        for (name, shape, values) in all.into_iter().chain(states) {
            reference.declare(name, shape, DType::F32);
            reference.write_exact(name, values).unwrap();
        }
        let mut prepared = reference.prepare(&program).unwrap();
        reference.run(&mut prepared, &batch, &[] as &[crate::params::Tensor]).unwrap();

        let s = |x: f64| 1.0 / (1.0 + (-x).exp());
        let (mut h, mut c, mut y) = (0.25f64, -0.75f64, Vec::new());
        for x in [0.8, -1.5] {
            let a = |k: usize| ih[k] * x + hh[k] * h + b[k] + bb[k];
            c = s(a(1)) * c + s(a(0)) * a(2).tanh();
            h = s(a(3)) * c.tanh();
            y.push(h);
        }
        let near = |index: usize, wanted: &[f64]| {
            let got = reference.output_exact(&prepared, index).unwrap();
            let same = got.len() == wanted.len() && got.iter().zip(wanted).all(|(g, w)| (g - w).abs() <= 1e-14);
            assert!(same, "output {index}: {got:?}, expected {wanted:?}");
        };
        near(0, &y);
        near(1, &[h, 7.0]);
        near(2, &[c, 9.0]);
    }
}
