//! Cuts a program into stages whose rows are held a part at a time.
//!
//! Operations on rows form stages, each a loop over the parts: what the losses are made of first, then, from the last
//! part to the first, their gradients. What a later stage needs of an earlier one is either stored whole or computed
//! again, part by part, from what is stored; recurrences begin again at the states they had where the part begins.

use super::batch::{Capacity, GRADIENT_CHUNK};
use super::compile::{always, writes_rows};
use super::measures::Keep;
use super::program::{ProgramValue, Step, Storage, root};
use super::stage::{Action, Cut, Move, Side, Stage};
use super::strategy::Executor;
use crate::config::Direction;
use crate::graph::lstm::{backward, forward};
use crate::graph::{Dim, Gather, LstmPart, Op, Over, Shape, Symbol};
use std::collections::{BTreeMap, BTreeSet};

/// A program before it has places: values, steps, and what is wanted of them.
#[derive(Clone)]
pub(super) struct Draft {
    pub executor: Executor,
    pub values: Vec<ProgramValue>,
    pub steps: Vec<Step>,
    /// Values that are inputs, in order.
    pub inputs: Vec<usize>,
    /// Values that are read after the run.
    pub ends: Vec<usize>,
}

/// Whether an operation can run on some timesteps after the others. Bidirectional layers meet their parts in two orders;
/// reversed ones would add up gradients in another order than layers that read forward.
fn cuts_time(op: &Op) -> bool {
    match op {
        Op::Lstm(lstm) | Op::LstmBackward(lstm) | Op::LstmWeightGradient { lstm, .. } => {
            lstm.direction == Direction::Forward
        }
        Op::OverTime { .. } | Op::Attention(_) | Op::AttentionBackward { .. } => false,
        // Their steps are counted from where the run begins.
        Op::Recall(_) | Op::RecallBackward { .. } | Op::RecallPlaces(_) => false,
        Op::Gather(gather) => matches!(gather, Gather::EachStep { .. }),
        _ => true,
    }
}

fn on_batch(shape: &Shape) -> bool {
    matches!(shape.rows(), Some(Dim::Symbol(Symbol::Batch)))
}

/// The stages of `draft` under `cut`, with the values that they need; nothing where it has a part that cannot be cut.
pub(super) fn cut(
    draft: &Draft,
    cut: Cut,
    (keep, offload): (Keep, bool),
    capacity: &Capacity,
) -> Option<(Vec<ProgramValue>, Vec<Stage>)> {
    let plan = Plan::new(draft, cut)?;
    Some(plan.stages(draft, cut, (keep, offload), capacity))
}

/// Which stage each step belongs to.
struct Plan {
    /// For each step on rows its stage.
    stage: Vec<Option<usize>>,
    /// For each other step, how many stages come before it.
    after: Vec<usize>,
    /// The step that computes each value.
    producer: Vec<Option<usize>>,
    /// Whether each step needs what a backward recurrence gives, which no other stage can compute again: it would have to
    /// begin at the end of the sequences.
    backward: Vec<bool>,
    stages: usize,
}

impl Plan {
    fn new(draft: &Draft, cut: Cut) -> Option<Self> {
        let values = &draft.values;
        let row = |v: usize| values[v].shape.axis().is_some();
        // One time axis, whose order is the batch's; what outlives a run does not change in place.
        let other = |v: &ProgramValue| v.shape.axis().is_some_and(|axis| axis != cut.axis || axis != 0);
        let of_persistent = |v: &ProgramValue| match v.storage {
            Storage::Of(other) => values[root(values, other)].storage == Storage::Persistent,
            _ => false,
        };
        let kept = |v: &ProgramValue| v.shape.axis().is_some() && of_persistent(v);
        if values.iter().any(|v| other(v) || kept(v)) || !values.iter().any(|v| v.shape.axis().is_some()) {
            return None;
        }
        // Sums over rows go on from part to part in whole chunks.
        let whole_chunks = !cut.cuts_time() || cut.steps.is_multiple_of(GRADIENT_CHUNK);
        let mut producer: Vec<Option<usize>> = vec![None; values.len()];
        let mut backward = Vec::new();
        let (mut stage, mut after) = (Vec::new(), Vec::new());
        // Of values: the stage that computes rows, or the number of stages after which another is there.
        let mut at = vec![0usize; values.len()];
        let (mut stages, mut forwards, mut backwards) = (0, BTreeSet::new(), BTreeSet::new());
        for (number, step) in draft.steps.iter().enumerate() {
            let all = || step.inputs.iter().chain(&step.outputs).flatten();
            let mut own = step.inputs.iter().flatten().map(|&v| at[v]).max().unwrap_or(0);
            let on_rows = all().any(|&v| row(v));
            if on_rows {
                // A table with a row a sequence or step is read by numbers that count all of them.
                let table = step.inputs.first().copied().flatten().filter(|_| matches!(step.op, Op::Embedding));
                if (cut.cuts_time() && !cuts_time(&step.op))
                    || table.is_some_and(|t| on_batch(&values[t].shape) || row(t))
                {
                    return None;
                }
                // Each part would begin with the table as it was.
                if writes_rows(&step.op) {
                    return None;
                }
                let fixed = |v: &usize| !row(*v) && !on_batch(&values[*v].shape);
                if !whole_chunks && step.outputs.iter().flatten().any(fixed) {
                    return None;
                }
                // Part by part, what is no rows would be added again and again.
                let everything = matches!(step.op, Op::Reduce { over: Over::All, .. });
                if everything && step.inputs.iter().flatten().any(|&v| !row(v)) {
                    return None;
                }
                match step.op {
                    Op::Lstm(_) => {
                        forwards.insert(own);
                    }
                    Op::LstmBackward(_) => {
                        let gates = step.inputs[backward::GATES]?;
                        own = own.max(at[gates] + 1);
                        backwards.insert(own);
                    }
                    _ => {}
                }
                stages = stages.max(own + 1);
            }
            let needs = |v: &usize| producer[*v].is_some_and(|p: usize| backward[p]);
            let needs = matches!(step.op, Op::LstmBackward(_)) || step.inputs.iter().flatten().any(needs);
            backward.push(needs);
            for &v in step.outputs.iter().flatten() {
                at[v] = if on_rows && !row(v) { own + 1 } else { own };
                producer[v] = Some(number);
            }
            stage.push(on_rows.then_some(own));
            after.push(own);
        }
        // A stage runs either way in time.
        let both = cut.cuts_time() && forwards.intersection(&backwards).next().is_some();
        (!both).then_some(Self { stage, after, producer, backward, stages })
    }

    fn stages(
        &self,
        draft: &Draft,
        cut: Cut,
        (keep, offload): (Keep, bool),
        capacity: &Capacity,
    ) -> (Vec<ProgramValue>, Vec<Stage>) {
        let contents: Vec<Contents> = (0..self.stages).map(|s| self.contents(draft, s, keep)).collect();
        let mut stored: BTreeSet<usize> = contents.iter().flat_map(|c| c.stored.iter().copied()).collect();
        stored.extend(draft.ends.iter().copied());
        let again: BTreeSet<usize> = contents.iter().flat_map(|c| c.again.iter().copied()).collect();
        let mut read: BTreeSet<usize> = draft.steps.iter().flat_map(|s| s.inputs.iter().flatten().copied()).collect();
        read.extend(draft.ends.iter().copied());
        let mut writer = Writer {
            draft,
            plan: self,
            cut,
            offload,
            slots: cut.slots(capacity),
            sequences: cut.capacity(capacity).sequences,
            values: draft.values.clone(),
            stored,
            again,
            read,
            borders: BTreeMap::new(),
        };
        let mut all = Vec::new();
        for s in 0..=self.stages {
            let between = (0..draft.steps.len()).filter(|&n| self.stage[n].is_none() && self.after[n] == s);
            let body: Vec<Action> = between.map(|n| Action::Step(draft.steps[n].clone())).collect();
            if !body.is_empty() {
                all.push(Stage { body, ..Stage::default() });
            }
            if let Some(contents) = contents.get(s) {
                all.push(writer.stage(s, contents));
            }
        }
        (writer.values, all)
    }

    /// What stage `s` computes, computes again and takes from what is stored whole.
    fn contents(&self, draft: &Draft, s: usize, keep: Keep) -> Contents {
        let own: BTreeSet<usize> = (0..draft.steps.len()).filter(|&n| self.stage[n] == Some(s)).collect();
        let (mut again, mut stored) = (BTreeSet::new(), BTreeSet::new());
        let mut open: Vec<usize> = own.iter().copied().collect();
        while let Some(n) = open.pop() {
            for &v in draft.steps[n].inputs.iter().flatten() {
                if draft.values[v].shape.axis().is_none() {
                    continue;
                }
                let Some(producer) = self.producer[v].filter(|p| self.stage[*p] != Some(s)) else { continue };
                let recurrent = matches!(draft.steps[producer].op, Op::Lstm(_));
                if self.backward[producer] || (keep == Keep::Outputs && !recurrent) {
                    stored.insert(v);
                } else if again.insert(producer) {
                    open.push(producer);
                }
            }
        }
        stored.retain(|&v| self.producer[v].is_none_or(|p| !again.contains(&p)));
        Contents { own, again, stored }
    }
}

struct Contents {
    own: BTreeSet<usize>,
    again: BTreeSet<usize>,
    stored: BTreeSet<usize>,
}

/// Writes stages.
struct Writer<'a> {
    draft: &'a Draft,
    plan: &'a Plan,
    cut: Cut,
    /// Whether the states between parts wait in the host's memory.
    offload: bool,
    slots: usize,
    /// Sequences of the largest part.
    sequences: usize,
    values: Vec<ProgramValue>,
    stored: BTreeSet<usize>,
    /// Steps that some stage computes again.
    again: BTreeSet<usize>,
    /// Values that somebody reads.
    read: BTreeSet<usize>,
    /// h and c of a recurrence at the beginning of each part, by its step.
    borders: BTreeMap<usize, [usize; 2]>,
}

/// One stage as it is written.
#[derive(Default)]
struct Open {
    stage: Stage,
    twins: BTreeMap<usize, usize>,
    /// What comes from the host is first: a device may have it before it begins the part.
    loads: Vec<Action>,
    /// What the stage reads, by the program's values.
    reads: BTreeSet<usize>,
    /// h and c at the beginning of the part, of recurrences that are computed again.
    states: BTreeMap<usize, [usize; 2]>,
}

impl Writer<'_> {
    fn new_value(&mut self, name: String, shape: Shape, part: bool, like: Option<usize>) -> usize {
        let value = like.map_or_else(
            || ProgramValue::own(name.clone(), shape.clone()),
            |like| ProgramValue { name: name.clone(), storage: Storage::Own, ..self.draft.values[like].clone() },
        );
        self.values.push(ProgramValue { cut: part.then_some(self.cut), ..value });
        self.values.len() - 1
    }

    /// A part's copy of `v`, if `v` has rows or sequences; else `v`.
    fn twin(&mut self, open: &mut Open, v: usize) -> usize {
        let info = &self.draft.values[v];
        if info.shape.axis().is_none() && !on_batch(&info.shape) {
            return v;
        }
        if let Some(&twin) = open.twins.get(&v) {
            return twin;
        }
        let (name, shape, storage) = (format!("{} (part)", info.name), info.shape.clone(), info.storage);
        let of = match storage {
            Storage::Of(other) => Some(self.twin(open, other)),
            _ => None,
        };
        let twin = self.new_value(name, shape, true, Some(v));
        if let Some(of) = of {
            self.values[twin].storage = Storage::Of(of);
        }
        open.twins.insert(v, twin);
        twin
    }

    /// `v` as a step of the stage reads it, brought there where no step of the stage computes it.
    fn read(&mut self, open: &mut Open, v: usize) -> usize {
        let known = open.twins.contains_key(&v);
        let twin = self.twin(open, v);
        if twin == v || known {
            return twin;
        }
        let to = Side::Whole(twin);
        if self.draft.values[v].shape.axis().is_none() {
            open.stage.before.push(Move { from: Side::Part(v), to });
        } else {
            let input = self.draft.inputs.iter().position(|&i| i == v);
            match input {
                Some(input) => open.loads.push(Action::Move(Move { from: Side::Input(input), to })),
                None => open.stage.body.push(Action::Move(Move { from: Side::Part(v), to })),
            }
        }
        twin
    }

    fn stage(&mut self, s: usize, contents: &Contents) -> Stage {
        let mut open = Open::default();
        open.stage.cut = Some(self.cut);
        open.stage.backward = !contents.own.iter().any(|&n| matches!(self.draft.steps[n].op, Op::Lstm(_)));
        let all: BTreeSet<usize> = contents.own.union(&contents.again).copied().collect();
        open.reads.extend(all.iter().flat_map(|&n| self.draft.steps[n].inputs.iter().flatten().copied()));
        for n in all {
            self.step(&mut open, n, self.plan.stage[n] == Some(s));
        }
        open.loads.append(&mut open.stage.body);
        open.stage.body = open.loads;
        open.stage
    }

    fn step(&mut self, open: &mut Open, n: usize, own: bool) {
        let mut step = self.draft.steps[n].clone();
        let states = if self.cut.cuts_time() { self.states(open, n, own) } else { Vec::new() };
        for at in 0..step.inputs.len() {
            if let Some(state) = states.iter().find(|s| s.input == at) {
                step.inputs[at] = Some(state.value);
            } else if let Some(v) = step.inputs[at] {
                step.inputs[at] = Some(self.read(open, v));
            }
        }
        for at in 0..step.outputs.len() {
            // What is saved for the gradient is of no use here where it is computed again there.
            let row = |v: &usize| self.draft.values[*v].shape.axis().is_some();
            let unread = |v: &usize| row(v) && !open.reads.contains(v) && !self.stored.contains(v);
            let always = always(&step.op, at, &self.draft.steps[n].inputs, self.draft.executor);
            if step.outputs[at].as_ref().is_some_and(unread) && !always {
                step.outputs[at] = None;
            }
            if let Some(v) = step.outputs[at] {
                let shape = &self.draft.values[v].shape;
                step.outputs[at] = Some(match !own && on_batch(shape) {
                    // A state at the end of the part is not the final one, which others may read.
                    true => self.new_value(
                        format!("{} (part, unread)", self.draft.values[v].name),
                        shape.clone(),
                        true,
                        Some(v),
                    ),
                    false => self.twin(open, v),
                });
            }
        }
        for state in &states {
            let Some(output) = state.output else { continue };
            if step.outputs[output].is_none() {
                let shape = self.values[state.value].shape.clone();
                step.outputs[output] = Some(self.new_value(format!("{}.next", step.op.name()), shape, true, None));
            }
        }
        let fixed = |v: &usize| self.values[*v].cut.is_none();
        step.accumulates = step.outputs.iter().flatten().any(fixed);
        let outputs = step.outputs.clone();
        open.stage.body.push(Action::Step(step));
        if !own {
            return;
        }
        for state in &states {
            if let Some(next) = state.output.and_then(|output| outputs[output]) {
                let carried = Move { from: Side::Whole(next), to: Side::Whole(state.value) };
                open.stage.body.push(Action::Move(carried));
            }
        }
        for (&v, twin) in self.draft.steps[n].outputs.iter().zip(outputs) {
            let (Some(v), Some(twin)) = (v, twin) else { continue };
            let keeps = Move { from: Side::Whole(twin), to: Side::Part(v) };
            if self.draft.values[v].shape.axis().is_some() && self.stored.contains(&v) {
                open.stage.body.push(Action::Move(keeps));
            } else if on_batch(&self.draft.values[v].shape) && self.read.contains(&v) {
                open.stage.after.push(keeps);
            }
        }
    }

    /// What a step carries from part to part, in whichever way its stage runs.
    fn states(&mut self, open: &mut Open, n: usize, own: bool) -> Vec<State> {
        let step = &self.draft.steps[n];
        match step.op {
            Op::Lstm(_) if own => {
                let all = [(forward::H0, forward::H_N), (forward::C0, forward::C_N)];
                let states = all.map(|(input, output)| self.carried(open, n, input, output));
                if self.again.contains(&n) {
                    let borders = states.map(|s| self.border(s.value));
                    self.borders.insert(n, borders);
                    for (state, border) in states.iter().zip(borders) {
                        let keeps = Move { from: Side::Whole(state.value), to: Side::Slot(border) };
                        open.stage.body.push(Action::Move(keeps));
                    }
                }
                states.to_vec()
            }
            Op::Lstm(_) => {
                let Some(borders) = self.borders.get(&n).copied() else { return Vec::new() };
                let begins = borders.map(|border| {
                    let shape = self.values[border].shape.clone();
                    let shape = Shape(vec![Dim::Symbol(Symbol::Batch), shape.0[2].clone()]);
                    let value = self.new_value(format!("{} (restored)", self.values[border].name), shape, true, None);
                    let restores = Action::Move(Move { from: Side::Slot(border), to: Side::Whole(value) });
                    if self.offload {
                        open.loads.push(restores)
                    } else {
                        open.stage.body.push(restores)
                    }
                    value
                });
                open.states.insert(n, begins);
                let [h, c] = begins;
                vec![
                    State { input: forward::H0, value: h, output: None },
                    State { input: forward::C0, value: c, output: None },
                ]
            }
            Op::LstmBackward(_) => {
                let mut states: Vec<State> = [(backward::DH_N, backward::DH0), (backward::DC_N, backward::DC0)]
                    .map(|(input, output)| self.carried(open, n, input, output))
                    .to_vec();
                states.extend(self.begun(open, n, backward::GATES, 1).map(|value| State {
                    input: backward::C0,
                    value,
                    output: None,
                }));
                states
            }
            Op::LstmWeightGradient { part: LstmPart::RecurrentWeights, .. } => {
                let h = self.begun(open, n, 1, 0);
                h.map(|value| State { input: 2, value, output: None }).into_iter().collect()
            }
            Op::LstmWeightGradient { part: LstmPart::Peepholes, .. } => {
                let c = self.begun(open, n, 1, 1);
                c.map(|value| State { input: 2, value, output: None }).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// h (0) or c (1) at the beginning of the part, of the recurrence that gives step `n` its input `at`.
    fn begun(&self, open: &Open, n: usize, at: usize, which: usize) -> Option<usize> {
        let producer = self.plan.producer[self.draft.steps[n].inputs[at]?]?;
        open.states.get(&producer).map(|states| states[which])
    }

    /// A state that begins as input `input` of step `n`, or zero, and goes on as its output `output`.
    fn carried(&mut self, open: &mut Open, n: usize, input: usize, output: usize) -> State {
        let step = &self.draft.steps[n];
        // Gradients of states have the states' shapes.
        let (forward, state) = match output {
            backward::DH0 if matches!(step.op, Op::LstmBackward(_)) => (self.recurrence(n), forward::H_N),
            backward::DC0 if matches!(step.op, Op::LstmBackward(_)) => (self.recurrence(n), forward::C_N),
            _ => (n, output),
        };
        let like = self.draft.steps[forward].outputs[state];
        let shape = like.map_or_else(|| Shape(Vec::new()), |v| self.draft.values[v].shape.clone());
        let value = self.new_value(format!("{}.{n}.carried.{output}", step.op.name()), shape, true, None);
        let from = step.inputs[input].map_or(Side::Zero, Side::Part);
        open.stage.before.push(Move { from, to: Side::Whole(value) });
        State { input, value, output: Some(output) }
    }

    /// The recurrence whose gates step `n` differentiates.
    fn recurrence(&self, n: usize) -> usize {
        let gates = self.draft.steps[n].inputs[backward::GATES];
        gates.and_then(|gates| self.plan.producer[gates]).unwrap_or(n)
    }

    /// Room for a state at the beginning of every part.
    fn border(&mut self, state: usize) -> usize {
        let width = self.values[state].shape.columns().unwrap_or(0);
        let shape = Shape::from([self.slots, self.sequences, width]);
        let border = self.new_value(format!("{} (each part)", self.values[state].name), shape, false, None);
        self.values[border].offloaded = self.offload;
        border
    }
}

#[derive(Clone, Copy)]
struct State {
    /// The position where a step reads it.
    input: usize,
    value: usize,
    /// The position where it gives the next.
    output: Option<usize>,
}
