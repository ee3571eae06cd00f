//! Networks as graphs of ONNX, batch-first like the networks.
//!
//! An LSTM whose step ONNX's operator can say is that operator; any other is a `Scan` over its step. Steps that a mask
//! leaves out are moved behind those kept before an LSTM and back after it, so that a mask may have any form.

use super::super::model::check;
use super::builder::{Writer, float, info, int, ints};
use super::edges::Edges;
use super::own;
use super::schema::{Entry, Graph, Model, Node, OperatorSet, dtype};
use crate::error::{Error, Result};
use crate::nn::{
    Activation, Fill, Function, Input, Layer, MergeKind, MergeMode, Network, Node as Placed, Operand, Port, Score,
    Signal,
};
use crate::params::Tensor;
use prost::Message as _;
use std::collections::BTreeMap;
use std::path::Path;

/// The version of the operators that are used, and of the file's form that came with it.
const OPERATORS: i64 = 17;
const FORM: i64 = 8;

/// Writes a network as an ONNX file, which gives what the network gives: sequences `[B, T, features]`, tokens `[B, T]`
/// of 64 bits, rows `[B, features]`. Layers that carry their state read it as `NAME.h_0` and `NAME.c_0` `[B, ..]` and give
/// it as `NAME.h_n` and `NAME.c_n`. Of `edges`, which may be empty, outputs that are numbers of largest features are those,
/// `[B, T]` or `[B]` of 64 bits, and inputs that the file gives are constants. Refuses what ONNX cannot say, by the layer's name.
pub fn write_model(
    path: &Path,
    title: &str,
    network: &Network,
    parameters: &BTreeMap<String, Tensor>,
    edges: &Edges,
) -> Result<()> {
    let bytes = model(title, network, parameters, edges).map_err(|e| e.within("onnx"))?.encode_to_vec();
    super::super::replace(path, &bytes)
}

fn model(title: &str, network: &Network, parameters: &BTreeMap<String, Tensor>, edges: &Edges) -> Result<Model> {
    check(network, parameters, &BTreeMap::new())?;
    // What only edges say is no part of the network.
    let whole = edges.constants.is_empty() && edges.outputs.iter().all(|edge| !edge.best);
    let part = whole.then(|| Entry { key: own::KEY.to_string(), value: own::described(network) });
    Ok(Model {
        ir_version: FORM,
        producer_name: "mnemon".to_string(),
        producer_version: env!("CARGO_PKG_VERSION").to_string(),
        graph: Some(graph(title, network, parameters, edges, None)?),
        opset_import: vec![OperatorSet { domain: String::new(), version: OPERATORS }],
        metadata_props: part.into_iter().collect(),
        functions: Vec::new(),
    })
}

/// The graph of a network, none of whose constants has more values than `limit`.
pub(super) fn graph(
    title: &str,
    network: &Network,
    parameters: &BTreeMap<String, Tensor>,
    edges: &Edges,
    limit: Option<u64>,
) -> Result<Graph> {
    let mut writer = Writer::new(title, network, parameters, limit);
    writer.network(network, edges)?;
    Ok(writer.graph)
}

/// A value of the network in the graph: `[B, T, F]`, `[B, T]` of tokens, or `[B, F]`.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub name: String,
    pub signal: Signal,
    /// Which steps are kept, `[B, T]` of floats, where a mask leaves some out.
    pub mask: Option<String>,
    /// How many steps each sequence has, `[B]` of 32 bits, where that is less than T.
    pub lengths: Option<String>,
}

impl Writer<'_> {
    fn network(&mut self, network: &Network, edges: &Edges) -> Result<()> {
        let signals = network.signals()?;
        let fills = network.fills()?;
        let axes = network.axes()?;
        let mut inputs = Vec::new();
        for (at, (name, input)) in network.inputs.iter().enumerate() {
            let signal = network.signal(Port::Input(at))?;
            let steps = signal.axis().and_then(|axis| {
                // Layers that need a number of steps take no other.
                network.steps.iter().find(|s| s.0 == at).map(|s| s.1).or_else(|| axes.count(axis))
            });
            let named = signal.axis().map_or_else(String::new, |axis| format!("steps_{axis}"));
            let (kind, sizes, names): (i32, Vec<Option<usize>>, Vec<&str>) = match *input {
                Input::Features(n) => (dtype::FLOAT, vec![None, steps, Some(n)], vec!["batch", &named, ""]),
                Input::Tokens => (dtype::INT64, vec![None, steps], vec!["batch", &named]),
                Input::Rows(n) => (dtype::FLOAT, vec![None, Some(n)], vec!["batch", ""]),
                Input::Lengths => (dtype::INT64, vec![None], vec!["batch"]),
            };
            match edges.constants.get(name) {
                Some(tensor) => self.constant(name, tensor)?,
                None => self.graph.input.push(info(name, kind, &sizes, &names)),
            }
            let lengths = match input {
                Input::Lengths => Some(self.op("Cast", &[name], vec![int("to", i64::from(dtype::INT32))])),
                _ => None,
            };
            inputs.push(Value { name: name.clone(), signal, mask: None, lengths });
        }
        let mut values: Vec<Vec<Value>> = Vec::new();
        for (at, node) in network.nodes.iter().enumerate() {
            let read = node.inputs.iter().map(|&port| find(port, &inputs, &values).cloned());
            let read = read.collect::<Result<Vec<_>>>()?;
            let made = self.layer(node, &read, &signals[at], fills[at]).map_err(|e| e.within(&node.name))?;
            values.push(made);
        }
        self.outputs(network, &inputs, &values, edges)
    }

    /// Outputs by their names; parts `NAME[0]`, `NAME[1]` as one along a first axis.
    fn outputs(&mut self, network: &Network, inputs: &[Value], values: &[Vec<Value>], edges: &Edges) -> Result<()> {
        let mut done: Vec<&str> = Vec::new();
        for (name, _) in &network.outputs {
            let whole = name.split('[').next().unwrap_or(name);
            if done.contains(&whole) {
                continue;
            }
            done.push(whole);
            let parts: Vec<Port> = (0..)
                .map_while(|n| network.outputs.iter().find(|o| o.0 == format!("{whole}[{n}]")).map(|o| o.1))
                .collect();
            let port = network.outputs.iter().find(|o| o.0 == whole).map(|o| o.1);
            let is_number = edges.outputs.iter().any(|edge| edge.best && edge.output == *whole);
            let (mut result, signal) = match port {
                Some(port) => {
                    let value = find(port, inputs, values)?.clone();
                    (self.in_order(&value)?, value.signal)
                }
                None => {
                    let first = self.whole(&[0]);
                    let mut all = Vec::new();
                    let mut signal = Signal::Rows { features: 0 };
                    for port in &parts {
                        let value = find(*port, inputs, values)?.clone();
                        let ordered = self.in_order(&value)?;
                        all.push(self.op("Unsqueeze", &[&ordered, &first], Vec::new()));
                        signal = value.signal;
                    }
                    let names: Vec<&str> = all.iter().map(String::as_str).collect();
                    (self.op("Concat", &names, vec![int("axis", 0)]), signal)
                }
            };
            if self.graph.input.iter().any(|i| i.name == *whole) {
                return Err(Error::unsupported(format!("an input and an output that are both called `{whole}`")));
            }
            if is_number {
                result = self.op("ArgMax", &[&result], vec![int("axis", -1), int("keepdims", 0)]);
            }
            let identity = Node {
                input: vec![result],
                output: vec![whole.to_string()],
                name: format!("output {whole}"),
                op_type: "Identity".to_string(),
                ..Node::default()
            };
            self.graph.node.push(identity);
            let steps = signal.axis().map_or_else(String::new, |axis| format!("steps_{axis}"));
            let (mut sizes, mut names) = match signal {
                Signal::Sequence { features, .. } => (vec![None, None, Some(features)], vec!["batch", &steps, ""]),
                Signal::Rows { features } => (vec![None, Some(features)], vec!["batch", ""]),
                Signal::Tokens { .. } => return Err(Error::unsupported("an output that is an input of tokens")),
            };
            if port.is_none() {
                sizes.insert(0, Some(parts.len()));
                names.insert(0, "");
            }
            if is_number {
                sizes.pop();
            }
            let kind = if is_number { dtype::INT64 } else { dtype::FLOAT };
            self.graph.output.push(info(whole, kind, &sizes, &names));
        }
        Ok(())
    }

    /// A value as the network gives it: in its order, and zero past a sequence's end.
    fn in_order(&mut self, value: &Value) -> Result<String> {
        if let (Signal::Sequence { mirrored: false, .. }, Some(lengths), None) =
            (value.signal, &value.lengths, &value.mask)
        {
            let inside = self.within(&value.name, lengths);
            return Ok(self.or(&value.name, &inside, 0.0));
        }
        if !value.signal.mirrored() {
            return Ok(value.name.clone());
        }
        if value.mask.is_some() {
            return Err(Error::unsupported("an output in reversed order with steps that are masked"));
        }
        Ok(self.turned(value))
    }

    /// A layer over what it reads; gives its outputs.
    fn layer(&mut self, node: &Placed, read: &[Value], signals: &[Signal], fill: Fill) -> Result<Vec<Value>> {
        let first = read.first().ok_or_else(|| Error::internal("a layer without input"))?;
        let x = first.name.clone();
        let ragged = |what: &str| -> Result<()> {
            match read.iter().any(|v| v.lengths.is_some() || v.mask.is_some()) {
                true => Err(Error::unsupported(format!("{what} sequences of different lengths"))),
                false => Ok(()),
            }
        };
        let name = match &node.layer {
            Layer::Lstm(layer) => return self.lstm(node, layer, read, signals, fill),
            Layer::WorkingMemory(layer) => self.recalled(node, layer, read)?,
            Layer::Embedding(layer) => {
                let (table, _) = self.parameter(&format!("{}.weight", node.name))?;
                let y = self.op("Gather", &[&table, &x], vec![int("axis", 0)]);
                if layer.mask_zero {
                    let zero = self.index(0);
                    let zeros = self.op("Equal", &[&x, &zero], Vec::new());
                    let kept = self.op("Not", &[&zeros], Vec::new());
                    let mask = self.op("Cast", &[&kept], vec![int("to", i64::from(dtype::FLOAT))]);
                    return Ok(vec![Value { name: y, signal: signals[0], mask: Some(mask), lengths: None }]);
                }
                y
            }
            Layer::Masking(layer) => {
                let value = self.number(layer.value);
                let same = self.op("Equal", &[&x, &value], Vec::new());
                let other = self.op("Not", &[&same], Vec::new());
                let other = self.op("Cast", &[&other], vec![int("to", i64::from(dtype::FLOAT))]);
                let mask = self.op("ReduceMax", &[&other], vec![ints("axes", &[2]), int("keepdims", 0)]);
                return Ok(vec![Value { mask: Some(mask), ..first.clone() }]);
            }
            Layer::Dense(layer) => {
                let of = layer.tied.as_deref().unwrap_or(&node.name);
                let bias = layer.bias.then(|| format!("{}.bias", node.name));
                let y = self.linear(&x, &format!("{of}.weight"), bias.as_deref())?;
                self.activation(layer.activation, &y)?
            }
            Layer::Dropout(_) => x,
            Layer::Activation(layer) => self.activation(layer.activation, &x)?,
            Layer::LayerNormalization(layer) => {
                let features = first.signal.features().unwrap_or(0);
                let gain = match layer.scale {
                    true => self.parameter(&format!("{}.weight", node.name))?.0,
                    false => self.filled("ones", &[features], 1.0)?,
                };
                let mut inputs = vec![x, gain];
                if layer.center {
                    inputs.push(self.parameter(&format!("{}.bias", node.name))?.0);
                }
                let names: Vec<&str> = inputs.iter().map(String::as_str).collect();
                self.op("LayerNormalization", &names, vec![int("axis", -1), float("epsilon", layer.epsilon)])
            }
            Layer::Conv1D(layer) => return Ok(vec![self.convolved(&node.name, layer, first, signals[0])?]),
            Layer::Pooling1D(layer) => return Ok(vec![self.pooled(layer, first, signals[0])?]),
            Layer::Cropping1D(layer) => return Ok(vec![self.cropped(layer, first, signals[0])?]),
            Layer::Pooling(layer) => self.pooling(layer.kind, first)?,
            Layer::RepeatVector(layer) => {
                let axis = self.whole(&[1]);
                let row = self.op("Unsqueeze", &[&x, &axis], Vec::new());
                let times = self.whole(&[1, layer.count as i64, 1]);
                self.op("Tile", &[&row, &times], Vec::new())
            }
            Layer::Flatten(_) | Layer::Reshape(_) => {
                ragged("another shape of")?;
                let shape = match signals[0] {
                    Signal::Sequence { features, .. } => vec![0, -1, features as i64],
                    other => vec![0, other.features().unwrap_or(0) as i64],
                };
                let shape = self.whole(&shape);
                self.op("Reshape", &[&x, &shape], Vec::new())
            }
            Layer::Permute(_) => {
                ragged("steps and features of")?;
                self.op("Transpose", &[&x], vec![ints("perm", &[0, 2, 1])])
            }
            Layer::Attention(layer) => {
                let scale = match layer.scale {
                    true => Some(self.parameter(&format!("{}.scale", node.name))?.0),
                    false => None,
                };
                let additive = layer.score == Score::Additive;
                return self.attention(read, signals[0], scale, additive, layer.causal);
            }
            Layer::Merge(layer) => {
                let names: Vec<&str> = read.iter().map(|v| v.name.as_str()).collect();
                match (layer.kind, read.len()) {
                    (_, 1) => x,
                    (MergeKind::Concatenate, _) => self.op("Concat", &names, vec![int("axis", -1)]),
                    (MergeKind::Add, _) => self.op("Sum", &names, Vec::new()),
                    (MergeKind::Average, _) => self.op("Mean", &names, Vec::new()),
                    (MergeKind::Maximum, _) => self.op("Max", &names, Vec::new()),
                    (MergeKind::Minimum, _) => self.op("Min", &names, Vec::new()),
                    (MergeKind::Subtract, _) => self.op("Sub", &names, Vec::new()),
                    (MergeKind::Multiply, _) => {
                        let mut product = x;
                        for name in &names[1..] {
                            product = self.op("Mul", &[&product, name], Vec::new());
                        }
                        product
                    }
                }
            }
            Layer::Along(_) => return self.along(read, signals[0]),
            Layer::Columns(layer) => {
                let first = self.whole(&[layer.first as i64]);
                let end = self.whole(&[(layer.first + layer.count) as i64]);
                let axis = self.whole(&[-1]);
                self.op("Slice", &[&x, &first, &end, &axis], Vec::new())
            }
            Layer::Step(layer) => self.step(first, layer.at),
            Layer::FeatureSum(layer) => {
                if layer.mean {
                    self.op("ReduceMean", &[&x], vec![ints("axes", &[-1]), int("keepdims", 1)])
                } else {
                    let axis = self.whole(&[-1]);
                    self.op("ReduceSum", &[&x, &axis], vec![int("keepdims", 1)])
                }
            }
            Layer::TimeSoftmax(_) => self.time_softmax(first),
            // Stored in the order of time.
            Layer::Flip(_) => x,
            Layer::LogSoftmax(_) => self.op("LogSoftmax", &[&x], vec![int("axis", -1)]),
            Layer::Formula(layer) => {
                let mut operands = Vec::new();
                for operand in &layer.operands {
                    operands.push(match *operand {
                        Operand::Input(at) => {
                            read.get(at).map(|v| v.name.clone()).ok_or_else(|| Error::internal("an operand"))?
                        }
                        Operand::Number(x) => self.number(x),
                        Operand::Vector(at) => self.parameter(&format!("{}.constant_{at}", node.name))?.0,
                    });
                }
                self.formula(layer.function, &operands)
            }
        };
        let (mask, lengths) = match signals[0].axis() {
            Some(_) => (first.mask.clone(), first.lengths.clone()),
            None => (None, None),
        };
        Ok(vec![Value { name, signal: signals[0], mask, lengths }])
    }

    /// x Wᵀ + b by the names of W `[O, I]` and b.
    pub fn linear(&mut self, x: &str, weight: &str, bias: Option<&str>) -> Result<String> {
        let (w, _) = self.parameter(weight)?;
        let turned = self.op("Transpose", &[&w], vec![ints("perm", &[1, 0])]);
        let y = self.op("MatMul", &[x, &turned], Vec::new());
        match bias {
            Some(bias) => {
                let (b, _) = self.parameter(bias)?;
                Ok(self.op("Add", &[&y, &b], Vec::new()))
            }
            None => Ok(y),
        }
    }

    /// A function of each element.
    pub fn activation(&mut self, activation: Activation, x: &str) -> Result<String> {
        let scaled = |writer: &mut Self, op: &str, x: &str, by: f32| {
            let by = writer.number(by);
            writer.op(op, &[x, &by], Vec::new())
        };
        Ok(match activation {
            Activation::Linear => x.to_string(),
            Activation::Tanh => self.op("Tanh", &[x], Vec::new()),
            Activation::Sigmoid => self.op("Sigmoid", &[x], Vec::new()),
            Activation::Relu => self.op("Relu", &[x], Vec::new()),
            Activation::Affine { alpha, beta } => {
                let product = scaled(self, "Mul", x, alpha);
                scaled(self, "Add", &product, beta)
            }
            Activation::LeakyRelu { alpha } => self.op("LeakyRelu", &[x], vec![float("alpha", alpha)]),
            Activation::ThresholdedRelu { alpha } => self.op("ThresholdedRelu", &[x], vec![float("alpha", alpha)]),
            Activation::ScaledTanh { alpha, beta } => {
                let inner = scaled(self, "Mul", x, beta);
                let tanh = self.op("Tanh", &[&inner], Vec::new());
                scaled(self, "Mul", &tanh, alpha)
            }
            Activation::HardSigmoid { alpha, beta } => {
                self.op("HardSigmoid", &[x], vec![float("alpha", alpha), float("beta", beta)])
            }
            Activation::Elu { alpha } => self.op("Elu", &[x], vec![float("alpha", alpha)]),
            Activation::Softsign => self.op("Softsign", &[x], Vec::new()),
            Activation::Softplus => self.op("Softplus", &[x], Vec::new()),
            Activation::Selu => self.op("Selu", &[x], Vec::new()),
            Activation::Swish => {
                let gate = self.op("Sigmoid", &[x], Vec::new());
                self.op("Mul", &[x, &gate], Vec::new())
            }
            Activation::Exponential => self.op("Exp", &[x], Vec::new()),
            Activation::Softmax => self.op("Softmax", &[x], vec![int("axis", -1)]),
        })
    }

    /// A function of operands; what is true is 1 here and a truth value there.
    fn formula(&mut self, function: Function, operands: &[String]) -> String {
        let names: Vec<&str> = operands.iter().map(String::as_str).collect();
        let plain = |op: &'static str| (op, false, false);
        let (op, takes_truth, gives_truth) = match function {
            Function::Add => plain("Add"),
            Function::Subtract => plain("Sub"),
            Function::Multiply => plain("Mul"),
            Function::Divide => plain("Div"),
            Function::Maximum => plain("Max"),
            Function::Minimum => plain("Min"),
            Function::Power => plain("Pow"),
            Function::Negate => plain("Neg"),
            Function::Exponential => plain("Exp"),
            Function::Logarithm => plain("Log"),
            Function::SquareRoot => plain("Sqrt"),
            Function::Absolute => plain("Abs"),
            Function::Sign => plain("Sign"),
            Function::Reciprocal => plain("Reciprocal"),
            Function::Erf => plain("Erf"),
            Function::Less => ("Less", false, true),
            Function::Greater => ("Greater", false, true),
            Function::Equal => ("Equal", false, true),
            Function::Not => ("Not", true, true),
            Function::And => ("And", true, true),
            Function::Or => ("Or", true, true),
            Function::Where => ("Where", true, false),
        };
        let truths = if function == Function::Where { 1 } else { names.len() };
        let mut inputs: Vec<String> = operands.to_vec();
        if takes_truth {
            for input in &mut inputs[..truths] {
                *input = self.op("Cast", &[input], vec![int("to", i64::from(dtype::BOOL))]);
            }
        }
        let names: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let y = self.op(op, &names, Vec::new());
        if gives_truth { self.op("Cast", &[&y], vec![int("to", i64::from(dtype::FLOAT))]) } else { y }
    }

    /// The merged halves of what two directions give.
    pub fn merged(&mut self, merge: MergeMode, halves: &[String]) -> String {
        let names: Vec<&str> = halves.iter().map(String::as_str).collect();
        match merge {
            MergeMode::Concat | MergeMode::Apart => self.op("Concat", &names, vec![int("axis", -1)]),
            MergeMode::Sum => self.op("Sum", &names, Vec::new()),
            MergeMode::Product => self.op("Mul", &names, Vec::new()),
            MergeMode::Average => self.op("Mean", &names, Vec::new()),
        }
    }
}

fn find<'v>(port: Port, inputs: &'v [Value], values: &'v [Vec<Value>]) -> Result<&'v Value> {
    let found = match port {
        Port::Input(at) => inputs.get(at),
        Port::Node(node, output) => values.get(node).and_then(|v| v.get(output)),
    };
    found.ok_or_else(|| Error::internal(format!("nothing comes from {port:?}")))
}
