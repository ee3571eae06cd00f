//! What the shares of a ring's places come to for each token.

use super::remember::constants;
use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder};
use crate::gpu::values::{Preparer, Run};
use crate::graph::MemoryOp;
use crate::graph::memory::by_token::{PLACES, RING, SLOTS};
use crate::scheduler::Step;

params!(Params { places: u32, row: u32, vocabulary: u32, rows: u32, steps: u32, offsets: u32 });

pub(super) static KERNEL: Kernel = kernel!("recall_tokens", "main", Params, [Params, Read, Read, Read, Read, Write]);

/// Shares by token.
pub(super) struct RecallTokens {
    launch: Launch,
    memory: MemoryOp,
    /// Values of a ring.
    row: usize,
    vocabulary: usize,
    places: usize,
}

impl RecallTokens {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step, memory: &MemoryOp, vocabulary: usize) -> Result<Self> {
        let values = preparer.values;
        let (places, ring) = (input(step, PLACES)?, input(step, RING)?);
        super::recall::check_pieces(values, places)?;
        let slots = step.inputs[SLOTS].map(|s| values.view(s, 0)).transpose()?;
        let constants = constants(slots.is_some());
        let (table, y) = (preparer.table(Some(0)), values.view(output(step, 0)?, 0)?);
        let views = [Some(values.view(places, 0)?), Some(values.view(ring, 0)?), slots, Some(table), Some(y)];
        let launch = preparer.launch_with(&KERNEL, "", None, &constants, &views)?;
        Ok(Self { launch, memory: *memory, row: values.row_len(ring)?, vocabulary, places })
    }
}

impl Runner for RecallTokens {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        let rows = run.rows(self.places)?;
        let (_, steps, offsets) = run.axis(Some(0))?;
        let params = Params {
            places: word(self.memory.places),
            row: word(self.row),
            vocabulary: word(self.vocabulary),
            rows: word(rows),
            steps,
            offsets,
        };
        if rows > 0 {
            out.dispatch(&self.launch, &params, rows);
        }
        Ok(())
    }
}
