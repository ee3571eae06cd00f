//! Operations on rows: how they are spread over threads, rows of tables, the largest of a row.

use super::call::Call;
use super::reduce::begin;
use super::threads;
use crate::error::{Error, Result};

/// Elementary operations that are worth a task of their own, some microseconds; untuned.
pub(super) const TASK_COST: usize = 100_000;
/// Elementary operations that are as long as copying a value from memory that no cache holds; untuned.
pub(super) const COPY_COST: usize = 4;
/// Tasks a thread, so that threads that are held up do not hold up the rest; untuned.
const TASKS_A_THREAD: usize = 4;

/// Rows of one task, for rows of `cost` elementary operations.
pub(super) fn rows_a_task(rows: usize, cost: usize) -> usize {
    let even = rows.div_ceil(threads::count() * TASKS_A_THREAD);
    even.max(TASK_COST / cost.max(1)).max(1)
}

/// Calls `work(first row, rows)` for pieces of `data`, rows of `width` values and `cost` operations, on all threads.
pub(super) fn over_rows(data: &mut [f32], width: usize, cost: usize, work: impl Fn(usize, &mut [f32]) + Sync + Send) {
    if width == 0 || data.is_empty() {
        return;
    }
    let each = rows_a_task(data.len() / width, cost);
    if each * width >= data.len() {
        return work(0, data);
    }
    threads::each(data.chunks_mut(each * width).enumerate(), |(i, rows)| work(i * each, rows));
}

/// Refuses tokens that name no row.
pub(super) fn check_tokens(tokens: &[f32], below: usize, except: Option<u32>, what: &str) -> Result<()> {
    let bad = tokens.iter().map(|t| t.to_bits()).position(|t| t as usize >= below && Some(t) != except);
    match bad {
        None => Ok(()),
        Some(row) => {
            let got = tokens[row].to_bits();
            Err(Error::argument(format!("{what} in row {row}: expected a number below {below}, got {got}")))
        }
    }
}

/// table `[V, D]`, tokens `[R]`: rows of the table `[R, D]`.
pub(super) fn embedding(call: &mut Call<'_>) -> Result<()> {
    let (table, tokens) = (call.input(0)?, call.input(1)?);
    let (rows, width) = (call.operand(0)?.rows(), call.operand(0)?.columns());
    check_tokens(tokens, rows, None, "token")?;
    over_rows(call.output(0)?, width, COPY_COST * width, |first, out| {
        for (to, token) in out.chunks_exact_mut(width).zip(&tokens[first..]) {
            to.copy_from_slice(&table[token.to_bits() as usize * width..][..width]);
        }
    });
    Ok(())
}

/// table `[V, D]`, rows `[R]`, x `[R, D]`: the table with those rows of x.
pub(super) fn scatter(call: &mut Call<'_>) -> Result<()> {
    let (rows, x) = (call.input(1)?, call.input(2)?);
    let (below, width) = (call.operand(0)?.rows(), call.operand(0)?.columns());
    check_tokens(rows, below, None, "row")?;
    let table = call.operand(0)?.data;
    let out = call.output(0)?;
    if let Some(table) = table {
        out.copy_from_slice(&table[..out.len()]);
    }
    // Each thread has rows of the table, and looks for those that are its own.
    let tasks = (COPY_COST * x.len() / TASK_COST).clamp(1, threads::count());
    let each = below.div_ceil(tasks);
    threads::each(out.chunks_mut((each * width).max(1)).enumerate(), |(n, out)| {
        for (row, x) in rows.iter().zip(x.chunks_exact(width)) {
            let own = (row.to_bits() as usize).wrapping_sub(n * each);
            if own < each {
                out[own * width..][..width].copy_from_slice(x);
            }
        }
    });
    Ok(())
}

/// tokens `[R]`, dy `[R, D]`: the gradient of the table `[V, D]`, rows added in a fixed order, chunk by chunk. Threads
/// own rows of the table, so the order does not depend on them.
pub(super) fn embedding_backward(call: &mut Call<'_>, rows: usize) -> Result<()> {
    let (tokens, dy) = (call.input(0)?, call.input(1)?);
    let (width, chunks) = (call.operand(1)?.columns(), call.chunks(0)?);
    check_tokens(tokens, rows, None, "token")?;
    let out = begin(call.output(0)?, call.continues);
    if width == 0 || rows == 0 {
        return Ok(());
    }
    let count = if dy.len() < TASK_COST { 1 } else { threads::count() };
    let each = rows.div_ceil(count);
    threads::each(out.chunks_mut(each * width).enumerate(), |(part, out)| {
        let first = part * each;
        for row in chunks.iter().flat_map(|c| c.clone()) {
            let Some(at) = (tokens[row].to_bits() as usize).checked_sub(first) else { continue };
            if let Some(to) = out.get_mut(at * width..(at + 1) * width) {
                to.iter_mut().zip(&dy[row * width..(row + 1) * width]).for_each(|(to, x)| *to += x);
            }
        }
    });
    Ok(())
}

/// x `[R, C]`: the column of each row's largest value, the first of equals `[R]`.
pub(super) fn argmax(call: &mut Call<'_>) -> Result<()> {
    let (x, columns) = (call.input(0)?, call.operand(0)?.columns());
    over_rows(call.output(0)?, 1, columns, |first, out| {
        for (r, to) in out.iter_mut().enumerate() {
            let row = &x[(first + r) * columns..][..columns];
            let mut best = 0;
            for (column, &value) in row.iter().enumerate() {
                if value > row[best] {
                    best = column;
                }
            }
            *to = f32::from_bits(best as u32);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_visited_once() {
        for rows in [0, 1, 7, 1000] {
            let mut data = vec![0.0; rows * 3];
            over_rows(&mut data, 3, 20_000, |first, part| {
                for (r, row) in part.chunks_exact_mut(3).enumerate() {
                    row.iter_mut().for_each(|x| *x += (first + r) as f32 + 1.0);
                }
            });
            assert!(data.iter().enumerate().all(|(i, &x)| x == (i / 3) as f32 + 1.0));
        }
    }

    #[test]
    fn tokens_out_of_range_are_refused() {
        let tokens: Vec<f32> = [1, 9, 2].map(f32::from_bits).to_vec();
        assert!(check_tokens(&tokens, 3, None, "token").is_err());
        assert!(check_tokens(&tokens, 3, Some(9), "target").is_ok());
    }
}
