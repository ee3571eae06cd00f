//! A state of the step before, for every row.

use super::{Runner, kernel, lstm_constants, lstm_keys, params, word};
use crate::error::Result;
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder};
use crate::gpu::values::{Preparer, Run};
use crate::graph::LstmOp;
use crate::scheduler::strategy::row_axis;

params!(Params {
    columns: u32,
    stride: u32,
    column: u32,
    back: u32,
    row_start: u32,
    row_end: u32,
    y_start: u32,
    y_end: u32,
    steps: u32,
    table: u32,
    has_initial: u32,
    start: u32,
    dropout_x: u32,
    dropout_y: u32,
});

pub(super) static KERNEL: Kernel = kernel!("lstm_previous", "main", Params, [Params, Read, Read, Read, Write]);

/// Copies a direction's states one step on, into pieces from the pieces where the step before lies.
pub(super) struct LstmPrevious {
    /// Piece of the output, piece of the states.
    launches: Vec<(usize, usize, Launch)>,
    op: LstmOp,
    direction: usize,
    axis: Option<u8>,
    states: usize,
    columns: usize,
    has_initial: bool,
}

impl LstmPrevious {
    /// Of `states` `[N, D·columns]` with `initial` before the first step into `previous` `[N, columns]`. With `masked`
    /// they are h, under recurrent dropout.
    pub fn prepare(
        preparer: &mut Preparer<'_>,
        (op, direction): (&LstmOp, usize),
        states: usize,
        initial: Option<usize>,
        previous: usize,
        masked: bool,
    ) -> Result<Self> {
        let values = preparer.values;
        let axis = row_axis(values.shape(states));
        let away = super::lstm_backward::pieces_away(values, axis);
        let constants = if masked { lstm_constants(op) } else { Vec::new() };
        let mut launches = Vec::new();
        for p in 0..values.pieces(axis) {
            for q in p.saturating_sub(away)..(p + away + 1).min(values.pieces(axis)) {
                let views = [
                    Some(values.view(states, q)?),
                    initial.map(|v| values.view(v, 0)).transpose()?,
                    Some(preparer.table(axis)),
                    Some(values.view(previous, p)?),
                ];
                launches.push((p, q, preparer.launch_with(&KERNEL, "", None, &constants, &views)?));
            }
        }
        let columns = values.row_len(previous)?;
        let op = *op;
        Ok(Self { launches, op, direction, axis, states, columns, has_initial: initial.is_some() })
    }
}

impl Runner for LstmPrevious {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        let rows = run.rows(self.states)?;
        let (axis, steps, table) = run.axis(self.axis)?;
        let pieces: Vec<_> = run.pieces(self.axis, rows).collect();
        let [dropout, ..] = lstm_keys(&self.op, run);
        for (p, q, launch) in &self.launches {
            let (Some(&(_, start, end)), Some(&(_, y_start, y_end))) = (pieces.get(*p), pieces.get(*q)) else {
                continue;
            };
            let params = Params {
                columns: word(self.columns),
                stride: word(self.op.directions() * self.columns),
                column: word(self.direction * self.columns),
                back: u32::from(self.op.direction.reversed(self.direction)),
                row_start: word(start),
                row_end: word(end),
                y_start: word(y_start),
                y_end: word(y_end),
                steps,
                table,
                has_initial: u32::from(self.has_initial),
                start: axis.map_or(0, |a| a.start),
                dropout_x: dropout[0],
                dropout_y: dropout[1],
            };
            out.dispatch(launch, &params, ((end - start) * self.columns).div_ceil(256));
        }
        Ok(())
    }
}
