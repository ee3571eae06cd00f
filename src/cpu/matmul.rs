//! Matrix products over packed right operands, in the widest registers that the processor has.
//!
//! C `[M, N]` = A `[M, K]` · B `[K, N]`, or that added to C. Each element of C is a sum over K in order: one chain of
//! fused multiplications within each block of [`BLOCK_K`], the blocks added up in order. Tiles, remainders and single
//! rows all do the same, so a row's bits depend on that row and B alone.

use super::aligned::{Aligned, LINE};
use super::prefetch::prefetch;
use super::rows::{TASK_COST, over_rows};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Registers of columns in a panel: a gate of a cell each, where a layer packs its recurrent weights.
pub(super) const PANEL_REGISTERS: usize = 4;
/// Rows of C that one tile keeps in registers, where there are 32 of these, and where there are 16: with the panel's, and
/// with one for each row's operand, that is nearly all of them. One more, and the compiler keeps a sum in memory.
const TILE_ROWS: usize = 6;
const TILE_ROWS_OF_16: usize = 2;
/// Length of K that is summed in registers before it is added to C. A panel of it stays in the second cache, from which a tile
/// reads no faster than it computes.
pub(super) const BLOCK_K: usize = 384;
/// Values of weights that stay in one processor's own cache beside all else.
pub(super) const OWN_CACHE: usize = 192 * 1024;
/// Rows of A that are used with one panel before the next; they stay in the second cache with their rows of C. A multiple of
/// [`TILE_ROWS`].
const BLOCK_ROWS: usize = 102;

struct PanelWidth;

impl WithSimd for PanelWidth {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        PANEL_REGISTERS * S::F32_LANES
    }
}

/// A right operand `[K, N]` cut into panels of [`PANEL_REGISTERS`] registers' columns, padded by zeros: for each block of K, for each
/// panel, for each k, the panel's columns.
#[derive(Debug, Default)]
pub(super) struct Packed {
    data: Aligned,
    inner: usize,
    columns: usize,
    width: usize,
}

impl Packed {
    /// Gives it the room that it needs.
    pub(super) fn reserve(&mut self, data: Aligned) {
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

    /// Packs the transpose of a layer's recurrent weights `[4H, R]` so that a panel has some units, each gate in a register.
    pub(super) fn gates(&mut self, weight: &[f32], inner: usize, hidden: usize) {
        let lanes = Arch::new().dispatch(PanelWidth) / PANEL_REGISTERS;
        let columns = hidden.next_multiple_of(lanes) * PANEL_REGISTERS;
        self.fill(inner, columns, |k, n, width, panel| {
            let first = n / PANEL_REGISTERS;
            panel.fill(0.0);
            for j in 0..width {
                let (gate, unit) = (j / lanes, first + j % lanes);
                if unit < hidden {
                    let row = &weight[(gate * hidden + unit) * inner..][..inner];
                    for (to, &value) in panel.chunks_exact_mut(width).zip(&row[k..]) {
                        to[j] = value;
                    }
                }
            }
        });
    }

    /// Columns of one panel.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Units of one panel, where it is packed by [`Self::gates`].
    pub(super) fn units(&self) -> usize {
        self.width / PANEL_REGISTERS
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
        if self.data.len() < len {
            debug_assert!(self.data.is_empty(), "planned for {} values, needed are {len}", self.data.len());
            self.data = Aligned::zeros(len);
        }
        (self.inner, self.columns, self.width) = (inner, columns, width);
        let mut rest = &mut self.data[..len];
        for k in (0..inner).step_by(BLOCK_K) {
            let depth = BLOCK_K.min(inner - k);
            let (block, tail) = std::mem::take(&mut rest).split_at_mut(depth * panels * width);
            rest = tail;
            let each = (TASK_COST / (depth * width)).max(1);
            let panels = block.par_chunks_mut(depth * width).with_min_len(each).enumerate();
            panels.for_each(|(p, panel)| pack(k, p * width, width, panel));
        }
    }

    /// K.
    pub(super) fn inner(&self) -> usize {
        self.inner
    }

    /// N.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// The panels of the block of K that begins at `k`.
    fn block(&self, k: usize, depth: usize) -> &[f32] {
        let stride = self.columns.div_ceil(self.width) * self.width;
        &self.data[k * stride..(k + depth) * stride]
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
}

/// Some rows of A: `[M, *]`, or where it is transposed `[*, M]`, `stride` values between lines.
#[derive(Clone, Copy)]
struct Lines<'a> {
    data: &'a [f32],
    stride: usize,
    transposed: bool,
}

impl<'a> Lines<'a> {
    /// The same from row `row` on.
    #[inline(always)]
    fn skip(self, row: usize) -> Self {
        Self { data: &self.data[if self.transposed { row } else { row * self.stride }..], ..self }
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
        for first in (0..rows).step_by(BLOCK_ROWS) {
            let count = BLOCK_ROWS.min(rows - first);
            for k in (0..right.inner).step_by(BLOCK_K) {
                let depth = BLOCK_K.min(right.inner - k);
                let add = add || k > 0;
                let a = left.block(first, count, k, depth, &mut scratch);
                for (p, panel) in right.block(k, depth).chunks_exact(depth * width).enumerate() {
                    let used = width.min(columns - p * width);
                    let tile = Tile { a, panel, ahead: &[], used, columns, add };
                    tile.some_rows(simd, count, &mut out[first * columns + p * width..]);
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
    data: &'a [f32],
    stride: usize,
    right: &'a Packed,
    panels: Range<usize>,
    /// `[M, width of a panel]`
    sums: &'a mut [f32],
    each: F,
}

impl<F: Finish> WithSimd for MultiplyGates<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { data, stride, right, panels, sums, mut each } = self;
        let width = right.width;
        for p in panels {
            for k in (0..right.inner).step_by(BLOCK_K) {
                let depth = BLOCK_K.min(right.inner - k);
                let panel = &right.block(k, depth)[p * depth * width..][..depth * width];
                let a = Lines { data: &data[k..], stride, transposed: false };
                let tile = Tile { a, panel, ahead: &[], used: width, columns: width, add: k > 0 };
                tile.rows::<S, PANEL_REGISTERS>(simd, sums.len() / width, sums);
            }
            each.finish(simd, p * right.units(), sums);
        }
    }
}

/// Gives `each` the products of `M` rows of `data`, `stride` values apart, with each of these panels of recurrent weights; `sums` has room
/// for one, `[M, 4, units of a panel]`.
pub(super) fn multiply_gates(
    (data, stride): (&[f32], usize),
    right: &Packed,
    panels: Range<usize>,
    sums: &mut [f32],
    each: impl Finish,
) {
    debug_assert!(right.inner > 0 && sums.len().is_multiple_of(right.width));
    Arch::new().dispatch(MultiplyGates { data, stride, right, panels, sums, each });
}

/// Some panels of a right operand, and whether what comes after each is asked for ahead: where they do not stay in a
/// thread's own cache.
#[derive(Clone)]
pub(super) struct Panels<'a> {
    right: &'a Packed,
    numbers: Range<usize>,
    ahead: bool,
}

impl<'a> Panels<'a> {
    pub(super) fn new(right: &'a Packed, numbers: Range<usize>) -> Self {
        let ahead = numbers.len() * right.width * right.inner > OWN_CACHE;
        Self { right, numbers, ahead }
    }

    fn of(&self, k: usize, p: usize) -> &'a [f32] {
        let depth = BLOCK_K.min(self.right.inner - k);
        &self.right.block(k, depth)[p * depth * self.right.width..][..depth * self.right.width]
    }

    /// What is read after block `k` of panel `p`: round and round.
    fn after(&self, k: usize, p: usize) -> &'a [f32] {
        match (self.ahead, k + BLOCK_K < self.right.inner) {
            (false, _) => &[],
            (true, true) => self.of(k + BLOCK_K, p),
            (true, false) => self.of(0, if p + 1 < self.numbers.end { p + 1 } else { self.numbers.start }),
        }
    }

    /// Adds to `out` `[M, width of a panel]` the products of as many rows of `data`, `stride` values apart, with panel `p` of
    /// input or recurrent weights.
    #[inline(always)]
    pub(super) fn add<S: Simd>(&self, simd: S, (data, stride): (&[f32], usize), p: usize, out: &mut [f32]) {
        let width = PANEL_REGISTERS * S::F32_LANES;
        for k in (0..self.right.inner).step_by(BLOCK_K) {
            let a = Lines { data: &data[k..], stride, transposed: false };
            let (panel, ahead) = (self.of(k, p), self.after(k, p));
            let tile = Tile { a, panel, ahead, used: width, columns: width, add: true };
            tile.rows::<S, PANEL_REGISTERS>(simd, out.len() / width, out);
        }
    }

    /// Stores in `out` `[M, width of a panel]` the products of as many rows of `data`, `stride` values apart, with panel `p`.
    #[inline(always)]
    pub(super) fn multiply<S: Simd>(&self, simd: S, (data, stride): (&[f32], usize), p: usize, out: &mut [f32]) {
        let width = PANEL_REGISTERS * S::F32_LANES;
        let used = width.min(self.right.columns - p * width);
        for k in (0..self.right.inner).step_by(BLOCK_K) {
            let a = Lines { data: &data[k..], stride, transposed: false };
            let (panel, ahead) = (self.of(k, p), self.after(k, p));
            Tile { a, panel, ahead, used, columns: width, add: k > 0 }.some_rows(simd, out.len() / width, out);
        }
    }
}

/// Unrolls `body` for each of `R` rows, up to [`TILE_ROWS`]: what is indexed by a loop's variable does not stay in registers.
macro_rules! each_row {
    ($count:expr, $r:ident => $body:block) => {
        each_row!(@ $count, $r, $body, 0 1 2 3 4 5)
    };
    (@ $count:expr, $r:ident, $body:block, $($n:literal)*) => {
        $(if $count > $n {
            const $r: usize = $n;
            $body
        })*
    };
}

/// Some rows of A and one panel of B.
#[derive(Clone, Copy)]
struct Tile<'a> {
    a: Lines<'a>,
    panel: &'a [f32],
    /// What is read of B next, to be asked for meanwhile.
    ahead: &'a [f32],
    /// Columns of the panel that exist.
    used: usize,
    /// Columns of C.
    columns: usize,
    add: bool,
}

impl Tile<'_> {
    /// [`Self::rows`] with as many registers of the panel as have columns, where that is up to half of them.
    #[inline(always)]
    fn some_rows<S: Simd>(self, simd: S, count: usize, out: &mut [f32]) {
        match self.used.div_ceil(S::F32_LANES) {
            1 => self.rows::<S, 1>(simd, count, out),
            2 => self.rows::<S, 2>(simd, count, out),
            _ => self.rows::<S, PANEL_REGISTERS>(simd, count, out),
        }
    }

    /// Adds the product of `count` rows and `W` registers of the panel to `out`, the rest of C from the first one's first element
    /// on, or stores it there: in tiles as even as they can be.
    #[inline(always)]
    fn rows<S: Simd, const W: usize>(self, simd: S, count: usize, out: &mut [f32]) {
        let most = if S::REGISTER_COUNT >= 32 { TILE_ROWS } else { TILE_ROWS_OF_16 };
        let tiles = count.div_ceil(most);
        let mut row = 0;
        for tile in 0..tiles {
            let height = count / tiles + usize::from(tile < count % tiles);
            let ahead = &self.ahead[tile * self.ahead.len() / tiles..];
            let at = Self { a: self.a.skip(row), ahead, ..self };
            let out = &mut out[row * self.columns..];
            match (self.a.transposed, height) {
                (false, 1) => at.compute::<S, W, 1, false>(simd, out),
                (false, 2) => at.compute::<S, W, 2, false>(simd, out),
                (false, 3) => at.compute::<S, W, 3, false>(simd, out),
                (false, 4) => at.compute::<S, W, 4, false>(simd, out),
                (false, 5) => at.compute::<S, W, 5, false>(simd, out),
                (false, _) => at.compute::<S, W, TILE_ROWS, false>(simd, out),
                (true, 1) => at.compute::<S, W, 1, true>(simd, out),
                (true, 2) => at.compute::<S, W, 2, true>(simd, out),
                (true, 3) => at.compute::<S, W, 3, true>(simd, out),
                (true, 4) => at.compute::<S, W, 4, true>(simd, out),
                (true, 5) => at.compute::<S, W, 5, true>(simd, out),
                (true, _) => at.compute::<S, W, TILE_ROWS, true>(simd, out),
            }
            row += height;
        }
    }

    /// The same of `R` rows and `W` registers of the panel.
    #[inline(always)]
    fn compute<S: Simd, const W: usize, const R: usize, const TRANSPOSED: bool>(&self, simd: S, out: &mut [f32]) {
        let (b, _) = S::as_simd_f32s(self.panel);
        let (b, _) = b.as_chunks::<PANEL_REGISTERS>();
        let depth = b.len();
        let Lines { data, stride, .. } = self.a;
        let row = |r: usize| if TRANSPOSED { data } else { &data[r.min(R - 1) * stride..][..depth] };
        let a = [row(0), row(1), row(2), row(3), row(4), row(5)];
        let mut sums = [[simd.splat_f32s(0.0); PANEL_REGISTERS]; TILE_ROWS];
        for (k, b) in b.iter().enumerate() {
            if let Some(ahead) = self.ahead.get(k * LINE..) {
                prefetch(ahead);
            }
            let line = if TRANSPOSED { &data[k * stride..][..R] } else { &[] };
            each_row!(R, ROW => {
                let x = simd.splat_f32s(if TRANSPOSED { line[ROW] } else { a[ROW][k] });
                sums[ROW][0] = simd.mul_add_e_f32s(x, b[0], sums[ROW][0]);
                if W > 1 {
                    sums[ROW][1] = simd.mul_add_e_f32s(x, b[1], sums[ROW][1]);
                }
                if W > 2 {
                    sums[ROW][2] = simd.mul_add_e_f32s(x, b[2], sums[ROW][2]);
                    sums[ROW][3] = simd.mul_add_e_f32s(x, b[3], sums[ROW][3]);
                }
            });
        }
        each_row!(R, ROW => {
            let row = &mut out[ROW * self.columns..][..self.used];
            // By name: sums that something points to are kept in memory.
            let [t0, t1, t2, t3] = sums[ROW];
            self.put(simd, row, 0, t0);
            if W > 1 {
                self.put(simd, row, 1, t1);
            }
            if W > 2 {
                self.put(simd, row, 2, t2);
                self.put(simd, row, 3, t3);
            }
        });
    }

    /// Adds a register of sums to part `part` of a row of the panel, or stores it there.
    #[inline(always)]
    fn put<S: Simd>(&self, simd: S, row: &mut [f32], part: usize, sums: S::f32s) {
        let (_, row) = row.split_at_mut(self.used.min(part * S::F32_LANES));
        if let Some((to, _)) = row.split_at_mut_checked(S::F32_LANES) {
            let sums = if self.add { simd.add_f32s(load(simd, to), sums) } else { sums };
            store(simd, to, sums);
        } else if !row.is_empty() {
            let sums = if self.add { simd.add_f32s(load(simd, row), sums) } else { sums };
            store(simd, row, sums);
        }
    }
}

/// A register of values, zeros where there are fewer.
#[inline(always)]
pub(super) fn load<S: Simd>(simd: S, from: &[f32]) -> S::f32s {
    match S::as_simd_f32s(from) {
        ([all], []) => *all,
        _ => simd.partial_load_f32s(from),
    }
}

/// As many of a register's values as fit.
#[inline(always)]
pub(super) fn store<S: Simd>(simd: S, to: &mut [f32], values: S::f32s) {
    match S::as_mut_simd_f32s(to) {
        ([all], []) => *all = values,
        _ => simd.partial_store_f32s(to, values),
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
