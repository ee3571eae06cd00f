//! One LSTM layer back through time, all directions together: a fused dispatch a timestep (two where h is projected), or one
//! for many timesteps; then the gradients of the initial states.

use super::lstm_backward_kernels::{Inside, Params, Variants};
use super::lstm_forward::{bounds, chunks, layer_of, pieces_of_step};
use super::{
    Runner, input, lstm_constants, lstm_keys, lstm_norm_backward_cell, lstm_norm_backward_gates, output, reverse_bits,
    word,
};
use crate::error::{Error, Result};
use crate::gpu::pipeline::{Constants, Kernel};
use crate::gpu::record::{Launch, Recorder, View};
use crate::gpu::values::{Preparer, Run, Values};
use crate::graph::lstm::backward as at;
use crate::graph::{LstmOp, Parameter};
use crate::scheduler::strategy::{quads, row_axis};
use crate::scheduler::{Axis, Recurrence, Step};
use std::collections::{BTreeMap, BTreeSet};

/// How many pieces away from a row's own the row of the step before may lie.
pub(super) fn pieces_away(values: &Values, axis: Option<u8>) -> usize {
    if values.pieces(axis) == 1 { 0 } else { values.program.capacity.sequences.div_ceil(values.piece_rows(axis)) }
}

/// A layer's backward pass.
pub(super) struct LstmBackward {
    op: LstmOp,
    /// Many timesteps a dispatch, and the launches of the first step and of all others, each with what resumes it.
    inside: Option<(Inside, [Vec<Launch>; 2])>,
    /// Where the workgroups of *grid* meet.
    meeting: View,
    /// By sequences of one workgroup, piece of this step's rows and piece of the rows of the step before; `None` at the first
    /// step.
    launches: BTreeMap<(usize, usize, Option<usize>), Launch>,
    /// By sequences of one workgroup and piece, where h is projected or the cell normalised.
    arrive: BTreeMap<(usize, usize), Launch>,
    /// By pieces, where the cell is normalised.
    norm_cells: BTreeMap<(usize, Option<usize>), Launch>,
    /// By piece, where the cell is normalised.
    norm_gates: Vec<Launch>,
    projects: bool,
    /// The gradient of h_0.
    initial: BTreeMap<usize, Launch>,
    recurrence: Recurrence,
    /// Columns of one workgroup.
    block: usize,
    axis: Option<u8>,
    hidden: usize,
    output: usize,
    state: View,
    carry: View,
    dc0: View,
    dh_n: Option<View>,
    dc_n: Option<View>,
    has_c0: bool,
    has_dy: bool,
}

impl LstmBackward {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step, op: &LstmOp) -> Result<Self> {
        let values = preparer.values;
        let (gates, cells) = (input(step, at::GATES)?, input(step, at::CELLS)?);
        let weight_hh = input(step, at::parameter(0, Parameter::WeightHh))?;
        let (hidden, r) = (values.fixed(weight_hh, 0)? / 4, values.fixed(weight_hh, 1)?);
        let [packed, state, carry, peepholes, packed_hr, norms, meeting] =
            [0, 1, 2, 3, 4, 5, 6].map(|w| step.workspace[w]);
        let meeting = values.view(meeting, 0)?;
        let projects = step.inputs[at::parameter(0, Parameter::WeightHr)].is_some();
        let (state, carry) = (values.view(state, 0)?, values.view(carry, 0)?);
        let peepholes = op.cell.peepholes.then(|| values.view(peepholes, 0)).transpose()?;
        let piece = |value: Option<usize>, p: usize| value.map(|v| values.view(v, p)).transpose();
        let axis = row_axis(values.shape(gates));
        let mut constants = lstm_constants(op);
        let norm_constants = constants.clone();
        let recurrence = step.recurrence.ok_or_else(|| Error::internal("a layer without a strategy"))?;
        let variants = Variants::of(recurrence, &layer_of(preparer, step)?);
        let kernels = variants.kernels;
        let tiles_with = |constants: &Constants| -> Vec<(usize, Constants)> {
            let with = |own: &Constants| constants.iter().copied().chain(own.iter().copied()).collect();
            variants.tiles.iter().map(|(tile, own)| (*tile, with(own))).collect()
        };
        let mut initial = BTreeMap::new();
        if let Some(dh0) = step.outputs[at::DH0] {
            let views =
                [values.view(packed, 0)?, state.clone(), carry.clone(), preparer.table(axis), values.view(dh0, 0)?];
            let views = views.map(Some);
            for (tile, constants) in tiles_with(&constants) {
                initial.insert(
                    tile,
                    preparer.launch_with(
                        variants.initial,
                        &preparer.weights(variants.initial),
                        None,
                        &constants,
                        &views,
                    )?,
                );
            }
        }
        let away = pieces_away(values, axis);
        let normed = op.cell.layer_norm.is_some();
        constants.extend(normed.then_some(("NORMED", 1.0)));
        let tiles = tiles_with(&constants);
        let (mut launches, mut arrive, mut inside) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let (mut norm_cells, mut norm_gates) = (BTreeMap::new(), Vec::new());
        for p in 0..values.pieces(axis) {
            let (table, dy) = (Some(preparer.table(axis)), piece(step.inputs[at::DY], p)?);
            if projects || normed {
                // Without a projection what arrives at h is what arrives at the cell's output.
                let arrives = output(step, if projects { at::DPROJECTED } else { at::DCELL })?;
                let dprojected = Some(values.view(arrives, p)?);
                let weights = Some(values.view(packed, 0)?);
                let views = [weights, Some(state.clone()), dy.clone(), Some(carry.clone()), table.clone(), dprojected];
                for (tile, constants) in &tiles {
                    let launch =
                        preparer.launch_with(&kernels[1], &preparer.weights(&kernels[1]), None, constants, &views)?;
                    arrive.insert((*tile, p), launch);
                }
            }
            let nearby = p.saturating_sub(away)..(p + away + 1).min(values.pieces(axis));
            for q in nearby.map(Some).chain([None]) {
                let previous = match q {
                    Some(q) => Some(values.view(cells, q)?),
                    None => piece(step.inputs[at::C0], 0)?,
                };
                let weights = Some(values.view(if projects { packed_hr } else { packed }, 0)?);
                let gates = Some(values.view(gates, p)?);
                let (state, carry) = (Some(state.clone()), Some(carry.clone()));
                let dcell = step.outputs[at::DCELL].filter(|_| normed).map(|v| values.view(v, p)).transpose()?;
                if normed {
                    let normed = Some(values.view(output(step, at::CELL_NORMED)?, p)?);
                    let norms = Some(values.view(norms, 0)?);
                    let (gates, previous, carry) = (gates.clone(), previous.clone(), carry.clone());
                    let views = [gates, previous, carry, table.clone(), norms, dcell.clone(), normed];
                    let kernel = &lstm_norm_backward_cell::KERNEL;
                    norm_cells.insert((p, q), preparer.launch_with(kernel, "", None, &norm_constants, &views)?);
                }
                if normed && (!projects || q.is_some_and(|q| q != p)) {
                    continue; // one launch a piece unprojects
                }
                let table = table.clone();
                // W_hr keeps 32 bits.
                let target = &values.program.target;
                let halves = !projects && target.precision.halves_weights();
                let prelude = |kernel: &Kernel| kernel.prelude(halves, target.matrix());
                let (kernel, mut views) = if projects {
                    (&kernels[2], vec![weights, state, gates, previous, carry, table, peepholes.clone(), dcell])
                } else {
                    let dy = dy.clone();
                    (&kernels[0], vec![weights, state, gates, previous, dy, carry, table, peepholes.clone()])
                };
                if let Some(own) = &variants.inside {
                    let constants = constants.iter().copied().chain(own.constants.iter().copied()).collect();
                    views.extend([Some(meeting.clone()), Some(preparer.stalls())]);
                    let launch = |kernel| preparer.launch_with(kernel, &prelude(kernel), None, &constants, &views);
                    inside.push(own.kernels.iter().map(launch).collect::<Result<Vec<_>>>()?);
                    continue;
                }
                for (tile, constants) in &tiles {
                    launches.insert(
                        (*tile, p, q),
                        preparer.launch_with(kernel, &prelude(kernel), None, constants, &views)?,
                    );
                }
            }
        }
        for p in 0..if normed { values.pieces(axis) } else { 0 } {
            let (product, dproduct) = (output(step, at::DGAINS)?, output(step, at::DPRODUCT)?);
            let [gates, product, dproduct] =
                [values.view(gates, p)?, values.view(product, p)?, values.view(dproduct, p)?];
            let views = [gates, product, dproduct, state.clone(), preparer.table(axis), values.view(norms, 0)?];
            norm_gates.push(preparer.launch(&lstm_norm_backward_gates::KERNEL, &views.map(Some))?);
        }
        let inside = match (variants.inside, <[Vec<Launch>; 2]>::try_from(inside)) {
            (Some(inside), Ok([others, first])) => Some((inside, [first, others])),
            (None, Err(_)) => None,
            _ => return Err(Error::internal("a layer that stays inside has its values in one piece")),
        };
        Ok(Self {
            op: *op,
            launches,
            arrive,
            norm_cells,
            norm_gates,
            inside,
            meeting,
            projects,
            initial,
            recurrence,
            block: variants.block,
            axis,
            hidden,
            output: r,
            state,
            carry,
            dc0: values.view(output(step, at::DC0)?, 0)?,
            dh_n: piece(step.inputs[at::DH_N], 0)?,
            dc_n: piece(step.inputs[at::DC_N], 0)?,
            has_c0: step.inputs[at::C0].is_some(),
            has_dy: step.inputs[at::DY].is_some(),
        })
    }

    /// Whether it runs by *grid*.
    fn meets(&self) -> bool {
        self.inside.as_ref().is_some_and(|(inside, _)| inside.kernels.len() > 1)
    }

    /// A part of what is carried: `count` values from `first` on.
    fn carried(&self, first: usize, count: usize) -> View {
        View {
            buffer: self.carry.buffer.clone(),
            offset: self.carry.offset + 4 * first as u64,
            bytes: 4 * count as u64,
        }
    }

    /// The pieces of each step's rows with those of the step before.
    fn pairs(&self, axis: &Axis, s: usize, rows: usize) -> BTreeSet<(usize, Option<usize>)> {
        if rows == usize::MAX {
            return BTreeSet::from([(0, (s > 0).then_some(0))]);
        }
        let mut pairs = BTreeSet::new();
        for d in 0..self.op.directions() {
            let row = |b: usize, s: usize| {
                let t = if self.op.direction.reversed(d) { axis.length(b) - 1 - s } else { s };
                (axis.offset(t) + b) / rows
            };
            pairs.extend((0..axis.rows_at(s)).map(|b| (row(b, s), s.checked_sub(1).map(|before| row(b, before)))));
        }
        pairs
    }
}

impl LstmBackward {
    /// One step back through a normalised cell, from what arrives at its output.
    fn record_norm<'a>(
        &'a self,
        run: &Run<'_>,
        out: &mut Recorder<'a>,
        (s, active, result): (usize, usize, usize),
        (pairs, pieces): (&BTreeSet<(usize, Option<usize>)>, &BTreeSet<usize>),
    ) -> Result<()> {
        let (axis, _, offsets) = run.axis(self.axis)?;
        let (Some(axis), Some(number)) = (axis, self.axis) else {
            return Err(Error::internal("gates without a time axis"));
        };
        let (rows, directions) = (run.values.piece_rows(self.axis), self.op.directions());
        let [_, _, zoneout_c] = lstm_keys(&self.op, run);
        let epsilon = self.op.cell.layer_norm.unwrap_or(0.0);
        for &(p, q) in pairs {
            let launch = self.norm_cells.get(&(p, q));
            let launch = launch.ok_or_else(|| Error::internal("a step before lies too far away"))?;
            let (piece_start, piece_end) = bounds(p, rows);
            let (previous_start, previous_end) = q.map_or((0, 0), |q| bounds(q, rows));
            let params = lstm_norm_backward_cell::Params {
                hidden: word(self.hidden),
                running: word(active),
                step: word(s),
                piece_start,
                piece_end,
                previous_start,
                previous_end,
                directions: word(directions),
                reverse: reverse_bits(&self.op),
                has_c0: u32::from(self.has_c0),
                offsets,
                lengths: run.lengths(number),
                start: axis.start,
                zoneout_c_x: zoneout_c[0],
                zoneout_c_y: zoneout_c[1],
                epsilon,
            };
            out.dispatch(launch, &params, active * directions);
        }
        for &p in pieces {
            let (piece_start, piece_end) = bounds(p, rows);
            let params = lstm_norm_backward_gates::Params {
                hidden: word(self.hidden),
                running: word(active),
                step: word(s),
                piece_start,
                piece_end,
                sequences: word(run.batch.sequences()),
                directions: word(directions),
                reverse: reverse_bits(&self.op),
                result: word(result),
                offsets,
                lengths: run.lengths(number),
                epsilon,
            };
            out.dispatch(&self.norm_gates[p], &params, active * directions);
        }
        Ok(())
    }
}

impl Runner for LstmBackward {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        let (axis, steps, offsets) = run.axis(self.axis)?;
        let (Some(axis), Some(number)) = (axis, self.axis) else {
            return Err(Error::internal("gates without a time axis"));
        };
        let (sequences, steps, directions) = (run.batch.sequences(), steps as usize, self.op.directions());
        let (hidden, r) = (self.hidden, self.output);
        let dc = self.carried(0, sequences * directions * hidden);
        let dh = self.carried(sequences * directions * hidden, sequences * directions * r);
        for (from, to) in [(&self.dc_n, &dc), (&self.dh_n, &dh)] {
            match from {
                Some(from) => out.copy(View { bytes: to.bytes, ..from.clone() }, to.clone()),
                None => out.clear(to.clone()),
            }
        }
        let (projects, normed) = (self.projects, !self.norm_gates.is_empty());
        if projects || normed {
            // The padding of what meets W_hr is read too.
            out.clear(self.state.clone());
        }
        let [dropout, zoneout_h, zoneout_c] = lstm_keys(&self.op, run);
        let rows = run.values.piece_rows(self.axis);
        let slot = directions * sequences * hidden;
        let missing = || Error::internal("no kernel for this step's sequences and pieces");
        let all = Params {
            hidden: word(hidden),
            output: word(r),
            columns: word(r),
            inner: word(hidden),
            weight_rows: word(hidden),
            step: 0,
            steps: 1,
            ahead: 1,
            piece_start: 0,
            piece_end: u32::MAX,
            previous_start: 0,
            previous_end: 0,
            sequences: word(sequences),
            operand: 0,
            result: 0,
            unit_blocks: word(r.div_ceil(self.block)),
            row_blocks: 0,
            directions: word(directions),
            reverse: reverse_bits(&self.op),
            has_c0: u32::from(self.has_c0),
            has_dy: u32::from(self.has_dy),
            offsets,
            lengths: run.lengths(number),
            start: axis.start,
            dropout_x: dropout[0],
            dropout_y: dropout[1],
            zoneout_h_x: zoneout_h[0],
            zoneout_h_y: zoneout_h[1],
            zoneout_c_x: zoneout_c[0],
            zoneout_c_y: zoneout_c[1],
        };
        let slots = |s: usize| ((steps - 1 - s) % 2 * slot, (steps - s) % 2 * slot);
        if let Some((Inside { rows, units, .. }, [first, others])) = &self.inside {
            // The first step reads c_0 where the others read cells.
            let alone = usize::from(self.has_c0).min(steps);
            let blocks = hidden.div_ceil(*units);
            let tiles = sequences.div_ceil(*rows) * directions;
            let chunks = chunks(steps - alone, tiles, [*rows, hidden, hidden]).map(|c| c.start + alone..c.end + alone);
            let begins = (alone > 0).then_some((0..1, first));
            for (chunk, launches) in begins.into_iter().chain(chunks.map(|c| (c, others))).rev() {
                let row_blocks = axis.rows_at(chunk.start).div_ceil(*rows);
                let (operand, result) = if self.meets() { slots(chunk.end - 1) } else { (0, 0) };
                let params = Params {
                    step: word(chunk.end - 1),
                    steps: word(chunk.len()),
                    operand: word(operand),
                    result: word(result),
                    unit_blocks: word(blocks),
                    row_blocks: word(row_blocks),
                    ..all
                };
                if self.meets() {
                    out.clear(self.meeting.clone());
                }
                for (launch, blocks) in launches.iter().zip([blocks, 1]) {
                    out.dispatch(launch, &params, directions * row_blocks * blocks);
                }
            }
        }
        for s in (0..if self.inside.is_some() { 0 } else { steps }).rev() {
            let active = axis.rows_at(s);
            let (operand, result) = slots(s);
            let tile = self.recurrence.step_tile(active);
            let row_blocks = active.div_ceil(tile);
            let mut params = Params {
                step: word(s),
                // Nothing comes back to the last step from a later one.
                inner: if s + 1 < steps { all.inner } else { 0 },
                operand: word(operand),
                result: word(result),
                row_blocks: word(row_blocks),
                ..all
            };
            if projects || normed {
                let below = 2 * slot;
                let arrive = Params { result: word(below), ..params };
                for piece in pieces_of_step(axis, &self.op, s, rows) {
                    let (piece_start, piece_end) = bounds(piece, rows);
                    let params = Params { piece_start, piece_end, ..arrive };
                    let launch = self.arrive.get(&(tile, piece)).ok_or_else(missing)?;
                    out.dispatch(launch, &params, directions * row_blocks * params.unit_blocks as usize);
                }
                let inner = word(quads(r) / 4);
                params = Params {
                    columns: word(hidden),
                    inner,
                    weight_rows: inner,
                    ahead: 0,
                    operand: word(below),
                    unit_blocks: word(hidden.div_ceil(self.block)),
                    ..params
                };
            }
            let pairs = self.pairs(axis, s, rows);
            if normed {
                let pieces = pieces_of_step(axis, &self.op, s, rows);
                for &p in pieces.iter().filter(|_| projects) {
                    (params.piece_start, params.piece_end) = bounds(p, rows);
                    let launch = self.launches.get(&(tile, p, Some(p))).ok_or_else(missing)?;
                    out.dispatch(launch, &params, directions * row_blocks * params.unit_blocks as usize);
                }
                self.record_norm(run, out, (s, active, result), (&pairs, &pieces))?;
                continue;
            }
            for (p, q) in pairs {
                let launch = self.launches.get(&(tile, p, q)).ok_or_else(missing)?;
                (params.piece_start, params.piece_end) = bounds(p, rows);
                (params.previous_start, params.previous_end) = q.map_or((0, 0), |q| bounds(q, rows));
                out.dispatch(launch, &params, directions * row_blocks * params.unit_blocks as usize);
            }
        }
        if !self.initial.is_empty() {
            let tile = self.inside.as_ref().map_or_else(|| self.recurrence.step_tile(sequences), |(i, _)| i.rows);
            let row_blocks = sequences.div_ceil(tile);
            let operand = if self.inside.is_some() && !self.meets() { 0 } else { steps % 2 * slot };
            let params = Params { ahead: 0, operand: word(operand), row_blocks: word(row_blocks), ..all };
            let launch = self.initial.get(&tile).ok_or_else(missing)?;
            out.dispatch(launch, &params, directions * row_blocks * params.unit_blocks as usize);
        }
        out.copy(dc, self.dc0.clone());
        Ok(())
    }
}
