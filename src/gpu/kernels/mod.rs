//! The kernel table and one launcher a shader.
//!
//! A launcher names its kernel (shader, entry point, bindings, parameters), makes its bind groups when a program is
//! prepared, and records its dispatches at each run. [`prepare`] maps an operation to its launcher.

mod argmax;
mod cross_entropy;
mod cross_entropy_backward;
mod dropout;
mod elementwise;
mod embedding;
mod embedding_backward;
mod lstm_backward_finish;
mod lstm_backward_step;
mod lstm_begin;
mod lstm_forward_step;
mod lstm_previous;
mod matmul;
mod pack;
mod reduce_all;
mod reduce_columns;
mod reduce_rows;
mod weight_gradient;

use super::executor::{Preparer, Run};
use super::pipeline::{Kernel, assemble};
use super::record::Recorder;
use crate::error::{Error, Result};
use crate::graph::{LstmPart, Op, Over};
use crate::scheduler::Step;

/// One step made ready.
pub(super) trait Runner: Send + Sync {
    /// Records the step's dispatches for one run.
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()>;
}

/// Declares a kernel's parameters: fields of four bytes, in the order of the shader's `Params`.
macro_rules! params {
    ($name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        #[repr(C)]
        #[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        pub(super) struct $name { $(pub $field: $type),* }
        impl $name {
            const FIELDS: &'static [&'static str] = &[$(stringify!($field)),*];
        }
    };
}
use params;

/// A kernel whose shader is the file of its name.
macro_rules! kernel {
    ($stem:literal, $entry:literal, $params:ty, [$($binding:ident),* $(,)?]) => {
        $crate::gpu::pipeline::Kernel {
            name: $stem,
            source: include_str!(concat!("../../../shaders/", $stem, ".wgsl")),
            entry: $entry,
            bindings: &[$($crate::gpu::pipeline::Binding::$binding),*],
            fields: <$params>::FIELDS,
        }
    };
}
use kernel;

/// Every kernel.
pub const KERNELS: &[&Kernel] = &[
    &argmax::KERNEL,
    &cross_entropy::KERNEL,
    &cross_entropy_backward::KERNEL,
    &dropout::KERNEL,
    &elementwise::KERNEL,
    &embedding::KERNEL,
    &embedding_backward::KERNEL,
    &lstm_backward_finish::KERNEL,
    &lstm_backward_step::KERNEL,
    &lstm_backward_step::SUBGROUP,
    &lstm_begin::KERNEL,
    &lstm_forward_step::KERNEL,
    &lstm_forward_step::SUBGROUP,
    &lstm_previous::KERNEL,
    &matmul::KERNEL,
    &matmul::SUBGROUP,
    &pack::KERNEL,
    &reduce_all::BLOCKS,
    &reduce_all::ALL_BLOCKS,
    &reduce_columns::KERNEL,
    &reduce_rows::KERNEL,
    &weight_gradient::KERNEL,
    &weight_gradient::SUBGROUP,
];

/// Every kernel's assembled WGSL with the name of a file for it; `elementwise` with a prelude that uses all functions.
pub fn shaders() -> Result<Vec<(String, String)>> {
    KERNELS
        .iter()
        .map(|kernel| {
            let prelude = if kernel.name == "elementwise" { elementwise::sample_prelude()? } else { String::new() };
            let entry = if kernel.entry == "main" { String::new() } else { format!("_{}", kernel.entry) };
            Ok((format!("{}{entry}.wgsl", kernel.name), assemble(&prelude, kernel.source)?))
        })
        .collect()
}

/// The launcher of `step`.
pub(super) fn prepare(preparer: &mut Preparer<'_>, step: &Step) -> Result<Box<dyn Runner>> {
    Ok(match &step.op {
        Op::Lstm => Box::new(lstm_forward_step::LstmForward::prepare(preparer, step)?),
        Op::LstmBackward => Box::new(lstm_backward_step::LstmBackward::prepare(preparer, step)?),
        Op::LstmInputGradient | Op::Linear | Op::MatMul => Box::new(matmul::MatMul::prepare(preparer, step)?),
        Op::LstmWeightGradient(LstmPart::Bias) => Box::new(reduce_rows::ReduceRows::prepare(preparer, step)?),
        Op::LstmWeightGradient(_) | Op::WeightGradient => {
            Box::new(weight_gradient::WeightGradient::prepare(preparer, step)?)
        }
        Op::Embedding => Box::new(embedding::Embedding::prepare(preparer, step)?),
        Op::EmbeddingBackward { .. } => Box::new(embedding_backward::EmbeddingBackward::prepare(preparer, step)?),
        Op::Dropout { rate, operation } => Box::new(dropout::Dropout::prepare(preparer, step, *rate, *operation)?),
        Op::Elementwise { exprs } => Box::new(elementwise::Elementwise::prepare(preparer, step, exprs)?),
        Op::Reduce { over: Over::All, kind } => Box::new(reduce_all::ReduceAll::prepare(preparer, step, *kind)?),
        Op::Reduce { over: Over::Rows, .. } => Box::new(reduce_rows::ReduceRows::prepare(preparer, step)?),
        Op::Reduce { over: Over::Columns, kind } => {
            Box::new(reduce_columns::ReduceColumns::prepare(preparer, step, *kind)?)
        }
        Op::CrossEntropy { ignore } => Box::new(cross_entropy::CrossEntropy::prepare(preparer, step, *ignore)?),
        Op::CrossEntropyBackward { ignore } => {
            Box::new(cross_entropy_backward::CrossEntropyBackward::prepare(preparer, step, *ignore)?)
        }
        Op::ArgMax => Box::new(argmax::ArgMax::prepare(preparer, step)?),
        Op::View { .. } => Box::new(Nothing),
    })
}

/// The launcher that packs workspace `number` of `step`.
pub(super) fn prepare_pack(preparer: &mut Preparer<'_>, step: &Step, number: usize) -> Result<Box<dyn Runner>> {
    Ok(Box::new(pack::Pack::prepare(preparer, step, number)?))
}

/// A view needs no work.
struct Nothing;

impl Runner for Nothing {
    fn record<'a>(&'a self, _: &Run<'_>, _: &mut Recorder<'a>) -> Result<()> {
        Ok(())
    }
}

fn input(step: &Step, at: usize) -> Result<usize> {
    step.inputs.get(at).copied().flatten().ok_or_else(|| Error::internal(format!("input {at} is missing")))
}

fn output(step: &Step, at: usize) -> Result<usize> {
    step.outputs.get(at).copied().flatten().ok_or_else(|| Error::internal(format!("output {at} is missing")))
}

/// A size as the shaders count.
fn word(n: usize) -> u32 {
    debug_assert!(n <= u32::MAX as usize);
    n as u32
}
