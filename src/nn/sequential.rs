//! Layers in a row over one session: names, parameters, graphs.

use super::{Input, Layer};
use crate::device::{Device, Executable, Session};
use crate::error::{Error, Result};
use crate::graph::builder::LstmWeights;
use crate::graph::{B, Dim, Graph, N, Value};
use crate::params::{DType, ParameterSpec, Tensor};
use std::any::Any;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Programs that a model keeps ready; the oldest is dropped for another.
const PROGRAMS: usize = 8;

/// Layers in a row, on one device. `compile`, `fit`, `evaluate`, `predict`, `save` and `load` are in [`crate::train`].
pub struct Sequential {
    device: Device,
    layers: Vec<Layer>,
    seed: u64,
    built: Option<Built>,
    /// What `compile` keeps; only `train` knows its type.
    pub(crate) compiled: Option<Box<dyn Any + Send>>,
}

struct Built {
    input: Input,
    session: Session,
    programs: Vec<(String, Executable)>,
}

/// How [`Sequential::build_graph`] builds.
#[derive(Debug, Clone, Copy, Default)]
pub struct GraphOptions<'a> {
    /// Whether dropout drops.
    pub training: bool,
    /// What the names of carried states begin with, so that training and inference can each have their own.
    pub state_prefix: &'a str,
}

/// What a model's graph computes.
#[derive(Debug, Clone)]
pub struct Flow {
    /// The input `x`, `[N, features]` or tokens `[N]`.
    pub input: Value,
    /// The last layer's output, `[N, features]` or `[B, features]`.
    pub output: Value,
    /// Whether the output has a row a step.
    pub sequence: bool,
    /// Features of the output.
    pub features: usize,
    /// Carried states with the values they take at the end of a run; the caller updates them.
    pub states: Vec<(Value, Value)>,
}

/// A layer in its place.
struct Placed<'a> {
    name: String,
    layer: &'a Layer,
    input: usize,
    output: usize,
    /// Whether its output has a row a step.
    sequence: bool,
}

impl Placed<'_> {
    fn parameters(&self) -> Vec<ParameterSpec> {
        self.layer.parameters(&self.name, self.input)
    }
}

fn not_built() -> Error {
    Error::argument("sequential: the model has no input size yet: call `build` or `fit` first")
}

impl Sequential {
    /// A model without layers.
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone(), layers: Vec::new(), seed: 0, built: None, compiled: None }
    }

    /// Adds a layer at the end. A model that was built must be built again.
    pub fn add(&mut self, layer: impl Into<Layer>) -> &mut Self {
        self.layers.push(layer.into());
        self.built = None;
        self
    }

    /// Sets the seed that parameters begin from; 0 otherwise.
    pub fn seed(&mut self, seed: u64) -> &mut Self {
        self.seed = seed;
        self
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The layers.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// What it reads, once it is built.
    pub fn input(&self) -> Option<Input> {
        self.built.as_ref().map(|b| b.input)
    }

    /// Checks the layers for `input` and gives every parameter its first values.
    pub fn build(&mut self, input: Input) -> Result<()> {
        self.build_graph_for(input, &mut Graph::new(), GraphOptions { training: true, state_prefix: "" })?;
        let mut session = self.device.session()?;
        for (stream, spec) in self.specs(input)?.iter().enumerate() {
            let values =
                spec.initializer.values(&spec.shape, self.seed, stream as u64).map_err(|e| e.within(&spec.name))?;
            session.set(&spec.name, &Tensor::new(&spec.shape, values)?)?;
        }
        self.built = Some(Built { input, session, programs: Vec::new() });
        Ok(())
    }

    /// All parameters in the order of the layers; none before the model is built.
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        self.input().and_then(|input| self.specs(input).ok()).unwrap_or_default()
    }

    /// The session that holds the parameters.
    pub fn session(&mut self) -> Result<&mut Session> {
        self.built.as_mut().map(|b| &mut b.session).ok_or_else(not_built)
    }

    /// The session, and the program kept under `key`, which `graph` makes where there is none.
    pub(crate) fn program(
        &mut self,
        key: &str,
        make: impl FnOnce(&mut Self) -> Result<Executable>,
    ) -> Result<(&mut Session, &mut Executable)> {
        let kept = |s: &Self| s.built.as_ref().and_then(|b| b.programs.iter().position(|p| p.0 == key));
        let at = match kept(self) {
            Some(at) => at,
            None => {
                let executable = make(self)?;
                let programs = &mut self.built.as_mut().ok_or_else(not_built)?.programs;
                if programs.len() >= PROGRAMS {
                    programs.remove(0);
                }
                programs.push((key.to_string(), executable));
                programs.len() - 1
            }
        };
        let built = self.built.as_mut().ok_or_else(not_built)?;
        Ok((&mut built.session, &mut built.programs[at].1))
    }

    /// The values of a parameter.
    pub fn parameter(&mut self, name: &str) -> Result<Tensor> {
        self.check_name(name)?;
        self.session()?.get(name)
    }

    /// Gives a parameter other values.
    pub fn set_parameter(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let wanted = self.check_name(name)?;
        if tensor.shape() != wanted {
            return Err(Error::shape(format!("`{name}`: expected {wanted:?}, got {:?}", tensor.shape())));
        }
        self.session()?.set(name, tensor)
    }

    fn check_name(&self, name: &str) -> Result<Vec<usize>> {
        let specs = self.parameters();
        let found = specs.iter().find(|s| s.name == name).map(|s| s.shape.clone());
        found.ok_or_else(|| {
            let names: Vec<&str> = specs.iter().map(|s| s.name.as_str()).collect();
            Error::argument(format!("sequential: there is no parameter `{name}`, only {names:?}"))
        })
    }

    /// Appends the layers to `graph`: input `x`, parameters by name. Adds no update and no output.
    pub fn build_graph(&self, graph: &mut Graph, options: GraphOptions<'_>) -> Result<Flow> {
        self.build_graph_for(self.input().ok_or_else(not_built)?, graph, options)
    }

    fn build_graph_for(&self, input: Input, graph: &mut Graph, options: GraphOptions<'_>) -> Result<Flow> {
        let x = match input {
            Input::Features(n) => graph.input("x", [N, Dim::Fixed(n)], DType::F32)?,
            Input::Tokens => graph.input("x", [N], DType::U32)?,
        };
        let mut flow = Flow { input: x, output: x, sequence: true, features: 0, states: Vec::new() };
        for placed in self.places(input)? {
            graph.scoped(&placed.name, |graph| append(graph, &placed, options, &mut flow))?;
        }
        Ok(flow)
    }

    /// The parameters that the model has for `input`.
    pub(crate) fn specs(&self, input: Input) -> Result<Vec<ParameterSpec>> {
        Ok(self.places(input)?.iter().flat_map(Placed::parameters).collect())
    }

    /// The layers with their names and sizes, or what does not fit.
    fn places(&self, input: Input) -> Result<Vec<Placed<'_>>> {
        if self.layers.is_empty() {
            return Err(Error::argument("sequential: the model has no layer"));
        }
        let mut size = match input {
            Input::Features(0) => return Err(Error::shape("sequential: the input must have at least one feature")),
            Input::Features(n) => n,
            Input::Tokens => 0,
        };
        let mut names = BTreeSet::new();
        let mut placed: Vec<Placed<'_>> = Vec::with_capacity(self.layers.len());
        for (at, layer) in self.layers.iter().enumerate() {
            let same =
                self.layers[..at].iter().filter(|l| l.given_name().is_none() && l.class() == layer.class()).count();
            let name = match (layer.given_name(), same) {
                (Some(name), _) => name.to_string(),
                (None, 0) => layer.class().to_string(),
                (None, n) => format!("{}_{n}", layer.class()),
            };
            if name.is_empty() || name.contains('.') || !names.insert(name.clone()) {
                return Err(Error::argument(format!(
                    "sequential: layer names must be unique, not empty and without a dot, got `{name}`"
                )));
            }
            let wants_tokens = matches!(layer, Layer::Embedding(_));
            let has_tokens = at == 0 && input == Input::Tokens;
            if wants_tokens != has_tokens {
                let (wanted, got) = if wants_tokens { ("tokens", "floats") } else { ("floats", "tokens") };
                return Err(Error::shape(format!("{name}: expected {wanted}, got {got}")));
            }
            layer.validate().map_err(|e| e.within(&name))?;
            let sequence = placed.last().is_none_or(|p| p.sequence);
            let output = layer.output(size);
            let keeps = match layer {
                Layer::Lstm(_) if !sequence => {
                    return Err(Error::shape(format!(
                        "{name}: expected a sequence, got one row a sample; give the lstm before it `return_sequences(true)`"
                    )));
                }
                Layer::Lstm(l) => l.return_sequences,
                _ => sequence,
            };
            placed.push(Placed { name, layer, input: size, output, sequence: keeps });
            size = output;
        }
        Ok(placed)
    }

    /// A table of the layers, as Keras prints it.
    pub fn summary(&self) -> String {
        let places = match self.input().map(|input| self.places(input)) {
            Some(Ok(places)) => places,
            _ => return format!("Sequential, not built, {} layers\n", self.layers.len()),
        };
        let mut text = String::from("Sequential\n");
        let mut line = |a: &str, b: &str, c: &str| {
            let _ = writeln!(text, "{a:<34} {b:<20} {c:>14}");
        };
        line("layer (class)", "output shape", "parameters");
        let mut total = 0usize;
        for p in &places {
            let count: usize = p.parameters().iter().map(|s| s.shape.iter().product::<usize>()).sum();
            total += count;
            let shape = if p.sequence { format!("[B, T, {}]", p.output) } else { format!("[B, {}]", p.output) };
            line(&format!("{} ({})", p.name, p.layer.class()), &shape, &count.to_string());
        }
        line("total", "", &total.to_string());
        text
    }
}

fn append(graph: &mut Graph, placed: &Placed<'_>, options: GraphOptions<'_>, flow: &mut Flow) -> Result<()> {
    let parameters =
        placed.parameters().iter().map(|p| graph.persistent(&p.name, &p.shape)).collect::<Result<Vec<Value>>>()?;
    let x = flow.output;
    flow.output = match placed.layer {
        Layer::Embedding(_) => graph.embedding(parameters[0], x)?,
        Layer::Lstm(layer) => {
            let weights = LstmWeights::new(parameters[0], parameters[1])
                .bias(parameters.get(2).copied(), parameters.get(3).copied());
            let mut state = None;
            if layer.stateful {
                let mut carried = |part: &str| {
                    let name = format!("{}{}.{part}_l0", options.state_prefix, placed.name);
                    graph.persistent(&name, [B, Dim::Fixed(layer.units)])
                };
                state = Some((carried("h")?, carried("c")?));
            }
            let out = graph.lstm(x, state, &weights)?;
            if let Some((h, c)) = state {
                flow.states.extend([(h, out.h_n), (c, out.c_n)]);
            }
            if layer.return_sequences { out.y } else { out.h_n }
        }
        Layer::Dense(layer) => {
            let y = graph.linear(x, parameters[0], parameters.get(1).copied())?;
            layer.activation.apply(graph, y)?
        }
        Layer::Dropout(layer) if options.training => graph.dropout(x, layer.rate)?,
        Layer::Dropout(_) => x,
        Layer::Activation(layer) => layer.activation.apply(graph, x)?,
    };
    flow.sequence = placed.sequence;
    flow.features = placed.output;
    Ok(())
}
