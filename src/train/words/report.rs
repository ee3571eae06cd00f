//! What a classifier or tagger is worth, label by label.

use std::fmt;

/// How often what has each label was taken to have each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The labels.
    pub labels: Vec<String>,
    /// What has them: a text, a word.
    pub unit: String,
    /// `confusion[is][predicted]`.
    pub confusion: Vec<Vec<u64>>,
}

impl Report {
    pub(super) fn new(labels: &[String], unit: &str) -> Self {
        let confusion = vec![vec![0; labels.len()]; labels.len()];
        Self { labels: labels.to_vec(), unit: unit.to_string(), confusion }
    }

    pub(super) fn add(&mut self, is: usize, predicted: usize) {
        self.confusion[is][predicted] += 1;
    }

    /// The share of right predictions.
    pub fn accuracy(&self) -> f64 {
        let right: u64 = (0..self.labels.len()).map(|at| self.confusion[at][at]).sum();
        right as f64 / self.confusion.iter().flatten().sum::<u64>() as f64
    }

    /// Precision, recall and F1 of a class; 0 where nothing is predicted or there is nothing to be found.
    pub fn of(&self, class: usize) -> [f64; 3] {
        let hit = self.confusion[class][class] as f64;
        let predicted: u64 = self.confusion.iter().map(|row| row[class]).sum();
        let is: u64 = self.confusion[class].iter().sum();
        let share = |all: f64| if all == 0.0 { 0.0 } else { hit / all };
        [share(predicted as f64), share(is as f64), share((predicted + is) as f64 / 2.0)]
    }
}

impl fmt::Display for Report {
    /// A line a label, then the confusion matrix.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: u64 = self.confusion.iter().flatten().sum();
        let width = self.labels.iter().map(|l| l.chars().count()).max().unwrap_or(0).max(9);
        writeln!(f, "{:width$}  precision  recall      F1  {:>6}", "label", format!("{}s", self.unit))?;
        for (class, label) in self.labels.iter().enumerate() {
            let ([precision, recall, f1], of) = (self.of(class), self.confusion[class].iter().sum::<u64>());
            writeln!(f, "{label:width$}     {precision:.4}  {recall:.4}  {f1:.4}  {of:6}")?;
        }
        writeln!(f, "accuracy {:.4} of {all} {}s\n", self.accuracy(), self.unit)?;
        let cell = self.labels.iter().map(|l| l.chars().count()).max().unwrap_or(0).max(6);
        write!(f, "{:width$}", "predicted")?;
        self.labels.iter().try_for_each(|label| write!(f, "  {label:>cell$}"))?;
        for (label, row) in self.labels.iter().zip(&self.confusion) {
            write!(f, "\n{label:width$}")?;
            row.iter().try_for_each(|count| write!(f, "  {count:>cell$}"))?;
        }
        Ok(())
    }
}
