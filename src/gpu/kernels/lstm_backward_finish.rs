//! The gradient of a layer's initial h.

use super::{kernel, params};
use crate::gpu::pipeline::Kernel;

params!(Finish { hidden: u32, sequences: u32, running: u32, slot: u32, unit_blocks: u32, has_dh_n: u32 });

pub(super) static KERNEL: Kernel = kernel!("lstm_backward_finish", "main", Finish, [Params, Read, Read, Read, Write]);

/// The parameters, for the launcher of the steps.
pub(super) fn params(
    hidden: u32,
    sequences: u32,
    running: u32,
    slot: u32,
    unit_blocks: u32,
    has_dh_n: bool,
) -> impl bytemuck::Pod {
    Finish { hidden, sequences, running, slot, unit_blocks, has_dh_n: u32::from(has_dh_n) }
}
