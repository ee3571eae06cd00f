//! The gradients of a layer's initial states.

use super::{kernel, params};
use crate::gpu::pipeline::Kernel;

params!(Params {
    hidden: u32,
    output: u32,
    sequences: u32,
    running: u32,
    operand: u32,
    directions: u32,
    reverse: u32,
    stride_k: u32,
    stride_g: u32,
    stride_u: u32,
    lengths: u32,
    offsets: u32,
    start: u32,
    dropout_x: u32,
    dropout_y: u32,
});

pub(super) static KERNEL: Kernel =
    kernel!("lstm_backward_finish", "main", Params, [Params, Read, Read, Read, Write, Read]);
