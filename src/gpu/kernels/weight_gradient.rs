//! Weight gradients: products over all rows, in the fixed order of chunks.

use super::lstm_previous::LstmPrevious;
use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::executor::{Preparer, Run};
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder, View};
use crate::graph::{LstmPart, Op};
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;

params!(Params {
    m: u32,
    n: u32,
    row_start: u32,
    row_end: u32,
    steps: u32,
    table: u32,
    column_blocks: u32,
    units: u32,
    accumulate: u32,
});

pub(super) static KERNEL: Kernel = kernel!("weight_gradient", "main", Params, [Params, Read, Read, Read, Write]);

/// Rows and quads of columns of one workgroup.
const ROWS: usize = 8;
const QUADS: usize = 64;

/// aᵀ b over rows; for recurrent weights b is first shifted by one step.
pub(super) struct WeightGradient {
    previous: Option<LstmPrevious>,
    pieces: Vec<Launch>,
    axis: Option<u8>,
    a: usize,
    m: usize,
    n: usize,
    units: usize,
    result: View,
}

impl WeightGradient {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step) -> Result<Self> {
        let values = preparer.values;
        let (a, mut b, c) = (input(step, 0)?, input(step, 1)?, output(step, 0)?);
        let previous = if step.op == Op::LstmWeightGradient(LstmPart::RecurrentWeights) {
            let h0 = step.inputs.get(2).copied().flatten();
            let previous = LstmPrevious::prepare(preparer, b, h0, step.workspace[0])?;
            b = step.workspace[0];
            Some(previous)
        } else {
            None
        };
        let (m, n) = (values.row_len(a)?, values.row_len(b)?);
        let axis = row_axis(values.shape(a));
        let table = preparer.table();
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            let views = [values.view(a, p)?, values.view(b, p)?, table.clone(), values.view(c, 0)?].map(Some);
            pieces.push(preparer.launch(&KERNEL, &views)?);
        }
        let units = if step.op == Op::WeightGradient { 0 } else { m / 4 };
        Ok(Self { previous, pieces, axis, a, m, n, units, result: values.view(c, 0)? })
    }
}

impl Runner for WeightGradient {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        if let Some(previous) = &self.previous {
            previous.record(run, out)?;
        }
        let rows = run.rows(self.a)?;
        if rows == 0 {
            out.clear(self.result.clone());
        }
        let (_, steps, table) = run.axis(self.axis)?;
        let column_blocks = self.n.div_ceil(4 * QUADS);
        for (p, start, end) in run.pieces(self.axis, rows).rev() {
            let params = Params {
                m: word(self.m),
                n: word(self.n),
                row_start: word(start),
                row_end: word(end),
                steps,
                table,
                column_blocks: word(column_blocks),
                units: word(self.units),
                accumulate: u32::from(end < rows),
            };
            out.dispatch(&self.pieces[p], &params, self.m.div_ceil(ROWS) * column_blocks);
        }
        Ok(())
    }
}
