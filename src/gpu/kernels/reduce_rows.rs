//! Sums over rows, in the fixed order of chunks: bias gradients.

use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder, View};
use crate::gpu::values::{Preparer, Run};
use crate::graph::{Op, ReduceKind};
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;

params!(Params {
    columns: u32,
    row_start: u32,
    row_end: u32,
    steps: u32,
    table: u32,
    units: u32,
    accumulate: u32,
    square: u32,
    stride: u32,
    first: u32,
});

pub(super) static KERNEL: Kernel = kernel!("reduce_rows", "main", Params, [Params, Read, Read, Write]);

/// Columns of one workgroup.
const COLUMNS: usize = 16;

/// The sum of a value's rows.
pub(super) struct ReduceRows {
    pieces: Vec<Launch>,
    axis: Option<u8>,
    x: usize,
    columns: usize,
    units: usize,
    square: u32,
    stride: usize,
    /// Where the columns that count begin.
    first: usize,
    result: View,
}

impl ReduceRows {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step) -> Result<Self> {
        let values = preparer.values;
        let (x, sum) = (input(step, 0)?, output(step, 0)?);
        let axis = row_axis(values.shape(x));
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            let views = [values.view(x, p)?, preparer.table(axis), values.view(sum, 0)?].map(Some);
            pieces.push(preparer.launch(&KERNEL, &views)?);
        }
        let stride = values.row_len(x)?;
        let (columns, first, units) = match step.op {
            Op::LstmWeightGradient { direction, lstm, .. } => {
                let own = stride / lstm.directions();
                (own, direction * own, own / 4)
            }
            _ => (stride, 0, 0),
        };
        let square = u32::from(matches!(step.op, Op::Reduce { kind: ReduceKind::SumOfSquares, .. }));
        Ok(Self { pieces, axis, x, columns, units, square, stride, first, result: values.view(sum, 0)? })
    }
}

impl Runner for ReduceRows {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        let rows = run.rows(self.x)?;
        if rows == 0 && !run.continues {
            out.clear(self.result.clone());
        }
        let (_, steps, table) = run.axis(self.axis)?;
        for (p, start, end) in run.pieces(self.axis, rows).rev() {
            let params = Params {
                columns: word(self.columns),
                row_start: word(start),
                row_end: word(end),
                steps,
                table,
                units: word(self.units),
                accumulate: u32::from(end < rows || run.continues),
                square: self.square,
                stride: word(self.stride),
                first: word(self.first),
            };
            out.dispatch(&self.pieces[p], &params, self.columns.div_ceil(COLUMNS));
        }
        Ok(())
    }
}
