//! Training: `compile`, `fit`, `evaluate`, `predict`, `save` and `load` of [`Sequential`](crate::nn::Sequential),
//! character language models, and [`Model`], which runs any network.

mod callbacks;
mod compile;
mod convert;
mod dataset;
mod fit;
mod forecaster;
mod generate;
mod language;
mod learner;
mod mask;
mod memory;
mod metrics;
mod model;
mod monitor;
mod pack;
mod plan;
mod prefetch;
mod recovery;
mod runs;
mod save;
mod scaling;
mod step;
mod text;
mod trainer;
mod words;

pub use crate::scheduler::{Batching, Cost};
pub use callbacks::{
    Backup, Better, Callback, Checkpoint, CsvLog, EarlyStopping, Saved, TerminateOnNan, Training, Watched,
};
pub use convert::model_file;
pub use fit::{Epoch, Evaluate, Fit, History, Scores};
pub use forecaster::{Backtest, Errors, Forecast, Forecaster, ForecasterConfig, Parts, season_of};
pub use generate::{Explanation, Generator, Remembered};
pub use language::{LanguageConfig, LanguageModel};
pub use memory::{Fitted, MixtureKind};
pub use metrics::Metric;
pub use model::{Model, Named};
pub use plan::plan;
pub use runs::{EventWriter, Record, Records, Run, plot as plot_runs};
pub use trainer::{Progress, TrainOptions, Trainer};

pub use words::{Classifier, Known, Reader, Report, Tagger, Texts, WordsConfig};

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// What training makes small: a mean over all samples, and over steps where the model gives sequences.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// The mean of (prediction - y)².
    MeanSquaredError,
    /// The mean of |prediction - y|.
    MeanAbsoluteError,
    /// The mean of d²/2 where |d| is at most delta, else delta (|d| - delta/2), with d = prediction - y (Huber 1964).
    Huber {
        /// Where the square ends.
        delta: f32,
    },
    /// The mean of `-y ln p - (1-y) ln(1-p)` with y in [0, 1]; p is kept 1e-7 away from 0 and 1, as Keras does.
    BinaryCrossEntropy {
        /// Whether the model gives logits, of which p is the sigmoid, rather than p.
        from_logits: bool,
    },
    /// The mean over rows of `-Σ y ln p` with y a distribution over classes; the model's last layer gives p, by softmax,
    /// which is kept at least 1e-7.
    CategoricalCrossEntropy,
    /// The mean of `-ln softmax(logits)[y]` with classes y; the model's last layer gives logits.
    CrossEntropy,
}

/// A loss of one of a network's outputs.
#[derive(Debug, Clone, PartialEq)]
struct Objective {
    /// The output's number.
    output: usize,
    /// What the target is called among a program's inputs.
    name: String,
    loss: Loss,
    /// Whether each row counts by a weight of its own.
    weighted: bool,
}

impl Objective {
    /// What the rows' weights are called among a program's inputs.
    fn weights(&self) -> String {
        format!("weights of {}", self.name)
    }

    /// Of the only output of layers in a row.
    fn sole(loss: Loss) -> Self {
        Self { output: 0, name: "y".to_string(), loss, weighted: false }
    }
}

impl Loss {
    /// Refuses what means nothing.
    fn validate(self) -> Result<()> {
        match self {
            Self::Huber { delta } if !(delta > 0.0 && delta.is_finite()) => {
                Err(Error::argument(format!("huber: delta must be positive, got {delta}")))
            }
            _ => Ok(()),
        }
    }
}
