//! Pure data: what runs, in which order, where its values live, and which kernels run it.
//!
//! Nothing here sees a device. [`compile()`] turns a graph into a [`Program`] for capacities and a [`Target`];
//! [`Batch`] describes one run's sequences and scalars.

pub mod batch;
pub mod compile;
mod cut;
pub mod gather;
pub mod memory;
pub mod program;
pub mod stage;
pub mod strategy;

pub use batch::{Axis, Batch, Capacity};
pub use gather::{NOWHERE, sources};
pub use compile::compile;
pub use memory::{Keep, Measures, Memory, Place, Placement, amount};
pub use program::{CompileOptions, Program, ProgramValue, ScalarSource, Step};
pub use stage::{Action, Cut, Move, Part, Side, Stage};
pub use strategy::{Executor, Limits, Target};
