//! Matrices that are too large for one binding: cut into slabs of rows, with the operations that read or make them.
//!
//! A slab of what a session keeps is a part of the same buffer, or of the same value away from the device. A product with a
//! matrix in slabs gives its columns slab by slab, or is a sum over slabs; what is computed element by element is computed
//! slab by slab.
//!
//! A sum over slabs has other bits than a product with the whole.

use super::program::{ProgramValue, Slab, Step, Storage};
use super::strategy::{Limits, quads};
use crate::error::{Error, Result};
use crate::graph::{Broadcast, Dim, Expr, Op, Over, Shape, broadcast};
use crate::params::DType;
use std::collections::BTreeMap;

/// A slab's first row lies at a multiple of what devices align bindings to, whatever a row takes.
const ALIGNED_ROWS: usize = 64;

/// What is cut, in place: values, steps, and pairs of persistent values and what they take after a run. `kept` are values that
/// a run is given, or that are read after it.
pub(super) struct Slabs<'a> {
    pub values: &'a mut Vec<ProgramValue>,
    pub steps: &'a mut Vec<Step>,
    pub copies: &'a mut Vec<(usize, usize)>,
    pub updated: &'a mut Vec<usize>,
    pub kept: &'a [usize],
}

impl Slabs<'_> {
    /// Cuts every matrix that is too large for a binding under `limits`.
    pub fn cut(mut self, limits: &Limits) -> Result<()> {
        let limit = limits.binding.min(limits.buffer);
        let all = self.find(limit)?;
        if all.is_empty() {
            return Ok(());
        }
        if let Some(&value) = self.kept.iter().find(|v| all.contains_key(v)) {
            return Err(too_large(&self.values[value], limit, "a run cannot be given it, nor give it"));
        }
        let mut written =
            Written { values: self.values, steps: Vec::new(), columns: BTreeMap::new(), all: &all, limit };
        for step in std::mem::take(self.steps) {
            written.step(step)?;
        }
        *self.steps = written.steps;
        let slabs = |v: usize| all.get(&v).cloned().unwrap_or_else(|| vec![v]);
        let copies = self.copies.iter().flat_map(|&(to, from)| slabs(to).into_iter().zip(slabs(from)));
        (*self.copies, *self.updated) = (copies.collect(), self.updated.iter().flat_map(|&v| slabs(v)).collect());
        self.steps.iter_mut().enumerate().for_each(|(number, step)| step.number = number);
        Ok(())
    }

    /// The slabs of each matrix that is too large. Those of as many rows are cut alike.
    fn find(&mut self, limit: u64) -> Result<BTreeMap<usize, Vec<usize>>> {
        let (mut large, mut rows_of) = (Vec::new(), BTreeMap::new());
        for (at, value) in self.values.iter().enumerate() {
            let Some(len) = value.shape.fixed_len() else { continue };
            // As it is packed, columns by fours.
            let (rows, columns) = match value.shape.0.as_slice() {
                [Dim::Fixed(rows), Dim::Fixed(columns)] if value.dtype == DType::F32 => (*rows, *columns),
                _ if 4 * len as u64 > limit => return Err(too_large(value, limit, "only matrices are cut")),
                _ => continue,
            };
            let row = 4 * quads(columns) as u64;
            if rows as u64 * row <= limit {
                continue;
            }
            let most = (limit / row) as usize / ALIGNED_ROWS * ALIGNED_ROWS;
            if most == 0 {
                return Err(too_large(value, limit, &format!("{ALIGNED_ROWS} of its rows do not fit")));
            }
            large.push((at, rows));
            let least = rows_of.entry(rows).or_insert(most);
            *least = most.min(*least);
        }
        let mut all = BTreeMap::new();
        for (at, rows) in large {
            let whole = self.values[at].clone();
            // As even as they can be.
            let each = rows.div_ceil(rows.div_ceil(rows_of[&rows])).next_multiple_of(ALIGNED_ROWS);
            let slabs = (0..rows).step_by(each).map(|first| {
                let here = each.min(rows - first);
                let shape = Shape(vec![Dim::Fixed(here), whole.shape.0[1].clone()]);
                let slab = ProgramValue { shape, slab: Some(Slab { first, of: rows }), ..whole.clone() };
                // Its first slab is in the place of the whole.
                if first == 0 {
                    self.values[at] = slab;
                    return at;
                }
                self.values.push(slab);
                self.values.len() - 1
            });
            all.insert(at, slabs.collect());
        }
        Ok(all)
    }
}

fn too_large(value: &ProgramValue, limit: u64, why: &str) -> Error {
    let rows = value.slab.map_or(1, |slab| slab.of);
    let columns = if value.slab.is_some() { value.shape.row_len() } else { value.shape.fixed_len() };
    let (name, bytes) = (&value.name, 4 * rows * columns.unwrap_or(0));
    Error::budget(format!(
        "`{name}`: its values take {bytes} bytes, the device allows {limit} in one binding, and {why}"
    ))
}

/// Steps as they are written anew.
struct Written<'a> {
    values: &'a mut Vec<ProgramValue>,
    steps: Vec<Step>,
    /// Columns of a value, by the value and the first column.
    columns: BTreeMap<(usize, usize), usize>,
    all: &'a BTreeMap<usize, Vec<usize>>,
    limit: u64,
}

impl Written<'_> {
    fn slabs(&self, value: Option<usize>) -> Option<&[usize]> {
        self.all.get(&value?).map(Vec::as_slice)
    }

    fn rows(&self, slab: usize) -> (usize, usize) {
        let first = self.values[slab].slab.map_or(0, |slab| slab.first);
        (first, if let Some(Dim::Fixed(rows)) = self.values[slab].shape.rows() { *rows } else { 0 })
    }

    fn step(&mut self, step: Step) -> Result<()> {
        let large = |v: &&usize| self.all.contains_key(v);
        let Some(&matrix) = step.inputs.iter().chain(&step.outputs).flatten().find(large) else {
            self.steps.push(step);
            return Ok(());
        };
        let slabs = self.all[&matrix].clone();
        let at = |at: usize| step.inputs.get(at).copied().flatten();
        let (first, second, result) = (at(0), at(1), step.outputs.first().copied().flatten());
        match (&step.op, result) {
            (Op::Embedding, Some(y)) if first == Some(matrix) => {
                let parts = slabs.iter().map(|&slab| self.add(&step, vec![Some(slab), second], y)).collect();
                self.sum(&step, parts, y);
            }
            (Op::Linear, Some(y)) if second == Some(matrix) && self.slabs(first).is_none() => {
                let parts: Vec<usize> = slabs.iter().map(|&slab| self.product(&step, first, slab, y)).collect();
                let (parts, bias) = (parts.into_iter().map(Some).collect(), at(2));
                let side_by_side = if bias.is_some() { self.like(y, None) } else { y };
                self.push(&step, Op::Concat, parts, side_by_side);
                if bias.is_some() {
                    let exprs = vec![Expr::Input(0) + Expr::Input(1)];
                    self.push(&step, Op::Elementwise { exprs }, vec![Some(side_by_side), bias], y);
                }
            }
            (Op::MatMul, Some(y)) if second == Some(matrix) && self.slabs(first).is_none() => {
                let mut parts = Vec::new();
                for &slab in &slabs {
                    let columns = self.columns(&step, first, slab)?;
                    parts.push(self.add(&step, vec![Some(columns), Some(slab)], y));
                }
                self.sum(&step, parts, y);
            }
            (Op::WeightGradient, Some(dw)) if dw == matrix && self.slabs(first).or(self.slabs(second)).is_none() => {
                for &slab in &slabs {
                    let columns = self.columns(&step, first, slab)?;
                    self.push(&step, step.op.clone(), vec![Some(columns), second], slab);
                }
            }
            (Op::EmbeddingBackward { .. }, Some(dtable)) if dtable == matrix => {
                for &slab in &slabs {
                    self.push(&step, step.op.clone(), step.inputs.clone(), slab);
                }
            }
            (Op::Scatter, Some(y)) if first == Some(matrix) && self.slabs(second).or(self.slabs(at(2))).is_none() => {
                let tables = self.slabs(Some(y)).map(<[usize]>::to_vec).unwrap_or_default();
                for (&slab, table) in slabs.iter().zip(tables) {
                    self.push(&step, Op::Scatter, vec![Some(slab), second, at(2)], table);
                }
            }
            (Op::Reduce { over: Over::All, .. }, Some(y)) => {
                let slabs =
                    |v: &Option<usize>| self.slabs(*v).map_or(vec![*v], |s| s.iter().copied().map(Some).collect());
                let inputs = step.inputs.iter().flat_map(slabs).collect();
                self.push(&step, step.op.clone(), inputs, y);
            }
            (Op::Elementwise { .. }, _) => self.elementwise(&step, &slabs)?,
            _ => {
                let why = format!("{} cannot take it in parts", step.op.name());
                return Err(too_large(&self.values[matrix], self.limit, &why));
            }
        }
        Ok(())
    }

    /// The same expressions for each slab.
    fn elementwise(&mut self, step: &Step, slabs: &[usize]) -> Result<()> {
        let whole = |v: &usize| self.all.get(v).is_none_or(|s| s.len() != slabs.len());
        if let Some(&value) = step.outputs.iter().flatten().find(|v| whole(v)) {
            return Err(Error::internal(format!("`{}` is not in slabs", self.values[value].name)));
        }
        for (number, &slab) in slabs.iter().enumerate() {
            let shape = self.values[slab].shape.clone();
            let part = |v: usize| self.all.get(&v).map_or(v, |slabs| slabs[number]);
            let mut inputs = step.inputs.clone();
            for input in inputs.iter_mut().flatten() {
                *input = part(*input);
                let spread = broadcast(&shape, &self.values[*input].shape);
                if !matches!(spread, Some(Broadcast::Full | Broadcast::Row | Broadcast::Scalar)) {
                    let why = format!("`{}` is not cut with it", self.values[*input].name);
                    return Err(too_large(&self.values[slab], self.limit, &why));
                }
            }
            let outputs = step.outputs.iter().map(|v| v.map(part)).collect();
            self.steps.push(Step { inputs, outputs, ..step.clone() });
        }
        Ok(())
    }

    /// x and a slab of a matrix multiplied: columns of `y`.
    fn product(&mut self, step: &Step, x: Option<usize>, slab: usize, y: usize) -> usize {
        let columns = self.like(y, Some(self.rows(slab).1));
        self.push(step, step.op.clone(), vec![x, Some(slab), None], columns);
        columns
    }

    /// The columns of `value` that belong to the rows of `slab`.
    fn columns(&mut self, step: &Step, value: Option<usize>, slab: usize) -> Result<usize> {
        let value = value.ok_or_else(|| Error::internal("a product without an operand"))?;
        let (first, count) = self.rows(slab);
        if let Some(&known) = self.columns.get(&(value, first)) {
            return Ok(known);
        }
        let columns = self.like(value, Some(count));
        self.push(step, Op::Slice { first, count }, vec![Some(value)], columns);
        self.columns.insert((value, first), columns);
        Ok(columns)
    }

    /// A step like `step` over `inputs`, which gives a value like `y`.
    fn add(&mut self, step: &Step, inputs: Vec<Option<usize>>, y: usize) -> usize {
        let value = self.like(y, None);
        self.push(step, step.op.clone(), inputs, value);
        value
    }

    /// `y` as the sum of `parts`, in their order.
    fn sum(&mut self, step: &Step, parts: Vec<usize>, y: usize) {
        let mut sum = parts[0];
        for (at, &part) in parts.iter().enumerate().skip(1) {
            let to = if at + 1 == parts.len() { y } else { self.like(y, None) };
            let exprs = vec![Expr::Input(0) + Expr::Input(1)];
            self.push(step, Op::Elementwise { exprs }, vec![Some(sum), Some(part)], to);
            sum = to;
        }
    }

    /// A value like `like`, with so many columns.
    fn like(&mut self, like: usize, columns: Option<usize>) -> usize {
        let mut shape = self.values[like].shape.clone();
        if let (Some(columns), Some(last)) = (columns, shape.0.last_mut()) {
            *last = Dim::Fixed(columns);
        }
        let name = format!("{} (slab)", self.values[like].name);
        self.values.push(ProgramValue { name, shape, storage: Storage::Own, ..self.values[like].clone() });
        self.values.len() - 1
    }

    fn push(&mut self, step: &Step, op: Op, inputs: Vec<Option<usize>>, output: usize) {
        self.steps.push(Step { op, inputs, outputs: vec![Some(output)], ..step.clone() });
    }
}
