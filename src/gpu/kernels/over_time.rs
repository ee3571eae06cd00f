//! What is taken of a sequence's steps.

use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder, View};
use crate::gpu::values::{Preparer, Run};
use crate::graph::TimeKind;
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;

params!(Params {
    sequences: u32,
    columns: u32,
    row_start: u32,
    row_end: u32,
    offsets: u32,
    lengths: u32,
    largest: u32,
    begins: u32,
    places: u32,
});

pub(super) static KERNEL: Kernel = kernel!("over_time", "main", Params, [Params, Read, Read, Write]);

/// The sum or the largest value over each sequence's steps.
pub(super) struct OverTime {
    pieces: Vec<Launch>,
    axis: Option<u8>,
    x: usize,
    columns: usize,
    kind: TimeKind,
    result: View,
}

impl OverTime {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step, kind: TimeKind) -> Result<Self> {
        let values = preparer.values;
        let (x, y) = (input(step, 0)?, output(step, 0)?);
        let axis = row_axis(values.shape(x));
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            let views = [values.view(x, p)?, preparer.table(axis), values.view(y, 0)?].map(Some);
            pieces.push(preparer.launch(&KERNEL, &views)?);
        }
        Ok(Self { pieces, axis, x, columns: values.row_len(x)?, kind, result: values.view(y, 0)? })
    }
}

impl Runner for OverTime {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        let rows = run.rows(self.x)?;
        if rows == 0 && !run.continues {
            out.clear(self.result.clone());
        }
        let (_, _, offsets) = run.axis(self.axis)?;
        let sequences = run.batch.sequences();
        for (p, start, end) in run.pieces(self.axis, rows) {
            let params = Params {
                sequences: word(sequences),
                columns: word(self.columns),
                row_start: word(start),
                row_end: word(end),
                offsets,
                lengths: run.lengths(self.axis.unwrap_or(0)),
                largest: u32::from(self.kind == TimeKind::Max),
                begins: u32::from(start == 0),
                places: run.places(self.axis.unwrap_or(0)),
            };
            out.dispatch(&self.pieces[p], &params, (sequences * self.columns).div_ceil(64));
        }
        Ok(())
    }
}
