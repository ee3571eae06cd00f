//! Weight gradients: products over all rows, in the fixed order of chunks.

use super::lstm_previous::LstmPrevious;
use super::matmul::{is_quads, product_of, tile_constants};
use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::pipeline::{Constants, Kernel};
use crate::gpu::record::{Launch, Recorder, View};
use crate::gpu::values::{Preparer, Run};
use crate::graph::{LstmPart, Op};
use crate::scheduler::batch::GRADIENT_CHUNK;
use crate::scheduler::products::chunks_together;
use crate::scheduler::strategy::row_axis;
use crate::scheduler::{Product, Step};

params!(Params {
    m: u32,
    n: u32,
    row_start: u32,
    row_end: u32,
    steps: u32,
    table: u32,
    blocks: u32,
    units: u32,
    accumulate: u32,
    a_stride: u32,
    a_first: u32,
    b_stride: u32,
    b_first: u32,
    parts: u32,
    chunk_start: u32,
    chunk_end: u32,
});

pub(super) static KERNEL: Kernel = kernel!("weight_gradient", "main", Params, [Params, Read, Read, Read, Write]);
pub(super) static PARTIAL: Kernel =
    kernel!("weight_gradient", "partial", Params, [Params, Read, Read, Read, Absent, Write]);
pub(super) static ADD_PARTS: Kernel =
    kernel!("weight_gradient", "add_parts", Params, [Params, Absent, Absent, Absent, Write, Write]);
pub(super) static SUBGROUP: Kernel =
    kernel!("weight_gradient_subgroup", "main", Params, [Params, Read, Read, Read, Write]);
/// The sums of whole chunks, and of parts.
pub(super) static MATRIX: [Kernel; 2] = [
    kernel!("weight_gradient_matrix", "main", Params, [Params, Read, Read, Read, Write]),
    kernel!("weight_gradient_matrix", "partial", Params, [Params, Read, Read, Read, Absent, Write]),
];

/// Columns and rows of one workgroup of [`SUBGROUP`].
const SUBGROUP_TILE: [usize; 2] = [16, 256];

/// aᵀ b over rows; for recurrent weights b is first shifted by one step.
pub(super) struct WeightGradient {
    previous: Option<LstmPrevious>,
    pieces: Vec<Launch>,
    axis: Option<u8>,
    a: usize,
    m: usize,
    n: usize,
    units: usize,
    /// Workgroups along the side that lies across threads, and along the other.
    blocks: [usize; 2],
    /// Of A and of B: values from row to row, and where the columns that count begin.
    strides: [(usize, usize); 2],
    result: View,
    split: Option<Split>,
}

/// Chunks that several workgroups share.
struct Split {
    parts: usize,
    /// Chunks of one dispatch.
    chunks: usize,
    add: Launch,
}

impl WeightGradient {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step) -> Result<Self> {
        let values = preparer.values;
        let (a, mut b, c) = (input(step, 0)?, input(step, 1)?, output(step, 0)?);
        let mut previous = None;
        if let Op::LstmWeightGradient { part: LstmPart::RecurrentWeights, direction, lstm } = &step.op {
            let h0 = step.inputs.get(2).copied().flatten();
            previous = Some(LstmPrevious::prepare(preparer, (lstm, *direction), b, h0, step.workspace[0], true)?);
            b = step.workspace[0];
        }
        let (whole_a, whole_b) = (values.row_len(a)?, values.row_len(b)?);
        let own = |whole: usize, directions: usize, direction: usize| {
            let own = whole / directions;
            (own, (whole, direction * own))
        };
        let ((m, a_columns), (n, b_columns), units) = match &step.op {
            Op::LstmWeightGradient { part, direction, lstm } => {
                let a = own(whole_a, lstm.directions(), *direction);
                let both = if *part == LstmPart::Projection { lstm.directions() } else { 1 };
                let b = own(whole_b, both, if both > 1 { *direction } else { 0 });
                let units = if *part == LstmPart::Projection { 0 } else { a.0 / 4 };
                (a, b, units)
            }
            _ => (own(whole_a, 1, 0), own(whole_b, 1, 0), 0),
        };
        let strides = [a_columns, b_columns];
        let axis = row_axis(values.shape(a));
        let table = preparer.table(axis);
        let product = product_of(step)?;
        let target = &values.program.target;
        let split = product.tile().filter(|_| product.parts() > 1);
        let split = split.map(|tile| (product.parts(), chunks_together(target, tile, product.parts(), [m, n])));
        let last = step.workspace.last().filter(|_| split.is_some());
        let partials = last.map(|&w| values.view(w, 0)).transpose()?;
        let quads = |(stride, first): (usize, usize), columns: usize| is_quads(&[stride, first, columns]);
        let quads = vec![("A_QUADS", quads(a_columns, m)), ("B_QUADS", quads(b_columns, n))];
        let (kernel, constants) = match product {
            Product::Tiled(tile) | Product::Split(tile, _) => {
                (if partials.is_some() { &PARTIAL } else { &KERNEL }, [tile_constants(tile), quads].concat())
            }
            Product::Broadcast => (&SUBGROUP, Constants::new()),
            Product::Matrix { .. } => (&MATRIX[usize::from(partials.is_some())], quads),
        };
        let blocks = match product.tile() {
            Some([rows, columns]) => [n.div_ceil(columns), m.div_ceil(rows)],
            None => [m.div_ceil(SUBGROUP_TILE[1]), n.div_ceil(SUBGROUP_TILE[0])],
        };
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            let to = partials.clone().map_or_else(|| values.view(c, 0), Ok)?;
            let views = [values.view(a, p)?, values.view(b, p)?, table.clone(), to].map(Some);
            pieces.push(preparer.launch_with(
                kernel,
                &kernel.prelude(false, target.matrix()),
                None,
                &constants,
                &views,
            )?);
        }
        let result = values.view(c, 0)?;
        let split = match (split, partials) {
            (Some((parts, chunks)), Some(partials)) => {
                let add = preparer.launch(&ADD_PARTS, &[Some(result.clone()), Some(partials)])?;
                Some(Split { parts, chunks, add })
            }
            _ => None,
        };
        Ok(Self { previous, pieces, axis, a, m, n, units, blocks, strides, result, split })
    }
}

impl Runner for WeightGradient {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        if let Some(previous) = &self.previous {
            previous.record(run, out)?;
        }
        let rows = run.rows(self.a)?;
        if rows == 0 && !run.continues {
            out.clear(self.result.clone());
        }
        let (_, steps, table) = run.axis(self.axis)?;
        let [blocks, others] = self.blocks;
        for (p, start, end) in run.pieces(self.axis, rows).rev() {
            let params = Params {
                m: word(self.m),
                n: word(self.n),
                row_start: word(start),
                row_end: word(end),
                steps,
                table,
                blocks: word(blocks),
                units: word(self.units),
                accumulate: u32::from(end < rows || run.continues),
                a_stride: word(self.strides[0].0),
                a_first: word(self.strides[0].1),
                b_stride: word(self.strides[1].0),
                b_first: word(self.strides[1].1),
                parts: 1,
                chunk_start: 0,
                chunk_end: 0,
            };
            let Some(split) = &self.split else {
                out.dispatch(&self.pieces[p], &params, others * blocks);
                continue;
            };
            let chunks = (steps as usize).div_ceil(GRADIENT_CHUNK).max(1);
            let mut accumulate = params.accumulate;
            for first in (0..chunks).step_by(split.chunks).rev() {
                let last = (first + split.chunks).min(chunks);
                let (chunk_start, chunk_end) = (word(first), word(last));
                let params = Params { parts: word(split.parts), chunk_start, chunk_end, accumulate, ..params };
                out.dispatch(&self.pieces[p], &params, others * blocks * split.parts * (last - first));
                out.dispatch(&split.add, &params, (self.m * self.n).div_ceil(256));
                accumulate = 1;
            }
        }
        Ok(())
    }
}
