//! Units of values from other places, by an index that the host makes.

use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder};
use crate::gpu::values::{Preparer, Run};
use crate::graph::Gather as Places;
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;

params!(Params { len: u32, width: u32, first: u32, end: u32, begins: u32, fill: f32 });

pub(super) static KERNEL: Kernel = kernel!("gather", "main", Params, [Params, Read, Read, Write]);

/// A gather, for each piece of y from each piece of x.
pub(super) struct Gather {
    pieces: Vec<Vec<Launch>>,
    /// Of x and y.
    axes: [Option<u8>; 2],
    values: [usize; 2],
    /// Units of a row of x and of y.
    units: [usize; 2],
    width: usize,
    fill: f32,
}

impl Gather {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step, gather: &Places) -> Result<Self> {
        let values = preparer.values;
        let (x, y, index) = (input(step, 0)?, output(step, 0)?, step.workspace[0]);
        let axes = [x, y].map(|v| row_axis(values.shape(v)));
        let columns = [values.row_len(x)?, values.row_len(y)?];
        let width = gather.unit(columns[0]);
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axes[1]) {
            let mut from = Vec::new();
            for q in 0..values.pieces(axes[0]) {
                let views = [values.view(x, q)?, values.view(index, p)?, values.view(y, p)?].map(Some);
                from.push(preparer.launch(&KERNEL, &views)?);
            }
            pieces.push(from);
        }
        Ok(Self { pieces, axes, values: [x, y], units: columns.map(|c| c / width), width, fill: gather.fill() })
    }
}

impl Runner for Gather {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        let [x, y] = self.values;
        for (p, start, end) in run.pieces(self.axes[1], run.rows(y)?) {
            let len = (end - start) * self.units[1] * self.width;
            // Where x has no row at all, everything comes from nowhere.
            for (q, first, end) in run.pieces(self.axes[0], run.rows(x)?.max(1)) {
                let params = Params {
                    len: word(len),
                    width: word(self.width),
                    first: word(first * self.units[0]),
                    end: word(end * self.units[0]),
                    begins: u32::from(q == 0),
                    fill: self.fill,
                };
                out.dispatch(&self.pieces[p][q], &params, len.div_ceil(256));
            }
        }
        Ok(())
    }
}
