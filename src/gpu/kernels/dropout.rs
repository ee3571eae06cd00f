//! Dropout, by counter-based random numbers.

use super::{Runner, input, kernel, output, params, word};
use crate::config::Mask;
use crate::error::Result;
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder};
use crate::gpu::values::{Preparer, Run};
use crate::graph::{Dim, Symbol};
use crate::params::random::{drop_threshold, threefry};
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;

params!(Params {
    rows: u32,
    columns: u32,
    row_start: u32,
    mode: u32,
    steps: u32,
    table: u32,
    samples: u32,
    time: u32,
    key_x: u32,
    key_y: u32,
    threshold: u32,
    scale: f32,
    each_step: u32,
});

pub(super) static KERNEL: Kernel = kernel!("dropout", "main", Params, [Params, Read, Read, Write]);

/// Dropout of a value's rows.
pub(super) struct Dropout {
    pieces: Vec<Launch>,
    axis: Option<u8>,
    x: usize,
    mode: u32,
    columns: usize,
    rate: f32,
    operation: u32,
    mask: Mask,
}

impl Dropout {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step, rate: f32, operation: u32, mask: Mask) -> Result<Self> {
        let values = preparer.values;
        let (x, y) = (input(step, 0)?, output(step, 0)?);
        let axis = row_axis(values.shape(x));
        let mode = match values.shape(x).rows() {
            Some(Dim::Symbol(Symbol::Rows(_))) => 0,
            Some(Dim::Symbol(Symbol::Batch)) => 1,
            _ => 2,
        };
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            let views = [values.view(x, p)?, preparer.table(axis), values.view(y, p)?].map(Some);
            pieces.push(preparer.launch(&KERNEL, &views)?);
        }
        Ok(Self { pieces, axis, x, mode, columns: values.row_len(x)?, rate, operation, mask })
    }
}

impl Runner for Dropout {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        let (axis, steps, table) = run.axis(self.axis)?;
        let seed = [run.batch.seed as u32, (run.batch.seed >> 32) as u32];
        let [key_x, key_y] = threefry(seed, [run.batch.step, self.operation]);
        for (p, start, end) in run.pieces(self.axis, run.rows(self.x)?) {
            let params = Params {
                rows: word(end - start),
                columns: word(self.columns),
                row_start: word(start),
                mode: self.mode,
                steps,
                table,
                samples: 0,
                time: axis.map_or(0, |a| a.start),
                key_x,
                key_y,
                threshold: drop_threshold(self.rate),
                scale: 1.0 / (1.0 - self.rate),
                each_step: u32::from(self.mask == Mask::Step),
            };
            out.dispatch(&self.pieces[p], &params, ((end - start) * self.columns.div_ceil(2)).div_ceil(256));
        }
        Ok(())
    }
}
