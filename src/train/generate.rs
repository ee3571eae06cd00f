//! Generating text, a token at a time, with the state kept on the device.

use super::language::LanguageModel;
use super::step::zero_states;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::nn::{GraphOptions, Input};
use crate::params::Tensor;
use crate::params::random::Random;
use crate::scheduler::{Batch, Capacity};

const PROGRAM: &str = "generate";

/// A token that a memory holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Remembered {
    /// Its place among the tokens that were read, the prompt's included, from 0 on.
    pub at: usize,
    /// Its part of the probability of the token that was drawn, in [0, 1].
    pub share: f32,
}

/// Where a token came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The token.
    pub token: u32,
    /// What the model gave it at temperature 1.
    pub probability: f32,
    /// The memory's part of that, in [0, 1].
    pub memory: f32,
    /// The remembered tokens that this part is of, the largest first.
    pub remembered: Vec<Remembered>,
}

/// What a memory said before a token was drawn.
struct Evidence {
    /// The share of each place, and the memory's part of the mixture.
    places: Vec<f32>,
    gate: f32,
}

/// Reads a prompt and goes on from it.
pub struct Generator<'a> {
    model: &'a mut LanguageModel,
    logits: Vec<f32>,
    /// All that was read.
    read: Vec<u32>,
    explains: bool,
    evidence: Option<Evidence>,
    explanation: Option<Explanation>,
}

impl<'a> Generator<'a> {
    /// A generator that has read nothing. A model's generators share one state: use one at a time.
    pub fn new(model: &'a mut LanguageModel) -> Result<Self> {
        let (session, program) = model.model.program(PROGRAM, |model| {
            let mut graph = Graph::new();
            let options = GraphOptions { state_prefix: "generate.", ..GraphOptions::default() };
            let built = model.network(Input::Tokens)?.build(&mut graph, options)?;
            graph.output("y", built.outputs[0].0)?;
            if let Some((_, recalled)) = built.recalled.first() {
                graph.output("places", recalled.places)?;
                graph.output("gate", recalled.gate)?;
            }
            built.states.into_iter().try_for_each(|(state, new)| graph.update(state, new))?;
            model.session()?.load(&graph, &Capacity::exactly(&Batch::dense(1, 1)?))
        })?;
        zero_states(session, program)?;
        Ok(Self { model, logits: Vec::new(), read: Vec::new(), explains: false, evidence: None, explanation: None })
    }

    /// Has it say where each token came from, where the model has a working memory.
    #[must_use]
    pub fn explaining(mut self) -> Self {
        self.explains = self.model.memory().is_some();
        self
    }

    fn read(&mut self, token: u32) -> Result<()> {
        let missing = |_: &mut _| Err(Error::internal("generate: the program is gone"));
        let (session, program) = self.model.model.program(PROGRAM, missing)?;
        session.run(program, &Batch::dense(1, 1)?, &[("x", &Tensor::from_u32(&[1], vec![token])?)])?;
        self.logits = session.output(program, "y")?.into_f32s()?;
        self.read.push(token);
        if self.explains {
            let places = session.output(program, "places")?.into_f32s()?;
            self.evidence = Some(Evidence { places, gate: session.output(program, "gate")?.f32s()?[0] });
        }
        Ok(())
    }

    /// Where the token that was drawn last came from, where that is asked for ([`Self::explaining`]).
    pub fn explain(&self) -> Option<&Explanation> {
        self.explanation.as_ref()
    }

    /// The tokens that were read: the prompt's, then those that were drawn.
    pub fn read_so_far(&self) -> &[u32] {
        &self.read
    }

    /// What the memory had to do with `token`, which is to be read.
    fn explained(&self, token: u32) -> Option<Explanation> {
        let Evidence { places, gate } = self.evidence.as_ref()?;
        let probability = self.logits[token as usize].exp();
        // The place of step i has the token of step i + 1; the last step is seen by the next one only.
        let last = self.read.len() - 1;
        let steps = last.saturating_sub(places.len())..last;
        let mut remembered: Vec<Remembered> = steps
            .filter(|step| self.read[step + 1] == token)
            .map(|step| Remembered { at: step + 1, share: gate * places[step % places.len()] / probability })
            // Of a token that is as good as impossible there is no part.
            .filter(|remembered| remembered.share > 0.0 && remembered.share.is_finite())
            .collect();
        remembered.sort_by(|a, b| b.share.total_cmp(&a.share));
        let memory = remembered.iter().fold(0.0, |sum: f32, r| sum + r.share).min(1.0);
        Some(Explanation { token, probability, memory, remembered })
    }

    /// Reads `prompt`; a model of characters must know every one of them.
    pub fn feed(&mut self, prompt: &str) -> Result<()> {
        let tokens = self.model.vocabulary().encode(prompt).map_err(|e| e.within("prompt"))?;
        tokens.into_iter().try_for_each(|token| self.read(token))
    }

    /// Draws the next token and reads it: from softmax(logits / temperature) over the `top_k` likeliest (all where 0), the
    /// likeliest at temperature 0. Without a prompt it begins after a line's end, or the first token.
    pub fn next(&mut self, temperature: f32, top_k: usize, random: &mut Random) -> Result<u32> {
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return Err(Error::argument(format!("generate: temperature must be at least 0, got {temperature}")));
        }
        if self.logits.is_empty() {
            let token = self.model.vocabulary().line_end();
            self.read(token)?;
        }
        if let Some(bad) = self.logits.iter().find(|l| !l.is_finite()) {
            return Err(Error::data(format!("generate: the model gives {bad}; its parameters are not usable")));
        }
        let token = sample(&self.logits, temperature, top_k, random) as u32;
        self.explanation = self.explained(token);
        self.read(token)?;
        Ok(token)
    }
}

fn sample(logits: &[f32], temperature: f32, top_k: usize, random: &mut Random) -> usize {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    if temperature == 0.0 {
        return order[0];
    }
    order.truncate(if top_k == 0 { logits.len() } else { top_k });
    let largest = f64::from(logits[order[0]]);
    let weight = |&i: &usize| ((f64::from(logits[i]) - largest) / f64::from(temperature)).exp();
    let mut left = random.uniform() * order.iter().map(weight).sum::<f64>();
    for i in &order {
        left -= weight(i);
        if left < 0.0 {
            return *i;
        }
    }
    order[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_follows_the_logits() {
        let mut random = Random::new(1, 1);
        let logits = [0.0, 2.0f32.ln(), -50.0, 0.0];
        assert_eq!(sample(&logits, 0.0, 0, &mut random), 1);
        let mut counts = [0; 4];
        (0..8000).for_each(|_| counts[sample(&logits, 1.0, 0, &mut random)] += 1);
        assert!(counts[2] == 0 && (3800..4200).contains(&counts[1]), "{counts:?}");
        assert!((0..100).all(|_| sample(&logits, 5.0, 1, &mut random) == 1));
    }
}
