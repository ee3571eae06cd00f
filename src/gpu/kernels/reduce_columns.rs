//! The sum of each row.

use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder};
use crate::gpu::values::{Preparer, Run};
use crate::graph::ReduceKind;
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;

params!(Params { rows: u32, columns: u32, square: u32 });

pub(super) static KERNEL: Kernel = kernel!("reduce_columns", "main", Params, [Params, Read, Write]);

/// Sums over columns.
pub(super) struct ReduceColumns {
    pieces: Vec<Launch>,
    axis: Option<u8>,
    x: usize,
    columns: usize,
    square: u32,
}

impl ReduceColumns {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step, kind: ReduceKind) -> Result<Self> {
        let values = preparer.values;
        let (x, sums) = (input(step, 0)?, output(step, 0)?);
        let axis = row_axis(values.shape(x));
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            pieces.push(preparer.launch(&KERNEL, &[Some(values.view(x, p)?), Some(values.view(sums, p)?)])?);
        }
        let square = u32::from(kind == ReduceKind::SumOfSquares);
        Ok(Self { pieces, axis, x, columns: values.row_len(x)?, square })
    }
}

impl Runner for ReduceColumns {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        for (p, start, end) in run.pieces(self.axis, run.rows(self.x)?) {
            let params = Params { rows: word(end - start), columns: word(self.columns), square: self.square };
            out.dispatch(&self.pieces[p], &params, (end - start).div_ceil(64));
        }
        Ok(())
    }
}
