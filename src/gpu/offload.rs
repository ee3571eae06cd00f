//! States between segments that wait in the host's memory while the device computes other segments.

use super::buffer::{Buffer, Buffers};
use super::record::View;
use crate::error::{Error, Result};
use crate::scheduler::{Action, Move, Part, Program, Side, Stage};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

const UNMAPPED: u8 = 0;
const MAPPED: u8 = 1;
const FAILED: u8 = 2;
const PENDING: u8 = 3;

/// One value with a slot for each part.
struct Slots {
    /// Where the device writes.
    buffer: Buffer,
    mapped: Arc<AtomicU8>,
    /// What it wrote, once the host has it.
    bytes: Vec<u8>,
    /// Bytes of a slot, and of one sequence in it.
    slot: u64,
    row: u64,
}

/// All values of a program that are offloaded.
pub(super) struct Offloaded(BTreeMap<usize, Slots>);

impl Offloaded {
    pub fn of(program: &Program, buffers: &Buffers) -> Result<Self> {
        let mut all = BTreeMap::new();
        let slot = |m: &Move, at: usize| m.from == Side::Slot(at) || m.to == Side::Slot(at);
        let slots = |at: usize| {
            program.stages.iter().flat_map(|s| &s.body).any(|a| matches!(a, Action::Move(m) if slot(m, at)))
        };
        for (at, value) in program.values.iter().enumerate().filter(|(at, v)| v.offloaded && slots(*at)) {
            let sizes = value.sizes(&program.capacity)?;
            let bytes = |from: usize| 4 * sizes[from..].iter().product::<usize>() as u64;
            let buffer = buffers.on_host(&value.name, bytes(0))?;
            let mapped = Arc::new(AtomicU8::new(UNMAPPED));
            all.insert(at, Slots { buffer, mapped, bytes: Vec::new(), slot: bytes(1), row: bytes(2) });
        }
        Ok(Self(all))
    }

    /// Whether `stage` reads what the host has not got yet.
    pub fn awaited(&self, stage: &Stage) -> bool {
        stage.body.iter().any(|action| match action {
            Action::Move(Move { from: Side::Slot(v), .. }) => self.0.get(v).is_some_and(|s| s.bytes.is_empty()),
            _ => false,
        })
    }

    /// Begins to give the host what the device has written and `stage` reads; the device must have been told to write it.
    pub fn begin(&self, stage: &Stage) {
        for (value, slots) in &self.0 {
            let reads =
                |action: &Action| matches!(action, Action::Move(Move { from: Side::Slot(v), .. }) if v == value);
            if !slots.bytes.is_empty() || !stage.body.iter().any(reads) {
                continue;
            }
            slots.mapped.store(PENDING, Ordering::Release);
            let mapped = Arc::clone(&slots.mapped);
            slots.buffer.map_async(wgpu::MapMode::Read, .., move |result| {
                mapped.store(if result.is_ok() { MAPPED } else { FAILED }, Ordering::Release);
            });
        }
    }

    /// Takes what the device has written, after the device is done.
    pub fn take(&mut self) -> Result<()> {
        for slots in self.0.values_mut().filter(|slots| slots.mapped.load(Ordering::Acquire) != UNMAPPED) {
            if slots.mapped.swap(UNMAPPED, Ordering::AcqRel) != MAPPED {
                return Err(Error::device("device: states that wait in the host's memory cannot be read"));
            }
            let view =
                slots.buffer.get_mapped_range(..).map_err(|e| Error::device(format!("device: reading failed: {e}")))?;
            slots.bytes = view.to_vec();
            drop(view);
            slots.buffer.unmap();
        }
        Ok(())
    }

    /// Forgets what the host has: another run begins.
    pub fn clear(&mut self) {
        self.0.values_mut().for_each(|slots| slots.bytes = Vec::new());
    }

    /// Where the device writes `value` for `part`, if it is offloaded.
    pub fn slot(&self, value: usize, part: &Part<'_>) -> Option<View> {
        let slots = self.0.get(&value)?;
        let bytes = part.batch.sequences() as u64 * slots.row;
        Some(View { buffer: slots.buffer.clone(), offset: part.slot as u64 * slots.slot, bytes })
    }

    /// What the device wrote of `value` for `part`, if it is offloaded.
    pub fn bytes(&self, value: usize, part: &Part<'_>) -> Option<&[u8]> {
        let slots = self.0.get(&value)?;
        let first = part.slot * slots.slot as usize;
        slots.bytes.get(first..first + part.batch.sequences() * slots.row as usize)
    }
}
