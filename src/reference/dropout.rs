//! Dropout by counter-based random numbers, which is its own gradient.

use super::array::Call;
use super::{Real, real};
use crate::config::Mask;
use crate::error::Result;
use crate::params::random::{StreamKey, drop_threshold, keeps, unit_word};
use ndarray::Array2;

/// x `[R, F]` with each value kept and multiplied by 1/(1 - rate), or zero. Which are kept depends on seed, training
/// step, operation, sample, absolute time and column alone.
pub(super) fn dropout<R: Real>(call: &Call<'_, R>, rate: f32, operation: u32, mask: Mask) -> Result<Array2<R>> {
    let x = call.float(0)?;
    let key = StreamKey { seed: call.batch.seed, step: call.batch.step, operation };
    let threshold = drop_threshold(rate);
    let scale: R = real(1.0 / (1.0 - rate)); // rounded to f32, as every executor has it
    let mut y = Array2::zeros(x.dim());
    for row in call.rows(0)? {
        let row_key = key.row(row.sample, if mask == Mask::Step { row.time } else { u32::MAX });
        for c in 0..x.ncols() {
            if keeps(unit_word(row_key, c as u32), threshold) {
                y[[row.at, c]] = x[[row.at, c]] * scale;
            }
        }
    }
    Ok(y)
}
