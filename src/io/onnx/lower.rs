//! A graph of ONNX as layers of a network: node after node, each value seen as a tensor over what the network has.

use super::attention::misused;
use super::facts::Facts;
use super::host::{Budget, Host};
use super::int::Int;
use super::layout::{Atom, Axis, Kind, Lifted, Sizes};
use super::node::Node;
use super::schema;
use super::tensor::Reader;
use super::value::Val;
use super::{arithmetic, einsum, moves, products, recurrent};
use crate::error::{Error, Result};
use crate::nn::{Along, Embedding, Growing, Layer, Port, RepeatVector, Step, Steps};
use crate::params::Tensor;
use std::borrow::{Borrow, Cow};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// The versions of the operators that are known.
pub(super) const VERSIONS: std::ops::RangeInclusive<i64> = 7..=22;
/// The most nodes that a file may come to, functions and branches in their place.
const NODES: usize = 1 << 12;
/// How deep functions and branches may be in each other.
const DEPTH: usize = 16;

/// What a node gives.
pub(super) type Outputs = Result<Vec<Option<Val>>>;

/// One output.
pub(super) fn one(value: impl Into<Val>) -> Outputs {
    Ok(vec![Some(value.into())])
}

/// A graph while it is read.
pub(super) struct Lower<'m> {
    facts: &'m Facts<'m>,
    reader: &'m Reader,
    /// What the file gives the values of.
    values: &'m HashMap<String, Val>,
    pub network: Growing,
    pub parameters: BTreeMap<String, Tensor>,
    pub sources: BTreeMap<String, String>,
    pub sizes: Sizes,
    pub budget: Budget,
    /// Inputs of the network that the file gives the values of.
    pub constants: BTreeMap<String, Tensor>,
    /// Those of them that are lengths of sequences, by what the file calls them.
    pub constant_lengths: HashMap<String, Port>,
    /// Names of products that one sum alone may take as its bias, with the node of the network.
    pub products: HashMap<String, usize>,
    scopes: Vec<HashMap<String, Val>>,
    /// How many scopes, from the first, what is read now does not see: those around a function, and the file's values.
    enclosed: usize,
    /// Nodes read so far.
    pub done: usize,
    /// Two inputs that must have the same steps for what was tried.
    pub together: Option<(usize, usize)>,
}

impl<'m> Lower<'m> {
    pub fn new(facts: &'m Facts<'m>, reader: &'m Reader, bytes: u64, values: &'m HashMap<String, Val>) -> Self {
        Self {
            facts,
            reader,
            values,
            network: Growing::default(),
            parameters: BTreeMap::new(),
            sources: BTreeMap::new(),
            sizes: Sizes::default(),
            budget: Budget::new(bytes),
            constants: BTreeMap::new(),
            constant_lengths: HashMap::new(),
            products: HashMap::new(),
            scopes: vec![HashMap::new()],
            enclosed: 0,
            done: 0,
            together: None,
        }
    }

    /// The version of ONNX's own operators.
    pub fn version(imports: &[schema::OperatorSet]) -> Result<i64> {
        let own = imports.iter().find(|o| is_own(&o.domain)).map(|o| o.version);
        match own {
            Some(version) if VERSIONS.contains(&version) => Ok(version),
            Some(version) => {
                let (first, last) = (VERSIONS.start(), VERSIONS.end());
                Err(Error::unsupported(format!("version {version} of ONNX's operators; expected {first} to {last}")))
            }
            None => Err(Error::data("expected the version of ONNX's operators, got none")),
        }
    }

    /// Gives a name its value, which it has not had.
    pub fn define(&mut self, name: &str, value: Val) -> Result<()> {
        let scope = self.scopes.last_mut().ok_or_else(|| Error::internal("no scope"))?;
        match scope.insert(name.to_string(), value) {
            None => Ok(()),
            Some(_) => Err(Error::data(format!("`{name}` is given twice"))),
        }
    }

    pub fn find(&self, name: &str) -> Option<&Val> {
        let found = self.scopes[self.enclosed..].iter().rev().find_map(|scope| scope.get(name));
        found.or_else(|| if self.enclosed == 0 { self.values.get(name) } else { None })
    }

    /// How many tokens an input may be, where a table tells.
    pub fn vocabulary(&self, name: &str) -> Option<usize> {
        self.facts.vocabularies.get(name).copied()
    }

    /// Whether one node alone reads a name.
    pub fn read_once(&self, name: &str) -> bool {
        self.facts.uses.get(name) == Some(&1)
    }

    /// Notes what a product gives. Inside of a function, or a branch, names are other ones, whose readers are not counted.
    pub fn note_product(&mut self, name: &str, node: usize) {
        if self.scopes.len() == 1 {
            self.products.insert(name.to_string(), node);
        }
    }

    /// Reads nodes in their order.
    pub fn nodes<N: Borrow<schema::Node>>(&mut self, nodes: &[N], version: i64) -> Result<()> {
        for node in nodes.iter().map(Borrow::borrow) {
            let read = self.node(node, version).map_err(|e| {
                let name = if node.name.is_empty() { node.output.first().map_or("", |o| o) } else { &node.name };
                e.within(format!("node `{name}` ({})", node.op_type))
            })?;
            for (name, value) in node.output.iter().zip(read) {
                if let (false, Some(value)) = (name.is_empty(), value) {
                    self.define(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn node(&mut self, message: &schema::Node, version: i64) -> Outputs {
        self.done += 1;
        if self.done > NODES {
            return Err(too_many());
        }
        let find = |name: &String| match name.as_str() {
            "" => Ok(None),
            name => self
                .find(name)
                .cloned()
                .map(Some)
                .ok_or_else(|| Error::data(format!("nothing gives its input `{name}`"))),
        };
        let inputs = message.input.iter().map(find).collect::<Result<Vec<_>>>()?;
        if !is_own(&message.domain) {
            return self.function(message, &inputs);
        }
        let node = Node::new(message, version, &inputs, self.reader);
        let outputs = self.operator(&node)?;
        node.check()?;
        let given = |at: usize| outputs.get(at).is_some_and(Option::is_some);
        match (0..message.output.len()).find(|&at| node.gives(at) && !given(at)) {
            Some(at) => Err(Error::unsupported(format!("its output `{}` is not supported", message.output[at]))),
            None => Ok(outputs),
        }
    }

    fn operator(&mut self, node: &Node<'_>) -> Outputs {
        let op = node.op();
        match op {
            "LSTM" => recurrent::lstm(self, node),
            "Einsum" => einsum::einsum(self, node),
            "If" => self.branch(node),
            "MatMul" | "Gemm" | "Conv" | "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool" => {
                products::operator(self, node)
            }
            _ => match moves::operator(self, node)? {
                Some(outputs) => Ok(outputs),
                None => match arithmetic::operator(self, node)? {
                    Some(outputs) => Ok(outputs),
                    None => Err(Error::unsupported("the operator is not supported")),
                },
            },
        }
    }

    /// One of two graphs, where it is known beforehand which.
    fn branch(&mut self, node: &Node<'_>) -> Outputs {
        let condition = node.input(0)?.host()?;
        let taken = condition.scalar().ok_or_else(|| Error::data("a condition that is not one value"))? != 0.0;
        let (then, other) = (node.graph("then_branch")?, node.graph("else_branch")?);
        let graph = if taken { then } else { other };
        let graph = graph.ok_or_else(|| Error::data("expected two graphs to choose from"))?;
        self.inner(HashMap::new(), |lower| {
            for tensor in &graph.initializer {
                let value = lower.reader.host(tensor)?;
                lower.define(&tensor.name, value.into())?;
            }
            lower.nodes(&graph.node, node.version)?;
            let output = |o: &schema::ValueInfo| lower.find(&o.name).cloned();
            Ok(graph.output.iter().map(output).collect())
        })
    }

    fn inner<R>(&mut self, values: HashMap<String, Val>, f: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        if self.scopes.len() > DEPTH {
            return Err(Error::unsupported(format!("functions or branches more than {DEPTH} deep in each other")));
        }
        self.scopes.push(values);
        let result = f(self);
        self.scopes.pop();
        result
    }

    /// An operation that the file itself defines, its nodes in its place.
    fn function(&mut self, message: &schema::Node, inputs: &[Option<Val>]) -> Outputs {
        let key = (message.domain.as_str(), message.op_type.as_str(), message.overload.as_str());
        let Some(function) = self.facts.functions.get(&key).copied() else {
            let domain = &message.domain;
            return Err(Error::unsupported(format!("the operator is of `{domain}`, which is not supported")));
        };
        let imports = if function.opset_import.is_empty() { self.facts.imports } else { &function.opset_import };
        let version = Self::version(imports)?;
        if self.done + function.node.len() > NODES {
            return Err(too_many());
        }
        let nodes = function.node.iter().map(|n| resolved(n, &message.attribute, &function.attribute_proto));
        let nodes: Vec<Cow<'_, schema::Node>> = nodes.collect();
        let given = function.input.iter().zip(inputs).filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
        // A function sees nothing of what is around it.
        let enclosed = std::mem::replace(&mut self.enclosed, self.scopes.len());
        let result = self.inner(given.collect(), |lower| {
            lower.nodes(&nodes, version)?;
            Ok(function.output.iter().map(|name| lower.find(name).cloned()).collect())
        });
        self.enclosed = enclosed;
        result
    }

    /// Adds a layer.
    pub fn add(&mut self, layer: impl Into<Layer>, inputs: &[Port]) -> Result<Vec<Port>> {
        let ports = self.network.add(layer, inputs)?;
        for &port in &ports {
            if let Some(axis) = self.network.signal(port)?.axis() {
                self.learn(axis)?;
            }
        }
        Ok(ports)
    }

    /// The name of the layer added last.
    pub fn last_name(&self) -> String {
        self.network.nodes.last().map_or_else(String::new, |n| n.name.clone())
    }

    /// Gives a parameter of the layer added last its values; `source` is what the file calls them.
    pub fn parameter(&mut self, role: &str, tensor: Tensor, source: &str) {
        let name = format!("{}.{role}", self.last_name());
        self.sources.insert(name.clone(), if source.is_empty() { name.clone() } else { source.to_string() });
        self.parameters.insert(name, tensor);
    }

    /// Notes how many steps a time axis has, where that is known.
    fn learn(&mut self, axis: u8) -> Result<()> {
        if self.sizes.steps.contains_key(&axis) {
            return Ok(());
        }
        let count = |sizes: &Sizes, axis: u8| sizes.steps.get(&axis).and_then(Int::known);
        let steps = match self.network.axes().all().get(usize::from(axis)) {
            Some(Steps::Fixed(n)) => Some(*n as i64),
            Some(Steps::Windows { of, window }) => {
                count(&self.sizes, *of).and_then(|n| usize::try_from(n).ok()).map(|n| window.steps(n) as i64)
            }
            _ => None,
        };
        self.sizes.steps.extend(steps.map(|n| (axis, Int::Known(n))));
        Ok(())
    }

    /// What comes from a port, under these axes.
    pub fn lift(&self, port: Port, kind: Kind, dims: Vec<Axis>) -> Result<Lifted> {
        let signal = self.network.signal(port)?;
        let bare =
            Lifted { port, kind, axis: signal.axis(), features: signal.features().unwrap_or(1), dims: Vec::new() };
        Ok(bare.with_dims(dims))
    }

    /// Adds a layer with one output over a value, whose axes stay.
    pub fn over(&mut self, layer: impl Into<Layer>, x: &Lifted) -> Result<Lifted> {
        let ports = self.add(layer, &[x.port])?;
        self.lift(ports[0], Kind::Float, x.dims.clone())
    }

    /// A value that the network computes.
    pub fn lifted(&mut self, value: &Val) -> Result<Lifted> {
        match value {
            Val::Lifted(value) => match value.kind {
                Kind::Float | Kind::Bool => Ok(value.clone()),
                Kind::Whole => Err(Error::unsupported("truths as whole numbers where floats are expected")),
                Kind::Tokens => Err(Error::unsupported("tokens where floats are expected")),
                Kind::Lengths => Err(Error::unsupported("lengths of sequences where floats are expected")),
            },
            Val::Table { tokens, table } => {
                let kind = if let super::host::Data::Bool(_) = table.data { Kind::Bool } else { Kind::Float };
                let values = table.as_floats()?;
                let ports = self.add(Embedding::new(values.len(), 1), &[tokens.port])?;
                self.parameter("weight", Tensor::new(&[values.len(), 1], values)?, "");
                self.lift(ports[0], kind, tokens.dims.clone())
            }
            Val::Best { .. } => Err(Error::unsupported("the number of the largest feature can only be an output")),
            Val::Scores(_) => Err(misused()),
            Val::Numbers(_) | Val::Order(_) => Err(super::numbers::misused()),
            Val::Host(_) | Val::Spread { .. } => {
                Err(Error::unsupported("a constant where a computed value is expected"))
            }
        }
    }

    /// A value with a row for each sequence, where it has one step alone.
    pub fn rows(&mut self, x: &Lifted) -> Result<Lifted> {
        match x.axis {
            Some(axis) if !x.has(Atom::Steps(axis)) => self.over(Step { at: 0 }, x),
            _ => Ok(x.clone()),
        }
    }

    /// A value as a sequence, of one step where it is a row.
    pub fn sequence(&mut self, x: &Lifted) -> Result<Lifted> {
        if x.axis.is_some() { Ok(x.clone()) } else { self.over(RepeatVector { count: 1 }, x) }
    }

    /// A value at the steps of another.
    pub fn along(&mut self, x: &Lifted, like: Port) -> Result<Lifted> {
        let ports = self.add(Along {}, &[x.port, like])?;
        self.lift(ports[0], x.kind, x.dims.clone())
    }

    /// Something that has the steps of an axis.
    pub fn port_on(&self, axis: u8) -> Result<Port> {
        let input = self.network.input_signals().iter().position(|s| s.axis() == Some(axis));
        if let Some(at) = input {
            return Ok(Port::Input(at));
        }
        let found = self.network.signals().iter().enumerate().find_map(|(node, outputs)| {
            outputs.iter().position(|s| s.axis() == Some(axis)).map(|output| Port::Node(node, output))
        });
        found.ok_or_else(|| Error::internal("a time axis that nothing has"))
    }

    /// Whether two time axes have the same steps; where they are those of inputs, that is what is tried next.
    pub fn same_steps(&mut self, a: u8, b: u8) -> Result<bool> {
        if a == b {
            return Ok(true);
        }
        let of = |axis: u8| self.network.input_signals().iter().position(|s| s.axis() == Some(axis));
        if let (Some(a), Some(b)) = (of(a), of(b)) {
            self.together = Some((a.max(b), a.min(b)));
        }
        Ok(false)
    }
}

fn too_many() -> Error {
    Error::unsupported(format!("expected at most {NODES} nodes"))
}

/// Whether operators of a domain are ONNX's own.
pub(super) fn is_own(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

/// A node of a function with the values of the attributes that it takes from the call.
fn resolved<'n>(
    node: &'n schema::Node,
    given: &[schema::Attribute],
    defaults: &[schema::Attribute],
) -> Cow<'n, schema::Node> {
    if node.attribute.iter().all(|a| a.ref_attr_name.is_empty()) {
        return Cow::Borrowed(node);
    }
    let mut node = node.clone();
    for attribute in std::mem::take(&mut node.attribute) {
        if attribute.ref_attr_name.is_empty() {
            node.attribute.push(attribute);
            continue;
        }
        let named = |a: &&schema::Attribute| a.name == attribute.ref_attr_name;
        // What neither has is left out, as if the node did not name it.
        if let Some(found) = given.iter().find(named).or_else(|| defaults.iter().find(named)) {
            node.attribute.push(schema::Attribute { name: attribute.name, ..found.clone() });
        }
    }
    Cow::Owned(node)
}

/// A tensor of the file as a parameter.
pub(super) fn tensor(host: &Rc<Host>) -> Result<Tensor> {
    Tensor::new(&host.shape, host.floats()?.to_vec())
}
