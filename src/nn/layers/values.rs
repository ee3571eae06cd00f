//! Layers of a graph that other programs wrote: parts of rows, steps by number, formulas of the elements.

use super::super::Signal;
use super::super::axes::Axes;
use super::steps::forward_sequence;
use crate::error::{Error, Result};
use crate::graph::Expr;
use crate::params::{Initializer, ParameterSpec, Rules};
use serde::{Deserialize, Serialize};

/// One value at the steps of another, which is read for its steps alone: a row `[B, F]` is there at each step
/// `[B, T, F]`; a sequence `[B, S, F]` keeps its steps, less those past the other's end, and is zero past its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Along {}

/// Some of the features: `first..first + count` of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Columns {
    /// The first.
    pub first: usize,
    /// How many.
    pub count: usize,
}

/// One step of each sequence: `[B, T, F]` gives `[B, F]`, zero where a sequence has no such step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its number; -1 is the last, -2 the one before it.
    pub at: i64,
}

/// The sum or the mean of the features: `[.., F]` gives `[.., 1]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureSum {
    /// Whether it is the mean.
    pub mean: bool,
}

/// e^x over the sum of it at all steps of the sequence, feature by feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TimeSoftmax {}

/// The steps of each sequence from its last to its first. Nothing is moved: what follows reads back in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Flip {}

/// x less the logarithm of the sum of e^x over the features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogSoftmax {}

/// A function of up to three operands, element by element. What is true is 1, what is not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Function {
    /// a + b
    Add,
    /// a - b
    Subtract,
    /// a b
    Multiply,
    /// a / b
    Divide,
    /// the larger
    Maximum,
    /// the smaller
    Minimum,
    /// a to a power that is a number
    Power,
    /// -a
    Negate,
    /// e^a
    Exponential,
    /// ln a
    Logarithm,
    /// √a
    SquareRoot,
    /// |a|
    Absolute,
    /// -1, 0 or 1
    Sign,
    /// 1/a
    Reciprocal,
    /// 2/√π ∫₀ᵃ e^-t² dt, to 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26)
    Erf,
    /// a < b
    Less,
    /// a > b
    Greater,
    /// a = b
    Equal,
    /// not a
    Not,
    /// a and b
    And,
    /// a or b
    Or,
    /// b where a, else c
    Where,
}

/// What a [`Formula`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operand {
    /// An input of the layer, by number.
    Input(usize),
    /// A number.
    Number(f32),
    /// A parameter, by number, with a value for each feature.
    Vector(usize),
}

/// A function of inputs, numbers and parameters with a value for each feature. Inputs have the output's features, or one
/// for all of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Formula {
    /// The function.
    pub function: Function,
    /// What it is of.
    pub operands: Vec<Operand>,
}

impl Function {
    /// How many operands it has.
    pub fn operands(self) -> usize {
        match self {
            Self::Negate | Self::Exponential | Self::Logarithm | Self::SquareRoot | Self::Absolute | Self::Sign => 1,
            Self::Reciprocal | Self::Erf | Self::Not => 1,
            Self::Where => 3,
            _ => 2,
        }
    }

    /// Its expression over `operands`, as many as it has.
    fn expr(self, operands: &[Expr]) -> Result<Expr> {
        let get = |at: usize| operands.get(at).cloned().unwrap_or(Expr::Const(0.0));
        let (a, b) = (get(0), get(1));
        let (zero, one) = (|| Expr::Const(0.0), || Expr::Const(1.0));
        let equal = |a: Expr, b: Expr| (one() - a.clone().less(b.clone())) - b.less(a);
        Ok(match self {
            Self::Add => a + b,
            Self::Subtract => a - b,
            Self::Multiply => a * b,
            Self::Divide => a / b,
            Self::Maximum => a.max(b),
            Self::Minimum => a.min(b),
            Self::Power => power(&a, &b)?,
            Self::Negate => -a,
            Self::Exponential => a.exp(),
            Self::Logarithm => a.ln(),
            Self::SquareRoot => a.sqrt(),
            Self::Absolute => a.abs(),
            Self::Sign => a.sign(),
            Self::Reciprocal => one() / a,
            Self::Erf => erf(&a),
            Self::Less => a.less(b),
            Self::Greater => b.less(a),
            Self::Equal => equal(a, b),
            Self::Not => one() - a,
            Self::And => a * b,
            Self::Or => a.max(b),
            // Neither is multiplied, so that the other may be anything.
            Self::Where => equal(a, zero()).select(get(2), b),
        })
    }
}

/// The largest whole power that is a product.
const POWERS: i32 = 16;

fn power(a: &Expr, b: &Expr) -> Result<Expr> {
    let Expr::Const(exponent) = *b else {
        return Err(Error::unsupported("a power that is not a number of the model"));
    };
    let whole = exponent as i32;
    Ok(match exponent {
        0.0 => Expr::Const(1.0),
        0.5 => a.clone().sqrt(),
        -0.5 => Expr::Const(1.0) / a.clone().sqrt(),
        _ if exponent == whole as f32 && whole.abs() <= POWERS => {
            let product = (1..whole.abs()).fold(a.clone(), |product, _| product * a.clone());
            if whole > 0 { product } else { Expr::Const(1.0) / product }
        }
        _ => (a.clone().ln() * Expr::Const(exponent)).exp(),
    })
}

fn erf(a: &Expr) -> Expr {
    let one = || Expr::Const(1.0);
    let t = one() / (one() + Expr::Const(0.327_591_1) * a.clone().abs());
    let terms = [1.061_405_4, -1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];
    let sum = terms.into_iter().fold(Expr::Const(0.0), |sum, term| (sum + Expr::Const(term)) * t.clone());
    a.clone().sign() * (one() - sum * (-(a.clone() * a.clone())).exp())
}

impl Along {
    pub(super) fn output(self, inputs: &[Signal]) -> Result<Signal> {
        let [x, like] = inputs else {
            return Err(Error::shape(format!("expected a value and a sequence, got {} inputs", inputs.len())));
        };
        let Some(axis) = like.axis().filter(|_| !like.mirrored()) else {
            return Err(Error::shape(format!("expected a sequence to go along, got {like}")));
        };
        match *x {
            Signal::Rows { features } | Signal::Sequence { features, mirrored: false, .. } => {
                Ok(Signal::Sequence { features, axis, mirrored: false })
            }
            other => Err(Error::shape(format!("expected floats in the order of time, got {other}"))),
        }
    }
}

impl Columns {
    pub(super) fn output(self, input: Signal) -> Result<Signal> {
        let features = input.features().unwrap_or(0);
        if self.count == 0 || self.first.checked_add(self.count).is_none_or(|end| end > features) {
            let Self { first, count } = self;
            return Err(Error::shape(format!("{count} features from {first} on are not among {features}")));
        }
        Ok(input.with_features(self.count))
    }
}

impl Step {
    pub(super) fn output(self, input: Signal, axes: &Axes) -> Result<Signal> {
        let (features, axis) = forward_sequence(input)?;
        let places = if self.at < 0 { self.at.unsigned_abs() } else { self.at.unsigned_abs() + 1 };
        if axes.count(axis).is_some_and(|most| places > most as u64) {
            return Err(Error::shape(format!(
                "step {} of a sequence of at most {:?} steps",
                self.at,
                axes.count(axis)
            )));
        }
        Ok(Signal::Rows { features })
    }
}

impl Formula {
    /// A function of operands.
    pub fn new(function: Function, operands: Vec<Operand>) -> Self {
        Self { function, operands }
    }

    /// The numbers of its parameters end here.
    fn vectors(&self) -> usize {
        let vector = |o: &Operand| if let Operand::Vector(n) = o { n.saturating_add(1) } else { 0 };
        self.operands.iter().map(vector).max().unwrap_or(0)
    }

    pub(super) fn validate(&self) -> Result<()> {
        let wanted = self.function.operands();
        if self.operands.len() != wanted || self.vectors() > wanted {
            return Err(Error::argument(format!("{:?} has {wanted} operands, got {:?}", self.function, self.operands)));
        }
        self.expr(1).map(|_| ())
    }

    pub(super) fn output(&self, inputs: &[Signal]) -> Result<Signal> {
        let widest = inputs.iter().max_by_key(|s| s.features().unwrap_or(0)).copied();
        let Some(widest) = widest.filter(|s| s.features().is_some()) else {
            return Err(Error::shape("expected floats, got none"));
        };
        for (at, &input) in inputs.iter().enumerate() {
            if !self.operands.contains(&Operand::Input(at)) {
                return Err(Error::argument(format!("its input {at} is no operand")));
            }
            if input != widest && input != widest.with_features(1) {
                return Err(Error::shape(format!("expected inputs alike, got {widest} and {input}")));
            }
        }
        let outside = |o: &Operand| matches!(o, Operand::Input(at) if *at >= inputs.len());
        if self.operands.iter().any(outside) {
            return Err(Error::argument(format!("{:?} of {} inputs", self.operands, inputs.len())));
        }
        Ok(widest)
    }

    /// Over `inputs` inputs, then its parameters.
    pub(in super::super) fn expr(&self, inputs: usize) -> Result<Expr> {
        let operands: Vec<Expr> = self
            .operands
            .iter()
            .map(|operand| match *operand {
                Operand::Input(at) => Expr::Input(at),
                Operand::Number(x) => Expr::Const(x),
                Operand::Vector(at) => Expr::Input(inputs + at),
            })
            .collect();
        self.function.expr(&operands)
    }

    pub(super) fn parameters(&self, name: &str, features: usize) -> Vec<ParameterSpec> {
        let spec = |at| Rules::default().spec(format!("{name}.constant_{at}"), vec![features], Initializer::Zeros);
        (0..self.vectors()).map(spec).collect()
    }
}
