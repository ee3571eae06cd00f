//! How matrix products run on a GPU: tiles, and which a product gets.

use super::batch::Capacity;
use super::program::{ProgramValue, Step};
use super::strategy::{Broadcast, Executor, Target, broadcast};
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

    /// Workgroups that a product of so many rows and columns takes.
    pub fn groups(self, rows: usize, columns: usize) -> usize {
        let [down, across] = self.sizes();
        rows.div_ceil(down) * columns.div_ceil(across)
    }
}

/// How a product runs. An element of its result has the same bits in each tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Product {
    /// Lanes hand operands to their subgroup.
    Broadcast,
    /// Operands pass through workgroup memory.
    Tiled(Tile),
}

impl std::fmt::Display for Product {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Broadcast => write!(f, "broadcast in subgroups"),
            Self::Tiled(tile) => write!(f, "tiles of {} x {}", tile.sizes()[0], tile.sizes()[1]),
        }
    }
}

/// What the choice of a tile depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    /// The fixed table: the largest tile that gives every core of a large GPU a workgroup or two, and whose last tiles are
    /// not mostly empty.
    pub fn by_table(&self, target: &Target) -> Option<Product> {
        const ENOUGH: usize = 256;
        if target.executor != Executor::Gpu {
            return None;
        }
        if broadcast(target) == Broadcast::Subgroup {
            return Some(Product::Broadcast);
        }
        let groups = |t: &Tile| t.groups(self.rows, self.columns);
        let computed = |t: &Tile| groups(t) * t.sizes()[0] * t.sizes()[1];
        let least = Tile::ALL.iter().map(computed).min().unwrap_or(0);
        let fits = |t: &Tile| groups(t) >= ENOUGH && computed(t) <= least + least / 8;
        Some(Product::Tiled(Tile::ALL.into_iter().find(fits).unwrap_or(Tile::ALL[3])))
    }
}
