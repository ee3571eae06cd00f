//! A program: operations in order, and how they run: in which stages, with which values where, for capacities and a target.

use super::batch::{Axis, Batch, Capacity};
use super::given::{Bound, ScalarSource};
use super::measures::Measures;
use super::memory::Placement;
use super::precision::Precision;
use super::products::Product;
use super::recurrence::{Kernels, Recurrence};
use super::stage::{Cut, Stage};
use super::strategy::{Executor, Limits, Target};
use crate::error::{Error, Result};
use crate::graph::{Dim, Expr, Layout, Op, Shape};
use crate::params::DType;
use std::collections::{BTreeMap, BTreeSet};

/// Where a value's storage comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Its own place in the placement.
    Own,
    /// A session keeps it under its name.
    Persistent,
    /// The storage of another value: a view, or a result written in the place of an operand.
    Of(usize),
}

/// A value of a program.
#[derive(Debug, Clone, PartialEq)]
pub struct ProgramValue {
    /// Its name in the graph; workspaces have the name of their step.
    pub name: String,
    /// Symbolic sizes.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
    /// How executors may store it.
    pub layout: Layout,
    /// Where its storage comes from.
    pub storage: Storage,
    /// The first action of the stages that touches its storage; inputs count from 0.
    pub first: usize,
    /// The last action that touches its storage; the number of actions for what is read after the run.
    pub last: usize,
    /// The parts that it exists for; none where it holds everything.
    pub cut: Option<Cut>,
    /// Whether it waits in the host's memory, away from the device.
    pub offloaded: bool,
    /// Which rows it has of a matrix that is too large for one binding; a session keeps the whole under its name.
    pub slab: Option<Slab>,
}

/// Some rows of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slab {
    /// The first.
    pub first: usize,
    /// Rows of the matrix.
    pub of: usize,
}

impl ProgramValue {
    /// Floats with storage of their own, which nothing touches yet.
    pub(super) fn own(name: String, shape: Shape) -> Self {
        let (dtype, layout, storage) = (DType::F32, Layout::Rows, Storage::Own);
        let (first, last) = (usize::MAX, 0);
        Self { name, shape, dtype, layout, storage, first, last, cut: None, offloaded: false, slab: None }
    }

    /// Its name, and which rows it has of a matrix that is cut.
    pub fn label(&self) -> String {
        self.slab.map_or_else(|| self.name.clone(), |slab| format!("{}, from row {} on", self.name, slab.first))
    }

    /// The first of its rows in the matrix that it is a slab of.
    pub fn first_row(&self) -> usize {
        self.slab.map_or(0, |slab| slab.first)
    }

    /// Where its bytes begin in what a session keeps under its name.
    pub fn first_byte(&self) -> usize {
        4 * self.first_row() * self.shape.row_len().unwrap_or(0)
    }

    /// The sizes of the largest batch that it holds values of, where the program's is `whole`.
    pub fn sizes(&self, whole: &Capacity) -> Result<Vec<usize>> {
        match &self.cut {
            Some(cut) => cut.capacity(whole).resolve(&self.shape),
            None => whole.resolve(&self.shape),
        }
    }
}

/// One operation to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What to do.
    pub op: Op,
    /// Values read, by the operation's positions.
    pub inputs: Vec<Option<usize>>,
    /// Values written; `None` where nobody wants them.
    pub outputs: Vec<Option<usize>>,
    /// Values that the kernels need, in the order of [`super::strategy::workspace`].
    pub workspace: Vec<usize>,
    /// For each workspace, the input positions it is packed from; nothing where another step packs it.
    pub packs: Vec<Vec<usize>>,
    /// Its number among the program's steps; stages may run one several times.
    pub number: usize,
    /// Whether sums go on from part to part.
    pub accumulates: bool,
    /// By which strategy a layer runs, where the executor has several.
    pub recurrence: Option<Recurrence>,
    /// How its matrix product runs, where the executor has several ways.
    pub product: Option<Product>,
    /// What becomes of each element of its product, input 0, where that is not the product itself.
    pub epilogue: Option<Expr>,
    /// Positions of inputs that an earlier [`Action::Pack`](super::Action::Pack) has read for it.
    pub gone: Vec<usize>,
}

impl Step {
    /// Values that it reads.
    pub fn reads(&self) -> impl Iterator<Item = usize> + '_ {
        self.inputs.iter().enumerate().filter(|(at, _)| !self.gone.contains(at)).filter_map(|(_, v)| *v)
    }

    /// Values that a workspace is packed from.
    pub fn sources(&self, workspace: usize) -> impl Iterator<Item = usize> + '_ {
        self.packs[workspace].iter().filter_map(|&at| self.inputs[at])
    }
}

/// Operations in order, over values with places.
#[derive(Debug, Clone)]
pub struct Program {
    /// All values.
    pub values: Vec<ProgramValue>,
    /// All operations, in an order in which they can run one after the other.
    pub steps: Vec<Step>,
    /// How they run.
    pub stages: Vec<Stage>,
    /// What is done to hold less.
    pub measures: Measures,
    /// Values given at each run, by name.
    pub inputs: Vec<(String, usize)>,
    /// Values readable after a run, by name.
    pub outputs: Vec<(String, usize)>,
    /// Persistent values and those they take at the end of a run, where that is not already their storage.
    pub copies: Vec<(usize, usize)>,
    /// Persistent values that a run changes.
    pub updated: Vec<usize>,
    /// The scalars that the steps read, in the order in which executors hold them.
    pub scalars: Vec<ScalarSource>,
    /// What integers of inputs must keep.
    pub bounds: Vec<Bound>,
    /// The largest batch.
    pub capacity: Capacity,
    /// What it is compiled for.
    pub target: Target,
    /// Where values live.
    pub placement: Placement,
    /// Inputs that are read where the caller has them.
    pub given: BTreeSet<usize>,
    /// Values that the host's processor packs, for each step.
    pub packs: Vec<Vec<usize>>,
    /// Whether each step's are in one place with those of others, made again for each run.
    pub shares: Vec<bool>,
}

/// Where other programs have a persistent value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// Whether away from the device rather than on it.
    pub away: bool,
    /// Whether one of them changes it.
    pub changed: bool,
}

/// How to compile.
#[derive(Debug, Clone)]
pub struct CompileOptions {
    /// The largest batch.
    pub capacity: Capacity,
    /// Whether every value gets memory of its own; for tests of the planner.
    pub fresh: bool,
    /// The largest number of bytes to hold, by [`Program::memory`]; the cheapest measures that keep it are chosen.
    pub budget: Option<u64>,
    /// What to do to hold less, whatever the budget.
    pub measures: Option<Measures>,
    /// Which strategies layers run by; where none are given, the device's or the fixed table's.
    pub kernels: Option<Kernels>,
    /// Where other programs of the session have persistent values, by name: one that any of them changes has to be in one place.
    pub pins: BTreeMap<String, Pin>,
}

impl CompileOptions {
    /// Of programs for batches up to `capacity`, with no bound on memory.
    pub fn new(capacity: &Capacity) -> Self {
        Self {
            capacity: capacity.clone(),
            fresh: false,
            budget: None,
            measures: None,
            kernels: None,
            pins: BTreeMap::new(),
        }
    }
}

/// The value whose storage `value` uses.
pub fn root(values: &[ProgramValue], mut value: usize) -> usize {
    while let Storage::Of(other) = values[value].storage {
        value = other;
    }
    value
}

impl Program {
    /// Refuses a batch that it has no room for, or a working memory no places.
    pub fn admits(&self, batch: &Batch) -> Result<()> {
        let steps = batch.axes().first().map_or(0, Axis::steps);
        for step in &self.steps {
            match step.op {
                Op::Remember(op) | Op::Recall(op) | Op::RecallPlaces(op) | Op::RecallBackward { memory: op, .. }
                    if steps > op.steps() =>
                {
                    return Err(Error::argument(format!(
                        "working memory: it was made for runs of at most {} steps, got {steps}",
                        op.steps()
                    )));
                }
                _ => {}
            }
        }
        self.capacity.admits(batch)
    }

    /// The value whose storage `value` uses.
    pub fn root(&self, value: usize) -> usize {
        root(&self.values, value)
    }

    /// The scalars of a run, in the program's order.
    pub fn scalar_values(&self, batch: &Batch) -> Result<Vec<f32>> {
        self.scalars
            .iter()
            .map(|source| match source {
                ScalarSource::Named(name) => batch
                    .scalar(name)
                    .ok_or_else(|| Error::argument(format!("program: the batch does not set the scalar `{name}`"))),
                ScalarSource::Size(symbol) => Ok(batch.size(&Dim::Symbol(symbol.clone()))? as f32),
            })
            .collect()
    }

    /// The position of an expression's scalar among [`Self::scalars`].
    pub fn scalar_index(&self, expr: &Expr) -> Option<usize> {
        self.scalars.iter().position(|s| match (s, expr) {
            (ScalarSource::Named(a), Expr::Scalar(b)) => a == b,
            (ScalarSource::Size(a), Expr::Size(b)) => a == b,
            _ => false,
        })
    }

    /// Whether a layer that runs by *sequence* or *grid* has values in several pieces.
    pub(super) fn inside_pieces(&self) -> bool {
        let split = |value: &usize| self.placement.places.get(&self.root(*value)).is_some_and(|p| p.pieces.len() > 1);
        self.stage_steps()
            .filter(|s| matches!(s.recurrence, Some(Recurrence::Sequence { .. } | Recurrence::Grid { .. })))
            .any(|s| s.inputs.iter().chain(&s.outputs).flatten().any(split))
    }

    /// The steps of all stages.
    pub fn stage_steps(&self) -> impl Iterator<Item = &Step> {
        self.stages.iter().flat_map(Stage::steps)
    }
}

impl Target {
    /// Rows and columns of the largest square that matrix units multiply; 0 where they may not.
    pub fn matrix(&self) -> usize {
        let side = self.limits.matrix;
        // A tile of floats and two of halves: see `shaders/common/matrix_tile.wgsl`.
        let fits = 120 * side * side <= self.limits.workgroup;
        if self.precision == Precision::F16Products && fits { side } else { 0 }
    }

    /// The reference executor.
    pub const REFERENCE: Target = Target::host(Executor::Reference);
    /// The CPU executor.
    pub const CPU: Target = Target::host(Executor::Cpu);

    const fn host(executor: Executor) -> Self {
        Self { executor, limits: Limits::HOST, software: false, unified: true, precision: Precision::F32 }
    }
}
