//! In how many bits kernels read weights, and what they multiply them with.

use super::strategy::Workspace;
use crate::error::{Error, Result};
use crate::graph::{Op, Shape};
use crate::params::DType;
use std::str::FromStr;

/// How exactly a device computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// 32 bits throughout.
    #[default]
    F32,
    /// Weights are rounded to 16 bits (IEEE 754 binary16, to the nearest, at most ±65504) where kernels read them: input and
    /// recurrent weights and peepholes of LSTMs, right operands of products. Biases, projections, embeddings, states, sums
    /// and gradients keep 32 bits, and so do the weights that an optimiser changes and files hold. Each rounded weight is
    /// within 2⁻¹¹ of itself, or within 2⁻²⁵ of 0 (2⁻¹⁴ on a device that has no subnormal halves). As gradients are never
    /// held in 16 bits, losses need not be scaled.
    F16Weights,
    /// The same, and where the device has matrix units that multiply halves into floats (and has been seen to be right), both
    /// operands of products are rounded to 16 bits: of input projections, recurrences that run a dispatch a timestep, linear
    /// layers, and all their gradients. Sums, states, gates and what is stored keep 32 bits. A gradient below 2⁻²⁵ would be
    /// lost, so training scales its losses; one beyond 65504 makes a step that is not finite, which lowers the scale.
    F16Products,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16Weights, Self::F16Products];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16Weights => "f16-weights",
            Self::F16Products => "f16-products",
        }
    }

    /// Whether kernels read weights in 16 bits.
    pub fn halves_weights(self) -> bool {
        self != Self::F32
    }

    /// Whether kernels read workspace `number` of `op`, which is packed from weights, in 16 bits.
    pub fn halves(self, op: &Op, number: usize) -> bool {
        let weights = match op {
            Op::Lstm(_) => number <= 1,
            Op::LstmBackward(_) | Op::LstmInputGradient { .. } | Op::Linear | Op::MatMul => number == 0,
            _ => false,
        };
        self.halves_weights() && weights
    }

    /// `workspace` number `number` of `op` as it is held: two halves in a word.
    pub(super) fn hold(self, op: &Op, number: usize, mut workspace: Workspace) -> Workspace {
        if let Some(values) = workspace.shape.fixed_len().filter(|_| self.halves(op, number))
            && !workspace.packs.is_empty()
        {
            // Packed weights are vectors of four.
            workspace.shape = Shape::from([values / 2]);
            workspace.dtype = DType::U32;
        }
        workspace
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|p| p.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::argument(format!("precision: expected one of {names}, got `{text}`"))
        })
    }
}
