//! Models that read the words of a text both ways: classifiers of texts, and taggers of their words.

mod classifier;
mod report;
mod tagger;

pub use classifier::Classifier;
pub use report::Report;
pub use tagger::Tagger;

use super::{Callback, Fit, History, Loss, Model, Named};
use crate::config::{Bias, Direction};
use crate::data::{Level, Vocabulary};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io;
use crate::nn::{Dropout, Embedding, Init, Input, Lstm, Network, Port};
use crate::optim::Optimizer;
use crate::params::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::marker::PhantomData;
use std::path::Path;

/// Sizes of a model of words.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WordsConfig {
    /// L, stacked layers.
    pub layers: usize,
    /// H, units of each in each direction.
    pub hidden: usize,
    /// Values that stand for a word.
    pub embedding: usize,
    /// Dropout of words' values, between layers and before the labels; in [0, 1).
    pub dropout: f32,
    /// Words that the training texts have less often are one, `<unk>`.
    pub least: usize,
    /// What parameters begin from.
    pub seed: u64,
}

impl Default for WordsConfig {
    fn default() -> Self {
        Self { layers: 1, hidden: 128, embedding: 128, dropout: 0.5, least: 2, seed: 0 }
    }
}

/// The output.
const OUTPUT: &str = "label";
/// Texts that are read at once where labels are predicted.
const BATCH: usize = 256;

/// The words and labels that a model knows, and its sizes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Known {
    config: WordsConfig,
    labels: Vec<String>,
    vocabulary: Vocabulary,
}

impl Known {
    /// The class of a label.
    fn class(&self, label: &String) -> Result<u32> {
        let found = self.labels.binary_search(label).map(|class| class as u32);
        let known = || self.labels.join(", ");
        found.map_err(|_| Error::data(format!("the label `{label}` is not among those of training: {}", known())))
    }
}

/// Labelled texts of one kind, and what learns them.
pub trait Texts: Sized {
    /// What a model of them is called in its file.
    const PART: &'static str;
    /// What has a label.
    const UNIT: &'static str;
    /// The network that gives a label to each.
    fn network(config: &WordsConfig, words: usize, labels: usize) -> Result<Network>;
    /// Their words, a text a line.
    fn lines(&self) -> String;
    /// The labels of each text.
    fn labels(&self) -> Vec<Vec<&String>>;
    /// The texts `order`.
    fn choose(&self, order: &[usize]) -> Self;
    /// As a model takes and should give them.
    fn given(&self, known: &Known) -> Result<(Named, Named)>;
    /// Tells of each label, and what was predicted in its place, by their classes.
    fn count(&self, reader: &mut Reader<Self>, tell: &mut dyn FnMut(usize, usize)) -> Result<()>;
}

/// A model that reads words both ways, with those and the labels that it knows.
pub struct Reader<T> {
    known: Known,
    model: Model,
    texts: PhantomData<T>,
}

impl<T: Texts> Reader<T> {
    /// A new model of the words and labels of `texts`.
    pub fn new(device: &Device, config: &WordsConfig, texts: &T) -> Result<Self> {
        let mut labels: Vec<String> = texts.labels().into_iter().flatten().cloned().collect();
        labels.sort();
        labels.dedup();
        if labels.len() < 2 {
            return Err(Error::data(format!("expected at least two labels to learn, got {labels:?}")));
        }
        let vocabulary = Vocabulary::at(Level::Words, &texts.lines(), config.least)?;
        let network = T::network(config, vocabulary.len(), labels.len())?;
        let model = Model::initialized(device, &network, config.seed)?;
        Ok(Self { known: Known { config: *config, labels, vocabulary }, model, texts: PhantomData })
    }

    /// Its sizes.
    pub fn config(&self) -> &WordsConfig {
        &self.known.config
    }

    /// The labels, in the order of their classes.
    pub fn labels(&self) -> &[String] {
        &self.known.labels
    }

    /// How many words it tells apart.
    pub fn words(&self) -> usize {
        self.known.vocabulary.len()
    }

    /// Its layers, with their parameters.
    pub fn model(&mut self) -> &mut Model {
        &mut self.model
    }

    /// Trains on texts, validating on others where there are any.
    pub fn fit(
        &mut self,
        optimizer: impl Into<Optimizer>,
        texts: &T,
        validation: Option<&T>,
        fit: &Fit,
        callbacks: &mut [&mut dyn Callback],
    ) -> Result<History> {
        self.model.compile(optimizer, &[(OUTPUT, Loss::CrossEntropy)])?;
        let (inputs, targets) = texts.given(&self.known)?;
        let validation = validation.map(|held_out| held_out.given(&self.known)).transpose()?;
        let validation = validation.as_ref().map(|(inputs, targets)| (inputs, targets));
        self.model.fit_with_callbacks(&inputs, &targets, validation, fit, callbacks)
    }

    /// What it is worth on labelled texts.
    pub fn report(&mut self, texts: &T) -> Result<Report> {
        if texts.labels().is_empty() {
            return Err(Error::data("expected at least one text to report on, got none"));
        }
        let mut report = Report::new(self.labels(), T::UNIT);
        texts.count(self, &mut |is, predicted| report.add(is, predicted))?;
        Ok(report)
    }

    /// The logits of the model for tokens.
    fn logits(&mut self, rows: &[Vec<u32>]) -> Result<Tensor> {
        let mut outputs = self.model.run_for(&inputs(rows)?, &[OUTPUT])?;
        outputs.remove(OUTPUT).ok_or_else(|| Error::internal(format!("{}: no output", T::PART)))
    }

    /// Writes it with its words and labels.
    pub fn save(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let mut file = super::save::file(&mut self.model)?;
        file.metadata[T::PART] = json!(self.known);
        io::save(path.as_ref(), &file)
    }

    /// Reads what [`Self::save`] wrote.
    pub fn load(device: &Device, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let load = || {
            let file = io::load(path)?;
            if file.metadata.get(T::PART).is_none() {
                return Err(Error::data(format!("expected a {}, got another model", T::PART)));
            }
            let known: Known = file.part(T::PART)?;
            let network = T::network(&known.config, known.vocabulary.len(), known.labels.len())?;
            let mut parameters = Named::new();
            for spec in network.parameters()? {
                parameters.insert(spec.name.clone(), file.tensor(&spec.name)?.clone());
            }
            let model = Model::new(device, &network, &parameters)?;
            Ok(Self { known, model, texts: PhantomData })
        };
        load().map_err(|e: Error| e.within(path.display()))
    }
}

/// A network of words and the layers that read them, and what the last of these gives at each step.
fn read_both_ways(config: &WordsConfig, words: usize) -> Result<(Network, Vec<Port>)> {
    if config.layers == 0 {
        return Err(Error::argument("a model of words: layers must be at least 1, got 0"));
    }
    let mut network = Network::default();
    let x = network.input("x", Input::Tokens);
    let mut y = network.add(Embedding::new(words, config.embedding).initializers(Init::PyTorch), &[x])?;
    for _ in 0..config.layers {
        y = network.add(Dropout::new(config.dropout), &y)?;
        let lstm = Lstm::new(config.hidden).direction(Direction::Both).bias(Bias::Two).initializers(Init::PyTorch);
        y = network.add(lstm.return_sequences(true), &y)?;
    }
    Ok((network, y))
}

/// Rows of different lengths, none of them empty, as `[rows, T]`.
fn padded(rows: &[Vec<u32>]) -> Result<Tensor> {
    let steps = rows.iter().map(Vec::len).max().unwrap_or(0);
    let values = rows.iter().flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0, steps - row.len())));
    Tensor::from_u32(&[rows.len(), steps], values.collect())
}

/// Tokens as a model takes them, with their lengths.
fn inputs(rows: &[Vec<u32>]) -> Result<Named> {
    let lengths = rows.iter().map(|row| row.len() as u32).collect();
    let lengths = Tensor::from_u32(&[rows.len()], lengths)?;
    Ok(Named::from([("x".to_string(), padded(rows)?), ("lengths".to_string(), lengths)]))
}

/// The first of the largest.
fn likeliest(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, at| if row[at] > row[best] { at } else { best })
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|l| (l - largest).exp()).sum();
    logits.iter().map(|l| (l - largest).exp() / sum).collect()
}
