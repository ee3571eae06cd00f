//! One LSTM layer over all timesteps, by the formula of [`crate::config::LstmConfig`].

use super::array::{Array, Call};
use super::{Real, sigmoid};
use crate::config::{GATE_F, GATE_G, GATE_I, GATE_O, GATES};
use crate::error::{Error, Result};
use crate::graph::op::lstm;
use ndarray::Array2;

/// The parameters of a layer.
struct Weights<'a, R> {
    /// `[4H, I]`
    ih: &'a Array2<R>,
    /// `[4H, H]`
    hh: &'a Array2<R>,
    /// `[4H]` each, held as one column.
    biases: Vec<&'a Array2<R>>,
}

impl<R: Real> Weights<'_, R> {
    /// Row `k` of W x + b + U h, for rows `row` of x and `b` of h.
    fn preactivation(&self, k: usize, x: &Array2<R>, row: usize, h: &Array2<R>, b: usize) -> R {
        let mut sum = R::zero();
        for bias in &self.biases {
            sum += bias[[k, 0]];
        }
        for i in 0..x.ncols() {
            sum += self.ih[[k, i]] * x[[row, i]];
        }
        for j in 0..h.ncols() {
            sum += self.hh[[k, j]] * h[[b, j]];
        }
        sum
    }
}

/// y `[T, B, H]`, h_n and c_n `[B, H]`, activated gates `[T, B, 4H]` and cells `[T, B, H]`, by positions of
/// [`crate::graph::op::lstm`]. A sequence that has ended keeps its state, so a sequence of no step ends in h_0 and c_0.
pub(super) fn lstm<R: Real>(call: &Call<'_, R>) -> Result<Vec<Array<R>>> {
    let x = call.float(lstm::X)?;
    let biases = [call.maybe(lstm::BIAS_IH)?, call.maybe(lstm::BIAS_HH)?];
    let weights = Weights {
        ih: call.float(lstm::WEIGHT_IH)?,
        hh: call.float(lstm::WEIGHT_HH)?,
        biases: biases.into_iter().flatten().collect(),
    };
    let number = call.shape(lstm::X)?.axis().ok_or_else(|| Error::internal("x has no time axis"))?;
    let axis = call.batch.axis(number)?;
    let (sequences, hidden) = (call.batch.sequences(), weights.hh.ncols());
    let state = || Array2::zeros((sequences, hidden));
    let mut h = call.maybe(lstm::H0)?.cloned().unwrap_or_else(state);
    let mut c = call.maybe(lstm::C0)?.cloned().unwrap_or_else(state);
    let mut y = Array2::zeros((x.nrows(), hidden));
    let mut cells = y.clone();
    let mut gates = Array2::zeros((x.nrows(), GATES * hidden));
    for t in 0..axis.steps() {
        for b in 0..axis.rows_at(t) {
            let row = t * sequences + b;
            for k in 0..GATES * hidden {
                let a = weights.preactivation(k, x, row, &h, b);
                gates[[row, k]] = if k / hidden == GATE_G { a.tanh() } else { sigmoid(a) };
            }
            for unit in 0..hidden {
                let gate = |gate: usize| gates[[row, gate * hidden + unit]];
                c[[b, unit]] = gate(GATE_F) * c[[b, unit]] + gate(GATE_I) * gate(GATE_G);
                h[[b, unit]] = gate(GATE_O) * c[[b, unit]].tanh();
                cells[[row, unit]] = c[[b, unit]];
                y[[row, unit]] = h[[b, unit]];
            }
        }
    }
    let mut outputs: Vec<Array<R>> = vec![Array2::zeros((0, 0)).into(); 5];
    outputs[lstm::Y] = y.into();
    outputs[lstm::H_N] = h.into();
    outputs[lstm::C_N] = c.into();
    outputs[lstm::GATES] = gates.into();
    outputs[lstm::CELLS] = cells.into();
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
        let weights = LstmWeights {
            weight_ih: g.persistent("ih", [4, 1]).unwrap(),
            weight_hh: g.persistent("hh", [4, 1]).unwrap(),
            bias_ih: Some(g.persistent("b", [4]).unwrap()),
            bias_hh: Some(g.persistent("bb", [4]).unwrap()),
        };
        let out = g.lstm(x, Some((state[0], state[1])), &weights).unwrap();
        for (name, value) in [("y", out.y), ("h_n", out.h_n), ("c_n", out.c_n)] {
            g.output(name, value).unwrap();
        }
        let batch = Batch::ragged(&[0, 2]).unwrap();
        let options = CompileOptions { capacity: Capacity::exactly(&batch), fresh: false };
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
