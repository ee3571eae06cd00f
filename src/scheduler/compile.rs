//! Compiling: a graph's live operations in order, what shares storage, and the stages that hold little enough.

use super::batch::{Capacity, GRADIENT_CHUNK};
use super::cut::{Draft, cut};
use super::footprint::amount;
use super::measures::{self, Measures};
use super::memory;
use super::program::{Bound, CompileOptions, Program, ProgramValue, ScalarSource, Step, Storage, root};
use super::stage::{Action, Side, Stage};
use super::strategy::{self, Executor, Target};
use crate::error::{Error, Result};
use crate::graph::lstm::{LstmOp, backward, forward};
use crate::graph::{Broadcast, Dim, Expr, Graph, Kind, Op, Parameter, Shape, Value, broadcast};
use std::collections::{BTreeMap, BTreeSet};

/// Compiles the live part of `graph` for `target`.
pub fn compile(graph: &Graph, target: Target, options: &CompileOptions) -> Result<Program> {
    let mut compiler = Compiler::new(graph, target, options);
    compiler.live()?;
    compiler.alias()?;
    if let Some(measures) = options.measures {
        return compiler.finish(options, measures);
    }
    let whole = compiler.finish(options, Measures::default());
    let Some(budget) = options.budget.filter(|_| target.executor != Executor::Reference) else { return whole };
    let mut least: Option<Program> = None;
    for measures in std::iter::once(Measures::default()).chain(measures::all(&options.capacity, target.unified)) {
        // What a device cannot bind whole it may bind in parts.
        let Ok(program) = compiler.finish(options, measures) else { continue };
        if program.memory().bytes() <= budget {
            return Ok(program);
        }
        if least.as_ref().is_none_or(|l| program.memory().bytes() < l.memory().bytes()) {
            least = Some(program);
        }
    }
    match least {
        Some(least) => Err(Error::memory(format!(
            "memory: the program needs at least {} bytes ({}), the budget is {budget} ({})",
            least.memory().bytes(),
            amount(least.memory().bytes()),
            amount(budget)
        ))),
        None => whole,
    }
}

struct Compiler<'a> {
    graph: &'a Graph,
    target: Target,
    capacity: &'a Capacity,
    values: Vec<ProgramValue>,
    /// The program's value for each of the graph's, once it is live.
    at: Vec<Option<usize>>,
    steps: Vec<Step>,
    copies: Vec<(usize, usize)>,
    updated: Vec<usize>,
}

impl<'a> Compiler<'a> {
    fn new(graph: &'a Graph, target: Target, options: &'a CompileOptions) -> Self {
        Self {
            graph,
            target,
            capacity: &options.capacity,
            values: Vec::new(),
            at: vec![None; graph.values().len()],
            steps: Vec::new(),
            copies: Vec::new(),
            updated: Vec::new(),
        }
    }

    fn value(&mut self, value: Value) -> usize {
        if let Some(at) = self.at[value.index()] {
            return at;
        }
        let info = self.graph.info(value);
        self.values.push(ProgramValue {
            name: info.name.clone(),
            shape: info.shape.clone(),
            dtype: info.dtype,
            layout: info.layout,
            storage: if info.kind == Kind::Persistent { Storage::Persistent } else { Storage::Own },
            first: usize::MAX,
            last: 0,
            cut: None,
            offloaded: false,
        });
        let at = self.values.len() - 1;
        self.at[value.index()] = Some(at);
        at
    }

    /// Keeps the operations that outputs and updates depend on, in the graph's order.
    fn live(&mut self) -> Result<()> {
        let graph = self.graph;
        let mut wanted = vec![false; graph.values().len()];
        let ends = graph.outputs().iter().map(|o| o.1).chain(graph.updates().iter().map(|u| u.1));
        ends.for_each(|v| wanted[v.index()] = true);
        let mut keep = vec![false; graph.nodes().len()];
        for (n, node) in graph.nodes().iter().enumerate().rev() {
            if node.outputs.iter().any(|v| wanted[v.index()]) {
                keep[n] = true;
                node.inputs.iter().flatten().for_each(|v| wanted[v.index()] = true);
            }
        }
        for (node, _) in graph.nodes().iter().zip(&keep).filter(|(_, keep)| **keep) {
            let inputs = node.inputs.iter().map(|v| v.map(|v| self.value(v))).collect();
            let mut outputs = Vec::new();
            for (position, &output) in node.outputs.iter().enumerate() {
                outputs.push(if wanted[output.index()] || always(&node.op, position, &node.inputs) {
                    Some(self.value(output))
                } else {
                    None
                });
            }
            self.steps.push(Step {
                op: node.op.clone(),
                inputs,
                outputs,
                workspace: Vec::new(),
                packs: Vec::new(),
                number: self.steps.len(),
                accumulates: false,
            });
        }
        for &(_, value) in graph.outputs() {
            self.value(value);
        }
        for &(persistent, value) in graph.updates() {
            let (p, v) = (self.value(persistent), self.value(value));
            self.updated.push(p);
            self.copies.push((p, v));
        }
        Ok(())
    }

    fn readers(&self, value: usize) -> impl Iterator<Item = usize> + '_ {
        let root = root(&self.values, value);
        self.steps
            .iter()
            .enumerate()
            .filter(move |(_, s)| s.inputs.iter().flatten().any(|&v| self::root(&self.values, v) == root))
            .map(|(at, _)| at)
    }

    /// Lets views, gate gradients and elementwise updates use the storage of what they are made from.
    fn alias(&mut self) -> Result<()> {
        for at in 0..self.steps.len() {
            let step = &self.steps[at];
            let mut pairs = vec![];
            match step.op {
                Op::View { .. } => pairs.push((step.inputs[0], step.outputs[0])),
                Op::LstmBackward(_) => {
                    let gates = (step.inputs[backward::GATES], step.outputs[backward::DGATES]);
                    let product = (step.inputs[backward::PRODUCT], step.outputs[backward::DGAINS]);
                    for (source, _) in [gates, product].iter().filter_map(|&(s, o)| s.zip(o)) {
                        if self.readers(source).any(|reader| reader != at) {
                            return Err(Error::unsupported(
                                "program: the gates of one lstm have two gradients; add the losses and take one gradient",
                            ));
                        }
                    }
                    pairs.extend([gates, product]);
                }
                _ => {}
            }
            for (source, output) in pairs.into_iter().filter_map(|(source, output)| source.zip(output)) {
                self.values[output].storage = Storage::Of(source);
            }
        }
        let copies = std::mem::take(&mut self.copies);
        // What is read after the run as it was before: it may not change in place.
        let ends = self.graph.outputs().iter().filter_map(|o| self.at[o.1.index()]).chain(copies.iter().map(|c| c.1));
        let kept: Vec<usize> = ends.map(|v| root(&self.values, v)).collect();
        for (persistent, value) in copies {
            let writer = self.steps.iter().position(|s| s.outputs.contains(&Some(value)));
            let in_place = writer.is_some_and(|at| {
                let step = &self.steps[at];
                matches!(step.op, Op::Elementwise { .. })
                    && self.values[value].storage == Storage::Own
                    && step.inputs.iter().flatten().all(|&i| {
                        let same = broadcast(&self.values[value].shape, &self.values[i].shape);
                        root(&self.values, i) != persistent || same == Some(Broadcast::Full)
                    })
                    && !kept.contains(&persistent)
                    && self.readers(persistent).all(|reader| reader <= at)
            });
            if in_place {
                self.values[value].storage = Storage::Of(persistent);
            } else {
                self.copies.push((persistent, value));
            }
        }
        Ok(())
    }

    fn draft(&self) -> Draft {
        let inputs = self.graph.values().iter().zip(&self.at).filter(|(v, _)| v.kind == Kind::Input);
        let outputs = self.graph.outputs().iter().filter_map(|o| self.at[o.1.index()]);
        Draft {
            values: self.values.clone(),
            steps: self.steps.clone(),
            inputs: inputs.filter_map(|(_, at)| *at).collect(),
            ends: outputs.chain(self.copies.iter().map(|c| c.1)).collect(),
        }
    }

    /// The program under `measures`.
    fn finish(&self, options: &CompileOptions, measures: Measures) -> Result<Program> {
        if measures.offload && self.target.executor != Executor::Gpu {
            return Err(Error::unsupported("memory: only a device with memory of its own can offload to the host's"));
        }
        let whole_chunks = |(_, steps): (_, usize)| steps > 0 && steps.is_multiple_of(GRADIENT_CHUNK);
        if !measures.segments.is_none_or(whole_chunks) || measures.sequences == Some(0) {
            return Err(Error::argument(format!(
                "memory: expected segments of a multiple of {GRADIENT_CHUNK} steps and at least 1 sequence, got {measures:?}"
            )));
        }
        let draft = self.draft();
        let (values, stages) = match measures.cut() {
            None => {
                let body = draft.steps.iter().cloned().map(Action::Step).collect();
                (draft.values.clone(), vec![Stage { body, ..Stage::default() }])
            }
            Some((parts, keep)) => cut(&draft, parts, (keep, measures.offload), self.capacity)
                .ok_or_else(|| Error::unsupported("memory: the program has operations that cannot run in parts"))?,
        };
        let mut plan = Plan { target: self.target, capacity: self.capacity, values, stages };
        plan.check_updates()?;
        plan.workspaces();
        plan.lifetimes(&draft);
        let placement = memory::place(
            &plan.values,
            &plan.stages,
            self.capacity,
            &self.target,
            options.fresh,
            measures.cut().is_some(),
        )?;
        let named = |kind: Kind| {
            let all = self.graph.values().iter().zip(&self.at);
            all.filter(move |(v, _)| v.kind == kind).filter_map(|(v, at)| Some((v.name.clone(), (*at)?)))
        };
        let outputs = self.graph.outputs().iter().filter_map(|(n, v)| Some((n.clone(), self.at[v.index()]?))).collect();
        let packs = plan.packs(draft.steps.len())?;
        Ok(Program {
            packs,
            inputs: named(Kind::Input).collect(),
            outputs,
            scalars: scalars(&self.steps),
            bounds: bounds(&self.steps, &self.values),
            copies: ordered(&self.values, &self.copies, &self.target)?,
            updated: self.updated.clone(),
            capacity: options.capacity.clone(),
            target: self.target,
            placement,
            values: plan.values,
            steps: draft.steps,
            stages: plan.stages,
            measures,
        })
    }
}

/// The copies at the end of a run, those that read a persistent value before the one that changes it: a GPU runs them one
/// after the other.
fn ordered(values: &[ProgramValue], copies: &[(usize, usize)], target: &Target) -> Result<Vec<(usize, usize)>> {
    let (mut left, mut all) = (copies.to_vec(), Vec::new());
    while !left.is_empty() {
        let free = |&(to, _): &(usize, usize)| left.iter().all(|c| c.0 == to || root(values, c.1) != to);
        let Some(at) = left.iter().position(free) else {
            if target.executor == Executor::Gpu {
                let name = &values[left[0].0].name;
                return Err(Error::unsupported(format!(
                    "program: `{name}` changes places with another value, on a GPU"
                )));
            }
            all.extend(left);
            break;
        };
        all.push(left.remove(at));
    }
    Ok(all)
}

/// Stages whose values get workspaces and lifetimes.
struct Plan<'a> {
    target: Target,
    capacity: &'a Capacity,
    values: Vec<ProgramValue>,
    stages: Vec<Stage>,
}

impl Plan<'_> {
    /// Refuses an order in which a persistent value would be read after it has changed in place.
    fn check_updates(&self) -> Result<()> {
        let mut changed = Vec::new();
        for action in self.stages.iter().flat_map(Stage::actions) {
            let read = action.reads().into_iter().find(|&v| changed.contains(&root(&self.values, v)));
            if let Some(v) = read {
                return Err(Error::unsupported(format!("memory: `{}` would change too early", self.values[v].name)));
            }
            // A view of a persistent value shares its storage too and changes nothing.
            let Action::Step(Step { op: Op::Elementwise { .. }, outputs, .. }) = &action else { continue };
            let roots = outputs.iter().flatten().map(|&v| root(&self.values, v));
            changed.extend(roots.filter(|&r| self.values[r].storage == Storage::Persistent));
        }
        Ok(())
    }

    fn workspaces(&mut self) {
        let mut packed: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for stage in &mut self.stages {
            for action in &mut stage.body {
                let Action::Step(step) = action else { continue };
                let capacity = stage.cut.map_or_else(|| self.capacity.clone(), |cut| cut.capacity(self.capacity));
                let shapes: Vec<Option<&Shape>> =
                    step.inputs.iter().map(|v| v.map(|v| &self.values[v].shape)).collect();
                let len = |s: &Shape| capacity.resolve(s).map_or(0, |s| s.iter().product());
                for (at, need) in strategy::workspace(&step.op, &self.target, &shapes, &len).into_iter().enumerate() {
                    let kept = !need.packs.is_empty();
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
    fn packs(&self, steps: usize) -> Result<Vec<Vec<usize>>> {
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
    fn lifetimes(&mut self, draft: &Draft) {
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
                        carried.extend(step.outputs.iter().flatten().map(|&v| root(&self.values, v)));
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

/// Outputs that the kernels fill on the way to others, wanted or not.
fn always(op: &Op, position: usize, inputs: &[Option<Value>]) -> bool {
    let projects = |at: usize| inputs.get(at).is_some_and(Option::is_some);
    let normed = |op: &LstmOp| op.cell.layer_norm.is_some();
    match op {
        Op::Lstm(op) => match position {
            forward::HIDDEN => projects(forward::parameter(0, Parameter::WeightHr)),
            forward::CELLS => false,
            forward::PRODUCT => normed(op),
            _ => true,
        },
        Op::LstmBackward(op) => match position {
            backward::DH0 => false,
            backward::DPROJECTED => projects(backward::parameter(0, Parameter::WeightHr)),
            backward::DPRODUCT | backward::DGAINS | backward::DCELL | backward::CELL_NORMED => normed(op),
            _ => true,
        },
        Op::CrossEntropy { .. } | Op::Attention(_) => true,
        _ => false,
    }
}

fn scalars(steps: &[Step]) -> Vec<ScalarSource> {
    let mut all = Vec::new();
    for step in steps {
        let Op::Elementwise { exprs } = &step.op else { continue };
        for expr in exprs {
            expr.visit(&mut |e| {
                let source = match e {
                    Expr::Scalar(name) => ScalarSource::Named(name.clone()),
                    Expr::Size(symbol) => ScalarSource::Size(symbol.clone()),
                    _ => return,
                };
                if !all.contains(&source) {
                    all.push(source);
                }
            });
        }
    }
    all
}

fn bounds(steps: &[Step], values: &[ProgramValue]) -> Vec<Bound> {
    let mut all = Vec::new();
    for step in steps {
        let (position, below, except) = match &step.op {
            Op::Embedding => (1, step.inputs[0].and_then(|t| values[t].shape.rows().cloned()), None),
            Op::CrossEntropy { ignore } => (1, step.inputs[0].and_then(|l| values[l].shape.0.get(1).cloned()), *ignore),
            _ => continue,
        };
        if let (Some(value), Some(Dim::Fixed(below))) = (step.inputs[position], below) {
            all.push(Bound { value, below, except, reader: step.op.name() });
        }
    }
    all
}
