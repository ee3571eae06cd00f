//! Weights that wait in the host's memory or in their file: which may, and where a device that has memory of its own gets them.
//!
//! A whole sequence passes through a step before the next one's weights are brought, so that in a run at once each weight comes
//! once for every step that reads it. A step's weights are packed one after the other; what a weight was packed from makes
//! room for the next.

use super::compile::{changes_in_place, writes_rows};
use super::cut::Draft;
use super::precision::Precision;
use super::program::{ProgramValue, Step, Storage, root};
use super::stage::{Action, Move, Side, Stage};
use super::strategy::Target;
use crate::graph::{Op, Over, ReduceKind, Shape};
use crate::params::DType;
use std::collections::{BTreeMap, BTreeSet};

/// Values from which on a value is worth being brought.
const LEAST: usize = 16 * 1024;

/// Values that may wait, those that are read most often last: of fixed sizes, kept by the session or sums over a
/// run's rows, and read by nobody but steps, or changed by one in their place.
pub(super) fn candidates(draft: &Draft, copies: &[(usize, usize)]) -> Vec<usize> {
    let values = &draft.values;
    let given = draft.inputs.iter().chain(&draft.ends);
    let mut barred: BTreeSet<usize> = given.map(|&v| root(values, v)).collect();
    barred.extend(copies.iter().flat_map(|&(to, from)| [to, root(values, from)]));
    for step in &draft.steps {
        let outputs = step.outputs.iter().flatten();
        let aliased = outputs.filter(|&&v| matches!(values[v].storage, Storage::Of(_)));
        let scattered = writes_rows(&step.op);
        if !changes_in_place(&step.op) || scattered {
            barred.extend(aliased.map(|&v| root(values, v)));
        }
    }
    let fits = |v: &ProgramValue| {
        matches!(v.storage, Storage::Persistent | Storage::Own)
            && v.dtype == DType::F32
            && v.shape.fixed_len().is_some_and(|len| len >= LEAST)
    };
    // A session has all slabs of a value in one place.
    let slabs = barred.iter().map(|&v| &values[v]).filter(|v| is_kept_slab(v));
    let barred_names: BTreeSet<&str> = slabs.map(|v| v.name.as_str()).collect();
    let alone = |v: usize| !is_kept_slab(&values[v]) || !barred_names.contains(values[v].name.as_str());
    let free = |v: &usize| !barred.contains(v) && alone(*v) && fits(&values[*v]);
    let mut all: Vec<usize> = (0..values.len()).filter(free).collect();
    let uses = |v: &usize| draft.steps.iter().filter(|s| s.inputs.contains(&Some(*v))).count();
    all.sort_by_cached_key(|v| (uses(v), std::cmp::Reverse(values[*v].shape.fixed_len()), *v));
    all
}

/// Has all slabs of what a session keeps wait where one of them does.
pub(super) fn together(values: &mut [ProgramValue]) {
    let waits: BTreeSet<String> =
        values.iter().filter(|v| is_kept_slab(v) && v.offloaded).map(|v| v.name.clone()).collect();
    values.iter_mut().filter(|v| is_kept_slab(v)).for_each(|v| v.offloaded = waits.contains(&v.name));
}

/// Whether a session has it as some rows of a value.
fn is_kept_slab(value: &ProgramValue) -> bool {
    value.slab.is_some() && value.storage == Storage::Persistent
}

/// Sums over several values that wait become a sum of each, as soon as it is there, and of these: none has to wait for another.
/// Values are added up in another order.
pub(super) fn split_sums(draft: &mut Draft) {
    let mut at = 0;
    while at < draft.steps.len() {
        let step = &draft.steps[at];
        let Op::Reduce { over: Over::All, .. } = step.op else {
            at += 1;
            continue;
        };
        let waits = |v: &usize| draft.values[*v].offloaded;
        let (away, here): (Vec<usize>, Vec<usize>) = step.inputs.iter().flatten().copied().partition(waits);
        if away.is_empty() || away.len() + here.len() < 2 {
            at += 1;
            continue;
        }
        let whole = step.clone();
        let groups = away.iter().map(|&v| vec![v]).chain((!here.is_empty()).then_some(here));
        let mut parts = Vec::new();
        for inputs in groups.collect::<Vec<_>>() {
            draft.values.push(ProgramValue::own(format!("{} (part)", draft.values[inputs[0]].name), Shape::from([1])));
            parts.push(Some(draft.values.len() - 1));
            let ready = |s: &Step| inputs.iter().any(|v| s.outputs.contains(&Some(*v)));
            let after = draft.steps[..at].iter().rposition(ready).map_or(0, |producer| producer + 1);
            let inputs = inputs.into_iter().map(Some).collect();
            let outputs = vec![draft.values.len().checked_sub(1)];
            draft.steps.insert(after, Step { inputs, outputs, ..whole.clone() });
            at += 1;
        }
        let op = Op::Reduce { kind: ReduceKind::Sum, over: Over::All };
        draft.steps[at] = Step { op, inputs: parts, ..whole };
        at += 1;
    }
    draft.steps.iter_mut().enumerate().for_each(|(number, step)| step.number = number);
}

/// Where a device has what waits away from it, and what it sends there.
#[derive(Debug, Default)]
pub(super) struct Brought {
    /// What each place stands for.
    pub places: BTreeMap<usize, usize>,
    /// Of values that steps write: the place, and what it stands for.
    sent: BTreeMap<usize, (usize, usize)>,
}

/// Gives every step of a device that reads or writes what waits a place of its own for it.
pub(super) fn bring(values: &mut Vec<ProgramValue>, stages: &mut [Stage]) -> Brought {
    let mut all = Brought::default();
    for action in stages.iter_mut().flat_map(|s| &mut s.body) {
        let Action::Step(step) = action else { continue };
        let mut here: BTreeMap<usize, usize> = BTreeMap::new();
        let mut place = |values: &mut Vec<ProgramValue>, home: usize| {
            *here.entry(home).or_insert_with(|| {
                let name = format!("{} (here)", values[home].name);
                let slab = values[home].slab;
                values.push(ProgramValue { slab, ..ProgramValue::own(name, values[home].shape.clone()) });
                all.places.insert(values.len() - 1, home);
                values.len() - 1
            })
        };
        let waits = |values: &[ProgramValue], v: usize| values[v].offloaded && values[v].cut.is_none();
        for input in step.inputs.iter_mut().flatten() {
            if waits(values, *input) {
                *input = place(values, *input);
            }
        }
        for output in step.outputs.iter_mut().flatten() {
            let home = root(values, *output);
            if !waits(values, home) {
                continue;
            }
            let at = place(values, home);
            if *output == home {
                *output = at;
            } else {
                // In the place of what it was; who reads it reads it there.
                values[*output].storage = Storage::Of(at);
            }
            all.sent.insert(*output, (at, home));
        }
    }
    all
}

/// Has what each step reads brought before it, and packed where it reads it packed; and what it writes sent away after it.
/// Where host and device share memory, the host packs on the way: it copies the weight in any case, and only the packed form
/// takes room on the device. A device with memory of its own packs faster than a host could feed it.
pub(super) fn expand(stages: &mut [Stage], brought: &Brought, target: &Target) {
    let by_host = target.unified && target.precision == Precision::F32;
    if brought.places.is_empty() {
        return;
    }
    let comes = |value: usize| Action::Move(Move { from: Side::Home(brought.places[&value]), to: Side::Whole(value) });
    for stage in stages {
        for action in std::mem::take(&mut stage.body) {
            let Action::Step(mut step) = action else {
                stage.body.push(action);
                continue;
            };
            let mut here = BTreeSet::new();
            for number in 0..step.packs.len() {
                let sources: Vec<usize> = step.packs[number].clone();
                let values = |at: &usize| step.inputs[*at].filter(|v| brought.places.contains_key(v));
                let from: Vec<usize> = sources.iter().filter_map(values).collect();
                if from.is_empty() {
                    continue;
                }
                if by_host && from.len() == step.sources(number).count() {
                    let mut homes = step.clone();
                    homes.inputs.iter_mut().flatten().for_each(|v| *v = brought.places.get(v).copied().unwrap_or(*v));
                    stage.body.push(Action::Bring(Box::new(homes), number));
                    step.gone.extend(sources);
                    step.packs[number].clear();
                    continue;
                }
                stage.body.extend(from.into_iter().filter(|v| here.insert(*v)).map(comes));
                stage.body.push(Action::Pack(Box::new(step.clone()), number));
                step.gone.extend(sources.iter().filter(|at| step.inputs[**at].is_some_and(|v| here.contains(&v))));
                step.packs[number].clear();
            }
            let mut left: BTreeSet<usize> = step.reads().collect();
            // What goes on from part to part is read too.
            left.extend(step.outputs.iter().flatten().filter(|_| step.accumulates));
            let left = left.into_iter().filter(|v| brought.places.contains_key(v) && !here.contains(v));
            stage.body.extend(left.map(comes));
            let goes = step.outputs.iter().flatten().filter_map(|v| brought.sent.get(v));
            let goes: Vec<Move> =
                goes.map(|&(at, home)| Move { from: Side::Whole(at), to: Side::Home(home) }).collect();
            stage.body.push(Action::Step(step));
            stage.body.extend(goes.into_iter().map(Action::Move));
        }
    }
}
