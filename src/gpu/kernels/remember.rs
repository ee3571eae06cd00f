//! What a run reads, into the rings of its sequences.

use super::{Runner, input, kernel, output, params, word};
use crate::error::Result;
use crate::gpu::pipeline::{Constants, Kernel};
use crate::gpu::record::{Launch, Recorder, View};
use crate::gpu::values::{Preparer, Run};
use crate::graph::MemoryOp;
use crate::graph::memory::remember::{OWN, POSITION, RING, SLOTS, TOKENS};
use crate::scheduler::Step;

params!(Params { features: u32, places: u32, rows: u32, steps: u32, offsets: u32 });

pub(super) static KERNEL: Kernel = kernel!("remember", "main", Params, [Params, Read, Read, Read, Read, Read, Write]);

/// The constants of a kernel whose sequences have slots or not.
pub(super) fn constants(slotted: bool) -> Constants {
    slotted.then_some(("SLOTTED", 1.0)).into_iter().collect()
}

/// h and the token of each step to their places.
pub(super) struct Remember {
    launch: Launch,
    memory: MemoryOp,
    own: usize,
    features: usize,
    /// The ring as it was and as it becomes, where it does not change in place.
    copy: Option<(View, View)>,
}

impl Remember {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step, memory: &MemoryOp) -> Result<Self> {
        let values = preparer.values;
        let (ring, own, y) = (input(step, RING)?, input(step, OWN)?, output(step, 0)?);
        super::recall::check_pieces(values, own)?;
        let slots = step.inputs[SLOTS].map(|s| values.view(s, 0)).transpose()?;
        let constants = constants(slots.is_some());
        let mut views: Vec<Option<View>> = [own, input(step, TOKENS)?, input(step, POSITION)?]
            .into_iter()
            .map(|value| values.view(value, 0).map(Some))
            .collect::<Result<_>>()?;
        views.extend([slots, Some(preparer.table(Some(0))), Some(values.view(y, 0)?)]);
        let in_place = values.program.root(ring) == values.program.root(y);
        let copy = if in_place { None } else { Some((values.view(ring, 0)?, values.view(y, 0)?)) };
        let launch = preparer.launch_with(&KERNEL, "", None, &constants, &views)?;
        Ok(Self { launch, memory: *memory, own, features: values.row_len(own)?, copy })
    }
}

impl Runner for Remember {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        if let Some((from, to)) = &self.copy {
            out.copy(from.clone(), to.clone());
        }
        let rows = run.rows(self.own)?;
        let (_, steps, offsets) = run.axis(Some(0))?;
        let params = Params {
            features: word(self.features),
            places: word(self.memory.places),
            rows: word(rows),
            steps,
            offsets,
        };
        if rows > 0 {
            out.dispatch(&self.launch, &params, (rows * (self.features + 1)).div_ceil(256));
        }
        Ok(())
    }
}
