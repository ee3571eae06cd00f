//! Classifiers of text: the largest of each feature over all steps, classes.

use super::report::Report;
use super::{
    BATCH, Described, OUTPUT, WordsConfig, class_of, inputs, labels_of, likeliest, load, read_both_ways, save, softmax,
};
use crate::data::{Labelled, Level, Vocabulary};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::{Dense, Dropout, Init, Network, Pooling};
use crate::optim::Optimizer;
use crate::params::Tensor;
use crate::train::{Callback, Fit, History, Loss, Model, Named};
use std::path::Path;

/// A classifier with the words and the labels that it knows.
pub struct Classifier {
    config: WordsConfig,
    vocabulary: Vocabulary,
    labels: Vec<String>,
    model: Model,
}

const PART: &str = "classifier";

fn network(config: &WordsConfig, words: usize, classes: usize) -> Result<Network> {
    let (mut network, mut y) = read_both_ways(config, words)?;
    y = network.add(Pooling::max(), &y)?;
    y = network.add(Dropout::new(config.dropout), &y)?;
    y = network.add(Dense::new(classes).initializers(Init::PyTorch), &y)?;
    network.output(OUTPUT, y[0]);
    Ok(network)
}

impl Classifier {
    /// A new classifier for the words and labels of `texts`.
    pub fn new(device: &Device, config: &WordsConfig, texts: &Labelled) -> Result<Self> {
        let labels = labels_of(texts.labels.iter())?;
        let vocabulary = Vocabulary::at(Level::Words, &texts.texts.join("\n"), config.least)?;
        let network = network(config, vocabulary.len(), labels.len())?;
        let model = Model::initialized(device, &network, config.seed)?;
        Ok(Self { config: *config, vocabulary, labels, model })
    }

    /// Its sizes.
    pub fn config(&self) -> &WordsConfig {
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
        inputs(&rows)
    }

    fn targets(&self, labels: &[String]) -> Result<Named> {
        let classes = labels.iter().map(|label| class_of(&self.labels, label)).collect::<Result<Vec<u32>>>()?;
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
        for part in texts.chunks(BATCH) {
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
        let mut report = Report::new(&self.labels, "text");
        for (row, label) in self.predict(&texts.texts)?.iter().zip(&texts.labels) {
            report.add(class_of(&self.labels, label)? as usize, likeliest(row));
        }
        Ok(report)
    }

    /// Writes it with its words and labels.
    pub fn save(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let described = Described::of(&self.config, &self.labels, &self.vocabulary);
        save(&mut self.model, PART, &described, path.as_ref())
    }

    /// Reads what [`Self::save`] wrote.
    pub fn load(device: &Device, path: impl AsRef<Path>) -> Result<Self> {
        let (Described { config, labels, vocabulary }, model) = load(device, PART, path.as_ref(), network)?;
        Ok(Self { config, vocabulary, labels, model })
    }
}
