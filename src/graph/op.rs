//! The operations and their shape rules.

use super::attention::{self, AttentionOp, AttentionPart};
use super::expression::Expr;
use super::gather::{self, Gather};
use super::lstm::{self, LstmOp, LstmPart};
use super::memory::{self, MemoryOp, MemoryPart};
use super::shape::{B, Dim, Shape, Symbol};
use super::{Layout, ValueInfo};
use crate::config::Mask;
use crate::error::{Error, Result};
use crate::params::DType;

/// What a reduction computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceKind {
    /// Σ x
    Sum,
    /// Σ x²
    SumOfSquares,
}

/// What is taken of a sequence's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeKind {
    /// Σ x
    Sum,
    /// The largest x
    Max,
}

/// What a reduction runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Everything, of all inputs together: gives `[1]`.
    All,
    /// Rows: `[R, F]` gives `[F]`.
    Rows,
    /// Columns: `[R, F]` gives `[R, 1]`.
    Columns,
}

/// An operation. R stands for any outermost size: packed rows N, sequences B, or a number.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Op {
    /// One LSTM layer, its direction or both, over all timesteps; positions in [`super::lstm::forward`].
    Lstm(LstmOp),
    /// Gate gradients of one LSTM layer, back through time; positions in [`super::lstm::backward`].
    LstmBackward(LstmOp),
    /// dx `[N, I]`, the sum over directions of dgates W_ih, from dgates `[N, D·4H]` and each W_ih `[4H, I]`; without
    /// weights dgates in the order of rows, `[N, D·4H]` of blocks i f g o.
    LstmInputGradient {
        /// D.
        directions: usize,
    },
    /// A parameter's gradient, from what [`LstmPart`] says.
    LstmWeightGradient {
        /// Which parameter.
        part: LstmPart,
        /// Of which direction.
        direction: usize,
        /// The layer.
        lstm: LstmOp,
    },
    /// x `[R, I]`, W `[O, I]`, b `[O]` (optional) give x Wᵀ + b `[R, O]`.
    Linear,
    /// a `[R, K]`, b `[K, C]` give a b `[R, C]`.
    MatMul,
    /// a `[R, O]`, b `[R, I]` give aᵀ b `[O, I]`, summed over fixed chunks of 64 timesteps, last first.
    WeightGradient,
    /// table `[V, D]`, tokens `[R]` give rows of the table `[R, D]`.
    Embedding,
    /// tokens `[R]`, dy `[R, D]` give the gradient of the table `[V, D]`.
    EmbeddingBackward {
        /// V.
        rows: usize,
    },
    /// table `[V, D]`, rows `[R]`, x `[R, D]` give the table with those rows replaced by those of x `[V, D]`. No row is named
    /// twice.
    Scatter,
    /// x `[R, F]`, where each value is kept with probability 1 - rate and divided by it, else zero (Srivastava et al.
    /// 2014). Its own gradient.
    Dropout {
        /// The probability of zero, in [0, 1).
        rate: f32,
        /// The operation's number among the random operations of its model.
        operation: u32,
        /// Whether rows of one sequence share a mask.
        mask: Mask,
    },
    /// Each output's expression over broadcast inputs; outputs have the largest input's shape.
    Elementwise {
        /// One expression an output.
        exprs: Vec<Expr>,
    },
    /// A sum; over everything it takes any number of inputs.
    Reduce {
        /// What is summed.
        kind: ReduceKind,
        /// Over what.
        over: Over,
    },
    /// logits `[R, C]`, targets `[R]` give `-ln softmax(logits)[target]` `[R]`, 1 where the target counts `[R]`, and the
    /// logarithm of the sum of exponentials `[R]`.
    CrossEntropy {
        /// A target that does not count.
        ignore: Option<u32>,
    },
    /// logits `[R, C]`, targets `[R]`, log-sum-exp `[R]`, dloss `[R]` give the gradient of the logits `[R, C]`.
    CrossEntropyBackward {
        /// A target that does not count.
        ignore: Option<u32>,
    },
    /// x `[R, C]` gives the column of each row's largest value, the first of equals `[R]`.
    ArgMax,
    /// x `[R, C]` gives e^x over the row's sum of them `[R, C]`.
    Softmax,
    /// x `[N, F]` of a time axis gives each sequence's sum or largest value over its steps `[B, F]`; zero for no step.
    OverTime {
        /// The sum, or the largest.
        kind: TimeKind,
    },
    /// Rows of x taken from other places.
    Gather(Gather),
    /// Each step of one sequence sees those of another; positions in [`super::attention::forward`].
    Attention(AttentionOp),
    /// A gradient of attention; positions in [`super::attention::backward`].
    AttentionBackward {
        /// The attention.
        attention: AttentionOp,
        /// Whose gradient.
        part: AttentionPart,
    },
    /// A ring with what a run reads in it; positions in [`super::memory::remember`].
    Remember(MemoryOp),
    /// Sums over the places of a ring that each step sees; positions in [`super::memory::recall`].
    Recall(MemoryOp),
    /// A gradient of these sums.
    RecallBackward {
        /// The memory.
        memory: MemoryOp,
        /// Whose gradient.
        part: MemoryPart,
    },
    /// The share of each place of a ring in the sum over those that a step sees.
    RecallPlaces(MemoryOp),
    /// What the shares of a ring's places come to for each token; positions in [`super::memory::by_token`].
    RecallTokens {
        /// The memory.
        memory: MemoryOp,
        /// V.
        vocabulary: usize,
    },
    /// Values `[R, F]` side by side `[R, ΣF]`.
    Concat,
    /// Columns `first..first + count` of x `[R, F]`.
    Slice {
        /// The first column.
        first: usize,
        /// How many.
        count: usize,
    },
    /// x `[R, F]` with columns of zeros before and after.
    Pad {
        /// Columns before.
        before: usize,
        /// Columns after.
        after: usize,
    },
    /// The same values under another shape with the same outermost size and values a row.
    View {
        /// The new shape.
        shape: Shape,
    },
}

/// What is known of an output before it is added.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputSpec {
    /// Its role, for names.
    pub role: &'static str,
    /// Its shape.
    pub shape: Shape,
    /// Its element type.
    pub dtype: DType,
    /// How it may be stored.
    pub layout: Layout,
}

pub(super) fn float(role: &'static str, shape: impl Into<Shape>) -> OutputSpec {
    OutputSpec { role, shape: shape.into(), dtype: DType::F32, layout: Layout::Rows }
}

/// How an input of an elementwise operation spreads over the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Broadcast {
    /// The output's own shape.
    Full,
    /// `[F]`: the same for every row.
    Row,
    /// `[R, 1]`: the same for every column.
    Column,
    /// `[1]`: the same everywhere.
    Scalar,
}

/// How an input of shape `input` spreads over `output`, if it does.
pub fn broadcast(output: &Shape, input: &Shape) -> Option<Broadcast> {
    if output == input {
        return Some(Broadcast::Full);
    }
    if input.is_scalar() {
        return Some(Broadcast::Scalar);
    }
    if output.rank() < 2 {
        return None;
    }
    if input.0 == output.0[1..] {
        return Some(Broadcast::Row);
    }
    let column = input.rank() == 2 && input.0[0] == output.0[0] && input.0[1] == Dim::Fixed(1);
    column.then_some(Broadcast::Column)
}

pub(super) struct Inputs<'a>(&'a [Option<&'a ValueInfo>]);

impl<'a> Inputs<'a> {
    pub(super) fn get(&self, at: usize, role: &str) -> Result<&'a ValueInfo> {
        self.maybe(at).ok_or_else(|| Error::argument(format!("input {at} ({role}) is missing")))
    }

    pub(super) fn maybe(&self, at: usize) -> Option<&'a ValueInfo> {
        self.0.get(at).copied().flatten()
    }

    /// Checks type, rank and storage, and gives the shape.
    pub(super) fn rank(&self, at: usize, role: &str, rank: usize, dtype: DType) -> Result<&'a Shape> {
        let info = self.get(at, role)?;
        if info.dtype != dtype {
            return Err(Error::shape(format!("{role} `{}`: expected {dtype:?}, got {:?}", info.name, info.dtype)));
        }
        if info.layout != Layout::Rows {
            return Err(Error::argument(format!("{role} `{}` can be read by LSTM operations only", info.name)));
        }
        if info.shape.rank() != rank {
            return Err(Error::shape(format!(
                "{role} `{}`: expected {rank} dimensions, got shape {}",
                info.name, info.shape
            )));
        }
        Ok(&info.shape)
    }

    /// A float matrix with a known number of columns: its rows and columns.
    pub(super) fn matrix(&self, at: usize, role: &str) -> Result<(&'a Dim, usize)> {
        let shape = self.rank(at, role, 2, DType::F32)?;
        match (&shape.0[0], &shape.0[1]) {
            (rows, Dim::Fixed(columns)) => Ok((rows, *columns)),
            _ => Err(Error::shape(format!("{role}: the columns of {shape} must be a number"))),
        }
    }

    pub(super) fn exact(&self, at: usize, role: &str, wanted: impl Into<Shape>) -> Result<()> {
        let wanted = wanted.into();
        let info = self.get(at, role)?;
        if info.shape != wanted || info.dtype != DType::F32 {
            return Err(Error::shape(format!(
                "{role} `{}`: expected floats of shape {wanted}, got {:?} of {}",
                info.name, info.dtype, info.shape
            )));
        }
        Ok(())
    }

    pub(super) fn exact_if(&self, at: usize, role: &str, wanted: impl Into<Shape>) -> Result<()> {
        if self.maybe(at).is_some() { self.exact(at, role, wanted) } else { Ok(()) }
    }

    /// Gates or their gradients: rows and columns.
    pub(super) fn gates(&self, at: usize) -> Result<(&'a Dim, usize)> {
        let info = self.get(at, "gates")?;
        match info.shape.0.as_slice() {
            [rows, Dim::Fixed(columns)] if info.layout == Layout::Gates => Ok((rows, *columns)),
            _ => Err(Error::argument(format!("`{}` does not hold the gates of an LSTM", info.name))),
        }
    }
}

impl Op {
    /// Its name in messages and value names.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Lstm(_) => "lstm",
            Op::LstmBackward(_) => "lstm_backward",
            Op::LstmInputGradient { .. } => "lstm_input_gradient",
            Op::LstmWeightGradient { .. } => "lstm_weight_gradient",
            Op::Linear => "linear",
            Op::MatMul => "matmul",
            Op::WeightGradient => "weight_gradient",
            Op::Embedding => "embedding",
            Op::EmbeddingBackward { .. } => "embedding_backward",
            Op::Scatter => "scatter",
            Op::Dropout { .. } => "dropout",
            Op::Elementwise { .. } => "elementwise",
            Op::Reduce { .. } => "reduce",
            Op::CrossEntropy { .. } => "cross_entropy",
            Op::CrossEntropyBackward { .. } => "cross_entropy_backward",
            Op::ArgMax => "argmax",
            Op::Softmax => "softmax",
            Op::OverTime { .. } => "over_time",
            Op::Gather(_) => "gather",
            Op::Attention(_) => "attention",
            Op::AttentionBackward { .. } => "attention_backward",
            Op::Remember(_) => "remember",
            Op::Recall(_) => "recall",
            Op::RecallBackward { .. } => "recall_backward",
            Op::RecallPlaces(_) => "recall_places",
            Op::RecallTokens { .. } => "recall_tokens",
            Op::Concat => "concat",
            Op::Slice { .. } => "slice",
            Op::Pad { .. } => "pad",
            Op::View { .. } => "view",
        }
    }

    /// The outputs that follow from `inputs`, or what does not fit.
    pub fn infer(&self, inputs: &[Option<&ValueInfo>]) -> Result<Vec<OutputSpec>> {
        let i = Inputs(inputs);
        match self {
            Op::Lstm(op) => lstm::infer_lstm(&i, op),
            Op::LstmBackward(op) => lstm::infer_lstm_backward(&i, op),
            Op::LstmInputGradient { directions } => lstm::infer_input_gradient(&i, inputs, *directions),
            Op::LstmWeightGradient { part, direction, lstm } => {
                lstm::infer_weight_gradient(&i, *part, lstm, *direction)
            }
            Op::Linear => {
                let (rows, input) = i.matrix(0, "x")?;
                let (out, columns) = i.matrix(1, "weight")?;
                if columns != input {
                    return Err(Error::shape(format!("x has {input} features, weight takes {columns}")));
                }
                i.exact_if(2, "bias", [out.clone()])?;
                Ok(vec![float("y", [rows.clone(), out.clone()])])
            }
            Op::MatMul => {
                let (rows, inner) = i.matrix(0, "a")?;
                let (k, columns) = i.matrix(1, "b")?;
                if *k != Dim::Fixed(inner) {
                    return Err(Error::shape(format!("a has {inner} columns, b has {k} rows")));
                }
                Ok(vec![float("c", [rows.clone(), columns.into()])])
            }
            Op::WeightGradient => {
                let (rows, out) = i.matrix(0, "a")?;
                let (other, input) = i.matrix(1, "b")?;
                if rows != other {
                    return Err(Error::shape(format!("a has {rows} rows, b has {other}")));
                }
                Ok(vec![float("dw", [out, input])])
            }
            Op::Embedding => {
                let (_, columns) = i.matrix(0, "table")?;
                let tokens = i.rank(1, "tokens", 1, DType::U32)?;
                Ok(vec![float("y", [tokens.0[0].clone(), columns.into()])])
            }
            Op::EmbeddingBackward { rows } => {
                let tokens = i.rank(0, "tokens", 1, DType::U32)?;
                let (other, columns) = i.matrix(1, "dy")?;
                if tokens.0[0] != *other {
                    return Err(Error::shape(format!("dy has {other} rows, there are {} tokens", tokens.0[0])));
                }
                Ok(vec![float("dtable", [*rows, columns])])
            }
            Op::Scatter => {
                let (_, columns) = i.matrix(0, "table")?;
                let rows = i.rank(1, "rows", 1, DType::U32)?;
                i.exact(2, "x", [rows.0[0].clone(), columns.into()])?;
                Ok(vec![float("table", i.get(0, "table")?.shape.clone())])
            }
            Op::Dropout { rate, .. } => {
                if !(0.0..1.0).contains(rate) {
                    return Err(Error::argument(format!("rate must be in [0, 1), got {rate}")));
                }
                let (rows, columns) = i.matrix(0, "x")?;
                Ok(vec![float("y", [rows.clone(), columns.into()])])
            }
            Op::Elementwise { exprs } => infer_elementwise(&i, exprs),
            Op::Reduce { over, .. } => infer_reduce(&i, *over),
            Op::CrossEntropy { .. } => {
                let rows = infer_targets(&i)?;
                let row = |role| float(role, [rows.clone()]);
                Ok(vec![row("loss"), row("counts"), row("log_sum_exp")])
            }
            Op::CrossEntropyBackward { .. } => {
                let rows = infer_targets(&i)?;
                i.exact(2, "log_sum_exp", [rows.clone()])?;
                i.exact(3, "dloss", [rows.clone()])?;
                Ok(vec![float("dlogits", i.get(0, "logits")?.shape.clone())])
            }
            Op::ArgMax => {
                let (rows, _) = i.matrix(0, "x")?;
                let shape = Shape::from([rows.clone()]);
                Ok(vec![OutputSpec { role: "column", shape, dtype: DType::U32, layout: Layout::Rows }])
            }
            Op::Softmax => {
                let (rows, columns) = i.matrix(0, "x")?;
                Ok(vec![float("y", [rows.clone(), columns.into()])])
            }
            Op::OverTime { .. } => {
                let (rows, columns) = i.matrix(0, "x")?;
                if !matches!(rows, Dim::Symbol(Symbol::Rows(_))) {
                    return Err(Error::shape(format!("x must have the rows of a time axis (N), got {rows}")));
                }
                Ok(vec![float("y", [B, columns.into()])])
            }
            Op::Gather(gather) => gather::infer(&i, gather),
            Op::Attention(op) => attention::infer(&i, op),
            Op::AttentionBackward { attention, part } => attention::infer_backward(&i, attention, *part),
            Op::Remember(op) => memory::infer_remember(&i, op),
            Op::Recall(op) => memory::infer_recall(&i, op),
            Op::RecallBackward { memory, .. } => memory::infer_backward(&i, memory),
            Op::RecallPlaces(op) => memory::infer_places(&i, op),
            Op::RecallTokens { memory, vocabulary } => memory::infer_tokens(&i, memory, *vocabulary),
            Op::Concat => {
                let (rows, mut total) = i.matrix(0, "x")?;
                for at in 1..inputs.len() {
                    let (other, columns) = i.matrix(at, "x")?;
                    if other != rows {
                        return Err(Error::shape(format!("input {at}: expected {rows} rows, got {other}")));
                    }
                    total += columns;
                }
                Ok(vec![float("y", [rows.clone(), total.into()])])
            }
            Op::Slice { first, count } => {
                let (rows, columns) = i.matrix(0, "x")?;
                if *count == 0 || first.checked_add(*count).is_none_or(|end| end > columns) {
                    return Err(Error::shape(format!("columns {first} and {count} on are not among {columns}")));
                }
                Ok(vec![float("y", [rows.clone(), (*count).into()])])
            }
            Op::Pad { before, after } => {
                let (rows, columns) = i.matrix(0, "x")?;
                Ok(vec![float("y", [rows.clone(), (before + columns + after).into()])])
            }
            Op::View { shape } => {
                let info = i.get(0, "x")?;
                let same_rows = info.shape.rows() == shape.rows() && info.shape.row_len() == shape.row_len();
                let same_len = info.shape.fixed_len().is_some() && info.shape.fixed_len() == shape.fixed_len();
                if !(same_len || same_rows && shape.row_len().is_some()) {
                    return Err(Error::shape(format!("{} cannot be seen as {shape}", info.shape)));
                }
                if info.layout != Layout::Rows {
                    return Err(Error::argument(format!("`{}` can be read by LSTM operations only", info.name)));
                }
                Ok(vec![OutputSpec { role: "y", shape: shape.clone(), dtype: info.dtype, layout: Layout::Rows }])
            }
        }
    }
}

fn infer_elementwise(i: &Inputs<'_>, exprs: &[Expr]) -> Result<Vec<OutputSpec>> {
    let mut shape: Option<&Shape> = None;
    for at in 0..i.0.len() {
        let info = i.get(at, "operand")?;
        if info.dtype != DType::F32 || info.layout != Layout::Rows {
            return Err(Error::shape(format!("operand `{}` must hold floats stored by rows", info.name)));
        }
        let larger = shape.is_none_or(|s| broadcast(s, &info.shape).is_none());
        if larger {
            shape = Some(&info.shape);
        }
    }
    let shape = shape.ok_or_else(|| Error::argument("there is no input"))?;
    for info in i.0.iter().flatten() {
        if broadcast(shape, &info.shape).is_none() {
            return Err(Error::shape(format!("`{}` of {} does not spread over {shape}", info.name, info.shape)));
        }
    }
    let mut largest = None;
    exprs.iter().for_each(|e| {
        e.visit(&mut |e| {
            if let Expr::Input(n) = e {
                largest = largest.max(Some(*n));
            }
        });
    });
    if largest.is_some_and(|n| n >= i.0.len()) {
        return Err(Error::argument(format!("an expression reads input {largest:?} of {}", i.0.len())));
    }
    Ok(exprs.iter().map(|_| float("y", shape.clone())).collect())
}

fn infer_reduce(i: &Inputs<'_>, over: Over) -> Result<Vec<OutputSpec>> {
    for at in 0..i.0.len().max(1) {
        let info = i.get(at, "x")?;
        if info.dtype != DType::F32 || info.layout != Layout::Rows {
            return Err(Error::shape(format!("x `{}` must hold floats stored by rows", info.name)));
        }
    }
    if over == Over::All {
        return Ok(vec![float("sum", [1usize])]);
    }
    if i.0.len() != 1 {
        return Err(Error::argument("over rows or columns takes one input"));
    }
    let (rows, columns) = i.matrix(0, "x")?;
    Ok(vec![match over {
        Over::Columns => float("sum", [rows.clone(), Dim::Fixed(1)]),
        _ => float("sum", [columns]),
    }])
}

fn infer_targets(i: &Inputs<'_>) -> Result<Dim> {
    let (rows, _) = i.matrix(0, "logits")?;
    let targets = i.rank(1, "targets", 1, DType::U32)?;
    if targets.0[0] != *rows {
        return Err(Error::shape(format!("logits have {rows} rows, there are {} targets", targets.0[0])));
    }
    Ok(rows.clone())
}
