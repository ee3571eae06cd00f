//! C = A B (+ bias), for linear layers, their input gradients and the LSTM's input projection.

use super::elementwise::epilogue;
use super::{Runner, input, kernel, output, params, word};
use crate::error::{Error, Result};
use crate::gpu::pipeline::{Constants, Kernel};
use crate::gpu::record::{Launch, Recorder};
use crate::gpu::values::{Preparer, Run};
use crate::graph::Op;
use crate::scheduler::products::Tile;
use crate::scheduler::strategy::{QUAD, row_axis};
use crate::scheduler::{Product, Step};

params!(Params {
    rows: u32,
    columns: u32,
    inner: u32,
    a_stride: u32,
    c_stride: u32,
    column_blocks: u32,
    has_bias: u32,
});

pub(super) static KERNEL: Kernel = kernel!("matmul", "main", Params, [Params, Read, Read, Read, Write]);
pub(super) static SUBGROUP: Kernel = kernel!("matmul_subgroup", "main", Params, [Params, Read, Read, Read, Write]);
pub(super) static MATRIX: Kernel = kernel!("matmul_matrix", "main", Params, [Params, Read, Read, Read, Write]);

/// Rows and columns of one workgroup of [`SUBGROUP`].
const SUBGROUP_TILE: [usize; 2] = [16, 256];

/// The constants of a tile.
pub(super) fn tile_constants(tile: Tile) -> Constants {
    vec![("ROWS", tile.rows as f32), ("WIDE", if tile.columns == 8 { 1.0 } else { 0.0 })]
}

/// Whether numbers of values are all whole quads, as a constant.
pub(super) fn is_quads(all: &[usize]) -> f32 {
    if all.iter().all(|n| n.is_multiple_of(QUAD)) { 1.0 } else { 0.0 }
}

/// How the product of `step` runs.
pub(super) fn product_of(step: &Step) -> Result<Product> {
    step.product.ok_or_else(|| Error::internal("a product without a tile"))
}

/// The product of a value's rows and a packed weight.
pub(super) struct MatMul {
    pieces: Vec<Launch>,
    /// Rows and columns of one workgroup.
    tile: [usize; 2],
    axis: Option<u8>,
    a: usize,
    columns: usize,
    inner: usize,
    has_bias: bool,
}

impl MatMul {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step) -> Result<Self> {
        let bias = if step.op == Op::Linear { step.inputs.get(2).copied().flatten() } else { None };
        Self::new(preparer, step, input(step, 0)?, step.workspace[0], bias, output(step, 0)?)
    }

    /// `c` = `a` times `b` (packed, columns padded to four) plus `bias`, or what the epilogue of `step` makes of that.
    pub fn new(
        preparer: &mut Preparer<'_>,
        step: &Step,
        a: usize,
        b: usize,
        bias: Option<usize>,
        c: usize,
    ) -> Result<Self> {
        let values = preparer.values;
        let product = product_of(step)?;
        let axis = row_axis(values.shape(a));
        let (kernel, constants) = match product {
            Product::Tiled(tile) | Product::Split(tile, _) => {
                let quads = is_quads(&[values.row_len(a)?]);
                (&KERNEL, [tile_constants(tile), vec![("A_QUADS", quads)]].concat())
            }
            Product::Broadcast => (&SUBGROUP, Constants::new()),
            Product::Matrix { .. } => (&MATRIX, Constants::new()),
        };
        let tile = product.tile().unwrap_or(SUBGROUP_TILE);
        let mut prelude = preparer.weights(kernel);
        if let Some(expr) = &step.epilogue {
            prelude += &epilogue(expr)?;
        }
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            let views = [
                Some(values.view(a, p)?),
                Some(values.view(b, 0)?),
                bias.map(|v| values.view(v, 0)).transpose()?,
                Some(values.view(c, p)?),
            ];
            pieces.push(preparer.launch_with(kernel, &prelude, None, &constants, &views)?);
        }
        let (columns, inner) = (values.row_len(c)?, values.row_len(a)?);
        Ok(Self { pieces, tile, axis, a, columns, inner, has_bias: bias.is_some() })
    }
}

impl Runner for MatMul {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        let column_blocks = self.columns.div_ceil(self.tile[1]);
        for (p, start, end) in run.pieces(self.axis, run.rows(self.a)?) {
            let params = Params {
                rows: word(end - start),
                columns: word(self.columns),
                inner: word(self.inner),
                a_stride: word(self.inner),
                c_stride: word(self.columns),
                column_blocks: word(column_blocks),
                has_bias: u32::from(self.has_bias),
            };
            out.dispatch(&self.pieces[p], &params, (end - start).div_ceil(self.tile[0]) * column_blocks);
        }
        Ok(())
    }
}
