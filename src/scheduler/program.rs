//! A program: a graph's live operations in order, with lifetimes and a placement, for capacities and a target.

use super::batch::{Batch, Capacity};
use super::memory::{self, Placement};
use super::strategy::{self, Executor, KERNEL_TABLE, Limits, Target};
use crate::error::{Error, Result};
use crate::graph::lstm::{LstmOp, backward, forward};
use crate::graph::{Broadcast, Dim, Expr, Graph, Kind, Layout, Op, Parameter, Shape, Symbol, Value, broadcast};
use crate::params::DType;
use std::fmt::Write as _;

/// Where a value's storage comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Its own place in the placement.
    Own,
    /// A session keeps it under its name.
    Persistent,
    /// The storage of another value: a view, or a result written in the place of an operand.
    Of(usize),
}

/// A value of a program.
#[derive(Debug, Clone, PartialEq)]
pub struct ProgramValue {
    /// Its name in the graph; workspaces have the name of their step.
    pub name: String,
    /// Symbolic sizes.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
    /// How executors may store it.
    pub layout: Layout,
    /// Where its storage comes from.
    pub storage: Storage,
    /// The first step that touches its storage; inputs count from 0.
    pub first: usize,
    /// The last step that touches its storage; the number of steps for what is read after the run.
    pub last: usize,
}

/// One operation to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What to do.
    pub op: Op,
    /// Values read, by the operation's positions.
    pub inputs: Vec<Option<usize>>,
    /// Values written; `None` where nobody wants them.
    pub outputs: Vec<Option<usize>>,
    /// Values that the kernels need, in the order of [`strategy::workspace`].
    pub workspace: Vec<usize>,
    /// For each workspace, the input positions it is packed from.
    pub packs: Vec<Vec<usize>>,
}

/// A scalar that a run gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScalarSource {
    /// Set on the batch by name.
    Named(String),
    /// A size of the batch.
    Size(Symbol),
}

/// A bound that an input's integers must keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The value.
    pub value: usize,
    /// Integers must be below this.
    pub below: usize,
    /// Except this one.
    pub except: Option<u32>,
    /// The operation that reads it.
    pub reader: &'static str,
}

/// Operations in order, over values with places.
#[derive(Debug, Clone)]
pub struct Program {
    /// All values.
    pub values: Vec<ProgramValue>,
    /// All operations.
    pub steps: Vec<Step>,
    /// Values given at each run, by name.
    pub inputs: Vec<(String, usize)>,
    /// Values readable after a run, by name.
    pub outputs: Vec<(String, usize)>,
    /// Persistent values and those they take at the end of a run, where that is not already their storage.
    pub copies: Vec<(usize, usize)>,
    /// Persistent values that a run changes.
    pub updated: Vec<usize>,
    /// The scalars that the steps read, in the order in which executors hold them.
    pub scalars: Vec<ScalarSource>,
    /// What integers of inputs must keep.
    pub bounds: Vec<Bound>,
    /// The largest batch.
    pub capacity: Capacity,
    /// What it is compiled for.
    pub target: Target,
    /// Where values live.
    pub placement: Placement,
}

/// How to compile.
#[derive(Debug, Clone)]
pub struct CompileOptions {
    /// The largest batch.
    pub capacity: Capacity,
    /// Whether every value gets memory of its own; for tests of the planner.
    pub fresh: bool,
}

/// The value whose storage `value` uses.
pub fn root(values: &[ProgramValue], mut value: usize) -> usize {
    while let Storage::Of(other) = values[value].storage {
        value = other;
    }
    value
}

/// Compiles the live part of `graph` for `target`.
pub fn compile(graph: &Graph, target: Target, options: &CompileOptions) -> Result<Program> {
    let mut compiler = Compiler::new(graph, target, options);
    compiler.live()?;
    compiler.alias()?;
    compiler.workspaces();
    compiler.lifetimes();
    compiler.finish(options)
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
            self.steps.push(Step { op: node.op.clone(), inputs, outputs, workspace: Vec::new(), packs: Vec::new() });
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

    fn workspaces(&mut self) {
        for at in 0..self.steps.len() {
            let step = &self.steps[at];
            let shapes: Vec<Option<&Shape>> = step.inputs.iter().map(|v| v.map(|v| &self.values[v].shape)).collect();
            let len = |s: &Shape| self.capacity.resolve(s).map_or(0, |s| s.iter().product());
            let needs = strategy::workspace(&step.op, &self.target, &shapes, &len);
            for need in needs {
                self.values.push(ProgramValue {
                    name: format!("{}.{at}.{}", self.steps[at].op.name(), need.role),
                    shape: need.shape,
                    dtype: need.dtype,
                    layout: Layout::Rows,
                    storage: Storage::Own,
                    first: if need.packs.is_empty() && !need.uploaded { at } else { 0 },
                    last: if need.packs.is_empty() { at } else { usize::MAX },
                });
                let value = self.values.len() - 1;
                self.steps[at].workspace.push(value);
                self.steps[at].packs.push(need.packs);
            }
        }
    }

    fn touch(&mut self, value: usize, step: usize) {
        let root = root(&self.values, value);
        let v = &mut self.values[root];
        v.first = v.first.min(step);
        v.last = v.last.max(step);
    }

    fn lifetimes(&mut self) {
        for at in 0..self.steps.len() {
            let step = self.steps[at].clone();
            step.inputs.iter().chain(&step.outputs).flatten().for_each(|&v| self.touch(v, at));
        }
        let end = self.steps.len();
        let ends: Vec<usize> = self.graph.outputs().iter().filter_map(|o| self.at[o.1.index()]).collect();
        let sources: Vec<usize> = self.copies.iter().map(|c| c.1).collect();
        ends.into_iter().chain(sources).for_each(|v| self.touch(v, end));
        let inputs = self.graph.values().iter().zip(&self.at).filter(|(v, _)| v.kind == Kind::Input);
        let inputs: Vec<usize> = inputs.filter_map(|(_, at)| *at).collect();
        inputs.into_iter().for_each(|v| self.touch(v, 0));
        self.values.iter_mut().for_each(|v| v.last = v.last.min(end));
    }

    fn finish(self, options: &CompileOptions) -> Result<Program> {
        let named = |kind: Kind| {
            let all = self.graph.values().iter().zip(&self.at);
            all.filter(move |(v, _)| v.kind == kind).filter_map(|(v, at)| Some((v.name.clone(), (*at)?)))
        };
        let placement = memory::place(&self.values, &self.steps, self.capacity, &self.target, options.fresh)?;
        let outputs = self.graph.outputs().iter().filter_map(|(n, v)| Some((n.clone(), self.at[v.index()]?))).collect();
        Ok(Program {
            inputs: named(Kind::Input).collect(),
            outputs,
            scalars: scalars(&self.steps),
            bounds: bounds(&self.steps, &self.values),
            copies: self.copies,
            updated: self.updated,
            capacity: options.capacity.clone(),
            target: self.target,
            placement,
            values: self.values,
            steps: self.steps,
        })
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

impl Program {
    /// The value whose storage `value` uses.
    pub fn root(&self, value: usize) -> usize {
        root(&self.values, value)
    }

    /// The scalars of a run, in the program's order.
    pub fn scalar_values(&self, batch: &Batch) -> Result<Vec<f32>> {
        self.scalars
            .iter()
            .map(|source| match source {
                ScalarSource::Named(name) => batch
                    .scalar(name)
                    .ok_or_else(|| Error::argument(format!("program: the batch does not set the scalar `{name}`"))),
                ScalarSource::Size(symbol) => Ok(batch.size(&Dim::Symbol(symbol.clone()))? as f32),
            })
            .collect()
    }

    /// The position of an expression's scalar among [`Self::scalars`].
    pub fn scalar_index(&self, expr: &Expr) -> Option<usize> {
        self.scalars.iter().position(|s| match (s, expr) {
            (ScalarSource::Named(a), Expr::Scalar(b)) => a == b,
            (ScalarSource::Size(a), Expr::Size(b)) => a == b,
            _ => false,
        })
    }

    /// The program as text: values with places, steps in order.
    pub fn describe(&self) -> String {
        let mut text = format!("{:?}, kernels {KERNEL_TABLE}, capacity {:?}\n", self.target.executor, self.capacity);
        for (at, bytes) in self.placement.arenas.iter().enumerate() {
            let _ = writeln!(text, "arena {at}: {bytes} bytes");
        }
        for (at, value) in self.values.iter().enumerate() {
            let place = match (value.storage, self.placement.places.get(&at)) {
                (Storage::Persistent, _) => "persistent".to_string(),
                (Storage::Of(other), _) => format!("in the place of {other}"),
                (Storage::Own, Some(p)) => format!("{:?} steps {}..={}", p.pieces, value.first, value.last),
                (Storage::Own, None) => "nowhere".to_string(),
            };
            let _ = writeln!(text, "value {at} {} {:?} {}: {place}", value.name, value.dtype, value.shape);
        }
        for (at, step) in self.steps.iter().enumerate() {
            let list = |v: &[Option<usize>]| {
                v.iter().map(|v| v.map_or("-".to_string(), |v| v.to_string())).collect::<Vec<_>>().join(" ")
            };
            let _ = writeln!(
                text,
                "step {at} {}: {} -> {} ({:?})",
                step.op.name(),
                list(&step.inputs),
                list(&step.outputs),
                step.workspace
            );
        }
        text
    }
}

impl Target {
    /// The reference executor.
    pub const REFERENCE: Target = Target { executor: Executor::Reference, limits: Limits::HOST, software: false };
    /// The CPU executor.
    pub const CPU: Target = Target { executor: Executor::Cpu, limits: Limits::HOST, software: false };
}
