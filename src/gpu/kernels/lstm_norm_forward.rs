//! One timestep of a normalised cell, from its recurrent product.

use super::{kernel, params};
use crate::gpu::pipeline::Kernel;

params!(Params {
    hidden: u32,
    running: u32,
    step: u32,
    piece_start: u32,
    piece_end: u32,
    directions: u32,
    reverse: u32,
    save_cells: u32,
    offsets: u32,
    lengths: u32,
    start: u32,
    zoneout_c_x: u32,
    zoneout_c_y: u32,
    epsilon: f32,
});

pub(super) static KERNEL: Kernel =
    kernel!("lstm_norm_forward", "main", Params, [Params, Write, Write, Write, Write, Write, Read, Read]);
