//! What is known of a model besides its loss, over whole epochs: every real row counts once.

use super::{Loss, Objective};
use crate::error::{Error, Result};
use crate::params::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// A measure of predictions, none of which has a weight. Those that follow from the loss take it with what regularisers and weights
/// make of it. Classes are those of logits or probabilities; one output of probability, or of its logit, is that of
/// class 1 against class 0, and predicts it above a half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The share of right classes.
    Accuracy,
    /// The share of rows whose class is among the so many likeliest.
    TopK(usize),
    /// Of those predicted to be of a class, the share that are; the mean over classes where there are more than two, else of
    /// class 1. 0 where none is predicted.
    Precision,
    /// Of those that are of a class, the share that are predicted to be; else as [`Self::Precision`].
    Recall,
    /// The harmonic mean of both, of each class.
    F1,
    /// The area under the curve of true over false positives of class 1, by every threshold.
    Auc,
    /// The mean of |prediction - y|.
    MeanAbsoluteError,
    /// The mean of (prediction - y)².
    MeanSquaredError,
    /// e to the mean cross entropy.
    Perplexity,
    /// The mean cross entropy in bits.
    BitsPerCharacter,
}

impl Metric {
    /// Its name in histories.
    pub fn name(self) -> String {
        match self {
            Self::TopK(k) => format!("top_{k}_accuracy"),
            other => serde_json::to_value(other).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default(),
        }
    }

    /// Refuses a measure that means nothing beside a loss of `features` outputs.
    fn check(self, loss: Loss, features: usize) -> Result<()> {
        let classes =
            matches!(loss, Loss::CrossEntropy | Loss::CategoricalCrossEntropy | Loss::BinaryCrossEntropy { .. });
        let binary = matches!(loss, Loss::BinaryCrossEntropy { .. });
        let possible = match self {
            Self::Accuracy => classes,
            Self::Precision | Self::Recall | Self::F1 => classes,
            Self::TopK(k) => classes && !binary && k > 0 && k <= features,
            Self::Auc => classes && (binary || features == 2),
            Self::MeanAbsoluteError | Self::MeanSquaredError => !matches!(loss, Loss::CrossEntropy),
            Self::Perplexity | Self::BitsPerCharacter => loss == Loss::CrossEntropy,
        };
        if possible {
            return Ok(());
        }
        Err(Error::argument(format!("{}: expected another loss than {loss:?} of {features} outputs", self.name())))
    }

    /// Whether it follows from the loss, so that predictions need not be read.
    pub(super) fn is_of_the_loss(self) -> bool {
        matches!(self, Self::Perplexity | Self::BitsPerCharacter)
    }

    /// It, where it follows from the mean loss.
    pub fn of_loss(self, loss: f32) -> Option<f64> {
        match self {
            Self::Perplexity => Some(f64::from(loss).exp()),
            Self::BitsPerCharacter => Some(f64::from(loss) / std::f64::consts::LN_2),
            _ => None,
        }
    }
}

/// Right and wrong of each class.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    hit: u64,
    /// Predicted, and of another class.
    wrong: u64,
    /// Of this class, and predicted as another.
    missed: u64,
}

/// Adds up what a metric is made of.
pub(super) struct Meter {
    metric: Metric,
    loss: Loss,
    rows: u64,
    sum: f64,
    counts: Vec<Counts>,
    /// Of each row how likely class 1 is, and whether it is.
    scores: Vec<(f32, bool)>,
}

impl Meter {
    pub(super) fn new(metric: Metric, objective: &Objective, features: usize) -> Result<Self> {
        metric.check(objective.loss, features)?;
        // Each output of a binary loss is a case of two classes.
        let classes = if matches!(objective.loss, Loss::BinaryCrossEntropy { .. }) { 2 } else { features.max(2) };
        let counts = vec![Counts::default(); classes];
        Ok(Self { metric, loss: objective.loss, rows: 0, sum: 0.0, counts, scores: Vec::new() })
    }

    /// Adds rows of predictions and their targets.
    pub(super) fn add(&mut self, predictions: &Tensor, targets: &Tensor) -> Result<()> {
        if self.metric.is_of_the_loss() {
            return Ok(());
        }
        let width = predictions.shape().last().copied().unwrap_or(1).max(1);
        let values = predictions.f32s()?;
        for (row, values) in values.chunks_exact(width).enumerate() {
            match targets.dtype() {
                DType::U32 => self.class(values, targets.u32s()?[row] as usize),
                DType::F32 => self.row(values, &targets.f32s()?[row * width..(row + 1) * width]),
            }
        }
        Ok(())
    }

    fn row(&mut self, values: &[f32], targets: &[f32]) {
        match self.metric {
            Metric::MeanAbsoluteError | Metric::MeanSquaredError => {
                for (&p, &y) in values.iter().zip(targets) {
                    let d = f64::from(p) - f64::from(y);
                    self.sum += if self.metric == Metric::MeanSquaredError { d * d } else { d.abs() };
                    self.rows += 1;
                }
            }
            _ if matches!(self.loss, Loss::BinaryCrossEntropy { .. }) => {
                for (&p, &y) in values.iter().zip(targets) {
                    self.binary(p, y > 0.5);
                }
            }
            _ => self.class(values, largest(targets)),
        }
    }

    /// One output, which is of class 1.
    fn binary(&mut self, value: f32, target: bool) {
        let middle = if self.loss == (Loss::BinaryCrossEntropy { from_logits: true }) { 0.0 } else { 0.5 };
        if self.metric == Metric::Auc {
            self.scores.push((value, target));
        }
        self.count(usize::from(value > middle), usize::from(target));
    }

    fn class(&mut self, values: &[f32], target: usize) {
        match self.metric {
            Metric::TopK(k) => {
                let of_target = values[target];
                // Of equals the first counts as likelier.
                let before = |(at, &v): (usize, &f32)| v > of_target || (v == of_target && at < target);
                self.rows += 1;
                self.sum += f64::from(u8::from(values.iter().enumerate().filter(|v| before(*v)).count() < k));
            }
            Metric::Auc => self.scores.push((values[1] - values[0], target == 1)),
            _ => self.count(largest(values), target),
        }
    }

    fn count(&mut self, predicted: usize, target: usize) {
        self.rows += 1;
        if predicted == target {
            self.sum += 1.0;
            self.counts[target].hit += 1;
        } else {
            self.counts[predicted].wrong += 1;
            self.counts[target].missed += 1;
        }
    }

    /// The metric over all rows so far, whose mean loss is `loss`; NaN where there is none.
    pub(super) fn value(&self, loss: f32) -> f64 {
        let share = |part: u64, all: u64| if all == 0 { 0.0 } else { part as f64 / all as f64 };
        let each = |of: &dyn Fn(&Counts) -> f64| match self.counts.as_slice() {
            [_, one] => of(one),
            // A class that is neither met nor predicted says nothing.
            all => {
                let met: Vec<&Counts> = all.iter().filter(|c| c.hit + c.wrong + c.missed > 0).collect();
                met.iter().map(|c| of(c)).sum::<f64>() / met.len() as f64
            }
        };
        match self.metric {
            Metric::Perplexity | Metric::BitsPerCharacter => self.metric.of_loss(loss).unwrap_or(f64::NAN),
            Metric::Precision => each(&|c| share(c.hit, c.hit + c.wrong)),
            Metric::Recall => each(&|c| share(c.hit, c.hit + c.missed)),
            Metric::F1 => each(&|c| share(2 * c.hit, 2 * c.hit + c.wrong + c.missed)),
            Metric::Auc => area(&self.scores),
            _ => self.sum / self.rows as f64,
        }
    }
}

/// The first of the largest.
fn largest(values: &[f32]) -> usize {
    (1..values.len()).fold(0, |best, at| if values[at] > values[best] { at } else { best })
}

/// The chance that one of class 1 scores above one of class 0, equals counting half: the area under the curve.
fn area(scores: &[(f32, bool)]) -> f64 {
    if scores.iter().any(|s| s.0.is_nan()) {
        return f64::NAN;
    }
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let positive = sorted.iter().filter(|s| s.1).count() as f64;
    let (mut ranks, mut at) = (0.0, 0);
    while at < sorted.len() {
        let equal = sorted[at..].iter().take_while(|s| s.0.total_cmp(&sorted[at].0).is_eq()).count();
        let rank = at as f64 + (equal as f64 + 1.0) / 2.0;
        ranks += rank * sorted[at..at + equal].iter().filter(|s| s.1).count() as f64;
        at += equal;
    }
    (ranks - positive * (positive + 1.0) / 2.0) / (positive * (scores.len() as f64 - positive))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(metric: Metric, loss: Loss, predictions: &Tensor, targets: &Tensor) -> f64 {
        let features = *predictions.shape().last().unwrap();
        let mut meter = Meter::new(metric, &Objective::sole(loss), features).unwrap();
        meter.add(predictions, targets).unwrap();
        meter.value(2.0f32.ln())
    }

    /// The numbers are worked out by hand, means over classes.
    #[test]
    fn classes_are_counted_as_elsewhere() {
        let logits =
            [[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 2.0], [0.5, 0.4, 0.1], [0.1, 0.9, 0.8], [0.0, 0.2, 0.1]];
        let logits = Tensor::new(&[6, 3], logits.concat()).unwrap();
        let targets = Tensor::from_u32(&[6], vec![0, 1, 2, 1, 2, 1]).unwrap();
        let of = |metric| measured(metric, Loss::CrossEntropy, &logits, &targets);
        let near = |got: f64, wanted: f64| assert!((got - wanted).abs() < 1e-9, "{got} {wanted}");
        near(of(Metric::Accuracy), 4.0 / 6.0);
        near(of(Metric::TopK(2)), 1.0);
        near(of(Metric::Precision), (1.0 / 2.0 + 2.0 / 3.0 + 1.0) / 3.0);
        near(of(Metric::Recall), (1.0 + 2.0 / 3.0 + 1.0 / 2.0) / 3.0);
        near(of(Metric::F1), (2.0 / 3.0 + 2.0 / 3.0 + 2.0 / 3.0) / 3.0);
        near(of(Metric::Perplexity), f64::from(2.0f32.ln()).exp());
        near(of(Metric::BitsPerCharacter), f64::from(2.0f32.ln()) / 2.0f64.ln());
    }

    #[test]
    fn one_output_is_of_class_one() {
        let p = Tensor::new(&[5, 1], vec![0.1, 0.4, 0.35, 0.8, 0.35]).unwrap();
        let y = Tensor::new(&[5, 1], vec![0.0, 0.0, 1.0, 1.0, 1.0]).unwrap();
        let of = |metric| measured(metric, Loss::BinaryCrossEntropy { from_logits: false }, &p, &y);
        assert_eq!(of(Metric::Accuracy), 0.6);
        assert_eq!((of(Metric::Precision), of(Metric::Recall)), (1.0, 1.0 / 3.0));
        assert!((of(Metric::Auc) - 4.0 / 6.0).abs() < 1e-12);
        assert!((of(Metric::MeanAbsoluteError) - (0.1 + 0.4 + 0.65 + 0.2 + 0.65) / 5.0).abs() < 1e-7);
        let refused = Meter::new(Metric::Auc, &Objective::sole(Loss::CrossEntropy), 3);
        assert!(refused.is_err() && Meter::new(Metric::Accuracy, &Objective::sole(Loss::MeanSquaredError), 1).is_err());
        assert!(Meter::new(Metric::TopK(4), &Objective::sole(Loss::CrossEntropy), 3).is_err());
    }
}
