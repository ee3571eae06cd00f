//! Columns taken, put side by side, or padded by zeros.

use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder, View};
use crate::gpu::values::{Preparer, Run};
use crate::graph::Op;
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;

params!(Params { rows: u32, count: u32, from_stride: u32, from_first: u32, to_stride: u32, to_first: u32 });

pub(super) static KERNEL: Kernel = kernel!("columns", "main", Params, [Params, Read, Write]);

/// The copy of one input's columns, piece by piece.
struct Part {
    pieces: Vec<Launch>,
    count: usize,
    from_stride: usize,
    from_first: usize,
    to_first: usize,
}

/// Copies of columns into one output.
pub(super) struct Columns {
    parts: Vec<Part>,
    axis: Option<u8>,
    y: usize,
    to_stride: usize,
    /// What is zeroed first.
    clear: Vec<View>,
}

impl Columns {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step) -> Result<Self> {
        let values = preparer.values;
        let y = output(step, 0)?;
        let (axis, to_stride) = (row_axis(values.shape(y)), values.row_len(y)?);
        let (mut parts, mut to_first) = (Vec::new(), 0);
        for at in 0..step.inputs.len() {
            let x = input(step, at)?;
            let from_stride = values.row_len(x)?;
            let (count, from_first, first) = match step.op {
                Op::Slice { first, count } => (count, first, 0),
                Op::Pad { before, .. } => (from_stride, 0, before),
                _ => (from_stride, 0, to_first),
            };
            let mut pieces = Vec::new();
            for p in 0..values.pieces(axis) {
                pieces.push(preparer.launch(&KERNEL, &[Some(values.view(x, p)?), Some(values.view(y, p)?)])?);
            }
            parts.push(Part { pieces, count, from_stride, from_first, to_first: first });
            to_first += count;
        }
        let pads = matches!(step.op, Op::Pad { .. });
        let clear =
            (0..if pads { values.pieces(axis) } else { 0 }).map(|p| values.view(y, p)).collect::<Result<_>>()?;
        Ok(Self { parts, axis, y, to_stride, clear })
    }
}

impl Runner for Columns {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        self.clear.iter().for_each(|view| out.clear(view.clone()));
        for part in &self.parts {
            for (p, start, end) in run.pieces(self.axis, run.rows(self.y)?) {
                let params = Params {
                    rows: word(end - start),
                    count: word(part.count),
                    from_stride: word(part.from_stride),
                    from_first: word(part.from_first),
                    to_stride: word(self.to_stride),
                    to_first: word(part.to_first),
                };
                out.dispatch(&part.pieces[p], &params, ((end - start) * part.count).div_ceil(256));
            }
        }
        Ok(())
    }
}
