//! Matrix products over packed right operands, in the widest registers that the processor has.
//!
//! C `[M, N]` = A `[M, K]` · B `[K, N]`, or that added to C. Each element of C is a sum over K in order: one chain of
//! fused multiplications within each block of [`BLOCK_K`], the blocks added up in order. Tiles, remainders and single
//! rows all do the same, so a row's bits depend on that row and B alone.

use super::aligned::LINE;
use super::packed::{BLOCK_K, PANEL_REGISTERS, Packed};
use super::rows::over_rows;
use super::simd::dispatch;
use super::tile::{Ahead, Lines, TILE_ROWS, Tile};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Values of weights that stay in one processor's own cache beside all else.
pub(super) const OWN_CACHE: usize = 192 * 1024;
/// Most rows of A that are used with one panel before the next; they stay in the second cache with their rows of C. A multiple of
/// [`TILE_ROWS`].
const BLOCK_ROWS: usize = 102;

/// A left operand.
#[derive(Debug, Clone, Copy)]
pub(super) enum Left<'a> {
    /// Row-major `[M, K]`, `stride` values between rows.
    Rows { data: &'a [f32], stride: usize },
    /// The transpose of a row-major `[K, *]` with `stride` columns, of which M begin at `first`.
    Columns { data: &'a [f32], stride: usize, first: usize },
}

impl<'a> Left<'a> {
    /// The same from row `row` of M on.
    fn skip_rows(self, row: usize) -> Self {
        match self {
            Self::Rows { data, stride } => Self::Rows { data: &data[row * stride..], stride },
            Self::Columns { data, stride, first } => Self::Columns { data, stride, first: first + row },
        }
    }

    /// Rows `row..row + count` at `k..k + depth`; those of a transposed operand, which lie far apart, are copied to `scratch`.
    fn block<'b>(self, row: usize, count: usize, k: usize, depth: usize, scratch: &'b mut Vec<f32>) -> Lines<'b>
    where
        'a: 'b,
    {
        match self {
            Self::Rows { data, stride } => Lines { data: &data[row * stride + k..], stride, transposed: false },
            Self::Columns { data, stride, first } => {
                scratch.resize(BLOCK_ROWS * BLOCK_K, 0.0);
                for (at, to) in scratch.chunks_exact_mut(count).take(depth).enumerate() {
                    to.copy_from_slice(&data[(k + at) * stride + first + row..][..count]);
                }
                Lines { data: scratch, stride: count, transposed: true }
            }
        }
    }

    /// One of so many parts of what is copied next, `count` rows from row `row` on at `k`.
    fn ahead(self, (row, k): (usize, usize), count: usize, (part, parts): (usize, usize)) -> Ahead<'a> {
        match self {
            Self::Rows { .. } => Ahead::default(),
            Self::Columns { data, stride, first } => {
                let lines = count / LINE + 1;
                let (begin, end) = (part * lines / parts, (part + 1) * lines / parts);
                let data = data.get(k * stride + first + row + begin * LINE..).unwrap_or_default();
                Ahead { data, tiles: end - begin, next: LINE, step: stride }
            }
        }
    }
}

struct Multiply<'a> {
    left: Left<'a>,
    right: &'a Packed,
    /// `[M, N]`
    out: &'a mut [f32],
    add: bool,
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { left, right, out, add } = self;
        let (columns, width) = (right.columns(), right.width());
        let rows = out.len() / columns;
        let mut scratch = Vec::new();
        // In blocks as even as they can be.
        let each = rows.div_ceil(rows.div_ceil(BLOCK_ROWS)).next_multiple_of(TILE_ROWS);
        for first in (0..rows).step_by(each) {
            let count = each.min(rows - first);
            for (k, depth) in right.blocks() {
                let add = add || k > 0;
                let a = left.block(first, count, k, depth, &mut scratch);
                let next = if k + depth < right.inner() { (first, k + depth) } else { (first + each, 0) };
                let panels = right.block(k, depth).chunks_exact(depth * width);
                let parts = panels.len();
                for (p, panel) in panels.enumerate() {
                    let used = width.min(columns - p * width);
                    let tile = Tile { a, panel, ahead: left.ahead(next, each, (p, parts)), used, columns, add };
                    tile.some_rows::<S, false>(simd, count, &mut out[first * columns + p * width..]);
                }
            }
        }
    }
}

/// What becomes of the products of recurrent weights, panel by panel.
pub(super) trait Finish {
    /// `sums` are `[M, 4, N]` of the units from `first` on, of which there may be fewer than `N`, a register's values.
    fn finish<S: Simd>(&mut self, simd: S, first: usize, sums: &[f32]);
}

/// A left operand times each panel of recurrent weights in turn.
struct MultiplyGates<'a, F> {
    /// Rows, and values between them.
    left: (&'a [f32], usize),
    panels: Panels<'a>,
    /// `[M, width of a panel]`
    sums: &'a mut [f32],
    each: F,
}

impl<F: Finish> WithSimd for MultiplyGates<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { left, panels, sums, mut each } = self;
        for p in panels.numbers.clone() {
            panels.multiply(simd, left, p, sums);
            each.finish(simd, p * panels.right.units(), sums);
        }
    }
}

/// Gives `each` the products of `M` rows of `data`, `stride` values apart, with each of these panels of recurrent weights; `sums` has room
/// for one, `[M, 4, units of a panel]`.
pub(super) fn multiply_gates(
    left: (&[f32], usize),
    right: &Packed,
    panels: Range<usize>,
    sums: &mut [f32],
    each: impl Finish,
) {
    debug_assert!(right.inner() > 0 && sums.len().is_multiple_of(right.width()));
    dispatch(MultiplyGates { left, panels: Panels::new(right, panels), sums, each });
}

/// Some panels of a right operand, and whether what comes after each is asked for ahead: where they do not stay in a
/// thread's own cache.
pub(super) struct Panels<'a> {
    right: &'a Packed,
    numbers: Range<usize>,
    ahead: bool,
}

impl<'a> Panels<'a> {
    pub(super) fn new(right: &'a Packed, numbers: Range<usize>) -> Self {
        let ahead = numbers.len() * right.width() * right.inner() > OWN_CACHE;
        Self { right, numbers, ahead }
    }

    #[inline(always)]
    fn of(&self, (k, depth): (usize, usize), p: usize) -> &'a [f32] {
        &self.right.block(k, depth)[p * depth * self.right.width()..][..depth * self.right.width()]
    }

    /// What is read after a block of panel `p`: round and round.
    #[inline(always)]
    fn after(&self, (k, depth): (usize, usize), p: usize) -> &'a [f32] {
        match (self.ahead, self.right.inner() - k - depth) {
            // Something that is at hand.
            (false, _) => self.of((k, depth), p),
            (true, 0) => {
                let next = if p + 1 < self.numbers.end { p + 1 } else { self.numbers.start };
                self.right.blocks().next().map_or(&[], |first| self.of(first, next))
            }
            (true, left) => self.of((k + depth, depth.min(left)), p),
        }
    }

    /// A block of panel `p`, with these rows.
    #[inline(always)]
    fn tile<'b>(
        &'b self,
        (data, stride): (&'b [f32], usize),
        block: (usize, usize),
        p: usize,
        (rows, used): (usize, usize),
        add: bool,
    ) -> Tile<'b> {
        let a = Lines { data: &data[block.0..], stride, transposed: false };
        let ahead = Ahead::all(self.after(block, p), rows.div_ceil(TILE_ROWS));
        Tile { a, panel: self.of(block, p), ahead, used, columns: self.right.width(), add }
    }

    /// Adds to `out` `[M, width of a panel]` the products of as many rows, some values apart, with panel `p` of input or recurrent
    /// weights.
    #[inline(always)]
    pub(super) fn add<S: Simd>(&self, simd: S, left: (&[f32], usize), p: usize, out: &mut [f32]) {
        let width = PANEL_REGISTERS * S::F32_LANES;
        for block in self.right.blocks() {
            let rows = out.len() / width;
            self.tile(left, block, p, (rows, width), true).rows::<S, true>(simd, rows, out);
        }
    }

    /// Stores in `out` `[M, width of a panel]` the products of as many rows, some values apart, with panel `p`.
    #[inline(always)]
    pub(super) fn multiply<S: Simd>(&self, simd: S, left: (&[f32], usize), p: usize, out: &mut [f32]) {
        let width = PANEL_REGISTERS * S::F32_LANES;
        let used = width.min(self.right.columns() - p * width);
        for block in self.right.blocks() {
            let rows = out.len() / width;
            self.tile(left, block, p, (rows, used), block.0 > 0).some_rows::<S, true>(simd, rows, out);
        }
    }
}

/// `left · right` into `out` `[M, N]`, or added to it, on this thread.
pub(super) fn multiply(left: Left<'_>, right: &Packed, out: &mut [f32], add: bool) {
    if right.columns() == 0 || out.is_empty() {
        return;
    }
    if right.inner() == 0 {
        if !add {
            out.fill(0.0);
        }
        return;
    }
    dispatch(Multiply { left, right, out, add });
}

/// The same with the rows of `out` spread over the threads; `begin` prepares rows before they are added to.
pub(super) fn multiply_parallel(
    left: Left<'_>,
    right: &Packed,
    out: &mut [f32],
    add: bool,
    begin: impl Fn(&mut [f32]) + Sync + Send,
) {
    let columns = right.columns();
    over_rows(out, columns, columns * right.inner().max(1), |first, out| {
        begin(out);
        multiply(left.skip_rows(first), right, out, add);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        (0..n)
            .map(|i| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 20) as f32 / 2048.0 - 1.0)
            .collect()
    }

    #[test]
    fn products_of_odd_sizes_match_plain_loops_in_every_layout() {
        for m in [1, 5, 6, 7, 49, 100] {
            for (k, n) in [(1, 1), (3, 15), (255, 16), (256, 17), (257, 33), (600, 5)] {
                let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
                let transpose = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                    (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
                };
                let (at, bt) = (transpose(&a, m, k), transpose(&b, k, n));
                let mut packs = [Packed::default(), Packed::default()];
                packs[0].rows(&b.chunks_exact(n).collect::<Vec<_>>(), n);
                packs[1].transpose(&bt, k, n);
                for packed in &packs {
                    let lefts = [Left::Rows { data: &a, stride: k }, Left::Columns { data: &at, stride: m, first: 0 }];
                    for left in lefts {
                        let mut c = vec![1.0; m * n];
                        multiply_parallel(left, packed, &mut c, true, |_| ());
                        for (i, got) in c.iter().enumerate() {
                            let terms = (0..k).map(|x| f64::from(a[i / n * k + x]) * f64::from(b[x * n + i % n]));
                            let wanted = 1.0 + terms.sum::<f64>();
                            assert!((f64::from(*got) - wanted).abs() < 1e-4, "{m} {k} {n} {i}: {got} {wanted}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() {
        let (m, k, n) = (23, 300, 37);
        let (a, b) = (numbers(m * k, 5), numbers(k * n, 6));
        let mut packed = Packed::default();
        packed.rows(&b.chunks_exact(n).collect::<Vec<_>>(), n);
        let mut all = vec![0.0; m * n];
        multiply(Left::Rows { data: &a, stride: k }, &packed, &mut all, false);
        for r in 0..m {
            let mut one = vec![0.0; n];
            multiply(Left::Rows { data: &a[r * k..(r + 1) * k], stride: k }, &packed, &mut one, false);
            assert_eq!(one, all[r * n..(r + 1) * n], "row {r}");
        }
    }
}
