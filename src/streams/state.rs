//! A stream's state, away from the device.

use crate::error::{Error, Result};
use crate::params::Tensor;
use std::collections::BTreeMap;

/// What a stream carries: enough to go on from it on any device, in any process that has the model.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamState {
    /// Steps that it has read.
    pub steps: u64,
    /// h and c of each LSTM, `[*]`, as `<layer>.h_l0` and `<layer>.c_l0`. Nothing before the first step.
    pub values: BTreeMap<String, Tensor>,
}

/// Under this name [`StreamState::steps`] is among its tensors.
const STEPS: &str = "steps";

impl StreamState {
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
