//! Layers in a row over one session: names, parameters, graphs.

use super::{GraphOptions, Input, Layer, Network, WorkingMemory};
use crate::device::{Device, Executable, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Graph, Value};
use crate::params::{ParameterSpec, Tensor};
use serde::{Deserialize, Serialize};
use std::any::Any;

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
    /// The most steps that a sequence has, where layers must know.
    steps: Option<usize>,
    session: Session,
    programs: Vec<(String, Executable)>,
}

/// What a model is, without its parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// What it reads.
    pub input: Input,
    /// The most steps that a sequence has, where its layers must know.
    #[serde(default)]
    pub steps: Option<usize>,
    /// Its layers.
    pub layers: Vec<Layer>,
}

/// What a model's graph computes.
#[derive(Debug, Clone)]
pub struct Flow {
    /// The input `x`, `[N, features]` or tokens `[N]`.
    pub input: Value,
    /// The last layer's output, `[N, features]` or `[B, features]`.
    pub output: Value,
    /// The time axis of which the output has a row a step.
    pub axis: Option<u8>,
    /// Features of the output.
    pub features: usize,
    /// Carried states with the values they take at the end of a run; the caller updates them.
    pub states: Vec<(Value, Value)>,
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

    /// The most steps that a sequence has, where the model was built for some.
    pub fn steps(&self) -> Option<usize> {
        self.built.as_ref().and_then(|b| b.steps)
    }

    /// Checks the layers for `input` and gives every parameter its first values.
    pub fn build(&mut self, input: Input) -> Result<()> {
        self.build_for(input, None)
    }

    /// [`Self::build`] for sequences of at most `steps` steps, which some layers must know (`Flatten`).
    pub fn build_for(&mut self, input: Input, steps: Option<usize>) -> Result<()> {
        self.network_for(input, steps)?
            .build(&mut Graph::new(), GraphOptions { training: true, ..GraphOptions::default() })?;
        let mut session = self.device.session()?;
        for (stream, spec) in self.specs(input, steps)?.iter().enumerate() {
            let values =
                spec.initializer.values(&spec.shape, self.seed, stream as u64).map_err(|e| e.within(&spec.name))?;
            session.set(&spec.name, &Tensor::new(&spec.shape, values)?)?;
        }
        self.built = Some(Built { input, steps, session, programs: Vec::new() });
        Ok(())
    }

    /// All parameters in the order of the layers; none before the model is built.
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        self.input().and_then(|input| self.specs(input, self.steps()).ok()).unwrap_or_default()
    }

    /// The session that holds the parameters.
    pub fn session(&mut self) -> Result<&mut Session> {
        self.built.as_mut().map(|b| &mut b.session).ok_or_else(not_built)
    }

    /// Goes on with another session that holds the parameters, on its device.
    pub(crate) fn replace_session(&mut self, session: Session) {
        self.device = session.device().clone();
        if let Some(built) = &mut self.built {
            built.programs.clear();
            built.session = session;
        }
    }

    /// The session, and the program kept under `key`, which `make` makes where there is none; where memory does not hold it
    /// beside the others, without them.
    pub(crate) fn program(
        &mut self,
        key: &str,
        make: impl Fn(&mut Self) -> Result<Executable>,
    ) -> Result<(&mut Session, &mut Executable)> {
        let kept = |s: &Self| s.built.as_ref().and_then(|b| b.programs.iter().position(|p| p.0 == key));
        let at = match kept(self) {
            Some(at) => at,
            None => {
                let alone = |s: &Self| s.built.as_ref().is_none_or(|b| b.programs.is_empty());
                let executable = match make(self) {
                    // With the memory of the others it may need no measures, and plans do not depend on what ran before.
                    Ok(made) if !made.holds_less() || alone(self) => made,
                    Err(e) if e.kind() != ErrorKind::Memory || alone(self) => return Err(e),
                    made => {
                        drop(made);
                        self.built.as_mut().ok_or_else(not_built)?.programs.clear();
                        make(self)?
                    }
                };
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

    /// Its working memory, where its last layer is one.
    pub fn memory(&self) -> Option<&WorkingMemory> {
        match self.layers.last() {
            Some(Layer::WorkingMemory(memory)) => Some(memory),
            _ => None,
        }
    }

    /// Has another working memory as its last layer, or none, and the parameters that it has; those of a memory that are new begin
    /// as they would. What the memory before held is forgotten, and where parameters come or go what was compiled. Refused while a
    /// program of another's, such as a `Trainer`, has that memory.
    pub fn set_memory(&mut self, memory: Option<WorkingMemory>) -> Result<()> {
        let mut layers = self.layers.clone();
        layers.pop_if(|last| matches!(last, Layer::WorkingMemory(_)));
        layers.extend(memory.map(Layer::from));
        let had = self.parameters();
        let before = std::mem::replace(&mut self.layers, layers);
        let adopted = self.adopt();
        match &adopted {
            Err(_) => self.layers = before,
            Ok(()) if self.parameters() != had => self.compiled = None,
            Ok(()) => {}
        }
        adopted
    }

    /// Gives parameters that the session does not have their first values.
    fn adopt(&mut self) -> Result<()> {
        let Some(input) = self.input() else { return Ok(()) };
        self.network(input)?.build(&mut Graph::new(), GraphOptions { training: true, ..GraphOptions::default() })?;
        let (specs, seed) = (self.specs(input, self.steps())?, self.seed);
        self.built.iter_mut().for_each(|built| built.programs.clear());
        let session = self.session()?;
        // What is named after the memory, and is none of its parameters nor made for one.
        let class = Layer::from(WorkingMemory::new(1)).class();
        let of_memory = |name: &&str| {
            let at = name.find(&format!("{class}."));
            at.is_some_and(|at| specs.iter().all(|spec| spec.name != name[at..]))
        };
        let stale: Vec<String> = session.names().filter(of_memory).map(String::from).collect();
        stale.iter().try_for_each(|name| session.forget(name))?;
        for (stream, spec) in specs.iter().enumerate() {
            if session.names().all(|name| name != spec.name) {
                let values = spec.initializer.values(&spec.shape, seed, stream as u64);
                let values = values.map_err(|e| e.within(&spec.name))?;
                session.set(&spec.name, &Tensor::new(&spec.shape, values)?)?;
            }
        }
        Ok(())
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
        let built = self.network(self.input().ok_or_else(not_built)?)?.build(graph, options)?;
        let (output, signal) = built.outputs[0];
        if signal.mirrored() {
            return Err(Error::unsupported(
                "sequential: an output in reversed order; end with a layer that reverses it",
            ));
        }
        let features = signal.features().ok_or_else(|| Error::shape("sequential: the output must be floats"))?;
        Ok(Flow { input: built.inputs[0].0, output, axis: signal.axis(), features, states: built.states })
    }

    /// The layers as a network with the input `x` and the output `y`, for the steps it was built for.
    pub fn network(&self, input: Input) -> Result<Network> {
        self.network_for(input, self.steps())
    }

    fn network_for(&self, input: Input, steps: Option<usize>) -> Result<Network> {
        if self.layers.is_empty() {
            return Err(Error::argument("sequential: the model has no layer"));
        }
        Network::chain(input, steps, &self.layers).map_err(|e| e.within("sequential"))
    }

    /// The parameters that the model has for `input`.
    pub(crate) fn specs(&self, input: Input, steps: Option<usize>) -> Result<Vec<ParameterSpec>> {
        self.network_for(input, steps)?.parameters()
    }

    /// A table of the layers, as Keras prints it.
    pub fn summary(&self) -> String {
        let network = self.input().and_then(|input| self.network(input).ok());
        match network.and_then(|n| n.summary("Sequential").ok()) {
            Some(summary) => summary,
            None => format!("Sequential, not built, {} layers\n", self.layers.len()),
        }
    }
}
