//! Models that read the words of a text both ways: classifiers of texts, and taggers of their words.

mod classifier;
mod report;
mod tagger;

pub use classifier::Classifier;
pub use report::Report;
pub use tagger::Tagger;

use super::{Model, Named};
use crate::config::{Bias, Direction};
use crate::data::Vocabulary;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io;
use crate::nn::{Dropout, Embedding, Init, Input, Lstm, Network, Port};
use crate::params::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::json;
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

/// What a file says of a model besides its parameters.
#[derive(Serialize, Deserialize)]
struct Described {
    config: WordsConfig,
    labels: Vec<String>,
    vocabulary: Vocabulary,
}

impl Described {
    fn of(config: &WordsConfig, labels: &[String], vocabulary: &Vocabulary) -> Self {
        Self { config: *config, labels: labels.to_vec(), vocabulary: vocabulary.clone() }
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

/// All labels, sorted.
fn labels_of<'a>(all: impl Iterator<Item = &'a String>) -> Result<Vec<String>> {
    let mut labels: Vec<String> = all.cloned().collect();
    labels.sort();
    labels.dedup();
    match labels.len() {
        0 | 1 => Err(Error::data(format!("expected at least two labels to learn, got {labels:?}"))),
        _ => Ok(labels),
    }
}

/// The class of a label.
fn class_of(labels: &[String], label: &String) -> Result<u32> {
    let found = labels.binary_search(label).map(|class| class as u32);
    found.map_err(|_| Error::data(format!("the label `{label}` is not among those of training: {}", labels.join(", "))))
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

/// Writes a model with what `part` says of it.
fn save(model: &mut Model, part: &str, described: &Described, path: &Path) -> Result<()> {
    let mut file = super::save::file(model)?;
    file.metadata[part] = json!(described);
    io::save(path, &file)
}

/// Reads what [`save`] wrote; `network` makes it of its sizes, words and labels.
fn load(
    device: &Device,
    part: &str,
    path: &Path,
    network: fn(&WordsConfig, usize, usize) -> Result<Network>,
) -> Result<(Described, Model)> {
    let load = || {
        let file = io::load(path)?;
        if file.metadata.get(part).is_none() {
            return Err(Error::data(format!("expected a {part}, got another model")));
        }
        let described: Described = file.part(part)?;
        let network = network(&described.config, described.vocabulary.len(), described.labels.len())?;
        let mut parameters = Named::new();
        for spec in network.parameters()? {
            parameters.insert(spec.name.clone(), file.tensor(&spec.name)?.clone());
        }
        Ok((described, Model::new(device, &network, &parameters)?))
    };
    load().map_err(|e: Error| e.within(path.display()))
}
