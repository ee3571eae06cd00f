//! The working memory of a language model.

use super::super::{Init, Signal};
use crate::error::{Error, Result};
use crate::graph::MemoryOp;
use crate::graph::memory::EXACT;
use crate::params::{Initializer, ParameterSpec, Rules};
use serde::{Deserialize, Serialize};

/// Steps of a run that a memory is made for unless it is told otherwise.
const STEPS: usize = 512;
/// The largest window, and the most steps of a run.
const LIMIT: usize = 1 << 20;

/// How what is remembered and what the network says become one distribution. p(w) of the memory is the share of the places whose
/// token is w in Σ e^(q·h) over the window, with q = θ h of the step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Mixture {
    /// (1 - λ) p of the network + λ p of the memory (Grave, Joulin and Usunier 2017).
    Linear {
        /// θ, at least 0.
        theta: f32,
        /// λ in [0, 1).
        lambda: f32,
    },
    /// e^logit of each token + e^(α + θ h·h') of each of its places, over their sum (the same paper).
    Global {
        /// θ, at least 0.
        theta: f32,
        /// α.
        alpha: f32,
    },
    /// What is trained (pointer sentinel, Merity et al. 2016): q = tanh(W h + b), and a sentinel s beside the places whose share
    /// of e^(q·s) + Σ e^(q·h) is the network's.
    Pointer,
}

/// A bounded memory of what a language model has read, a ring of (h, next token) of each sequence, mixed into what it says comes
/// next. Reads h `[B, T, H]` of an LSTM, logits `[B, T, V]` and the tokens `[B, T]`; gives log p `[B, T, V]`. A step sees the
/// steps before it, as many as the window, none of which knows a token that the step has not read.
///
/// At the end of a `Sequential` it reads the logits before it, the last LSTM's h and the model's input.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WorkingMemory {
    /// Steps that are seen, at least 1.
    pub window: usize,
    /// How it is mixed in.
    pub mixture: Mixture,
    /// The most steps of a run.
    pub steps: usize,
    /// Whether it goes on from the run before, as a stateful LSTM does; else it is empty where a run begins.
    pub stateful: bool,
}

impl WorkingMemory {
    /// A linear mixture with the θ and λ of the paper's word models, to be fitted on text of the model's own.
    pub fn new(window: usize) -> Self {
        let mixture = Mixture::Linear { theta: 0.3, lambda: 0.1 };
        Self { window, mixture, steps: STEPS, stateful: true }
    }

    /// A memory that is trained with the network.
    pub fn pointer(window: usize) -> Self {
        Self::new(window).mixture(Mixture::Pointer)
    }

    /// The memory of a model with this window: its own, else the one that was fitted for it, else [`Self::new`], with a warning.
    pub fn of(window: usize, own: Option<&Self>, fitted: Option<&Self>) -> Self {
        let known = own.or(fitted).copied().unwrap_or_else(|| {
            log::warn!("no working memory was fitted for the model: see `mnemon tune-memory`");
            Self::new(window)
        });
        Self { window, ..known }
    }

    /// Sets how it is mixed in.
    #[must_use]
    pub fn mixture(mut self, mixture: Mixture) -> Self {
        self.mixture = mixture;
        self
    }

    /// Sets the most steps of a run.
    #[must_use]
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// Sets whether it goes on from the run before.
    #[must_use]
    pub fn stateful(mut self, stateful: bool) -> Self {
        self.stateful = stateful;
        self
    }

    /// Its ring.
    pub fn op(&self) -> MemoryOp {
        MemoryOp::new(self.window, self.steps)
    }

    pub(super) fn validate(&self) -> Result<()> {
        let refused = |what: String| Err(Error::argument(format!("working memory: {what}")));
        for (name, n) in [("the window", self.window), ("the steps of a run", self.steps)] {
            if !(1..=LIMIT).contains(&n) {
                return refused(format!("{name} must be in 1..={LIMIT}, got {n}"));
            }
        }
        let theta = match self.mixture {
            Mixture::Linear { lambda, .. } if !(0.0..1.0).contains(&lambda) => {
                return refused(format!("lambda must be in [0, 1), got {lambda}"));
            }
            Mixture::Global { alpha, .. } if !alpha.is_finite() => {
                return refused(format!("alpha must be a number, got {alpha}"));
            }
            Mixture::Linear { theta, .. } | Mixture::Global { theta, .. } => theta,
            Mixture::Pointer => 0.0,
        };
        if theta >= 0.0 && theta.is_finite() {
            Ok(())
        } else {
            refused(format!("theta must be at least 0, got {theta}"))
        }
    }

    pub(super) fn output(&self, inputs: &[Signal]) -> Result<Signal> {
        let list = || inputs.iter().map(Signal::to_string).collect::<Vec<_>>().join(", ");
        let &[
            Signal::Sequence { axis: 0, mirrored: false, .. },
            logits @ Signal::Sequence { features, axis: 0, mirrored: false },
            Signal::Tokens { axis: 0 },
        ] = inputs
        else {
            let wanted = "expected h and logits [B, T, *] and tokens [B, T] of the network's first sequence";
            return Err(Error::shape(format!("{wanted}, got {}", list())));
        };
        if features >= EXACT {
            return Err(Error::unsupported(format!("a memory of {features} tokens, expected fewer than {EXACT}")));
        }
        Ok(logits)
    }

    /// Over h of `features`.
    pub(super) fn parameters(&self, name: &str, features: usize) -> Vec<ParameterSpec> {
        if self.mixture != Mixture::Pointer {
            return Vec::new();
        }
        let (kernel, bias) = Init::PyTorch.kernel_and_bias(features);
        let spec = |role: &str, shape: Vec<usize>, own: Initializer| {
            Rules::default().spec(format!("{name}.{role}"), shape, own)
        };
        vec![
            spec("weight", vec![features, features], kernel),
            spec("bias", vec![features], bias),
            spec("sentinel", vec![1, features], kernel),
        ]
    }
}
