//! The gradient of an embedding's table, by rows sorted on the host.

use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder, View};
use crate::gpu::values::{Preparer, Run};
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;

params!(Params { len: u32, columns: u32, table_first: u32, row_start: u32, row_end: u32, accumulate: u32 });

pub(super) static KERNEL: Kernel = kernel!("embedding_backward", "main", Params, [Params, Read, Read, Read, Write]);

/// Sums of dy over the rows that read each entry.
pub(super) struct EmbeddingBackward {
    pieces: Vec<Launch>,
    axis: Option<u8>,
    dy: usize,
    len: usize,
    columns: usize,
    table_first: usize,
    result: View,
}

impl EmbeddingBackward {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step) -> Result<Self> {
        let values = preparer.values;
        let (dy, dtable) = (input(step, 1)?, output(step, 0)?);
        let axis = row_axis(values.shape(dy));
        // The rows of all pieces are sorted together.
        let index = |w: usize| -> Result<View> {
            let view = values.view(step.workspace[w], 0)?;
            Ok(View { bytes: view.buffer.size() - view.offset, ..view })
        };
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            let sorted = if values.pieces(axis) == 1 { values.view(step.workspace[0], 0)? } else { index(0)? };
            let views = [sorted, values.view(step.workspace[1], 0)?, values.view(dy, p)?, values.view(dtable, 0)?];
            pieces.push(preparer.launch(&KERNEL, &views.map(Some))?);
        }
        let columns = values.row_len(dtable)?;
        let len = values.fixed(dtable, 0)? * columns;
        let table_first = values.program.values[dtable].first_row();
        Ok(Self { pieces, axis, dy, len, columns, table_first, result: values.view(dtable, 0)? })
    }
}

impl Runner for EmbeddingBackward {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        let rows = run.rows(self.dy)?;
        if rows == 0 && !run.continues {
            out.clear(self.result.clone());
        }
        for (p, start, end) in run.pieces(self.axis, rows).rev() {
            let params = Params {
                len: word(self.len),
                columns: word(self.columns),
                table_first: word(self.table_first),
                row_start: word(start),
                row_end: word(end),
                accumulate: u32::from(end < rows || run.continues),
            };
            out.dispatch(&self.pieces[p], &params, self.len.div_ceil(256));
        }
        Ok(())
    }
}
