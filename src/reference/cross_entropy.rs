//! The cross entropy of softmax(logits) and targets, and its gradient.

use super::Real;
use super::array::{Array, Call};
use crate::error::{Error, Result};
use ndarray::Array2;

/// The target of a row as a column of `classes`; `None` where it does not count.
fn target(target: u32, ignore: Option<u32>, classes: usize) -> Result<Option<usize>> {
    if Some(target) == ignore {
        return Ok(None);
    }
    if target as usize >= classes {
        return Err(Error::data(format!("target {target} is not below {classes}, the number of classes")));
    }
    Ok(Some(target as usize))
}

/// Loss `[R]` = ln Σ e^logit - logit[target], counts `[R]` and ln Σ e^logit `[R]`, from logits `[R, C]` and targets
/// `[R]`. Loss and count are 0 where the target is `ignore`.
pub(super) fn cross_entropy<R: Real>(call: &Call<'_, R>, ignore: Option<u32>) -> Result<Vec<Array<R>>> {
    let (logits, targets) = (call.float(0)?, call.index(1)?);
    let mut loss = Array2::zeros((logits.nrows(), 1));
    let (mut counts, mut log_sum_exp) = (loss.clone(), loss.clone());
    for row in call.rows(0)? {
        let logits = logits.row(row.at);
        let largest = logits.iter().copied().fold(R::neg_infinity(), |a, b| if a < b || b.is_nan() { b } else { a });
        let mut sum = R::zero();
        for &logit in logits {
            sum += (logit - largest).exp();
        }
        let lse = largest + sum.ln();
        log_sum_exp[[row.at, 0]] = lse;
        if let Some(class) = target(targets[[row.at, 0]], ignore, logits.len())? {
            loss[[row.at, 0]] = lse - logits[class];
            counts[[row.at, 0]] = R::one();
        }
    }
    Ok(vec![loss.into(), counts.into(), log_sum_exp.into()])
}

/// dlogits `[R, C]` = (softmax(logits) - onehot(target)) dloss, and 0 in rows that do not count; from logits, targets,
/// log-sum-exp and dloss `[R]`.
pub(super) fn cross_entropy_backward<R: Real>(call: &Call<'_, R>, ignore: Option<u32>) -> Result<Array2<R>> {
    let (logits, targets) = (call.float(0)?, call.index(1)?);
    let (log_sum_exp, dloss) = (call.float(2)?, call.float(3)?);
    let mut dlogits = Array2::zeros(logits.dim());
    for row in call.rows(0)? {
        let Some(class) = target(targets[[row.at, 0]], ignore, logits.ncols())? else { continue };
        for c in 0..logits.ncols() {
            let softmax = (logits[[row.at, c]] - log_sum_exp[[row.at, 0]]).exp();
            let onehot = if c == class { R::one() } else { R::zero() };
            dlogits[[row.at, c]] = (softmax - onehot) * dloss[[row.at, 0]];
        }
    }
    Ok(dlogits)
}
