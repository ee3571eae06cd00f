//! Pure data: what runs, in which order, where its values live, and which kernels run it.
//!
//! Nothing here sees a device. [`program::compile`] turns a graph into a [`Program`] for capacities and a [`Target`];
//! [`Batch`] describes one run's sequences and scalars.

pub mod batch;
pub mod gather;
pub mod memory;
pub mod program;
pub mod strategy;

pub use batch::{Axis, Batch, Capacity};
pub use gather::{NOWHERE, sources};
pub use memory::{Place, Placement};
pub use program::{CompileOptions, Program, ProgramValue, ScalarSource, Step, compile};
pub use strategy::{Executor, Limits, Target};
