//! A row of each sequence at each of its steps.

use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::executor::{Preparer, Run};
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder};
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;

params!(Params { columns: u32, row_start: u32, row_end: u32, steps: u32, table: u32 });

pub(super) static KERNEL: Kernel = kernel!("each_step", "main", Params, [Params, Read, Read, Write]);

/// Copies of each sequence's row.
pub(super) struct EachStep {
    pieces: Vec<Launch>,
    axis: Option<u8>,
    y: usize,
    columns: usize,
}

impl EachStep {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step) -> Result<Self> {
        let values = preparer.values;
        let (x, y) = (input(step, 0)?, output(step, 0)?);
        let axis = row_axis(values.shape(y));
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            let views = [values.view(x, 0)?, preparer.table(), values.view(y, p)?].map(Some);
            pieces.push(preparer.launch(&KERNEL, &views)?);
        }
        Ok(Self { pieces, axis, y, columns: values.row_len(y)? })
    }
}

impl Runner for EachStep {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        let (_, steps, table) = run.axis(self.axis)?;
        for (p, start, end) in run.pieces(self.axis, run.rows(self.y)?) {
            let (row_start, row_end) = (word(start), word(end));
            let params = Params { columns: word(self.columns), row_start, row_end, steps, table };
            out.dispatch(&self.pieces[p], &params, ((end - start) * self.columns).div_ceil(256));
        }
        Ok(())
    }
}
