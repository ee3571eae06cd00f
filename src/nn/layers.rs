//! The layers, as plain data with builders.

use super::network::Signal;
use super::{Activation, Init, Lstm, MergeMode};
use crate::config::Direction;
use crate::error::{Error, Result};
use crate::params::{Initializer, ParameterSpec};
use serde::{Deserialize, Serialize};

/// The largest size of a layer, so that products of sizes from a file cannot overflow.
const SIZE_LIMIT: usize = 1 << 28;

/// Rows of a table by tokens: `[B, T]` gives `[B, T, size]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embedding {
    /// V, tokens that there are.
    pub vocabulary: usize,
    /// Values a token.
    pub size: usize,
    /// Whether token 0 stands for no step at all: it is left out of its sequence.
    #[serde(default)]
    pub mask_zero: bool,
    /// How the table begins.
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
    /// The function of the outputs.
    pub activation: Activation,
    /// Whether there is a b.
    pub bias: bool,
    /// The embedding whose table is W, where the two are tied (Press and Wolf 2017): `units` is its vocabulary.
    #[serde(default)]
    pub tied: Option<String>,
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

/// A function of the elements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Activate {
    /// The function.
    pub activation: Activation,
}

/// Each row less its mean over its deviation, times a gain plus a bias (Ba et al. 2016).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerNormalization {
    /// What is added to the variance.
    pub epsilon: f32,
    /// Whether there is a gain.
    pub scale: bool,
    /// Whether there is a bias.
    pub center: bool,
    /// The user's name.
    #[serde(default)]
    pub name: Option<String>,
}

/// Steps whose features all are `value` are left out of their sequence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Masking {
    /// The value.
    pub value: f32,
}

/// What a pooling takes of the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolingKind {
    /// Their mean.
    Average,
    /// The largest of each feature.
    Max,
}

/// One row of all steps of a sequence: `[B, T, F]` gives `[B, F]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pooling {
    /// What is taken.
    pub kind: PoolingKind,
}

/// A sequence of `count` steps, each the same row: `[B, F]` gives `[B, count, F]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RepeatVector {
    /// The number of steps.
    pub count: usize,
}

/// How several values become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeKind {
    /// Side by side.
    Concatenate,
    /// Their sum.
    Add,
    /// The first less the second.
    Subtract,
    /// Their product.
    Multiply,
    /// Their mean.
    Average,
    /// The largest of each element.
    Maximum,
    /// The smallest of each element.
    Minimum,
}

/// One value of several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Merge {
    /// How.
    pub kind: MergeKind,
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
    /// A function of the elements.
    Activation(Activate),
    /// Rows of mean zero and deviation one.
    LayerNormalization(LayerNormalization),
    /// Steps left out.
    Masking(Masking),
    /// One row of all steps.
    Pooling(Pooling),
    /// The same row at each step.
    RepeatVector(RepeatVector),
    /// One value of several.
    Merge(Merge),
}

macro_rules! layer {
    ($($layer:ident => $variant:ident),*) => {
        $(impl From<$layer> for Layer {
            fn from(layer: $layer) -> Self {
                Self::$variant(layer)
            }
        })*
    };
}
layer!(
    Embedding => Embedding, Lstm => Lstm, Dense => Dense, Dropout => Dropout, Activate => Activation,
    LayerNormalization => LayerNormalization, Masking => Masking, Pooling => Pooling, RepeatVector => RepeatVector,
    Merge => Merge
);

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
        }
    };
    ($layer:ident, init) => {
        named!($layer);
        impl $layer {
            /// Sets whose rules its parameters begin by.
            #[must_use]
            pub fn initializers(mut self, init: Init) -> Self {
                self.init = init;
                self
            }
        }
    };
}
named!(Embedding, init);
named!(Dense, init);
named!(LayerNormalization);

impl Embedding {
    /// A table of `vocabulary` rows of `size` values.
    pub fn new(vocabulary: usize, size: usize) -> Self {
        Self { vocabulary, size, mask_zero: false, init: Init::Keras, name: None }
    }

    /// Sets whether token 0 stands for no step.
    #[must_use]
    pub fn mask_zero(mut self, mask_zero: bool) -> Self {
        self.mask_zero = mask_zero;
        self
    }
}

impl Dense {
    /// A layer of `units` outputs with a bias.
    pub fn new(units: usize) -> Self {
        Self { units, activation: Activation::Linear, bias: true, tied: None, init: Init::Keras, name: None }
    }

    /// Sets the function of the outputs.
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

    /// Takes W from the embedding called `name`, whose table has a row for each unit.
    #[must_use]
    pub fn tied(mut self, name: &str) -> Self {
        self.tied = Some(name.to_string());
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

impl Default for LayerNormalization {
    fn default() -> Self {
        Self { epsilon: 1e-3, scale: true, center: true, name: None }
    }
}

impl Masking {
    /// Leaves out steps whose features all are `value`.
    pub fn new(value: f32) -> Self {
        Self { value }
    }
}

impl Pooling {
    /// The mean of the steps.
    pub fn average() -> Self {
        Self { kind: PoolingKind::Average }
    }

    /// The largest of the steps.
    pub fn max() -> Self {
        Self { kind: PoolingKind::Max }
    }
}

impl RepeatVector {
    /// A sequence of `count` steps.
    pub fn new(count: usize) -> Self {
        Self { count }
    }
}

impl Merge {
    /// One value of several, by `kind`.
    pub fn new(kind: MergeKind) -> Self {
        Self { kind }
    }
}

impl Layer {
    /// Its class in snake case.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Embedding(_) => "embedding",
            Self::Lstm(l) if l.direction == Direction::Both => "bidirectional",
            Self::Lstm(_) => "lstm",
            Self::Dense(_) => "dense",
            Self::Dropout(_) => "dropout",
            Self::Activation(_) => "activation",
            Self::LayerNormalization(_) => "layer_normalization",
            Self::Masking(_) => "masking",
            Self::Pooling(l) if l.kind == PoolingKind::Average => "global_average_pooling1d",
            Self::Pooling(_) => "global_max_pooling1d",
            Self::RepeatVector(_) => "repeat_vector",
            Self::Merge(l) => match l.kind {
                MergeKind::Concatenate => "concatenate",
                MergeKind::Add => "add",
                MergeKind::Subtract => "subtract",
                MergeKind::Multiply => "multiply",
                MergeKind::Average => "average",
                MergeKind::Maximum => "maximum",
                MergeKind::Minimum => "minimum",
            },
        }
    }

    /// The user's name.
    pub(super) fn given_name(&self) -> Option<&str> {
        match self {
            Self::Embedding(l) => l.name.as_deref(),
            Self::Lstm(l) => l.name.as_deref(),
            Self::Dense(l) => l.name.as_deref(),
            Self::LayerNormalization(l) => l.name.as_deref(),
            _ => None,
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
            Self::Lstm(l) => {
                size("units", l.units).and(l.projection.map_or(Ok(()), |p| size("projection", p))).and(l.validate())
            }
            Self::Dense(l) => size("units", l.units).and(l.activation.validate()),
            Self::Dropout(l) if !(0.0..1.0).contains(&l.rate) => {
                Err(Error::argument(format!("rate must be in [0, 1), got {}", l.rate)))
            }
            Self::LayerNormalization(l) if !(l.epsilon > 0.0 && l.epsilon.is_finite()) => {
                Err(Error::argument(format!("epsilon must be positive, got {}", l.epsilon)))
            }
            Self::RepeatVector(l) => size("count", l.count),
            Self::Activation(l) => l.activation.validate(),
            _ => Ok(()),
        }
    }

    /// Its outputs, from its inputs; `axis` is a time axis that no value has yet.
    pub(super) fn outputs(&self, inputs: &[Signal], axis: u8) -> Result<Vec<Signal>> {
        let one = || match inputs {
            [one] => Ok(*one),
            _ => Err(Error::shape(format!("expected one input, got {}", inputs.len()))),
        };
        let floats = |signal: Signal| match signal {
            Signal::Tokens { .. } => Err(Error::shape("expected floats, got tokens")),
            other => Ok(other),
        };
        match self {
            Self::Embedding(l) => match one()? {
                Signal::Tokens { axis } => Ok(vec![Signal::Sequence { features: l.size, axis, mirrored: false }]),
                other => Err(Error::shape(format!("expected tokens, got floats, {other}"))),
            },
            Self::Lstm(l) => lstm_outputs(l, inputs),
            Self::Dense(l) => Ok(vec![floats(one()?)?.with_features(l.units)]),
            Self::Masking(_) | Self::Dropout(_) | Self::Activation(_) | Self::LayerNormalization(_) => {
                Ok(vec![floats(one()?)?])
            }
            Self::Pooling(_) => match floats(one()?)? {
                Signal::Sequence { features, .. } => Ok(vec![Signal::Rows { features }]),
                other => Err(Error::shape(format!("expected a sequence, got {other}"))),
            },
            Self::RepeatVector(_) => match floats(one()?)? {
                Signal::Rows { features } => Ok(vec![Signal::Sequence { features, axis, mirrored: false }]),
                other => Err(Error::shape(format!("expected one row a sample, got {other}"))),
            },
            Self::Merge(l) => Ok(vec![merged(l.kind, inputs)?]),
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
            Self::Lstm(l) => l.parameters(name, input),
            Self::Dense(l) => {
                let (weight, bias) = match l.init {
                    Init::Keras => (Initializer::GlorotUniform, Initializer::Zeros),
                    Init::PyTorch => (uniform(input), uniform(input)),
                };
                let mut all = vec![spec("weight", vec![l.units, input], weight)];
                if let Some(embedding) = &l.tied {
                    all[0].name = format!("{embedding}.weight");
                }
                if l.bias {
                    all.push(spec("bias", vec![l.units], bias));
                }
                all
            }
            Self::LayerNormalization(l) => {
                let gain = l.scale.then(|| spec("weight", vec![input], Initializer::Constant(1.0)));
                gain.into_iter().chain(l.center.then(|| spec("bias", vec![input], Initializer::Zeros))).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// The outputs of an LSTM over x and, where they are given, the initial h and c of each direction.
fn lstm_outputs(l: &Lstm, inputs: &[Signal]) -> Result<Vec<Signal>> {
    let Some(Signal::Sequence { axis, mirrored, .. }) = inputs.first().copied() else {
        let got = inputs.first().map_or("nothing".to_string(), Signal::to_string);
        return Err(Error::shape(format!(
            "expected a sequence, got {got}; give the lstm before it `return_sequences(true)`"
        )));
    };
    let (d, r) = (l.direction.count(), l.projection.unwrap_or(l.units));
    let states: Vec<Signal> =
        (0..d).flat_map(|_| [Signal::Rows { features: r }, Signal::Rows { features: l.units }]).collect();
    if inputs.len() > 1 && inputs[1..] != states {
        let list = |signals: &[Signal]| signals.iter().map(Signal::to_string).collect::<Vec<_>>().join(", ");
        return Err(Error::shape(format!("expected the initial states {}, got {}", list(&states), list(&inputs[1..]))));
    }
    if l.stateful && inputs.len() > 1 {
        return Err(Error::argument("a stateful layer carries its own state and takes no other"));
    }
    let apart = if l.merge == MergeMode::Apart { 2 } else { 1 };
    let features = l.output_size();
    if mirrored && l.direction == Direction::Both {
        return Err(Error::unsupported("both directions over a sequence that a layer reversed"));
    }
    let output = match l.return_sequences {
        true => Signal::Sequence { features, axis, mirrored: mirrored != l.go_backwards },
        false => Signal::Rows { features },
    };
    let mut all = vec![output; apart];
    if l.return_state {
        all.extend(states);
    }
    Ok(all)
}

fn merged(kind: MergeKind, inputs: &[Signal]) -> Result<Signal> {
    let Some(&first) = inputs.first() else { return Err(Error::shape("expected at least one input, got none")) };
    let mut features = 0;
    for &input in inputs {
        let own = input.features().ok_or_else(|| Error::shape("expected floats, got tokens"))?;
        let same = if kind == MergeKind::Concatenate { first.with_features(own) } else { first };
        if input != same {
            return Err(Error::shape(format!("expected inputs alike, got {first} and {input}")));
        }
        features += own;
    }
    if kind == MergeKind::Subtract && inputs.len() != 2 {
        return Err(Error::shape(format!("expected two inputs to subtract, got {}", inputs.len())));
    }
    Ok(if kind == MergeKind::Concatenate { first.with_features(features) } else { first })
}
