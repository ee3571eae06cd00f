//! The parts that a graph is made of while it is written: operations, attributes, constants.

use super::schema::{
    Attribute, Dimension, Graph, Node, Tensor as Message, TensorShape, TensorType, Type, ValueInfo, dtype, kind,
};
use crate::error::{Error, Result};
use crate::nn::Network;
use crate::params::Tensor;
use prost::bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// A graph while it is written.
pub(super) struct Writer<'a> {
    pub parameters: &'a BTreeMap<String, Tensor>,
    pub graph: Graph,
    count: usize,
    /// Names of initialisers that are there.
    written: BTreeSet<String>,
    /// Names that the network has.
    taken: BTreeSet<String>,
    /// The most values of one constant that is no parameter, where there is a limit.
    limit: Option<u64>,
}

/// An attribute.
pub(super) fn int(name: &str, i: i64) -> Attribute {
    Attribute { name: name.to_string(), i, kind: kind::INT, ..Attribute::default() }
}

pub(super) fn ints(name: &str, ints: &[i64]) -> Attribute {
    Attribute { name: name.to_string(), ints: ints.to_vec(), kind: kind::INTS, ..Attribute::default() }
}

pub(super) fn float(name: &str, f: f32) -> Attribute {
    Attribute { name: name.to_string(), f, kind: kind::FLOAT, ..Attribute::default() }
}

pub(super) fn floats(name: &str, floats: &[f32]) -> Attribute {
    Attribute { name: name.to_string(), floats: floats.to_vec(), kind: kind::FLOATS, ..Attribute::default() }
}

pub(super) fn text(name: &str, s: &str) -> Attribute {
    let s = Bytes::copy_from_slice(s.as_bytes());
    Attribute { name: name.to_string(), s, kind: kind::STRING, ..Attribute::default() }
}

pub(super) fn texts(name: &str, all: &[&str]) -> Attribute {
    let strings = all.iter().map(|s| Bytes::copy_from_slice(s.as_bytes())).collect();
    Attribute { name: name.to_string(), strings, kind: kind::STRINGS, ..Attribute::default() }
}

pub(super) fn graph(name: &str, g: Graph) -> Attribute {
    Attribute { name: name.to_string(), g: Some(Box::new(g)), kind: kind::GRAPH, ..Attribute::default() }
}

/// A value's name with its type and sizes, `None` where a run tells.
pub(super) fn info(name: &str, elem_type: i32, sizes: &[Option<usize>], names: &[&str]) -> ValueInfo {
    let dim = sizes.iter().zip(names).map(|(size, name)| match size {
        Some(n) => Dimension { value: Some(*n as i64), param: None },
        None => Dimension { value: None, param: (!name.is_empty()).then(|| (*name).to_string()) },
    });
    let shape = Some(TensorShape { dim: dim.collect() });
    ValueInfo { name: name.to_string(), kind: Some(Type { tensor: Some(TensorType { elem_type, shape }) }) }
}

impl<'a> Writer<'a> {
    /// An empty graph called `name`, for a network.
    pub fn new(name: &str, network: &Network, parameters: &'a BTreeMap<String, Tensor>, limit: Option<u64>) -> Self {
        let graph = Graph { name: name.to_string(), ..Graph::default() };
        let names = network.inputs.iter().map(|i| &i.0).chain(network.outputs.iter().map(|o| &o.0));
        let names = names.chain(network.nodes.iter().map(|n| &n.name));
        // Of `name[0]` and `name.weight` too.
        let taken = names.map(|name| name.split(['[', '.']).next().unwrap_or_default().to_string()).collect();
        Self { parameters, graph, count: 0, written: BTreeSet::new(), taken, limit }
    }

    /// A name that nothing has.
    pub fn fresh(&mut self, what: &str) -> String {
        loop {
            self.count += 1;
            let name = format!("{what}_{}", self.count);
            if !self.taken.contains(&name) {
                return name;
            }
        }
    }

    /// Adds an operation with one output.
    pub fn op(&mut self, op: &str, inputs: &[&str], attributes: Vec<Attribute>) -> String {
        self.ops(op, inputs, 1, attributes).remove(0)
    }

    /// Adds an operation with several outputs.
    pub fn ops(&mut self, op: &str, inputs: &[&str], outputs: usize, attribute: Vec<Attribute>) -> Vec<String> {
        let name = self.fresh(&op.to_lowercase());
        let output: Vec<String> =
            (0..outputs).map(|at| if outputs == 1 { name.clone() } else { format!("{name}.{at}") }).collect();
        self.graph.node.push(Node {
            input: inputs.iter().map(|i| (*i).to_string()).collect(),
            output: output.clone(),
            name,
            op_type: op.to_string(),
            attribute,
            ..Node::default()
        });
        output
    }

    /// A value under the name of a state that the next run reads.
    pub fn state(&mut self, value: &str, name: &str) {
        self.graph.node.push(Node {
            input: vec![value.to_string()],
            output: vec![name.to_string()],
            name: format!("state {name}"),
            op_type: "Identity".to_string(),
            ..Node::default()
        });
    }

    /// A constant of floats under a name.
    pub fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> String {
        let raw: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.initializer(name, shape, dtype::FLOAT, raw)
    }

    fn initializer(&mut self, name: &str, shape: &[usize], data_type: i32, raw: Vec<u8>) -> String {
        if self.written.insert(name.to_string()) {
            self.graph.initializer.push(Message {
                dims: shape.iter().map(|&n| n as i64).collect(),
                data_type,
                name: name.to_string(),
                raw_data: Bytes::from(raw),
                ..Message::default()
            });
        }
        name.to_string()
    }

    /// A constant under a name: tokens and lengths have 64 bits.
    pub fn constant(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        if let Ok(values) = tensor.u32s() {
            let raw = values.iter().flat_map(|&n| i64::from(n).to_le_bytes()).collect();
            self.initializer(name, tensor.shape(), dtype::INT64, raw);
        } else {
            self.floats(name, tensor.shape(), tensor.f32s()?);
        }
        Ok(())
    }

    /// The same value over and over, under a name of its own.
    pub fn filled(&mut self, what: &str, shape: &[usize], value: f32) -> Result<String> {
        let count = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let fits = |&n: &usize| self.limit.is_none_or(|limit| n as u64 <= limit);
        let count = count.filter(fits).ok_or_else(|| Error::shape(format!("a constant of {shape:?}")))?;
        let name = self.fresh(what);
        Ok(self.floats(&name, shape, &vec![value; count]))
    }

    /// A number.
    pub fn number(&mut self, x: f32) -> String {
        let name = self.fresh("number");
        self.floats(&name, &[], &[x])
    }

    /// Whole numbers.
    pub fn whole(&mut self, values: &[i64]) -> String {
        let name = self.fresh("whole");
        let raw = values.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.initializer(&name, &[values.len()], dtype::INT64, raw)
    }

    /// One whole number without a dimension.
    pub fn index(&mut self, value: i64) -> String {
        let name = self.fresh("index");
        self.initializer(&name, &[], dtype::INT64, value.to_le_bytes().to_vec())
    }

    /// A parameter of the network.
    pub fn parameter(&mut self, name: &str) -> Result<(String, &'a Tensor)> {
        let tensor = self.parameters.get(name);
        let tensor = tensor.ok_or_else(|| Error::internal(format!("there is no parameter `{name}`")))?;
        let written = self.floats(name, tensor.shape(), tensor.f32s()?);
        Ok((written, tensor))
    }
}
