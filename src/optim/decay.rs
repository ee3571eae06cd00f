//! Weight decay.

use serde::{Deserialize, Serialize};

/// A pull of parameters to zero. Parameters whose names contain one of `exclude` are spared.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct WeightDecay {
    /// At least 0.
    pub rate: f64,
    /// Whether each step does w -= lr · rate · w (AdamW's, and Keras's everywhere), rather than adding rate · w to the
    /// gradient after it was clipped (PyTorch's, for all but AdamW).
    pub decoupled: bool,
    /// For example `bias`.
    #[serde(default)]
    pub exclude: Vec<String>,
}

impl WeightDecay {
    /// That of AdamW and Keras.
    pub fn decoupled(rate: f64) -> Self {
        Self { rate, decoupled: true, exclude: Vec::new() }
    }

    /// A penalty of rate/2 Σ w², as PyTorch's optimisers have it.
    pub fn l2(rate: f64) -> Self {
        Self { rate, decoupled: false, exclude: Vec::new() }
    }

    pub(super) fn of(&self, parameter: &str) -> Option<&Self> {
        (self.rate > 0.0 && !self.exclude.iter().any(|part| parameter.contains(part.as_str()))).then_some(self)
    }
}
