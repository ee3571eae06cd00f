//! How parameters begin.

use super::admit;
use super::random::Random;
use crate::config::GATE_F;
use crate::error::Result;
use serde::{Deserialize, Serialize};

/// A rule for a parameter's first values. Matrices are `[outputs, inputs]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Initializer {
    /// All zero.
    Zeros,
    /// All the same value.
    Constant(f32),
    /// Uniform in ±limit; PyTorch's LSTM and Linear use 1/√H and 1/√inputs.
    Uniform(f32),
    /// Uniform in ±√(6/(inputs + outputs)) (Glorot and Bengio 2010); Keras's default for kernels.
    GlorotUniform,
    /// Normal with this standard deviation; PyTorch's Embedding uses 1.
    Normal(f32),
    /// Orthonormal in the smaller dimension (Saxe et al. 2014); Keras's default for recurrent kernels, over the whole
    /// `[H, 4H]`.
    Orthogonal,
    /// Zero but for the forget gate's block, which is one (Jozefowicz et al. 2015); Keras's `unit_forget_bias`.
    UnitForget,
}

impl Initializer {
    /// The values of a parameter of `shape`, row-major, or an error where the host cannot hold them. `stream` tells
    /// parameters of one model apart.
    pub fn values(&self, shape: &[usize], seed: u64, stream: u64) -> Result<Vec<f32>> {
        let count = admit("parameter", shape)?;
        let mut random = Random::new(seed, stream);
        let mut uniform = |limit: f64| (0..count).map(|_| ((random.uniform() * 2.0 - 1.0) * limit) as f32).collect();
        Ok(match *self {
            Self::Zeros => vec![0.0; count],
            Self::Constant(value) => vec![value; count],
            Self::Uniform(limit) => uniform(f64::from(limit)),
            Self::GlorotUniform => {
                let inputs = shape.last().copied().unwrap_or(1);
                let outputs = if shape.len() > 1 { shape[0] } else { inputs };
                uniform((6.0 / (inputs + outputs) as f64).sqrt())
            }
            Self::Normal(deviation) => (0..count).map(|_| (random.normal() * f64::from(deviation)) as f32).collect(),
            Self::Orthogonal => orthogonal(shape, &mut random),
            Self::UnitForget => {
                let hidden = count / 4;
                (0..count).map(|i| if hidden > 0 && i / hidden == GATE_F { 1.0 } else { 0.0 }).collect()
            }
        })
    }
}

/// Gram and Schmidt's orthonormalisation of normal vectors, twice for accuracy, in f64. The shorter side's vectors are
/// orthonormal.
fn orthogonal(shape: &[usize], random: &mut Random) -> Vec<f32> {
    let columns = shape.last().copied().unwrap_or(1);
    let rows = shape.iter().product::<usize>() / columns.max(1);
    let (count, size) = (rows.min(columns), rows.max(columns));
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(count);
    while basis.len() < count {
        let mut v: Vec<f64> = (0..size).map(|_| random.normal()).collect();
        for _ in 0..2 {
            for b in &basis {
                let dot: f64 = v.iter().zip(b).map(|(x, y)| x * y).sum();
                v.iter_mut().zip(b).for_each(|(x, y)| *x -= dot * y);
            }
        }
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm > 1e-6 {
            v.iter_mut().for_each(|x| *x /= norm);
            basis.push(v);
        }
    }
    let at = |r: usize, c: usize| if rows <= columns { basis[r][c] } else { basis[c][r] };
    (0..rows * columns).map(|i| at(i / columns, i % columns) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orthogonal_is_orthonormal_on_the_short_side() {
        let w = Initializer::Orthogonal.values(&[20, 5], 1, 2).unwrap();
        for a in 0..5 {
            for b in 0..5 {
                let dot: f32 = (0..20).map(|r| w[r * 5 + a] * w[r * 5 + b]).sum();
                let wanted = if a == b { 1.0 } else { 0.0 };
                assert!((dot - wanted).abs() < 1e-5, "{a} {b} {dot}");
            }
        }
    }

    #[test]
    fn glorot_stays_inside_its_limit_and_unit_forget_sets_one_block() {
        let w = Initializer::GlorotUniform.values(&[4, 8], 1, 0).unwrap();
        assert!(w.iter().all(|x| x.abs() <= 0.5f32.sqrt()) && w.iter().any(|x| x.abs() > 0.3));
        assert_eq!(Initializer::UnitForget.values(&[8], 0, 0).unwrap(), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn more_than_the_host_holds_is_an_error() {
        for shape in [[1 << 31, 1 << 31], [usize::MAX, 2], [1 << 20, 1 << 30]] {
            let error = Initializer::Zeros.values(&shape, 0, 0).unwrap_err();
            assert!(error.to_string().contains(&format!("{shape:?}")), "{error}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_values_and_streams_differ() {
        let values = |stream| Initializer::Normal(1.0).values(&[9], 4, stream).unwrap();
        assert_eq!(values(0), values(0));
        assert_ne!(values(0), values(1));
    }
}
