//! Which kernels run a step, and what they need besides its values. For now one fixed table a target.

use crate::graph::op::{lstm, lstm_backward};
use crate::graph::{B, Dim, LstmPart, Op, Over, Shape, Symbol};
use crate::params::DType;
use serde::{Deserialize, Serialize};

/// The executors a program can be compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Executor {
    /// Plain loops; ignores the placement.
    Reference,
    /// The threaded CPU executor.
    Cpu,
    /// wgpu.
    Gpu,
}

/// What a device allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one buffer.
    pub buffer: u64,
    /// Bytes that a kernel sees of one value.
    pub binding: u64,
    /// Storage bindings of one kernel.
    pub storage_bindings: usize,
    /// Lanes of the smallest subgroup; 0 where kernels may not use subgroups.
    pub subgroup: usize,
}

impl Limits {
    /// What host memory allows.
    pub const HOST: Limits = Limits { buffer: u64::MAX, binding: u64::MAX, storage_bindings: usize::MAX, subgroup: 0 };
}

/// What a program is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Who runs it.
    pub executor: Executor,
    /// What the device allows.
    pub limits: Limits,
    /// Whether it is a GPU that a CPU plays.
    pub software: bool,
}

/// How all threads that need one value get it, in products on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broadcast {
    /// Each reads it; where all read one address, hardware reads it once.
    Memory,
    /// One lane reads it and hands it to its subgroup, of at least [`SUBGROUP`] lanes.
    Subgroup,
}

/// Lanes that [`Broadcast::Subgroup`] needs.
pub const SUBGROUP: usize = 8;

/// Software rasterisers read once a lane what all lanes read, at up to a hundred instructions a lane (Mesa's llvmpipe);
/// there a broadcast inside the subgroup made products three to four times as fast. Not measured on real GPUs, which
/// read one address once.
pub fn broadcast(target: &Target) -> Broadcast {
    let subgroups = target.limits.subgroup >= SUBGROUP;
    if target.software && subgroups { Broadcast::Subgroup } else { Broadcast::Memory }
}

/// Sequences of one thread of a fused step under [`Broadcast::Subgroup`], for batches of up to `sequences`: more of them
/// share what is read of the weights, and those beyond the batch are computed for nothing.
pub fn step_rows(sequences: usize) -> usize {
    match sequences {
        0..=1 => 1,
        2..=8 => 8,
        _ => 16,
    }
}

/// The recurrence's strategy; see the architecture's three. Only the first exists for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Recurrence {
    /// A fused dispatch per timestep.
    Step,
}

/// The name of the table of choices below; it is written into checkpoints.
pub const KERNEL_TABLE: &str = "fixed-2";

/// Values of padding so that kernels may read four at a time.
pub const QUAD: usize = 4;

/// Rows of [`Op::Reduce`]'s first pass that one workgroup sums, and so how many partial sums there are.
pub const REDUCE_BLOCK: usize = 4096;

/// A value that a kernel needs for itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Workspace {
    /// Its role, for names.
    pub role: &'static str,
    /// Its shape.
    pub shape: Shape,
    /// Its element type.
    pub dtype: DType,
    /// For packed weights: the positions of the inputs they are made of. They live as long as the program, and are made
    /// again only after one of those inputs has changed. Empty for what lives during one step.
    pub packs: Vec<usize>,
    /// Whether the host writes it before the run, so that it lives from the first step on.
    pub uploaded: bool,
}

fn scratch(role: &'static str, shape: impl Into<Shape>, dtype: DType) -> Workspace {
    Workspace { role, shape: shape.into(), dtype, packs: Vec::new(), uploaded: false }
}

fn packed(role: &'static str, shape: impl Into<Shape>, of: &[usize]) -> Workspace {
    Workspace { role, shape: shape.into(), dtype: DType::F32, packs: of.to_vec(), uploaded: false }
}

/// A multiple of [`QUAD`].
pub fn quads(n: usize) -> usize {
    n.next_multiple_of(QUAD)
}

/// Columns of the recurrent weights as the backward step reads them, `[4H, columns]` with rows unit by unit: each unit
/// alone, or quads of units.
pub fn backward_columns(target: &Target, hidden: usize) -> usize {
    if broadcast(target) == Broadcast::Subgroup { quads(hidden) } else { hidden }
}

fn fixed(shape: &Shape, at: usize) -> usize {
    match shape.0.get(at) {
        Some(Dim::Fixed(n)) => *n,
        _ => 0,
    }
}

/// What `op` needs on `target` besides inputs (of these shapes) and outputs. `len` gives a shape's largest number of
/// values.
pub fn workspace(op: &Op, target: &Target, inputs: &[Option<&Shape>], len: &dyn Fn(&Shape) -> usize) -> Vec<Workspace> {
    if target.executor != Executor::Gpu {
        return Vec::new();
    }
    let shape = |at: usize| inputs.get(at).copied().flatten();
    match op {
        Op::Lstm => {
            let Some((ih, hh)) = shape(lstm::WEIGHT_IH).zip(shape(lstm::WEIGHT_HH)) else { return Vec::new() };
            let (input, hidden) = (fixed(ih, 1), fixed(hh, 1));
            vec![
                packed("packed_ih", [input, 4 * hidden], &[lstm::WEIGHT_IH]),
                packed("packed_hh", [quads(hidden), 4 * hidden], &[lstm::WEIGHT_HH]),
                packed("packed_bias", [4 * hidden], &[lstm::BIAS_IH, lstm::BIAS_HH]),
                scratch("state", [Dim::Fixed(2), B, quads(hidden).into()], DType::F32),
            ]
        }
        Op::LstmBackward => {
            let hidden = shape(lstm_backward::WEIGHT_HH).map_or(0, |s| fixed(s, 1));
            vec![
                packed("packed_hh", [4 * hidden, backward_columns(target, hidden)], &[lstm_backward::WEIGHT_HH]),
                scratch("dstate", [Dim::Fixed(2), B, (4 * hidden).into()], DType::F32),
            ]
        }
        Op::LstmWeightGradient(LstmPart::RecurrentWeights) => {
            shape(1).map(|y| scratch("h_prev", y.clone(), DType::F32)).into_iter().collect()
        }
        Op::Linear => {
            let Some(weight) = shape(1) else { return Vec::new() };
            vec![packed("packed", [fixed(weight, 1), quads(fixed(weight, 0))], &[1])]
        }
        Op::MatMul | Op::LstmInputGradient => {
            let Some(b) = shape(1) else { return Vec::new() };
            vec![packed("packed", [fixed(b, 0), quads(fixed(b, 1))], &[1])]
        }
        Op::Reduce { over: Over::All, .. } => {
            // A segmented value has up to one further block a segment; 64 segments are more than any device holds.
            let blocks: usize = inputs.iter().flatten().map(|s| len(s).div_ceil(REDUCE_BLOCK) + 64).sum();
            vec![scratch("partials", [blocks], DType::F32)]
        }
        Op::EmbeddingBackward { rows } => {
            let tokens = shape(0).cloned().unwrap_or(Shape(Vec::new()));
            let index = |role, shape| Workspace { uploaded: true, ..scratch(role, shape, DType::U32) };
            vec![index("sorted", tokens), index("starts", Shape::from([rows + 1]))]
        }
        _ => Vec::new(),
    }
}

/// The time axis whose rows `shape` has, if any.
pub fn row_axis(shape: &Shape) -> Option<u8> {
    match shape.rows() {
        Some(Dim::Symbol(Symbol::Rows(a))) => Some(*a),
        _ => None,
    }
}

/// What is known of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterReport {
    /// Its name.
    pub name: String,
    /// Vulkan, Metal, DX12 or another.
    pub backend: String,
    /// Integrated, discrete, software and so on.
    pub kind: String,
    /// The driver and its version.
    pub driver: String,
    /// Whether it is a software rasteriser.
    pub software: bool,
    /// Limits that matter here, by name.
    pub limits: Vec<(&'static str, u64)>,
    /// Features that matter here, and whether it has them.
    pub features: Vec<(&'static str, bool)>,
}
