//! Layers over each other's outputs: any graph of them, with names, shapes and parameters.

use super::append::{Placed, append, steadiness};
use super::axes::Axes;
use super::growing::Growing;
use super::layers::SIZE_LIMIT;
use super::masks::Fill;
use super::signals::{Known, Signal, input_signals};
use super::{Dense, Input, Layer, MergeMode, Recalled};
use crate::error::{Error, Result};
use crate::graph::{Dim, Expr, Graph, Symbol, Value};
use crate::params::{DType, ParameterSpec, Regularizer};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Where a value of a network comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Port {
    /// An input, by number.
    Input(usize),
    /// An output of a node: the node's number, the output's.
    Node(usize, usize),
}

/// A layer in its place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its name; parameters are named under it. A node of the same name and layer shares its parameters.
    pub name: String,
    /// The layer.
    pub layer: Layer,
    /// What it reads.
    pub inputs: Vec<Port>,
}

/// Layers over each other's outputs, each after those it reads from. Built by adding one after the other:
///
/// ```
/// # use mnemon::nn::{Dense, Input, Lstm, Network};
/// let mut network = Network::default();
/// let x = network.input("x", Input::Features(8));
/// let encoded = network.add(Lstm::new(16).return_state(true), &[x])?;
/// let y = network.input("y", Input::Features(4));
/// let decoded = network.add(Lstm::new(16).return_sequences(true), &[y, encoded[1], encoded[2]])?;
/// let out = network.add(Dense::new(4), &decoded)?;
/// network.output("out", out[0]);
/// # Ok::<(), mnemon::error::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// What it reads, by name.
    pub inputs: Vec<(String, Input)>,
    /// Inputs whose steps are those of another input, by number: theirs, the other's.
    #[serde(default)]
    pub aligned: Vec<(usize, usize)>,
    /// Sequence inputs that never have more steps than this, by number; layers that need to know it can.
    #[serde(default)]
    pub steps: Vec<(usize, usize)>,
    /// Its layers.
    pub nodes: Vec<Node>,
    /// What it gives, by name.
    pub outputs: Vec<(String, Port)>,
}

/// How a network is built into a graph.
#[derive(Debug, Clone, Copy, Default)]
pub struct GraphOptions<'a> {
    /// Whether dropout drops.
    pub training: bool,
    /// What the names of carried states begin with, so that training and inference can each have their own.
    pub state_prefix: &'a str,
    /// Where carried states are kept, if not in the order of the batch's sequences.
    pub slots: Option<Slots>,
}

/// Carried states in tables `[count, *]` with a row for each of more sequences than a batch has.
#[derive(Debug, Clone, Copy)]
pub struct Slots {
    /// Rows of each table.
    pub count: usize,
    /// `[B]`, the row that each sequence begins from.
    pub from: Value,
    /// `[B]`, the row that its final state goes to; no two have the same.
    pub to: Value,
}

/// A network in a graph.
#[derive(Debug, Clone)]
pub struct Built {
    /// Its inputs in order.
    pub inputs: Vec<(Value, Signal)>,
    /// Its outputs in order.
    pub outputs: Vec<(Value, Signal)>,
    /// Carried states with the values they take at the end of a run; the caller updates them.
    pub states: Vec<(Value, Value)>,
    /// What outputs of layers add to a loss, each `[1]`.
    pub penalties: Vec<Value>,
    /// What training makes small besides, and no loss that is told of has, each `[1]`: AR and TAR.
    pub steady: Vec<Value>,
    /// The outputs of working memories, with what they came from.
    pub recalled: Vec<(Value, Recalled)>,
}

impl Network {
    /// Adds an input.
    pub fn input(&mut self, name: &str, input: Input) -> Port {
        self.inputs.push((name.to_string(), input));
        Port::Input(self.inputs.len() - 1)
    }

    /// Makes a sequence input take its steps from an earlier one, so that layers can join the two.
    pub fn align(&mut self, input: Port, earlier: Port) -> Result<()> {
        let (Port::Input(input), Port::Input(earlier)) = (input, earlier) else {
            return Err(Error::argument("network: only inputs can be aligned"));
        };
        let signals = input_signals(self)?.0;
        let sequence = |at: usize| signals.get(at).is_some_and(|s| s.axis().is_some());
        if earlier >= input || !sequence(input) || !sequence(earlier) {
            return Err(Error::argument("network: a sequence can be aligned with one that was added before it"));
        }
        self.aligned.push((input, earlier));
        Ok(())
    }

    /// Says that a sequence input never has more steps than this, which layers such as `Flatten` must know.
    pub fn fix_steps(&mut self, input: Port, steps: usize) -> Result<()> {
        let Port::Input(at) = input else { return Err(Error::argument("network: only inputs have a number of steps")) };
        if !(1..=SIZE_LIMIT).contains(&steps) || input_signals(self)?.0.get(at).is_none_or(|s| s.axis().is_none()) {
            return Err(Error::argument(format!(
                "network: expected a sequence of 1 to {SIZE_LIMIT} steps, got {steps}"
            )));
        }
        self.steps.retain(|s| s.0 != at);
        self.steps.push((at, steps));
        Ok(())
    }

    /// Adds a layer over `inputs`, called after the user's name or its class; gives its outputs.
    pub fn add(&mut self, layer: impl Into<Layer>, inputs: &[Port]) -> Result<Vec<Port>> {
        let layer = layer.into();
        let unnamed = |n: &&Node| n.layer.given_name().is_none() && n.layer.class() == layer.class();
        let name = name_of(&layer, self.nodes.iter().filter(unnamed).count());
        self.add_named(&name, layer, inputs)
    }

    /// Adds a layer under a name.
    pub fn add_named(&mut self, name: &str, layer: Layer, inputs: &[Port]) -> Result<Vec<Port>> {
        Known::of(self)?.add(self, Node { name: name.to_string(), layer, inputs: inputs.to_vec() })
    }

    /// Adds an output.
    pub fn output(&mut self, name: &str, port: Port) {
        self.outputs.push((name.to_string(), port));
    }

    /// The time axis of each input, where it has one.
    pub fn input_axes(&self) -> Result<Vec<Option<u8>>> {
        Ok(input_signals(self)?.0.iter().map(Signal::axis).collect())
    }

    /// All time axes: those of inputs, and those that layers make.
    pub fn axes(&self) -> Result<Axes> {
        Ok(Known::of(self)?.axes)
    }

    /// The outputs of every node, or what does not fit.
    pub fn signals(&self) -> Result<Vec<Vec<Signal>>> {
        Ok(Known::of(self)?.nodes)
    }

    /// Whether layers may need to know how many steps a sequence has.
    pub fn needs_steps(layers: &[Layer]) -> bool {
        layers.iter().any(|l| matches!(l, Layer::Flatten(_) | Layer::Reshape(_) | Layer::Permute(_)))
    }

    /// What comes from `port`.
    pub fn signal(&self, port: Port) -> Result<Signal> {
        Known::of(self)?.signal(port)
    }

    /// All parameters in the order of the nodes; a shared layer's once.
    pub fn parameters(&self) -> Result<Vec<ParameterSpec>> {
        let known = Known::of(self)?;
        let mut all: Vec<ParameterSpec> = Vec::new();
        let mut places = BTreeMap::new();
        for node in &self.nodes {
            for spec in node_parameters(node, &known)? {
                match places.get(&spec.name) {
                    None => {
                        places.insert(spec.name.clone(), all.len());
                        all.push(spec);
                    }
                    Some(&at) if all[at].shape == spec.shape => {}
                    Some(&at) => {
                        let (has, name) = (&all[at].shape, &spec.name);
                        let error = format!("it shares `{name}`, which is {has:?}, and needs {:?}", spec.shape);
                        return Err(Error::shape(error).within(&node.name));
                    }
                }
            }
        }
        self.check_ties()?;
        Ok(all)
    }

    /// Refuses attention by steps between two sequences whose steps masks may take away: which is earlier is not known.
    fn check_causal(&self, known: &Known) -> Result<()> {
        for node in self.nodes.iter().filter(|n| matches!(&n.layer, Layer::Attention(l) if l.causal)) {
            let axes = node.inputs.iter().map(|&p| Ok(known.signal(p)?.axis())).collect::<Result<Vec<_>>>()?;
            if self.masks() && axes.windows(2).any(|pair| pair[0] != pair[1]) {
                let error = Error::unsupported("causal attention to another sequence, where masks leave out steps");
                return Err(error.within(&node.name));
            }
        }
        Ok(())
    }

    /// Refuses a layer tied to one that is not an embedding before it.
    fn check_ties(&self) -> Result<()> {
        let mut embeddings = BTreeSet::new();
        for node in &self.nodes {
            match &node.layer {
                Layer::Embedding(_) => drop(embeddings.insert(&node.name)),
                Layer::Dense(Dense { tied: Some(name), .. }) if !embeddings.contains(name) => {
                    let error =
                        Error::argument(format!("it is tied to `{name}`, and no embedding of that name is before it"));
                    return Err(error.within(&node.name));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Layers in a row with the input `x`, of at most `steps` steps where that is known, and the output `y`; each must
    /// give one output.
    pub fn chain(input: Input, steps: Option<usize>, layers: &[Layer]) -> Result<Self> {
        let mut network = Growing::default();
        let mut at = network.input("x", input)?;
        if let Some(steps) = steps {
            network.fix_steps(at, steps)?;
        }
        for layer in layers {
            let read = if let Layer::WorkingMemory(_) = layer { network.memory_inputs(at)? } else { vec![at] };
            let outputs = network.add(layer.clone(), &read)?;
            let [one] = outputs[..] else {
                return Err(Error::argument(format!(
                    "a layer in a row gives one output, {} has {}; build a `Network`",
                    layer.class(),
                    outputs.len()
                )));
            };
            at = one;
        }
        network.output("y", at);
        Ok(network.finish())
    }

    /// The names of the states that layers carry from run to run.
    pub fn carried(&self) -> Vec<String> {
        let stateful = self.nodes.iter().filter(|n| n.layer.is_stateful());
        let names = stateful.flat_map(|node| {
            let parts = if let Layer::WorkingMemory(_) = node.layer { ["ring", "position"] } else { ["h_l0", "c_l0"] };
            parts.map(|part| format!("{}.{part}", node.name))
        });
        names.collect()
    }

    /// What a final state that an LSTM gives is called: `h` or `c`, and `h_reverse` or `c_reverse`; none for all else.
    pub fn state_part(&self, port: Port) -> Option<&'static str> {
        let Port::Node(at, output) = port else { return None };
        let Layer::Lstm(lstm) = &self.nodes.get(at)?.layer else { return None };
        let main = if lstm.merge == MergeMode::Apart { 2 } else { 1 };
        ["h", "c", "h_reverse", "c_reverse"].get(output.checked_sub(main)?).copied()
    }

    /// Appends the network to `graph`: inputs and parameters by name. Adds no update and no output.
    pub fn build(&self, graph: &mut Graph, options: GraphOptions<'_>) -> Result<Built> {
        let known = Known::of(self)?;
        self.parameters()?;
        let fills = self.fills()?;
        self.check_causal(&known)?;
        self.check_memories()?;
        let mut given = Vec::new();
        for ((name, _), &signal) in self.inputs.iter().zip(&known.inputs) {
            let rows = |axis: u8| Dim::Symbol(Symbol::Rows(axis));
            let value = match signal {
                Signal::Tokens { axis } => graph.input(name, [rows(axis)], DType::U32)?,
                Signal::Sequence { features, axis, .. } => {
                    graph.input(name, [rows(axis), Dim::Fixed(features)], DType::F32)?
                }
                Signal::Rows { features } => graph.input(name, [crate::graph::B, Dim::Fixed(features)], DType::F32)?,
            };
            given.push(value);
        }
        let mut values: Vec<Vec<Value>> = Vec::new();
        let (mut states, mut penalties, mut steady, mut recalled) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (at, node) in self.nodes.iter().enumerate() {
            let read: Vec<(Value, Signal)> = node
                .inputs
                .iter()
                .map(|&port| Ok((value(port, &given, &values)?, known.signal(port)?)))
                .collect::<Result<_>>()?;
            let specs = node_parameters(node, &known)?;
            let made = graph.scoped(&node.name, |graph| {
                let parameters =
                    specs.iter().map(|p| graph.persistent(&p.name, &p.shape)).collect::<Result<Vec<Value>>>()?;
                let fill = node.inputs.first().map_or(Fill::None, |&port| self.fill_of(&fills, port));
                let (inputs, outputs, parameters) = (&read[..], &known.nodes[at][..], &parameters[..]);
                let placed = Placed { node, inputs, outputs, parameters, axes: &known.axes, fill, options };
                let made = append(graph, &placed, &mut states, &mut recalled)?;
                if let (true, Layer::Lstm(layer)) = (options.training, &node.layer) {
                    let apart = if layer.merge == MergeMode::Apart { 2 } else { 1 };
                    for &h in &made[..apart] {
                        steady.extend(steadiness(graph, layer, h)?);
                    }
                }
                for &output in node.layer.activity().map_or(&[][..], |_| &made) {
                    penalties.extend(activity(graph, node.layer.activity(), output)?);
                }
                Ok(made)
            })?;
            values.push(made);
        }
        let outputs = self
            .outputs
            .iter()
            .map(|&(_, port)| Ok((value(port, &given, &values)?, known.signal(port)?)))
            .collect::<Result<_>>()?;
        Ok(Built {
            inputs: given.into_iter().zip(known.inputs).collect(),
            outputs,
            states,
            penalties,
            steady,
            recalled,
        })
    }

    /// A table of the layers, as Keras prints it.
    pub fn summary(&self, title: &str) -> Result<String> {
        let known = Known::of(self)?;
        let mut text = format!("{title}\n");
        let mut line = |a: &str, b: &str, c: &str| {
            let _ = writeln!(text, "{a:<40} {b:<24} {c:>14}");
        };
        line("layer (class)", "output shape", "parameters");
        for ((name, _), signal) in self.inputs.iter().zip(&known.inputs) {
            line(&format!("{name} (input)"), &signal.to_string(), "0");
        }
        let (mut total, mut seen) = (0usize, BTreeSet::new());
        for (node, outputs) in self.nodes.iter().zip(&known.nodes) {
            let specs = node_parameters(node, &known)?;
            let own: Vec<_> = specs.iter().filter(|s| seen.insert(s.name.clone())).collect();
            let count: usize = own.iter().map(|s| s.shape.iter().product::<usize>()).sum();
            total += count;
            let shapes: Vec<String> = outputs.iter().map(Signal::to_string).collect();
            let count = if own.is_empty() && !specs.is_empty() { "shared".to_string() } else { count.to_string() };
            line(&format!("{} ({})", node.name, node.layer.class()), &shapes.join(", "), &count);
        }
        line("total", "", &total.to_string());
        Ok(text)
    }
}

/// What an output adds to the loss: its regularisation over the number of sequences, as Keras has it.
fn activity(graph: &mut Graph, regularizer: Option<Regularizer>, output: Value) -> Result<Option<Value>> {
    let Some(regularizer) = regularizer else { return Ok(None) };
    let Some(penalty) = graph.penalty(regularizer, output)? else { return Ok(None) };
    let sequences = Expr::Size(Symbol::Batch).max(Expr::Const(1.0));
    graph.elementwise(Expr::Input(0) / sequences, &[penalty]).map(Some)
}

/// What a layer is called: as the user says, or `class`, `class_1`, `class_2` after `unnamed` others of its class that have
/// no name of their own.
pub(super) fn name_of(layer: &Layer, unnamed: usize) -> String {
    match (layer.given_name(), unnamed) {
        (Some(name), _) => name.to_string(),
        (None, 0) => layer.class().to_string(),
        (None, n) => format!("{}_{n}", layer.class()),
    }
}

fn node_parameters(node: &Node, known: &Known) -> Result<Vec<ParameterSpec>> {
    let features = match node.inputs.first() {
        Some(&port) => known.signal(port)?.features().unwrap_or(0),
        None => 0,
    };
    Ok(node.layer.parameters(&node.name, features))
}

fn value(port: Port, inputs: &[Value], values: &[Vec<Value>]) -> Result<Value> {
    let found = match port {
        Port::Input(at) => inputs.get(at).copied(),
        Port::Node(node, output) => values.get(node).and_then(|v| v.get(output)).copied(),
    };
    found.ok_or_else(|| Error::internal(format!("network: nothing comes from {port:?}")))
}
