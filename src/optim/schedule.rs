//! Learning rates that change: factors of an optimiser's own rate, by step or by epoch.

use super::rules::{not_negative, positive};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// A factor of the learning rate at each step t, counted from 0.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// 1.
    #[default]
    Constant,
    /// f^⌊t/every⌋ (PyTorch's `StepLR`).
    Step {
        /// At least 1.
        every: u32,
        /// f, above 0.
        factor: f64,
    },
    /// f^(how many of `at` are reached) (`MultiStepLR`).
    Milestones {
        /// Rising.
        at: Vec<u32>,
        /// f, above 0.
        factor: f64,
    },
    /// f^(t/every) (Keras's `ExponentialDecay`).
    Exponential {
        /// At least 1.
        every: u32,
        /// f, above 0.
        factor: f64,
    },
    /// Half a cosine from 1 to `least` in `steps`, and `least` from then on (`CosineDecay`).
    Cosine {
        /// At least 1.
        steps: u32,
        /// In [0, 1].
        least: f64,
    },
    /// Half cosines to `least`, again and again (Loshchilov and Hutter 2017; `CosineDecayRestarts`).
    CosineRestarts {
        /// Steps of the first, at least 1.
        steps: u32,
        /// How many times as long as the last one each is, at least 1.
        longer: f64,
        /// The factor of where each begins, above 0.
        lower: f64,
        /// In [0, 1].
        least: f64,
    },
    /// A line from `from` to 1 in `steps`, and 1 from then on (`LinearLR`).
    Warmup {
        /// At least 1.
        steps: u32,
        /// In [0, 1].
        from: f64,
    },
    /// A line from 1 to `least` in `steps`.
    Linear {
        /// At least 1.
        steps: u32,
        /// In [0, 1].
        least: f64,
    },
    /// By half cosines from `first` up to 1 in `rise` of the steps, then down to `last` (Smith 2018; PyTorch's `OneCycleLR`,
    /// where first is 1/div_factor and last is first/final_div_factor).
    OneCycle {
        /// Of the whole cycle, at least 2.
        steps: u32,
        /// In (0, 1).
        rise: f64,
        /// In [0, 1].
        first: f64,
        /// In [0, 1].
        last: f64,
    },
    /// The product of several (`ChainedScheduler`).
    Product(Vec<Schedule>),
    /// One after another, each for as many steps and counting from its own beginning; the last for good (`SequentialLR`).
    Sequence(Vec<(u32, Schedule)>),
    /// Counts epochs instead of steps.
    PerEpoch(Box<Schedule>),
}

impl Schedule {
    /// The factor at a step of an epoch, both counted from 0.
    pub fn factor(&self, step: u32, epoch: u32) -> f64 {
        let t = f64::from(step);
        // From 1 at 0 to `least` at 1.
        let cosine = |at: f64, least: f64| least + (1.0 - least) * 0.5 * (1.0 + (PI * at).cos());
        match self {
            Self::Constant => 1.0,
            Self::Step { every, factor } => factor.powf(f64::from(step / every)),
            Self::Milestones { at, factor } => factor.powf(at.iter().filter(|&&m| m <= step).count() as f64),
            Self::Exponential { every, factor } => factor.powf(t / f64::from(*every)),
            Self::Cosine { steps, least } => cosine((t / f64::from(*steps)).min(1.0), *least),
            Self::CosineRestarts { steps, longer, lower, least } => {
                let at = t / f64::from(*steps);
                // The sum of n periods is (longerⁿ - 1)/(longer - 1).
                let (cycle, at) = if *longer == 1.0 {
                    (at.floor(), at.fract())
                } else {
                    let cycle = ((1.0 - at * (1.0 - longer)).ln() / longer.ln() + 1e-12).floor();
                    let begun = (1.0 - longer.powf(cycle)) / (1.0 - longer);
                    (cycle, (at - begun).max(0.0) / longer.powf(cycle))
                };
                least + lower.powf(cycle) * (cosine(at, *least) - least)
            }
            Self::Warmup { steps, from } => from + (1.0 - from) * (t / f64::from(*steps)).min(1.0),
            Self::Linear { steps, least } => 1.0 - (1.0 - least) * (t / f64::from(*steps)).min(1.0),
            Self::OneCycle { steps, rise, first, last } => {
                let (up, all) = (rise * f64::from(*steps) - 1.0, f64::from(*steps) - 1.0);
                let between = |from: f64, to: f64, at: f64| to + (from - to) * 0.5 * (1.0 + (PI * at.min(1.0)).cos());
                if t <= up { between(*first, 1.0, t / up) } else { between(1.0, *last, (t - up) / (all - up)) }
            }
            Self::Product(all) => all.iter().map(|s| s.factor(step, epoch)).product(),
            Self::Sequence(all) => {
                let mut left = step;
                for (at, (steps, schedule)) in all.iter().enumerate() {
                    if left < *steps || at + 1 == all.len() {
                        return schedule.factor(left, epoch);
                    }
                    left -= steps;
                }
                1.0
            }
            Self::PerEpoch(inner) => inner.factor(epoch, epoch),
        }
    }

    /// Refuses what means nothing.
    pub fn validate(&self) -> Result<()> {
        let some = |name: &str, n: u32| match n {
            0 => Err(Error::argument(format!("schedule: {name} must be at least 1, got 0"))),
            _ => Ok(()),
        };
        let part = |name: &str, x: f64| match (0.0..=1.0).contains(&x) {
            true => Ok(()),
            false => Err(Error::argument(format!("schedule: {name} must be in [0, 1], got {x}"))),
        };
        match self {
            Self::Constant => Ok(()),
            Self::Step { every, factor } | Self::Exponential { every, factor } => {
                some("every", *every).and(positive("the schedule's factor", *factor))
            }
            Self::Milestones { at, factor } => {
                positive("the schedule's factor", *factor)?;
                match at.is_sorted() {
                    true => Ok(()),
                    false => Err(Error::argument(format!("schedule: milestones must rise, got {at:?}"))),
                }
            }
            Self::Cosine { steps, least } | Self::Linear { steps, least } => {
                some("steps", *steps).and(part("least", *least))
            }
            Self::CosineRestarts { steps, longer, lower, least } => {
                some("steps", *steps).and(part("least", *least))?;
                positive("the schedule's factor `lower`", *lower)?;
                not_negative("the schedule's `longer` - 1", longer - 1.0)
            }
            Self::Warmup { steps, from } => some("steps", *steps).and(part("from", *from)),
            Self::OneCycle { steps, rise, first, last } => {
                part("first", *first).and(part("last", *last))?;
                match *steps >= 2 && f64::from(*steps) * rise > 1.0 && *rise < 1.0 {
                    true => Ok(()),
                    false => Err(Error::argument(format!(
                        "schedule: one cycle needs more than one step to rise and one to fall, got {rise} of {steps}"
                    ))),
                }
            }
            Self::Product(all) => all.iter().try_for_each(Self::validate),
            Self::Sequence(all) => all.iter().try_for_each(|(_, s)| s.validate()),
            Self::PerEpoch(inner) => inner.validate(),
        }
    }
}

/// Lowers the learning rate where the loss no longer falls (PyTorch's `ReduceLROnPlateau`; Keras's waits one epoch less).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Plateau {
    /// What the rate is multiplied by, in (0, 1).
    pub factor: f64,
    /// Epochs without a better loss that change nothing.
    pub patience: u32,
    /// A loss is better if it is below this share less than the best; at least 0.
    pub threshold: f64,
    /// Epochs after a change that do not count.
    pub cooldown: u32,
    /// The product of factors goes no lower, in [0, 1].
    pub least: f64,
}

impl Default for Plateau {
    fn default() -> Self {
        Self { factor: 0.1, patience: 10, threshold: 1e-4, cooldown: 0, least: 0.0 }
    }
}

/// How far a [`Plateau`] has come.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Waiting {
    best: Option<f32>,
    epochs: u32,
    cooling: u32,
    /// The product of factors so far.
    pub factor: f64,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { best: None, epochs: 0, cooling: 0, factor: 1.0 }
    }
}

impl Plateau {
    pub(super) fn validate(&self) -> Result<()> {
        let inside = |x: f64| x > 0.0 && x < 1.0;
        match inside(self.factor) && (0.0..=1.0).contains(&self.least) && self.threshold >= 0.0 {
            true => Ok(()),
            false => Err(Error::argument(format!(
                "plateau: expected a factor in (0, 1), a least in [0, 1] and a threshold of at least 0, got {self:?}"
            ))),
        }
    }

    pub(super) fn observe(&self, waiting: &mut Waiting, loss: f32) {
        let below = |best: f32| f64::from(loss) < f64::from(best) * (1.0 - self.threshold);
        let better = !loss.is_nan() && waiting.best.is_none_or(below);
        if better {
            waiting.best = Some(loss);
            waiting.epochs = 0;
        } else {
            waiting.epochs += 1;
        }
        if waiting.cooling > 0 {
            waiting.cooling -= 1;
            waiting.epochs = 0;
        }
        if waiting.epochs > self.patience {
            waiting.factor = (waiting.factor * self.factor).max(self.least);
            (waiting.cooling, waiting.epochs) = (self.cooldown, 0);
        }
    }
}
