//! Character language models: embedding, stacked stateful LSTMs, logits.

use super::save::check_shape;
use crate::config::Bias;
use crate::data::Vocabulary;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::{self, ModelFile};
use crate::nn::{Dense, Dropout, Embedding, Init, Input, Lstm, Sequential};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::Path;

/// Sizes of a language model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LanguageConfig {
    /// L, stacked LSTM layers.
    pub layers: usize,
    /// H, units of each.
    pub hidden: usize,
    /// Values that stand for a character.
    pub embedding: usize,
    /// Dropout of the embedding, between layers and before the logits; in [0, 1).
    pub dropout: f32,
    /// What parameters begin from.
    pub seed: u64,
}

impl Default for LanguageConfig {
    fn default() -> Self {
        Self { layers: 2, hidden: 128, embedding: 128, dropout: 0.0, seed: 0 }
    }
}

/// A model that predicts the next character, and the characters that it knows. Parameters begin as PyTorch's.
pub struct LanguageModel {
    config: LanguageConfig,
    vocabulary: Vocabulary,
    pub(super) model: Sequential,
}

impl LanguageModel {
    /// A new model.
    pub fn new(device: &Device, config: &LanguageConfig, vocabulary: Vocabulary) -> Result<Self> {
        if config.layers == 0 {
            return Err(Error::argument("language model: layers must be at least 1, got 0"));
        }
        let mut model = Sequential::new(device);
        model.seed(config.seed);
        model.add(Embedding::new(vocabulary.len(), config.embedding).initializers(Init::PyTorch));
        for _ in 0..config.layers {
            model.add(Dropout::new(config.dropout));
            let lstm = Lstm::new(config.hidden).bias(Bias::Two).initializers(Init::PyTorch);
            model.add(lstm.return_sequences(true).stateful(true));
        }
        model.add(Dropout::new(config.dropout));
        model.add(Dense::new(vocabulary.len()).initializers(Init::PyTorch));
        model.build(Input::Tokens)?;
        Ok(Self { config: *config, vocabulary, model })
    }

    /// Its sizes.
    pub fn config(&self) -> &LanguageConfig {
        &self.config
    }

    /// The characters that it knows.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Its layers, with their parameters.
    pub fn model(&mut self) -> &mut Sequential {
        &mut self.model
    }

    /// The vocabulary of a model file, to encode a text with before training resumes.
    pub fn vocabulary_of(path: impl AsRef<Path>) -> Result<Vocabulary> {
        let path = path.as_ref();
        io::load(path)?.part("vocabulary").map_err(|e| e.within(path.display()))
    }

    /// Writes the model without a state of training.
    pub fn save(&mut self, path: impl AsRef<Path>) -> Result<()> {
        io::save(path.as_ref(), &self.model_file()?)
    }

    /// Reads the model of a file that [`Self::save`] or [`Trainer::checkpoint`](super::Trainer::checkpoint) wrote.
    pub fn load(device: &Device, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_file(device, &io::load(path)?).map_err(|e| e.within(path.display()))
    }

    pub(super) fn model_file(&mut self) -> Result<ModelFile> {
        let mut file = self.model.model_file()?;
        file.metadata["language"] = json!(self.config);
        file.metadata["vocabulary"] = json!(self.vocabulary);
        Ok(file)
    }

    pub(super) fn from_file(device: &Device, file: &ModelFile) -> Result<Self> {
        if file.metadata.get("vocabulary").is_none() {
            return Err(Error::data("expected a language model, got a model without a vocabulary"));
        }
        let (config, vocabulary): (LanguageConfig, Vocabulary) = (file.part("language")?, file.part("vocabulary")?);
        let model = Sequential::from_file(device, file)?;
        let table = [vocabulary.len(), config.embedding];
        check_shape("embedding.weight", file.tensor("embedding.weight")?.shape(), &table)?;
        let logits = [vocabulary.len(), config.hidden];
        check_shape("dense.weight", file.tensor("dense.weight")?.shape(), &logits)?;
        Ok(Self { config, vocabulary, model })
    }
}
