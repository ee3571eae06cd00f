//! Which kernels run a step, and what they need besides its values. For now one fixed table a target.

use super::batch::{Capacity, GRADIENT_CHUNK};
use super::precision::Precision;
use super::products::chunks_together;
use super::program::Step;
use super::recurrence::Recurrence;
use crate::config::GATES;
use crate::error::Result;
use crate::graph::lstm::{backward, forward};
use crate::graph::{B, Dim, Gather, LstmOp, LstmPart, N, Op, Over, Parameter, Shape, Symbol};
use crate::params::DType;

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
    /// Bytes from the parameters of one dispatch to those of the next.
    pub uniform: u64,
    /// Threads of one workgroup.
    pub invocations: usize,
    /// Bytes of memory of one workgroup.
    pub workgroup: usize,
    /// Workgroups that were seen to run at a time and to meet; 0 where nobody has looked, or they cannot.
    pub resident: usize,
    /// Rows and columns of the largest square of halves that matrix units multiply into floats; 0 where there are none, or
    /// nobody has seen them be right.
    pub matrix: usize,
}

impl Limits {
    /// What host memory allows.
    pub const HOST: Limits = Limits {
        buffer: u64::MAX,
        binding: u64::MAX,
        storage_bindings: usize::MAX,
        subgroup: 0,
        uniform: 0,
        invocations: usize::MAX,
        workgroup: usize::MAX,
        resident: 0,
        matrix: 0,
    };
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
    /// Whether its memory is the host's.
    pub unified: bool,
    /// In how many bits kernels read weights.
    pub precision: Precision,
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
pub(super) fn broadcast_rows(sequences: usize) -> usize {
    match sequences {
        0..=1 => 1,
        2..=8 => 8,
        _ => 16,
    }
}

/// Cores of a large GPU.
pub const CORES: usize = 128;

/// The name of the table of choices below; it is written into checkpoints.
pub const KERNEL_TABLE: &str = "fixed-7";

/// Dispatches whose parameters a GPU holds at a time.
pub const PARAMETER_SLOTS: usize = 4096;

/// Scalars that one run may have on a GPU.
pub const RUN_SCALARS: usize = 64;

/// Columns to which the host's processor pads what it packs: four registers of its widest vectors.
pub const PANEL: usize = 64;

/// Values that the host's processor packs for `op`, each in a place of its own: for a layer each direction's
/// input weights, then their recurrent weights, then their projections.
pub fn packs(op: &Op, target: &Target, inputs: &[Option<&Shape>], capacity: &Capacity) -> Result<Vec<usize>> {
    if target.executor != Executor::Cpu {
        return Ok(Vec::new());
    }
    let packed = |inner: usize, columns: usize| inner * columns.next_multiple_of(PANEL);
    let size = |at: usize| inputs.get(at).copied().flatten().map_or((0, 0), |s| (fixed(s, 0), fixed(s, 1)));
    let both = |d: usize, each: usize| -> Vec<usize> { (0..2).map(|at| if at < d { each } else { 0 }).collect() };
    Ok(match op {
        Op::Lstm(lstm) => {
            let d = lstm.directions();
            let at = |parameter| size(forward::parameter(0, parameter));
            let ((four_h, r), (_, i), (r2, h)) =
                (at(Parameter::WeightHh), at(Parameter::WeightIh), at(Parameter::WeightHr));
            [both(d, packed(i, four_h)), both(d, packed(r, four_h)), both(d, packed(h, r2))].concat()
        }
        Op::LstmBackward(lstm) => {
            let d = lstm.directions();
            let at = |parameter| size(backward::parameter(0, parameter));
            let ((four_h, r), (r2, h)) = (at(Parameter::WeightHh), at(Parameter::WeightHr));
            [both(d, 0), both(d, packed(four_h, r)), both(d, packed(r2, h))].concat()
        }
        Op::Linear => vec![packed(size(1).1, size(1).0)],
        Op::MatMul => vec![packed(size(1).0, size(1).1)],
        Op::LstmInputGradient { directions } if inputs.len() > 1 => vec![packed(directions * size(1).0, size(1).1)],
        Op::WeightGradient
        | Op::LstmWeightGradient {
            part: LstmPart::InputWeights | LstmPart::RecurrentWeights | LstmPart::Projection,
            ..
        } => {
            let columns = match op {
                Op::LstmWeightGradient { part: LstmPart::InputWeights, .. } | Op::WeightGradient => size(1).1,
                Op::LstmWeightGradient { lstm, .. } => size(1).1 / lstm.directions(),
                _ => 0,
            };
            // Rows are packed a chunk of timesteps at a time.
            let rows = match inputs.get(1).copied().flatten().and_then(Shape::rows) {
                Some(dim @ Dim::Symbol(Symbol::Rows(_))) => {
                    capacity.size(dim)?.min(GRADIENT_CHUNK.saturating_mul(capacity.sequences))
                }
                Some(dim) => capacity.size(dim)?,
                None => 0,
            };
            vec![packed(rows, columns)]
        }
        // Queries, those of a sequence in panels of their own.
        Op::Recall(_) => {
            let rows = capacity.axes.first().map_or(0, |axis| axis.1);
            vec![packed(size(0).1, rows.saturating_add(capacity.sequences.saturating_mul(PANEL)))]
        }
        _ => Vec::new(),
    })
}

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

/// Whether the backward step reads its right operand in quads of columns.
pub fn in_quads(recurrence: Option<Recurrence>) -> bool {
    matches!(recurrence, Some(Recurrence::Broadcast | Recurrence::Step { .. }))
}

/// Columns of a right operand as the backward step reads it, with rows four by four: each column alone, or in quads.
pub fn backward_columns(recurrence: Option<Recurrence>, columns: usize) -> usize {
    if in_quads(recurrence) { quads(columns) } else { columns }
}

/// The number that dimension `at` of `shape` is; 0 where it is a symbol.
pub(super) fn fixed(shape: &Shape, at: usize) -> usize {
    match shape.0.get(at) {
        Some(Dim::Fixed(n)) => *n,
        _ => 0,
    }
}

/// What `step` needs on `target` besides inputs (of these shapes) and outputs. `len` gives a shape's largest number of
/// values.
pub fn workspace(
    step: &Step,
    target: &Target,
    inputs: &[Option<&Shape>],
    len: &dyn Fn(&Shape) -> usize,
) -> Vec<Workspace> {
    if target.executor != Executor::Gpu {
        return Vec::new();
    }
    let mut all = workspace_values(&step.op, step.recurrence, inputs, len);
    let split = step.product.filter(|p| p.parts() > 1).and_then(|p| Some((p.tile()?, p.parts())));
    if let (Some((tile, parts)), Some([rows, columns])) = (split, gradient_sizes(&step.op, inputs)) {
        let chunks = chunks_together(target, tile, parts, [rows, columns]);
        all.push(scratch("partials", [chunks * parts * rows * columns], DType::F32));
    }
    all.into_iter().enumerate().map(|(number, w)| target.precision.hold(&step.op, number, w)).collect()
}

/// Rows and columns of a weight's gradient that is a product.
fn gradient_sizes(op: &Op, inputs: &[Option<&Shape>]) -> Option<[usize; 2]> {
    let columns = |at: usize| inputs.get(at).copied().flatten().map_or(0, |s| s.row_len().unwrap_or(0));
    match op {
        Op::WeightGradient => Some([columns(0), columns(1)]),
        Op::LstmWeightGradient { part: LstmPart::Bias | LstmPart::Peepholes, .. } => None,
        Op::LstmWeightGradient { part, lstm, .. } => {
            let d = lstm.directions();
            Some([columns(0) / d, if *part == LstmPart::InputWeights { columns(1) } else { columns(1) / d }])
        }
        _ => None,
    }
}

fn workspace_values(
    op: &Op,
    recurrence: Option<Recurrence>,
    inputs: &[Option<&Shape>],
    len: &dyn Fn(&Shape) -> usize,
) -> Vec<Workspace> {
    let shape = |at: usize| inputs.get(at).copied().flatten();
    match op {
        Op::Lstm(lstm) => lstm_workspace(lstm, recurrence, shape),
        Op::LstmBackward(lstm) => lstm_backward_workspace(lstm, recurrence, shape),
        Op::LstmWeightGradient { part: LstmPart::RecurrentWeights | LstmPart::Peepholes, lstm, .. } => {
            let columns = shape(1).map_or(0, |s| fixed(s, 1)) / lstm.directions();
            let rows = shape(1).and_then(|s| s.rows().cloned()).unwrap_or(N);
            vec![scratch("previous", [rows, columns.into()], DType::F32)]
        }
        Op::LstmInputGradient { .. } if inputs.len() > 1 => {
            let (rows, columns) = shape(1).map_or((0, 0), |s| (fixed(s, 0), fixed(s, 1)));
            let all: Vec<usize> = (1..inputs.len()).collect();
            vec![packed("packed", [all.len() * rows, quads(columns)], &all)]
        }
        Op::Linear => {
            let Some(weight) = shape(1) else { return Vec::new() };
            vec![packed("packed", [fixed(weight, 1), quads(fixed(weight, 0))], &[1])]
        }
        Op::MatMul => {
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
        Op::Gather(gather) => {
            let (rows, units) = match *gather {
                Gather::Windows { window, axis, .. } => (rows_on(axis), window.taps),
                Gather::Tap { axis, .. }
                | Gather::EachStep { axis }
                | Gather::Along { axis }
                | Gather::AtStep { axis, .. }
                | Gather::Unflatten { axis, .. } => (rows_on(axis), 1),
                Gather::Transpose { steps, axis } => (rows_on(axis), steps),
                Gather::Flatten { steps } => (B, steps),
                Gather::IntoOrder { .. } | Gather::OutOfOrder { .. } | Gather::Step { .. } => (B, 1),
            };
            vec![Workspace { uploaded: true, ..scratch("sources", [rows, units.into()], DType::U32) }]
        }
        _ => Vec::new(),
    }
}

fn rows_on(axis: u8) -> Dim {
    Dim::Symbol(Symbol::Rows(axis))
}

/// H and R from W_hh's shape `[4H, R]`.
fn lstm_sizes(weight_hh: Option<&Shape>) -> (usize, usize) {
    weight_hh.map_or((0, 0), |s| (fixed(s, 0) / GATES, fixed(s, 1)))
}

/// Where the workgroups of *grid* meet: of each tile of sequences a word, and one for each block of columns. Tiles are at
/// most as many as sequences.
fn meeting(recurrence: Option<Recurrence>, directions: usize, columns: usize) -> Workspace {
    let words = match recurrence {
        Some(Recurrence::Grid { threads, .. }) => directions * (1 + columns.div_ceil(threads.units)),
        _ => return scratch("meeting", [1usize], DType::U32),
    };
    scratch("meeting", [Dim::Fixed(words), B], DType::U32)
}

/// In this order: W_ih, U with a row of peepholes, biases, the state's two slots, W_hr, what a normalised cell reads, where
/// workgroups meet; all directions together.
fn lstm_workspace<'a>(
    op: &LstmOp,
    recurrence: Option<Recurrence>,
    shape: impl Fn(usize) -> Option<&'a Shape>,
) -> Vec<Workspace> {
    let d = op.directions();
    let all = |parameters: &[Parameter]| -> Vec<usize> {
        (0..d).flat_map(|d| parameters.iter().map(move |&p| forward::parameter(d, p))).collect()
    };
    let at = |parameter| shape(forward::parameter(0, parameter));
    let (hidden, r) = lstm_sizes(at(Parameter::WeightHh));
    let four_h = d * GATES * hidden;
    let none = |role| scratch(role, [1usize], DType::F32);
    vec![
        match at(Parameter::WeightIh) {
            Some(ih) => packed("packed_ih", [fixed(ih, 1), four_h], &all(&[Parameter::WeightIh])),
            None => none("packed_ih"),
        },
        packed("packed_hh", [quads(r) + 1, four_h], &all(&[Parameter::WeightHh, Parameter::Peepholes])),
        packed("packed_bias", [four_h], &all(&[Parameter::BiasIh, Parameter::BiasHh])),
        scratch("state", [Dim::Fixed(2 * d), B, quads(r).into()], DType::F32),
        match at(Parameter::WeightHr) {
            Some(_) => packed("packed_hr", [d * hidden, quads(r)], &all(&[Parameter::WeightHr])),
            None => none("packed_hr"),
        },
        match op.cell.layer_norm {
            Some(_) => packed("packed_norm", [d * hidden, NORM_VALUES], &all(&NORM_PARAMETERS)),
            None => none("packed_norm"),
        },
        meeting(recurrence, d, hidden),
    ]
}

/// Values that a normalised cell reads of a unit: three vectors of four.
pub const NORM_VALUES: usize = 12;
const NORM_PARAMETERS: [Parameter; 4] =
    [Parameter::NormHh, Parameter::NormGain, Parameter::NormBias, Parameter::Peepholes];

/// In this order: U, the gradients' slots, what is carried from step to step, peepholes, W_hr, what a normalised cell reads,
/// where workgroups meet.
fn lstm_backward_workspace<'a>(
    op: &LstmOp,
    recurrence: Option<Recurrence>,
    shape: impl Fn(usize) -> Option<&'a Shape>,
) -> Vec<Workspace> {
    let d = op.directions();
    let all = |parameter| -> Vec<usize> { (0..d).map(|d| backward::parameter(d, parameter)).collect() };
    let (hidden, r) = lstm_sizes(shape(backward::parameter(0, Parameter::WeightHh)));
    let columns = |n| backward_columns(recurrence, n);
    let projects = shape(backward::parameter(0, Parameter::WeightHr)).is_some();
    let none = |role| scratch(role, [1usize], DType::F32);
    let normed = op.cell.layer_norm.is_some();
    // A normalised cell takes what arrives at h in a kernel of its own.
    let slots = 2 * GATES * hidden + if projects || normed { quads(r) } else { 0 };
    vec![
        packed("packed_hh", [d * GATES * hidden, columns(r)], &all(Parameter::WeightHh)),
        scratch("dstate", [Dim::Fixed(d * slots), B], DType::F32),
        scratch("carry", [Dim::Fixed(d * (hidden + r)), B], DType::F32),
        if op.cell.peepholes {
            packed("packed_peepholes", [d, GATES * hidden], &all(Parameter::Peepholes))
        } else {
            none("packed_peepholes")
        },
        if projects {
            packed("packed_hr", [d * quads(r), columns(hidden)], &all(Parameter::WeightHr))
        } else {
            none("packed_hr")
        },
        if normed {
            packed("packed_norm", [d * hidden, NORM_VALUES], &NORM_PARAMETERS.map(all).concat())
        } else {
            none("packed_norm")
        },
        meeting(recurrence, d, hidden),
    ]
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
