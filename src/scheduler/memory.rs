//! Where values live: arenas shared by values whose lifetimes do not overlap.

use super::batch::Capacity;
use super::program::{ProgramValue, Storage};
use super::stage::{Action, Stage};
use super::strategy::{Executor, Target, row_axis};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Alignment of every place, in bytes; the largest that any device asks of a storage binding.
pub const ALIGNMENT: u64 = 256;

/// Where one value's storage is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Arena and byte offset of each piece.
    pub pieces: Vec<(usize, u64)>,
    /// Bytes of each piece.
    pub piece_bytes: u64,
    /// Rows of each piece; all rows where there is one piece.
    pub piece_rows: usize,
}

/// Where every value of a program that is not persistent lives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// Bytes of each arena.
    pub arenas: Vec<u64>,
    /// The place of each value that has storage of its own; others are views, or persistent.
    pub places: BTreeMap<usize, Place>,
}

impl Placement {
    /// Bytes of all arenas.
    pub fn bytes(&self) -> u64 {
        self.arenas.iter().sum()
    }
}

/// One value to be placed.
struct Item {
    value: usize,
    bytes: u64,
    pieces: usize,
    piece_rows: usize,
    first: usize,
    last: usize,
}

/// Rows of one piece of every value over time axis `axis`: all of them where the widest value fits a binding.
fn piece_rows(values: &[ProgramValue], capacity: &Capacity, target: &Target, axis: u8) -> Result<usize> {
    let mut rows = usize::MAX;
    for value in values.iter().filter(|v| row_axis(&v.shape) == Some(axis) && v.first != usize::MAX) {
        let sizes = value.sizes(capacity)?;
        let row_bytes = 4 * sizes[1..].iter().product::<usize>().max(1) as u64;
        let limit = target.limits.binding.min(target.limits.buffer);
        if sizes[0] as u64 * row_bytes > limit {
            // A multiple of 64 rows keeps every piece aligned whatever the row's size.
            let fit = (limit / row_bytes) as usize / 64 * 64;
            if fit == 0 {
                return Err(too_large(&value.name, 64 * row_bytes, limit, "64 rows of it"));
            }
            rows = rows.min(fit);
        }
    }
    Ok(rows)
}

fn too_large(name: &str, bytes: u64, limit: u64, what: &str) -> Error {
    Error::budget(format!("`{name}`: {what} take {bytes} bytes, the device allows {limit} in one binding"))
}

/// Places all values, sharing memory between those that are never alive at once; with `fresh` every value has its own, with
/// `whole` none may be in pieces; those `given` are elsewhere.
pub(super) fn place(
    values: &[ProgramValue],
    stages: &[Stage],
    capacity: &Capacity,
    target: &Target,
    fresh: bool,
    (whole, given): (bool, &BTreeSet<usize>),
) -> Result<Placement> {
    let mut axis_rows = BTreeMap::new();
    for axis in values.iter().filter_map(|v| row_axis(&v.shape)) {
        if let std::collections::btree_map::Entry::Vacant(entry) = axis_rows.entry(axis) {
            let rows = piece_rows(values, capacity, target, axis)?;
            if whole && rows != usize::MAX {
                return Err(Error::budget(format!(
                    "memory: a part exceeds the {} bytes of a binding",
                    target.limits.binding
                )));
            }
            entry.insert(rows);
        }
    }
    let mut items = Vec::new();
    for (at, value) in values.iter().enumerate() {
        if value.storage != Storage::Own || value.first == usize::MAX || value.offloaded || given.contains(&at) {
            continue;
        }
        let sizes = value.sizes(capacity)?;
        let bytes = 4 * sizes.iter().product::<usize>().max(1) as u64;
        let limit = target.limits.binding.min(target.limits.buffer);
        let rows = sizes.first().copied().unwrap_or(1).max(1);
        let split = row_axis(&value.shape).map_or(rows, |a| axis_rows[&a]).min(rows).max(1);
        let pieces = rows.div_ceil(split);
        let piece = (bytes / rows as u64 * split as u64).next_multiple_of(ALIGNMENT);
        if piece > limit.checked_next_multiple_of(ALIGNMENT).unwrap_or(limit) {
            return Err(too_large(&value.name, bytes, limit, "its values"));
        }
        items.push(Item { value: at, bytes: piece, pieces, piece_rows: split, first: value.first, last: value.last });
    }
    let conflicts = conflicts(values, stages, target);
    let mut arenas = Arenas { limit: target.limits.buffer, fresh, arenas: Vec::new() };
    // Large and early first; ties by number, so that the plan depends on the graph alone.
    items.sort_by_key(|i| (std::cmp::Reverse(i.bytes), i.first, i.value));
    let mut places = BTreeMap::new();
    for item in &items {
        let pieces = (0..item.pieces).map(|_| arenas.put(item, &conflicts)).collect();
        places.insert(item.value, Place { pieces, piece_bytes: item.bytes, piece_rows: item.piece_rows });
    }
    Ok(Placement { arenas: arenas.arenas.iter().map(|a| a.bytes).collect(), places })
}

/// Values that may not share an arena, because one step reads one and writes the other: a device binds a buffer either
/// for reading or for writing, and the CPU borrows likewise.
fn conflicts(values: &[ProgramValue], stages: &[Stage], target: &Target) -> Vec<BTreeSet<usize>> {
    let mut all = vec![BTreeSet::new(); values.len()];
    if target.executor == Executor::Reference {
        return all;
    }
    let root = |v: usize| super::program::root(values, v);
    for action in stages.iter().flat_map(Stage::actions) {
        let written: BTreeSet<usize> = action.writes().into_iter().map(root).collect();
        let read = action.reads().into_iter().map(root).filter(|v| !written.contains(v));
        for r in read.collect::<BTreeSet<_>>() {
            for &w in &written {
                all[r].insert(w);
                all[w].insert(r);
            }
        }
        // Workspace is written by one kernel of a step and read by the next.
        let Action::Step(step) = &action else { continue };
        for &w in &step.workspace {
            for v in written.iter().copied().filter(|&v| v != w) {
                all[w].insert(v);
                all[v].insert(w);
            }
        }
    }
    all
}

struct Arena {
    bytes: u64,
    /// value, offset, bytes, first and last step
    items: Vec<(usize, u64, u64, usize, usize)>,
}

struct Arenas {
    limit: u64,
    fresh: bool,
    arenas: Vec<Arena>,
}

impl Arenas {
    /// The lowest free offset of `arena` for `item`.
    fn offset(arena: &Arena, item: &Item) -> u64 {
        let mut busy: Vec<(u64, u64)> = arena
            .items
            .iter()
            .filter(|(_, _, _, first, last)| *first <= item.last && item.first <= *last)
            .map(|&(_, offset, bytes, ..)| (offset, offset + bytes))
            .collect();
        busy.sort_unstable();
        let mut at = 0;
        for (start, end) in busy {
            if start >= at + item.bytes {
                break;
            }
            at = at.max(end);
        }
        at
    }

    /// Puts one piece of `item` where the arenas grow least.
    fn put(&mut self, item: &Item, conflicts: &[BTreeSet<usize>]) -> (usize, u64) {
        let mut best: Option<(u64, usize, u64)> = None;
        for (a, arena) in self.arenas.iter().enumerate() {
            let barred = self.fresh || arena.items.iter().any(|(v, ..)| conflicts[item.value].contains(v));
            let offset = Self::offset(arena, item);
            if barred || offset + item.bytes > self.limit {
                continue;
            }
            let growth = (offset + item.bytes).saturating_sub(arena.bytes);
            if best.is_none_or(|b| (growth, a) < (b.0, b.1)) {
                best = Some((growth, a, offset));
            }
        }
        let (a, offset) = match best {
            Some((_, a, offset)) => (a, offset),
            None => {
                self.arenas.push(Arena { bytes: 0, items: Vec::new() });
                (self.arenas.len() - 1, 0)
            }
        };
        let arena = &mut self.arenas[a];
        arena.bytes = arena.bytes.max(offset + item.bytes);
        arena.items.push((item.value, offset, item.bytes, item.first, item.last));
        (a, offset)
    }
}
