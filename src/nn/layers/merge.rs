//! Layers over several values.

use super::super::Signal;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

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

impl Merge {
    /// One value of several, by `kind`.
    pub fn new(kind: MergeKind) -> Self {
        Self { kind }
    }

    pub(super) fn output(&self, inputs: &[Signal]) -> Result<Signal> {
        let kind = self.kind;
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
}

impl MergeKind {
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Concatenate => "concatenate",
            Self::Add => "add",
            Self::Subtract => "subtract",
            Self::Multiply => "multiply",
            Self::Average => "average",
            Self::Maximum => "maximum",
            Self::Minimum => "minimum",
        }
    }
}
