//! Rows of a table by tokens.

use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder};
use crate::gpu::values::{Preparer, Run};
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;

params!(Params { len: u32, columns: u32, table_first: u32, table_rows: u32 });

pub(super) static KERNEL: Kernel = kernel!("embedding", "main", Params, [Params, Read, Read, Write]);

/// A gather of rows.
pub(super) struct Embedding {
    pieces: Vec<Launch>,
    axis: Option<u8>,
    entries: usize,
    tokens: usize,
    columns: usize,
}

impl Embedding {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step) -> Result<Self> {
        let values = preparer.values;
        let (entries, tokens, y) = (input(step, 0)?, input(step, 1)?, output(step, 0)?);
        let axis = row_axis(values.shape(tokens));
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            let views = [values.view(entries, 0)?, values.view(tokens, p)?, values.view(y, p)?].map(Some);
            pieces.push(preparer.launch(&KERNEL, &views)?);
        }
        Ok(Self { pieces, axis, entries, tokens, columns: values.row_len(y)? })
    }
}

impl Runner for Embedding {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        let table_rows = word(run.rows(self.entries)?);
        let table_first = word(run.values.program.values[self.entries].first_row());
        for (p, start, end) in run.pieces(self.axis, run.rows(self.tokens)?) {
            let len = (end - start) * self.columns;
            let params = Params { len: word(len), columns: word(self.columns), table_first, table_rows };
            out.dispatch(&self.pieces[p], &params, len.div_ceil(256));
        }
        Ok(())
    }
}
