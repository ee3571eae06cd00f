//! One LSTM layer back through time: one fused dispatch a timestep, then the gradient of the initial state.

use super::lstm_forward_step::rows_constant;
use super::{Runner, input, kernel, lstm_backward_finish, output, params, word};
use crate::error::{Error, Result};
use crate::gpu::executor::{Preparer, Run, Values};
use crate::gpu::pipeline::{Constants, Kernel};
use crate::gpu::record::{Launch, Recorder, View};
use crate::graph::op::lstm_backward as at;
use crate::scheduler::Step;
use crate::scheduler::strategy::{Broadcast, backward_columns, broadcast, row_axis, step_rows};
use std::collections::BTreeMap;

params!(Params {
    hidden: u32,
    first: u32,
    end: u32,
    ongoing: u32,
    row: u32,
    previous: u32,
    sequences: u32,
    slot: u32,
    unit_blocks: u32,
    has_previous: u32,
    has_dy: u32,
    has_dh_n: u32,
});

pub(super) static KERNEL: Kernel =
    kernel!("lstm_backward_step", "main", Params, [Params, Read, Write, Write, Read, Read, Read, Read, Write]);
pub(super) static SUBGROUP: Kernel =
    kernel!("lstm_backward_step_subgroup", "main", Params, [Params, Read, Write, Write, Read, Read, Read, Read, Write]);

/// How many pieces before a row's own the row of the step before may lie.
pub(super) fn pieces_back(values: &Values, axis: Option<u8>) -> usize {
    if values.pieces(axis) == 1 { 0 } else { values.program.capacity.sequences.div_ceil(values.piece_rows(axis)) }
}

/// A layer's backward pass by the *step* strategy.
pub(super) struct LstmBackward {
    /// By piece of this step's rows and piece of the rows of the step before; `None` at the first step.
    launches: BTreeMap<(usize, Option<usize>), Launch>,
    finish: Option<Launch>,
    /// Sequences and units of one workgroup.
    block: [usize; 2],
    axis: Option<u8>,
    hidden: usize,
    /// Of the packed weights: from unit to unit, from gate to gate, from column to column.
    strides: [usize; 3],
    dc: View,
    dc_n: Option<View>,
    has_c0: bool,
    has_dy: bool,
    has_dh_n: bool,
}

impl LstmBackward {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step) -> Result<Self> {
        let values = preparer.values;
        let (gates, cells) = (input(step, at::GATES)?, input(step, at::CELLS)?);
        let [packed, state] = [0, 1].map(|w| step.workspace[w]);
        let (packed, state) = (Some(values.view(packed, 0)?), Some(values.view(state, 0)?));
        let piece = |value: Option<usize>, p: usize| value.map(|v| values.view(v, p)).transpose();
        let optional = |position: usize| step.inputs[position];
        let dc = values.view(output(step, at::DC0)?, 0)?;
        let dh_n = piece(optional(at::DH_N), 0)?;
        let axis = row_axis(values.shape(gates));
        let (target, rows) = (&values.program.target, step_rows(values.program.capacity.sequences));
        let (kernel, block, constants) = match broadcast(target) {
            Broadcast::Memory => (&KERNEL, [8, 64], &[] as Constants),
            Broadcast::Subgroup => (&SUBGROUP, [rows, 4 * 32], rows_constant(rows)),
        };
        let hidden = values.row_len(cells)?;
        let columns = backward_columns(target, hidden);
        let strides = match broadcast(target) {
            Broadcast::Memory => [4 * columns, 1, 4],
            Broadcast::Subgroup => [4 * columns, columns, 1],
        };
        let mut launches = BTreeMap::new();
        for p in 0..values.pieces(axis) {
            let first = p.saturating_sub(pieces_back(values, axis));
            for q in (first..=p).map(Some).chain([None]) {
                let previous = match q {
                    Some(q) => Some(values.view(cells, q)?),
                    None => piece(optional(at::C0), 0)?,
                };
                let views = [
                    packed.clone(),
                    state.clone(),
                    Some(values.view(gates, p)?),
                    Some(values.view(cells, p)?),
                    previous,
                    piece(optional(at::DY), p)?,
                    dh_n.clone(),
                    Some(dc.clone()),
                ];
                launches.insert((p, q), preparer.launch_with(kernel, "", None, constants, &views)?);
            }
        }
        let finish = match step.outputs[at::DH0] {
            Some(dh0) => {
                let views = [packed, state, dh_n.clone(), Some(values.view(dh0, 0)?)];
                Some(preparer.launch(&lstm_backward_finish::KERNEL, &views)?)
            }
            None => None,
        };
        Ok(Self {
            launches,
            finish,
            block,
            axis,
            hidden,
            strides,
            dc,
            dc_n: piece(optional(at::DC_N), 0)?,
            has_c0: optional(at::C0).is_some(),
            has_dy: optional(at::DY).is_some(),
            has_dh_n: dh_n.is_some(),
        })
    }
}

impl Runner for LstmBackward {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        let (axis, steps, _) = run.axis(self.axis)?;
        let Some(axis) = axis else { return Err(Error::internal("gates without a time axis")) };
        let (sequences, steps) = (run.batch.sequences(), steps as usize);
        let bytes = 4 * (sequences * self.hidden) as u64;
        let dc = View { bytes, ..self.dc.clone() };
        match &self.dc_n {
            Some(dc_n) => out.copy(View { bytes, ..dc_n.clone() }, dc),
            None => out.clear(dc),
        }
        let unit_blocks = self.hidden.div_ceil(self.block[1]);
        let rows = run.values.piece_rows(self.axis);
        // The piece of a row and the row inside it.
        let locate = |row: usize| (row / rows, row % rows);
        for t in (0..steps).rev() {
            let active = axis.rows_at(t);
            let mut first = 0;
            while first < active {
                let (p, row) = locate(axis.offset(t) + first);
                let before = (t > 0).then(|| locate(axis.offset(t - 1) + first));
                // As far as neither this step's rows nor those of the step before leave their piece.
                let room = rows.saturating_sub(row).min(before.map_or(usize::MAX, |(_, r)| rows.saturating_sub(r)));
                let end = active.min(first.saturating_add(room));
                let launch = self.launches.get(&(p, before.map(|b| b.0)));
                let launch = launch.ok_or_else(|| Error::internal("a step before lies too far back"))?;
                let params = Params {
                    hidden: word(self.hidden),
                    first: word(first),
                    end: word(end),
                    ongoing: word(axis.rows_at(t + 1)),
                    row: word(row),
                    previous: before.map_or(0, |b| word(b.1)),
                    sequences: word(sequences),
                    slot: word((steps - 1 - t) % 2),
                    unit_blocks: word(unit_blocks),
                    has_previous: if t > 0 { 1 } else { 2 * u32::from(self.has_c0) },
                    has_dy: u32::from(self.has_dy),
                    has_dh_n: u32::from(self.has_dh_n),
                };
                out.dispatch(launch, &params, (end - first).div_ceil(self.block[0]) * unit_blocks);
                first = end;
            }
        }
        if let Some(finish) = &self.finish {
            let [stride_k, stride_g, stride_u] = self.strides.map(word);
            let params = lstm_backward_finish::Params {
                hidden: word(self.hidden),
                sequences: word(sequences),
                running: word(axis.rows_at(0)),
                slot: word(steps % 2),
                stride_k,
                stride_g,
                stride_u,
                has_dh_n: u32::from(self.has_dh_n),
            };
            out.dispatch(finish, &params, (sequences * self.hidden).div_ceil(64));
        }
        Ok(())
    }
}
