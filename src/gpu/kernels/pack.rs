//! Weights in the order in which kernels read them.

use super::{Runner, input, kernel, params, word};
use crate::error::{Error, Result};
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder, View};
use crate::gpu::values::{Preparer, Run};
use crate::graph::lstm::{PARAMETERS, backward, forward};
use crate::graph::{Op, Parameter};
use crate::scheduler::Step;
use crate::scheduler::strategy::{NORM_VALUES, in_quads, quads};

params!(Params {
    len: u32,
    b: u32,
    c: u32,
    limit_a: u32,
    limit_b: u32,
    limit_c: u32,
    stride_a: u32,
    stride_b: u32,
    stride_c: u32,
    accumulate: u32,
    first: u32,
    stride_to: u32,
    source_len: u32,
    round: u32,
});

pub(super) static KERNEL: Kernel = kernel!("pack", "main", Params, [Params, Read, Write]);
pub(super) static HALVES: Kernel = kernel!("pack", "halves", Params, [Params, Read, Write]);

/// Where a source's elements go: three dimensions, the last two of them in a row.
struct Map {
    sizes: [usize; 3],
    limits: [usize; 3],
    strides: [usize; 3],
    /// Where the first element goes.
    first: usize,
    /// From one of the first dimension to the next in the destination.
    stride_to: usize,
}

impl Map {
    /// A map that fills the destination without gaps from `first` on.
    fn dense(sizes: [usize; 3], limits: [usize; 3], strides: [usize; 3], first: usize) -> Self {
        Self { sizes, limits, strides, first, stride_to: sizes[1] * sizes[2] }
    }
}

/// One workspace packed from one or more sources.
pub(super) struct Pack {
    launches: Vec<(Launch, Params)>,
    /// Elements of one thread.
    each: usize,
    clear: Option<View>,
}

impl Pack {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step, number: usize) -> Result<Self> {
        let to = preparer.values.view(step.workspace[number], 0)?;
        let precision = preparer.values.program.target.precision;
        let halves = precision.halves(&step.op, number);
        let (kernel, each) = if halves { (&HALVES, 2) } else { (&KERNEL, 1) };
        let mut launches = Vec::new();
        // Some sources add up in one place, and some places have no source.
        let clear = matches!((&step.op, number), (Op::Lstm(_), 1 | 2));
        for &position in &step.packs[number] {
            let Some(value) = step.inputs.get(position).copied().flatten() else { continue };
            let map = map(preparer, step, number, position)?;
            let source = preparer.values.view(value, 0)?;
            let launch = preparer.launch(kernel, &[Some(source), Some(to.clone())])?;
            let [_, b, c] = map.sizes.map(word);
            let [limit_a, limit_b, limit_c] = map.limits.map(word);
            let [stride_a, stride_b, stride_c] = map.strides.map(word);
            let params = Params {
                len: word(map.sizes.iter().product()),
                b,
                c,
                limit_a,
                limit_b,
                limit_c,
                stride_a,
                stride_b,
                stride_c,
                accumulate: u32::from(clear),
                first: word(map.first),
                stride_to: word(map.stride_to),
                source_len: word(size(preparer, value)?),
                round: u32::from(is_peephole(&step.op, position) && precision.halves_weights()),
            };
            launches.push((launch, params));
        }
        Ok(Self { launches, each, clear: clear.then_some(to) })
    }
}

/// Whether the input at `position` is a layer's peepholes, which are rounded wherever they are read.
fn is_peephole(op: &Op, position: usize) -> bool {
    let first = match op {
        Op::Lstm(_) => forward::FIRST,
        Op::LstmBackward(_) => backward::FIRST,
        _ => return false,
    };
    position >= first && (position - first) % PARAMETERS == Parameter::Peepholes as usize
}

/// The number of values of a weight.
fn size(preparer: &Preparer<'_>, value: usize) -> Result<usize> {
    let len = preparer.values.shape(value).fixed_len();
    len.ok_or_else(|| Error::internal("only values of fixed sizes are packed"))
}

/// How the source at `position` lies in workspace `number`. Gates are unit by unit: row g·H+u of the source is row 4u+g.
fn map(preparer: &Preparer<'_>, step: &Step, number: usize, position: usize) -> Result<Map> {
    let size = |at: usize, dim: usize| preparer.values.fixed(input(step, at)?, dim);
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

impl Runner for Pack {
    fn record<'a>(&'a self, _: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        if let Some(view) = &self.clear {
            out.clear(view.clone());
        }
        for (launch, params) in &self.launches {
            out.dispatch(launch, params, (params.len as usize).div_ceil(256 * self.each));
        }
        Ok(())
    }
}
