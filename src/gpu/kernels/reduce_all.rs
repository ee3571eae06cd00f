//! The sum of everything, in two passes of fixed order.

use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder};
use crate::gpu::values::{Preparer, Run};
use crate::graph::ReduceKind;
use crate::scheduler::Step;
use crate::scheduler::strategy::{REDUCE_BLOCK, row_axis};

params!(Params { len: u32, offset: u32, square: u32, accumulate: u32 });

pub(super) static BLOCKS: Kernel = kernel!("reduce_all", "blocks", Params, [Params, Read, Write]);
pub(super) static ALL_BLOCKS: Kernel = kernel!("reduce_all", "all_blocks", Params, [Params, Read, Write]);

/// One sum over any number of values.
pub(super) struct ReduceAll {
    inputs: Vec<(usize, Vec<Launch>)>,
    total: Launch,
    square: u32,
}

impl ReduceAll {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step, kind: ReduceKind) -> Result<Self> {
        let values = preparer.values;
        let partials = values.view(step.workspace[0], 0)?;
        let mut inputs = Vec::new();
        for at in 0..step.inputs.len() {
            let x = input(step, at)?;
            let mut pieces = Vec::new();
            for p in 0..values.pieces(row_axis(values.shape(x))) {
                pieces.push(preparer.launch(&BLOCKS, &[Some(values.view(x, p)?), Some(partials.clone())])?);
            }
            inputs.push((x, pieces));
        }
        let total = preparer.launch(&ALL_BLOCKS, &[Some(partials), Some(values.view(output(step, 0)?, 0)?)])?;
        Ok(Self { inputs, total, square: u32::from(kind == ReduceKind::SumOfSquares) })
    }
}

impl Runner for ReduceAll {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        let mut offset = 0;
        for (x, pieces) in &self.inputs {
            let row = run.values.row_len(*x)?;
            for (p, start, end) in run.pieces(row_axis(run.values.shape(*x)), run.rows(*x)?) {
                let len = (end - start) * row;
                let params = Params { len: word(len), offset: word(offset), square: self.square, accumulate: 0 };
                out.dispatch(&pieces[p], &params, len.div_ceil(REDUCE_BLOCK));
                offset += len.div_ceil(REDUCE_BLOCK);
            }
        }
        out.dispatch(
            &self.total,
            &Params { len: word(offset), offset: 0, square: 0, accumulate: u32::from(run.continues) },
            1,
        );
        Ok(())
    }
}
