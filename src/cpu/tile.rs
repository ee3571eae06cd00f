//! The part of a product that stays in registers: some rows of the left operand and one panel of the right one.

use super::aligned::LINE;
use super::packed::PANEL_REGISTERS;
use super::prefetch::prefetch;
use pulp::Simd;

/// Rows of C that one tile keeps in registers: with the panel's, of which there are four where the processor has 32 and two where it
/// has 16, and with one for each row's operand, that is nearly all of them.
pub(super) const TILE_ROWS: usize = 6;

/// Some rows of A: `[M, *]`, or where it is transposed `[*, M]`, `stride` values between lines.
#[derive(Clone, Copy)]
pub(super) struct Lines<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub transposed: bool,
}

impl<'a> Lines<'a> {
    /// The same from row `row` on.
    #[inline(always)]
    fn skip(self, row: usize) -> Self {
        Self { data: &self.data[if self.transposed { row } else { row * self.stride }..], ..self }
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

/// What is read after a product, to be asked for meanwhile.
#[derive(Clone, Copy, Default)]
pub(super) struct Ahead<'a> {
    pub data: &'a [f32],
    /// How many tiles ask for it, and how far apart their parts of it begin.
    pub tiles: usize,
    pub next: usize,
    /// Values from one line of a tile's part to the next.
    pub step: usize,
}

impl<'a> Ahead<'a> {
    /// All of some values, by so many tiles.
    #[inline(always)]
    pub fn all(data: &'a [f32], tiles: usize) -> Self {
        Self { data, tiles, next: data.len() / tiles, step: LINE }
    }

    /// The first address of a tile's part, and how far it is to the next one.
    #[inline(always)]
    fn part(&self, tile: usize) -> (*const f32, usize) {
        if tile < self.tiles {
            (self.data.as_ptr().wrapping_add(tile * self.next), self.step)
        } else {
            (self.data.as_ptr(), 0)
        }
    }
}

/// Some rows of A and one panel of B.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub a: Lines<'a>,
    pub panel: &'a [f32],
    /// Used where `AHEAD` says so, or A is transposed.
    pub ahead: Ahead<'a>,
    /// Columns of the panel that exist.
    pub used: usize,
    /// Columns of C.
    pub columns: usize,
    pub add: bool,
}

impl Tile<'_> {
    /// [`Self::rows`] with as many registers of the panel as have columns, where that is up to half of them.
    #[inline(always)]
    pub fn some_rows<S: Simd, const AHEAD: bool>(self, simd: S, count: usize, out: &mut [f32]) {
        match self.used.div_ceil(S::F32_LANES) {
            1 => self.tiles::<S, 0, 1, AHEAD>(simd, count, out),
            2 => self.tiles::<S, 0, 2, AHEAD>(simd, count, out),
            _ => self.rows::<S, AHEAD>(simd, count, out),
        }
    }

    /// Adds the product of `count` rows and the panel to `out`, the rest of C from the first one's first element on, or stores it
    /// there.
    #[inline(always)]
    pub fn rows<S: Simd, const AHEAD: bool>(self, simd: S, count: usize, out: &mut [f32]) {
        if S::REGISTER_COUNT >= 32 {
            return self.tiles::<S, 0, PANEL_REGISTERS, AHEAD>(simd, count, out);
        }
        self.tiles::<S, 0, 2, AHEAD>(simd, count, out);
        self.tiles::<S, 2, 2, false>(simd, count, out);
    }

    /// [`Self::rows`] of `W` registers of the panel from register `F` on, in tiles as even as they can be.
    #[inline(always)]
    fn tiles<S: Simd, const F: usize, const W: usize, const AHEAD: bool>(self, simd: S, count: usize, out: &mut [f32]) {
        let tiles = count.div_ceil(TILE_ROWS);
        let mut row = 0;
        for tile in 0..tiles {
            let height = count / tiles + usize::from(tile < count % tiles);
            let ahead = self.ahead.part(tile);
            let at = Self { a: self.a.skip(row), ..self };
            let out = &mut out[row * self.columns..];
            match (self.a.transposed, height) {
                (false, 1) => at.compute::<S, F, W, AHEAD, 1, false>(simd, ahead, out),
                (false, 2) => at.compute::<S, F, W, AHEAD, 2, false>(simd, ahead, out),
                (false, 3) => at.compute::<S, F, W, AHEAD, 3, false>(simd, ahead, out),
                (false, 4) => at.compute::<S, F, W, AHEAD, 4, false>(simd, ahead, out),
                (false, 5) => at.compute::<S, F, W, AHEAD, 5, false>(simd, ahead, out),
                (false, _) => at.compute::<S, F, W, AHEAD, TILE_ROWS, false>(simd, ahead, out),
                (true, 1) => at.compute::<S, F, W, AHEAD, 1, true>(simd, ahead, out),
                (true, 2) => at.compute::<S, F, W, AHEAD, 2, true>(simd, ahead, out),
                (true, 3) => at.compute::<S, F, W, AHEAD, 3, true>(simd, ahead, out),
                (true, 4) => at.compute::<S, F, W, AHEAD, 4, true>(simd, ahead, out),
                (true, 5) => at.compute::<S, F, W, AHEAD, 5, true>(simd, ahead, out),
                (true, _) => at.compute::<S, F, W, AHEAD, TILE_ROWS, true>(simd, ahead, out),
            }
            row += height;
        }
    }

    /// The same of `R` rows.
    #[inline(always)]
    fn compute<S: Simd, const F: usize, const W: usize, const AHEAD: bool, const R: usize, const TRANSPOSED: bool>(
        &self,
        simd: S,
        (mut ahead, step): (*const f32, usize),
        out: &mut [f32],
    ) {
        let (b, _) = S::as_simd_f32s(self.panel);
        let (b, _) = b.as_chunks::<PANEL_REGISTERS>();
        let depth = b.len();
        let Lines { data, stride, .. } = self.a;
        let row = |r: usize| if TRANSPOSED { data } else { &data[r.min(R - 1) * stride..][..depth] };
        let a = [row(0), row(1), row(2), row(3), row(4), row(5)];
        let mut sums = [[simd.splat_f32s(0.0); PANEL_REGISTERS]; TILE_ROWS];
        // The pointer may run past its values: of an address nothing but itself is needed, and each check would cost a tenth.
        let step = if TRANSPOSED { step } else { LINE };
        for (k, b) in b.iter().enumerate() {
            if (AHEAD || TRANSPOSED) && R > 1 {
                prefetch(ahead);
                ahead = ahead.wrapping_add(step);
            }
            let line = if TRANSPOSED { &data[k * stride..][..R] } else { &[] };
            each_row!(R, ROW => {
                let x = simd.splat_f32s(if TRANSPOSED { line[ROW] } else { a[ROW][k] });
                sums[ROW][0] = simd.mul_add_e_f32s(x, b[F], sums[ROW][0]);
                if W > 1 {
                    sums[ROW][1] = simd.mul_add_e_f32s(x, b[F + 1], sums[ROW][1]);
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
            self.put(simd, row, F, t0);
            if W > 1 {
                self.put(simd, row, F + 1, t1);
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
