//! The states of a layer before its first step.

use super::{kernel, params};
use crate::gpu::pipeline::Kernel;

params!(Params {
    sequences: u32,
    directions: u32,
    reverse: u32,
    hidden: u32,
    output: u32,
    padded: u32,
    width: u32,
    has_h0: u32,
    has_c0: u32,
    offsets: u32,
    lengths: u32,
    start: u32,
    dropout_x: u32,
    dropout_y: u32,
});

pub(super) static KERNEL: Kernel =
    kernel!("lstm_begin", "main", Params, [Params, Read, Read, Write, Write, Write, Read]);
