//! Adding operations, with their shapes checked as they are added.

use super::op::{Op, Over, ReduceKind, lstm};
use super::shape::Shape;
use super::{Expr, Graph, Value};
use crate::error::{Error, Result};

/// The parameters of one LSTM layer as values of a graph.
#[derive(Debug, Clone, Copy)]
pub struct LstmWeights {
    /// W_ih `[4H, I]`
    pub weight_ih: Value,
    /// W_hh `[4H, H]`
    pub weight_hh: Value,
    /// b_ih `[4H]`
    pub bias_ih: Option<Value>,
    /// b_hh `[4H]`
    pub bias_hh: Option<Value>,
}

/// What one LSTM layer gives.
#[derive(Debug, Clone, Copy)]
pub struct LstmOutputs {
    /// h of every row, `[N, H]`
    pub y: Value,
    /// h of each sequence's last step, `[B, H]`
    pub h_n: Value,
    /// c of each sequence's last step, `[B, H]`
    pub c_n: Value,
}

/// A loss over rows.
#[derive(Debug, Clone, Copy)]
pub struct RowLoss {
    /// The sum over all rows that count, `[1]`
    pub sum: Value,
    /// How many rows count, `[1]`
    pub count: Value,
    /// The mean over those rows, `[1]`; zero where none counts.
    pub mean: Value,
}

impl Graph {
    /// One LSTM layer over x `[N, I]`; absent states are zero. See [`crate::config::LstmConfig`] for the formula.
    pub fn lstm(&mut self, x: Value, state: Option<(Value, Value)>, weights: &LstmWeights) -> Result<LstmOutputs> {
        let mut inputs = vec![None; lstm::INPUTS];
        inputs[lstm::X] = Some(x);
        inputs[lstm::H0] = state.map(|s| s.0);
        inputs[lstm::C0] = state.map(|s| s.1);
        inputs[lstm::WEIGHT_IH] = Some(weights.weight_ih);
        inputs[lstm::WEIGHT_HH] = Some(weights.weight_hh);
        inputs[lstm::BIAS_IH] = weights.bias_ih;
        inputs[lstm::BIAS_HH] = weights.bias_hh;
        let out = self.push(Op::Lstm, inputs)?;
        Ok(LstmOutputs { y: out[lstm::Y], h_n: out[lstm::H_N], c_n: out[lstm::C_N] })
    }

    /// x `[R, I]` by W `[O, I]` and b `[O]`: x Wᵀ + b, `[R, O]`.
    pub fn linear(&mut self, x: Value, weight: Value, bias: Option<Value>) -> Result<Value> {
        Ok(self.push(Op::Linear, vec![Some(x), Some(weight), bias])?[0])
    }

    /// a `[R, K]` times b `[K, C]`.
    pub fn matmul(&mut self, a: Value, b: Value) -> Result<Value> {
        self.push_one(Op::MatMul, &[a, b])
    }

    /// Rows of a table `[V, D]` by tokens `[R]`: `[R, D]`. Also gathers rows of a state.
    pub fn embedding(&mut self, table: Value, tokens: Value) -> Result<Value> {
        self.push_one(Op::Embedding, &[table, tokens])
    }

    /// Dropout with its own random numbers; leave it out of a graph for inference.
    pub fn dropout(&mut self, x: Value, rate: f32) -> Result<Value> {
        let operation = self.dropouts;
        self.dropouts += 1;
        if rate == 0.0 {
            return Ok(x);
        }
        self.push_one(Op::Dropout { rate, operation }, &[x])
    }

    /// One expression over the elements of `inputs`, which spread over the largest of them.
    pub fn elementwise(&mut self, expr: Expr, inputs: &[Value]) -> Result<Value> {
        self.push_one(Op::Elementwise { exprs: vec![expr] }, inputs)
    }

    /// Several expressions over the same inputs, each an output.
    pub fn elementwise_many(&mut self, exprs: Vec<Expr>, inputs: &[Value]) -> Result<Vec<Value>> {
        self.push(Op::Elementwise { exprs }, inputs.iter().copied().map(Some).collect())
    }

    /// 1/(1+e^-x)
    pub fn sigmoid(&mut self, x: Value) -> Result<Value> {
        self.elementwise(Expr::Input(0).sigmoid(), &[x])
    }

    /// tanh x
    pub fn tanh(&mut self, x: Value) -> Result<Value> {
        self.elementwise(Expr::Input(0).tanh(), &[x])
    }

    /// max(x, 0)
    pub fn relu(&mut self, x: Value) -> Result<Value> {
        self.elementwise(Expr::Input(0).max(Expr::Const(0.0)), &[x])
    }

    /// a + b, either spread over the other.
    pub fn add(&mut self, a: Value, b: Value) -> Result<Value> {
        self.elementwise(Expr::Input(0) + Expr::Input(1), &[a, b])
    }

    /// `value` spread over the shape of `like`.
    pub fn broadcast_like(&mut self, value: Value, like: Value) -> Result<Value> {
        self.elementwise(Expr::Input(0), &[value, like])
    }

    /// The sum of everything in `inputs`, `[1]`.
    pub fn sum(&mut self, inputs: &[Value]) -> Result<Value> {
        self.push_one(Op::Reduce { kind: ReduceKind::Sum, over: Over::All }, inputs)
    }

    /// The sum of the squares of everything in `inputs`, `[1]`.
    pub fn sum_of_squares(&mut self, inputs: &[Value]) -> Result<Value> {
        self.push_one(Op::Reduce { kind: ReduceKind::SumOfSquares, over: Over::All }, inputs)
    }

    /// The sum over rows `[F]` or over columns `[R, 1]`.
    pub fn reduce(&mut self, kind: ReduceKind, over: Over, x: Value) -> Result<Value> {
        self.push_one(Op::Reduce { kind, over }, &[x])
    }

    /// Cross entropy of softmax(logits `[R, C]`) and targets `[R]`; rows whose target is `ignore` do not count.
    pub fn cross_entropy(&mut self, logits: Value, targets: Value, ignore: Option<u32>) -> Result<RowLoss> {
        let out = self.push(Op::CrossEntropy { ignore }, vec![Some(logits), Some(targets)])?;
        let sum = self.sum(&[out[0]])?;
        let count = self.sum(&[out[1]])?;
        let mean = self.elementwise(Expr::Input(0) / Expr::Input(1).max(Expr::Const(1.0)), &[sum, count])?;
        Ok(RowLoss { sum, count, mean })
    }

    /// Mean squared error of two values of one shape `[R, F]`: the mean over R·F.
    pub fn mean_squared_error(&mut self, prediction: Value, target: Value) -> Result<RowLoss> {
        let shape = self.shape(prediction).clone();
        if *self.shape(target) != shape {
            return Err(Error::shape(format!(
                "mean squared error: prediction of {shape}, target of {}",
                self.shape(target)
            )));
        }
        let difference = Expr::Input(0) - Expr::Input(1);
        let error = self.elementwise(difference, &[prediction, target])?;
        let sum = self.sum_of_squares(&[error])?;
        let size = shape.0.iter().fold(Expr::Const(1.0), |n, d| {
            n * match d {
                super::Dim::Fixed(m) => Expr::Const(*m as f32),
                super::Dim::Symbol(s) => Expr::Size(s.clone()),
            }
        });
        let count = self.elementwise(size, &[sum])?;
        let mean = self.elementwise(Expr::Input(0) / Expr::Input(1).max(Expr::Const(1.0)), &[sum, count])?;
        Ok(RowLoss { sum, count, mean })
    }

    /// The column of each row's largest value, `[R]`.
    pub fn argmax(&mut self, x: Value) -> Result<Value> {
        self.push_one(Op::ArgMax, &[x])
    }

    /// The same values under another shape with the same outermost size.
    pub fn view(&mut self, x: Value, shape: impl Into<Shape>) -> Result<Value> {
        self.push_one(Op::View { shape: shape.into() }, &[x])
    }
}
