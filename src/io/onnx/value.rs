//! What a name of a graph stands for while the graph is read.

use super::attention::Scores;
use super::host::Host;
use super::int::Int;
use super::layout::{Axis, Lifted, Sizes};
use super::numbers::Numbers;
use super::order::Order;
use crate::error::{Error, Result};
use std::rc::Rc;

/// A value.
#[derive(Debug, Clone)]
pub(super) enum Val {
    /// Known beforehand.
    Host(Rc<Host>),
    /// Known beforehand, and spread over sizes that a run tells: as many dimensions, those that spread of size 1.
    Spread { base: Rc<Host>, dims: Vec<Int> },
    /// Computed by the network.
    Lifted(Lifted),
    /// A function of tokens, by the token: `[V]`.
    Table { tokens: Lifted, table: Rc<Host> },
    /// The number of the largest feature of a row, under these axes.
    Best { of: Lifted, dims: Vec<Axis> },
    /// How well the steps of two sequences fit each other.
    Scores(Rc<Scores>),
    /// Whole numbers that differ from sequence to sequence or from step to step.
    Numbers(Rc<Numbers>),
    /// The order of sequences by their lengths.
    Order(Order),
}

impl From<Host> for Val {
    fn from(host: Host) -> Self {
        Self::Host(Rc::new(host))
    }
}

impl From<Lifted> for Val {
    fn from(value: Lifted) -> Self {
        Self::Lifted(value)
    }
}

impl Val {
    /// Its sizes.
    pub fn dims(&self, sizes: &Sizes) -> Result<Vec<Int>> {
        match self {
            Self::Host(host) => Ok(host.shape.iter().map(|&n| Int::Known(n as i64)).collect()),
            Self::Spread { dims, .. } => Ok(dims.clone()),
            Self::Lifted(value) | Self::Table { tokens: value, .. } => sizes.of(value),
            Self::Best { dims, .. } => dims.iter().map(|axis| sizes.axis(axis)).collect(),
            Self::Scores(scores) => scores.dims.iter().map(|axis| sizes.axis(axis)).collect(),
            Self::Numbers(numbers) => Ok(numbers.dims.clone()),
            Self::Order(_) => Ok(vec![sizes.batch.clone()]),
        }
    }

    pub fn rank(&self) -> usize {
        match self {
            Self::Host(host) => host.shape.len(),
            Self::Spread { dims, .. } => dims.len(),
            Self::Lifted(value) | Self::Table { tokens: value, .. } => value.dims.len(),
            Self::Best { dims, .. } => dims.len(),
            Self::Scores(scores) => scores.dims.len(),
            Self::Numbers(numbers) => numbers.dims.len(),
            Self::Order(_) => 1,
        }
    }

    /// What is known beforehand.
    pub fn host(&self) -> Result<&Rc<Host>> {
        match self {
            Self::Host(host) => Ok(host),
            Self::Spread { base, dims } if dims.iter().all(|n| *n == Int::ONE) => Ok(base),
            Self::Spread { .. } => Err(Error::unsupported("a constant whose size only a run tells")),
            _ => Err(Error::unsupported("it depends on the values of tensors, which only a run tells")),
        }
    }
}
