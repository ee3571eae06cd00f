//! Weights in the order in which kernels read them.

use super::{Runner, input, kernel, params, word};
use crate::error::{Error, Result};
use crate::gpu::executor::{Preparer, Run};
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder, View};
use crate::graph::Op;
use crate::graph::op::{lstm, lstm_backward};
use crate::scheduler::Step;
use crate::scheduler::strategy::{Broadcast, broadcast, quads};

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
});

pub(super) static KERNEL: Kernel = kernel!("pack", "main", Params, [Params, Read, Write]);

/// A destination of three dimensions from a source by strides.
struct Map {
    sizes: [usize; 3],
    limits: [usize; 3],
    strides: [usize; 3],
}

/// One workspace packed from one or more sources, which add.
pub(super) struct Pack {
    launches: Vec<(Launch, Params)>,
    clear: Option<View>,
}

impl Pack {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step, number: usize) -> Result<Self> {
        let map = map(preparer, step, number)?;
        let to = preparer.values.view(step.workspace[number], 0)?;
        let mut launches = Vec::new();
        for value in step.packs[number].iter().filter_map(|&p| step.inputs.get(p).copied().flatten()) {
            let from = preparer.values.view(value, 0)?;
            let launch = preparer.launch(&KERNEL, &[Some(from), Some(to.clone())])?;
            let [_, b, c] = map.sizes.map(word);
            let [limit_a, limit_b, limit_c] = map.limits.map(word);
            let [stride_a, stride_b, stride_c] = map.strides.map(word);
            let len = word(map.sizes.iter().product());
            let accumulate = u32::from(!launches.is_empty());
            let params = Params { len, b, c, limit_a, limit_b, limit_c, stride_a, stride_b, stride_c, accumulate };
            launches.push((launch, params));
        }
        let clear = launches.is_empty().then_some(to);
        Ok(Self { launches, clear })
    }
}

/// How the source lies in the workspace. Gates are unit by unit: row g·H+u of the source is row 4u+g.
fn map(preparer: &Preparer<'_>, step: &Step, number: usize) -> Result<Map> {
    let size = |value: usize, at: usize| preparer.values.fixed(value, at);
    Ok(match (&step.op, number) {
        // [I][H] of i f g o
        (Op::Lstm, 0) => {
            let (i, h) = (size(input(step, lstm::WEIGHT_IH)?, 1)?, size(input(step, lstm::WEIGHT_HH)?, 1)?);
            Map { sizes: [i, h, 4], limits: [i, h, 4], strides: [1, i, h * i] }
        }
        // [padded H][H] of i f g o
        (Op::Lstm, 1) => {
            let h = size(input(step, lstm::WEIGHT_HH)?, 1)?;
            Map { sizes: [quads(h), h, 4], limits: [h, h, 4], strides: [1, h, h * h] }
        }
        // [H] of i f g o
        (Op::Lstm, 2) => {
            let h = size(input(step, lstm::WEIGHT_HH)?, 1)?;
            Map { sizes: [1, h, 4], limits: [1, h, 4], strides: [0, 1, h] }
        }
        // rows in the order of the gates; the four of one unit side by side, or below each other with columns padded
        (Op::LstmBackward, 0) => {
            let h = size(input(step, lstm_backward::WEIGHT_HH)?, 1)?;
            match broadcast(&preparer.values.program.target) {
                Broadcast::Memory => Map { sizes: [h, h, 4], limits: [h, h, 4], strides: [h, 1, h * h] },
                Broadcast::Subgroup => Map { sizes: [h, 4, quads(h)], limits: [h, 4, h], strides: [h, h * h, 1] },
            }
        }
        // rows in the order of the gates, columns padded
        (Op::LstmInputGradient, 0) => {
            let (four_h, i) = (size(input(step, 1)?, 0)?, size(input(step, 1)?, 1)?);
            let h = four_h / 4;
            Map { sizes: [h, 4, quads(i)], limits: [h, 4, i], strides: [i, h * i, 1] }
        }
        // transposed, columns padded
        (Op::Linear, 0) => {
            let (o, i) = (size(input(step, 1)?, 0)?, size(input(step, 1)?, 1)?);
            Map { sizes: [i, quads(o), 1], limits: [i, o, 1], strides: [1, i, 0] }
        }
        // columns padded
        (Op::MatMul, 0) => {
            let (k, c) = (size(input(step, 1)?, 0)?, size(input(step, 1)?, 1)?);
            Map { sizes: [k, quads(c), 1], limits: [k, c, 1], strides: [c, 1, 0] }
        }
        _ => return Err(Error::internal(format!("workspace {number} of {} is not packed", step.op.name()))),
    })
}

impl Runner for Pack {
    fn record<'a>(&'a self, _: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        if let Some(view) = &self.clear {
            out.clear(view.clone());
        }
        for (launch, params) in &self.launches {
            out.dispatch(launch, params, (params.len as usize).div_ceil(256));
        }
        Ok(())
    }
}
