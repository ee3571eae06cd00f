//! Taggers: a label for each word of a text.

use super::{BATCH, Known, OUTPUT, Reader, Texts, WordsConfig, inputs, likeliest, padded, read_both_ways};
use crate::data::Tagged;
use crate::error::{Error, Result};
use crate::nn::{Dense, Dropout, Init, Network};
use crate::train::Named;

/// Gives each word of a text a label.
pub type Tagger = Reader<Tagged>;

fn rows(texts: &[Vec<String>], known: &Known) -> Result<Vec<Vec<u32>>> {
    let row = |words: &Vec<String>| {
        let row = known.vocabulary.encode(&words.join(" "))?;
        match row.len() == words.len() && !row.is_empty() {
            true => Ok(row),
            false => Err(Error::data(format!("tagger: expected words without white space in them, got {words:?}"))),
        }
    };
    texts.iter().map(row).collect()
}

impl Texts for Tagged {
    const PART: &'static str = "tagger";
    const UNIT: &'static str = "word";

    fn network(config: &WordsConfig, words: usize, labels: usize) -> Result<Network> {
        let (mut network, mut y) = read_both_ways(config, words)?;
        y = network.add(Dropout::new(config.dropout), &y)?;
        y = network.add(Dense::new(labels).initializers(Init::PyTorch), &y)?;
        network.output(OUTPUT, y[0]);
        Ok(network)
    }

    fn lines(&self) -> String {
        let lines: Vec<String> = self.words.iter().map(|words| words.join(" ")).collect();
        lines.join("\n")
    }

    fn labels(&self) -> Vec<Vec<&String>> {
        self.labels.iter().map(|labels| labels.iter().collect()).collect()
    }

    fn choose(&self, order: &[usize]) -> Self {
        self.take(order)
    }

    fn given(&self, known: &Known) -> Result<(Named, Named)> {
        let of = |labels: &Vec<String>| labels.iter().map(|label| known.class(label)).collect();
        let classes = self.labels.iter().map(of).collect::<Result<Vec<Vec<u32>>>>()?;
        let targets = Named::from([(OUTPUT.to_string(), padded(&classes)?)]);
        Ok((inputs(&rows(&self.words, known)?)?, targets))
    }

    fn count(&self, reader: &mut Tagger, tell: &mut dyn FnMut(usize, usize)) -> Result<()> {
        for (predicted, labels) in reader.predict(&self.words)?.iter().zip(&self.labels) {
            for (predicted, label) in predicted.iter().zip(labels) {
                tell(reader.known.class(label)? as usize, reader.known.class(predicted)? as usize);
            }
        }
        Ok(())
    }
}

impl Tagger {
    /// The likeliest label of each word, in the order of the texts; none of a text without words.
    pub fn predict(&mut self, texts: &[Vec<String>]) -> Result<Vec<Vec<String>>> {
        let mut all = vec![Vec::new(); texts.len()];
        let some: Vec<usize> = (0..texts.len()).filter(|&at| !texts[at].is_empty()).collect();
        for part in some.chunks(BATCH) {
            let words: Vec<Vec<String>> = part.iter().map(|&at| texts[at].clone()).collect();
            let logits = self.logits(&rows(&words, &self.known)?)?;
            let (steps, classes) = (logits.shape()[1], self.labels().len());
            for (row, &at) in logits.f32s()?.chunks_exact(steps * classes).zip(part) {
                let best = row.chunks_exact(classes).take(texts[at].len()).map(likeliest);
                all[at] = best.map(|class| self.known.labels[class].clone()).collect();
            }
        }
        Ok(all)
    }
}
