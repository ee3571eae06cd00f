//! What a user may choose for a parameter: how it begins, what it adds to the loss, and where an update must leave it.

use super::Initializer;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Adds l1 Σ|w| + l2 Σw² to the loss.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Regularizer {
    /// The factor of the sum of absolute values, at least 0.
    pub l1: f32,
    /// The factor of the sum of squares, at least 0.
    pub l2: f32,
}

impl Regularizer {
    /// l1 Σ|w|
    pub fn l1(l1: f32) -> Self {
        Self { l1, l2: 0.0 }
    }

    /// l2 Σw²
    pub fn l2(l2: f32) -> Self {
        Self { l1: 0.0, l2 }
    }

    /// Refuses factors below 0.
    pub fn validate(&self) -> Result<()> {
        match [self.l1, self.l2].iter().all(|f| *f >= 0.0 && f.is_finite()) {
            true => Ok(()),
            false => Err(Error::argument(format!(
                "regularizer: l1 and l2 must be at least 0, got {} and {}",
                self.l1, self.l2
            ))),
        }
    }
}

/// What each update leaves true of a parameter. Norms are Euclidean, of the weights that come into one output (a row of
/// W, Keras's axis 0 of a kernel), of one row of a table, or of a whole vector.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// A norm of at most this (Srivastava et al. 2014).
    MaxNorm(f32),
    /// A norm of 1.
    UnitNorm,
    /// No value below 0.
    NonNegative,
    /// A norm from `min` to `max`, approached by the share `rate` at each update.
    MinMaxNorm {
        /// The smallest.
        min: f32,
        /// The largest.
        max: f32,
        /// In (0, 1]; 1 keeps to it exactly.
        rate: f32,
    },
}

impl Constraint {
    /// Refuses norms below 0 or out of order.
    pub fn validate(&self) -> Result<()> {
        let (min, max, rate) = match *self {
            Self::MaxNorm(max) => (0.0, max, 1.0),
            Self::MinMaxNorm { min, max, rate } => (min, max, rate),
            Self::UnitNorm | Self::NonNegative => return Ok(()),
        };
        match min >= 0.0 && max >= min && max.is_finite() && rate > 0.0 && rate <= 1.0 {
            true => Ok(()),
            false => Err(Error::argument(format!(
                "constraint: expected norms 0 <= min <= max and a rate in (0, 1], got {min}, {max} and {rate}"
            ))),
        }
    }
}

/// What a user chooses for a parameter, or for all of one role in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rules {
    /// How it begins, where that is not the layer's own way.
    pub initializer: Option<Initializer>,
    /// What it adds to the loss.
    pub regularizer: Option<Regularizer>,
    /// Where an update must leave it.
    pub constraint: Option<Constraint>,
}

impl Rules {
    /// Sets how it begins.
    #[must_use]
    pub fn initializer(mut self, initializer: Initializer) -> Self {
        self.initializer = Some(initializer);
        self
    }

    /// Sets what it adds to the loss.
    #[must_use]
    pub fn regularizer(mut self, regularizer: Regularizer) -> Self {
        self.regularizer = Some(regularizer);
        self
    }

    /// Sets where an update must leave it.
    #[must_use]
    pub fn constraint(mut self, constraint: Constraint) -> Self {
        self.constraint = Some(constraint);
        self
    }

    /// Refuses what means nothing.
    pub fn validate(&self) -> Result<()> {
        self.initializer.map_or(Ok(()), |i| i.validate())?;
        self.regularizer.map_or(Ok(()), |r| r.validate())?;
        self.constraint.map_or(Ok(()), |c| c.validate())
    }

    /// The parameter `name` of `shape`, which begins by `own` where the user has chosen nothing.
    pub fn spec(&self, name: String, shape: Vec<usize>, own: Initializer) -> super::ParameterSpec {
        super::ParameterSpec {
            name,
            shape,
            initializer: self.initializer.unwrap_or(own),
            regularizer: self.regularizer,
            constraint: self.constraint,
        }
    }
}
