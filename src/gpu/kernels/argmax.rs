//! The column of each row's largest value.

use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder};
use crate::gpu::values::{Preparer, Run};
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;

params!(Params { rows: u32, columns: u32 });

pub(super) static KERNEL: Kernel = kernel!("argmax", "main", Params, [Params, Read, Write]);

/// The largest of each row.
pub(super) struct ArgMax {
    pieces: Vec<Launch>,
    axis: Option<u8>,
    x: usize,
    columns: usize,
}

impl ArgMax {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step) -> Result<Self> {
        let values = preparer.values;
        let (x, columns) = (input(step, 0)?, output(step, 0)?);
        let axis = row_axis(values.shape(x));
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            pieces.push(preparer.launch(&KERNEL, &[Some(values.view(x, p)?), Some(values.view(columns, p)?)])?);
        }
        Ok(Self { pieces, axis, x, columns: values.row_len(x)? })
    }
}

impl Runner for ArgMax {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        for (p, start, end) in run.pieces(self.axis, run.rows(self.x)?) {
            let params = Params { rows: word(end - start), columns: word(self.columns) };
            out.dispatch(&self.pieces[p], &params, (end - start).div_ceil(64));
        }
        Ok(())
    }
}
