//! A stream's state, away from the device.

use crate::error::{Error, Result};
use crate::graph::memory::EXACT;
use crate::params::Tensor;
use std::collections::BTreeMap;

/// What a stream carries: enough to go on from it on any device, in any process that has the model.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamState {
    /// Steps that it has read.
    pub steps: u64,
    /// What each layer carries, `[*]`: h and c of an LSTM as `<layer>.h_l0` and `<layer>.c_l0`, of a working memory
    /// `<layer>.ring` and `<layer>.position`. Nothing before the first step.
    pub values: BTreeMap<String, Tensor>,
}

/// Under this name [`StreamState::steps`] is among its tensors.
const STEPS: &str = "steps";

impl StreamState {
    /// Refuses positions that no stream has.
    pub(super) fn check_counts(&self) -> Result<()> {
        for (name, tensor) in self.values.iter().filter(|v| v.0.ends_with(".position")) {
            let wrong = |&&x: &&f32| !(x >= 0.0 && x.fract() == 0.0 && f64::from(x) <= EXACT as f64);
            if let Some(x) = tensor.f32s()?.iter().find(wrong) {
                return Err(Error::data(format!("stream state: expected a count up to {EXACT} as `{name}`, got {x}")));
            }
        }
        Ok(())
    }

    /// It as tensors, for a file.
    pub fn into_tensors(self) -> Result<BTreeMap<String, Tensor>> {
        let mut all = self.values;
        all.insert(STEPS.to_string(), Tensor::from_u32(&[2], vec![self.steps as u32, (self.steps >> 32) as u32])?);
        Ok(all)
    }

    /// It from what [`Self::into_tensors`] made.
    pub fn from_tensors(mut tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        let steps =
            tensors.remove(STEPS).ok_or_else(|| Error::data("stream state: expected `steps`, there is none"))?;
        match steps.u32s()? {
            &[low, high] => Ok(Self { steps: u64::from(low) | u64::from(high) << 32, values: tensors }),
            other => Err(Error::data(format!("stream state: expected two numbers as `steps`, got {}", other.len()))),
        }
    }
}
