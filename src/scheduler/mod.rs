//! Pure data: what runs, in which order, where its values live, and which kernels run it.
//!
//! Nothing here sees a device. [`compile()`] turns a graph into a [`Program`] for capacities and a [`Target`];
//! [`Batch`] describes one run's sequences and scalars.

pub mod batch;
pub mod compile;
mod cut;
mod describe;
pub mod footprint;
mod fuse;
pub mod gather;
pub mod given;
mod lifetimes;
pub mod measures;
pub mod memory;
pub mod precision;
pub mod products;
pub mod profile;
pub mod program;
pub mod recurrence;
pub mod sampler;
mod slabs;
pub mod stage;
pub mod strategy;
mod stream;
pub mod table;
mod ticks;

pub use batch::{Axis, Batch, Capacity};
pub use compile::compile;
pub use footprint::{Memory, Meter, amount};
pub use gather::{NOWHERE, sources};
pub use given::{Bound, ScalarSource};
pub use measures::{Keep, Measures};
pub use memory::{Place, Placement};
pub use precision::Precision;
pub use products::Product;
pub use program::{CompileOptions, Pin, Program, ProgramValue, Slab, Step};
pub use recurrence::{Family, Kernels, Recurrence};
pub use sampler::{Batching, Cost, Sampler};
pub use stage::{Action, Cut, Move, Part, Side, Stage};
pub use strategy::{Executor, Limits, Target};
pub use ticks::{Pace, TickLimits, tick};
