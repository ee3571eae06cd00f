//! A network as the layers and operations of a functional model, with what each of their calls reads.
//!
//! Keras 3 lists the operations that make masks among its layers, and says of each call which mask it gets. Attention
//! alone finds its masks by itself.

use super::describe::{Place, number};
use super::names::snake_case;
use super::order::Called;
use crate::error::{Error, Result};
use crate::nn::{Axes, Fill, Input, Layer, MergeKind, Network, Node, PoolingKind, Port, Signal};
use crate::params::ParameterSpec;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A layer, or an operation that makes a mask.
pub(super) struct Operation {
    pub name: String,
    pub class: &'static str,
    pub config: Value,
    pub is_layer: bool,
    pub called: Called,
    /// The calls as they are serialised.
    nodes: Vec<Value>,
}

impl Operation {
    /// As it is serialised, with its calls.
    pub fn described(&self) -> Value {
        let (module, registered) =
            if self.is_layer { ("keras.layers", Value::Null) } else { ("keras.src.ops.numpy", self.class.into()) };
        json!({
            "module": module, "class_name": self.class, "config": self.config, "registered_name": registered,
            "name": self.name, "inbound_nodes": self.nodes,
        })
    }
}

/// The layers and operations of a model.
pub(super) struct Model {
    /// Inputs, then layers in the order of the nodes, then the makers of masks.
    pub all: Vec<Operation>,
    /// Of each node the operation, and which of its calls it is.
    places: Vec<(usize, usize)>,
    inputs: usize,
}

impl Model {
    /// What comes from a port: the operation's number, the call's and the output's.
    pub fn place(&self, port: Port) -> Result<(usize, usize, usize)> {
        let found = match port {
            Port::Input(at) => (at < self.inputs).then_some((at, 0, 0)),
            Port::Node(at, output) => self.places.get(at).map(|&(operation, call)| (operation, call, output)),
        };
        found.ok_or_else(|| Error::internal(format!("keras: nothing comes from {port:?}")))
    }

    /// Nodes of one name are calls of one layer.
    fn of(network: &Network) -> Self {
        let inputs = network.inputs.len();
        let mut known: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        let mut places = Vec::new();
        for node in &network.nodes {
            let next = inputs + known.len();
            let place = known.entry(&node.name).and_modify(|p| p.1 += 1).or_insert((next, 0));
            places.push(*place);
        }
        Self { all: Vec::new(), places, inputs }
    }
}

/// Where a mask comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mask {
    None,
    /// Tokens that are 0, or steps that all are this value.
    Of(Port, Option<f32>),
    /// Several that differ.
    Several,
}

/// The layers and operations of a network.
pub(super) fn model(network: &Network, specs: &BTreeMap<String, ParameterSpec>) -> Result<Model> {
    let inputs = (0..network.inputs.len()).map(|at| network.signal(Port::Input(at))).collect::<Result<_>>()?;
    let (signals, axes, fills) = (network.signals()?, network.axes()?, network.fills()?);
    let (model, masks, kept) = (Model::of(network), Vec::new(), Vec::new());
    Writer { network, specs, inputs, signals, axes, fills, model, masks, kept }.model()
}

struct Writer<'a> {
    network: &'a Network,
    specs: &'a BTreeMap<String, ParameterSpec>,
    inputs: Vec<Signal>,
    signals: Vec<Vec<Signal>>,
    axes: Axes,
    fills: Vec<Fill>,
    model: Model,
    /// The mask of what each node gives first, here.
    masks: Vec<Mask>,
    /// Whether Keras would keep a mask beside it.
    kept: Vec<bool>,
}

/// The operation that compares, and the one that tells whether any of a row differs.
const MAKERS: [&str; 2] = ["NotEqual", "Any"];

/// Whether a call of the layer is told of its mask.
fn is_told(layer: &Layer) -> bool {
    matches!(layer, Layer::Lstm(_)) || matches!(layer, Layer::Pooling(l) if l.kind == PoolingKind::Average)
}

impl Writer<'_> {
    fn model(mut self) -> Result<Model> {
        for (at, (name, input)) in self.network.inputs.iter().enumerate() {
            let shape = self.shape(Port::Input(at))?;
            let dtype = if *input == Input::Tokens { "int32" } else { "float32" };
            let config = json!({
                "batch_shape": shape, "dtype": dtype, "sparse": false, "ragged": false, "optional": false, "name": name,
            });
            self.push(name.clone(), "InputLayer", config, true).called.calls.push(Vec::new());
        }
        let mut masked = Vec::new();
        for (at, node) in self.network.nodes.iter().enumerate() {
            let mask = self.mask(node)?;
            let (number, call, _) = self.model.place(Port::Node(at, 0))?;
            if call == 0 {
                let input = node.inputs.first().map(|&port| self.signal(port)).transpose()?;
                let place = Place { name: &node.name, input, masked: mask != Mask::None, specs: self.specs };
                let (class, config) = place.layer(&self.shared(node))?;
                self.push(node.name.clone(), class, config, true);
            }
            let reads = node.inputs.iter().map(|&port| self.read(port)).collect::<Result<_>>()?;
            let serialised = self.call(node)?;
            let operation = self.operation(number)?;
            operation.called.calls.push(reads);
            operation.nodes.push(serialised);
            masked.push((number, call, mask));
        }
        // Makers of masks come after all layers, whose places follow from the network alone.
        for (number, call, mask) in masked {
            let Mask::Of(from, value) = mask else { continue };
            let maker = self.maker(from, value)?;
            let name = self.operation(maker)?.name.clone();
            let tensor = tensor(&name, 0, 0, &self.mask_shape(from)?, "bool");
            let operation = self.operation(number)?;
            if let (Some(reads), Some(node)) = (operation.called.calls.get_mut(call), operation.nodes.get_mut(call)) {
                reads.push((maker, 0));
                node["kwargs"]["mask"] = tensor;
            }
        }
        Ok(self.model)
    }

    fn push(&mut self, name: String, class: &'static str, config: Value, is_layer: bool) -> &mut Operation {
        let all = &mut self.model.all;
        all.push(Operation { name, class, config, is_layer, called: Called::default(), nodes: Vec::new() });
        let last = all.len() - 1;
        &mut all[last]
    }

    fn operation(&mut self, number: usize) -> Result<&mut Operation> {
        self.model.all.get_mut(number).ok_or_else(|| Error::internal("keras: a call of no layer"))
    }

    /// The call that a port comes from.
    fn read(&self, port: Port) -> Result<(usize, usize)> {
        self.model.place(port).map(|(operation, call, _)| (operation, call))
    }

    fn signal(&self, port: Port) -> Result<Signal> {
        let found = match port {
            Port::Node(at, output) => self.signals.get(at).and_then(|s| s.get(output)),
            Port::Input(at) => self.inputs.get(at),
        };
        found.copied().ok_or_else(|| Error::internal(format!("keras: nothing comes from {port:?}")))
    }

    /// The layer of a node, which masks if any that shares it does.
    fn shared(&self, node: &Node) -> Layer {
        let mut layer = node.layer.clone();
        if let Layer::Embedding(l) = &mut layer {
            l.mask_zero = self.makes_mask(&node.name);
        }
        layer
    }

    /// Whether an embedding of this name makes a mask anywhere, and so in Keras everywhere.
    fn makes_mask(&self, name: &str) -> bool {
        self.network.nodes.iter().any(|n| n.name == name && matches!(&n.layer, Layer::Embedding(l) if l.mask_zero))
    }

    /// The mask of a port, and whether Keras has one there that it finds itself.
    fn of(&self, port: Port) -> (Mask, bool) {
        match port {
            Port::Node(at, _) if self.network.state_part(port).is_none() => {
                let mask = if self.fills[at] == Fill::None { Mask::None } else { self.masks[at] };
                (mask, self.kept[at])
            }
            _ => (Mask::None, false),
        }
    }

    /// Follows masks through the next node; gives the one that its call is told of. Refuses what Keras would mask
    /// otherwise.
    fn mask(&mut self, node: &Node) -> Result<Mask> {
        let read: Vec<(Mask, bool)> = node.inputs.iter().map(|&p| self.of(p)).collect();
        let (first, kept) = read.first().copied().unwrap_or((Mask::None, false));
        let refuse = |what: &str| Err(Error::unsupported(format!("keras: {}: {what}", node.name)));
        let told = if is_told(&node.layer) { first } else { Mask::None };
        match &node.layer {
            Layer::Attention(_) if read.iter().take(2).any(|&(mask, kept)| (mask != Mask::None) != kept) => {
                return refuse("Keras would find other masks for its attention");
            }
            layer if is_told(layer) && told == Mask::None && kept => {
                return refuse("Keras would mask what it reads, and the network does not");
            }
            _ if told == Mask::Several => return refuse("it reads steps that different masks leave out"),
            _ => {}
        }
        let source = node.inputs.first().copied();
        let (mask, kept) = match (&node.layer, source) {
            (Layer::Embedding(l), Some(port)) => {
                (if l.mask_zero { Mask::Of(port, None) } else { Mask::None }, self.makes_mask(&node.name))
            }
            (Layer::Masking(l), Some(port)) => (Mask::Of(port, Some(l.value)), true),
            (Layer::Lstm(l), _) => (first, told != Mask::None && l.return_sequences),
            (Layer::Merge(l), _) => {
                let same = read.iter().all(|r| r.0 == first);
                let all = read.iter().all(|r| r.1);
                let any = read.iter().any(|r| r.1);
                let kept = if l.kind == MergeKind::Concatenate { any } else { all };
                (if same { first } else { Mask::Several }, kept)
            }
            (
                Layer::Dense(_)
                | Layer::Dropout(_)
                | Layer::Activation(_)
                | Layer::LayerNormalization(_)
                | Layer::Attention(_),
                _,
            ) => (first, kept),
            _ => (Mask::None, false),
        };
        self.masks.push(mask);
        self.kept.push(kept);
        Ok(told)
    }

    /// A call as it is serialised, but for its mask.
    fn call(&self, node: &Node) -> Result<Value> {
        let tensors = node.inputs.iter().map(|&port| self.of_port(port)).collect::<Result<Vec<_>>>()?;
        let none = json!({ "mask": null });
        Ok(match (&node.layer, &tensors[..]) {
            (Layer::Merge(_), all) => json!({ "args": [all], "kwargs": {} }),
            (Layer::Attention(l), all) if l.causal => json!({ "args": [all], "kwargs": { "use_causal_mask": true } }),
            (Layer::Attention(_), all) => json!({ "args": [all], "kwargs": {} }),
            (Layer::Lstm(_), [x, states @ ..]) if !states.is_empty() => {
                json!({ "args": [x], "kwargs": { "initial_state": states, "mask": null } })
            }
            (Layer::Lstm(_), all) => json!({ "args": all, "kwargs": none }),
            (Layer::Pooling(l), all) if l.kind == PoolingKind::Average => json!({ "args": all, "kwargs": none }),
            (_, all) => json!({ "args": all, "kwargs": {} }),
        })
    }

    fn of_port(&self, port: Port) -> Result<Value> {
        let (number, call, output) = self.model.place(port)?;
        let name = self.model.all.get(number).map(|o| o.name.as_str());
        let name = name.ok_or_else(|| Error::internal("keras: a port of no layer"))?;
        let dtype = if matches!(self.signal(port)?, Signal::Tokens { .. }) { "int32" } else { "float32" };
        Ok(tensor(name, call, output, &self.shape(port)?, dtype))
    }

    /// The shape of what comes from a port: the batch is open, and steps where they are.
    fn shape(&self, port: Port) -> Result<Value> {
        Ok(match self.signal(port)? {
            Signal::Tokens { axis } => json!([null, self.axes.count(axis)]),
            Signal::Sequence { features, axis, .. } => json!([null, self.axes.count(axis), features]),
            Signal::Rows { features } => json!([null, features]),
        })
    }

    fn mask_shape(&self, from: Port) -> Result<Value> {
        let shape = self.shape(from)?;
        Ok(json!([null, shape.get(1)]))
    }

    /// The number of the operation that makes a mask, which is made where there is none.
    fn maker(&mut self, from: Port, value: Option<f32>) -> Result<usize> {
        let compared = json!({ "args": [self.of_port(from)?, value.map_or(json!(0), number)], "kwargs": {} });
        let reads = self.read(from)?;
        let differs = self.make(MAKERS[0], json!({}), compared, reads);
        if value.is_none() {
            return Ok(differs);
        }
        let name = self.operation(differs)?.name.clone();
        let any = json!({ "args": [tensor(&name, 0, 0, &self.shape(from)?, "bool")], "kwargs": {} });
        Ok(self.make(MAKERS[1], json!({ "axis": -1, "keepdims": false }), any, (differs, 0)))
    }

    /// The number of the operation of a class with this call, which is made under a free name where there is none.
    fn make(&mut self, class: &'static str, mut config: Value, node: Value, reads: (usize, usize)) -> usize {
        let same = |o: &Operation| !o.is_layer && o.class == class && o.nodes.first() == Some(&node);
        if let Some(known) = self.model.all.iter().position(same) {
            return known;
        }
        let stem = snake_case(class);
        let free = |name: &String| self.model.all.iter().all(|o| &o.name != name);
        let numbered = (1..).map(|n| format!("{stem}_{n}")).find(free);
        let name = if free(&stem) { stem } else { numbered.unwrap_or_default() };
        config["name"] = name.clone().into();
        let number = self.model.all.len();
        let operation = self.push(name, class, config, false);
        operation.called.calls.push(vec![reads]);
        operation.nodes.push(node);
        number
    }
}

/// A tensor as it is serialised.
fn tensor(name: &str, call: usize, output: usize, shape: &Value, dtype: &str) -> Value {
    let config = json!({ "shape": shape, "dtype": dtype, "keras_history": [name, call, output] });
    json!({ "class_name": "__keras_tensor__", "config": config })
}
