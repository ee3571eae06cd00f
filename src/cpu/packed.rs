//! Right operands of products, packed into panels.

use super::aligned::Aligned;
use super::rows::TASK_COST;
use super::simd::dispatch;
use super::threads;
use pulp::{Simd, WithSimd};

/// Registers of columns in a panel: a gate of a cell each, where a layer packs its recurrent weights.
pub(super) const PANEL_REGISTERS: usize = 4;
/// Most of K that is summed in registers before it is added to C: a panel of it stays in the first cache from tile to tile.
pub(super) const BLOCK_K: usize = 112;

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
    panels: usize,
    /// Length of each block of K but the last.
    depth: usize,
}

impl Packed {
    /// Gives it the room that it needs.
    pub(super) fn reserve(&mut self, data: Aligned) {
        self.data = data;
    }

    /// Packs the transpose of a matrix `[columns, inner]`.
    pub(super) fn transpose(&mut self, weight: &[f32], inner: usize, columns: usize) {
        self.columns_from(inner, columns, |n| Some(&weight[n * inner..][..inner]));
    }

    /// Packs as many columns, each of `inner` values; zeros where there is none.
    pub(super) fn columns_from<'a>(
        &mut self,
        inner: usize,
        columns: usize,
        column: impl Fn(usize) -> Option<&'a [f32]> + Sync,
    ) {
        self.fill(inner, columns, |k, n, width, panel| {
            panel.fill(0.0);
            for j in 0..width.min(columns - n) {
                let Some(values) = column(n + j) else { continue };
                for (to, &value) in panel.chunks_exact_mut(width).zip(&values[k..]) {
                    to[j] = value;
                }
            }
        });
    }

    /// Columns of a panel on this processor.
    pub(super) fn panel() -> usize {
        dispatch(PanelWidth)
    }

    /// Packs the transpose of a layer's recurrent weights `[4H, R]` so that a panel has some units, each gate in a register.
    pub(super) fn gates(&mut self, weight: &[f32], inner: usize, hidden: usize) {
        let lanes = dispatch(PanelWidth) / PANEL_REGISTERS;
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
        let width = dispatch(PanelWidth);
        let panels = columns.div_ceil(width);
        let len = inner * panels * width;
        if self.data.len() < len {
            debug_assert!(self.data.is_empty(), "planned for {} values, needed are {len}", self.data.len());
            self.data = Aligned::zeros(len);
        }
        // In blocks as even as they can be.
        let depth = inner.div_ceil(inner.div_ceil(BLOCK_K).max(1)).max(1);
        (self.inner, self.columns, self.width, self.panels, self.depth) = (inner, columns, width, panels, depth);
        let blocks = self.blocks();
        let mut rest = &mut self.data[..len];
        for (k, depth) in blocks {
            let (block, tail) = std::mem::take(&mut rest).split_at_mut(depth * panels * width);
            rest = tail;
            let each = (TASK_COST / (depth * width)).max(1);
            threads::each(block.chunks_mut(each * depth * width).enumerate(), |(task, panels)| {
                for (p, panel) in panels.chunks_mut(depth * width).enumerate() {
                    pack(k, (task * each + p) * width, width, panel);
                }
            });
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

    /// Where each block of K begins, and its length.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (inner, depth) = (self.inner, self.depth.max(1));
        (0..inner).step_by(depth).map(move |k| (k, depth.min(inner - k)))
    }

    /// The panels of the block of K that begins at `k`.
    #[inline(always)]
    pub(super) fn block(&self, k: usize, depth: usize) -> &[f32] {
        let stride = self.panels * self.width;
        &self.data[k * stride..(k + depth) * stride]
    }
}
