//! The layers, as plain data with builders.

mod attention;
mod basic;
mod memory;
mod merge;
mod steps;
mod values;

pub use attention::Attention;
pub use basic::{Activate, Dense, Dropout, Embedding, LayerNormalization, Masking};
pub use memory::{Mixture, WorkingMemory};
pub use merge::{Merge, MergeKind};
pub use steps::{Conv1D, Cropping1D, Flatten, Permute, Pooling, Pooling1D, PoolingKind, RepeatVector, Reshape};
pub use values::{Along, Columns, FeatureSum, Flip, Formula, Function, LogSoftmax, Operand, Step, TimeSoftmax};

use super::Signal;
use super::axes::{Axes, Steps};
use super::{Activation, Lstm, MergeMode};
use crate::config::Direction;
use crate::error::{Error, Result};
use crate::graph::Padding;
use crate::graph::Score;
use crate::params::{ParameterSpec, Regularizer};
use serde::{Deserialize, Serialize};

/// The largest size of a layer, so that products of sizes from a file cannot overflow.
pub(super) const SIZE_LIMIT: usize = 1 << 28;

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

            /// Sets what the outputs add to the loss, over the number of sequences.
            #[must_use]
            pub fn activity(mut self, regularizer: Regularizer) -> Self {
                self.activity = Some(regularizer);
                self
            }
        }
    };
}
use named;

macro_rules! rules {
    ($layer:ident, $($role:ident),*) => {
        impl $layer {
            $(/// Sets what the user chooses for parameters of this role.
            #[must_use]
            pub fn $role(mut self, rules: Rules) -> Self {
                self.$role = rules;
                self
            })*
        }
    };
}
use rules;

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
    /// A product with the steps of each window.
    #[serde(rename = "conv1d")]
    Conv1D(Conv1D),
    /// One step of the steps of each window.
    #[serde(rename = "pooling1d")]
    Pooling1D(Pooling1D),
    /// Some of the steps.
    #[serde(rename = "cropping1d")]
    Cropping1D(Cropping1D),
    /// One row of all steps.
    Pooling(Pooling),
    /// The same row at each step.
    RepeatVector(RepeatVector),
    /// All steps side by side.
    Flatten(Flatten),
    /// The same values in another shape.
    Reshape(Reshape),
    /// Steps and features change places.
    Permute(Permute),
    /// Each step of one sequence sees those of another.
    Attention(Attention),
    /// One value of several.
    Merge(Merge),
    /// What was read, mixed into what comes next.
    WorkingMemory(WorkingMemory),
    /// One value at the steps of another.
    Along(Along),
    /// Some of the features.
    Columns(Columns),
    /// One step of each sequence.
    Step(Step),
    /// The sum of the features.
    FeatureSum(FeatureSum),
    /// A softmax over steps.
    TimeSoftmax(TimeSoftmax),
    /// The steps from the last to the first.
    Flip(Flip),
    /// The logarithm of a softmax.
    LogSoftmax(LogSoftmax),
    /// A function of the elements of several values.
    Formula(Formula),
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
    LayerNormalization => LayerNormalization, Masking => Masking, Conv1D => Conv1D, Pooling1D => Pooling1D, Cropping1D => Cropping1D,
    Pooling => Pooling, RepeatVector => RepeatVector, Flatten => Flatten, Reshape => Reshape, Permute => Permute,
    Attention => Attention, Merge => Merge, WorkingMemory => WorkingMemory, Along => Along, Columns => Columns,
    Step => Step, FeatureSum => FeatureSum, TimeSoftmax => TimeSoftmax, Flip => Flip, LogSoftmax => LogSoftmax, Formula => Formula
);

impl From<Activation> for Layer {
    fn from(activation: Activation) -> Self {
        Activate::new(activation).into()
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
            Self::Conv1D(_) => "conv1d",
            Self::Cropping1D(_) => "cropping1d",
            Self::Pooling1D(l) if l.kind == PoolingKind::Average => "average_pooling1d",
            Self::Pooling1D(_) => "max_pooling1d",
            Self::Pooling(l) if l.kind == PoolingKind::Average => "global_average_pooling1d",
            Self::Pooling(l) if l.kind == PoolingKind::Sum => "global_sum_pooling1d",
            Self::Pooling(_) => "global_max_pooling1d",
            Self::RepeatVector(_) => "repeat_vector",
            Self::Flatten(_) => "flatten",
            Self::Reshape(_) => "reshape",
            Self::Permute(_) => "permute",
            Self::Attention(l) if l.score == Score::Additive => "additive_attention",
            Self::Attention(_) => "attention",
            Self::Merge(l) => l.kind.class(),
            Self::WorkingMemory(_) => "working_memory",
            Self::Along(_) => "along",
            Self::Columns(_) => "columns",
            Self::Step(_) => "step",
            Self::FeatureSum(_) => "feature_sum",
            Self::TimeSoftmax(_) => "time_softmax",
            Self::Flip(_) => "flip",
            Self::LogSoftmax(_) => "log_softmax",
            Self::Formula(_) => "formula",
        }
    }

    /// The user's name.
    pub(super) fn given_name(&self) -> Option<&str> {
        match self {
            Self::Embedding(l) => l.name.as_deref(),
            Self::Lstm(l) => l.name.as_deref(),
            Self::Dense(l) => l.name.as_deref(),
            Self::LayerNormalization(l) => l.name.as_deref(),
            Self::Conv1D(l) => l.name.as_deref(),
            Self::Attention(l) => l.name.as_deref(),
            _ => None,
        }
    }

    /// The layer under a name, where a layer of its class has one.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        let own = match &mut self {
            Self::Embedding(l) => &mut l.name,
            Self::Lstm(l) => &mut l.name,
            Self::Dense(l) => &mut l.name,
            Self::LayerNormalization(l) => &mut l.name,
            Self::Conv1D(l) => &mut l.name,
            Self::Attention(l) => &mut l.name,
            _ => return self,
        };
        *own = Some(name.to_string());
        self
    }

    /// Whether it goes on from the run before.
    pub fn is_stateful(&self) -> bool {
        match self {
            Self::Lstm(l) => l.stateful,
            Self::WorkingMemory(l) => l.stateful,
            _ => false,
        }
    }

    /// What its outputs add to the loss.
    pub fn activity(&self) -> Option<Regularizer> {
        match self {
            Self::Embedding(l) => l.activity,
            Self::Lstm(l) => l.activity,
            Self::Dense(l) => l.activity,
            Self::Conv1D(l) => l.activity,
            _ => None,
        }
    }

    /// Refuses what means nothing or is not supported.
    pub(super) fn validate(&self) -> Result<()> {
        let size = |name: &str, n: usize| match n {
            1..=SIZE_LIMIT => Ok(()),
            _ => Err(Error::argument(format!("{name} must be in 1..={SIZE_LIMIT}, got {n}"))),
        };
        self.activity().map_or(Ok(()), |r| r.validate())?;
        match self {
            Self::Embedding(l) if !(0.0..1.0).contains(&l.dropout) => {
                Err(Error::argument(format!("dropout must be in [0, 1), got {}", l.dropout)))
            }
            Self::Embedding(l) => size("vocabulary", l.vocabulary).and(size("size", l.size)).and(l.kernel.validate()),
            Self::Lstm(l) => {
                size("units", l.units).and(l.projection.map_or(Ok(()), |p| size("projection", p))).and(l.validate())
            }
            Self::Dense(l) => size("units", l.units)
                .and(l.activation.validate())
                .and(l.kernel.validate())
                .and(l.bias_rules.validate()),
            Self::Conv1D(l) => {
                size("filters", l.filters).and(l.window.validate()).and(l.activation.validate())?;
                l.kernel.validate().and(l.bias_rules.validate())
            }
            Self::Pooling1D(l) if l.kind == PoolingKind::Sum => {
                Err(Error::unsupported("the sum of the steps of each window"))
            }
            Self::Pooling1D(Pooling1D { window, .. }) => match window.padding {
                // Such a window would see no step at all.
                Padding::Explicit { before, after }
                    if [before, after].iter().any(|&n| usize::try_from(n).is_ok_and(|n| n >= window.span())) =>
                {
                    let (taps, span) = (window.taps, window.span());
                    Err(Error::argument(format!("{taps} taps over {span} steps, padded by {before} and {after}")))
                }
                _ => window.validate(),
            },
            Self::Cropping1D(l) => l.window().validate(),
            Self::Dropout(l) if !(0.0..1.0).contains(&l.rate) => {
                Err(Error::argument(format!("rate must be in [0, 1), got {}", l.rate)))
            }
            Self::LayerNormalization(l) if !(l.epsilon > 0.0 && l.epsilon.is_finite()) => {
                Err(Error::argument(format!("epsilon must be positive, got {}", l.epsilon)))
            }
            Self::RepeatVector(l) => size("count", l.count),
            Self::Reshape(l) => l.shape.iter().flatten().try_for_each(|&n| size("each size", n)),
            Self::Activation(l) => l.activation.validate(),
            Self::WorkingMemory(l) => l.validate(),
            Self::Formula(l) => l.validate(),
            _ => Ok(()),
        }
    }

    /// Its outputs, from its inputs; time axes that it makes go to `axes`.
    pub(super) fn outputs(&self, inputs: &[Signal], axes: &mut Axes) -> Result<Vec<Signal>> {
        let one = || match inputs {
            [one] => Ok(*one),
            _ => Err(Error::shape(format!("expected one input, got {}", inputs.len()))),
        };
        let floats = |signal: Signal| match signal {
            Signal::Tokens { .. } => Err(Error::shape("expected floats, got tokens")),
            other => Ok(other),
        };
        let output = match self {
            Self::Embedding(l) => match one()? {
                Signal::Tokens { axis } => Signal::Sequence { features: l.size, axis, mirrored: false },
                other => return Err(Error::shape(format!("expected tokens, got floats, {other}"))),
            },
            Self::Lstm(l) => return lstm_outputs(l, inputs),
            Self::Dense(l) => floats(one()?)?.with_features(l.units),
            Self::Masking(_) | Self::Dropout(_) | Self::Activation(_) | Self::LayerNormalization(_) => floats(one()?)?,
            Self::Conv1D(l) => steps::windowed(floats(one()?)?, l.window, Some(l.filters), axes)?,
            Self::Pooling1D(l) => steps::windowed(floats(one()?)?, l.window, None, axes)?,
            Self::Cropping1D(l) => steps::windowed(floats(one()?)?, l.window(), None, axes)?,
            Self::Pooling(_) => match floats(one()?)? {
                Signal::Sequence { features, .. } => Signal::Rows { features },
                other => return Err(Error::shape(format!("expected a sequence, got {other}"))),
            },
            Self::RepeatVector(l) => match floats(one()?)? {
                Signal::Rows { features } => {
                    Signal::Sequence { features, axis: axes.find(Steps::Fixed(l.count)), mirrored: false }
                }
                other => return Err(Error::shape(format!("expected one row a sample, got {other}"))),
            },
            Self::Flatten(_) => match floats(one()?)? {
                rows @ Signal::Rows { .. } => rows,
                sequence => {
                    let (steps, features, _) = steps::known_steps(sequence, axes)?;
                    Signal::Rows { features: steps * features }
                }
            },
            Self::Reshape(l) => l.output(floats(one()?)?, axes)?,
            Self::Permute(_) => {
                let (steps, features, _) = steps::known_steps(floats(one()?)?, axes)?;
                Signal::Sequence { features: steps, axis: axes.find(Steps::Fixed(features)), mirrored: false }
            }
            Self::Attention(l) => l.output(inputs)?,
            Self::Merge(l) => l.output(inputs)?,
            Self::WorkingMemory(l) => l.output(inputs)?,
            Self::Along(l) => l.output(inputs)?,
            Self::Columns(l) => l.output(floats(one()?)?)?,
            Self::Step(l) => l.output(floats(one()?)?, axes)?,
            Self::FeatureSum(_) => floats(one()?)?.with_features(1),
            Self::TimeSoftmax(_) => {
                let input = floats(one()?)?;
                steps::forward_sequence(input)?;
                input
            }
            Self::Flip(_) => match floats(one()?)? {
                Signal::Sequence { features, axis, mirrored } => {
                    Signal::Sequence { features, axis, mirrored: !mirrored }
                }
                other => return Err(Error::shape(format!("expected a sequence [B, T, F], got {other}"))),
            },
            Self::LogSoftmax(_) => floats(one()?)?,
            Self::Formula(l) => l.output(inputs)?,
        };
        Ok(vec![output])
    }

    /// Its parameters over `input` features, named under `name`.
    pub(super) fn parameters(&self, name: &str, input: usize) -> Vec<ParameterSpec> {
        match self {
            Self::Embedding(l) => l.parameters(name),
            Self::Lstm(l) => l.parameters(name, input),
            Self::Dense(l) => l.parameters(name, input),
            Self::LayerNormalization(l) => l.parameters(name, input),
            Self::Conv1D(l) => l.parameters(name, input),
            Self::Attention(l) => l.parameters(name, input),
            Self::WorkingMemory(l) => l.parameters(name, input),
            Self::Formula(l) => l.parameters(name, input),
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
