//! Layers and [`Sequential`]: what a user writes, turned into graphs. Defaults are Keras 3's.

pub mod layers;
pub mod sequential;

pub use layers::{Activate, Dense, Dropout, Embedding, Layer, Lstm};
pub use sequential::{Flow, GraphOptions, Sequential};

use crate::error::Result;
use crate::graph::{Graph, Value};
use serde::{Deserialize, Serialize};

/// A function of each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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
}

impl Activation {
    /// Adds the function of `x` to `graph`.
    pub fn apply(self, graph: &mut Graph, x: Value) -> Result<Value> {
        match self {
            Self::Linear => Ok(x),
            Self::Tanh => graph.tanh(x),
            Self::Sigmoid => graph.sigmoid(x),
            Self::Relu => graph.relu(x),
        }
    }
}

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

/// What a model reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// Sequences of this many floats a step: x `[samples, T, features]`.
    Features(usize),
    /// Sequences of integers: x `[samples, T]`.
    Tokens,
}
