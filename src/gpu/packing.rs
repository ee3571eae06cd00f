//! The order in which kernels read weights: where each element goes, and the host's way of putting it there.

use super::kernels::input;
use super::values::Values;
use crate::error::{Error, Result};
use crate::graph::lstm::{PARAMETERS, backward, forward};
use crate::graph::{Op, Parameter};
use crate::scheduler::Step;
use crate::scheduler::strategy::{NORM_VALUES, in_quads, quads};

/// Rows that are packed side by side where they lie below each other in the source: what a line of a cache holds.
const TILE: usize = 16;

/// Where a source's elements go: three dimensions, the last two of them in a row.
pub(super) struct Map {
    pub sizes: [usize; 3],
    pub limits: [usize; 3],
    pub strides: [usize; 3],
    /// Where the first element goes.
    pub first: usize,
    /// From one of the first dimension to the next in the destination.
    pub stride_to: usize,
}

impl Map {
    /// A map that fills the destination without gaps from `first` on.
    fn dense(sizes: [usize; 3], limits: [usize; 3], strides: [usize; 3], first: usize) -> Self {
        Self { sizes, limits, strides, first, stride_to: sizes[1] * sizes[2] }
    }
}

/// The number of values of a weight.
pub(super) fn size(values: &Values, value: usize) -> Result<usize> {
    let len = values.shape(value).fixed_len();
    len.ok_or_else(|| Error::internal("only values of fixed sizes are packed"))
}

/// Whether sources of workspace `number` add up in one place, and some places have no source.
pub(super) fn adds(op: &Op, number: usize) -> bool {
    matches!((op, number), (Op::Lstm(_), 1 | 2))
}

/// How the source at `position` lies in workspace `number`. Gates are unit by unit: row g·H+u of the source is row 4u+g.
pub(super) fn map(values: &Values, step: &Step, number: usize, position: usize) -> Result<Map> {
    let size = |at: usize, dim: usize| values.fixed(input(step, at)?, dim);
    // Direction and parameter of an LSTM's input.
    let of = |first: usize| ((position - first) / PARAMETERS, (position - first) % PARAMETERS);
    Ok(match (&step.op, number) {
        (Op::Lstm(op), _) => {
            let (d, parameter) = of(forward::FIRST);
            let directions = op.directions();
            let weight_hh = forward::parameter(0, Parameter::WeightHh);
            let (h, r) = (size(weight_hh, 0)? / 4, size(weight_hh, 1)?);
            match number {
                // [I][D][H] of i f g o
                0 => {
                    let i = size(position, 1)?;
                    let (first, stride_to) = (d * 4 * h, directions * 4 * h);
                    Map { sizes: [i, h, 4], limits: [i, h, 4], strides: [1, i, h * i], first, stride_to }
                }
                // [D, padded R + 1][H] of i f g o, in the last row of peepholes i f o
                1 => {
                    let first = d * (quads(r) + 1) * 4 * h;
                    if parameter == Parameter::Peepholes as usize {
                        Map::dense([1, h, 4], [1, h, 3], [0, 1, h], first + quads(r) * 4 * h)
                    } else {
                        Map::dense([quads(r), h, 4], [r, h, 4], [1, r, h * r], first)
                    }
                }
                5 => norm(d, h, parameter),
                // [D][H] of i f g o
                2 => Map::dense([1, h, 4], [1, h, 4], [0, 1, h], d * 4 * h),
                // [D][H][padded R]
                _ => Map::dense([h, quads(r), 1], [h, r, 1], [1, h, 0], d * h * quads(r)),
            }
        }
        (Op::LstmBackward(_), _) => {
            let (d, parameter) = of(backward::FIRST);
            let weight_hh = backward::parameter(0, Parameter::WeightHh);
            let (h, r) = (size(weight_hh, 0)? / 4, size(weight_hh, 1)?);
            match (number, in_quads(step.recurrence)) {
                (5, _) => norm(d, h, parameter),
                // rows four by four: those of one unit side by side, or below each other with columns padded
                (0, false) => Map::dense([h, r, 4], [h, r, 4], [r, 1, h * r], d * h * 4 * r),
                (0, true) => Map::dense([h, 4, quads(r)], [h, 4, r], [r, h * r, 1], d * h * 4 * quads(r)),
                (3, _) => Map::dense([1, h, 4], [1, h, 3], [0, 1, h], d * 4 * h),
                // rows of W_hr, padded to fours
                (_, false) => {
                    let sizes = [quads(r) / 4, h, 4];
                    Map::dense(sizes, sizes, [4 * h, 1, h], d * quads(r) * h)
                }
                (_, true) => Map::dense([quads(r), 1, quads(h)], [r, 1, h], [h, 0, 1], d * quads(r) * quads(h)),
            }
        }
        // rows in the order of the gates, columns padded; directions below each other
        (Op::LstmInputGradient { .. }, 0) => {
            let (four_h, i) = (size(position, 0)?, size(position, 1)?);
            let h = four_h / 4;
            Map::dense([h, 4, quads(i)], [h, 4, i], [i, h * i, 1], (position - 1) * four_h * quads(i))
        }
        // transposed, columns padded
        (Op::Linear, 0) => {
            let (o, i) = (size(1, 0)?, size(1, 1)?);
            Map::dense([i, quads(o), 1], [i, o, 1], [1, i, 0], 0)
        }
        // columns padded
        (Op::MatMul, 0) => {
            let (k, c) = (size(1, 0)?, size(1, 1)?);
            Map::dense([k, quads(c), 1], [k, c, 1], [c, 1, 0], 0)
        }
        _ => return Err(Error::internal(format!("workspace {number} of {} is not packed", step.op.name()))),
    })
}

/// [D][H] of the product's gain i f g o, the cell's gain and bias, peepholes i f o.
fn norm(d: usize, h: usize, parameter: usize) -> Map {
    let (count, stride, first) = match parameter {
        p if p == Parameter::NormHh as usize => (4, h, 0),
        p if p == Parameter::NormGain as usize => (1, 0, 4),
        p if p == Parameter::NormBias as usize => (1, 0, 5),
        _ => (3, h, 8),
    };
    let sizes = [h, 1, count];
    Map { sizes, limits: sizes, strides: [1, 0, stride], first: d * h * NORM_VALUES + first, stride_to: NORM_VALUES }
}

/// A workspace that the host packs from values that wait away from the device.
pub(super) struct Packing {
    /// Values, and where their elements go.
    sources: Vec<(usize, Map)>,
    adds: bool,
}

impl Packing {
    /// Workspace `number` of `step`, whose inputs are those that wait.
    pub fn of(values: &Values, step: &Step, number: usize) -> Result<Self> {
        let sources = step.packs[number].iter().filter_map(|&at| Some((at, step.inputs[at]?)));
        let sources = sources.map(|(at, value)| Ok((value, map(values, step, number, at)?)));
        Ok(Self { sources: sources.collect::<Result<_>>()?, adds: adds(&step.op, number) })
    }

    /// The values that it is packed from.
    pub fn sources(&self) -> impl Iterator<Item = usize> + '_ {
        self.sources.iter().map(|s| s.0)
    }

    /// Fills `to`, the workspace's elements from number `first` on, from the sources' elements, in their order.
    pub fn fill(&self, sources: &[&[f32]], first: usize, to: &mut [f32]) {
        to.fill(0.0);
        for ((_, map), from) in self.sources.iter().zip(sources) {
            map.put(from, first, to, self.adds);
        }
    }
}

impl Map {
    /// Puts those of the elements `from` that go to `to`, the destination's from number `begin` on, there, or adds them.
    fn put(&self, from: &[f32], begin: usize, to: &mut [f32], adds: bool) {
        let ([rows, columns, each], end) = (self.sizes, begin + to.len());
        let [last_row, last_column, last] = self.limits;
        let row = |place: usize| place.saturating_sub(self.first) / self.stride_to.max(1);
        let (first_row, rows) = (row(begin), (row(end) + 1).min(rows).min(last_row));
        let wide = (TILE / each.max(1)).max(1);
        for top in (first_row..rows).step_by(TILE) {
            for left in (0..columns.min(last_column)).step_by(wide) {
                for a in top..(top + TILE).min(rows) {
                    for b in left..(left + wide).min(last_column) {
                        let place = self.first + a * self.stride_to + b * each;
                        let (c, stop) = (begin.saturating_sub(place), last.min(end.saturating_sub(place)));
                        if c >= stop {
                            continue;
                        }
                        let here = &mut to[place + c - begin..place + stop - begin];
                        let at = a * self.strides[0] + b * self.strides[1] + c * self.strides[2];
                        match self.strides[2] {
                            1 if !adds => here.copy_from_slice(&from[at..at + here.len()]),
                            stride if adds => {
                                here.iter_mut().enumerate().for_each(|(c, to)| *to += from[at + c * stride])
                            }
                            stride => here.iter_mut().enumerate().for_each(|(c, to)| *to = from[at + c * stride]),
                        }
                    }
                }
            }
        }
    }
}
