//! One LSTM layer forward: the input projection of all rows, then one fused dispatch a timestep.

use super::matmul::MatMul;
use super::{Runner, input, kernel, lstm_begin, output, params, word};
use crate::error::Result;
use crate::gpu::executor::{Preparer, Run};
use crate::gpu::pipeline::{Constants, Kernel};
use crate::gpu::record::{Launch, Recorder};
use crate::graph::op::lstm;
use crate::scheduler::Step;
use crate::scheduler::strategy::{Broadcast, broadcast, quads, row_axis, step_rows};

params!(Params {
    hidden: u32,
    quads: u32,
    first: u32,
    end: u32,
    ending: u32,
    row: u32,
    sequences: u32,
    slot: u32,
    unit_blocks: u32,
    save: u32,
});

pub(super) static KERNEL: Kernel =
    kernel!("lstm_forward_step", "main", Params, [Params, Read, Write, Write, Write, Write, Write, Write]);
pub(super) static SUBGROUP: Kernel =
    kernel!("lstm_forward_step_subgroup", "main", Params, [Params, Read, Write, Write, Write, Write, Write, Write]);

/// Units of one workgroup.
const UNITS: usize = 64;

/// The constants of a step's kernel for so many sequences a thread.
pub(super) fn rows_constant(rows: usize) -> Constants {
    match rows {
        1 => &[("ROWS", 1)],
        8 => &[("ROWS", 8)],
        _ => &[("ROWS", 16)],
    }
}

/// A layer's forward pass by the *step* strategy.
pub(super) struct LstmForward {
    projection: MatMul,
    begin: Launch,
    pieces: Vec<Launch>,
    /// Sequences of one workgroup.
    block: usize,
    axis: Option<u8>,
    hidden: usize,
    has_h0: bool,
    has_c0: bool,
    /// Whether gates, and whether cells, are read by a later step.
    save: [bool; 2],
}

impl LstmForward {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step) -> Result<Self> {
        let values = preparer.values;
        let (x, gates) = (input(step, lstm::X)?, output(step, lstm::GATES)?);
        let (y, h_n, c_n) = (output(step, lstm::Y)?, output(step, lstm::H_N)?, output(step, lstm::C_N)?);
        let hidden = values.row_len(y)?;
        let [packed_ih, packed_hh, packed_bias, state] = [0, 1, 2, 3].map(|w| step.workspace[w]);
        let projection = MatMul::new(preparer, x, packed_ih, Some(packed_bias), gates, 4 * hidden)?;
        let maybe = |at: usize| step.inputs[at].map(|v| values.view(v, 0)).transpose();
        let (h0, c0) = (maybe(lstm::H0)?, maybe(lstm::C0)?);
        let (has_h0, has_c0) = (h0.is_some(), c0.is_some());
        let state = Some(values.view(state, 0)?);
        let c = Some(values.view(c_n, 0)?);
        let h_n = Some(values.view(h_n, 0)?);
        let begin = preparer.launch(&lstm_begin::KERNEL, &[h0, c0, state.clone(), c.clone(), h_n.clone()])?;
        let axis = row_axis(values.shape(x));
        let rows = step_rows(values.program.capacity.sequences);
        let (kernel, block, constants) = match broadcast(&values.program.target) {
            Broadcast::Memory => (&KERNEL, 8, &[] as Constants),
            Broadcast::Subgroup => (&SUBGROUP, rows, rows_constant(rows)),
        };
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            let views = [
                Some(values.view(packed_hh, 0)?),
                state.clone(),
                Some(values.view(gates, p)?),
                Some(values.view(y, p)?),
                c.clone(),
                step.outputs[lstm::CELLS].map(|v| values.view(v, p)).transpose()?,
                h_n.clone(),
            ];
            pieces.push(preparer.launch_with(kernel, "", None, constants, &views)?);
        }
        let read = |value: usize| values.program.steps.iter().any(|s| s.inputs.contains(&Some(value)));
        let save = [read(gates), step.outputs[lstm::CELLS].is_some()];
        Ok(Self { projection, begin, pieces, block, axis, hidden, has_h0, has_c0, save })
    }
}

impl Runner for LstmForward {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        self.projection.record(run, out)?;
        let (axis, steps, _) = run.axis(self.axis)?;
        let Some(axis) = axis else { return Ok(()) };
        let (sequences, padded) = (run.batch.sequences(), quads(self.hidden));
        let begin = lstm_begin::params(word(sequences), word(self.hidden), word(padded), self.has_h0, self.has_c0);
        out.dispatch(&self.begin, &begin, (sequences * padded).div_ceil(256));
        let unit_blocks = self.hidden.div_ceil(UNITS);
        let piece_rows = run.values.piece_rows(self.axis);
        for t in 0..steps as usize {
            let (from, to) = (axis.offset(t), axis.offset(t) + axis.rows_at(t));
            let mut start = from;
            while start < to {
                let piece = start / piece_rows;
                let end = to.min(piece.saturating_add(1).saturating_mul(piece_rows));
                let params = Params {
                    hidden: word(self.hidden),
                    quads: word(padded / 4),
                    first: word(start - from),
                    end: word(end - from),
                    ending: word(axis.rows_at(t + 1)),
                    row: word(start % piece_rows),
                    sequences: word(sequences),
                    slot: word(t % 2),
                    unit_blocks: word(unit_blocks),
                    save: u32::from(self.save[0]) * (1 + u32::from(self.save[1])),
                };
                out.dispatch(&self.pieces[piece], &params, (end - start).div_ceil(self.block) * unit_blocks);
                start = end;
            }
        }
        Ok(())
    }
}
