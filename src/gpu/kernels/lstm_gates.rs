//! Products that a layer takes in place of x, as gates and back.

use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder};
use crate::gpu::values::{Preparer, Run};
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;

params!(Params { rows: u32, directions: u32, hidden: u32 });

pub(super) static INTO: Kernel = kernel!("lstm_gates", "into", Params, [Params, Read, Write, Read]);
pub(super) static BACK: Kernel = kernel!("lstm_gates", "back", Params, [Params, Read, Write]);

/// A copy between the order of blocks and the order of units.
pub(super) struct Gates {
    pieces: Vec<Launch>,
    axis: Option<u8>,
    from: usize,
    directions: usize,
    hidden: usize,
}

impl Gates {
    /// Into the gates of a layer of `directions`, with its packed biases.
    pub fn into_units(
        preparer: &mut Preparer<'_>,
        x: usize,
        bias: usize,
        gates: usize,
        directions: usize,
    ) -> Result<Self> {
        Self::new(preparer, x, gates, Some(bias), directions)
    }

    /// The gradient of what was given in place of x.
    pub fn back(preparer: &mut Preparer<'_>, step: &Step, directions: usize) -> Result<Self> {
        Self::new(preparer, input(step, 0)?, output(step, 0)?, None, directions)
    }

    fn new(
        preparer: &mut Preparer<'_>,
        from: usize,
        to: usize,
        bias: Option<usize>,
        directions: usize,
    ) -> Result<Self> {
        let values = preparer.values;
        let axis = row_axis(values.shape(from));
        let mut pieces = Vec::new();
        for p in 0..values.pieces(axis) {
            let mut views = vec![Some(values.view(from, p)?), Some(values.view(to, p)?)];
            views.extend(bias.map(|b| values.view(b, 0).map(Some)).transpose()?);
            pieces.push(preparer.launch(if bias.is_some() { &INTO } else { &BACK }, &views)?);
        }
        Ok(Self { pieces, axis, from, directions, hidden: values.row_len(from)? / directions / 4 })
    }
}

impl Runner for Gates {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        for (p, start, end) in run.pieces(self.axis, run.rows(self.from)?) {
            let rows = end - start;
            let params = Params { rows: word(rows), directions: word(self.directions), hidden: word(self.hidden) };
            out.dispatch(&self.pieces[p], &params, (rows * self.directions * self.hidden).div_ceil(256));
        }
        Ok(())
    }
}
