//! The gradient of a layer's initial h.

use super::{kernel, params};
use crate::gpu::pipeline::Kernel;

params!(Params {
    hidden: u32,
    sequences: u32,
    running: u32,
    slot: u32,
    stride_k: u32,
    stride_g: u32,
    stride_u: u32,
    has_dh_n: u32,
});

pub(super) static KERNEL: Kernel = kernel!("lstm_backward_finish", "main", Params, [Params, Read, Read, Read, Write]);
