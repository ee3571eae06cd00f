//! Classifiers of text: the largest of each feature over all steps, classes.

use super::{BATCH, Known, OUTPUT, Reader, Texts, WordsConfig, inputs, likeliest, read_both_ways, softmax};
use crate::data::Labelled;
use crate::error::Result;
use crate::nn::{Dense, Dropout, Init, Network, Pooling};
use crate::params::Tensor;
use crate::train::Named;

/// Gives each text a label.
pub type Classifier = Reader<Labelled>;

/// Texts as tokens; a text without words is one that nobody knows.
fn rows(texts: &[String], known: &Known) -> Result<Vec<Vec<u32>>> {
    let mut rows = texts.iter().map(|text| known.vocabulary.encode(text)).collect::<Result<Vec<_>>>()?;
    let unknown = known.vocabulary.encode("\u{0}")?;
    rows.iter_mut().filter(|row| row.is_empty()).for_each(|row| row.clone_from(&unknown));
    Ok(rows)
}

impl Texts for Labelled {
    const PART: &'static str = "classifier";
    const UNIT: &'static str = "text";

    fn network(config: &WordsConfig, words: usize, labels: usize) -> Result<Network> {
        let (mut network, mut y) = read_both_ways(config, words)?;
        y = network.add(Pooling::max(), &y)?;
        y = network.add(Dropout::new(config.dropout), &y)?;
        y = network.add(Dense::new(labels).initializers(Init::PyTorch), &y)?;
        network.output(OUTPUT, y[0]);
        Ok(network)
    }

    fn lines(&self) -> String {
        self.texts.join("\n")
    }

    fn labels(&self) -> Vec<Vec<&String>> {
        self.labels.iter().map(|label| vec![label]).collect()
    }

    fn choose(&self, order: &[usize]) -> Self {
        self.take(order)
    }

    fn given(&self, known: &Known) -> Result<(Named, Named)> {
        let classes = self.labels.iter().map(|label| known.class(label)).collect::<Result<Vec<u32>>>()?;
        let targets = Tensor::from_u32(&[classes.len()], classes)?;
        Ok((inputs(&rows(&self.texts, known)?)?, Named::from([(OUTPUT.to_string(), targets)])))
    }

    fn count(&self, reader: &mut Classifier, tell: &mut dyn FnMut(usize, usize)) -> Result<()> {
        for (row, label) in reader.predict(&self.texts)?.iter().zip(&self.labels) {
            tell(reader.known.class(label)? as usize, likeliest(row));
        }
        Ok(())
    }
}

impl Classifier {
    /// The probability of each label for each text, in the order of [`Self::labels`].
    pub fn predict(&mut self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::with_capacity(texts.len());
        for part in texts.chunks(BATCH) {
            let logits = self.logits(&rows(part, &self.known)?)?;
            all.extend(logits.f32s()?.chunks_exact(self.labels().len()).map(softmax));
        }
        Ok(all)
    }
}
