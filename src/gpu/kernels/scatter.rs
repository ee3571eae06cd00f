//! Rows of a table replaced by others.

use super::{Runner, input, kernel, output, params, word};
use crate::error::{Error, Result};
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder, View};
use crate::gpu::values::{Preparer, Run};
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;

params!(Params { len: u32, columns: u32, table_first: u32, table_rows: u32 });

pub(super) static KERNEL: Kernel = kernel!("scatter", "main", Params, [Params, Read, Read, Write]);

/// Rows that go to their places in a table.
pub(super) struct Scatter {
    pieces: Vec<Launch>,
    axis: Option<u8>,
    rows: usize,
    table: usize,
    columns: usize,
    /// The table as it was and as it becomes, where it does not change in place.
    copy: Option<(View, View)>,
}

impl Scatter {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step) -> Result<Self> {
        let values = preparer.values;
        let (table, rows, x, y) = (input(step, 0)?, input(step, 1)?, input(step, 2)?, output(step, 0)?);
        if values.pieces(row_axis(values.shape(table))) > 1 {
            return Err(Error::unsupported("a table in several pieces, of which rows are replaced"));
        }
        let axis = row_axis(values.shape(rows));
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            let views = [values.view(rows, p)?, values.view(x, p)?, values.view(y, 0)?].map(Some);
            pieces.push(preparer.launch(&KERNEL, &views)?);
        }
        let in_place = values.program.root(table) == values.program.root(y);
        let copy = if in_place { None } else { Some((values.view(table, 0)?, values.view(y, 0)?)) };
        Ok(Self { pieces, axis, rows, table, columns: values.row_len(y)?, copy })
    }
}

impl Runner for Scatter {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        if let Some((from, to)) = &self.copy {
            out.copy(from.clone(), to.clone());
        }
        let table_rows = word(run.rows(self.table)?);
        let table_first = word(run.values.program.values[self.table].first_row());
        for (p, start, end) in run.pieces(self.axis, run.rows(self.rows)?) {
            let len = (end - start) * self.columns;
            let params = Params { len: word(len), columns: word(self.columns), table_first, table_rows };
            out.dispatch(&self.pieces[p], &params, len.div_ceil(256));
        }
        Ok(())
    }
}
