//! A text as streams that are read side by side, a window of each at a time.

use super::prefetch::Prefetch;
use super::step::{EVALUATE, zero_states};
use crate::device::{Executable, Session};
use crate::error::{Error, Result};
use crate::params::Tensor;
use crate::scheduler::{Batch, Capacity};

/// A batch, its tokens and those that follow them.
pub(super) type Window = (Batch, Tensor, Tensor);

/// A text as streams.
pub(super) struct Streams {
    pub(super) tokens: Vec<u32>,
    pub(super) count: usize,
    /// Tokens of each stream.
    pub(super) length: usize,
    /// Tokens of each that a window has, at most.
    pub(super) sequence: usize,
}

impl Streams {
    /// `batch` streams that fill a window each.
    pub(super) fn for_training(tokens: Vec<u32>, batch: usize, sequence: usize) -> Result<Self> {
        if batch == 0 || sequence == 0 {
            return Err(Error::argument(format!(
                "training: batch and sequence must be at least 1, got {batch} and {sequence}"
            )));
        }
        let length = tokens.len().saturating_sub(1) / batch;
        if length < sequence {
            return Err(Error::data(format!(
                "training: a sequence of {sequence} tokens in each of {batch} streams needs a text of at least {} \
                 tokens for training, got {}; a smaller batch or sequence needs less",
                sequence.saturating_mul(batch).saturating_add(1),
                tokens.len()
            )));
        }
        Ok(Self { tokens, count: batch, length, sequence })
    }

    /// At most `batch` streams; none of a text too short to predict anything of.
    pub(super) fn for_validation(tokens: Vec<u32>, batch: usize, sequence: usize) -> Option<Self> {
        let count = batch.min(tokens.len().checked_sub(1)?);
        let length = (tokens.len() - 1).checked_div(count)?;
        Some(Self { tokens, count, length, sequence })
    }

    pub(super) fn windows(&self) -> usize {
        self.length.div_ceil(self.sequence)
    }

    /// The window that begins at `start`: its batch, tokens and the tokens that follow them, `[T, B]`.
    pub(super) fn window(&self, start: usize) -> Result<Window> {
        let steps = self.sequence.min(self.length - start);
        let shifted = |by: usize| {
            let at = |t: usize, b: usize| self.tokens[b * self.length + start + t + by];
            let tokens = (0..steps).flat_map(|t| (0..self.count).map(move |b| at(t, b))).collect();
            Tensor::from_u32(&[steps * self.count], tokens)
        };
        let batch = Batch::dense(steps, self.count)?.starting_at(start as u32);
        Ok((batch, shifted(0)?, shifted(1)?))
    }

    pub(super) fn capacity(&self) -> Result<Capacity> {
        Ok(Capacity::exactly(&Batch::dense(self.sequence.min(self.length), self.count)?))
    }

    /// The mean loss of a program of evaluation, which reads all windows with states from zero.
    pub(super) fn evaluate(&self, session: &mut Session, executable: &mut Executable) -> Result<f32> {
        EVALUATE.zero(session)?;
        zero_states(session, executable)?;
        std::thread::scope(|scope| {
            let starts = (0..self.length).step_by(self.sequence);
            let mut windows = Prefetch::begin(scope, starts.map(|start| self.window(start)))?;
            while let Some(window) = windows.next() {
                let (batch, x, y) = window?;
                session.run(executable, &batch, &[("x", &x), ("y", &y)])?;
            }
            EVALUATE.mean(session)
        })
    }
}
