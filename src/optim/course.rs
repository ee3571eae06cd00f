//! Where training stands, and what its schedule has seen.

use super::{Average, Optimizer, Waiting};
use serde::{Deserialize, Serialize};

/// Where training stands: what scalars and schedules follow from, kept with an optimiser's slots.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Course {
    /// Batches trained on.
    pub step: u32,
    /// Epochs done.
    #[serde(default)]
    pub epoch: u32,
    /// Of a [`Plateau`](super::Plateau).
    #[serde(default)]
    pub waiting: Waiting,
    /// When a triggered average began, in steps of the optimiser.
    #[serde(default)]
    pub averaged_since: Option<u32>,
    /// Losses of validation that a trigger looks back to.
    #[serde(default)]
    losses: Vec<f32>,
}

impl Course {
    /// After `step` batches of the first epoch.
    pub fn at(step: u32) -> Self {
        Self { step, ..Self::default() }
    }
}

impl Optimizer {
    /// Tells the schedule how an epoch ended; of validation, where there is any. `course` counts that epoch as done.
    pub fn observe(&self, course: &mut Course, loss: f32) {
        if let Some(plateau) = &self.plateau {
            plateau.observe(&mut course.waiting, loss);
        }
        if let Some(Average::Triggered { interval }) = self.average {
            let before = course.losses.len().saturating_sub(interval as usize);
            let best = course.losses[..before].iter().copied().reduce(f32::min);
            if course.averaged_since.is_none() && best.is_some_and(|best| loss > best) {
                course.averaged_since = Some(course.step / self.accumulation);
            }
            // JSON knows no infinity.
            course.losses.push(if loss.is_finite() { loss } else { f32::MAX });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::Sgd;

    #[test]
    fn an_average_is_triggered_by_a_loss_that_rises_over_an_interval() {
        let optimizer = Optimizer::from(Sgd::default()).average(Average::Triggered { interval: 2 });
        let mut course = Course::default();
        for (epoch, loss) in [3.0, 2.0, 1.0, 1.5, 1.6, 1.2].into_iter().enumerate() {
            course.step += 10;
            optimizer.observe(&mut course, loss);
            // At the sixth, the best of two epochs ago and before was 1.0.
            assert_eq!(course.averaged_since, (epoch >= 5).then_some(60), "{epoch}");
        }
        assert_eq!(Average::Triggered { interval: 2 }.rate(62.0, course.averaged_since).1, 1.0);
        assert_eq!(Average::Triggered { interval: 2 }.rate(64.0, course.averaged_since).1, 1.0 / 3.0);
    }
}
