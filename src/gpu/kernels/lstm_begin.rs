//! The state of a layer before its first step.

use super::{kernel, params};
use crate::gpu::pipeline::Kernel;

params!(Begin { sequences: u32, hidden: u32, padded: u32, has_h0: u32, has_c0: u32 });

pub(super) static KERNEL: Kernel = kernel!("lstm_begin", "main", Begin, [Params, Read, Read, Write, Write, Write]);

/// The parameters, for the launcher of the steps.
pub(super) fn params(sequences: u32, hidden: u32, padded: u32, has_h0: bool, has_c0: bool) -> impl bytemuck::Pod {
    Begin { sequences, hidden, padded, has_h0: u32::from(has_h0), has_c0: u32::from(has_c0) }
}
