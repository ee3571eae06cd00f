//! Adding operations, with their shapes checked as they are added.

use super::lstm::{LstmOp, Parameter, forward};
use super::op::{Op, Over, ReduceKind, TimeKind};
use super::shape::Shape;
use super::{Expr, Gather, Graph, Value};
use crate::config::Mask;
use crate::error::{Error, Result};
use crate::params::Regularizer;

/// The parameters of one direction of an LSTM layer as values of a graph.
#[derive(Debug, Clone, Copy)]
pub struct LstmWeights {
    /// W_ih `[4H, I]`; without it x is W_ih x already, `[N, D·4H]`
    pub weight_ih: Option<Value>,
    /// W_hh `[4H, R]`
    pub weight_hh: Value,
    /// b_ih `[4H]`
    pub bias_ih: Option<Value>,
    /// b_hh `[4H]`
    pub bias_hh: Option<Value>,
    /// W_hr `[R, H]` of a projection
    pub weight_hr: Option<Value>,
    /// p_i, p_f, p_o `[3H]`
    pub peepholes: Option<Value>,
    /// Gains and biases of layer normalisation.
    pub norm: Option<LstmNorm>,
}

/// Gains and biases of layer normalisation inside a cell (Ba et al. 2016).
#[derive(Debug, Clone, Copy)]
pub struct LstmNorm {
    /// The gain of W_ih x `[4H]`; absent where x is projected already
    pub ih: Option<Value>,
    /// The gain of W_hh h `[4H]`
    pub hh: Value,
    /// The cell's gain `[H]`
    pub gain: Value,
    /// The cell's bias `[H]`
    pub bias: Value,
}

impl LstmWeights {
    /// Weights without bias, projection, peepholes and normalisation.
    pub fn new(weight_ih: Value, weight_hh: Value) -> Self {
        Self {
            weight_ih: Some(weight_ih),
            weight_hh,
            bias_ih: None,
            bias_hh: None,
            weight_hr: None,
            peepholes: None,
            norm: None,
        }
    }

    /// Weights from values by role, as [`crate::params::lstm_parameters`] names them; `None` for what is not there.
    pub fn by_role(mut value: impl FnMut(&str) -> Option<Value>) -> Result<Self> {
        let missing = |role: &str| Error::argument(format!("lstm: `{role}` is missing"));
        let weight_hh = value("weight_hh").ok_or_else(|| missing("weight_hh"))?;
        let norm = match value("norm_hh") {
            Some(hh) => Some(LstmNorm {
                ih: value("norm_ih"),
                hh,
                gain: value("norm_gain").ok_or_else(|| missing("norm_gain"))?,
                bias: value("norm_bias").ok_or_else(|| missing("norm_bias"))?,
            }),
            None => None,
        };
        Ok(Self {
            weight_ih: value("weight_ih"),
            weight_hh,
            bias_ih: value("bias_ih"),
            bias_hh: value("bias_hh"),
            weight_hr: value("weight_hr"),
            peepholes: value("peepholes"),
            norm,
        })
    }

    /// Sets both biases.
    #[must_use]
    pub fn bias(mut self, bias_ih: Option<Value>, bias_hh: Option<Value>) -> Self {
        (self.bias_ih, self.bias_hh) = (bias_ih, bias_hh);
        self
    }
}

/// What one LSTM layer gives.
#[derive(Debug, Clone, Copy)]
pub struct LstmOutputs {
    /// h of every row, `[N, D·R]`
    pub y: Value,
    /// h of each sequence's last step in the direction's order, `[B, D·R]`
    pub h_n: Value,
    /// c likewise, `[B, D·H]`
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
    /// One plain LSTM layer, forward, over x `[N, I]`; absent states are zero. See [`crate::config::LstmConfig`] for the
    /// formula.
    pub fn lstm(&mut self, x: Value, state: Option<(Value, Value)>, weights: &LstmWeights) -> Result<LstmOutputs> {
        self.lstm_layer(x, state, &LstmOp::plain(), std::slice::from_ref(weights))
    }

    /// One LSTM layer of any kind over x `[N, I]`, with the weights of each direction; states are h `[B, D·R]` and c
    /// `[B, D·H]`, zero where absent.
    pub fn lstm_layer(
        &mut self,
        x: Value,
        state: Option<(Value, Value)>,
        op: &LstmOp,
        weights: &[LstmWeights],
    ) -> Result<LstmOutputs> {
        if weights.len() != op.directions() {
            return Err(Error::argument(format!(
                "lstm: expected the weights of {} directions, got {}",
                op.directions(),
                weights.len()
            )));
        }
        let (x, weights) = self.normalise_input(x, op, weights)?;
        let mut inputs = vec![None; forward::parameter(op.directions(), Parameter::WeightIh)];
        inputs[forward::X] = Some(x);
        inputs[forward::H0] = state.map(|s| s.0);
        inputs[forward::C0] = state.map(|s| s.1);
        for (d, w) in weights.iter().enumerate() {
            let mut set = |parameter, value| inputs[forward::parameter(d, parameter)] = value;
            set(Parameter::WeightIh, w.weight_ih);
            set(Parameter::WeightHh, Some(w.weight_hh));
            set(Parameter::BiasIh, w.bias_ih);
            set(Parameter::BiasHh, w.bias_hh);
            set(Parameter::WeightHr, w.weight_hr);
            set(Parameter::Peepholes, w.peepholes);
            set(Parameter::NormHh, w.norm.map(|n| n.hh));
            set(Parameter::NormGain, w.norm.map(|n| n.gain));
            set(Parameter::NormBias, w.norm.map(|n| n.bias));
        }
        // The layer has states in the order of its time axis, which is the batch's on the first.
        let axis = self.shape(x).axis().filter(|&axis| axis > 0);
        if let Some(axis) = axis {
            for at in [forward::H0, forward::C0] {
                inputs[at] = inputs[at].map(|state| self.gather(Gather::IntoOrder { axis }, state)).transpose()?;
            }
        }
        let out = self.push(Op::Lstm(*op), inputs)?;
        let mut ends = [out[forward::H_N], out[forward::C_N]];
        if let Some(axis) = axis {
            for end in &mut ends {
                *end = self.gather(Gather::OutOfOrder { axis }, *end)?;
            }
        }
        Ok(LstmOutputs { y: out[forward::Y], h_n: ends[0], c_n: ends[1] })
    }

    /// Where W_ih x is normalised it is computed beforehand, since no step of it depends on another.
    fn normalise_input(&mut self, x: Value, op: &LstmOp, weights: &[LstmWeights]) -> Result<(Value, Vec<LstmWeights>)> {
        let mut weights = weights.to_vec();
        let Some(epsilon) = op.cell.layer_norm else { return Ok((x, weights)) };
        let mut products = Vec::new();
        for w in &mut weights {
            let (Some(weight), Some(gain)) = (w.weight_ih.take(), w.norm.and_then(|n| n.ih)) else {
                return Ok((x, weights)); // x is projected already
            };
            let product = self.linear(x, weight, None)?;
            products.push(self.layer_norm(product, epsilon, Some(gain), None)?);
        }
        Ok((self.concat(&products)?, weights))
    }

    /// The numbers of `count` random operations of the model.
    pub fn random_operations(&mut self, count: u32) -> u32 {
        let first = self.dropouts;
        self.dropouts += count;
        first
    }

    /// e^x over the sum of each row's.
    pub fn softmax(&mut self, x: Value) -> Result<Value> {
        self.push_one(Op::Softmax, &[x])
    }

    /// Each sequence's sum or largest value over its steps: x `[N, F]` gives `[B, F]`.
    pub fn over_time(&mut self, kind: TimeKind, x: Value) -> Result<Value> {
        self.push_one(Op::OverTime { kind }, &[x])
    }

    /// A row of each sequence at each of its steps: x `[B, F]` gives `[N, F]`.
    pub fn each_step(&mut self, axis: u8, x: Value) -> Result<Value> {
        self.gather(Gather::EachStep { axis }, x)
    }

    /// Rows of x taken from other places.
    pub fn gather(&mut self, gather: Gather, x: Value) -> Result<Value> {
        self.push_one(Op::Gather(gather), &[x])
    }

    /// Values `[R, F]` side by side: `[R, ΣF]`.
    pub fn concat(&mut self, values: &[Value]) -> Result<Value> {
        if let [one] = values { Ok(*one) } else { self.push_one(Op::Concat, values) }
    }

    /// Columns `first..first + count` of x `[R, F]`.
    pub fn slice(&mut self, x: Value, first: usize, count: usize) -> Result<Value> {
        self.push_one(Op::Slice { first, count }, &[x])
    }

    /// Each row of x `[R, F]` less its mean, divided by its deviation, times a gain `[F]` plus a bias `[F]`
    /// (Ba et al. 2016): the variance is the mean of squares, epsilon is added to it.
    pub fn layer_norm(&mut self, x: Value, epsilon: f32, gain: Option<Value>, bias: Option<Value>) -> Result<Value> {
        let Some(features) = self.shape(x).columns() else {
            return Err(Error::shape(format!("layer_norm: the columns of {} must be a number", self.shape(x))));
        };
        let by = Expr::Const(1.0 / features as f32);
        let sum = self.reduce(ReduceKind::Sum, Over::Columns, x)?;
        let centred = self.elementwise(Expr::Input(0) - by.clone() * Expr::Input(1), &[x, sum])?;
        let squares = self.reduce(ReduceKind::SumOfSquares, Over::Columns, centred)?;
        let mut expr = Expr::Input(0) / (by * Expr::Input(1) + Expr::Const(epsilon)).sqrt();
        let mut operands = vec![centred, squares];
        if let Some(gain) = gain {
            expr = expr * Expr::Input(operands.len());
            operands.push(gain);
        }
        if let Some(bias) = bias {
            expr = expr + Expr::Input(operands.len());
            operands.push(bias);
        }
        self.elementwise(expr, &operands)
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

    /// A table `[V, D]` with the rows that `rows` `[R]` names, none twice, replaced by those of x `[R, D]`. A persistent table
    /// that takes the result at the end of a run, and is read before, changes in place.
    pub fn scatter(&mut self, table: Value, rows: Value, x: Value) -> Result<Value> {
        self.push_one(Op::Scatter, &[table, rows, x])
    }

    /// Dropout with its own random numbers; leave it out of a graph for inference.
    pub fn dropout(&mut self, x: Value, rate: f32) -> Result<Value> {
        self.dropout_masked(x, rate, Mask::Step)
    }

    /// Dropout whose mask is drawn for each row, or once for all rows of a sequence.
    pub fn dropout_masked(&mut self, x: Value, rate: f32, mask: Mask) -> Result<Value> {
        let operation = self.dropouts;
        self.dropouts += 1;
        if rate == 0.0 {
            return Ok(x);
        }
        self.push_one(Op::Dropout { rate, operation, mask }, &[x])
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

    /// l1 Σ|x| + l2 Σx², `[1]`; nothing where both factors are zero.
    pub fn penalty(&mut self, regularizer: Regularizer, x: Value) -> Result<Option<Value>> {
        let Regularizer { l1, l2 } = regularizer;
        let mut parts = Vec::new();
        if l1 != 0.0 {
            let sizes = self.elementwise(Expr::Input(0).abs(), &[x])?;
            parts.push((l1, self.sum(&[sizes])?));
        }
        if l2 != 0.0 {
            parts.push((l2, self.sum_of_squares(&[x])?));
        }
        let values: Vec<Value> = parts.iter().map(|p| p.1).collect();
        let terms = parts.iter().enumerate().map(|(at, p)| Expr::Const(p.0) * Expr::Input(at));
        terms.reduce(|a, b| a + b).map(|total| self.elementwise(total, &values)).transpose()
    }

    /// The sum over rows `[F]` or over columns `[R, 1]`.
    pub fn reduce(&mut self, kind: ReduceKind, over: Over, x: Value) -> Result<Value> {
        self.push_one(Op::Reduce { kind, over }, &[x])
    }

    /// Cross entropy of softmax(logits `[R, C]`) and targets `[R]`; rows whose target is `ignore` do not count.
    pub fn cross_entropy(&mut self, logits: Value, targets: Value, ignore: Option<u32>) -> Result<RowLoss> {
        self.weighted_cross_entropy(logits, targets, ignore, None)
    }

    /// ln Σ e^logits of each row of logits `[R, C]`, `[R, 1]`; `targets` `[R]` may be any that there are.
    pub fn log_sum_exp(&mut self, logits: Value, targets: Value) -> Result<Value> {
        let rows = self.shape(logits).0[0].clone();
        let out = self.push(Op::CrossEntropy { ignore: None }, vec![Some(logits), Some(targets)])?;
        self.view(out[2], [rows, 1.into()])
    }

    /// [`Self::cross_entropy`] of rows times their weights `[R]`; what the mean divides by counts rows, not weights.
    pub fn weighted_cross_entropy(
        &mut self,
        logits: Value,
        targets: Value,
        ignore: Option<u32>,
        weights: Option<Value>,
    ) -> Result<RowLoss> {
        let out = self.push(Op::CrossEntropy { ignore }, vec![Some(logits), Some(targets)])?;
        self.row_loss(out[0], out[1], weights)
    }

    /// Of losses and whether each counts, `[R]`, times their weights `[R]`; what the mean divides by counts rows, not weights.
    pub fn row_loss(&mut self, losses: Value, counts: Value, weights: Option<Value>) -> Result<RowLoss> {
        let losses = match weights {
            Some(weights) => self.elementwise(Expr::Input(0) * Expr::Input(1), &[losses, weights])?,
            None => losses,
        };
        let sum = self.sum(&[losses])?;
        let count = self.sum(&[counts])?;
        let mean = self.elementwise(Expr::Input(0) / Expr::Input(1).max(Expr::Const(1.0)), &[sum, count])?;
        Ok(RowLoss { sum, count, mean })
    }

    /// Mean squared error of two values of one shape `[R, F]`: the mean over R·F.
    pub fn mean_squared_error(&mut self, prediction: Value, target: Value) -> Result<RowLoss> {
        let error = self.pointwise(Expr::Input(0) - Expr::Input(1), prediction, target)?;
        let sum = self.sum_of_squares(&[error])?;
        self.mean_loss(sum, prediction, true)
    }

    /// The sum of `expr` of a prediction, input 0, and a target, input 1, of one shape `[R, F]`, and its mean over R·F, or
    /// over R where a row is one case. Rows count times their weights `[R, 1]`, in the sum alone.
    pub fn pointwise_loss(
        &mut self,
        expr: Expr,
        prediction: Value,
        target: Value,
        each: bool,
        weights: Option<Value>,
    ) -> Result<RowLoss> {
        let mut losses = self.pointwise(expr, prediction, target)?;
        if let Some(weights) = weights {
            losses = self.elementwise(Expr::Input(0) * Expr::Input(1), &[losses, weights])?;
        }
        let sum = self.sum(&[losses])?;
        self.mean_loss(sum, prediction, each)
    }

    fn pointwise(&mut self, expr: Expr, prediction: Value, target: Value) -> Result<Value> {
        let (shape, wanted) = (self.shape(target), self.shape(prediction));
        if shape != wanted {
            return Err(Error::shape(format!("loss: prediction of {wanted}, target of {shape}")));
        }
        self.elementwise(expr, &[prediction, target])
    }

    fn mean_loss(&mut self, sum: Value, prediction: Value, each: bool) -> Result<RowLoss> {
        let shape = self.shape(prediction).clone();
        let counted = if each { shape.0.len() } else { 1 };
        let size = shape.0.iter().take(counted).fold(Expr::Const(1.0), |n, d| {
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
