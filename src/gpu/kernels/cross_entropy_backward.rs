//! The gradient of cross entropy by the logits.

use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder};
use crate::gpu::values::{Preparer, Run};
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;

params!(Params { rows: u32, columns: u32, ignore: u32, has_ignore: u32 });

pub(super) static KERNEL: Kernel =
    kernel!("cross_entropy_backward", "main", Params, [Params, Read, Read, Read, Read, Write]);

/// The gradient of cross entropy by the logits.
pub(super) struct CrossEntropyBackward {
    pieces: Vec<Launch>,
    axis: Option<u8>,
    logits: usize,
    columns: usize,
    ignore: Option<u32>,
}

impl CrossEntropyBackward {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step, ignore: Option<u32>) -> Result<Self> {
        let values = preparer.values;
        let logits = input(step, 0)?;
        let axis = row_axis(values.shape(logits));
        let bound = [logits, input(step, 1)?, input(step, 2)?, input(step, 3)?, output(step, 0)?];
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            let views = bound.iter().map(|&v| Ok(Some(values.view(v, p)?))).collect::<Result<Vec<_>>>()?;
            pieces.push(preparer.launch(&KERNEL, &views)?);
        }
        Ok(Self { pieces, axis, logits, columns: values.row_len(logits)?, ignore })
    }
}

impl Runner for CrossEntropyBackward {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        for (p, start, end) in run.pieces(self.axis, run.rows(self.logits)?) {
            let params = Params {
                rows: word(end - start),
                columns: word(self.columns),
                ignore: self.ignore.unwrap_or(0),
                has_ignore: u32::from(self.ignore.is_some()),
            };
            out.dispatch(&self.pieces[p], &params, ((end - start) * self.columns).div_ceil(256));
        }
        Ok(())
    }
}
