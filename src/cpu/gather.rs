//! Units of values from other places.

use super::call::Call;
use super::rows::over_rows;
use crate::error::Result;
use crate::graph::{Gather, Shape};
use crate::scheduler::{NOWHERE, sources};

/// x and y are of these shapes.
pub(super) fn gather(call: &mut Call<'_>, gather: &Gather, x: &Shape, y: &Shape) -> Result<()> {
    let (data, width) = (call.input(0)?, gather.unit(call.operand(0)?.columns()));
    let sources = sources(gather, x, y, call.batch)?;
    over_rows(call.output(0)?, width, width, |first, out| {
        for (to, &from) in out.chunks_exact_mut(width).zip(&sources[first..]) {
            match from {
                NOWHERE => to.fill(gather.fill()),
                from => to.copy_from_slice(&data[from as usize * width..][..width]),
            }
        }
    });
    Ok(())
}
