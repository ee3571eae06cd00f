//! The wgpu executor: the only place that names wgpu, besides the signature of `Device::from_wgpu`.
//!
//! `adapter` opens a device, `buffer` is where all memory is made, `pipeline` turns a kernel of the table into a
//! pipeline, `executor` keeps persistent values and runs programs, `recording` records their parts, and `kernels` holds one
//! launcher a shader. Nothing
//! here blocks but [`Context::block`], which `device.rs` alone calls.

mod adapter;
mod away;
mod buffer;
mod executor;
mod kernels;
mod meeting;
mod offload;
mod packing;
mod pipeline;
mod prepared;
mod profile;
mod reading;
mod record;
mod recording;
mod upload;
mod values;

pub use adapter::{Context, Wanted, adapters};
pub use away::Homes;
pub use executor::Gpu;
pub use kernels::{KERNELS, Variant, shaders, variants};
pub use pipeline::{Binding, Kernel};
pub use prepared::Prepared;
pub use reading::Reading;
pub use recording::{Pause, Place};
