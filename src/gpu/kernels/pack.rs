//! Weights in the order in which kernels read them, put there by the device.

use super::{Runner, kernel, params, word};
use crate::error::Result;
use crate::gpu::packing::{adds, map, size};
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder, View};
use crate::gpu::values::{Preparer, Run};
use crate::graph::lstm::{PARAMETERS, backward, forward};
use crate::graph::{Op, Parameter};
use crate::scheduler::Step;

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
        let clear = adds(&step.op, number);
        for &position in &step.packs[number] {
            let Some(value) = step.inputs.get(position).copied().flatten() else { continue };
            let map = map(preparer.values, step, number, position)?;
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
                source_len: word(size(preparer.values, value)?),
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
