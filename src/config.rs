//! What an LSTM is: its sizes and options, validated once.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Gate blocks inside the `4H` rows of every weight and bias, PyTorch's order.
pub const GATE_I: usize = 0;
/// The forget gate.
pub const GATE_F: usize = 1;
/// The cell candidate, by `tanh`.
pub const GATE_G: usize = 2;
/// The output gate.
pub const GATE_O: usize = 3;
/// The number of gates.
pub const GATES: usize = 4;
/// Peephole weights of a layer: from the cell to i, f and o, in this order.
pub const PEEPHOLES: usize = 3;

/// How many bias vectors a layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// No bias.
    None,
    /// One vector (Keras).
    One,
    /// An input and a recurrent vector, which add (PyTorch).
    #[default]
    Two,
}

/// Which way a layer reads its sequences. Outputs are in the original order of time either way, as ONNX has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the first step to the last.
    #[default]
    Forward,
    /// From each sequence's own last step to its first.
    Reverse,
    /// Both, with parameters of their own; outputs side by side, forward first.
    Both,
}

impl Direction {
    /// D, 1 or 2.
    pub fn count(self) -> usize {
        if self == Self::Both { 2 } else { 1 }
    }

    /// Whether direction number `d` runs back in time.
    pub fn reversed(self, d: usize) -> bool {
        self == Self::Reverse || d == 1
    }
}

/// A function of each element. The eleven that ONNX's LSTM knows, with their alpha and beta, and some of Keras's.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x
    #[default]
    Linear,
    /// tanh x
    Tanh,
    /// 1/(1+e^-x)
    Sigmoid,
    /// max(x, 0)
    Relu,
    /// alpha x + beta
    Affine {
        /// The factor.
        alpha: f32,
        /// The term.
        beta: f32,
    },
    /// x where it is positive, else alpha x
    LeakyRelu {
        /// The slope below zero.
        alpha: f32,
    },
    /// x where it is above alpha, else 0
    ThresholdedRelu {
        /// The threshold.
        alpha: f32,
    },
    /// alpha tanh(beta x)
    ScaledTanh {
        /// The outer factor.
        alpha: f32,
        /// The inner factor.
        beta: f32,
    },
    /// alpha x + beta, kept in [0, 1]
    HardSigmoid {
        /// The slope.
        alpha: f32,
        /// The value at zero.
        beta: f32,
    },
    /// x where it is positive, else alpha (e^x - 1)
    Elu {
        /// The limit below, with its sign changed.
        alpha: f32,
    },
    /// x/(1+|x|)
    Softsign,
    /// ln(1+e^x)
    Softplus,
    /// 1.0507 times the elu of alpha 1.67326 (Klambauer et al. 2017)
    Selu,
    /// x/(1+e^-x)
    Swish,
    /// e^x
    Exponential,
    /// e^x over the sum of each row's; a layer's own, not a gate's
    Softmax,
}

/// The form of an [`Activation`]; alpha and beta are its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Curve {
    /// alpha x + beta
    Affine = 0,
    /// x > 0 ? x : alpha x
    Leaky = 1,
    /// x > alpha ? x : 0
    Thresholded = 2,
    /// alpha tanh(beta x)
    Tanh = 3,
    /// alpha x + beta in [0, 1]
    HardSigmoid = 4,
    /// beta (x > 0 ? x : alpha (e^x - 1))
    Elu = 5,
    /// x/(1+|x|)
    Softsign = 6,
    /// ln(1+e^x)
    Softplus = 7,
    /// 1/(1+e^-x)
    Sigmoid = 8,
    /// x/(1+e^-x)
    Swish = 9,
    /// e^x
    Exponential = 10,
}

impl Activation {
    /// Its form with alpha and beta; what has no parameter gets those of the form that it is a case of. A softmax is no
    /// function of one element, and [`Cell::validate`] refuses it; as a curve it would be the identity.
    pub fn curve(self) -> (Curve, f32, f32) {
        match self {
            Self::Softmax => (Curve::Affine, 1.0, 0.0),
            Self::Linear => (Curve::Affine, 1.0, 0.0),
            Self::Affine { alpha, beta } => (Curve::Affine, alpha, beta),
            Self::Relu => (Curve::Leaky, 0.0, 0.0),
            Self::LeakyRelu { alpha } => (Curve::Leaky, alpha, 0.0),
            Self::ThresholdedRelu { alpha } => (Curve::Thresholded, alpha, 0.0),
            Self::Tanh => (Curve::Tanh, 1.0, 1.0),
            Self::ScaledTanh { alpha, beta } => (Curve::Tanh, alpha, beta),
            Self::HardSigmoid { alpha, beta } => (Curve::HardSigmoid, alpha, beta),
            Self::Elu { alpha } => (Curve::Elu, alpha, 1.0),
            Self::Selu => (Curve::Elu, 1.673_263_2, 1.050_701),
            Self::Softsign => (Curve::Softsign, 0.0, 0.0),
            Self::Softplus => (Curve::Softplus, 0.0, 0.0),
            Self::Sigmoid => (Curve::Sigmoid, 0.0, 0.0),
            Self::Swish => (Curve::Swish, 0.0, 0.0),
            Self::Exponential => (Curve::Exponential, 0.0, 0.0),
        }
    }

    /// Refuses parameters that are not finite.
    pub fn validate(self) -> Result<()> {
        let (_, alpha, beta) = self.curve();
        if alpha.is_finite() && beta.is_finite() {
            return Ok(());
        }
        Err(Error::argument(format!("activation: parameters must be finite, got {self:?}")))
    }
}

/// Whether a random mask is drawn once for a sequence or for each of its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mask {
    /// One mask for all steps (Gal and Ghahramani 2016; Keras).
    #[default]
    Sequence,
    /// A mask a step.
    Step,
}

/// What one step computes besides the plain LSTM of [`LstmConfig`]; the default is that one.
///
/// With m a mask of recurrent dropout, z zoneout's masks (their probability at inference), p peepholes, σ the gates'
/// activation, φ the candidate's and ψ the output's:
///
/// ```text
/// r = U (m h_{t-1})               with layer_norm: (r - mean) / √(variance + epsilon) · gain
/// i = σ(clip(Wx + b + r + p_i c_{t-1}))      f likewise with p_f, or 1 - i if coupled      g = φ(clip(...))
/// c̃ = f c_{t-1} + i g             kept in ±cell_clip
/// c_t = z_c c_{t-1} + (1 - z_c) c̃
/// o = σ(clip(Wx + b + r + p_o c_t))
/// h̃ = o ψ(c̃)                      with layer_norm: ψ((c̃ - mean) / √(variance + epsilon) · gain + bias)
/// h_t = z_h h_{t-1} + (1 - z_h) h̃   with a projection of h̃ before zoneout
/// ```
///
/// Peepholes: Gers et al. 2002. Layer normalisation: Ba et al. 2016. Zoneout: Krueger et al. 2017. Going back in time,
/// each element of the gradient that arrives at h_{t-1} from step t is kept in ±gradient_clip.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cell {
    /// σ, of the gates i, f and o.
    pub gate: Activation,
    /// φ, of the candidate g.
    pub candidate: Activation,
    /// ψ, of the cell where it gives h.
    pub output: Activation,
    /// Pre-activations are kept in ± this (ONNX's `clip`).
    pub clip: Option<f32>,
    /// The cell is kept in ± this.
    pub cell_clip: Option<f32>,
    /// The gradient that arrives at h from the next step is kept in ± this, element by element.
    pub gradient_clip: Option<f32>,
    /// f = 1 - i (ONNX's `input_forget`); the forget gate's own parameters have no effect.
    pub coupled: bool,
    /// Whether gates see the cell.
    pub peepholes: bool,
    /// Layer normalisation of the recurrent product and of the cell, with this epsilon.
    pub layer_norm: Option<f32>,
    /// The probability with which an element of h_{t-1} is dropped before it meets U, in [0, 1).
    pub recurrent_dropout: f32,
    /// How often its mask is drawn.
    pub recurrent_mask: Mask,
    /// The probability with which an element of h keeps its last value, in [0, 1].
    pub zoneout_h: f32,
    /// The same for c.
    pub zoneout_c: f32,
}

impl Default for Cell {
    fn default() -> Self {
        Self {
            gate: Activation::Sigmoid,
            candidate: Activation::Tanh,
            output: Activation::Tanh,
            clip: None,
            cell_clip: None,
            gradient_clip: None,
            coupled: false,
            peepholes: false,
            layer_norm: None,
            recurrent_dropout: 0.0,
            recurrent_mask: Mask::Sequence,
            zoneout_h: 0.0,
            zoneout_c: 0.0,
        }
    }
}

impl Cell {
    /// Whether the activated gates say all that their gradients need, so that they are what is saved; otherwise the
    /// pre-activations are.
    pub fn saves_activated(&self) -> bool {
        self.gate == Activation::Sigmoid && self.candidate == Activation::Tanh && self.clip.is_none()
    }

    /// Refuses what means nothing.
    pub fn validate(&self) -> Result<()> {
        let all = [self.gate, self.candidate, self.output];
        all.into_iter().try_for_each(Activation::validate)?;
        if all.contains(&Activation::Softmax) {
            return Err(Error::argument("lstm: softmax is no function of one gate"));
        }
        for (name, limit) in [("clip", self.clip), ("cell_clip", self.cell_clip), ("gradient_clip", self.gradient_clip)]
        {
            if limit.is_some_and(|l| !(l > 0.0 && l.is_finite())) {
                return Err(Error::argument(format!("lstm: {name} must be positive, got {limit:?}")));
            }
        }
        if self.layer_norm.is_some_and(|e| !(e > 0.0 && e.is_finite())) {
            return Err(Error::argument(format!(
                "lstm: layer_norm must be a positive epsilon, got {:?}",
                self.layer_norm
            )));
        }
        if !(0.0..1.0).contains(&self.recurrent_dropout) {
            return Err(Error::argument(format!(
                "lstm: recurrent_dropout must be in [0, 1), got {}",
                self.recurrent_dropout
            )));
        }
        for (name, rate) in [("zoneout_h", self.zoneout_h), ("zoneout_c", self.zoneout_c)] {
            if !(0.0..=1.0).contains(&rate) {
                return Err(Error::argument(format!("lstm: {name} must be in [0, 1], got {rate}")));
            }
        }
        Ok(())
    }
}

/// A stack of LSTM layers, with PyTorch's defaults.
///
/// Per layer and timestep, from x_t `[B, I]` and h_{t-1}, c_{t-1} `[B, H]`
/// (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000):
///
/// ```text
/// i, f, o = sigmoid(W x_t + b + U h_{t-1})    g = tanh(...)      blocks of H rows each, in the order i f g o
/// c_t = f * c_{t-1} + i * g
/// h_t = o * tanh(c_t)
/// ```
///
/// With a projection h_t is `[B, P]`, W_hr times the h_t above (Sak et al. 2014).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LstmConfig {
    /// I, features of the input of the first layer.
    pub input_size: usize,
    /// H, units of each layer.
    pub hidden_size: usize,
    /// L, stacked layers.
    pub num_layers: usize,
    /// Bias vectors of each layer.
    pub bias: Bias,
    /// Which way each layer reads.
    #[serde(default)]
    pub direction: Direction,
    /// P, the size of h where it is projected.
    #[serde(default)]
    pub projection: Option<usize>,
    /// What one step computes besides.
    #[serde(default)]
    pub cell: Cell,
}

impl LstmConfig {
    /// One layer with two biases.
    pub fn new(input_size: usize, hidden_size: usize) -> Self {
        Self {
            input_size,
            hidden_size,
            num_layers: 1,
            bias: Bias::Two,
            direction: Direction::Forward,
            projection: None,
            cell: Cell::default(),
        }
    }

    /// Sets L.
    #[must_use]
    pub fn layers(mut self, num_layers: usize) -> Self {
        self.num_layers = num_layers;
        self
    }

    /// Sets the bias vectors.
    #[must_use]
    pub fn bias(mut self, bias: Bias) -> Self {
        self.bias = bias;
        self
    }

    /// Sets which way each layer reads.
    #[must_use]
    pub fn direction(mut self, direction: Direction) -> Self {
        self.direction = direction;
        self
    }

    /// Sets P, or no projection.
    #[must_use]
    pub fn projection(mut self, projection: Option<usize>) -> Self {
        self.projection = projection;
        self
    }

    /// Sets what one step computes besides.
    #[must_use]
    pub fn cell(mut self, cell: Cell) -> Self {
        self.cell = cell;
        self
    }

    /// R, the size of one direction's h: P if h is projected, else H.
    pub fn output_size(&self) -> usize {
        self.projection.unwrap_or(self.hidden_size)
    }

    /// Input features of layer `layer`: I for the first, D·R above.
    pub fn layer_input(&self, layer: usize) -> usize {
        if layer == 0 { self.input_size } else { self.direction.count() * self.output_size() }
    }

    /// Refuses sizes that mean nothing or whose weights cannot be counted in 32 bits.
    pub fn validate(&self) -> Result<()> {
        for (name, size) in [
            ("input_size", self.input_size),
            ("hidden_size", self.hidden_size),
            ("num_layers", self.num_layers),
            ("projection", self.output_size()),
        ] {
            if size == 0 {
                return Err(Error::argument(format!("lstm: {name} must be at least 1, got 0")));
            }
        }
        if self.projection.is_some_and(|p| p >= self.hidden_size) {
            return Err(Error::argument(format!(
                "lstm: a projection must be smaller than hidden_size {}, got {}",
                self.hidden_size,
                self.output_size()
            )));
        }
        let widest = self.input_size.max(self.hidden_size.saturating_mul(2));
        if self.hidden_size.checked_mul(GATES).and_then(|g| g.checked_mul(widest)).is_none_or(|n| n > u32::MAX as usize)
        {
            return Err(Error::shape(format!(
                "lstm: weights of {} x {widest} values exceed 2^32 - 1",
                self.hidden_size.saturating_mul(GATES)
            )));
        }
        self.cell.validate()
    }
}
