//! What the values of stages need besides their sizes: workspaces, and how long each lives.

use super::batch::Capacity;
use super::compile::changes_in_place;
use super::cut::Draft;
use super::program::{ProgramValue, Storage, root};
use super::stage::{Action, Side, Stage};
use super::strategy::{self, Target};
use super::stream::Brought;
use crate::error::{Error, Result};
use crate::graph::Shape;
use std::collections::{BTreeMap, BTreeSet};

/// Stages whose values get workspaces and lifetimes.
pub(super) struct Laid<'a> {
    pub target: Target,
    pub capacity: &'a Capacity,
    pub values: Vec<ProgramValue>,
    pub stages: Vec<Stage>,
    /// Where the device has what waits away from it.
    pub brought: Brought,
}

impl Laid<'_> {
    /// Refuses an order in which a persistent value would be read after it has changed in place.
    pub fn check_updates(&self) -> Result<()> {
        let mut changed: BTreeMap<usize, usize> = BTreeMap::new();
        // Whether `v` is what the value came to be, or a view of it.
        let is_new = |mut v: usize, new: usize| {
            while let (true, Storage::Of(source)) = (v != new, self.values[v].storage) {
                v = source;
            }
            v == new
        };
        for action in self.stages.iter().flat_map(Stage::actions) {
            let stale = |v: usize| changed.get(&root(&self.values, v)).is_some_and(|&new| !is_new(v, new));
            let read = action.reads().into_iter().find(|&v| stale(v));
            if let Some(v) = read {
                return Err(Error::unsupported(format!("memory: `{}` would change too early", self.values[v].name)));
            }
            // A view of a persistent value shares its storage too and changes nothing.
            let Action::Step(step) = &action else { continue };
            let outputs = step.outputs.iter().filter(|_| changes_in_place(&step.op)).flatten();
            let made = outputs.map(|&v| (root(&self.values, v), v));
            changed.extend(made.filter(|m| self.values[m.0].storage == Storage::Persistent));
        }
        Ok(())
    }

    pub fn workspaces(&mut self) {
        let mut packed: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for stage in &mut self.stages {
            for action in &mut stage.body {
                let Action::Step(step) = action else { continue };
                let capacity = stage.cut.map_or_else(|| self.capacity.clone(), |cut| cut.capacity(self.capacity));
                let shapes: Vec<Option<&Shape>> =
                    step.inputs.iter().map(|v| v.map(|v| &self.values[v].shape)).collect();
                let len = |s: &Shape| capacity.resolve(s).map_or(0, |s| s.iter().product());
                let needs = strategy::workspace(step, &self.target, &shapes, &len);
                for (at, need) in needs.into_iter().enumerate() {
                    let comes = |at: &usize| step.inputs[*at].is_some_and(|v| self.brought.places.contains_key(&v));
                    let kept = !need.packs.is_empty() && !need.packs.iter().any(comes);
                    if let Some(&value) = packed.get(&(step.number, at)).filter(|_| kept) {
                        step.workspace.push(value);
                        step.packs.push(Vec::new());
                        continue;
                    }
                    let name = format!("{}.{}.{}", step.op.name(), step.number, need.role);
                    self.values.push(ProgramValue {
                        dtype: need.dtype,
                        cut: stage.cut.filter(|_| !kept),
                        first: if kept { 0 } else { usize::MAX },
                        last: if kept { usize::MAX } else { 0 },
                        ..ProgramValue::own(name, need.shape)
                    });
                    let value = self.values.len() - 1;
                    if kept {
                        packed.insert((step.number, at), value);
                    }
                    if need.uploaded {
                        self.values[value].first = 0; // narrowed to its stage below
                    }
                    step.workspace.push(value);
                    step.packs.push(need.packs);
                }
            }
        }
    }

    /// What the host's processor packs for each of so many steps.
    pub fn packs(&self, steps: usize) -> Result<Vec<Vec<usize>>> {
        let mut all = vec![Vec::new(); steps];
        for stage in &self.stages {
            let capacity = stage.cut.map_or_else(|| self.capacity.clone(), |cut| cut.capacity(self.capacity));
            for step in stage.steps() {
                let shapes: Vec<Option<&Shape>> =
                    step.inputs.iter().map(|v| v.map(|v| &self.values[v].shape)).collect();
                all[step.number] = strategy::packs(&step.op, &self.target, &shapes, &capacity)?;
            }
        }
        Ok(all)
    }

    fn touch(&mut self, value: usize, first: usize, last: usize) {
        let root = root(&self.values, value);
        let v = &mut self.values[root];
        v.first = v.first.min(first);
        v.last = v.last.max(last);
    }

    /// In stages that run once a value lives from the first action that touches it to the last. In a loop that holds for
    /// what a part computes and uses up; what comes from outside or from the part before lives as long as the loop.
    pub fn lifetimes(&mut self, draft: &Draft) {
        let stages = std::mem::take(&mut self.stages);
        // Where each value's storage is touched: the stages, and whether one begins by reading it.
        let (mut within, mut carried) = (BTreeMap::<usize, usize>::new(), BTreeSet::new());
        for (number, stage) in stages.iter().enumerate() {
            let mut written = BTreeSet::new();
            let outside = stage.before.iter().chain(&stage.after);
            carried.extend(outside.flat_map(|m| [m.from, m.to]).filter_map(Side::value).map(|v| root(&self.values, v)));
            for action in &stage.body {
                let reads: Vec<usize> = action.reads().iter().map(|&v| root(&self.values, v)).collect();
                carried.extend(reads.iter().filter(|v| !written.contains(*v)));
                let writes: Vec<usize> = action.writes().iter().map(|&v| root(&self.values, v)).collect();
                match action {
                    Action::Step(step) if step.accumulates => {
                        // What is brought for each part goes away after it.
                        let stays = step.outputs.iter().flatten().map(|&v| root(&self.values, v));
                        carried.extend(stays.filter(|v| !self.brought.places.contains_key(v)));
                    }
                    Action::Move(m) if !matches!(m.to, Side::Whole(_)) => carried.extend(writes.iter().copied()),
                    _ => {}
                }
                for v in reads.into_iter().chain(writes.iter().copied()) {
                    if *within.entry(v).or_insert(number) != number {
                        carried.insert(v);
                    }
                }
                written.extend(writes);
            }
        }
        let mut at = 0usize;
        for stage in &stages {
            let (begin, mut here) = (at, Vec::new());
            for action in stage.actions() {
                here.extend(action.reads().into_iter().chain(action.writes()).map(|v| (v, at)));
                at += 1;
            }
            let end = at.saturating_sub(1);
            for (v, action) in here {
                if stage.cut.is_some() && carried.contains(&root(&self.values, v)) {
                    self.touch(v, begin, end);
                } else {
                    self.touch(v, action, action);
                }
            }
            if stage.cut.is_some() {
                // What the host writes for each part is there when the part begins.
                for step in stage.steps() {
                    for &w in &step.workspace {
                        if self.values[w].first == 0 && self.values[w].last != usize::MAX {
                            self.values[w].first = begin;
                        }
                    }
                }
            }
        }
        draft.ends.iter().for_each(|&v| self.touch(v, at, at));
        // What is uploaded before the run.
        let held = |&v: &usize| self.values[root(&self.values, v)].first != usize::MAX;
        let whole: Vec<usize> = draft.inputs.iter().copied().filter(held).collect();
        whole.into_iter().for_each(|v| self.touch(v, 0, 0));
        self.values.iter_mut().for_each(|v| v.last = v.last.min(at));
        self.stages = stages;
    }
}
