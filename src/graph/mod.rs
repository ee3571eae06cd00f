//! Pure data: operations over shaped values, and their gradients.
//!
//! A [`Graph`] is a list of operations in the order in which they were added, each over values that exist already. It
//! knows nothing of devices, batches or memory. [`builder`] adds operations with checked shapes, [`gradient`] extends
//! a graph by the gradients of a scalar.

pub mod attention;
pub mod builder;
pub mod expression;
pub mod gather;
pub mod gradient;
pub mod lstm;
pub mod memory;
pub mod op;
pub mod shape;

pub use attention::{AttentionOp, AttentionPart, Score};
pub use expression::{Binary, Expr, Unary};
pub use gather::{Gather, Padding, Window};
pub use lstm::{LstmOp, LstmPart, Parameter};
pub use memory::{MemoryOp, MemoryPart, Ring};
pub use op::{Broadcast, Op, Over, ReduceKind, TimeKind, broadcast};
pub use shape::{B, Dim, N, Shape, Symbol, T};

use crate::error::{Error, Result};
use crate::params::DType;

/// A value of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub(crate) u32);

impl Value {
    /// Its index in [`Graph::values`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a value comes from and how long it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Given at each run.
    Input,
    /// Named and kept by a session between runs and between programs.
    Persistent,
    /// Computed by an operation.
    Computed,
}

/// How an executor may store a computed value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Row-major.
    Rows,
    /// `[N, 4H]` of gates or gate gradients, blocks i f g o; an executor may store it unit by unit, so only LSTM
    /// operations read it.
    Gates,
}

/// What is known of a value.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueInfo {
    /// A name for messages and for bisecting; unique for inputs and persistent values.
    pub name: String,
    /// Symbolic sizes.
    pub shape: Shape,
    /// Element type.
    pub dtype: DType,
    /// Where it comes from.
    pub kind: Kind,
    /// How it may be stored.
    pub layout: Layout,
}

/// One operation with what it reads and writes.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The operation.
    pub op: Op,
    /// What it reads, by position; `None` where an optional input is absent.
    pub inputs: Vec<Option<Value>>,
    /// What it writes, by position.
    pub outputs: Vec<Value>,
}

/// A list of operations, the outputs wanted of them, and the persistent values they update.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    pub(crate) values: Vec<ValueInfo>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) outputs: Vec<(String, Value)>,
    pub(crate) updates: Vec<(Value, Value)>,
    pub(crate) scopes: Vec<String>,
    pub(crate) dropouts: u32,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// All values.
    pub fn values(&self) -> &[ValueInfo] {
        &self.values
    }

    /// All operations, each after those it reads from.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The outputs, by name.
    pub fn outputs(&self) -> &[(String, Value)] {
        &self.outputs
    }

    /// The persistent values that a run updates, each with the value it takes.
    pub fn updates(&self) -> &[(Value, Value)] {
        &self.updates
    }

    /// What is known of `value`.
    pub fn info(&self, value: Value) -> &ValueInfo {
        &self.values[value.index()]
    }

    /// The shape of `value`.
    pub fn shape(&self, value: Value) -> &Shape {
        &self.info(value).shape
    }

    /// The input or persistent value called `name`.
    pub fn find(&self, name: &str) -> Option<Value> {
        let at = self.values.iter().position(|v| v.name == name && v.kind != Kind::Computed)?;
        Some(Value(at as u32))
    }

    fn declare(&mut self, name: &str, shape: Shape, dtype: DType, kind: Kind) -> Result<Value> {
        if let Some(found) = self.find(name) {
            let info = self.info(found);
            if info.kind == kind && info.shape == shape && info.dtype == dtype {
                return Ok(found);
            }
            return Err(Error::argument(format!(
                "graph: `{name}` is declared twice, as {} and as {shape}",
                info.shape
            )));
        }
        self.values.push(ValueInfo { name: name.to_string(), shape, dtype, kind, layout: Layout::Rows });
        Ok(Value(self.values.len() as u32 - 1))
    }

    /// A value given at each run. Declaring the same twice gives the same value.
    pub fn input(&mut self, name: &str, shape: impl Into<Shape>, dtype: DType) -> Result<Value> {
        self.declare(name, shape.into(), dtype, Kind::Input)
    }

    /// A float value that a session keeps under `name`. Declaring the same twice gives the same value.
    pub fn persistent(&mut self, name: &str, shape: impl Into<Shape>) -> Result<Value> {
        self.declare(name, shape.into(), DType::F32, Kind::Persistent)
    }

    /// A persistent value of another element type, for example tokens that stay on the device.
    pub fn persistent_typed(&mut self, name: &str, shape: impl Into<Shape>, dtype: DType) -> Result<Value> {
        self.declare(name, shape.into(), dtype, Kind::Persistent)
    }

    /// Makes `value` readable after a run under `name`.
    pub fn output(&mut self, name: &str, value: Value) -> Result<()> {
        if self.outputs.iter().any(|(n, _)| n == name) {
            return Err(Error::argument(format!("graph: output `{name}` is given twice")));
        }
        if self.info(value).layout != Layout::Rows {
            return Err(Error::unsupported(format!(
                "graph: `{}` is stored as its executor likes and cannot be an output",
                self.info(value).name
            )));
        }
        self.outputs.push((name.to_string(), value));
        Ok(())
    }

    /// Gives `persistent` the contents of `value` at the end of each run.
    pub fn update(&mut self, persistent: Value, value: Value) -> Result<()> {
        let (p, v) = (self.info(persistent), self.info(value));
        if p.kind != Kind::Persistent {
            return Err(Error::argument(format!("graph: `{}` is not persistent and cannot be updated", p.name)));
        }
        if p.shape != v.shape || p.dtype != v.dtype {
            return Err(Error::shape(format!(
                "graph: `{}` of shape {} cannot take `{}` of shape {}",
                p.name, p.shape, v.name, v.shape
            )));
        }
        if self.updates.iter().any(|(q, _)| *q == persistent) {
            return Err(Error::argument(format!("graph: `{}` is updated twice", p.name)));
        }
        self.updates.push((persistent, value));
        Ok(())
    }

    /// Runs `build` with `scope` before the names of the values it computes.
    pub fn scoped<T>(&mut self, scope: &str, build: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.scopes.push(scope.to_string());
        let result = build(self).map_err(|e| e.within(scope));
        self.scopes.pop();
        result
    }

    /// Adds `op` over `inputs`; its outputs' shapes follow from [`Op::infer`].
    pub(crate) fn push(&mut self, op: Op, inputs: Vec<Option<Value>>) -> Result<Vec<Value>> {
        let infos: Vec<Option<&ValueInfo>> = inputs.iter().map(|v| v.map(|v| self.info(v))).collect();
        let specs = op.infer(&infos).map_err(|e| e.within(op.name()))?;
        let at = self.nodes.len();
        let prefix = self.scopes.iter().map(|s| format!("{s}.")).collect::<String>();
        let outputs = specs
            .into_iter()
            .map(|spec| {
                let name = format!("{prefix}{}.{at}.{}", op.name(), spec.role);
                let kind = Kind::Computed;
                self.values.push(ValueInfo { name, shape: spec.shape, dtype: spec.dtype, kind, layout: spec.layout });
                Value(self.values.len() as u32 - 1)
            })
            .collect::<Vec<_>>();
        self.nodes.push(Node { op, inputs, outputs: outputs.clone() });
        Ok(outputs)
    }

    /// Adds an operation of one output.
    pub(crate) fn push_one(&mut self, op: Op, inputs: &[Value]) -> Result<Value> {
        Ok(self.push(op, inputs.iter().copied().map(Some).collect())?[0])
    }
}
