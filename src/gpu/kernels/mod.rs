//! The kernel table and one launcher a shader.
//!
//! A launcher names its kernel (shader, entry point, bindings, parameters), makes its bind groups when a program is
//! prepared, and records its dispatches at each run. [`prepare`] maps an operation to its launcher.

mod argmax;
mod attention;
mod columns;
mod cross_entropy;
mod cross_entropy_backward;
mod dropout;
mod elementwise;
mod embedding;
mod embedding_backward;
mod gather;
mod lstm_backward;
mod lstm_backward_kernels;
mod lstm_begin;
mod lstm_forward;
mod lstm_gates;
mod lstm_norm_backward_cell;
mod lstm_norm_backward_gates;
mod lstm_norm_forward;
mod lstm_peephole_gradient;
mod lstm_previous;
mod lstm_project;
mod matmul;
mod over_time;
mod pack;
mod recall;
mod recall_tokens;
mod reduce_all;
mod reduce_columns;
mod reduce_rows;
mod remember;
mod scatter;
mod softmax;
mod weight_gradient;

use super::meeting;
use super::pipeline::{Constants, Kernel, assemble};
use super::record::Recorder;
use super::values::{Preparer, Run, Values};
use crate::config::{Cell, Mask};
use crate::error::{Error, Result};
use crate::graph::{LstmOp, LstmPart, Op, Over};
use crate::params::random::{drop_threshold, threefry};
use crate::scheduler::products::Tile;
use crate::scheduler::recurrence::{Family, Layer};
use crate::scheduler::{Step, Target};

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
pub(super) use params;

/// A kernel whose shader is the file of its name.
macro_rules! kernel {
    ($stem:literal, $entry:literal, $params:ty, [$($binding:ident),* $(,)?]) => {
        $crate::gpu::pipeline::Kernel {
            name: $stem,
            source: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $stem, ".wgsl")),
            entry: $entry,
            bindings: &[$($crate::gpu::pipeline::Binding::$binding),*],
            fields: <$params>::FIELDS,
        }
    };
}
pub(super) use kernel;

/// The constants of a layer's kernels, as `shaders/common/lstm_options.wgsl` declares them; what is plain is left out.
fn lstm_constants(op: &LstmOp) -> Constants {
    let (cell, plain) = (&op.cell, Cell::default());
    let mut all = Constants::new();
    let names = [
        ["GATE", "GATE_ALPHA", "GATE_BETA"],
        ["CANDIDATE", "CANDIDATE_ALPHA", "CANDIDATE_BETA"],
        ["OUTPUT", "OUTPUT_ALPHA", "OUTPUT_BETA"],
    ];
    let chosen = [(cell.gate, plain.gate), (cell.candidate, plain.candidate), (cell.output, plain.output)];
    for (names, (activation, plain)) in names.into_iter().zip(chosen) {
        if activation != plain {
            let (curve, alpha, beta) = activation.curve();
            all.extend(names.into_iter().zip([f32::from(curve as u8), alpha, beta]));
        }
    }
    let flags = [
        ("SAVES_ACTIVATED", cell.saves_activated(), true),
        ("COUPLED", cell.coupled, false),
        ("PEEPHOLES", cell.peepholes, false),
        ("TRAINING", op.random.is_some(), false),
        ("DROPOUT_STEP", cell.recurrent_mask == Mask::Step, false),
    ];
    all.extend(
        flags.into_iter().filter(|(_, is, plain)| is != plain).map(|(name, is, _)| (name, f32::from(u8::from(is)))),
    );
    let numbers = [
        ("CLIP", cell.clip.unwrap_or(0.0)),
        ("CELL_CLIP", cell.cell_clip.unwrap_or(0.0)),
        ("GRADIENT_CLIP", cell.gradient_clip.unwrap_or(0.0)),
        ("DROPOUT", op.dropout().map_or(0.0, |_| rate(cell.recurrent_dropout))),
        ("ZONEOUT_H", rate(cell.zoneout_h)),
        ("ZONEOUT_C", rate(cell.zoneout_c)),
    ];
    all.extend(numbers.into_iter().filter(|(_, value)| *value != 0.0));
    all
}

/// A probability in whole units of 2^-24, in which words are compared.
fn rate(probability: f32) -> f32 {
    drop_threshold(probability) as f32 / (1u32 << 24) as f32
}

/// The keys of a layer's random operations: recurrent dropout, zoneout of h, of c.
fn lstm_keys(op: &LstmOp, run: &Run<'_>) -> [[u32; 2]; 3] {
    let seed = [run.batch.seed as u32, (run.batch.seed >> 32) as u32];
    let first = op.random.unwrap_or(0);
    [0, 1, 2].map(|of| threefry(seed, [run.batch.step, first + of]))
}

/// Bit d is set where direction d runs back in time.
fn reverse_bits(op: &LstmOp) -> u32 {
    (0..op.directions()).map(|d| u32::from(op.direction.reversed(d)) << d).sum()
}

/// Every kernel.
pub const KERNELS: &[&Kernel] = &[
    &argmax::KERNEL,
    &attention::KERNEL,
    &attention::BACKWARD,
    &columns::KERNEL,
    &cross_entropy::KERNEL,
    &cross_entropy_backward::KERNEL,
    &dropout::KERNEL,
    &elementwise::KERNEL,
    &embedding::KERNEL,
    &embedding_backward::KERNEL,
    &gather::KERNEL,
    &lstm_backward_kernels::SEQUENCE[0],
    &lstm_backward_kernels::SEQUENCE[1],
    &lstm_backward_kernels::SEQUENCE[2],
    &lstm_backward_kernels::STEP[0],
    &lstm_backward_kernels::STEP[1],
    &lstm_backward_kernels::STEP[2],
    &lstm_backward_kernels::STEP[3],
    &lstm_backward_kernels::SUBGROUP[0],
    &lstm_backward_kernels::SUBGROUP[1],
    &lstm_backward_kernels::SUBGROUP[2],
    &lstm_backward_kernels::SUBGROUP[3],
    &lstm_backward_kernels::MATRIX[0],
    &lstm_backward_kernels::MATRIX[1],
    &lstm_backward_kernels::MATRIX[2],
    &lstm_backward_kernels::MATRIX[3],
    &lstm_backward_kernels::GRID[0],
    &lstm_backward_kernels::GRID[1],
    &lstm_backward_kernels::GRID[2],
    &lstm_begin::KERNEL,
    &lstm_forward::REGISTERS,
    &lstm_forward::SEQUENCE,
    &lstm_forward::STEP,
    &lstm_forward::SUBGROUP,
    &lstm_forward::MATRIX,
    &lstm_forward::GRID[0],
    &lstm_forward::GRID[1],
    &lstm_gates::INTO,
    &lstm_gates::BACK,
    &lstm_norm_forward::KERNEL,
    &lstm_norm_backward_cell::KERNEL,
    &lstm_norm_backward_gates::KERNEL,
    &lstm_peephole_gradient::KERNEL,
    &lstm_previous::KERNEL,
    &lstm_project::KERNEL,
    &meeting::KERNEL,
    &matmul::KERNEL,
    &matmul::SUBGROUP,
    &matmul::MATRIX,
    &over_time::KERNEL,
    &pack::KERNEL,
    &pack::HALVES,
    &recall::KERNEL,
    &recall::BACKWARD,
    &recall::PLACES,
    &recall_tokens::KERNEL,
    &reduce_all::BLOCKS,
    &reduce_all::ALL_BLOCKS,
    &reduce_columns::KERNEL,
    &reduce_rows::KERNEL,
    &remember::KERNEL,
    &scatter::KERNEL,
    &softmax::KERNEL,
    &weight_gradient::KERNEL,
    &weight_gradient::PARTIAL,
    &weight_gradient::ADD_PARTS,
    &weight_gradient::SUBGROUP,
    &weight_gradient::MATRIX[0],
    &weight_gradient::MATRIX[1],
];

/// A prelude of `kernel`: of `elementwise` one that uses all functions.
fn sample_prelude(kernel: &Kernel, halves: bool, side: usize) -> Result<String> {
    if kernel.name == "elementwise" { elementwise::sample_prelude() } else { Ok(kernel.prelude(halves, side)) }
}

/// Every kernel's assembled WGSL with the name of a file for it; `elementwise` with a prelude that uses all functions.
pub fn shaders() -> Result<Vec<(String, String)>> {
    KERNELS
        .iter()
        .map(|kernel| {
            let prelude = sample_prelude(kernel, false, 16)?;
            let entry = if kernel.entry == "main" { String::new() } else { format!("_{}", kernel.entry) };
            Ok((format!("{}{entry}.wgsl", kernel.name), assemble(&prelude, kernel.source)?))
        })
        .collect()
}

/// A kernel with the constants that some choice of the scheduler gives it.
#[derive(Debug, Clone)]
pub struct Variant {
    /// What it is, in words.
    pub name: String,
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Its assembled WGSL.
    pub source: String,
    /// Values of its `override` constants.
    pub constants: Vec<(&'static str, f32)>,
}

/// Every kernel as the scheduler may choose it on `target`: strategies of plain layers of many sizes, all tiles of products,
/// and each other kernel once. For tools that judge them without running them.
pub fn variants(target: &Target) -> Result<Vec<Variant>> {
    let mut all: Vec<Variant> = Vec::new();
    let mut add = |name: String, kernel: &'static Kernel, constants: Constants| -> Result<()> {
        let same = |v: &Variant| std::ptr::eq(v.kernel, kernel) && v.constants == constants;
        if !all.iter().any(same) {
            let weights: &[bool] =
                if kernel.source.contains("// #import weights\n") { &[true, false] } else { &[false] };
            let sides: &[usize] = if kernel.is_matrix() { &[8, 16] } else { &[0] };
            for (&halves, &side) in weights.iter().flat_map(|halves| sides.iter().map(move |side| (halves, side))) {
                let of = if kernel.is_matrix() { format!(", squares of {side}") } else { String::new() };
                let bits = if halves { ", weights in 16 bits" } else { "" };
                let source = assemble(&sample_prelude(kernel, halves, side)?, kernel.source)?;
                all.push(Variant { name: format!("{name}{of}{bits}"), kernel, source, constants: constants.clone() });
            }
        }
        Ok(())
    };
    for tile in Tile::ALL {
        let [rows, columns] = tile.sizes();
        for kernel in [&matmul::KERNEL, &weight_gradient::KERNEL, &weight_gradient::PARTIAL] {
            add(format!("{} {} {rows} x {columns}", kernel.name, kernel.entry), kernel, matmul::tile_constants(tile))?;
        }
    }
    for (hidden, sequences) in [32, 64, 96, 128, 192, 256, 512, 1024].into_iter().flat_map(|h| [(h, 1), (h, 64)]) {
        for (family, backward) in Family::ALL.into_iter().flat_map(|f| [(f, false), (f, true)]) {
            let layer = Layer { backward, hidden, output: hidden, directions: 1, sequences, normed: false };
            for recurrence in layer.members(family, target) {
                let variants = match backward {
                    false => lstm_forward::variants(recurrence, &layer),
                    true => lstm_backward_kernels::variants(recurrence, &layer),
                };
                for (rows, kernel, constants) in variants {
                    let way = if backward { "backward" } else { "forward" };
                    let resumes = if kernel.entry == "resume" { ", resumed" } else { "" };
                    add(format!("{way} H {hidden}, {rows} rows: {recurrence}{resumes}"), kernel, constants)?;
                }
            }
        }
    }
    for kernel in KERNELS {
        let recurrence = ["step", "sequence", "grid"].iter().any(|way| {
            [format!("lstm_forward_{way}"), format!("lstm_backward_{way}")].iter().any(|name| name == kernel.name)
        });
        let tiled = recurrence && matches!(kernel.entry, "main" | "registers" | "resume");
        let tiled = tiled || kernel.name == "matmul" || kernel.name == "weight_gradient" && kernel.entry != "add_parts";
        if !tiled {
            add(format!("{} {}", kernel.name, kernel.entry), kernel, Constants::new())?;
        }
    }
    Ok(all)
}

/// The launcher of `step`.
pub(super) fn prepare(preparer: &mut Preparer<'_>, step: &Step) -> Result<Box<dyn Runner>> {
    Ok(match &step.op {
        Op::Lstm(op) => Box::new(lstm_forward::LstmForward::prepare(preparer, step, op)?),
        Op::LstmBackward(op) => Box::new(lstm_backward::LstmBackward::prepare(preparer, step, op)?),
        Op::LstmInputGradient { directions } if step.inputs.len() == 1 => {
            Box::new(lstm_gates::Gates::back(preparer, step, *directions)?)
        }
        Op::LstmInputGradient { .. } | Op::Linear | Op::MatMul => Box::new(matmul::MatMul::prepare(preparer, step)?),
        Op::LstmWeightGradient { part: LstmPart::Bias, .. } => {
            Box::new(reduce_rows::ReduceRows::prepare(preparer, step)?)
        }
        Op::LstmWeightGradient { part: LstmPart::Peepholes, direction, lstm } => {
            Box::new(lstm_peephole_gradient::PeepholeGradient::prepare(preparer, step, lstm, *direction)?)
        }
        Op::LstmWeightGradient { .. } | Op::WeightGradient => {
            Box::new(weight_gradient::WeightGradient::prepare(preparer, step)?)
        }
        Op::Softmax => Box::new(softmax::Softmax::prepare(preparer, step)?),
        Op::OverTime { kind } => Box::new(over_time::OverTime::prepare(preparer, step, *kind)?),
        Op::Attention(_) | Op::AttentionBackward { .. } => Box::new(attention::Attention::prepare(preparer, step)?),
        Op::Remember(memory) => Box::new(remember::Remember::prepare(preparer, step, memory)?),
        Op::Recall(_) | Op::RecallBackward { .. } | Op::RecallPlaces(_) => {
            Box::new(recall::Recall::prepare(preparer, step)?)
        }
        Op::RecallTokens { memory, vocabulary } => {
            Box::new(recall_tokens::RecallTokens::prepare(preparer, step, memory, *vocabulary)?)
        }
        Op::Gather(gather) => Box::new(gather::Gather::prepare(preparer, step, gather)?),
        Op::Concat | Op::Slice { .. } | Op::Pad { .. } => Box::new(columns::Columns::prepare(preparer, step)?),
        Op::Embedding => Box::new(embedding::Embedding::prepare(preparer, step)?),
        Op::EmbeddingBackward { .. } => Box::new(embedding_backward::EmbeddingBackward::prepare(preparer, step)?),
        Op::Scatter => Box::new(scatter::Scatter::prepare(preparer, step)?),
        Op::Dropout { rate, operation, mask } => {
            Box::new(dropout::Dropout::prepare(preparer, step, *rate, *operation, *mask)?)
        }
        Op::Elementwise { .. } => Box::new(elementwise::Elementwise::prepare(preparer, &[step])?),
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

/// How many of `steps`, from the first on, one launcher can run together. At least 1.
pub(super) fn together(values: &Values, steps: &[&Step]) -> Result<usize> {
    elementwise::apart_from_each_other(values, steps)
}

/// The launcher of `steps`, which [`together`] has found.
pub(super) fn prepare_together(preparer: &mut Preparer<'_>, steps: &[&Step]) -> Result<Box<dyn Runner>> {
    Ok(Box::new(elementwise::Elementwise::prepare(preparer, steps)?))
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

pub(super) fn input(step: &Step, at: usize) -> Result<usize> {
    step.inputs.get(at).copied().flatten().ok_or_else(|| Error::internal(format!("input {at} is missing")))
}

fn output(step: &Step, at: usize) -> Result<usize> {
    step.outputs.get(at).copied().flatten().ok_or_else(|| Error::internal(format!("output {at} is missing")))
}

/// A size as the shaders count.
pub(super) fn word(n: usize) -> u32 {
    debug_assert!(n <= u32::MAX as usize);
    n as u32
}
