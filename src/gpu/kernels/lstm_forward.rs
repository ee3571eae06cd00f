//! One LSTM layer forward: the input projection of all rows, then the recurrence of all directions: a fused dispatch a
//! timestep (and another where h is projected, and where the cell normalises), or one for many timesteps.

use super::lstm_gates::Gates;
use super::matmul::MatMul;
use super::{
    Runner, kernel, lstm_begin, lstm_constants, lstm_keys, lstm_norm_forward, lstm_project, output, params,
    reverse_bits, word,
};
use crate::error::{Error, Result};
use crate::gpu::pipeline::{Constants, Kernel};
use crate::gpu::record::{Launch, Recorder, View};
use crate::gpu::values::{Preparer, Run};
use crate::graph::lstm::forward;
use crate::graph::{LstmOp, Parameter};
use crate::scheduler::recurrence::{Layer, Threads, Weights, step_groups};
use crate::scheduler::strategy::{quads, row_axis};
use crate::scheduler::{Axis, Recurrence, Step};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

params!(Params {
    hidden: u32,
    output: u32,
    quads: u32,
    step: u32,
    step_end: u32,
    piece_start: u32,
    piece_end: u32,
    sequences: u32,
    slot: u32,
    unit_blocks: u32,
    row_blocks: u32,
    directions: u32,
    reverse: u32,
    save: u32,
    offsets: u32,
    lengths: u32,
    start: u32,
    dropout_x: u32,
    dropout_y: u32,
    zoneout_h_x: u32,
    zoneout_h_y: u32,
    zoneout_c_x: u32,
    zoneout_c_y: u32,
});

pub(super) static STEP: Kernel =
    kernel!("lstm_forward_step", "main", Params, [Params, Read, Write, Write, Write, Write, Write, Write, Read]);
pub(super) static SEQUENCE: Kernel =
    kernel!("lstm_forward_sequence", "main", Params, [Params, Read, Write, Write, Write, Write, Write, Write, Read]);
pub(super) static REGISTERS: Kernel = kernel!(
    "lstm_forward_sequence",
    "registers",
    Params,
    [Params, Read, Write, Write, Write, Write, Write, Write, Read]
);
/// The kernel of *grid*, and what resumes it.
pub(super) static GRID: [Kernel; 2] = [
    kernel!(
        "lstm_forward_grid",
        "main",
        Params,
        [Params, Read, Write, Write, Write, Write, Write, Write, Read, Absent, Write]
    ),
    kernel!(
        "lstm_forward_grid",
        "resume",
        Params,
        [Params, Read, Write, Write, Write, Write, Write, Write, Read, Absent, Write, Write]
    ),
];
pub(super) static SUBGROUP: Kernel = kernel!(
    "lstm_forward_step_subgroup",
    "main",
    Params,
    [Params, Read, Write, Write, Write, Write, Write, Write, Read]
);

pub(super) static MATRIX: Kernel =
    kernel!("lstm_forward_step_matrix", "main", Params, [Params, Read, Write, Write, Write, Write, Write, Write, Read]);

/// Units of one workgroup of [`SUBGROUP`].
const UNITS: usize = 64;

/// A layer's forward pass.
pub(super) struct LstmForward {
    op: LstmOp,
    recurrence: Recurrence,
    /// W_ih x, or its products as they are given, into the gates.
    input: Box<dyn Runner>,
    begin: Launch,
    /// By sequences of one workgroup, then by piece; for *grid* the launch and its resumption.
    pieces: BTreeMap<usize, Vec<Launch>>,
    /// Where the workgroups of *grid* meet.
    meeting: View,
    /// What normalises the step's product and goes on from there, where the cell is normalised.
    norm: Vec<Launch>,
    /// What makes h of what the step leaves, where it is projected or normalised.
    project: Vec<Launch>,
    axis: Option<u8>,
    hidden: usize,
    output: usize,
    has_h0: bool,
    has_c0: bool,
    /// Whether gates, and whether cells, are read by a later step.
    save: [bool; 2],
}

/// The pieces that hold rows of step `s` of some sequence, over all directions.
pub(super) fn pieces_of_step(axis: &Axis, op: &LstmOp, s: usize, piece_rows: usize) -> BTreeSet<usize> {
    let active = axis.rows_at(s);
    let mut pieces = BTreeSet::new();
    for d in 0..op.directions() {
        if op.direction.reversed(d) && piece_rows != usize::MAX {
            pieces.extend((0..active).map(|b| (axis.offset(axis.length(b) - 1 - s) + b) / piece_rows));
        } else if active > 0 {
            pieces.extend(axis.offset(s) / piece_rows..=(axis.offset(s) + active - 1) / piece_rows);
        }
    }
    pieces
}

/// For each number of sequences of one workgroup the kernel of `layer` and the constants that choose it.
pub(super) fn variants(recurrence: Recurrence, layer: &Layer) -> Vec<(usize, &'static Kernel, Constants)> {
    match recurrence {
        Recurrence::Broadcast => {
            let of = |tile| (tile, &SUBGROUP, vec![("ROWS", tile as f32)]);
            recurrence.step_tiles(layer.sequences).into_iter().map(of).collect()
        }
        Recurrence::Step { threads, ahead, .. } => {
            let of = |tile| (tile, &STEP, stepped(tile, threads, ahead));
            recurrence.step_tiles(layer.sequences).into_iter().map(of).collect()
        }
        Recurrence::Matrix { side } => vec![(2 * side, &MATRIX, Constants::new())],
        Recurrence::Sequence { rows, threads, weights } => {
            let mut constants = tiled(rows, threads, ("QUADS", layer.inside_depth(threads, weights)));
            constants.extend(held(weights, 4 * layer.hidden));
            vec![(rows, if weights == Weights::Registers { &REGISTERS } else { &SEQUENCE }, constants)]
        }
        Recurrence::Grid { rows, pass, threads, patience } => {
            let constants = gridded(rows, pass, threads, patience);
            GRID.iter().map(|kernel| (rows, kernel, constants.clone())).collect()
        }
    }
}

/// The constants of a tile: sequences, threads, and one more.
pub(super) fn tiled(rows: usize, threads: Threads, one_more: (&'static str, usize)) -> Constants {
    let all = [("ROWS", rows), ("UNITS", threads.units), ("SLICES", threads.slices), one_more];
    all.into_iter().map(|(name, value)| (name, value as f32)).collect()
}

/// The constants of *step*: sequences of a thread and groups of them, threads, and whether operands come ahead of their use.
pub(super) fn stepped(tile: usize, threads: Threads, ahead: bool) -> Constants {
    let [rows, groups] = step_groups(tile);
    let mut constants = tiled(rows, threads, ("GROUPS", groups));
    constants.extend(ahead.then_some(("AHEAD", 1.0)));
    constants
}

/// The constants of *grid*: sequences of a tile and of a pass, threads, patience.
pub(super) fn gridded(rows: usize, pass: usize, threads: Threads, patience: u32) -> Constants {
    let all = [("ROWS", rows), ("PASS", pass), ("UNITS", threads.units), ("SLICES", threads.slices)];
    let patience = ("PATIENCE", patience as usize);
    all.into_iter().chain([patience]).map(|(name, value)| (name, value as f32)).collect()
}

/// The constants that say how many rows of weights, of so many vectors each, are in workgroup memory.
pub(super) fn held(weights: Weights, row: usize) -> Constants {
    match weights {
        Weights::Held(rows) => vec![("HELD", rows as f32), ("HELD_VALUES", (rows * row).max(1) as f32)],
        _ => Vec::new(),
    }
}

/// The layer that `step` runs.
pub(super) fn layer_of(preparer: &Preparer<'_>, step: &Step) -> Result<Layer> {
    let program = &preparer.values.program;
    let layer = Layer::of(step, &program.values, &program.capacity);
    layer.ok_or_else(|| Error::internal("a layer without recurrent weights"))
}

/// The steps of each dispatch of workgroups that compute `units` units of `rows` sequences over many steps: few enough that one
/// ends long before a watchdog looks, on a device that gives a workgroup a gigaflop a second and runs sixteen of them at a
/// time.
pub(super) fn chunks(
    steps: usize,
    tiles: usize,
    [rows, units, hidden]: [usize; 3],
) -> impl DoubleEndedIterator<Item = Range<usize>> {
    const BUDGET: f64 = 0.1e9;
    let waves = tiles.div_ceil(16);
    let step = (8 * rows * units * hidden * waves).max(1) as f64;
    let most = ((BUDGET / step) as usize).max(1);
    (0..steps.div_ceil(most)).map(move |n| n * most..((n + 1) * most).min(steps))
}

impl LstmForward {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step, op: &LstmOp) -> Result<Self> {
        let values = preparer.values;
        let (x, gates) = (super::input(step, forward::X)?, output(step, forward::GATES)?);
        let (y, h_n, c_n) = (output(step, forward::Y)?, output(step, forward::H_N)?, output(step, forward::C_N)?);
        let weight_hh = super::input(step, forward::parameter(0, Parameter::WeightHh))?;
        let (hidden, r) = (values.fixed(weight_hh, 0)? / 4, values.fixed(weight_hh, 1)?);
        let projects = step.inputs[forward::parameter(0, Parameter::WeightHr)].is_some();
        let [packed_ih, packed_hh, packed_bias, state, packed_hr, norms, meeting] =
            [0, 1, 2, 3, 4, 5, 6].map(|w| step.workspace[w]);
        let meeting = values.view(meeting, 0)?;
        let input: Box<dyn Runner> = match step.inputs[forward::parameter(0, Parameter::WeightIh)] {
            Some(_) => Box::new(MatMul::new(preparer, step, x, packed_ih, Some(packed_bias), gates)?),
            None => Box::new(Gates::into_units(preparer, x, packed_bias, gates, op.directions())?),
        };
        let maybe = |at: usize| step.inputs[at].map(|v| values.view(v, 0)).transpose();
        let (h0, c0) = (maybe(forward::H0)?, maybe(forward::C0)?);
        let (has_h0, has_c0) = (h0.is_some(), c0.is_some());
        let state = Some(values.view(state, 0)?);
        let c = Some(values.view(c_n, 0)?);
        let h_n = Some(values.view(h_n, 0)?);
        let axis = row_axis(values.shape(x));
        let table = Some(preparer.table(axis));
        let mut constants = lstm_constants(op);
        let begin_views = [h0, c0, state.clone(), c.clone(), h_n.clone(), table.clone()];
        let begin = preparer.launch_with(&lstm_begin::KERNEL, "", None, &constants, &begin_views)?;
        let (mut pieces, mut project) = (BTreeMap::new(), Vec::new());
        let hiddens = if projects { output(step, forward::HIDDEN)? } else { y };
        let normed = op.cell.layer_norm.is_some();
        if projects || normed {
            let mut constants = constants.clone();
            constants.extend((!projects).then_some(("IDENTITY", 1.0)));
            for p in 0..values.pieces(axis) {
                let views = [
                    Some(values.view(packed_hr, 0)?),
                    projects.then(|| values.view(hiddens, p)).transpose()?,
                    state.clone(),
                    Some(values.view(y, p)?),
                    h_n.clone(),
                    table.clone(),
                ];
                project.push(preparer.launch_with(&lstm_project::KERNEL, "", None, &constants, &views)?);
            }
        }
        let mut norm = Vec::new();
        if normed {
            let product = output(step, forward::PRODUCT)?;
            for p in 0..values.pieces(axis) {
                let views = [
                    Some(values.view(product, p)?),
                    Some(values.view(gates, p)?),
                    Some(values.view(hiddens, p)?),
                    c.clone(),
                    step.outputs[forward::CELLS].map(|v| values.view(v, p)).transpose()?,
                    table.clone(),
                    Some(values.view(norms, 0)?),
                ];
                norm.push(preparer.launch_with(&lstm_norm_forward::KERNEL, "", None, &constants, &views)?);
            }
            constants.push(("NORMED", 1.0));
        } else if projects {
            constants.push(("PROJECTS", 1.0));
        }
        let recurrence = step.recurrence.ok_or_else(|| Error::internal("a layer without a strategy"))?;
        for (tile, kernel, own) in variants(recurrence, &layer_of(preparer, step)?) {
            let constants: Constants = constants.iter().copied().chain(own).collect();
            let own: &mut Vec<Launch> = pieces.entry(tile).or_default();
            for p in 0..values.pieces(axis) {
                let views = [
                    Some(values.view(packed_hh, 0)?),
                    state.clone(),
                    Some(values.view(gates, p)?),
                    Some(values.view(if normed { output(step, forward::PRODUCT)? } else { hiddens }, p)?),
                    c.clone(),
                    step.outputs[forward::CELLS].map(|v| values.view(v, p)).transpose()?,
                    h_n.clone(),
                    table.clone(),
                    Some(meeting.clone()),
                    Some(preparer.stalls()),
                ];
                own.push(preparer.launch_with(kernel, &preparer.weights(kernel), None, &constants, &views)?);
            }
        }
        let read = |value: usize| values.program.stage_steps().any(|s| s.inputs.contains(&Some(value)));
        let save = [read(gates), step.outputs[forward::CELLS].is_some()];
        let op = *op;
        Ok(Self {
            op,
            recurrence,
            input,
            begin,
            pieces,
            meeting,
            norm,
            project,
            axis,
            hidden,
            output: r,
            has_h0,
            has_c0,
            save,
        })
    }
}

impl Runner for LstmForward {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        self.input.record(run, out)?;
        let (axis, steps, offsets) = run.axis(self.axis)?;
        let (Some(axis), Some(number)) = (axis, self.axis) else { return Ok(()) };
        let (sequences, padded, directions) = (run.batch.sequences(), quads(self.output), self.op.directions());
        let [dropout, zoneout_h, zoneout_c] = lstm_keys(&self.op, run);
        let (reverse, lengths) = (reverse_bits(&self.op), run.lengths(number));
        let width = padded.max(self.hidden);
        let begin = lstm_begin::Params {
            sequences: word(sequences),
            directions: word(directions),
            reverse,
            hidden: word(self.hidden),
            output: word(self.output),
            padded: word(padded),
            width: word(width),
            has_h0: u32::from(self.has_h0),
            has_c0: u32::from(self.has_c0),
            offsets,
            lengths,
            start: axis.start,
            dropout_x: dropout[0],
            dropout_y: dropout[1],
        };
        out.dispatch(&self.begin, &begin, (sequences * directions * width).div_ceil(256));
        let piece_rows = run.values.piece_rows(self.axis);
        let all = Params {
            hidden: word(self.hidden),
            output: word(self.output),
            quads: word(padded / 4),
            step: 0,
            step_end: 0,
            piece_start: 0,
            piece_end: u32::MAX,
            sequences: word(sequences),
            slot: 0,
            unit_blocks: 1,
            row_blocks: 0,
            directions: word(directions),
            reverse,
            save: u32::from(self.save[0]) * (1 + u32::from(self.save[1])),
            offsets,
            lengths,
            start: axis.start,
            dropout_x: dropout[0],
            dropout_y: dropout[1],
            zoneout_h_x: zoneout_h[0],
            zoneout_h_y: zoneout_h[1],
            zoneout_c_x: zoneout_c[0],
            zoneout_c_y: zoneout_c[1],
        };
        let missing = || Error::internal("no kernel for this step's sequences");
        let units = match self.recurrence {
            Recurrence::Sequence { rows, .. } => {
                let launch = &self.pieces.get(&rows).ok_or_else(missing)?[0];
                let tiles = sequences.div_ceil(rows) * directions;
                for chunk in chunks(steps as usize, tiles, [rows, self.hidden, self.hidden]) {
                    let row_blocks = axis.rows_at(chunk.start).div_ceil(rows);
                    let (step, step_end) = (word(chunk.start), word(chunk.end));
                    let params = Params { step, step_end, row_blocks: word(row_blocks), ..all };
                    out.dispatch(launch, &params, directions * row_blocks);
                }
                return Ok(());
            }
            Recurrence::Grid { rows, threads, .. } => {
                let launches = self.pieces.get(&rows).ok_or_else(missing)?;
                let unit_blocks = self.hidden.div_ceil(threads.units);
                // As short as what resumes it must be.
                let tiles = sequences.div_ceil(rows) * directions;
                for chunk in chunks(steps as usize, tiles, [rows, self.hidden, self.hidden]) {
                    let tiles = directions * axis.rows_at(chunk.start).div_ceil(rows);
                    let (step, step_end) = (word(chunk.start), word(chunk.end));
                    let row_blocks = word(tiles / directions);
                    let params = Params { step, step_end, row_blocks, unit_blocks: word(unit_blocks), ..all };
                    out.clear(self.meeting.clone());
                    out.dispatch(&launches[0], &params, tiles * unit_blocks);
                    out.dispatch(&launches[1], &params, tiles);
                }
                return Ok(());
            }
            Recurrence::Step { threads, .. } => threads.units,
            Recurrence::Matrix { side } => 2 * side / 4,
            Recurrence::Broadcast => UNITS,
        };
        let unit_blocks = self.hidden.div_ceil(units);
        for s in 0..steps as usize {
            let active = axis.rows_at(s);
            let tile = self.recurrence.step_tile(active);
            let launches = self.pieces.get(&tile).ok_or_else(missing)?;
            let row_blocks = active.div_ceil(tile);
            let mut params = Params {
                step: word(s),
                step_end: word(s + 1),
                slot: word(s % 2),
                unit_blocks: word(unit_blocks),
                row_blocks: word(row_blocks),
                ..all
            };
            let pieces = pieces_of_step(axis, &self.op, s, piece_rows);
            for &piece in &pieces {
                (params.piece_start, params.piece_end) = bounds(piece, piece_rows);
                out.dispatch(&launches[piece], &params, directions * row_blocks * unit_blocks);
            }
            for &piece in pieces.iter().filter(|_| !self.norm.is_empty()) {
                let (piece_start, piece_end) = bounds(piece, piece_rows);
                let params = lstm_norm_forward::Params {
                    hidden: word(self.hidden),
                    running: word(active),
                    step: word(s),
                    piece_start,
                    piece_end,
                    directions: word(directions),
                    reverse,
                    save_cells: u32::from(self.save[1]),
                    offsets,
                    lengths,
                    start: axis.start,
                    zoneout_c_x: zoneout_c[0],
                    zoneout_c_y: zoneout_c[1],
                    epsilon: self.op.cell.layer_norm.unwrap_or(0.0),
                };
                out.dispatch(&self.norm[piece], &params, active * directions);
            }
            for &piece in pieces.iter().filter(|_| !self.project.is_empty()) {
                let (piece_start, piece_end) = bounds(piece, piece_rows);
                let params = lstm_project::Params {
                    hidden: word(self.hidden),
                    output: word(self.output),
                    padded: word(padded),
                    running: word(active),
                    ending: word(axis.rows_at(s + 1)),
                    step: word(s),
                    piece_start,
                    piece_end,
                    sequences: word(sequences),
                    slot: word(s % 2),
                    directions: word(directions),
                    reverse,
                    offsets,
                    lengths,
                    start: axis.start,
                    dropout_x: dropout[0],
                    dropout_y: dropout[1],
                    zoneout_h_x: zoneout_h[0],
                    zoneout_h_y: zoneout_h[1],
                };
                out.dispatch(&self.project[piece], &params, (directions * active * self.output).div_ceil(64));
            }
        }
        Ok(())
    }
}

/// The first row of a piece, and one past its last.
pub(super) fn bounds(piece: usize, piece_rows: usize) -> (u32, u32) {
    let end = (piece + 1).saturating_mul(piece_rows);
    (word(piece * if piece == 0 { 0 } else { piece_rows }), u32::try_from(end).unwrap_or(u32::MAX))
}
