//! One timestep back through a normalised cell.

use super::{kernel, params};
use crate::gpu::pipeline::Kernel;

params!(Params {
    hidden: u32,
    running: u32,
    step: u32,
    piece_start: u32,
    piece_end: u32,
    previous_start: u32,
    previous_end: u32,
    directions: u32,
    reverse: u32,
    has_c0: u32,
    offsets: u32,
    lengths: u32,
    start: u32,
    zoneout_c_x: u32,
    zoneout_c_y: u32,
    epsilon: f32,
});

pub(super) static KERNEL: Kernel =
    kernel!("lstm_norm_backward_cell", "main", Params, [Params, Write, Read, Write, Read, Read, Write, Write]);
