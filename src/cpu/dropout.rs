//! Dropout with counter-based random numbers.

use super::call::Call;
use super::rows::over_rows;
use super::simd::dispatch;
use crate::config::Mask;
use crate::error::Result;
use crate::params::random::{StreamKey, drop_threshold, keeps, threefry};
use crate::scheduler::{Axis, Batch};

/// Elementary operations of one random number; untuned.
const WORD_COST: usize = 12;
/// Blocks of two random words that are made at a time.
const BLOCKS: usize = 32;

/// What the rows of a value are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowKind {
    /// Packed rows of a time axis.
    Axis(u8),
    /// Sequences.
    Batch,
    /// Numbers of their own.
    Fixed,
}

/// The sample and the absolute time of a row.
fn identity(row: usize, axis: Option<&Axis>, kind: RowKind, batch: &Batch) -> (u32, u32) {
    match (axis, kind) {
        (Some(axis), _) => {
            let t = axis.offsets().partition_point(|&first| first as usize <= row) - 1;
            (batch.sample(axis, row - axis.offset(t)), axis.start.wrapping_add(t as u32))
        }
        (None, RowKind::Batch) => (batch.samples()[row], 0),
        _ => (row as u32, 0),
    }
}

/// Keeps values of one row by its key.
#[inline(always)]
fn drop_row(key: [u32; 2], threshold: u32, scale: f32, x: &[f32], out: &mut [f32]) {
    let mut words = [[0; 2]; BLOCKS];
    for (at, (x, out)) in x.chunks(2 * BLOCKS).zip(out.chunks_mut(2 * BLOCKS)).enumerate() {
        for (block, words) in words.iter_mut().enumerate() {
            *words = threefry(key, [(at * BLOCKS + block) as u32, 0]);
        }
        for ((out, x), &word) in out.iter_mut().zip(x).zip(words.as_flattened()) {
            *out = if keeps(word, threshold) { x * scale } else { 0.0 };
        }
    }
}

/// x `[R, F]`: each value kept and scaled, or zero.
pub(super) fn dropout(call: &mut Call<'_>, rate: f32, operation: u32, mask: Mask, kind: RowKind) -> Result<()> {
    let (x, width, batch) = (call.input(0)?, call.operand(0)?.columns(), call.batch);
    let axis = if let RowKind::Axis(axis) = kind { Some(batch.axis(axis)?) } else { None };
    let stream = StreamKey { seed: batch.seed, step: batch.step, operation };
    let (threshold, scale) = (drop_threshold(rate), 1.0 / (1.0 - rate));
    over_rows(call.output(0)?, width, width * WORD_COST, |first, out| {
        dispatch(
            #[inline(always)]
            || {
                for (r, out) in out.chunks_exact_mut(width).enumerate() {
                    let row = first + r;
                    let (sample, time) = identity(row, axis, kind, batch);
                    let time = if mask == Mask::Step { time } else { u32::MAX };
                    drop_row(stream.row(sample, time), threshold, scale, &x[row * width..][..width], out);
                }
            },
        );
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::random::unit_word;

    #[test]
    fn rows_are_dropped_as_their_units_words_say() {
        for width in [1, 2, 63, 64, 65, 200] {
            let x: Vec<f32> = (0..width).map(|i| i as f32 + 1.0).collect();
            let mut out = vec![0.0; width];
            let (key, threshold) = ([7, 9], drop_threshold(0.4));
            drop_row(key, threshold, 2.0, &x, &mut out);
            for (u, (&x, &got)) in x.iter().zip(&out).enumerate() {
                let wanted = if keeps(unit_word(key, u as u32), threshold) { x * 2.0 } else { 0.0 };
                assert_eq!(got, wanted, "width {width} unit {u}");
            }
        }
    }

    #[test]
    fn rows_know_their_sample_and_time() {
        let batch = Batch::ragged(&[1, 0, 3]).unwrap().with_samples(&[10, 11, 12]).unwrap().starting_at(5);
        let axis = batch.axis(0).unwrap();
        let all: Vec<_> = (0..4).map(|row| identity(row, Some(axis), RowKind::Axis(0), &batch)).collect();
        assert_eq!(all, [(12, 5), (10, 5), (12, 6), (12, 7)]);
        assert_eq!(identity(1, None, RowKind::Batch, &batch), (10, 0));
        assert_eq!(identity(1, None, RowKind::Fixed, &batch), (1, 0));
    }
}
