//! Language models: embedding, stacked stateful LSTMs, logits.

use super::save::{self, check_shape};
use super::step::{EVALUATE, evaluation_graph};
use super::text::Streams;
use super::{Loss, Objective};
use crate::config::{Bias, Mask};
use crate::data::Vocabulary;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::{self, ModelFile};
use crate::nn::{Dense, Dropout, Embedding, Init, Input, Lstm, Sequential, WorkingMemory};
use crate::params::{Initializer, Rules};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::Path;

/// Steps of a window of a text that is scored.
const SCORED: usize = 512;
/// The table's layer.
const EMBEDDING: &str = "embedding";

/// Sizes of a language model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LanguageConfig {
    /// L, stacked LSTM layers.
    pub layers: usize,
    /// H, units of each.
    pub hidden: usize,
    /// Values that stand for a token.
    pub embedding: usize,
    /// Dropout of the embedding, between layers and before the logits; in [0, 1).
    pub dropout: f32,
    /// Whether a sequence's steps share a mask of dropout (Gal and Ghahramani 2016).
    #[serde(default)]
    pub variational: bool,
    /// Dropout of the recurrent weights, one mask a batch (Merity et al. 2018); in [0, 1).
    #[serde(default)]
    pub weight_drop: f32,
    /// Dropout of whole tokens' rows of the embedding, one mask a batch; in [0, 1).
    #[serde(default)]
    pub embedding_dropout: f32,
    /// What the mean square of the last layer's h adds to the loss of training, times this (AR, Merity et al. 2017).
    #[serde(default)]
    pub activation_penalty: f32,
    /// The same of what h changes by from step to step (TAR).
    #[serde(default)]
    pub temporal_penalty: f32,
    /// Whether the logits' matrix is the embedding's table (Press and Wolf 2017): the embedding is as wide as the last layer.
    #[serde(default)]
    pub tied: bool,
    /// What parameters begin from.
    pub seed: u64,
}

impl Default for LanguageConfig {
    fn default() -> Self {
        Self {
            layers: 2,
            hidden: 128,
            embedding: 128,
            dropout: 0.0,
            variational: false,
            weight_drop: 0.0,
            embedding_dropout: 0.0,
            activation_penalty: 0.0,
            temporal_penalty: 0.0,
            tied: false,
            seed: 0,
        }
    }
}

/// What a table begins within that is the logits' matrix too: logits of its rows are small at first.
const TIED: f32 = 0.1;

/// A model that predicts the next token, and the tokens that it knows. Parameters begin as PyTorch's; a tied table in ±0.1.
pub struct LanguageModel {
    config: LanguageConfig,
    vocabulary: Vocabulary,
    pub(super) model: Sequential,
    /// What was fitted for it on text, whether it is used or not.
    pub(super) fitted: Option<WorkingMemory>,
}

impl LanguageModel {
    /// A new model.
    pub fn new(device: &Device, config: &LanguageConfig, vocabulary: Vocabulary) -> Result<Self> {
        if config.layers == 0 {
            return Err(Error::argument("language model: layers must be at least 1, got 0"));
        }
        if config.tied && config.embedding != config.hidden {
            return Err(Error::argument(format!(
                "language model: a tied embedding has as many values as the last layer has units, {}, got {}",
                config.hidden, config.embedding
            )));
        }
        let mut model = Sequential::new(device);
        model.seed(config.seed);
        let mut embedding = Embedding::new(vocabulary.len(), config.embedding).initializers(Init::PyTorch);
        embedding = embedding.dropout(config.embedding_dropout);
        let mut logits = Dense::new(vocabulary.len()).initializers(Init::PyTorch);
        if config.tied {
            let within = Rules { initializer: Some(Initializer::Uniform(TIED)), ..Rules::default() };
            embedding = embedding.kernel(within).name(EMBEDDING);
            logits = logits.tied(EMBEDDING);
        }
        let mut dropout = Dropout::new(config.dropout);
        if config.variational {
            dropout.mask = Mask::Sequence;
        }
        model.add(embedding);
        for layer in 1..=config.layers {
            model.add(dropout.clone());
            let mut lstm = Lstm::new(config.hidden).bias(Bias::Two).initializers(Init::PyTorch);
            if layer == config.layers {
                lstm.activation_penalty = config.activation_penalty;
                lstm.temporal_penalty = config.temporal_penalty;
            }
            model.add(lstm.weight_drop(config.weight_drop).return_sequences(true).stateful(true));
        }
        model.add(dropout);
        model.add(logits);
        model.build(Input::Tokens)?;
        Ok(Self { config: *config, vocabulary, model, fitted: None })
    }

    /// Its working memory, where it has one.
    pub fn memory(&self) -> Option<&WorkingMemory> {
        self.model.memory()
    }

    /// Has another working memory, or none; what a pointer learnt is forgotten with it.
    pub fn set_memory(&mut self, memory: Option<WorkingMemory>) -> Result<()> {
        self.model.set_memory(memory)
    }

    /// Has a working memory of this window: its own, else the one that was fitted for it, else one of the paper's settings.
    pub fn remember(&mut self, window: usize) -> Result<()> {
        self.set_memory(Some(WorkingMemory::of(window, self.memory(), self.fitted.as_ref())))
    }

    /// Its sizes.
    pub fn config(&self) -> &LanguageConfig {
        &self.config
    }

    /// The tokens that it knows.
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

    /// The mean loss over a text of tokens, in nats a token, and how many were predicted: all but the first. It is read as one
    /// stream from a state of zero.
    pub fn score(&mut self, tokens: Vec<u32>) -> Result<(f32, usize)> {
        let length = tokens.len().saturating_sub(1);
        if length == 0 {
            return Err(Error::data(format!("score: expected a text of at least 2 tokens, got {}", tokens.len())));
        }
        let streams = Streams { tokens, count: 1, length, sequence: self.window().min(length) };
        let network = self.model.network(Input::Tokens)?;
        let graph = evaluation_graph(&network, &[Objective::sole(Loss::CrossEntropy)], "score.", false)?;
        let session = self.model.session()?;
        EVALUATE.zero(session)?;
        let mut program = session.load(&graph, &streams.capacity()?)?;
        Ok((streams.evaluate(session, &mut program)?, length))
    }

    /// Steps of a window of a text that is scored.
    pub(super) fn window(&self) -> usize {
        self.memory().map_or(SCORED, |memory| SCORED.min(memory.op().steps()))
    }

    pub(super) fn model_file(&mut self) -> Result<ModelFile> {
        let mut file = save::file(&mut self.model)?;
        file.metadata["language"] = json!(self.config);
        file.metadata["vocabulary"] = json!(self.vocabulary);
        if let Some(fitted) = &self.fitted {
            file.metadata[io::MEMORY] = json!(fitted);
        }
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
        if !config.tied {
            let logits = [vocabulary.len(), config.hidden];
            check_shape("dense.weight", file.tensor("dense.weight")?.shape(), &logits)?;
        }
        let fitted = io::fitted_memory(file)?;
        Ok(Self { config, vocabulary, model, fitted })
    }
}
