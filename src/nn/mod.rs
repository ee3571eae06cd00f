//! Layers, networks of them, and [`Sequential`]: what a user writes, turned into graphs. Defaults are Keras 3's.

pub mod activation;
mod append;
pub mod axes;
mod growing;
pub mod layers;
pub mod lstm;
pub mod masks;
mod memory;
pub mod network;
pub mod recall;
pub mod sequential;
mod signals;
mod streaming;

pub use crate::config::{Activation, Direction};
pub use crate::graph::{Padding, Score, Window};
pub use crate::params::{Constraint, Initializer, Regularizer, Rules};
pub use axes::{Axes, Steps};
pub(crate) use growing::Growing;
pub use layers::{
    Activate, Along, Attention, Columns, Conv1D, Cropping1D, Dense, Dropout, Embedding, FeatureSum, Flatten, Flip,
    Formula, Function, Layer, LayerNormalization, LogSoftmax, Masking, Merge, MergeKind, Mixture, Operand, Permute,
    Pooling, Pooling1D, PoolingKind, RepeatVector, Reshape, Step, TimeSoftmax, WorkingMemory,
};
pub use lstm::{Lstm, MergeMode};
pub use masks::{Fill, zeros_input};
pub use network::{Built, GraphOptions, Network, Node, Port, Slots};
pub use recall::{Evidence, Recalled};
pub use sequential::{Description, Flow, Sequential};
pub use signals::Signal;

use serde::{Deserialize, Serialize};

/// Whose rules parameters begin by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Glorot uniform kernels, orthogonal recurrent kernels, unit forget bias, embeddings uniform in ±0.05.
    #[default]
    Keras,
    /// Uniform in ±1/√H or ±1/√inputs, embeddings normal.
    #[serde(rename = "pytorch")]
    PyTorch,
}

impl Init {
    /// How W, of which `inputs` weights come into each output, and b begin.
    fn kernel_and_bias(self, inputs: usize) -> (Initializer, Initializer) {
        let uniform = Initializer::Uniform((1.0 / (inputs as f64).sqrt()) as f32);
        match self {
            Self::Keras => (Initializer::GlorotUniform, Initializer::Zeros),
            Self::PyTorch => (uniform, uniform),
        }
    }
}

/// What a model reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// Sequences of this many floats a step: x `[samples, T, features]`.
    Features(usize),
    /// Sequences of integers: x `[samples, T]`.
    Tokens,
    /// This many floats a sample: x `[samples, features]`, such as a state.
    Rows(usize),
    /// How long sequences are: `[samples]`, each at most as long as the longest of another input. What a layer reads are
    /// the numbers of their steps, 0, 1 and so on, `[samples, T]`.
    Lengths,
}
