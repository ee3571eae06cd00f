//! What a program holds, to the byte: the same sums as at the places that allocate.

use super::memory::ALIGNMENT;
use super::program::{Program, ProgramValue, Storage};
use super::stage::{Action, Move, Side};
use super::strategy::{Executor, PARAMETER_SLOTS, RUN_SCALARS};
use super::table::Layout;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The least that a buffer takes for values on their way to the host.
pub const STAGING: u64 = 256;
/// Bytes that stand for an absent value; there is one to be read, one to be written, and one for a count.
pub const NOTHING: u64 = 256;

/// What a program holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// Values of one run.
    pub arenas: u64,
    /// Parameters, optimiser states and whatever else a session keeps between runs.
    pub persistent: u64,
    /// Weights packed for the host's processor.
    pub packs: u64,
    /// What a GPU is told of a run: the batch's table, scalars, parameters of dispatches.
    pub tables: u64,
    /// Values on their way from a GPU to the host, or to a GPU that shares the host's memory.
    pub staging: u64,
    /// What waits in the host's memory or in files, which are not the device's and not counted with it: weights, states of
    /// segments.
    pub offloaded: u64,
}

impl Memory {
    /// All that is on the device.
    pub fn bytes(&self) -> u64 {
        self.arenas + self.persistent + self.packs + self.tables + self.staging
    }
}

impl Program {
    /// Where the table of its batches holds what.
    pub fn table(&self) -> Layout {
        Layout::new(&self.capacity, self.measures.cut().map(|(cut, _)| cut))
    }

    /// Bytes of a value, for the largest batch that it holds values of.
    pub fn bytes(&self, value: &ProgramValue) -> u64 {
        4 * value.sizes(&self.capacity).map_or(0, |sizes| sizes.iter().product::<usize>()) as u64
    }

    /// What the program holds on its device, with what the device's session holds for all its programs.
    pub fn memory(&self) -> Memory {
        let bytes = |v: &ProgramValue| self.bytes(v);
        let held = |v: &&ProgramValue| v.storage == Storage::Persistent && !v.offloaded;
        let persistent = self.values.iter().filter(held).map(bytes).sum();
        let offloaded = self.values.iter().filter(|v| v.offloaded).map(bytes).sum();
        let arenas = self.placement.bytes();
        let own = self.packs.iter().zip(&self.shares).filter(|(_, shared)| !**shared).flat_map(|(packs, _)| packs);
        let packs = 4 * own.chain(&self.shared_packs()).sum::<usize>() as u64;
        if self.target.executor != Executor::Gpu {
            return Memory { arenas, persistent, packs, offloaded, ..Memory::default() };
        }
        let parameters = PARAMETER_SLOTS as u64 * self.target.limits.uniform;
        let tables = 4 * (self.table().words() + RUN_SCALARS) as u64 + parameters + 3 * NOTHING;
        Memory { arenas, persistent, packs, tables, staging: self.staging() + self.moved(), offloaded }
    }

    /// Bytes that are brought to the device, and sent from there, in a run of the largest batch.
    pub fn traffic(&self) -> [u64; 2] {
        let mut all = [0, 0];
        for stage in &self.stages {
            let parts = stage.cut.map_or(1, |cut| cut.slots(&self.capacity)) as u64;
            for action in &stage.body {
                match action {
                    Action::Move(Move { from: Side::Home(v), .. }) => all[0] += parts * self.bytes(&self.values[*v]),
                    Action::Move(Move { to: Side::Home(v), .. }) => all[1] += parts * self.bytes(&self.values[*v]),
                    Action::Bring(step, at) => all[0] += parts * self.bytes(&self.values[step.workspace[*at]]),
                    _ => {}
                }
            }
        }
        all
    }

    /// Bytes of the device's memory that are for what is brought and sent: where it is the host's.
    pub fn moved(&self) -> u64 {
        let ways = 1 + u64::from(self.sends());
        if self.target.unified { ways * self.on_the_way().1 } else { 0 }
    }

    /// Whether the device changes what waits away from it.
    pub fn sends(&self) -> bool {
        let sends = |action: &Action| matches!(action, Action::Move(Move { to: Side::Home(_), .. }));
        self.stages.iter().any(|stage| stage.body.iter().any(sends))
    }

    /// Bytes of weights that are moved at a time, and that may be on their way in either direction: some, so that the host goes on
    /// while the device computes. Where they wait in memory that is the device's too, they are few. Estimates.
    pub fn on_the_way(&self) -> (u64, u64) {
        const MIB: u64 = 1 << 20;
        let away = self.values.iter().filter(|v| v.offloaded && self.measures.stream);
        let largest = away.map(|v| self.bytes(v)).max().unwrap_or(0);
        if self.target.unified {
            let chunk = (largest / 4).next_multiple_of(ALIGNMENT).min(4 * MIB);
            (chunk, 2 * chunk)
        } else {
            (largest.min(16 * MIB), (2 * largest).min(128 * MIB))
        }
    }

    /// Values of each place where steps of the host's processor pack what others pack there too.
    pub fn shared_packs(&self) -> Vec<usize> {
        let mut most = Vec::new();
        for (packs, _) in self.packs.iter().zip(&self.shares).filter(|(_, shared)| **shared) {
            most.resize(most.len().max(packs.len()), 0);
            most.iter_mut().zip(packs).for_each(|(most, &values)| *most = values.max(*most));
        }
        most
    }

    /// Bytes of its largest output.
    pub fn staging(&self) -> u64 {
        self.outputs.iter().map(|o| self.bytes(&self.values[o.1])).max().unwrap_or(0).max(STAGING)
    }
}

/// Counts bytes at a place that allocates, and refuses what is beyond a limit.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    held: AtomicU64,
    most: AtomicU64,
    limit: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        Self { held: AtomicU64::new(0), most: AtomicU64::new(0), limit: AtomicU64::new(u64::MAX) }
    }
}

impl Meter {
    /// Counts `bytes` until the claim is dropped; nothing where they are beyond the limit.
    pub fn claim(&self, bytes: u64) -> Option<Claim> {
        let counts = &self.0;
        let held = counts.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let claim = Claim { bytes, counts: Arc::clone(counts) };
        if held > counts.limit.load(Ordering::Relaxed) {
            return None;
        }
        counts.most.fetch_max(held, Ordering::Relaxed);
        Some(claim)
    }

    /// Bytes that are held, and the most that ever were.
    pub fn held(&self) -> (u64, u64) {
        (self.0.held.load(Ordering::Relaxed), self.0.most.load(Ordering::Relaxed))
    }

    /// Refuses from now on what is beyond `bytes` in all.
    pub fn limit(&self, bytes: u64) {
        self.0.limit.store(bytes, Ordering::Relaxed);
    }
}

/// Bytes that are held.
#[derive(Debug)]
pub struct Claim {
    bytes: u64,
    counts: Arc<Counts>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.counts.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A number of bytes for people.
pub fn amount(bytes: u64) -> String {
    let (mut size, mut unit) = (bytes as f64, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if size < 1024.0 {
            break;
        }
        (size, unit) = (size / 1024.0, next);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{size:.1} {unit}") }
}
