//! Matrix products over packed right operands, in the widest registers that the processor has.
//!
//! C `[M, N]` = A `[M, K]` · B `[K, N]`, or that added to C. Each element of C is a sum over K in order: one chain of
//! fused multiplications within each block of [`BLOCK_K`], the blocks added up in order. Tiles, remainders and single
//! rows all do the same, so a row's bits depend on that row and B alone.

use super::rows::{TASK_COST, over_rows};
use crate::scheduler::strategy::CACHE_LINE;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Rows of C that one tile keeps in registers, with two registers each: 12 sums hide the latency of a fused
/// multiplication and leave room for operands in 16 registers.
const TILE_ROWS: usize = 6;
/// Length of K that is summed in registers before it is added to C; a panel of it stays in the first cache.
pub(super) const BLOCK_K: usize = 256;
/// Rows of A that are used with one panel before the next; they stay in the second cache. A multiple of [`TILE_ROWS`].
const BLOCK_ROWS: usize = 48;
/// Between the rows of a transposed block of A, so that they do not all fall into the same sets of the cache.
const SKEW: usize = 16;
/// Bytes to which packed panels are aligned: a cache line.
const LINE: usize = 4 * CACHE_LINE;

struct PanelWidth;

impl WithSimd for PanelWidth {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        2 * S::F32_LANES
    }
}

/// A right operand `[K, N]` cut into panels of two registers' columns, padded by zeros: for each block of K, for each
/// panel, for each k, the panel's columns.
#[derive(Debug, Default)]
pub(super) struct Packed {
    data: Vec<f32>,
    /// Where the aligned part of `data` begins.
    start: usize,
    inner: usize,
    columns: usize,
    width: usize,
}

impl Packed {
    /// Gives it the room that it needs.
    pub(super) fn reserve(&mut self, data: Vec<f32>) {
        self.data = data;
    }

    /// Packs the transposes of `weights`, each `[columns, inner]`, side by side.
    pub(super) fn transpose(&mut self, weights: &[&[f32]], inner: usize, columns: usize) {
        let all = columns * weights.len();
        self.fill(inner, all, |k, n, width, panel| {
            panel.fill(0.0);
            for j in 0..width.min(all - n) {
                let row = &weights[(n + j) / columns][(n + j) % columns * inner..][..inner];
                for (to, &value) in panel.chunks_exact_mut(width).zip(&row[k..]) {
                    to[j] = value;
                }
            }
        });
    }

    /// Packs the rows of a matrix `[K, columns]`.
    pub(super) fn rows(&mut self, rows: &[&[f32]], columns: usize) {
        self.fill(rows.len(), columns, |k, n, width, panel| {
            let used = width.min(columns - n);
            for (to, row) in panel.chunks_exact_mut(width).zip(&rows[k..]) {
                to[..used].copy_from_slice(&row[n..n + used]);
                to[used..].fill(0.0);
            }
        });
    }

    /// Sizes the storage and calls `pack(first k, first column, width, panel)` for every panel.
    fn fill(&mut self, inner: usize, columns: usize, pack: impl Fn(usize, usize, usize, &mut [f32]) + Sync) {
        let width = Arch::new().dispatch(PanelWidth);
        let panels = columns.div_ceil(width);
        let len = inner * panels * width;
        if self.data.len() < len + LINE / 4 {
            debug_assert!(self.data.is_empty(), "planned for {} values, needed are {len}", self.data.len());
            self.data = vec![0.0; len + LINE / 4];
        }
        let start = self.data.as_ptr().align_offset(LINE);
        self.start = if start <= LINE / 4 { start } else { 0 };
        (self.inner, self.columns, self.width) = (inner, columns, width);
        let mut rest = &mut self.data[self.start..self.start + len];
        for k in (0..inner).step_by(BLOCK_K) {
            let depth = BLOCK_K.min(inner - k);
            let (block, tail) = std::mem::take(&mut rest).split_at_mut(depth * panels * width);
            rest = tail;
            let each = (TASK_COST / (depth * width)).max(1);
            let panels = block.par_chunks_mut(depth * width).with_min_len(each).enumerate();
            panels.for_each(|(p, panel)| pack(k, p * width, width, panel));
        }
    }

    /// N.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// The panels of the block of K that begins at `k`.
    fn block(&self, k: usize, depth: usize) -> &[f32] {
        let stride = self.columns.div_ceil(self.width) * self.width;
        &self.data[self.start + k * stride..self.start + (k + depth) * stride]
    }
}

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

    /// Rows `row..row + count` at `k..k + depth` as slices `stride` apart; a transposed operand is copied to `scratch`.
    fn block<'b>(
        self,
        row: usize,
        count: usize,
        k: usize,
        depth: usize,
        scratch: &'b mut Vec<f32>,
    ) -> (&'b [f32], usize)
    where
        'a: 'b,
    {
        match self {
            Self::Rows { data, stride } => (&data[row * stride + k..], stride),
            Self::Columns { data, stride, first } => {
                let pitch = depth + SKEW;
                scratch.resize(BLOCK_ROWS * (BLOCK_K + SKEW), 0.0);
                for at in 0..depth {
                    let from = &data[(k + at) * stride + first + row..][..count];
                    for (m, &x) in from.iter().enumerate() {
                        scratch[m * pitch + at] = x;
                    }
                }
                (scratch, pitch)
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
        let (columns, width) = (right.columns, right.width);
        let rows = out.len() / columns;
        let mut scratch = Vec::new();
        for k in (0..right.inner).step_by(BLOCK_K) {
            let depth = BLOCK_K.min(right.inner - k);
            let add = add || k > 0;
            for first in (0..rows).step_by(BLOCK_ROWS) {
                let count = BLOCK_ROWS.min(rows - first);
                let (a, stride) = left.block(first, count, k, depth, &mut scratch);
                for (p, panel) in right.block(k, depth).chunks_exact(depth * width).enumerate() {
                    let used = width.min(columns - p * width);
                    let tiles = count.div_ceil(TILE_ROWS);
                    let mut row = 0;
                    for tile in 0..tiles {
                        let height = count / tiles + usize::from(tile < count % tiles);
                        let at = Tile { a: &a[row * stride..], stride, panel, used, columns, add };
                        let out = &mut out[(first + row) * columns + p * width..];
                        match height {
                            1 => at.compute::<S, 1>(simd, out),
                            2 => at.compute::<S, 2>(simd, out),
                            3 => at.compute::<S, 3>(simd, out),
                            4 => at.compute::<S, 4>(simd, out),
                            5 => at.compute::<S, 5>(simd, out),
                            _ => at.compute::<S, TILE_ROWS>(simd, out),
                        }
                        row += height;
                    }
                }
            }
        }
    }
}

/// Some rows of A and one panel of B.
struct Tile<'a> {
    a: &'a [f32],
    stride: usize,
    panel: &'a [f32],
    /// Columns of the panel that exist.
    used: usize,
    /// Columns of C.
    columns: usize,
    add: bool,
}

impl Tile<'_> {
    /// Adds the product of `R` rows to `out`, the rest of C from the tile's first element on, or stores it there.
    #[inline(always)]
    fn compute<S: Simd, const R: usize>(&self, simd: S, out: &mut [f32]) {
        let (b, _) = S::as_simd_f32s(self.panel);
        let depth = b.len() / 2;
        let a: [&[f32]; R] = std::array::from_fn(|r| &self.a[r * self.stride..][..depth]);
        let mut sums = [[simd.splat_f32s(0.0); 2]; R];
        for (k, b) in (0..depth).zip(b.chunks_exact(2)) {
            for r in 0..R {
                let x = simd.splat_f32s(a[r][k]);
                sums[r][0] = simd.mul_add_e_f32s(x, b[0], sums[r][0]);
                sums[r][1] = simd.mul_add_e_f32s(x, b[1], sums[r][1]);
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let row = &mut out[r * self.columns..][..self.used];
            for (part, &sum) in row.chunks_mut(S::F32_LANES).zip(sums) {
                let sum = if self.add { simd.add_f32s(simd.partial_load_f32s(part), sum) } else { sum };
                simd.partial_store_f32s(part, sum);
            }
        }
    }
}

/// `left · right` into `out` `[M, N]`, or added to it, on this thread.
pub(super) fn multiply(left: Left<'_>, right: &Packed, out: &mut [f32], add: bool) {
    if right.columns == 0 || out.is_empty() {
        return;
    }
    if right.inner == 0 {
        if !add {
            out.fill(0.0);
        }
        return;
    }
    Arch::new().dispatch(Multiply { left, right, out, add });
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
    over_rows(out, columns, columns * right.inner.max(1), |first, out| {
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
                packs[1].transpose(&[&bt], k, n);
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
