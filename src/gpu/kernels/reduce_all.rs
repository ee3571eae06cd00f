//! The sum of everything, in two passes of fixed order.

use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder};
use crate::gpu::values::{Preparer, Run};
use crate::graph::ReduceKind;
use crate::scheduler::Step;
use crate::scheduler::strategy::{REDUCE_BLOCK, row_axis};

params!(Params {
    len: u32,
    len_1: u32,
    len_2: u32,
    len_3: u32,
    len_4: u32,
    len_5: u32,
    len_6: u32,
    offset: u32,
    square: u32,
    accumulate: u32,
});

pub(super) static BLOCKS: Kernel =
    kernel!("reduce_all", "blocks", Params, [Params, Read, Write, Read, Read, Read, Read, Read, Read]);
pub(super) static ALL_BLOCKS: Kernel = kernel!("reduce_all", "all_blocks", Params, [Params, Read, Write]);

/// Pieces of one dispatch, as many as any device binds.
const PIECES: usize = 7;

/// One sum over any number of values.
pub(super) struct ReduceAll {
    /// A value and its piece; [`PIECES`] a launch.
    pieces: Vec<(usize, usize)>,
    blocks: Vec<Launch>,
    total: Launch,
    square: u32,
}

impl ReduceAll {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step, kind: ReduceKind) -> Result<Self> {
        let values = preparer.values;
        let partials = values.view(step.workspace[0], 0)?;
        let mut pieces = Vec::new();
        for at in 0..step.inputs.len() {
            let x = input(step, at)?;
            pieces.extend((0..values.pieces(row_axis(values.shape(x)))).map(|p| (x, p)));
        }
        let mut blocks = Vec::new();
        for some in pieces.chunks(PIECES) {
            let of = |at: usize| some.get(at).map(|&(x, p)| values.view(x, p)).transpose();
            let mut views = vec![of(0)?, Some(partials.clone())];
            for at in 1..PIECES {
                views.push(of(at)?);
            }
            blocks.push(preparer.launch(&BLOCKS, &views)?);
        }
        let total = preparer.launch(&ALL_BLOCKS, &[Some(partials), Some(values.view(output(step, 0)?, 0)?)])?;
        Ok(Self { pieces, blocks, total, square: u32::from(kind == ReduceKind::SumOfSquares) })
    }
}

impl Runner for ReduceAll {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        let mut offset = 0;
        for (some, launch) in self.pieces.chunks(PIECES).zip(&self.blocks) {
            let mut lens = [0; PIECES];
            for (len, &(x, piece)) in lens.iter_mut().zip(some) {
                let row = run.values.row_len(x)?;
                let rows = run.pieces(row_axis(run.values.shape(x)), run.rows(x)?).find(|(p, ..)| *p == piece);
                *len = rows.map_or(0, |(_, start, end)| (end - start) * row);
            }
            let blocks: usize = lens.iter().map(|len| len.div_ceil(REDUCE_BLOCK)).sum();
            let [len, len_1, len_2, len_3, len_4, len_5, len_6] = lens.map(word);
            let params = Params {
                len,
                len_1,
                len_2,
                len_3,
                len_4,
                len_5,
                len_6,
                offset: word(offset),
                square: self.square,
                accumulate: 0,
            };
            out.dispatch(launch, &params, blocks);
            offset += blocks;
        }
        let all = Params {
            len: word(offset),
            len_1: 0,
            len_2: 0,
            len_3: 0,
            len_4: 0,
            len_5: 0,
            len_6: 0,
            offset: 0,
            square: 0,
            accumulate: u32::from(run.continues),
        };
        out.dispatch(&self.total, &all, 1);
        Ok(())
    }
}
