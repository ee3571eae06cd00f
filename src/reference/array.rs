//! Values of a run as matrices of logical rows, and the packing at the executor's edge.

use crate::error::{Error, Result};
use crate::graph::{Dim, Shape, Symbol};
use crate::params::DType;
use crate::scheduler::{Batch, Program, Step};
use ndarray::Array2;

/// One row that exists: past a sequence's end there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    /// Its place among the logical rows: t·B + b of a sequence value.
    pub at: usize,
    /// What random numbers are drawn for: the sequence's sample id, or the row's number where rows are no sequences.
    pub sample: u32,
    /// The absolute time, 0 where rows are no timesteps.
    pub time: u32,
}

/// The outermost size of a value in one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rows {
    /// Logical rows: T·B of a sequence value.
    pub count: usize,
    /// The rows that exist, in packed order.
    pub live: Vec<Row>,
}

impl Rows {
    pub fn of(shape: &Shape, batch: &Batch) -> Result<Self> {
        let Some(dim) = shape.rows() else {
            return Ok(Self { count: 1, live: vec![Row { at: 0, sample: 0, time: 0 }] });
        };
        let mut live = Vec::new();
        let count = match dim {
            Dim::Symbol(Symbol::Rows(axis)) => {
                let axis = batch.axis(*axis)?;
                for t in 0..axis.steps() {
                    let time = axis.start.wrapping_add(t as u32);
                    live.extend((0..axis.rows_at(t)).map(|b| {
                        let sample = batch.sample(axis, b);
                        Row { at: t * batch.sequences() + b, sample, time }
                    }));
                }
                axis.steps() * batch.sequences()
            }
            Dim::Symbol(Symbol::Batch) => {
                live.extend(batch.samples().iter().enumerate().map(|(at, &sample)| Row { at, sample, time: 0 }));
                batch.sequences()
            }
            other => {
                let count = batch.size(other)?;
                live.extend((0..count).map(|at| Row { at, sample: at as u32, time: 0 }));
                count
            }
        };
        Ok(Self { count, live })
    }
}

/// Values in one row of `shape`.
pub(super) fn columns(shape: &Shape, batch: &Batch) -> Result<usize> {
    Ok(batch.resolve(shape)?.iter().skip(1).product())
}

/// A value: logical rows by all further sizes flattened.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Array<R> {
    /// Of [`DType::F32`], in the precision of the executor.
    Float(Array2<R>),
    /// Of [`DType::U32`].
    Index(Array2<u32>),
}

impl<R> From<Array2<R>> for Array<R> {
    fn from(x: Array2<R>) -> Self {
        Self::Float(x)
    }
}

impl<R> Array<R> {
    pub fn dtype(&self) -> DType {
        match self {
            Self::Float(_) => DType::F32,
            Self::Index(_) => DType::U32,
        }
    }

    pub fn dim(&self) -> (usize, usize) {
        match self {
            Self::Float(x) => x.dim(),
            Self::Index(x) => x.dim(),
        }
    }
}

/// Packed values `[N, *]` as logical rows, zero past each sequence's end. Values of other shapes stay as they are.
pub(super) fn unpack<V: Copy>(packed: &[V], zero: V, shape: &Shape, batch: &Batch) -> Result<Array2<V>> {
    let (rows, columns) = (Rows::of(shape, batch)?, columns(shape, batch)?);
    if packed.len() != rows.live.len() * columns {
        return Err(Error::shape(format!(
            "expected {} x {columns} values of {shape}, got {}",
            rows.live.len(),
            packed.len()
        )));
    }
    let mut logical = Array2::from_elem((rows.count, columns), zero);
    for (from, row) in rows.live.iter().enumerate() {
        for c in 0..columns {
            logical[[row.at, c]] = packed[from * columns + c];
        }
    }
    Ok(logical)
}

/// The inverse of [`unpack`].
pub(super) fn pack<V: Copy>(logical: &Array2<V>, shape: &Shape, batch: &Batch) -> Result<Vec<V>> {
    let (rows, columns) = (Rows::of(shape, batch)?, columns(shape, batch)?);
    if logical.dim() != (rows.count, columns) {
        return Err(Error::internal(format!(
            "a value of {shape} has {:?} logical rows and columns, expected {:?}",
            logical.dim(),
            (rows.count, columns)
        )));
    }
    Ok(rows.live.iter().flat_map(|row| logical.row(row.at).to_vec()).collect())
}

/// One step with all that its operation may read.
pub(super) struct Call<'a, R> {
    pub program: &'a Program,
    pub batch: &'a Batch,
    pub step: &'a Step,
    pub values: &'a [Option<Array<R>>],
}

impl<R> Call<'_, R> {
    fn id(&self, at: usize) -> Option<usize> {
        self.step.inputs.get(at).copied().flatten()
    }

    fn required(&self, at: usize) -> Result<usize> {
        self.id(at).ok_or_else(|| Error::internal(format!("input {at} is missing")))
    }

    /// The shape of the input at `at`.
    pub fn shape(&self, at: usize) -> Result<&Shape> {
        Ok(&self.program.values[self.required(at)?].shape)
    }

    /// The rows of the input at `at` that exist.
    pub fn rows(&self, at: usize) -> Result<Vec<Row>> {
        Ok(Rows::of(self.shape(at)?, self.batch)?.live)
    }

    /// The input at `at`, of either type.
    pub fn any(&self, at: usize) -> Result<&Array<R>> {
        let value = self.required(at)?;
        self.values[value].as_ref().ok_or_else(|| {
            Error::internal(format!("`{}` is read before it is written", self.program.values[value].name))
        })
    }

    /// The floats of the input at `at`.
    pub fn float(&self, at: usize) -> Result<&Array2<R>> {
        match self.any(at)? {
            Array::Float(x) => Ok(x),
            Array::Index(_) => Err(Error::internal(format!("input {at} holds integers, expected floats"))),
        }
    }

    /// The floats of the optional input at `at`.
    pub fn maybe(&self, at: usize) -> Result<Option<&Array2<R>>> {
        self.id(at).map(|_| self.float(at)).transpose()
    }

    /// The integers of the input at `at`.
    pub fn index(&self, at: usize) -> Result<&Array2<u32>> {
        match self.any(at)? {
            Array::Index(x) => Ok(x),
            Array::Float(_) => Err(Error::internal(format!("input {at} holds floats, expected integers"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::N;

    #[test]
    fn packed_rows_go_to_their_steps_and_come_back() {
        let batch = Batch::ragged(&[2, 0, 3]).unwrap().with_samples(&[20, 0, 30]).unwrap().starting_at(5);
        let shape = Shape::from([N, Dim::Fixed(2)]);
        let packed: Vec<u32> = (1..=10).collect();
        let logical = unpack(&packed, 0, &shape, &batch).unwrap();
        let wanted = [[1, 2], [3, 4], [0, 0], [5, 6], [7, 8], [0, 0], [9, 10], [0, 0], [0, 0]];
        assert_eq!(logical, ndarray::arr2(&wanted));
        assert_eq!(pack(&logical, &shape, &batch).unwrap(), packed);
        assert_eq!(Rows::of(&shape, &batch).unwrap().live[3], Row { at: 4, sample: 20, time: 6 });
        assert!(unpack(&packed[1..], 0, &shape, &batch).is_err());
    }
}
