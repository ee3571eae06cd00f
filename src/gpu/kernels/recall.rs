//! What is found in the rings of a run's sequences: sums over places, their gradients, the share of each place.

use super::remember::constants;
use super::{Runner, input, kernel, output, params, word};
use crate::error::{Error, Result};
use crate::gpu::pipeline::Kernel;
use crate::gpu::record::{Launch, Recorder};
use crate::gpu::values::{Preparer, Run, Values};
use crate::graph::memory::recall::{GIVEN, POSITION, QUERIES, RING, SLOTS, TARGETS};
use crate::graph::{MemoryOp, MemoryPart, Op};
use crate::scheduler::Step;
use crate::scheduler::strategy::row_axis;

params!(Params {
    features: u32,
    places: u32,
    window: u32,
    rows: u32,
    sequences: u32,
    steps: u32,
    offsets: u32,
    lengths: u32,
    chunks: u32,
});

pub(super) static KERNEL: Kernel =
    kernel!("recall", "main", Params, [Params, Read, Read, Read, Read, Read, Read, Write]);
pub(super) static BACKWARD: Kernel =
    kernel!("recall_backward", "main", Params, [Params, Read, Read, Read, Read, Read, Read, Read, Write]);
pub(super) static PLACES: Kernel =
    kernel!("recall_places", "main", Params, [Params, Read, Read, Read, Read, Read, Write, Write]);

/// Steps of a workgroup that sums, and columns of one that makes a gradient.
const STEPS: usize = 32;
const COLUMNS: usize = 256;

/// Refuses steps that are in several buffers.
pub(super) fn check_pieces(values: &Values, rows: usize) -> Result<()> {
    if values.pieces(row_axis(values.shape(rows))) > 1 {
        return Err(Error::unsupported("a working memory over steps that exceed what the device binds at once"));
    }
    Ok(())
}

/// Sums, a gradient of them, or shares.
pub(super) struct Recall {
    launch: Launch,
    memory: MemoryOp,
    queries: usize,
    features: usize,
    kind: Kind,
}

/// What a launch has a workgroup for.
#[derive(Clone, Copy)]
enum Kind {
    /// Some steps of a sequence.
    Sums,
    /// Some columns of a row.
    Gradient,
    /// A row.
    Places,
}

impl Recall {
    pub fn prepare(preparer: &mut Preparer<'_>, step: &Step) -> Result<Self> {
        let values = preparer.values;
        let queries = input(step, QUERIES)?;
        check_pieces(values, queries)?;
        let slots = step.inputs[SLOTS].map(|s| values.view(s, 0)).transpose()?;
        let mut constants = constants(slots.is_some());
        let of = |at: usize| values.view(input(step, at)?, 0).map(Some);
        let mut views = vec![of(QUERIES)?, of(RING)?, of(POSITION)?, slots, Some(preparer.table(Some(0)))];
        let (kernel, memory, kind) = match &step.op {
            Op::Recall(memory) => {
                views.push(of(TARGETS)?);
                (&KERNEL, memory, Kind::Sums)
            }
            Op::RecallBackward { memory, part } => {
                views.extend([of(TARGETS)?, of(GIVEN)?]);
                constants.extend((*part == MemoryPart::Own).then_some(("OWN", 1.0)));
                (&BACKWARD, memory, Kind::Gradient)
            }
            Op::RecallPlaces(memory) => (&PLACES, memory, Kind::Places),
            _ => return Err(Error::internal("nothing is recalled")),
        };
        for at in 0..step.outputs.len() {
            views.push(Some(values.view(output(step, at)?, 0)?));
        }
        let launch = preparer.launch_with(kernel, "", None, &constants, &views)?;
        Ok(Self { launch, memory: *memory, queries, features: values.row_len(queries)?, kind })
    }
}

impl Runner for Recall {
    fn record<'a>(&'a self, run: &Run<'_>, out: &mut Recorder<'a>) -> Result<()> {
        let (axis, steps, offsets) = run.axis(Some(0))?;
        let (rows, sequences) = (run.rows(self.queries)?, axis.map_or(0, |axis| axis.rows_at(0)));
        if rows == 0 {
            return Ok(());
        }
        let (of, chunks) = match self.kind {
            Kind::Sums => (sequences, (steps as usize).div_ceil(STEPS)),
            Kind::Gradient => (rows, self.features.div_ceil(COLUMNS)),
            Kind::Places => (rows, 1),
        };
        let params = Params {
            features: word(self.features),
            places: word(self.memory.places),
            window: word(self.memory.window),
            rows: word(rows),
            sequences: word(sequences),
            steps,
            offsets,
            lengths: run.lengths(0),
            chunks: word(chunks),
        };
        out.dispatch(&self.launch, &params, of * chunks);
        Ok(())
    }
}
