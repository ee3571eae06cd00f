//! The layers, as plain data with builders.

use super::{Activation, Init};
use crate::config::{Bias, LstmConfig};
use crate::error::{Error, Result};
use crate::params::{Initializer, ParameterSpec, lstm_parameters};
use serde::{Deserialize, Serialize};

/// The largest size of a layer, so that products of sizes from a file cannot overflow.
const SIZE_LIMIT: usize = 1 << 28;

/// Rows of a table by tokens: `[B, T]` gives `[B, T, size]`. Always the first layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embedding {
    /// V, tokens that there are.
    pub vocabulary: usize,
    /// Values a token.
    pub size: usize,
    /// How the table begins.
    #[serde(default)]
    pub init: Init,
    /// The user's name.
    #[serde(default)]
    pub name: Option<String>,
}

/// One LSTM layer: `[B, T, I]` gives the last h `[B, H]`, or all of them `[B, T, H]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lstm {
    /// H.
    pub units: usize,
    /// The function of the candidate and of the cell's output; only `Tanh` so far.
    pub activation: Activation,
    /// Whether it gives h of every step.
    pub return_sequences: bool,
    /// Whether its state is carried from batch to batch.
    pub stateful: bool,
    /// Bias vectors.
    pub bias: Bias,
    /// How its parameters begin.
    #[serde(default)]
    pub init: Init,
    /// The user's name.
    #[serde(default)]
    pub name: Option<String>,
}

/// x Wᵀ + b of each row, and a function of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dense {
    /// Outputs.
    pub units: usize,
    /// The function of each output.
    pub activation: Activation,
    /// Whether there is a b.
    pub bias: bool,
    /// How its parameters begin.
    #[serde(default)]
    pub init: Init,
    /// The user's name.
    #[serde(default)]
    pub name: Option<String>,
}

/// Zeroes values with probability `rate` while training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dropout {
    /// The probability, in [0, 1).
    pub rate: f32,
}

/// A function of each element.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Activate {
    /// The function.
    pub activation: Activation,
}

/// Any layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "class", rename_all = "snake_case")]
pub enum Layer {
    /// Rows of a table.
    Embedding(Embedding),
    /// A recurrence.
    Lstm(Lstm),
    /// A product with a matrix.
    Dense(Dense),
    /// Random zeros.
    Dropout(Dropout),
    /// A function of each element.
    Activation(Activate),
}

macro_rules! layer {
    ($layer:ident, $variant:ident) => {
        impl From<$layer> for Layer {
            fn from(layer: $layer) -> Self {
                Self::$variant(layer)
            }
        }
    };
}
layer!(Embedding, Embedding);
layer!(Lstm, Lstm);
layer!(Dense, Dense);
layer!(Dropout, Dropout);
layer!(Activate, Activation);

impl From<Activation> for Layer {
    fn from(activation: Activation) -> Self {
        Activate::new(activation).into()
    }
}

macro_rules! named {
    ($layer:ident) => {
        impl $layer {
            /// Names the layer; otherwise it is called after its class.
            #[must_use]
            pub fn name(mut self, name: &str) -> Self {
                self.name = Some(name.to_string());
                self
            }

            /// Sets whose rules its parameters begin by.
            #[must_use]
            pub fn initializers(mut self, init: Init) -> Self {
                self.init = init;
                self
            }
        }
    };
}
named!(Embedding);
named!(Lstm);
named!(Dense);

impl Embedding {
    /// A table of `vocabulary` rows of `size` values.
    pub fn new(vocabulary: usize, size: usize) -> Self {
        Self { vocabulary, size, init: Init::Keras, name: None }
    }
}

impl Lstm {
    /// A layer of `units` units that gives the last h.
    pub fn new(units: usize) -> Self {
        Self {
            units,
            activation: Activation::Tanh,
            return_sequences: false,
            stateful: false,
            bias: Bias::One,
            init: Init::Keras,
            name: None,
        }
    }

    /// Sets the function of the candidate and of the cell's output.
    #[must_use]
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Sets whether it gives h of every step.
    #[must_use]
    pub fn return_sequences(mut self, all: bool) -> Self {
        self.return_sequences = all;
        self
    }

    /// Sets whether its state is carried from batch to batch.
    #[must_use]
    pub fn stateful(mut self, stateful: bool) -> Self {
        self.stateful = stateful;
        self
    }

    /// Sets its bias vectors.
    #[must_use]
    pub fn bias(mut self, bias: Bias) -> Self {
        self.bias = bias;
        self
    }
}

impl Dense {
    /// A layer of `units` outputs with a bias.
    pub fn new(units: usize) -> Self {
        Self { units, activation: Activation::Linear, bias: true, init: Init::Keras, name: None }
    }

    /// Sets the function of each output.
    #[must_use]
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Sets whether there is a bias.
    #[must_use]
    pub fn bias(mut self, bias: bool) -> Self {
        self.bias = bias;
        self
    }
}

impl Dropout {
    /// Dropout of `rate`, in [0, 1).
    pub fn new(rate: f32) -> Self {
        Self { rate }
    }
}

impl Activate {
    /// The layer of a function.
    pub fn new(activation: Activation) -> Self {
        Self { activation }
    }
}

impl Layer {
    /// Its class in snake case.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Embedding(_) => "embedding",
            Self::Lstm(_) => "lstm",
            Self::Dense(_) => "dense",
            Self::Dropout(_) => "dropout",
            Self::Activation(_) => "activation",
        }
    }

    /// The user's name.
    pub(super) fn given_name(&self) -> Option<&str> {
        match self {
            Self::Embedding(l) => l.name.as_deref(),
            Self::Lstm(l) => l.name.as_deref(),
            Self::Dense(l) => l.name.as_deref(),
            Self::Dropout(_) | Self::Activation(_) => None,
        }
    }

    /// Refuses what means nothing or is not supported.
    pub(super) fn validate(&self) -> Result<()> {
        let size = |name: &str, n: usize| match n {
            1..=SIZE_LIMIT => Ok(()),
            _ => Err(Error::argument(format!("{name} must be in 1..={SIZE_LIMIT}, got {n}"))),
        };
        match self {
            Self::Embedding(l) => size("vocabulary", l.vocabulary).and(size("size", l.size)),
            Self::Lstm(l) if l.activation != Activation::Tanh => {
                Err(Error::unsupported(format!("lstm: only the activation tanh is supported, got {:?}", l.activation)))
            }
            Self::Lstm(l) => size("units", l.units),
            Self::Dense(l) => size("units", l.units),
            Self::Dropout(l) if !(0.0..1.0).contains(&l.rate) => {
                Err(Error::argument(format!("rate must be in [0, 1), got {}", l.rate)))
            }
            Self::Dropout(_) | Self::Activation(_) => Ok(()),
        }
    }

    /// Features of its output, from those of its input.
    pub(super) fn output(&self, input: usize) -> usize {
        match self {
            Self::Embedding(l) => l.size,
            Self::Lstm(l) => l.units,
            Self::Dense(l) => l.units,
            Self::Dropout(_) | Self::Activation(_) => input,
        }
    }

    /// Its parameters over `input` features, named under `name`.
    pub(super) fn parameters(&self, name: &str, input: usize) -> Vec<ParameterSpec> {
        let spec = |role: &str, shape: Vec<usize>, initializer| ParameterSpec {
            name: format!("{name}.{role}"),
            shape,
            initializer,
        };
        let uniform = |n: usize| Initializer::Uniform((1.0 / (n as f64).sqrt()) as f32);
        match self {
            Self::Embedding(l) => {
                let initializer = match l.init {
                    Init::Keras => Initializer::Uniform(0.05),
                    Init::PyTorch => Initializer::Normal(1.0),
                };
                vec![spec("weight", vec![l.vocabulary, l.size], initializer)]
            }
            Self::Lstm(l) => lstm_parameters(&LstmConfig::new(input, l.units).bias(l.bias), 0)
                .into_iter()
                .map(|parameter| {
                    let initializer = match (l.init, parameter.role) {
                        (Init::PyTorch, _) => uniform(l.units),
                        (_, "weight_ih") => Initializer::GlorotUniform,
                        (_, "weight_hh") => Initializer::Orthogonal,
                        (_, "bias_ih") => Initializer::UnitForget,
                        _ => Initializer::Zeros,
                    };
                    spec(&parameter.name, parameter.shape, initializer)
                })
                .collect(),
            Self::Dense(l) => {
                let (weight, bias) = match l.init {
                    Init::Keras => (Initializer::GlorotUniform, Initializer::Zeros),
                    Init::PyTorch => (uniform(input), uniform(input)),
                };
                let mut all = vec![spec("weight", vec![l.units, input], weight)];
                if l.bias {
                    all.push(spec("bias", vec![l.units], bias));
                }
                all
            }
            Self::Dropout(_) | Self::Activation(_) => Vec::new(),
        }
    }
}
