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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LstmConfig {
    /// I, features of the input of the first layer.
    pub input_size: usize,
    /// H, units of each layer.
    pub hidden_size: usize,
    /// L, stacked layers.
    pub num_layers: usize,
    /// Bias vectors of each layer.
    pub bias: Bias,
}

impl LstmConfig {
    /// One layer with two biases.
    pub fn new(input_size: usize, hidden_size: usize) -> Self {
        Self { input_size, hidden_size, num_layers: 1, bias: Bias::Two }
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

    /// Input features of layer `layer`: I for the first, H above.
    pub fn layer_input(&self, layer: usize) -> usize {
        if layer == 0 { self.input_size } else { self.hidden_size }
    }

    /// Refuses sizes that mean nothing or whose weights cannot be counted in 32 bits.
    pub fn validate(&self) -> Result<()> {
        for (name, size) in
            [("input_size", self.input_size), ("hidden_size", self.hidden_size), ("num_layers", self.num_layers)]
        {
            if size == 0 {
                return Err(Error::argument(format!("lstm: {name} must be at least 1, got 0")));
            }
        }
        let widest = self.input_size.max(self.hidden_size);
        if self.hidden_size.checked_mul(GATES).and_then(|g| g.checked_mul(widest)).is_none_or(|n| n > u32::MAX as usize)
        {
            return Err(Error::argument(format!(
                "lstm: weights of {} x {widest} values exceed 2^32 - 1",
                self.hidden_size.saturating_mul(GATES)
            )));
        }
        Ok(())
    }
}
