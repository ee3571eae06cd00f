//! Softmax of each row.

use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder};
use crate::gpu::values::{Preparer, Run};
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;

params!(Params { rows: u32, columns: u32 });

pub(super) static KERNEL: Kernel = kernel!("softmax", "main", Params, [Params, Read, Write]);

/// Softmax of each row.
pub(super) struct Softmax {
    pieces: Vec<Launch>,
    axis: Option<u8>,
    x: usize,
    columns: usize,
}

impl Softmax {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step) -> Result<Self> {
        let values = preparer.values;
        let (x, y) = (input(step, 0)?, output(step, 0)?);
        let axis = row_axis(values.shape(x));
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            pieces.push(preparer.launch(&KERNEL, &[Some(values.view(x, p)?), Some(values.view(y, p)?)])?);
        }
        Ok(Self { pieces, axis, x, columns: values.row_len(x)? })
    }
}

impl Runner for Softmax {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        for (p, start, end) in run.pieces(self.axis, run.rows(self.x)?) {
            let params = Params { rows: word(end - start), columns: word(self.columns) };
            out.dispatch(&self.pieces[p], &params, end - start);
        }
        Ok(())
    }
}
