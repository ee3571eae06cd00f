//! Which samples share a batch: by length, so that none waits for a longer one; in an order that a seed fixes.

use super::batch::{Batch, ladder};
use super::recurrence::Recurrence;
use super::strategy::{Executor, Target};
use crate::error::{Error, Result};
use crate::params::fingerprint;
use crate::params::random::Random;
use serde::{Deserialize, Serialize};

/// The stream of random numbers that shuffles; parameters count theirs from 0.
const SHUFFLE: u64 = 1 << 32;
/// The stream that shuffles batches.
const BETWEEN: u64 = 1 << 33;

/// Sequences of the largest tile of a GPU's kernels.
const TILE: usize = 16;

/// How samples are put into batches. Batches are packed, so what is saved is not padding but steps at which few sequences
/// of a batch still run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Batching {
    /// As they come.
    #[default]
    Plain,
    /// As many samples as so many batches hold are sorted by length before they are cut into batches.
    Sorted {
        /// Batches that are sorted together.
        batches: usize,
    },
    /// Samples of about the same length together (lengths differ by at most an eighth, where there are enough).
    Buckets,
    /// Like buckets, each batch with at most so many steps in all; a longer sample is a batch of its own.
    Tokens {
        /// Steps of a batch.
        most: usize,
    },
}

/// Puts samples into batches, epoch by epoch. The batches of an epoch depend on the lengths, the seed and the epoch's
/// number alone, so training goes on in the middle of one by skipping those that were met.
#[derive(Debug, Clone)]
pub struct Sampler {
    lengths: Vec<usize>,
    size: usize,
    batching: Batching,
    seed: Option<u64>,
}

/// What batches cost, in steps of single sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Steps that there are.
    pub real: u64,
    /// Steps that are computed: on a GPU rows of a tile past the last sequence are computed for nothing.
    pub computed: u64,
    /// Steps that would be computed if every sequence were padded to the longest of its batch.
    pub padded: u64,
}

impl Cost {
    /// What `batch` costs on a device that is `target`.
    pub fn of(batch: &Batch, target: &Target) -> Self {
        let tile = |running: usize| match target.executor {
            Executor::Gpu => Recurrence::a_dispatch_a_step(target).step_tile(running),
            _ => 1,
        };
        let mut cost = Self::default();
        for axis in batch.axes() {
            cost.real += axis.rows() as u64;
            let rows = (0..axis.steps()).map(|t| axis.rows_at(t).next_multiple_of(tile(axis.rows_at(t))) as u64);
            cost.computed += rows.sum::<u64>();
            cost.padded += (axis.steps() * batch.sequences()) as u64;
        }
        cost
    }

    /// Adds what others cost.
    pub fn add(&mut self, other: Self) {
        self.real += other.real;
        self.computed += other.computed;
        self.padded += other.padded;
    }

    /// Real over computed steps; 1 where there is none.
    pub fn efficiency(&self) -> f64 {
        if self.computed == 0 { 1.0 } else { self.real as f64 / self.computed as f64 }
    }

    /// Real over padded steps; 1 where there is none.
    pub fn efficiency_padded(&self) -> f64 {
        if self.padded == 0 { 1.0 } else { self.real as f64 / self.padded as f64 }
    }
}

impl Sampler {
    /// Of samples of these lengths, at most `size` a batch; shuffled by `seed` if there is one.
    pub fn new(lengths: Vec<usize>, size: usize, batching: Batching, seed: Option<u64>) -> Result<Self> {
        if size == 0 || matches!(batching, Batching::Sorted { batches: 0 } | Batching::Tokens { most: 0 }) {
            return Err(Error::argument(format!(
                "batching: sizes must be at least 1, got batches of {size} and {batching:?}"
            )));
        }
        Ok(Self { lengths, size, batching, seed })
    }

    /// The samples of every batch of an epoch.
    pub fn epoch(&self, epoch: u32) -> Vec<Vec<usize>> {
        let random = |stream: u64| self.seed.map(|seed| Random::new(seed, stream + u64::from(epoch)));
        let mut order = match random(SHUFFLE) {
            Some(mut random) => random.permutation(self.lengths.len()),
            None => (0..self.lengths.len()).collect(),
        };
        // All sorts are stable: what is as long stays shuffled.
        match self.batching {
            Batching::Plain => {}
            Batching::Sorted { batches } => {
                for window in order.chunks_mut(self.size.saturating_mul(batches)) {
                    window.sort_by_key(|&s| std::cmp::Reverse(self.lengths[s]));
                }
            }
            Batching::Buckets | Batching::Tokens { .. } => {
                order.sort_by_key(|&s| std::cmp::Reverse(ladder(self.lengths[s])));
            }
        }
        let cut = self.cut(&order);
        match random(BETWEEN) {
            Some(mut random) if self.batching != Batching::Plain => {
                random.permutation(cut.len()).into_iter().map(|at| cut[at].clone()).collect()
            }
            _ => cut,
        }
    }

    fn cut(&self, order: &[usize]) -> Vec<Vec<usize>> {
        let Batching::Tokens { most } = self.batching else {
            return order.chunks(self.size).map(<[usize]>::to_vec).collect();
        };
        let (mut all, mut batch, mut tokens) = (Vec::new(), Vec::new(), 0);
        for &sample in order {
            let length = self.lengths[sample];
            while !batch.is_empty() && (batch.len() == self.size || tokens + length > most) {
                // Whole tiles of a GPU's kernels, where there are any; the others wait for the next batch.
                let whole = if batch.len() < TILE { batch.len() } else { batch.len() / TILE * TILE };
                let rest = batch.split_off(whole);
                all.push(std::mem::replace(&mut batch, rest));
                tokens = batch.iter().map(|&s: &usize| self.lengths[s]).sum();
            }
            batch.push(sample);
            tokens += length;
        }
        if !batch.is_empty() {
            all.push(batch);
        }
        all
    }

    /// A number that tells apart samplers whose epochs have other batches.
    pub fn fingerprint(&self) -> u64 {
        let how = format!("{} {:?} {:?}", self.size, self.batching, self.seed);
        fingerprint(how.bytes().map(u64::from).chain(self.lengths.iter().map(|&n| n as u64)))
    }

    /// Steps that no batch of any epoch has more of.
    pub fn most_steps(&self) -> usize {
        let mut longest = self.lengths.clone();
        longest.sort_unstable_by_key(|&n| std::cmp::Reverse(n));
        let most: usize = longest.iter().take(self.size).sum();
        match self.batching {
            Batching::Tokens { most: asked } => most.min(asked.max(longest.first().copied().unwrap_or(0))),
            _ => most,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(n: usize) -> Vec<usize> {
        (0..n).map(|i| 1 + i * 7919 % 97).collect()
    }

    fn all() -> [Batching; 4] {
        [Batching::Plain, Batching::Sorted { batches: 5 }, Batching::Buckets, Batching::Tokens { most: 300 }]
    }

    #[test]
    fn every_sample_is_met_once_an_epoch_in_an_order_that_the_seed_fixes() {
        for batching in all() {
            let sampler = |seed| Sampler::new(lengths(500), 16, batching, seed).unwrap();
            let first = sampler(Some(3)).epoch(0);
            let mut met: Vec<usize> = first.concat();
            met.sort_unstable();
            assert_eq!(met, (0..500).collect::<Vec<_>>(), "{batching:?}");
            assert!(first.iter().all(|batch| !batch.is_empty() && batch.len() <= 16), "{batching:?}");
            assert_eq!(first, sampler(Some(3)).epoch(0), "{batching:?}");
            assert_ne!(first, sampler(Some(3)).epoch(1), "{batching:?}");
            assert_ne!(first, sampler(Some(4)).epoch(0), "{batching:?}");
            assert_eq!(sampler(None).epoch(0), sampler(None).epoch(7), "{batching:?}");
        }
    }

    #[test]
    fn no_batch_is_larger_than_promised() {
        for batching in all() {
            let sampler = Sampler::new(lengths(500), 16, batching, Some(1)).unwrap();
            let own = lengths(500);
            let most = (0..20).flat_map(|e| sampler.epoch(e)).map(|b| b.iter().map(|&s| own[s]).sum::<usize>()).max();
            assert!(most.unwrap() <= sampler.most_steps(), "{batching:?}: {most:?} of {}", sampler.most_steps());
            if batching == (Batching::Tokens { most: 300 }) {
                assert_eq!(sampler.most_steps(), 300);
            }
        }
        let long = Sampler::new(vec![5, 900, 5], 16, Batching::Tokens { most: 10 }, None).unwrap();
        assert_eq!(long.epoch(0), [vec![1], vec![0, 2]]);
        assert_eq!(long.most_steps(), 900);
        assert!(Sampler::new(vec![1], 0, Batching::Plain, None).is_err());
        assert!(Sampler::new(vec![1], 1, Batching::Tokens { most: 0 }, None).is_err());
    }

    #[test]
    fn sorting_saves_steps() {
        let padded = |batching| {
            let own = lengths(500);
            let mut cost = Cost::default();
            for batch in Sampler::new(own.clone(), 16, batching, Some(1)).unwrap().epoch(0) {
                let batch = Batch::ragged(&batch.iter().map(|&s| own[s]).collect::<Vec<_>>()).unwrap();
                cost.add(Cost::of(&batch, &Target::CPU));
            }
            assert_eq!(cost.real, own.iter().sum::<usize>() as u64);
            assert_eq!(cost.efficiency(), 1.0, "packed");
            cost.efficiency_padded()
        };
        let [plain, sorted, buckets, tokens] = all().map(padded);
        assert!(plain < 0.6 && sorted > 0.8 && buckets > 0.9 && tokens > 0.9, "{plain} {sorted} {buckets} {tokens}");
    }
}
