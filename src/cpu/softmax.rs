//! Softmax of rows; its cross entropy with targets, and the gradient of that.

use super::call::Call;
use super::math;
use super::rows::{check_tokens, over_rows, rows_a_task};
use super::simd::dispatch;
use super::threads;
use crate::error::Result;

/// Elementary operations that one exponential counts for; untuned.
const EXP_COST: usize = 8;

/// x `[R, C]`: e^x over the row's sum of them.
pub(super) fn softmax(call: &mut Call<'_>) -> Result<()> {
    let (x, columns) = (call.input(0)?, call.operand(0)?.columns());
    over_rows(call.output(0)?, columns, columns * EXP_COST, |first, out| {
        dispatch(
            #[inline(always)]
            || {
                for (r, to) in out.chunks_exact_mut(columns).enumerate() {
                    let x = &x[(first + r) * columns..][..columns];
                    let shift = math::largest(x);
                    let scale = 1.0 / math::sum_of_exponentials(x, shift);
                    to.iter_mut().zip(x).for_each(|(to, &x)| *to = math::exp(x - shift) * scale);
                }
            },
        );
    });
    Ok(())
}

/// logits `[R, C]`, targets `[R]`: the loss, whether the target counts, and the log-sum-exp, each `[R]`.
pub(super) fn cross_entropy(call: &mut Call<'_>, ignore: Option<u32>) -> Result<()> {
    let (logits, targets) = (call.input(0)?, call.input(1)?);
    let columns = call.operand(0)?.columns();
    check_tokens(targets, columns, ignore, "target")?;
    let (loss, counts, normalizer) = (call.output(0)?, call.output(1)?, call.output(2)?);
    let each = rows_a_task(targets.len(), columns * EXP_COST);
    let tasks = loss.chunks_mut(each).zip(counts.chunks_mut(each)).zip(normalizer.chunks_mut(each));
    threads::each(tasks.enumerate(), |(task, ((loss, counts), normalizer))| {
        dispatch(
            #[inline(always)]
            || {
                for r in 0..loss.len() {
                    let row = task * each + r;
                    let x = &logits[row * columns..][..columns];
                    let shift = math::largest(x);
                    normalizer[r] = shift + math::sum_of_exponentials(x, shift).ln();
                    let target = targets[row].to_bits();
                    let counted = Some(target) != ignore;
                    counts[r] = if counted { 1.0 } else { 0.0 };
                    loss[r] = if counted { normalizer[r] - x[target as usize] } else { 0.0 };
                }
            },
        );
    });
    Ok(())
}

/// logits `[R, C]`, targets `[R]`, log-sum-exp `[R]`, dloss `[R]`: (softmax - one-hot) · dloss, zero where the target
/// does not count.
pub(super) fn cross_entropy_backward(call: &mut Call<'_>, ignore: Option<u32>) -> Result<()> {
    let (logits, targets, normalizer, dloss) = (call.input(0)?, call.input(1)?, call.input(2)?, call.input(3)?);
    let columns = call.operand(0)?.columns();
    check_tokens(targets, columns, ignore, "target")?;
    over_rows(call.output(0)?, columns, columns * EXP_COST, |first, out| {
        dispatch(
            #[inline(always)]
            || {
                for (r, to) in out.chunks_exact_mut(columns).enumerate() {
                    let row = first + r;
                    let target = targets[row].to_bits();
                    if Some(target) == ignore {
                        to.fill(0.0);
                        continue;
                    }
                    let (shift, scale) = (normalizer[row], dloss[row]);
                    for (to, &x) in to.iter_mut().zip(&logits[row * columns..][..columns]) {
                        *to = math::exp(x - shift) * scale;
                    }
                    let at = target as usize;
                    to[at] = (math::exp(logits[row * columns + at] - shift) - 1.0) * scale;
                }
            },
        );
    });
    Ok(())
}
