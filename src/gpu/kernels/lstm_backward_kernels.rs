//! The kernels of a layer's way back, and which of them a strategy takes.

use super::lstm_forward::{gridded, held, stepped, tiled};
use super::{kernel, params};
use crate::gpu::pipeline::{Constants, Kernel};
use crate::scheduler::Recurrence;
use crate::scheduler::recurrence::{Layer, Weights};
use crate::scheduler::strategy::QUAD;

params!(Params {
    hidden: u32,
    output: u32,
    columns: u32,
    inner: u32,
    weight_rows: u32,
    step: u32,
    steps: u32,
    ahead: u32,
    piece_start: u32,
    piece_end: u32,
    previous_start: u32,
    previous_end: u32,
    sequences: u32,
    operand: u32,
    result: u32,
    unit_blocks: u32,
    row_blocks: u32,
    directions: u32,
    reverse: u32,
    has_c0: u32,
    has_dy: u32,
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

/// The kernels of one shader: the fused step, what arrives at a projected h and goes on below it, the gradient of h_0.
macro_rules! kernels {
    ($stem:literal) => {
        [
            kernel!($stem, "main", Params, [Params, Read, Write, Write, Read, Read, Write, Read, Read]),
            kernel!($stem, "arrive_h", Params, [Params, Read, Write, Absent, Absent, Read, Write, Read, Absent, Write]),
            kernel!($stem, "unproject", Params, [Params, Read, Write, Write, Read, Absent, Write, Read, Read, Write]),
            kernel!(
                $stem,
                "initial",
                Params,
                [Params, Read, Write, Absent, Absent, Absent, Write, Read, Absent, Write]
            ),
        ]
    };
}

pub(super) static STEP: [Kernel; 4] = kernels!("lstm_backward_step");
/// The kernel of *sequence*, the same with weights in registers, and the gradient of h_0.
pub(super) static SEQUENCE: [Kernel; 3] = [
    kernel!("lstm_backward_sequence", "main", Params, [Params, Read, Write, Write, Read, Read, Write, Read, Read]),
    kernel!("lstm_backward_sequence", "registers", Params, [Params, Read, Write, Write, Read, Read, Write, Read, Read]),
    kernel!(
        "lstm_backward_sequence",
        "initial",
        Params,
        [Params, Read, Write, Absent, Absent, Absent, Write, Read, Absent, Write]
    ),
];
pub(super) static SUBGROUP: [Kernel; 4] = kernels!("lstm_backward_step_subgroup");
pub(super) static MATRIX: [Kernel; 4] = kernels!("lstm_backward_step_matrix");
/// The kernel of *grid*, what resumes it, and the gradient of h_0.
pub(super) static GRID: [Kernel; 3] = [
    kernel!(
        "lstm_backward_grid",
        "main",
        Params,
        [Params, Read, Write, Write, Read, Read, Write, Read, Read, Absent, Write]
    ),
    kernel!(
        "lstm_backward_grid",
        "resume",
        Params,
        [Params, Read, Write, Write, Read, Read, Write, Read, Read, Absent, Write, Write]
    ),
    kernel!(
        "lstm_backward_grid",
        "initial",
        Params,
        [Params, Read, Write, Absent, Absent, Absent, Write, Read, Absent, Write]
    ),
];

/// The kernels of a layer, with the constants that choose them.
pub(super) struct Variants {
    pub kernels: &'static [Kernel; 4],
    /// The gradient of h_0.
    pub initial: &'static Kernel,
    /// By sequences of one workgroup, in a dispatch a timestep.
    pub tiles: Vec<(usize, Constants)>,
    /// Many timesteps a dispatch.
    pub inside: Option<Inside>,
    /// Columns of one workgroup, in a dispatch a timestep.
    pub block: usize,
}

/// Many timesteps a dispatch: the kernel and what resumes it, the sequences and units of one workgroup.
pub(super) struct Inside {
    pub kernels: &'static [Kernel],
    pub rows: usize,
    pub units: usize,
    pub constants: Constants,
}

/// For each number of sequences of one workgroup the kernel of the fused step of `layer` and the constants that choose it.
pub(super) fn variants(recurrence: Recurrence, layer: &Layer) -> Vec<(usize, &'static Kernel, Constants)> {
    let Variants { kernels, tiles, inside, .. } = Variants::of(recurrence, layer);
    match inside {
        Some(inside) => inside.kernels.iter().map(|k| (inside.rows, k, inside.constants.clone())).collect(),
        None => tiles.into_iter().map(|(tile, constants)| (tile, &kernels[0], constants)).collect(),
    }
}

impl Variants {
    pub fn of(recurrence: Recurrence, layer: &Layer) -> Self {
        let sequences = layer.sequences;
        match recurrence {
            Recurrence::Broadcast => {
                let of = |tile| (tile, vec![("ROWS", tile as f32)]);
                let tiles = recurrence.step_tiles(sequences).into_iter().map(of).collect();
                Self { kernels: &SUBGROUP, initial: &SUBGROUP[3], tiles, inside: None, block: 4 * 32 }
            }
            Recurrence::Matrix { side } => {
                let tiles = vec![(2 * side, Constants::new())];
                Self { kernels: &MATRIX, initial: &MATRIX[3], tiles, inside: None, block: 2 * side }
            }
            Recurrence::Step { threads, ahead, .. } => {
                let of = |tile| (tile, stepped(tile, threads, ahead));
                let tiles = recurrence.step_tiles(sequences).into_iter().map(of).collect();
                Self { kernels: &STEP, initial: &STEP[3], tiles, inside: None, block: QUAD * threads.units }
            }
            Recurrence::Sequence { rows, threads, weights } => {
                // The gradient of h_0 adds up as the steps do, so that a sequence that is read in parts has the bits of one
                // that is not.
                let alike = tiled(rows, threads, ("DEPTH", layer.inside_depth(threads, weights)));
                let constants = [alike.clone(), held(weights, layer.output)].concat();
                let kernel = &SEQUENCE[usize::from(weights == Weights::Registers)];
                let kernels = std::slice::from_ref(kernel);
                let inside = Some(Inside { kernels, rows, units: layer.hidden, constants });
                let block = threads.units;
                Self { kernels: &STEP, initial: &SEQUENCE[2], tiles: vec![(rows, alike)], inside, block }
            }
            Recurrence::Grid { rows, pass, threads, patience } => {
                let constants = gridded(rows, pass, threads, patience);
                let tiles = vec![(rows, constants.clone())];
                let inside = Some(Inside { kernels: &GRID[..2], rows, units: threads.units, constants });
                Self { kernels: &STEP, initial: &GRID[2], tiles, inside, block: threads.units }
            }
        }
    }
}
