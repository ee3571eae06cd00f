//! The fast executor for host processors: packed weights, vector registers, threads over rows and over the batch.
//!
//! It obeys the placement of a [`crate::scheduler::Program`] that is compiled for [`crate::scheduler::Target::CPU`].
//! Every output is one chain of sums in an order that depends on its own row alone, so results do not depend on the
//! number of threads, nor a row's result on the rows beside it.

mod aligned;
mod attention;
mod call;
mod columns;
mod dropout;
mod elementwise;
mod executor;
mod gather;
mod lstm_backward;
mod lstm_cell;
mod lstm_forward;
mod lstm_layer;
mod lstm_plain_backward;
mod lstm_plain_forward;
mod math;
mod matmul;
mod memory;
mod packed;
mod prefetch;
mod products;
mod reduce;
mod room;
mod rows;
mod run;
mod simd;
mod softmax;
mod storage;
mod tape;
mod team;
#[cfg(test)]
mod tests;
mod threads;
mod tile;
mod time;
mod watch;

pub use executor::{Cpu, Prepared};
pub(crate) use simd::name as instructions;
