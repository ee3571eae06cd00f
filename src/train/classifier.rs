//! Classifiers of text: words, an LSTM that reads them both ways, the largest of each feature over all steps, classes.

use super::fit::{Fit, History};
use super::metrics::Metric;
use super::model::{Model, Named};
use super::{Callback, Evaluate, Loss, Scores, save};
use crate::config::{Bias, Direction};
use crate::data::{Labelled, Level, Vocabulary};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io;
use crate::nn::{Dense, Dropout, Embedding, Init, Input, Lstm, Network, Pooling};
use crate::optim::Optimizer;
use crate::params::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fmt;
use std::path::Path;

/// Sizes of a classifier.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClassifierConfig {
    /// L, stacked layers.
    pub layers: usize,
    /// H, units of each in each direction.
    pub hidden: usize,
    /// Values that stand for a word.
    pub embedding: usize,
    /// Dropout of words' values, between layers and before the classes; in [0, 1).
    pub dropout: f32,
    /// Words that the training texts have less often are one, `<unk>`.
    pub least: usize,
    /// What parameters begin from.
    pub seed: u64,
}

impl Default for ClassifierConfig {
    fn default() -> Self {
        Self { layers: 1, hidden: 128, embedding: 128, dropout: 0.5, least: 2, seed: 0 }
    }
}

/// A classifier with the words and the labels that it knows.
pub struct Classifier {
    config: ClassifierConfig,
    vocabulary: Vocabulary,
    labels: Vec<String>,
    model: Model,
}

/// The output.
const OUTPUT: &str = "class";
const PART: &str = "classifier";

#[derive(Serialize, Deserialize)]
struct Described {
    config: ClassifierConfig,
    labels: Vec<String>,
    vocabulary: Vocabulary,
}

fn network(config: &ClassifierConfig, words: usize, classes: usize) -> Result<Network> {
    if config.layers == 0 {
        return Err(Error::argument("classifier: layers must be at least 1, got 0"));
    }
    let mut network = Network::default();
    let x = network.input("x", Input::Tokens);
    let mut y = network.add(Embedding::new(words, config.embedding).initializers(Init::PyTorch), &[x])?;
    for _ in 0..config.layers {
        y = network.add(Dropout::new(config.dropout), &y)?;
        let lstm = Lstm::new(config.hidden).direction(Direction::Both).bias(Bias::Two).initializers(Init::PyTorch);
        y = network.add(lstm.return_sequences(true), &y)?;
    }
    y = network.add(Pooling::max(), &y)?;
    y = network.add(Dropout::new(config.dropout), &y)?;
    y = network.add(Dense::new(classes).initializers(Init::PyTorch), &y)?;
    network.output(OUTPUT, y[0]);
    Ok(network)
}

impl Classifier {
    /// A new classifier for the words and labels of `texts`.
    pub fn new(device: &Device, config: &ClassifierConfig, texts: &Labelled) -> Result<Self> {
        let mut labels = texts.labels.clone();
        labels.sort();
        labels.dedup();
        if labels.len() < 2 {
            return Err(Error::data(format!("classifier: expected at least two labels, got {labels:?}")));
        }
        let vocabulary = Vocabulary::at(Level::Words, &texts.texts.join("\n"), config.least)?;
        let network = network(config, vocabulary.len(), labels.len())?;
        let model = Model::initialized(device, &network, config.seed)?;
        Ok(Self { config: *config, vocabulary, labels, model })
    }

    /// Its sizes.
    pub fn config(&self) -> &ClassifierConfig {
        &self.config
    }

    /// The labels, in the order of their classes.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// How many words it tells apart.
    pub fn words(&self) -> usize {
        self.vocabulary.len()
    }

    /// Its layers, with their parameters.
    pub fn model(&mut self) -> &mut Model {
        &mut self.model
    }

    /// Texts as tokens `[samples, T]` with their lengths; a text without words is one that nobody knows.
    fn inputs(&self, texts: &[String]) -> Result<Named> {
        let mut rows = texts.iter().map(|text| self.vocabulary.encode(text)).collect::<Result<Vec<_>>>()?;
        let unknown = self.vocabulary.encode("\u{0}")?;
        rows.iter_mut().filter(|row| row.is_empty()).for_each(|row| row.clone_from(&unknown));
        let steps = rows.iter().map(Vec::len).max().unwrap_or(0);
        let lengths = rows.iter().map(|row| row.len() as u32).collect();
        let padded = rows.iter().flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0, steps - row.len())));
        Ok(Named::from([
            ("x".to_string(), Tensor::from_u32(&[rows.len(), steps], padded.collect())?),
            ("lengths".to_string(), Tensor::from_u32(&[rows.len()], lengths)?),
        ]))
    }

    fn targets(&self, labels: &[String]) -> Result<Named> {
        let class = |label: &String| {
            let found = self.labels.binary_search(label).map(|class| class as u32);
            found.map_err(|_| {
                let known = self.labels.join(", ");
                Error::data(format!("classifier: the label `{label}` is not among those of training: {known}"))
            })
        };
        let classes = labels.iter().map(class).collect::<Result<Vec<u32>>>()?;
        Ok(Named::from([(OUTPUT.to_string(), Tensor::from_u32(&[labels.len()], classes)?)]))
    }

    /// Trains on texts, validating on others where there are any.
    pub fn fit(
        &mut self,
        optimizer: impl Into<Optimizer>,
        texts: &Labelled,
        validation: Option<&Labelled>,
        fit: &Fit,
        callbacks: &mut [&mut dyn Callback],
    ) -> Result<History> {
        self.model.compile(optimizer, &[(OUTPUT, Loss::CrossEntropy)])?;
        let (inputs, targets) = (self.inputs(&texts.texts)?, self.targets(&texts.labels)?);
        let validation = match validation {
            Some(held) => Some((self.inputs(&held.texts)?, self.targets(&held.labels)?)),
            None => None,
        };
        let validation = validation.as_ref().map(|(inputs, targets)| (inputs, targets));
        self.model.fit_with_callbacks(&inputs, &targets, validation, fit, callbacks)
    }

    /// The probability of each label for each text, in the order of [`Self::labels`].
    pub fn predict(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::with_capacity(texts.len());
        for part in texts.chunks(PREDICTED) {
            let inputs = self.inputs(part)?;
            let logits = self.model.run_for(&inputs, &[OUTPUT])?;
            let logits = logits.get(OUTPUT).ok_or_else(|| Error::internal("classifier: no output"))?;
            all.extend(logits.f32s()?.chunks_exact(self.labels.len()).map(softmax));
        }
        Ok(all)
    }

    /// What it is worth on labelled texts.
    pub fn report(&mut self, texts: &Labelled) -> Result<Report> {
        if texts.is_empty() {
            return Err(Error::data("classifier: expected at least one text to report on, got none"));
        }
        let classes = self.targets(&texts.labels)?;
        let classes = classes[OUTPUT].u32s()?.to_vec();
        let count = self.labels.len();
        let mut confusion = vec![vec![0u64; count]; count];
        for (row, class) in self.predict(&texts.texts)?.iter().zip(classes) {
            let best = (1..count).fold(0, |best, at| if row[at] > row[best] { at } else { best });
            confusion[class as usize][best] += 1;
        }
        Ok(Report { labels: self.labels.clone(), confusion })
    }

    /// The loss and accuracy over labelled texts.
    pub fn scores(&mut self, texts: &Labelled) -> Result<Scores> {
        let (inputs, targets) = (self.inputs(&texts.texts)?, self.targets(&texts.labels)?);
        let how = Evaluate { metrics: vec![Metric::Accuracy], ..Evaluate::default() };
        self.model.scores(&inputs, &targets, &how)
    }

    /// Writes it with its words and labels.
    pub fn save(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let mut file = save::file(&mut self.model)?;
        let (config, labels, vocabulary) = (self.config, self.labels.clone(), self.vocabulary.clone());
        file.metadata[PART] = json!(Described { config, labels, vocabulary });
        io::save(path.as_ref(), &file)
    }

    /// Reads what [`Self::save`] wrote.
    pub fn load(device: &Device, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let load = || {
            let file = io::load(path)?;
            if file.metadata.get(PART).is_none() {
                return Err(Error::data("expected a classifier, got a model without labels"));
            }
            let Described { config, labels, vocabulary } = file.part(PART)?;
            let network = network(&config, vocabulary.len(), labels.len())?;
            let mut parameters = Named::new();
            for spec in network.parameters()? {
                parameters.insert(spec.name.clone(), file.tensor(&spec.name)?.clone());
            }
            let model = Model::new(device, &network, &parameters)?;
            Ok(Self { config, vocabulary, labels, model })
        };
        load().map_err(|e: Error| e.within(path.display()))
    }
}

/// Texts that are read at once where labels are predicted.
const PREDICTED: usize = 256;

fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|l| (l - largest).exp()).sum();
    logits.iter().map(|l| (l - largest).exp() / sum).collect()
}

/// How often texts of each label were taken to be of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The labels.
    pub labels: Vec<String>,
    /// `confusion[is][predicted]`.
    pub confusion: Vec<Vec<u64>>,
}

impl Report {
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
        let texts: u64 = self.confusion.iter().flatten().sum();
        let width = self.labels.iter().map(|l| l.chars().count()).max().unwrap_or(0).max(9);
        writeln!(f, "{:width$}  precision  recall      F1   texts", "label")?;
        for (class, label) in self.labels.iter().enumerate() {
            let ([precision, recall, f1], of) = (self.of(class), self.confusion[class].iter().sum::<u64>());
            writeln!(f, "{label:width$}     {precision:.4}  {recall:.4}  {f1:.4}  {of:6}")?;
        }
        writeln!(f, "accuracy {:.4} of {texts} texts\n", self.accuracy())?;
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
