//! Compiling: a graph's live operations in order, what shares storage, and the stages that hold little enough.

use super::batch::{Capacity, GRADIENT_CHUNK};
use super::cut::{Draft, cut};
use super::footprint::amount;
use super::fuse::fuse;
use super::given;
use super::lifetimes::Laid;
use super::measures::{self, Measures};
use super::memory;
use super::products::ProductShape;
use super::program::{CompileOptions, Program, ProgramValue, Step, Storage, root};
use super::recurrence::{Family, Kernels, Layer};
use super::slabs::Slabs;
use super::stage::{Action, Stage};
use super::strategy::{Executor, Target};
use super::stream::{self, Brought};
use crate::config::Cell;
use crate::error::{Error, Result};
use crate::graph::lstm::{LstmOp, backward, forward};
use crate::graph::{Broadcast, Graph, Kind, Op, Parameter, Value, broadcast};
use std::collections::BTreeSet;

/// Compiles the live part of `graph` for `target`.
pub fn compile(graph: &Graph, target: Target, options: &CompileOptions) -> Result<Program> {
    let mut compiler = Compiler::new(graph, target, options);
    compiler.live()?;
    compiler.slabs()?;
    compiler.fuse();
    compiler.alias()?;
    let none = BTreeSet::new();
    if let Some(measures) = options.measures {
        return compiler.finish(options, measures, &none);
    }
    let whole = compiler.finish(options, Measures::default(), &none);
    let Some(budget) = options.budget.filter(|_| target.executor != Executor::Reference) else { return whole };
    let streams = !compiler.candidates(options).is_empty();
    let mut least: Option<Program> = None;
    let every = measures::all(&options.capacity, target.unified).into_iter().filter(|m| streams || !m.stream);
    let pinned = (0..compiler.values.len()).any(|v| compiler.pin(options, v) == Some(true));
    for measures in std::iter::once(Measures::default()).chain(every).filter(|m| m.stream || !pinned) {
        // What a device cannot bind whole it may bind in parts.
        let Ok(program) = compiler.finish(options, measures, &none) else { continue };
        if program.memory().bytes() <= budget {
            return Ok(if measures.stream { compiler.resident(options, program, budget) } else { program });
        }
        if least.as_ref().is_none_or(|l| program.memory().bytes() < l.memory().bytes()) {
            least = Some(program);
        }
    }
    match least {
        Some(least) => Err(Error::budget(format!(
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
            slab: None,
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
                outputs.push(
                    if wanted[output.index()] || always(&node.op, position, &node.inputs, self.target.executor) {
                        Some(self.value(output))
                    } else {
                        None
                    },
                );
            }
            self.steps.push(Step {
                op: node.op.clone(),
                inputs,
                outputs,
                workspace: Vec::new(),
                packs: Vec::new(),
                number: self.steps.len(),
                accumulates: false,
                recurrence: None,
                product: None,
                epilogue: None,
                gone: Vec::new(),
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

    /// Cuts matrices that are too large for a binding.
    fn slabs(&mut self) -> Result<()> {
        let kept = self.graph.values().iter().zip(&self.at).filter(|(v, _)| v.kind == Kind::Input);
        let kept = kept.filter_map(|(_, at)| *at);
        let outputs = self.graph.outputs().iter().filter_map(|o| self.at[o.1.index()]);
        let kept: Vec<usize> = kept.chain(outputs).collect();
        let Self { values, steps, copies, updated, .. } = self;
        Slabs { values, steps, copies, updated, kept: &kept }.cut(&self.target.limits)
    }

    /// Lets elementwise steps run with those that they feed; the reference computes what was written.
    fn fuse(&mut self) {
        if self.target.executor == Executor::Reference {
            return;
        }
        let ends = self.graph.outputs().iter().filter_map(|o| self.at[o.1.index()]);
        let kept: Vec<usize> = ends.chain(self.copies.iter().map(|c| c.1)).collect();
        fuse(&mut self.steps, &self.values, &kept, &self.target);
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
                changes_in_place(&step.op)
                    && self.values[value].storage == Storage::Own
                    && step.inputs.iter().enumerate().filter_map(|(at, i)| Some((at, (*i)?))).all(|(at, i)| {
                        let same = broadcast(&self.values[value].shape, &self.values[i].shape);
                        let elementwise = same == Some(Broadcast::Full) && matches!(step.op, Op::Elementwise { .. });
                        // Of what is scattered into, only the table may be its own.
                        root(&self.values, i) != persistent || elementwise || at == 0 && writes_rows(&step.op)
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
            executor: self.target.executor,
            values: self.values.clone(),
            steps: self.steps.clone(),
            inputs: inputs.filter_map(|(_, at)| *at).collect(),
            ends: outputs.chain(self.copies.iter().map(|c| c.1)).collect(),
        }
    }

    /// Values that may wait away from the device, those that are read most often last.
    fn candidates(&self, options: &CompileOptions) -> Vec<usize> {
        let mut all = stream::candidates(&self.draft(), &self.copies);
        all.retain(|&v| self.pin(options, v) != Some(false));
        all
    }

    /// Whether value `v` has to be away from the device, or on it, for the sake of other programs.
    fn pin(&self, options: &CompileOptions, v: usize) -> Option<bool> {
        let pin = options.pins.get(&self.values[v].name).filter(|_| self.values[v].storage == Storage::Persistent);
        pin.filter(|pin| pin.changed || self.updated.contains(&v)).map(|pin| pin.away)
    }

    /// `streamed`, whose weights wait, with as many of those resident as `budget` allows, the most read first.
    fn resident(&self, options: &CompileOptions, streamed: Program, budget: u64) -> Program {
        let mut all = self.candidates(options);
        all.retain(|&v| self.pin(options, v).is_none());
        let (mut best, mut few, mut many) = (streamed, 0, all.len());
        while few < many {
            let more = (few + many).div_ceil(2);
            let here: BTreeSet<usize> = all.iter().rev().take(more).copied().collect();
            match self.finish(options, best.measures, &here) {
                Ok(program) if program.memory().bytes() <= budget => (best, few) = (program, more),
                _ => many = more - 1,
            }
        }
        best
    }

    /// The program under `measures`; where weights wait, all of them but those in `resident`.
    fn finish(&self, options: &CompileOptions, measures: Measures, resident: &BTreeSet<usize>) -> Result<Program> {
        if measures.offload && self.target.executor != Executor::Gpu {
            return Err(Error::unsupported("memory: only a device with memory of its own can offload to the host's"));
        }
        if measures.segments.is_some_and(|(_, steps)| steps == 0) || measures.sequences == Some(0) {
            return Err(Error::argument(format!(
                "memory: expected segments of at least 1 step and 1 sequence, got {measures:?}"
            )));
        }
        let kernels = options.kernels.clone().unwrap_or_default();
        let program = self.finish_with(options, measures, &kernels, resident)?;
        if program.inside_pieces() {
            // *Sequence* needs each value of a layer in one binding.
            let step = Kernels { family: Some(Family::Step), ..kernels };
            return self.finish_with(options, measures, &step, resident);
        }
        Ok(program)
    }

    fn finish_with(
        &self,
        options: &CompileOptions,
        measures: Measures,
        kernels: &Kernels,
        resident: &BTreeSet<usize>,
    ) -> Result<Program> {
        let mut draft = self.draft();
        if measures.stream {
            let away: Vec<usize> = self.candidates(options).into_iter().filter(|v| !resident.contains(v)).collect();
            away.into_iter().for_each(|v| draft.values[v].offloaded = true);
            stream::together(&mut draft.values);
            if self.target.executor == Executor::Gpu {
                stream::split_sums(&mut draft);
            }
        }
        for step in &mut draft.steps {
            if let Some(layer) = Layer::of(step, &draft.values, self.capacity) {
                step.recurrence = kernels.choose(&layer, &self.target)?;
            }
            if self.target.executor != Executor::Gpu {
                continue;
            }
            if let Some(shape) = ProductShape::of(step, &draft.values, self.capacity)? {
                step.product = kernels.choose_product(&shape, &self.target);
            }
        }
        let (values, stages) = match measures.cut() {
            None => {
                let body = draft.steps.iter().cloned().map(Action::Step).collect();
                (draft.values.clone(), vec![Stage { body, ..Stage::default() }])
            }
            Some((parts, keep)) => cut(&draft, parts, (keep, measures.offload), self.capacity)
                .ok_or_else(|| {
                    Error::unsupported(format!(
                        "memory: the program has operations that cannot run in parts, or sums over rows, for which parts need a \
                         multiple of {GRADIENT_CHUNK} steps"
                    ))
                })?,
        };
        let mut plan =
            Laid { target: self.target, capacity: self.capacity, values, stages, brought: Brought::default() };
        plan.check_updates()?;
        if self.target.executor == Executor::Gpu {
            plan.brought = stream::bring(&mut plan.values, &mut plan.stages);
        }
        plan.workspaces();
        stream::expand(&mut plan.stages, &plan.brought, &self.target);
        plan.lifetimes(&draft);
        // The host's processor reads inputs where they are, unless they are read after the run too.
        let end = |v: &usize| draft.ends.iter().any(|&e| root(&plan.values, e) == *v);
        let given = draft.inputs.iter().filter(|_| self.target.executor == Executor::Cpu);
        let given: BTreeSet<usize> = given.copied().filter(|v| !end(v)).collect();
        let placement = memory::place(
            &plan.values,
            &plan.stages,
            self.capacity,
            &self.target,
            options.fresh,
            (measures.cut().is_some(), &given),
        )?;
        let named = |kind: Kind| {
            let all = self.graph.values().iter().zip(&self.at);
            all.filter(move |(v, _)| v.kind == kind).filter_map(|(v, at)| Some((v.name.clone(), (*at)?)))
        };
        let outputs = self.graph.outputs().iter().filter_map(|(n, v)| Some((n.clone(), self.at[v.index()]?))).collect();
        let packs = plan.packs(draft.steps.len())?;
        // What is packed of weights that stay is kept; biases and the like are not packed.
        let keeps = |v: &usize| {
            let value = &draft.values[*v];
            value.storage == Storage::Persistent && !value.offloaded && value.shape.0.len() > 1
        };
        let shares = draft.steps.iter().map(|s| measures.stream && !s.inputs.iter().flatten().any(keeps)).collect();
        Ok(Program {
            packs,
            shares,
            inputs: named(Kind::Input).collect(),
            outputs,
            scalars: given::scalars(&self.steps),
            bounds: given::bounds(&self.steps, &self.values),
            copies: ordered(&self.values, &self.copies, &self.target)?,
            updated: self.updated.clone(),
            capacity: options.capacity.clone(),
            target: self.target,
            given,
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

/// Whether its result may be written in the place of an operand of the same shape.
pub fn changes_in_place(op: &Op) -> bool {
    matches!(op, Op::Elementwise { .. }) || writes_rows(op)
}

/// Whether its first operand is a table, some rows of which it replaces.
pub(super) fn writes_rows(op: &Op) -> bool {
    matches!(op, Op::Scatter | Op::Remember(_))
}

/// Outputs that the kernels fill on the way to others, wanted or not.
pub(super) fn always<T>(op: &Op, position: usize, inputs: &[Option<T>], executor: Executor) -> bool {
    let projects = |at: usize| inputs.get(at).is_some_and(Option::is_some);
    let normed = |op: &LstmOp| op.cell.layer_norm.is_some();
    match op {
        Op::Lstm(op) => match position {
            forward::HIDDEN => projects(forward::parameter(0, Parameter::WeightHr)),
            forward::CELLS => false,
            forward::PRODUCT => normed(op),
            // The host's processor has those of a plain cell in its cache.
            forward::GATES if executor == Executor::Cpu => {
                op.cell != Cell::default() || projects(forward::parameter(0, Parameter::WeightHr))
            }
            _ => true,
        },
        Op::LstmBackward(op) => match position {
            backward::DH0 => false,
            backward::DPROJECTED => projects(backward::parameter(0, Parameter::WeightHr)),
            backward::DPRODUCT | backward::DGAINS | backward::DCELL | backward::CELL_NORMED => normed(op),
            _ => true,
        },
        Op::CrossEntropy { .. } | Op::Attention(_) | Op::RecallPlaces(_) => true,
        _ => false,
    }
}
