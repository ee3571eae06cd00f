//! h of the step before, for every row.

use super::{Runner, kernel, params, word};
use crate::error::Result;
use crate::gpu::executor::{Preparer, Run};
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder};
use crate::scheduler::strategy::row_axis;

params!(Params {
    hidden: u32,
    row_start: u32,
    row_end: u32,
    y_start: u32,
    y_end: u32,
    steps: u32,
    table: u32,
    has_h0: u32,
});

pub(super) static KERNEL: Kernel = kernel!("lstm_previous", "main", Params, [Params, Read, Read, Read, Write]);

/// Copies y one step later, into pieces from the pieces where the step before lies.
pub(super) struct LstmPrevious {
    /// Piece of the output, piece of y.
    launches: Vec<(usize, usize, Launch)>,
    axis: Option<u8>,
    y: usize,
    hidden: usize,
    has_h0: bool,
}

impl LstmPrevious {
    pub fn prepare(preparer: &mut Preparer<'_>, y: usize, h0: Option<usize>, previous: usize) -> Result<Self> {
        let values = preparer.values;
        let axis = row_axis(values.shape(y));
        let back = super::lstm_backward_step::pieces_back(values, axis);
        let mut launches = Vec::new();
        for p in 0..values.pieces(axis) {
            for q in p.saturating_sub(back)..=p {
                let views = [
                    Some(values.view(y, q)?),
                    h0.map(|v| values.view(v, 0)).transpose()?,
                    Some(preparer.table()),
                    Some(values.view(previous, p)?),
                ];
                launches.push((p, q, preparer.launch(&KERNEL, &views)?));
            }
        }
        Ok(Self { launches, axis, y, hidden: values.row_len(y)?, has_h0: h0.is_some() })
    }
}

impl Runner for LstmPrevious {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        let rows = run.rows(self.y)?;
        let (_, steps, table) = run.axis(self.axis)?;
        let pieces: Vec<_> = run.pieces(self.axis, rows).collect();
        for (p, q, launch) in &self.launches {
            let (Some(&(_, start, end)), Some(&(_, y_start, y_end))) = (pieces.get(*p), pieces.get(*q)) else {
                continue;
            };
            let params = Params {
                hidden: word(self.hidden),
                row_start: word(start),
                row_end: word(end),
                y_start: word(y_start),
                y_end: word(y_end),
                steps,
                table,
                has_h0: u32::from(self.has_h0),
            };
            out.dispatch(launch, &params, ((end - start) * self.hidden).div_ceil(256));
        }
        Ok(())
    }
}
