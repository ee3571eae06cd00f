//! How matrix products run on a GPU: tiles, and which a product gets.

use super::batch::Capacity;
use super::program::{ProgramValue, Step};
use super::strategy::{Broadcast, CORES, Executor, Target, broadcast};
use crate::error::{Error, Result};
use crate::graph::lstm::forward;
use crate::graph::{LstmPart, Op};
use serde::{Deserialize, Serialize};

/// The tile of a product whose operands pass through workgroup memory: 16 x 16 threads, each with so many rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tile {
    /// Rows of a thread: 4 or 8.
    pub rows: usize,
    /// Columns of a thread: 4 or 8.
    pub columns: usize,
}

impl Tile {
    /// All that there are, largest first.
    pub const ALL: [Self; 4] = [
        Self { rows: 8, columns: 8 },
        Self { rows: 8, columns: 4 },
        Self { rows: 4, columns: 8 },
        Self { rows: 4, columns: 4 },
    ];

    /// Rows and columns of one workgroup.
    pub fn sizes(self) -> [usize; 2] {
        [16 * self.rows, 16 * self.columns]
    }
}

/// Workgroups that a product of so many rows and columns takes, each of which computes `down` x `across` elements.
fn groups([down, across]: [usize; 2], rows: usize, columns: usize) -> usize {
    rows.div_ceil(down) * columns.div_ceil(across)
}

/// Workgroups that give every core of a large GPU one or two. An estimate.
const ENOUGH: usize = 256;

/// Parts of a chunk; a chunk of 64 timesteps has at least as many tiles of rows from two sequences on.
const MOST_PARTS: usize = 16;

/// Chunks of one dispatch whose parts wait to be added up, for a sum of `rows` x `columns` values; 0 where not even those of one
/// chunk fit a binding of `target`.
pub fn chunks_together(target: &Target, tile: [usize; 2], parts: usize, [rows, columns]: [usize; 2]) -> usize {
    let enough = (ENOUGH / (groups(tile, rows, columns) * parts).max(1)).max(1);
    let fit = target.limits.binding / (4 * parts * rows * columns).max(1) as u64;
    enough.min(usize::try_from(fit).unwrap_or(usize::MAX))
}

/// How a product runs. An element of its result has the same bits in each tile, and other bits in other numbers of parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Product {
    /// Lanes hand operands to their subgroup.
    Broadcast,
    /// Operands pass through workgroup memory.
    Tiled(Tile),
    /// The same of a sum over rows, where each chunk of them is shared by so many workgroups.
    Split(Tile, usize),
    /// Operands, rounded to 16 bits, are multiplied by matrix units. Only under
    /// [`Precision::F16Products`](super::Precision::F16Products).
    Matrix {
        /// Rows and columns of the largest square that the units multiply.
        side: usize,
        /// Workgroups that share each chunk of a sum over rows.
        parts: usize,
    },
}

impl Product {
    /// Rows and columns of one workgroup; none where lanes, not workgroups, have tiles.
    pub fn tile(&self) -> Option<[usize; 2]> {
        match self {
            Self::Broadcast => None,
            Self::Tiled(tile) | Self::Split(tile, _) => Some(tile.sizes()),
            Self::Matrix { side, .. } => Some([4 * side; 2]),
        }
    }

    /// Workgroups that share each chunk of a sum over rows.
    pub fn parts(&self) -> usize {
        match self {
            Self::Split(_, parts) | Self::Matrix { parts, .. } => *parts,
            _ => 1,
        }
    }

    /// Whether kernels of `target` can run it.
    pub fn runs_on(&self, target: &Target) -> bool {
        let here = match self {
            Self::Broadcast => broadcast(target) == Broadcast::Subgroup,
            Self::Matrix { side, .. } => *side > 0 && *side == target.matrix(),
            _ => true,
        };
        here && self.is_known()
    }

    /// Whether kernels know it, as a file that says otherwise may not.
    fn is_known(&self) -> bool {
        match self {
            Self::Broadcast => true,
            Self::Tiled(tile) => Tile::ALL.contains(tile),
            Self::Split(tile, parts) => Tile::ALL.contains(tile) && (1..=ENOUGH).contains(parts),
            Self::Matrix { side, parts } => matches!(side, 8 | 16) && (1..=ENOUGH).contains(parts),
        }
    }
}

impl std::fmt::Display for Product {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Broadcast => write!(f, "broadcast in subgroups"),
            Self::Tiled(tile) => write!(f, "tiles of {} x {}", tile.sizes()[0], tile.sizes()[1]),
            Self::Split(tile, parts) => write!(f, "tiles of {} x {}, {parts} parts", tile.sizes()[0], tile.sizes()[1]),
            Self::Matrix { side, parts: 1 } => write!(f, "matrix units of {side} x {side}"),
            Self::Matrix { side, parts } => write!(f, "matrix units of {side} x {side}, {parts} parts"),
        }
    }
}

/// What the choice of a tile depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProductShape {
    /// Whether it sums over the rows of both operands, as weight gradients do.
    pub gradient: bool,
    /// Rows of the result, in the largest batch.
    pub rows: usize,
    /// Columns of the result.
    pub columns: usize,
    /// What is summed over.
    pub inner: usize,
}

impl std::fmt::Display for ProductShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { gradient, rows, columns, inner } = self;
        let what = if *gradient { "gradient of a weight" } else { "product" };
        write!(f, "{what}, {rows} x {columns}, over {inner}")
    }
}

impl ProductShape {
    /// The product that `step` computes over batches up to `capacity`; none for other operations.
    pub fn of(step: &Step, values: &[ProgramValue], capacity: &Capacity) -> Result<Option<Self>> {
        let row = |value: Option<Option<usize>>| {
            let value = value.flatten().ok_or_else(|| Error::internal("a product without an operand"))?;
            let shape = &values[value].shape;
            let rows = shape.rows().map_or(Ok(1), |rows| capacity.size(rows))?;
            Ok((rows, shape.row_len().unwrap_or(0)))
        };
        let input = |at: usize| row(step.inputs.get(at).copied());
        let result = |at: usize| row(step.outputs.get(at).copied());
        Ok(match &step.op {
            Op::Linear | Op::MatMul | Op::LstmInputGradient { .. } => {
                let ((rows, inner), columns) = (input(0)?, result(0)?.1);
                Some(Self { gradient: false, rows, columns, inner })
            }
            Op::Lstm(_) => {
                let ((rows, inner), columns) = (input(forward::X)?, result(forward::GATES)?.1);
                Some(Self { gradient: false, rows, columns, inner })
            }
            Op::WeightGradient => {
                let ((inner, rows), columns) = (input(0)?, input(1)?.1);
                Some(Self { gradient: true, rows, columns, inner })
            }
            Op::LstmWeightGradient { part: LstmPart::Bias | LstmPart::Peepholes, .. } => None,
            Op::LstmWeightGradient { part, lstm, .. } => {
                let d = lstm.directions();
                let ((inner, rows), columns) = (input(0)?, input(1)?.1);
                let columns = if *part == LstmPart::InputWeights { columns } else { columns / d };
                Some(Self { gradient: true, rows: rows / d, columns, inner })
            }
            _ => None,
        })
    }

    /// Cycles of a large GPU for each element of the inner dimension, or of a part of it, by an estimate: its cores take tiles in
    /// turns. Threads of few elements wait for workgroup memory, from which 8 x 8 read a vector for every 16 multiply-adds and
    /// 4 x 4 one for every 8.
    fn cycles(&self, tile: Tile) -> usize {
        let parts = if self.gradient { self.parts(tile.sizes()) } else { 1 };
        let groups = groups(tile.sizes(), self.rows, self.columns) * parts;
        let each = match [tile.rows, tile.columns] {
            [8, 8] => 128,
            [4, 4] => 64,
            _ => 90,
        };
        groups.div_ceil(CORES) * each * MOST_PARTS / parts
    }

    /// The fixed table: the tile that cores are done with first, the larger of two alike.
    pub fn by_table(&self, target: &Target) -> Option<Product> {
        if target.executor != Executor::Gpu {
            return None;
        }
        if target.matrix() > 0 {
            let side = target.matrix();
            return Some(self.fit(Product::Matrix { side, parts: self.parts([4 * side; 2]) }, target));
        }
        if broadcast(target) == Broadcast::Subgroup {
            return Some(Product::Broadcast);
        }
        let tile = Tile::ALL.into_iter().min_by_key(|t| self.cycles(*t)).unwrap_or(Tile::ALL[3]);
        Some(self.fit(Product::Split(tile, self.parts(tile.sizes())), target))
    }

    /// Workgroups that share a chunk where each computes such a tile. Of the result alone, not of how many rows there are: so a
    /// sum has the same bits in any cut.
    fn parts(&self, tile: [usize; 2]) -> usize {
        let groups = groups(tile, self.rows, self.columns).max(1);
        // Turns that cores take, and what it costs to add up.
        let cost = |parts: &usize| MOST_PARTS * (groups * parts).div_ceil(CORES) * 16 / parts + groups * parts / 16;
        let all = std::iter::successors(Some(1), |p| (*p < MOST_PARTS).then_some(p * 2));
        all.min_by_key(cost).unwrap_or(1)
    }

    /// The shape that stands for all of like sizes: what depends on the batch is rounded up to a power of two.
    pub fn bucket(&self) -> Self {
        match self.gradient {
            true => Self { inner: self.inner.max(1).next_power_of_two(), ..*self },
            false => Self { rows: self.rows.max(1).next_power_of_two(), ..*self },
        }
    }

    /// What may be fastest: the table's choice first, then every other tile.
    pub fn candidates(&self, target: &Target) -> Vec<Product> {
        let mut all: Vec<Product> = self.by_table(target).into_iter().collect();
        for tile in Tile::ALL {
            let candidate = self.fit(Product::Split(tile, self.parts(tile.sizes())), target);
            if !all.contains(&candidate) {
                all.push(candidate);
            }
        }
        all
    }

    /// `product`, or without parts where this has none or no room for them.
    pub fn fit(&self, product: Product, target: &Target) -> Product {
        let parts = product.parts();
        let whole = |tile: [usize; 2]| {
            !self.gradient || parts == 1 || chunks_together(target, tile, parts, [self.rows, self.columns]) == 0
        };
        match product {
            Product::Split(tile, _) if whole(tile.sizes()) => Product::Tiled(tile),
            Product::Matrix { side, .. } if whole([4 * side; 2]) => Product::Matrix { side, parts: 1 },
            other => other,
        }
    }
}
