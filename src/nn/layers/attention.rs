//! Attention of one sequence to another.

use super::super::Signal;
use super::named;
use crate::error::{Error, Result};
use crate::graph::Score;
use crate::params::{Initializer, ParameterSpec, Rules};
use serde::{Deserialize, Serialize};

/// Each step of a sequence sees a mean of another's values, weighted by how well it fits their keys. Reads queries
/// `[B, Tq, D]`, values `[B, Tk, V]` and, where they are not the values, keys `[B, Tk, D]`; gives `[B, Tq, V]`. Each
/// sample sees its own steps alone; a query without any gives zeros.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attention {
    /// How well a query and a key fit.
    pub score: Score,
    /// Whether scores have a factor that is learnt: one number, or of additive attention one a feature.
    pub scale: bool,
    /// Whether a query sees only keys of steps up to its own.
    pub causal: bool,
    /// The user's name.
    #[serde(default)]
    pub name: Option<String>,
}

named!(Attention);

impl Attention {
    /// Scores q · k (Luong et al. 2015).
    pub fn dot() -> Self {
        Self { score: Score::Dot, scale: false, causal: false, name: None }
    }

    /// Scores Σ s tanh(q + k) with s learnt (Bahdanau et al. 2015).
    pub fn additive() -> Self {
        Self { score: Score::Additive, scale: true, causal: false, name: None }
    }

    /// Sets whether scores have a factor that is learnt.
    #[must_use]
    pub fn scale(mut self, scale: bool) -> Self {
        self.scale = scale;
        self
    }

    /// Sets whether a query sees only keys of steps up to its own.
    #[must_use]
    pub fn causal(mut self, causal: bool) -> Self {
        self.causal = causal;
        self
    }

    pub(super) fn output(&self, inputs: &[Signal]) -> Result<Signal> {
        let [query, value, rest @ ..] = inputs else {
            return Err(Error::shape(format!(
                "expected queries, values and perhaps keys, got {} inputs",
                inputs.len()
            )));
        };
        let key = match rest {
            [] => value,
            [key] => key,
            _ => return Err(Error::shape(format!("expected at most three inputs, got {}", inputs.len()))),
        };
        let sequence = |signal: &Signal| match *signal {
            Signal::Sequence { features, axis, mirrored } => Ok((features, axis, mirrored)),
            other => Err(Error::shape(format!("expected a sequence, got {other}"))),
        };
        let ((d, _, back), (v, of_values, values_back), (of_keys, axis, keys_back)) =
            (sequence(query)?, sequence(value)?, sequence(key)?);
        if (of_values, values_back) != (axis, keys_back) || d != of_keys {
            return Err(Error::shape(format!(
                "expected keys like the queries and as long as the values, got queries {query}, values {value}, keys {key}"
            )));
        }
        if self.causal && (back || keys_back) {
            return Err(Error::unsupported("causal attention over a sequence that a layer reversed"));
        }
        Ok(query.with_features(v))
    }

    pub(super) fn parameters(&self, name: &str, features: usize) -> Vec<ParameterSpec> {
        let (shape, own) = match self.score {
            _ if !self.scale => return Vec::new(),
            Score::Dot => (vec![1], Initializer::Constant(1.0)),
            Score::Additive => (vec![features], Initializer::GlorotUniform),
        };
        vec![Rules::default().spec(format!("{name}.scale"), shape, own)]
    }
}
