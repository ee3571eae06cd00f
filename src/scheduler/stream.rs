//! Weights that wait in the host's memory or in their file: which may, and where a device that has memory of its own gets them.
//!
//! A whole sequence passes through a step before the next one's weights are brought, so that in a run at once each weight comes
//! once for every step that reads it. A step's weights are packed one after the other; what a weight was packed from makes
//! room for the next.

use super::compile::changes_in_place;
use super::cut::Draft;
use super::program::{ProgramValue, Storage, root};
use super::stage::{Action, Move, Side, Stage};
use crate::graph::Op;
use crate::params::DType;
use std::collections::{BTreeMap, BTreeSet};

/// Values from which on a value is worth being brought.
const LEAST: usize = 16 * 1024;

/// Values that may wait, those that are read most often last: of fixed sizes, kept by the session or, with `own`, sums over a
/// run's rows, and read by nobody but steps, or changed by one in their place.
pub(super) fn candidates(draft: &Draft, copies: &[(usize, usize)], own: bool) -> Vec<usize> {
    let values = &draft.values;
    let given = draft.inputs.iter().chain(&draft.ends);
    let mut barred: BTreeSet<usize> = given.map(|&v| root(values, v)).collect();
    barred.extend(copies.iter().flat_map(|&(to, from)| [to, root(values, from)]));
    for step in &draft.steps {
        let outputs = step.outputs.iter().flatten();
        let aliased = outputs.filter(|&&v| matches!(values[v].storage, Storage::Of(_)));
        let scattered = step.op == Op::Scatter;
        if !changes_in_place(&step.op) || scattered {
            barred.extend(aliased.map(|&v| root(values, v)));
        }
    }
    let fits = |v: &ProgramValue| {
        let kind = v.storage == Storage::Persistent || own && v.storage == Storage::Own;
        kind && v.dtype == DType::F32 && v.shape.fixed_len().is_some_and(|len| len >= LEAST)
    };
    let mut all: Vec<usize> = (0..values.len()).filter(|v| !barred.contains(v) && fits(&values[*v])).collect();
    let uses = |v: &usize| draft.steps.iter().filter(|s| s.inputs.contains(&Some(*v))).count();
    all.sort_by_cached_key(|v| (uses(v), std::cmp::Reverse(values[*v].shape.fixed_len()), *v));
    all
}

/// Gives every step of a device that reads what waits a place of its own for it; which value each such place stands for.
pub(super) fn bring(values: &mut Vec<ProgramValue>, stages: &mut [Stage]) -> BTreeMap<usize, usize> {
    let mut brought = BTreeMap::new();
    for action in stages.iter_mut().flat_map(|s| &mut s.body) {
        let Action::Step(step) = action else { continue };
        let mut here: BTreeMap<usize, usize> = BTreeMap::new();
        for input in step.inputs.iter_mut().flatten() {
            let home = *input;
            if !values[home].offloaded || values[home].cut.is_some() {
                continue;
            }
            *input = *here.entry(home).or_insert_with(|| {
                let name = format!("{} (here)", values[home].name);
                values.push(ProgramValue::own(name, values[home].shape.clone()));
                brought.insert(values.len() - 1, home);
                values.len() - 1
            });
        }
    }
    brought
}

/// Has what each step reads brought before it, and packed where it reads it packed.
pub(super) fn expand(stages: &mut [Stage], brought: &BTreeMap<usize, usize>) {
    if brought.is_empty() {
        return;
    }
    for stage in stages {
        for action in std::mem::take(&mut stage.body) {
            let Action::Step(mut step) = action else {
                stage.body.push(action);
                continue;
            };
            let mut here = BTreeSet::new();
            for number in 0..step.packs.len() {
                let sources: Vec<usize> = step.packs[number].clone();
                let values = |at: &usize| step.inputs[*at].filter(|v| brought.contains_key(v));
                let from: Vec<usize> = sources.iter().filter_map(values).collect();
                if from.is_empty() {
                    continue;
                }
                for value in from.into_iter().filter(|v| here.insert(*v)) {
                    stage.body.push(comes(brought, value));
                }
                stage.body.push(Action::Pack(Box::new(step.clone()), number));
                step.gone.extend(sources.iter().filter(|at| step.inputs[**at].is_some_and(|v| here.contains(&v))));
                step.packs[number].clear();
            }
            let left: BTreeSet<usize> = step.reads().filter(|v| brought.contains_key(v) && !here.contains(v)).collect();
            stage.body.extend(left.into_iter().map(|value| comes(brought, value)));
            stage.body.push(Action::Step(step));
        }
    }
}

fn comes(brought: &BTreeMap<usize, usize>, value: usize) -> Action {
    Action::Move(Move { from: Side::Home(brought[&value]), to: Side::Whole(value) })
}
