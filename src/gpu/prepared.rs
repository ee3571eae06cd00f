//! A program made ready, and the launchers of its steps.

use super::away::Away;
use super::buffer::Buffer;
use super::kernels::{self, Runner};
use super::offload::Offloaded;
use super::packing::Packing;
use super::upload::Indices;
use super::values::{Preparer, Values};
use crate::error::Result;
use crate::scheduler::program::Storage;
use crate::scheduler::{Action, Batch, Program, Stage, Step};
use std::cell::RefCell;
use std::sync::Arc;

/// A program made ready: memory, pipelines and bind groups.
pub struct Prepared {
    pub(super) program: Arc<Program>,
    pub(super) values: Values,
    /// For each stage its actions.
    pub(super) stages: Vec<Vec<Ready>>,
    pub(super) run_scalars: Buffer,
    pub(super) table: Buffer,
    pub(super) uploaded_table: RefCell<Vec<u32>>,
    /// Of each stage.
    pub(super) indices: Vec<Indices>,
    pub(super) offloaded: Offloaded,
    pub(super) away: RefCell<Away>,
    pub(super) last: Option<Batch>,
}

/// An action made ready.
pub(super) enum Ready {
    /// A move needs no preparation, nor what an earlier step runs with it.
    Nothing,
    /// What the device runs.
    Step(PreparedStep),
    /// What the host packs.
    Packing(Packing),
}

pub(super) struct PreparedStep {
    pub(super) packs: Vec<Pack>,
    pub(super) runner: Box<dyn Runner>,
}

/// A weight's rearrangement, and which state of the weight it was made from.
pub(super) struct Pack {
    pub(super) runner: Box<dyn Runner>,
    pub(super) sources: Vec<Option<String>>,
    pub(super) made_from: RefCell<Option<Vec<u64>>>,
}

/// The launchers of a stage's steps; neighbours that one launcher can run together are with the first of them.
pub(super) fn prepare_stage(preparer: &mut Preparer<'_>, stage: &Stage) -> Result<Vec<Ready>> {
    let mut ready = Vec::new();
    while let Some(action) = stage.body.get(ready.len()) {
        let step = match action {
            Action::Step(step) => step,
            Action::Move(_) => {
                ready.push(Ready::Nothing);
                continue;
            }
            Action::Pack(step, number) => {
                let runner = kernels::prepare_pack(preparer, step, *number).map_err(|e| e.within(step.op.name()))?;
                ready.push(Ready::Step(PreparedStep { packs: Vec::new(), runner }));
                continue;
            }
            Action::Bring(step, number) => {
                ready.push(Ready::Packing(Packing::of(preparer.values, step, *number)?));
                continue;
            }
        };
        let rest = stage.body[ready.len()..].iter().map_while(|a| if let Action::Step(s) = a { Some(s) } else { None });
        let rest: Vec<&Step> = rest.collect();
        let count = kernels::together(preparer.values, &rest)?;
        let prepared = match count {
            1 => prepare_step(preparer, step),
            _ => kernels::prepare_together(preparer, &rest[..count])
                .map(|runner| PreparedStep { packs: Vec::new(), runner }),
        };
        ready.push(Ready::Step(prepared.map_err(|e| e.within(step.op.name()))?));
        ready.extend((1..count).map(|_| Ready::Nothing));
    }
    Ok(ready)
}

fn prepare_step(preparer: &mut Preparer<'_>, step: &Step) -> Result<PreparedStep> {
    let program = Arc::clone(&preparer.values.program);
    let runner = kernels::prepare(preparer, step)?;
    let mut packs = Vec::new();
    for (number, from) in step.packs.iter().enumerate().filter(|(_, from)| !from.is_empty()) {
        let sources = from
            .iter()
            .filter_map(|&position| step.inputs.get(position).copied().flatten())
            .map(|value| {
                let root = &program.values[program.root(value)];
                (root.storage == Storage::Persistent).then(|| root.name.clone())
            })
            .collect();
        let runner = kernels::prepare_pack(preparer, step, number)?;
        packs.push(Pack { runner, sources, made_from: RefCell::new(None) });
    }
    Ok(PreparedStep { packs, runner })
}
