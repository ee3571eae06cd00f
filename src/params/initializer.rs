//! How parameters begin.

use super::admit;
use super::random::Random;
use crate::config::{GATE_F, GATE_I};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A rule for a parameter's first values. Matrices are `[outputs, inputs]`, kernels of windows `[outputs, taps, inputs]`.
///
/// What scales with a parameter's size counts as Keras does: inputs of an output are all weights that come into it, and
/// outputs are multiplied by the taps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Initializer {
    /// All zero.
    Zeros,
    /// All the same value.
    Constant(f32),
    /// Uniform in ±limit; PyTorch's LSTM and Linear use 1/√H and 1/√inputs.
    Uniform(f32),
    /// Normal with this standard deviation; PyTorch's Embedding uses 1.
    Normal(f32),
    /// Normal with this standard deviation, drawn again where it is more than two deviations from zero.
    TruncatedNormal(f32),
    /// Uniform in ±√(6/(inputs + outputs)) (Glorot and Bengio 2010); Keras's default for kernels.
    GlorotUniform,
    /// Truncated normal of the variance 2/(inputs + outputs).
    GlorotNormal,
    /// Uniform in ±√(6/inputs) (He et al. 2015).
    HeUniform,
    /// Truncated normal of the variance 2/inputs.
    HeNormal,
    /// Uniform in ±√(3/inputs) (LeCun et al. 1998).
    LecunUniform,
    /// Truncated normal of the variance 1/inputs.
    LecunNormal,
    /// Orthonormal in the smaller dimension (Saxe et al. 2014); Keras's default for recurrent kernels, over the whole
    /// `[H, 4H]`.
    Orthogonal,
    /// Zero but for the forget gate's block, which is this (Gers et al. 2000; Jozefowicz et al. 2015); with 1 Keras's
    /// `unit_forget_bias`. Biases of LSTMs only.
    ForgetBias(f32),
    /// For dependencies over up to so many steps: the forget gate's block is ln u, u uniform from 1 to one less, the input gate's
    /// its negative, the rest zero (Tallec and Ollivier 2018). Biases of LSTMs only.
    Chrono(f32),
}

/// The standard deviation of a normal variable of deviation 1 that is cut off at 2.
const TRUNCATED_DEVIATION: f64 = 0.879_625_661_034_239_8;

impl Initializer {
    /// Refuses what is not finite.
    pub fn validate(&self) -> Result<()> {
        match *self {
            Self::Constant(v) | Self::Uniform(v) | Self::Normal(v) | Self::TruncatedNormal(v) | Self::ForgetBias(v)
                if !v.is_finite() =>
            {
                Err(Error::argument(format!("initializer: expected a finite number, got {v}")))
            }
            Self::Chrono(steps) if !(steps > 2.0 && steps.is_finite()) => {
                Err(Error::argument(format!("initializer: expected more than 2 steps, got {steps}")))
            }
            _ => Ok(()),
        }
    }

    /// The values of a parameter of `shape`, row-major, or an error where the host cannot hold them. `stream` tells
    /// parameters of one model apart.
    pub fn values(&self, shape: &[usize], seed: u64, stream: u64) -> Result<Vec<f32>> {
        let count = admit("parameter", shape)?;
        let random = &mut Random::new(seed, stream);
        let inputs = shape.get(1..).map_or(1, |rest| rest.iter().product::<usize>()).max(1);
        let (inputs, outputs) = match shape {
            [one] => (*one as f64, *one as f64),
            [outputs, taps, _] => (inputs as f64, (outputs * taps) as f64),
            _ => (inputs as f64, shape.first().copied().unwrap_or(1) as f64),
        };
        Ok(match *self {
            Self::Zeros => vec![0.0; count],
            Self::Constant(value) => vec![value; count],
            Self::Uniform(limit) => uniform(random, count, f64::from(limit)),
            Self::Normal(deviation) => (0..count).map(|_| (random.normal() * f64::from(deviation)) as f32).collect(),
            Self::TruncatedNormal(deviation) => truncated(random, count, f64::from(deviation)),
            Self::GlorotUniform => uniform(random, count, (6.0 / (inputs + outputs)).sqrt()),
            Self::HeUniform => uniform(random, count, (6.0 / inputs).sqrt()),
            Self::LecunUniform => uniform(random, count, (3.0 / inputs).sqrt()),
            Self::GlorotNormal => truncated(random, count, (2.0 / (inputs + outputs)).sqrt() / TRUNCATED_DEVIATION),
            Self::HeNormal => truncated(random, count, (2.0 / inputs).sqrt() / TRUNCATED_DEVIATION),
            Self::LecunNormal => truncated(random, count, (1.0 / inputs).sqrt() / TRUNCATED_DEVIATION),
            Self::Orthogonal => orthogonal(shape, random),
            Self::ForgetBias(value) => {
                let hidden = count / 4;
                (0..count).map(|i| if hidden > 0 && i / hidden == GATE_F { value } else { 0.0 }).collect()
            }
            Self::Chrono(steps) => {
                let hidden = count / 4;
                let mut values = vec![0.0; count];
                for unit in 0..hidden {
                    let forget = (1.0 + random.uniform() * (f64::from(steps) - 2.0)).ln() as f32;
                    (values[GATE_F * hidden + unit], values[GATE_I * hidden + unit]) = (forget, -forget);
                }
                values
            }
        })
    }
}

fn uniform(random: &mut Random, count: usize, limit: f64) -> Vec<f32> {
    (0..count).map(|_| ((random.uniform() * 2.0 - 1.0) * limit) as f32).collect()
}

fn truncated(random: &mut Random, count: usize, deviation: f64) -> Vec<f32> {
    let mut draw = || loop {
        let x = random.normal();
        if x.abs() <= 2.0 {
            return (x * deviation) as f32;
        }
    };
    (0..count).map(|_| draw()).collect()
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
        assert_eq!(Initializer::ForgetBias(1.0).values(&[8], 0, 0).unwrap(), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        let chrono = Initializer::Chrono(100.0).values(&[400], 0, 0).unwrap();
        assert!((0..100).all(|u| chrono[u] == -chrono[100 + u] && chrono[200 + u] == 0.0 && chrono[300 + u] == 0.0));
        let forget = &chrono[100..200];
        assert!(forget.iter().all(|f| (0.0..=99.0f32.ln()).contains(f)) && forget.iter().any(|f| *f > 4.3));
        assert!(Initializer::Chrono(2.0).validate().is_err());
    }

    #[test]
    fn variances_are_those_of_the_papers() {
        use Initializer::{
            GlorotNormal, GlorotUniform, HeNormal, HeUniform, LecunNormal, LecunUniform, TruncatedNormal,
        };
        // 60 inputs and 80 outputs of a kernel of 3 taps over 20 features.
        for (initializer, shape, variance) in [
            (HeUniform, &[40, 3, 20][..], 2.0 / 60.0),
            (HeNormal, &[40, 60], 2.0 / 60.0),
            (LecunUniform, &[40, 60], 1.0 / 60.0),
            (LecunNormal, &[40, 3, 20], 1.0 / 60.0),
            (GlorotUniform, &[40, 60], 2.0 / 100.0),
            (GlorotNormal, &[40, 3, 20], 2.0 / 180.0),
            (TruncatedNormal(0.1), &[40, 60], 0.01 * TRUNCATED_DEVIATION * TRUNCATED_DEVIATION),
        ] {
            let values = initializer.values(shape, 3, 1).unwrap();
            let found = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / values.len() as f64;
            // 2,400 values: the estimate's own deviation is 0.03 of it at most.
            assert!((found / variance - 1.0).abs() < 0.12, "{initializer:?} {found} {variance}");
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
            assert!(mean.abs() < 0.1 * variance.sqrt(), "{initializer:?} {mean}");
        }
        let cut = TruncatedNormal(0.1).values(&[4000], 3, 1).unwrap();
        assert!(cut.iter().all(|v| v.abs() <= 0.2) && cut.iter().any(|v| v.abs() > 0.18));
        assert!(TruncatedNormal(f32::NAN).validate().is_err());
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
