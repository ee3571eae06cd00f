//! Random cases over odd sizes, ragged lengths, saturated inputs and long sequences.

use super::{Case, Tensors};
use crate::params::random::Random;

const SEED: u64 = 0x6d6e_656d_6f6e;
const TOLERANCE_FORWARD: f64 = 1e-5;
const TOLERANCE_GRADIENT: f64 = 1e-4;

/// A case whose tensors are drawn from its own stream of random numbers.
pub struct RandomCase {
    /// Its sizes and tolerances.
    pub case: Case,
    stream: u64,
    input_scale: f64,
    weight_scale: f64,
}

/// What makes a case: sizes, and what is unusual about it.
struct Row {
    name: &'static str,
    /// I, H, L, B, T
    sizes: [usize; 5],
    bias: bool,
    state: bool,
    lengths: Option<&'static [usize]>,
    both: bool,
    /// P, or 0
    projection: usize,
    /// The standard deviation of x.
    input_scale: f64,
    /// Weights are uniform within this over √H.
    weight_scale: f64,
}

impl Row {
    const fn new(name: &'static str, sizes: [usize; 5]) -> Self {
        let (bias, state, lengths, both, projection) = (true, true, None, false, 0);
        Self { name, sizes, bias, state, lengths, both, projection, input_scale: 1.0, weight_scale: 1.0 }
    }

    const fn plain(mut self) -> Self {
        self.state = false;
        self
    }

    const fn lengths(mut self, lengths: &'static [usize]) -> Self {
        self.lengths = Some(lengths);
        self
    }
}

/// Together a few seconds on a software GPU. Sizes stand around what kernels tile by: 1, and one beside 16, 64 and 128.
const ROWS: [Row; 18] = [
    Row::new("ones", [1, 1, 1, 1, 1]),
    Row::new("h3_b2_t9", [5, 3, 1, 2, 9]),
    Row { bias: false, ..Row::new("h17_no_bias", [13, 17, 1, 5, 9]) },
    Row::new("h50_t65", [7, 50, 1, 2, 65]).plain(),
    Row::new("h129_b5", [65, 129, 1, 5, 9]),
    Row::new("h31_b70", [33, 31, 1, 70, 2]),
    Row::new("h64_b65_t1", [3, 64, 1, 65, 1]),
    Row::new("h17_b1_t65", [1, 17, 1, 1, 65]),
    Row::new("h20_three_layers", [9, 20, 3, 4, 11]),
    Row::new("h9_two_layers_no_state", [17, 9, 2, 3, 66]).plain(),
    Row::new("lengths", [6, 17, 2, 6, 70]).lengths(&[3, 70, 1, 64, 65, 3]),
    Row::new("lengths_shorter_than_t", [5, 8, 1, 3, 9]).lengths(&[6, 2, 4]),
    Row { both: true, ..Row::new("bidirectional_two_layers", [7, 17, 2, 5, 12]) },
    Row { both: true, ..Row::new("bidirectional_lengths", [4, 9, 1, 5, 66]).lengths(&[3, 66, 0, 64, 65]) },
    Row { both: true, projection: 7, ..Row::new("bidirectional_projection", [5, 18, 2, 3, 9]) },
    // Gates at 0 and 1, where a careless tanh or sigmoid overflows.
    Row { input_scale: 100.0, ..Row::new("saturated_inputs", [8, 19, 1, 4, 20]) },
    // Few steps: weights this large amplify each rounding from step to step.
    Row { weight_scale: 6.0, ..Row::new("saturated_weights", [8, 33, 1, 3, 7]) },
    Row::new("long", [3, 17, 1, 2, 300]),
];

/// The cases, always the same.
pub fn cases() -> Vec<RandomCase> {
    ROWS.iter().enumerate().map(|(at, row)| RandomCase::new(row, at as u64)).collect()
}

impl RandomCase {
    fn new(row: &Row, stream: u64) -> Self {
        let [input_size, hidden_size, num_layers, batch, time] = row.sizes;
        let case = Case {
            name: row.name.to_string(),
            file: String::new(),
            input_size,
            hidden_size,
            num_layers,
            bias: row.bias,
            batch_first: stream % 2 == 1,
            bidirectional: row.both,
            proj_size: row.projection,
            batch,
            time,
            has_initial_state: row.state,
            lengths: row.lengths.map(<[usize]>::to_vec),
            tol_forward: TOLERANCE_FORWARD,
            tol_grad: TOLERANCE_GRADIENT,
        };
        Self { case, stream, input_scale: row.input_scale, weight_scale: row.weight_scale }
    }

    /// What the case gives: `in.*`, `param.*`, `up.*`.
    pub fn tensors(&self) -> Tensors<f32> {
        let mut random = Random::new(SEED, self.stream);
        let limit = self.weight_scale / (self.case.hidden_size as f64).sqrt();
        let mut draw = |name: &str| match name {
            "in.x" => random.normal() * self.input_scale,
            _ if name.starts_with("param.") => (random.uniform() * 2.0 - 1.0) * limit,
            _ => random.normal(),
        };
        let fill = |(name, shape): (String, Vec<usize>)| {
            let values = (0..shape.iter().product::<usize>()).map(|_| draw(&name) as f32).collect();
            (name, values)
        };
        self.case.given().into_iter().map(fill).collect()
    }
}
