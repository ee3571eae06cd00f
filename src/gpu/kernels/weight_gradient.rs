//! Weight gradients: products over all rows, in the fixed order of chunks.

use super::lstm_previous::LstmPrevious;
use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::executor::{Preparer, Run};
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder, View};
use crate::graph::{LstmPart, Op};
use crate::scheduler::Step;
use crate::scheduler::strategy::{Broadcast, broadcast, row_axis};

params!(Params {
    m: u32,
    n: u32,
    row_start: u32,
    row_end: u32,
    steps: u32,
    table: u32,
    blocks: u32,
    units: u32,
    accumulate: u32,
});

pub(super) static KERNEL: Kernel = kernel!("weight_gradient", "main", Params, [Params, Read, Read, Read, Write]);
pub(super) static SUBGROUP: Kernel =
    kernel!("weight_gradient_subgroup", "main", Params, [Params, Read, Read, Read, Write]);

/// Quads of one workgroup: of columns of the result or, in subgroups, of its rows.
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
    broadcast: Broadcast,
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
        let broadcast = broadcast(&values.program.target);
        let kernel = if broadcast == Broadcast::Subgroup { &SUBGROUP } else { &KERNEL };
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            let views = [values.view(a, p)?, values.view(b, p)?, table.clone(), values.view(c, 0)?].map(Some);
            pieces.push(preparer.launch(kernel, &views)?);
        }
        let units = if step.op == Op::WeightGradient { 0 } else { m / 4 };
        Ok(Self { previous, pieces, axis, a, m, n, units, broadcast, result: values.view(c, 0)? })
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
        // Workgroups along the side that lies across threads, and along the other.
        let (blocks, others) = match self.broadcast {
            Broadcast::Memory => (self.n.div_ceil(4 * QUADS), self.m.div_ceil(8)),
            Broadcast::Subgroup => (self.m.div_ceil(4 * QUADS), self.n.div_ceil(16)),
        };
        for (p, start, end) in run.pieces(self.axis, rows).rev() {
            let params = Params {
                m: word(self.m),
                n: word(self.n),
                row_start: word(start),
                row_end: word(end),
                steps,
                table,
                blocks: word(blocks),
                units: word(self.units),
                accumulate: u32::from(end < rows),
            };
            out.dispatch(&self.pieces[p], &params, others * blocks);
        }
        Ok(())
    }
}
