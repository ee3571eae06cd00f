//! The gradients of peepholes, in the fixed order of chunks.

use super::lstm_previous::LstmPrevious;
use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder, View};
use crate::gpu::values::{Preparer, Run};
use crate::graph::LstmOp;
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;

params!(Params {
    hidden: u32,
    directions: u32,
    direction: u32,
    row_start: u32,
    row_end: u32,
    steps: u32,
    table: u32,
    accumulate: u32,
});

pub(super) static KERNEL: Kernel =
    kernel!("lstm_peephole_gradient", "main", Params, [Params, Read, Read, Read, Read, Write]);

/// Units of one workgroup.
const UNITS: usize = 16;

/// Sums over rows of gate gradients times cells.
pub(super) struct PeepholeGradient {
    previous: LstmPrevious,
    pieces: Vec<Launch>,
    axis: Option<u8>,
    cells: usize,
    hidden: usize,
    directions: usize,
    direction: usize,
    result: View,
}

impl PeepholeGradient {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step, op: &LstmOp, direction: usize) -> Result<Self> {
        let values = preparer.values;
        let (dgates, cells, sums) = (input(step, 0)?, input(step, 1)?, output(step, 0)?);
        let c0 = step.inputs.get(2).copied().flatten();
        let previous = LstmPrevious::prepare(preparer, (op, direction), cells, c0, step.workspace[0], false)?;
        let axis = row_axis(values.shape(cells));
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            let before = values.view(step.workspace[0], p)?;
            let views =
                [values.view(dgates, p)?, values.view(cells, p)?, before, preparer.table(axis), values.view(sums, 0)?];
            pieces.push(preparer.launch(&KERNEL, &views.map(Some))?);
        }
        let directions = op.directions();
        let hidden = values.row_len(cells)? / directions;
        Ok(Self { previous, pieces, axis, cells, hidden, directions, direction, result: values.view(sums, 0)? })
    }
}

impl Runner for PeepholeGradient {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        self.previous.record(run, out)?;
        let rows = run.rows(self.cells)?;
        if rows == 0 && !run.continues {
            out.clear(self.result.clone());
        }
        let (_, steps, table) = run.axis(self.axis)?;
        for (p, start, end) in run.pieces(self.axis, rows).rev() {
            let params = Params {
                hidden: word(self.hidden),
                directions: word(self.directions),
                direction: word(self.direction),
                row_start: word(start),
                row_end: word(end),
                steps,
                table,
                accumulate: u32::from(end < rows || run.continues),
            };
            out.dispatch(&self.pieces[p], &params, self.hidden.div_ceil(UNITS));
        }
        Ok(())
    }
}
