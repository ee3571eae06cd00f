//! The reference executor: the definition of correct, not fast and not clever.
//!
//! Plain loops over unpacked, logical values, in f32 or f64. A value whose outermost size is N is held as `[T, B, *]`
//! with the sequences in the batch's packed order and zeros past each sequence's end; every other value is held as it
//! is. A program's placement and workspace are ignored: every value has its own array, views included, so that a
//! planner's mistake cannot reach this executor, and a wrong result elsewhere can be bisected by [`Reference::value`].

mod activation;
mod argmax;
mod array;
mod attention;
mod columns;
mod cross_entropy;
mod dropout;
mod elementwise;
mod embedding;
mod executor;
mod gather;
mod linear;
mod lstm_backward;
mod lstm_forward;
mod lstm_gradients;
mod lstm_layer;
mod memory;
mod reduce;
mod softmax;
mod store;
mod time;
mod view;

pub use executor::{Prepared, Reference};

/// The floats that the reference computes in.
pub trait Real: ndarray::NdFloat {
    /// The nearest value to `x`.
    fn from_double(x: f64) -> Self;

    /// This value, exactly.
    fn to_double(self) -> f64;
}

impl Real for f32 {
    fn from_double(x: f64) -> Self {
        x as f32
    }

    fn to_double(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    fn from_double(x: f64) -> Self {
        x
    }

    fn to_double(self) -> f64 {
        self
    }
}

/// `x` in `R`.
fn real<R: Real>(x: f32) -> R {
    R::from_double(f64::from(x))
}

/// 1/(1+e^-x), finite for every x: the exponential's argument is never positive.
fn sigmoid<R: Real>(x: R) -> R {
    let e = (-x.abs()).exp();
    if x < R::zero() { e / (R::one() + e) } else { R::one() / (R::one() + e) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigmoid_is_finite_and_symmetric_everywhere() {
        for x in [0.0f32, 1.0, 88.0, 1e3, f32::MAX, f32::INFINITY] {
            let (up, down) = (sigmoid(x), sigmoid(-x));
            assert!((up + down - 1.0).abs() <= f32::EPSILON && (0.0..=1.0).contains(&down), "{x} {up} {down}");
        }
        assert!(sigmoid(f32::NAN).is_nan());
    }
}
