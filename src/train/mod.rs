//! Training: `compile`, `fit`, `evaluate`, `predict`, `save` and `load` of [`Sequential`](crate::nn::Sequential),
//! character language models, and [`Model`], which runs any network.

mod dataset;
mod fit;
mod generate;
mod language;
mod mask;
mod model;
mod monitor;
mod save;
mod step;
mod trainer;

pub use fit::{Epoch, Fit, History};
pub use generate::Generator;
pub use language::{LanguageConfig, LanguageModel};
pub use model::{Model, Named};
pub use trainer::{Progress, TrainOptions, Trainer};

use serde::{Deserialize, Serialize};

/// What training makes small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// The mean of (prediction - y)².
    MeanSquaredError,
    /// The mean of `-ln softmax(logits)[y]` with classes y; the model's last layer gives logits.
    CrossEntropy,
}
