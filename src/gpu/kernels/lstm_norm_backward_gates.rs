//! One timestep back through the normalisation of a recurrent product.

use super::{kernel, params};
use crate::gpu::pipeline::Kernel;

params!(Params {
    hidden: u32,
    running: u32,
    step: u32,
    piece_start: u32,
    piece_end: u32,
    sequences: u32,
    directions: u32,
    reverse: u32,
    result: u32,
    offsets: u32,
    lengths: u32,
    epsilon: f32,
});

pub(super) static KERNEL: Kernel =
    kernel!("lstm_norm_backward_gates", "main", Params, [Params, Write, Write, Write, Write, Read, Read]);
