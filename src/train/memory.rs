//! Fitting a working memory to a language model: which θ, and how much of the mixture it is, on text that neither was trained on.

use super::language::LanguageModel;
use super::step::{states, zero_states};
use super::text::Streams;
use crate::error::{Error, Result};
use crate::graph::memory::NOTHING;
use crate::graph::{Graph, N};
use crate::io;
use crate::nn::{GraphOptions, Input, Mixture, WorkingMemory};
use crate::params::DType;
use serde_json::json;
use std::path::Path;

/// What a memory is fitted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MixtureKind {
    /// [`Mixture::Linear`]
    Linear,
    /// [`Mixture::Global`]
    Global,
}

/// What fitting came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fitted {
    /// The memory.
    pub memory: WorkingMemory,
    /// The mean loss of the model alone, in nats a token.
    pub alone: f64,
    /// That of both together.
    pub loss: f64,
    /// Tokens that were predicted.
    pub tokens: usize,
}

/// The θ that are tried first, each some three times the one before; then as many around the best.
const THETAS: [f32; 8] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];
/// Where α is looked for.
const ALPHAS: [f64; 2] = [-30.0, 30.0];
const LAMBDAS: [f64; 2] = [0.0, 0.999];
/// Strengths of a mixture that are tried before the best is closed in on.
const COARSE: usize = 24;
const STATE_PREFIX: &str = "fit.";

/// What is known of every step of a text.
#[derive(Debug, Default)]
struct Evidence {
    /// -ln p of the target by the network.
    own: Vec<f32>,
    /// ln Σ e^logit.
    log_sum: Vec<f32>,
    /// For each θ both sums over places, of the target and of all.
    sums: Vec<Vec<f32>>,
}

impl Evidence {
    /// The mean loss of the network alone.
    fn alone(&self) -> f64 {
        self.own.iter().map(|&own| f64::from(own)).sum::<f64>() / self.own.len() as f64
    }

    /// The mean of -ln p of the targets by a mixture with θ number `k` of this strength, λ or α.
    fn loss(&self, k: usize, kind: MixtureKind, strength: f64) -> f64 {
        let steps = self.own.iter().zip(&self.log_sum).zip(self.sums[k].chunks_exact(2));
        let all = steps.map(|((&own, &log_sum), sums)| {
            let [own, log_sum, found, total] = [own, log_sum, sums[0], sums[1]].map(f64::from);
            let gate = match kind {
                _ if total < f64::from(NOTHING) / 2.0 => 0.0,
                MixtureKind::Linear => strength,
                MixtureKind::Global => 1.0 / (1.0 + (log_sum - total - strength).exp()),
            };
            let p = (1.0 - gate) * (-own).exp() + gate * (found - total).exp();
            // What is not a number stays so.
            if p < f64::MIN_POSITIVE { -f64::MIN_POSITIVE.ln() } else { -p.ln() }
        });
        all.sum::<f64>() / self.own.len() as f64
    }
}

/// Where `f` is least: the best of evenly spaced places, closed in on by golden sections.
fn minimum(range: [f64; 2], f: impl Fn(f64) -> f64) -> (f64, f64) {
    let step = (range[1] - range[0]) / COARSE as f64;
    let at = |i: usize| range[0] + step * i as f64;
    let values: Vec<f64> = (0..=COARSE).map(|i| f(at(i))).collect();
    let best = (0..=COARSE).fold(0, |best, i| if values[i] < values[best] { i } else { best });
    let (mut low, mut high) = (at(best.saturating_sub(1)), at((best + 1).min(COARSE)));
    let golden = (5f64.sqrt() - 1.0) / 2.0;
    for _ in 0..20 {
        let (a, b) = (high - golden * (high - low), low + golden * (high - low));
        if f(a) < f(b) { high = b } else { low = a }
    }
    let middle = (low + high) / 2.0;
    if f(middle) < values[best] { (middle, f(middle)) } else { (at(best), values[best]) }
}

impl LanguageModel {
    /// The memory of this window that predicts a text best, which neither the model nor anything else was fitted on: read as one
    /// stream from nothing. The model keeps it for whoever asks it to remember, and for its file.
    pub fn fit_memory(&mut self, tokens: &[u32], window: usize, kind: MixtureKind) -> Result<Fitted> {
        let length = tokens.len().saturating_sub(1);
        if length == 0 {
            let message = format!("tune-memory: expected a text of at least 2 tokens, got {}", tokens.len());
            return Err(Error::data(message));
        }
        if self.memory().is_some() {
            return Err(Error::unsupported(
                "tune-memory: the model has a working memory of its own; one is fitted to a model without",
            ));
        }
        let (ranges, mut best) = (if kind == MixtureKind::Linear { LAMBDAS } else { ALPHAS }, None);
        let (mut thetas, mut alone) = (THETAS.to_vec(), 0.0);
        for _ in 0..2 {
            let all = self.evidence(tokens, window, &thetas)?;
            alone = all.alone();
            for (k, &theta) in thetas.iter().enumerate() {
                let (strength, loss) = minimum(ranges, |strength| all.loss(k, kind, strength));
                if !(alone.is_finite() && loss.is_finite()) {
                    let message = format!("tune-memory: the model's loss is {alone}, with a memory {loss}");
                    return Err(Error::data(message));
                }
                if best.is_none_or(|(_, _, least)| loss < least) {
                    best = Some((theta, strength, loss));
                }
            }
            // Between the neighbours of the best.
            let middle = best.map_or(THETAS[0], |b: (f32, f64, f64)| b.0);
            thetas = (1..=8).map(|i| middle * 10f32.powf((i as f32 - 4.5) / 8.0)).collect();
        }
        let (theta, strength, loss) = best.ok_or_else(|| Error::internal("tune-memory: nothing was tried"))?;
        let mixture = match kind {
            MixtureKind::Linear => Mixture::Linear { theta, lambda: strength as f32 },
            MixtureKind::Global => Mixture::Global { theta, alpha: strength as f32 },
        };
        let memory = WorkingMemory::new(window).mixture(mixture);
        self.fitted = Some(memory);
        Ok(Fitted { memory, alone, loss, tokens: length })
    }

    /// What each θ finds, of every step.
    fn evidence(&mut self, tokens: &[u32], window: usize, thetas: &[f32]) -> Result<Evidence> {
        let length = tokens.len() - 1;
        let streams = Streams { tokens: tokens.to_vec(), count: 1, length, sequence: self.window().min(length) };
        let network = self.model.network(Input::Tokens)?.with_memory(Some(WorkingMemory::new(window)))?;
        let mut graph = Graph::new();
        let g = &mut graph;
        let built = network.build(g, GraphOptions { state_prefix: STATE_PREFIX, ..GraphOptions::default() })?;
        let targets = g.input("y", [N], DType::U32)?;
        let recalled = built.recalled.first().ok_or_else(|| Error::internal("tune-memory: there is no memory"))?.1;
        let evidence = recalled.evidence(g, targets, thetas)?;
        g.output("own", evidence.own)?;
        g.output("log_sum", evidence.log_sum)?;
        for (k, &sums) in evidence.sums.iter().enumerate() {
            g.output(&format!("sums.{k}"), sums)?;
        }
        built.states.into_iter().try_for_each(|(state, new)| g.update(state, new))?;
        let session = self.model.session()?;
        let mut program = session.load(&graph, &streams.capacity()?)?;
        zero_states(session, &program)?;
        let mut all = Evidence { sums: vec![Vec::new(); thetas.len()], ..Evidence::default() };
        for start in (0..length).step_by(streams.sequence) {
            let (batch, x, y) = streams.window(start)?;
            session.run(&mut program, &batch, &[("x", &x), ("y", &y)])?;
            let mut read = |name: &str| session.output(&program, name)?.into_f32s();
            all.own.extend(read("own")?);
            all.log_sum.extend(read("log_sum")?);
            for (k, sums) in all.sums.iter_mut().enumerate() {
                sums.extend(read(&format!("sums.{k}"))?);
            }
        }
        // Another window has rings of another size.
        let states = states(&program)?;
        drop(program);
        states.iter().try_for_each(|(name, _)| session.forget(name))?;
        Ok(all)
    }

    /// Writes the memory that was fitted into the file of the model, which keeps all else that it holds.
    pub fn save_fitted(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let fitted = self.fitted.as_ref().ok_or_else(|| Error::argument("tune-memory: no memory was fitted"))?;
        let mut file = io::load(path)?;
        file.metadata[io::MEMORY] = json!(fitted);
        io::save(path, &file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minimum_is_found_inside_and_at_the_ends() {
        assert!((minimum([0.0, 1.0], |x| (x - 0.37).powi(2)).0 - 0.37).abs() < 1e-4);
        assert!(minimum([0.0, 1.0], |x| x).0 < 1e-4);
        assert!((minimum([-30.0, 30.0], |x| (x + 7.1).abs()).0 + 7.1).abs() < 1e-3);
    }
}
