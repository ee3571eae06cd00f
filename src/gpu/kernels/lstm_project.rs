//! h of one timestep from what is projected.

use super::{kernel, params};
use crate::gpu::pipeline::Kernel;

params!(Params {
    hidden: u32,
    output: u32,
    padded: u32,
    running: u32,
    ending: u32,
    step: u32,
    piece_start: u32,
    piece_end: u32,
    sequences: u32,
    slot: u32,
    directions: u32,
    reverse: u32,
    offsets: u32,
    lengths: u32,
    start: u32,
    dropout_x: u32,
    dropout_y: u32,
    zoneout_h_x: u32,
    zoneout_h_y: u32,
});

pub(super) static KERNEL: Kernel =
    kernel!("lstm_project", "main", Params, [Params, Read, Write, Write, Write, Write, Read]);
