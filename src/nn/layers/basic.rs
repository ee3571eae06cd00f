//! Layers over each row: tables, products, functions, random zeros.

use super::super::{Activation, Init};
use super::{named, rules};
use crate::config::Mask;
use crate::params::{Initializer, ParameterSpec, Regularizer, Rules};
use serde::{Deserialize, Serialize};

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
    /// The probability with which a token's whole row is zero for a batch while training, in [0, 1) (Gal and Ghahramani 2016); where
    /// the layer is used twice, each use draws its own.
    #[serde(default)]
    pub dropout: f32,
    /// How the table begins.
    #[serde(default)]
    pub init: Init,
    /// What the user chooses for the table.
    #[serde(default)]
    pub kernel: Rules,
    /// What the outputs add to the loss, over the number of sequences.
    #[serde(default)]
    pub activity: Option<Regularizer>,
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
    /// What the user chooses for W.
    #[serde(default)]
    pub kernel: Rules,
    /// What the user chooses for b.
    #[serde(default)]
    pub bias_rules: Rules,
    /// What the outputs add to the loss, over the number of sequences.
    #[serde(default)]
    pub activity: Option<Regularizer>,
    /// The user's name.
    #[serde(default)]
    pub name: Option<String>,
}

/// Zeroes values with probability `rate` while training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dropout {
    /// The probability, in [0, 1).
    pub rate: f32,
    /// Whether the steps of a sequence share a mask, as in Keras's `SpatialDropout1D`.
    #[serde(default)]
    pub mask: Mask,
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

named!(Embedding, init);
named!(Dense, init);
named!(LayerNormalization);
rules!(Embedding, kernel);
rules!(Dense, kernel, bias_rules);

impl Embedding {
    /// A table of `vocabulary` rows of `size` values.
    pub fn new(vocabulary: usize, size: usize) -> Self {
        let (init, kernel) = (Init::Keras, Rules::default());
        Self { vocabulary, size, mask_zero: false, dropout: 0.0, init, kernel, activity: None, name: None }
    }

    /// Sets whether token 0 stands for no step.
    #[must_use]
    pub fn mask_zero(mut self, mask_zero: bool) -> Self {
        self.mask_zero = mask_zero;
        self
    }

    /// Sets the probability with which a token's row is zero for a batch.
    #[must_use]
    pub fn dropout(mut self, rate: f32) -> Self {
        self.dropout = rate;
        self
    }

    pub(super) fn parameters(&self, name: &str) -> Vec<ParameterSpec> {
        let own = match self.init {
            Init::Keras => Initializer::Uniform(0.05),
            Init::PyTorch => Initializer::Normal(1.0),
        };
        vec![self.kernel.spec(format!("{name}.weight"), vec![self.vocabulary, self.size], own)]
    }
}

impl Dense {
    /// A layer of `units` outputs with a bias.
    pub fn new(units: usize) -> Self {
        Self {
            units,
            activation: Activation::Linear,
            bias: true,
            tied: None,
            init: Init::Keras,
            kernel: Rules::default(),
            bias_rules: Rules::default(),
            activity: None,
            name: None,
        }
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

    pub(super) fn parameters(&self, name: &str, input: usize) -> Vec<ParameterSpec> {
        let (weight, bias) = self.init.kernel_and_bias(input);
        let of = self.tied.as_deref().unwrap_or(name);
        let mut all = vec![self.kernel.spec(format!("{of}.weight"), vec![self.units, input], weight)];
        if self.bias {
            all.push(self.bias_rules.spec(format!("{name}.bias"), vec![self.units], bias));
        }
        all
    }
}

impl Dropout {
    /// Dropout of `rate`, in [0, 1), each step with a mask of its own.
    pub fn new(rate: f32) -> Self {
        Self { rate, mask: Mask::Step }
    }

    /// Sets whether the steps of a sequence share a mask.
    #[must_use]
    pub fn mask(mut self, mask: Mask) -> Self {
        self.mask = mask;
        self
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

impl LayerNormalization {
    pub(super) fn parameters(&self, name: &str, input: usize) -> Vec<ParameterSpec> {
        let spec = |role: &str, own| Rules::default().spec(format!("{name}.{role}"), vec![input], own);
        let gain = self.scale.then(|| spec("weight", Initializer::Constant(1.0)));
        gain.into_iter().chain(self.center.then(|| spec("bias", Initializer::Zeros))).collect()
    }
}

impl Masking {
    /// Leaves out steps whose features all are `value`.
    pub fn new(value: f32) -> Self {
        Self { value }
    }
}
