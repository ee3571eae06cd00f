//! How the recurrence of one layer runs on a GPU: the strategies, and what each can carry.

mod members;

use super::batch::Capacity;
use super::products::{Product, ProductShape};
use super::program::{ProgramValue, Step};
use super::strategy::{Broadcast, Executor, QUAD, Target, broadcast, broadcast_rows, fixed, quads};
use crate::config::GATES;
use crate::error::{Error, Result};
use crate::graph::lstm::{LstmOp, backward, forward};
use crate::graph::{Op, Parameter};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

/// Threads of one workgroup: those across units (or columns), and those that share the sum of one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Threads {
    /// Threads across units.
    pub units: usize,
    /// Slices of the product's sum.
    pub slices: usize,
}

impl Threads {
    /// How many there are.
    pub fn count(self) -> usize {
        self.units * self.slices
    }
}

/// Where a workgroup has the recurrent weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Weights {
    /// In the device's memory, read at each step; that is to say in a cache.
    Streamed,
    /// So many rows of them in workgroup memory (vectors of four; forward a row is a quad of rows of U), the rest streamed.
    Held(usize),
    /// In registers.
    Registers,
}

/// The recurrence's strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Recurrence {
    /// A fused dispatch per timestep, whose lanes hand operands to their subgroup.
    Broadcast,
    /// A fused dispatch per timestep, tiled over sequences and units.
    Step {
        /// Most sequences of one workgroup; steps at which few run take fewer.
        rows: usize,
        /// Its threads across units (forward) or columns, four a thread (back), and slices; times groups of sequences.
        threads: Threads,
        /// Whether operands are fetched two turns ahead of their use, which takes three times as much code.
        ahead: bool,
    },
    /// The same by matrix units, of which each multiplies squares of `side`. Only under
    /// [`Precision::F16Products`](super::Precision::F16Products).
    Matrix {
        /// Rows and columns of the largest square that the units multiply.
        side: usize,
    },
    /// A dispatch for many timesteps: a workgroup owns some sequences and all units, and states stay inside.
    Sequence {
        /// Sequences of one workgroup.
        rows: usize,
        /// Its threads.
        threads: Threads,
        /// Where it has the weights.
        weights: Weights,
    },
    /// A dispatch for many timesteps whose workgroups share the units of some sequences, keep their weights in registers and
    /// meet at each step.
    Grid {
        /// Sequences of one workgroup.
        rows: usize,
        /// Sequences that it computes between two barriers of its own.
        pass: usize,
        /// Its threads.
        threads: Threads,
        /// How often it looks whether the others have come before it gives up; what is left then is done by a dispatch that
        /// need not meet.
        patience: u32,
    },
}

impl std::fmt::Display for Recurrence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Broadcast => write!(f, "step, broadcast in subgroups"),
            Self::Step { rows, threads: t, ahead } => {
                let when = if *ahead { ", fetched ahead" } else { "" };
                write!(f, "step, {rows} rows, {} x {} threads{when}", t.units, t.slices)
            }
            Self::Matrix { side } => write!(f, "step, matrix units of {side} x {side}"),
            Self::Sequence { rows, threads: t, weights } => {
                write!(f, "sequence, {rows} rows, {} x {} threads, weights ", t.units, t.slices)?;
                match weights {
                    Weights::Streamed => write!(f, "streamed"),
                    Weights::Held(n) => write!(f, "held to row {n}"),
                    Weights::Registers => write!(f, "in registers"),
                }
            }
            Self::Grid { rows, threads: t, .. } => write!(f, "grid, {rows} rows, {} x {} threads", t.units, t.slices),
        }
    }
}

/// A family of strategies, as a user or a test asks for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Family {
    /// A dispatch per timestep without subgroups.
    Step,
    /// A dispatch per timestep by matrix units, where the precision lets halves be multiplied.
    Matrix,
    /// Many timesteps a dispatch, weights streamed.
    Streamed,
    /// Many timesteps a dispatch, as many weights in workgroup memory as fit.
    Held,
    /// Many timesteps a dispatch, weights in registers.
    Registers,
    /// Many timesteps a dispatch, weights in the registers of several workgroups that meet at each step: only where it is
    /// asked for, and the device has shown that workgroups can meet (`Limits::resident`).
    Grid,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Step, Self::Matrix, Self::Streamed, Self::Held, Self::Registers, Self::Grid];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Matrix => "step-matrix",
            Self::Streamed => "sequence-streamed",
            Self::Held => "sequence-held",
            Self::Registers => "sequence-registers",
            Self::Grid => "grid",
        }
    }
}

impl FromStr for Family {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|f| f.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|f| f.name()).collect();
            Error::argument(format!("strategy: expected one of {}, got `{text}`", names.join(", ")))
        })
    }
}

/// What a choice of strategy depends on. Batches of like sizes share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Layer {
    /// Whether it is the way back.
    pub backward: bool,
    /// H.
    pub hidden: usize,
    /// R: P where h is projected, else H.
    pub output: usize,
    /// D.
    pub directions: usize,
    /// B, rounded up to a power of two.
    pub sequences: usize,
    /// Whether the cell normalises, which only [`Recurrence::Step`] and [`Recurrence::Broadcast`] carry.
    pub normed: bool,
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let way = if self.backward { "forward and back" } else { "forward" };
        write!(f, "B {} H {} R {} D {} {way}", self.sequences, self.hidden, self.output, self.directions)
    }
}

impl Layer {
    /// The layer that `step` runs over batches up to `capacity`; none for other operations.
    pub fn of(step: &Step, values: &[ProgramValue], capacity: &Capacity) -> Option<Self> {
        let (op, weight, is_back): (&LstmOp, _, _) = match &step.op {
            Op::Lstm(op) => (op, forward::parameter(0, Parameter::WeightHh), false),
            Op::LstmBackward(op) => (op, backward::parameter(0, Parameter::WeightHh), true),
            _ => return None,
        };
        let shape = &values[(*step.inputs.get(weight)?)?].shape;
        Some(Self {
            backward: is_back,
            hidden: fixed(shape, 0) / GATES,
            output: fixed(shape, 1),
            directions: op.directions(),
            sequences: capacity.sequences.max(1).next_power_of_two(),
            normed: op.cell.layer_norm.is_some(),
        })
    }

    /// Whether *sequence* can run it: a projection and a normalised cell need all units of a step in the middle of it.
    pub fn stays_inside(&self) -> bool {
        !self.normed && self.output == self.hidden
    }

    /// Vectors of four that one product sums over.
    pub fn depth(&self) -> usize {
        if self.backward { self.hidden } else { quads(self.output) / QUAD }
    }

    /// Vectors of four columns that one product of *step* makes of a sequence: forward those of a unit's gates.
    fn lanes(&self) -> usize {
        if self.backward { quads(self.output) / QUAD } else { self.hidden }
    }

    /// Vectors of four of one row of weights, as [`Weights::Held`] counts rows.
    fn row(&self) -> usize {
        if self.backward { self.output } else { QUAD * self.hidden }
    }

    /// Vectors of the operand of one sequence that *sequence* keeps in workgroup memory: all, so that slices are alike.
    pub fn inside_depth(&self, threads: Threads, weights: Weights) -> usize {
        match weights {
            Weights::Registers => threads.slices * self.register_rows(),
            _ => self.depth().next_multiple_of(threads.slices),
        }
    }

    /// Bytes of workgroup memory that `recurrence` takes for it.
    pub fn workgroup_bytes(&self, recurrence: Recurrence) -> usize {
        // Sums of a thread are vectors forward, numbers backward.
        let sum = if self.backward { 4 } else { 16 };
        let of = |rows: usize, threads: Threads, depth: usize, held: usize| {
            32 * rows * depth + sum * rows * threads.count() + 16 * held.max(1)
        };
        match recurrence {
            // What matrix units need was counted before they were offered.
            Recurrence::Broadcast | Recurrence::Matrix { .. } => 0,
            Recurrence::Step { rows, threads, .. } => 16 * rows * threads.count(),
            Recurrence::Sequence { rows, threads, weights } => {
                let held = if let Weights::Held(n) = weights { n * self.row() } else { 0 };
                of(rows, threads, self.inside_depth(threads, weights), held)
            }
            Recurrence::Grid { pass, threads, .. } => {
                let depth = threads.slices * self.register_rows();
                pass * (16 * depth + sum * threads.units * (threads.slices + threads.slices.div_ceil(8))) + 16
            }
        }
    }

    /// Whether `recurrence` can run it on `target`.
    pub fn admits(&self, recurrence: Recurrence, target: &Target) -> bool {
        let fits = |threads: Threads| {
            threads.count() > 0
                && threads.count() <= target.limits.invocations
                && self.workgroup_bytes(recurrence) <= target.limits.workgroup
        };
        match recurrence {
            Recurrence::Broadcast => broadcast(target) == Broadcast::Subgroup,
            Recurrence::Matrix { side } => side > 0 && side == target.matrix(),
            Recurrence::Step { rows, threads: Threads { units, slices }, .. } => {
                rows.is_power_of_two()
                    && rows <= STEP_ROWS
                    && fits(Threads { units, slices: slices * step_groups(rows)[1] })
            }
            Recurrence::Sequence { rows, threads, weights } => {
                let on_chip = weights != Weights::Registers
                    || (threads.units >= self.hidden && threads.slices * self.register_rows() >= self.depth());
                self.stays_inside() && matches!(rows, 1 | 2 | 4 | 8) && on_chip && fits(threads)
            }
            Recurrence::Grid { rows, pass, threads, .. } => {
                if !matches!(rows, 1 | 2 | 4 | 8) || pass == 0 || threads.count() == 0 {
                    return false;
                }
                let divides = rows.is_multiple_of(pass);
                let on_chip = threads.units > 0 && threads.slices * self.register_rows() >= self.depth();
                let bound = target.limits.storage_bindings >= GRID_BINDINGS;
                self.stays_inside()
                    && divides
                    && on_chip
                    && bound
                    && self.grid_workgroups(rows, threads.units) <= target.limits.resident
                    && fits(threads)
            }
        }
    }

    /// Workgroups of *grid*.
    fn grid_workgroups(&self, rows: usize, units: usize) -> usize {
        self.directions * self.sequences.div_ceil(rows) * self.hidden.div_ceil(units)
    }

    /// Rows of [`Self::depth`] whose weights one thread keeps in registers: 64 registers.
    fn register_rows(&self) -> usize {
        if self.backward { 16 } else { 4 }
    }
}

impl Recurrence {
    /// What a layer of many units runs by on `target`, for estimates of what a batch costs there.
    pub(super) fn a_dispatch_a_step(target: &Target) -> Self {
        match (target.matrix(), broadcast(target)) {
            (0, Broadcast::Subgroup) => Self::Broadcast,
            (0, Broadcast::Memory) => Self::Step { rows: 8, threads: Threads { units: 32, slices: 8 }, ahead: false },
            (side, _) => Self::Matrix { side },
        }
    }

    /// Sequences of one workgroup, where a dispatch runs a timestep at which so many run; those past the last are computed for
    /// nothing.
    pub fn step_tile(self, running: usize) -> usize {
        match self {
            Self::Broadcast => broadcast_rows(running),
            Self::Matrix { side } => 2 * side,
            Self::Step { rows, .. } => match running {
                0..=1 => 1,
                2..=8 => rows.min(8),
                _ => rows,
            },
            Self::Sequence { rows, .. } | Self::Grid { rows, .. } => rows,
        }
    }

    /// All tiles that steps of up to `sequences` sequences may take: a step at which few still run takes a small one. A row's
    /// bits are the same in each.
    pub fn step_tiles(self, sequences: usize) -> BTreeSet<usize> {
        (1..=sequences.clamp(1, 16)).map(|running| self.step_tile(running)).collect()
    }
}

/// Threads of a workgroup of *grid*: as many as have a hundred registers, of 64 Ki.
pub const REGISTER_THREADS: usize = 640;

/// Storage bindings of the kernels of *grid*.
const GRID_BINDINGS: usize = 10;

/// Looks that a workgroup of *grid* waits for others: about a tenth of a second. A meeting takes microseconds.
pub const PATIENCE: u32 = 1 << 17;

/// Looks on a software GPU, where the system may take a workgroup's thread away in the middle of a step.
pub const SOFTWARE_PATIENCE: u32 = 1 << 21;

/// Most sequences of a workgroup of *step*.
const STEP_ROWS: usize = 64;

/// Sequences of one thread of *step*, and groups of them in its workgroup, where this has so many.
pub fn step_groups(rows: usize) -> [usize; 2] {
    let own = rows.min(8);
    [own, rows / own]
}

/// Which strategies layers run by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernels {
    /// Asked for of every layer that can be run so.
    pub family: Option<Family>,
    /// Asked for of every matrix product.
    pub product: Option<Product>,
    /// Picked by measurement; they go before the table.
    #[serde(with = "pairs")]
    pub picks: BTreeMap<Layer, Recurrence>,
    /// The same of products, by their buckets.
    #[serde(default, with = "pairs")]
    pub products: BTreeMap<ProductShape, Product>,
}

impl Kernels {
    /// Whether a layer may be run by *grid*, so that the device has to show that it can.
    pub fn meet(&self) -> bool {
        self.family == Some(Family::Grid) || self.picks.values().any(|r| matches!(r, Recurrence::Grid { .. }))
    }

    /// The strategy of `layer` on `target`.
    pub fn choose(&self, layer: &Layer, target: &Target) -> Result<Option<Recurrence>> {
        if target.executor != Executor::Gpu {
            return Ok(None);
        }
        let asked = self.family.and_then(|family| layer.member(family, target));
        let picked = || self.picks.get(layer).copied().filter(|r| layer.admits(*r, target));
        match asked.or_else(picked) {
            Some(recurrence) => Ok(Some(recurrence)),
            None => layer.by_table(target).map(Some),
        }
    }

    /// How `shape` is computed on `target`.
    pub fn choose_product(&self, shape: &ProductShape, target: &Target) -> Option<Product> {
        let table = shape.by_table(target)?;
        let can = |p: &Product| p.runs_on(target);
        let picked = || self.products.get(&shape.bucket()).copied().filter(can);
        self.product.filter(can).or_else(picked).map(|p| shape.fit(p, target)).or(Some(table))
    }
}

/// Maps as lists of pairs: keys of JSON's own maps are texts.
mod pairs {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::BTreeMap;

    pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}
