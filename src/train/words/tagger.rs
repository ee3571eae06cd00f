//! Taggers: a label for each word of a text.

use super::report::Report;
use super::{
    BATCH, Described, OUTPUT, WordsConfig, class_of, inputs, labels_of, likeliest, load, padded, read_both_ways, save,
};
use crate::data::{Level, Tagged, Vocabulary};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::{Dense, Dropout, Init, Network};
use crate::optim::Optimizer;
use crate::train::{Callback, Fit, History, Loss, Model, Named};
use std::path::Path;

/// A tagger with the words and the labels that it knows.
pub struct Tagger {
    config: WordsConfig,
    vocabulary: Vocabulary,
    labels: Vec<String>,
    model: Model,
}

const PART: &str = "tagger";

fn network(config: &WordsConfig, words: usize, classes: usize) -> Result<Network> {
    let (mut network, mut y) = read_both_ways(config, words)?;
    y = network.add(Dropout::new(config.dropout), &y)?;
    y = network.add(Dense::new(classes).initializers(Init::PyTorch), &y)?;
    network.output(OUTPUT, y[0]);
    Ok(network)
}

impl Tagger {
    /// A new tagger for the words and labels of `texts`.
    pub fn new(device: &Device, config: &WordsConfig, texts: &Tagged) -> Result<Self> {
        let labels = labels_of(texts.labels.iter().flatten())?;
        let lines: Vec<String> = texts.words.iter().map(|words| words.join(" ")).collect();
        let vocabulary = Vocabulary::at(Level::Words, &lines.join("\n"), config.least)?;
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

    fn inputs(&self, texts: &[Vec<String>]) -> Result<Named> {
        let rows = texts.iter().map(|words| {
            let row = self.vocabulary.encode(&words.join(" "))?;
            match row.len() == words.len() && !row.is_empty() {
                true => Ok(row),
                false => Err(Error::data(format!("tagger: expected words without white space in them, got {words:?}"))),
            }
        });
        inputs(&rows.collect::<Result<Vec<_>>>()?)
    }

    fn targets(&self, texts: &Tagged) -> Result<Named> {
        let of = |labels: &Vec<String>| labels.iter().map(|label| class_of(&self.labels, label)).collect();
        let rows = texts.labels.iter().map(of).collect::<Result<Vec<Vec<u32>>>>()?;
        Ok(Named::from([(OUTPUT.to_string(), padded(&rows)?)]))
    }

    /// Trains on texts, validating on others where there are any.
    pub fn fit(
        &mut self,
        optimizer: impl Into<Optimizer>,
        texts: &Tagged,
        validation: Option<&Tagged>,
        fit: &Fit,
        callbacks: &mut [&mut dyn Callback],
    ) -> Result<History> {
        self.model.compile(optimizer, &[(OUTPUT, Loss::CrossEntropy)])?;
        let (inputs, targets) = (self.inputs(&texts.words)?, self.targets(texts)?);
        let validation = match validation {
            Some(held) => Some((self.inputs(&held.words)?, self.targets(held)?)),
            None => None,
        };
        let validation = validation.as_ref().map(|(inputs, targets)| (inputs, targets));
        self.model.fit_with_callbacks(&inputs, &targets, validation, fit, callbacks)
    }

    /// The likeliest label of each word, in the order of the texts; none of a text without words.
    pub fn predict(&mut self, texts: &[Vec<String>]) -> Result<Vec<Vec<String>>> {
        let mut all = vec![Vec::new(); texts.len()];
        let some: Vec<usize> = (0..texts.len()).filter(|&at| !texts[at].is_empty()).collect();
        for part in some.chunks(BATCH) {
            let words: Vec<Vec<String>> = part.iter().map(|&at| texts[at].clone()).collect();
            let logits = self.model.run_for(&self.inputs(&words)?, &[OUTPUT])?;
            let logits = logits.get(OUTPUT).ok_or_else(|| Error::internal("tagger: no output"))?;
            let (steps, classes) = (logits.shape()[1], self.labels.len());
            for (row, &at) in logits.f32s()?.chunks_exact(steps * classes).zip(part) {
                let labels = row.chunks_exact(classes).take(texts[at].len()).map(|l| self.labels[likeliest(l)].clone());
                all[at] = labels.collect();
            }
        }
        Ok(all)
    }

    /// What it is worth on labelled words.
    pub fn report(&mut self, texts: &Tagged) -> Result<Report> {
        let mut report = Report::new(&self.labels, "word");
        for (predicted, labels) in self.predict(&texts.words)?.iter().zip(&texts.labels) {
            for (predicted, label) in predicted.iter().zip(labels) {
                report.add(class_of(&self.labels, label)? as usize, class_of(&self.labels, predicted)? as usize);
            }
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
