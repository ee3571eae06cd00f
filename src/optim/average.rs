//! Averages of parameters, kept beside them.

use super::rules::Slot;
use crate::error::{Error, Result};
use crate::graph::Expr;
use serde::{Deserialize, Serialize};

/// Which average of parameters is kept, to be evaluated and to be the model in the end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Average {
    /// a = μ a + (1-μ) w after each step, from the first w (Keras's `use_ema`).
    Exponential {
        /// μ, in [0, 1).
        momentum: f64,
    },
    /// The mean over the steps after the first `after` (Polyak and Juditsky 1992); until then w itself.
    Mean {
        /// Steps.
        after: u32,
    },
    /// The mean from when the loss of validation is no better than the best of those `interval` epochs ago and before (the
    /// non-monotonic trigger of Merity et al. 2018); until then w itself.
    Triggered {
        /// Epochs, at least 1.
        interval: u32,
    },
}

pub(super) const AVERAGE: Slot = Slot::zero("optimizer.average.");
const RATE: &str = "optimizer.average_rate";

impl Average {
    pub(super) fn validate(&self) -> Result<()> {
        match *self {
            Self::Exponential { momentum } if !(0.0..1.0).contains(&momentum) => {
                Err(Error::argument(format!("average: momentum must be in [0, 1), got {momentum}")))
            }
            Self::Triggered { interval: 0 } => {
                Err(Error::argument("average: the interval must be at least 1 epoch, got 0"))
            }
            _ => Ok(()),
        }
    }

    /// How far the average moves to the parameters at step `t`, counted from 1, where it was triggered after `since`.
    pub(super) fn rate(&self, t: f64, since: Option<u32>) -> (&'static str, f64) {
        let mean = |after: u32| 1.0 / (t - 1.0 - f64::from(after)).max(1.0);
        let rate = match *self {
            Self::Exponential { momentum } if t > 1.0 => 1.0 - momentum,
            Self::Exponential { .. } => 1.0,
            Self::Mean { after } => mean(after),
            Self::Triggered { .. } => since.map_or(1.0, mean),
        };
        (RATE, rate)
    }

    /// The average, given the parameter. A rate of 1 must give the parameter's own bits.
    pub(super) fn step(average: Expr, w: Expr) -> Expr {
        let rate = || Expr::scalar(RATE);
        rate().less(Expr::Const(1.0)).select(average.clone() + rate() * (w.clone() - average), w)
    }
}
