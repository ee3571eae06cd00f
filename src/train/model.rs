//! Any network on a device: run as it is, with a loss and its gradients, or going on from a prompt.

use super::Loss;
use super::fit::Compiled;
use super::learner::Make;
use super::mask;
use super::pack::{Given, Packed, check_inputs, pack};
use super::save::check_shape;
use super::step::zero_states;
use crate::device::{Device, Executable, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Dim, Graph, Symbol, Value};
use crate::nn::{Direction, GraphOptions, Input, Layer, Network, Signal};
use crate::params::{DType, ParameterSpec, Tensor};
use crate::scheduler::{Batch, Capacity};
use std::collections::BTreeMap;

/// Programs that a model keeps ready; the oldest is dropped for another.
const PROGRAMS: usize = 8;
/// The input that says how long each sequence is.
const LENGTHS: &str = "lengths";
/// Where the states of a prompt are kept.
const GREEDY: &str = "greedy.";

/// Tensors by name.
pub type Named = BTreeMap<String, Tensor>;

/// What a program of a model computes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Task {
    Outputs,
    /// The mean cross entropy of an output, by number, and its gradients.
    Gradients(usize),
    Greedy(usize),
}

/// A network with the values of its parameters, on one device.
pub struct Model {
    network: Network,
    specs: Vec<ParameterSpec>,
    pub(super) session: Session,
    /// Programs by what they compute and for what sizes.
    programs: Vec<(String, Executable)>,
    pub(super) compiled: Option<Compiled>,
    /// The loss of each output that is trained.
    pub(super) losses: Vec<(usize, Loss)>,
}

impl Model {
    /// The network with these values, one for each of its parameters.
    pub fn new(device: &Device, network: &Network, parameters: &Named) -> Result<Self> {
        let specs = network.parameters()?;
        network.build(&mut Graph::new(), GraphOptions::default())?;
        let mut session = device.session()?;
        for spec in &specs {
            let missing = || Error::argument(format!("model: expected values of the parameter `{}`", spec.name));
            let tensor = parameters.get(&spec.name).ok_or_else(missing)?;
            check_shape(&spec.name, tensor.shape(), &spec.shape)?;
            session.set(&spec.name, tensor)?;
        }
        let (programs, losses) = (Vec::new(), Vec::new());
        Ok(Self { network: network.clone(), specs, session, programs, compiled: None, losses })
    }

    /// Bytes that its device holds, and the most that it ever did: see [`Session::allocated`].
    pub fn allocated(&self) -> (u64, u64) {
        self.session.allocated()
    }

    /// Its layers.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The values of all parameters as they are now.
    pub fn parameters(&mut self) -> Result<Named> {
        let names = self.specs.iter().map(|s| s.name.clone());
        names.map(|name| Ok((name.clone(), self.session.get(&name)?))).collect()
    }

    /// Goes on with another session that holds the parameters.
    pub(super) fn replace_session(&mut self, session: Session) {
        self.programs.clear();
        self.session = session;
    }

    pub(super) fn kept_program(&mut self, key: &str, make: Make<'_>) -> Result<(&mut Session, &mut Executable)> {
        let at = match self.programs.iter().position(|p| p.0 == key) {
            Some(at) => at,
            None => {
                let executable = self.load(make)?;
                self.keep_program(key.to_string(), executable)
            }
        };
        Ok((&mut self.session, &mut self.programs[at].1))
    }

    /// A new program; where memory does not hold it beside the others, without them.
    fn load(&mut self, make: Make<'_>) -> Result<Executable> {
        match make(&mut self.session) {
            // With the memory of the others it may need no measures, and plans do not depend on what ran before.
            Ok(made) if !made.holds_less() || self.programs.is_empty() => Ok(made),
            Err(e) if e.kind() != ErrorKind::Memory || self.programs.is_empty() => Err(e),
            made => {
                drop(made);
                self.programs.clear();
                make(&mut self.session)
            }
        }
    }

    /// The number of the one output called `name`.
    pub(super) fn one_output(&self, name: &str) -> Result<usize> {
        match self.output_named(name).as_deref() {
            Some(&[one]) => Ok(one),
            _ => Err(Error::argument(format!("model: there is no one output `{name}`, only {:?}", self.outputs()))),
        }
    }

    /// Which output `name` is: by its own name, by the name of what its parts `name[0]`, `name[1]` make, or as `y`, the
    /// first that is no state, and `h`, `c`, `h_reverse` and `c_reverse`, the first that is this state of an LSTM.
    fn output_named(&self, name: &str) -> Option<Vec<usize>> {
        let outputs = &self.network.outputs;
        if let Some(at) = outputs.iter().position(|o| o.0 == name) {
            return Some(vec![at]);
        }
        let parts: Vec<usize> =
            (0..).map_while(|n| outputs.iter().position(|o| o.0 == format!("{name}[{n}]"))).collect();
        if !parts.is_empty() {
            return Some(parts);
        }
        let part = |at: &usize| self.network.state_part(outputs[*at].1);
        let wanted = if name == "y" { None } else { Some(name) };
        if !matches!(name, "y" | "h" | "c" | "h_reverse" | "c_reverse") {
            return None;
        }
        (0..outputs.len()).find(|at| part(at) == wanted).map(|at| vec![at])
    }

    /// The outputs' names, parts together.
    pub fn outputs(&self) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for (name, _) in &self.network.outputs {
            let whole = name.split('[').next().unwrap_or(name).to_string();
            if !all.contains(&whole) {
                all.push(whole);
            }
        }
        all
    }

    /// Runs the network: sequences `[B, T, features]`, tokens `[B, T]`, rows `[B, features]`, by the names of its
    /// inputs (`x` where there is one). `lengths` `[B]` may say how long each sequence of the first input is; rows past
    /// it come out zero. Carried states go on from the last run of as many sequences.
    pub fn run(&mut self, inputs: &Named) -> Result<Named> {
        let outputs = self.outputs();
        self.run_for(inputs, &outputs.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Whether an output is called `name`.
    pub fn gives(&self, name: &str) -> bool {
        self.output_named(name).is_some()
    }

    /// The outputs `names` of [`Self::run`], which may also be `y`, `h` or `c`.
    pub fn run_for(&mut self, inputs: &Named, names: &[&str]) -> Result<Named> {
        let packed = self.pack(inputs)?;
        let at = self.program(&Task::Outputs, &packed.batch)?;
        self.start(at, &packed)?;
        names.iter().map(|&name| Ok((name.to_string(), self.read(at, &packed, name)?))).collect()
    }

    /// The mean cross entropy of the model's only output that is no state with `targets` (tokens as `[B, T]`, or `[B]`),
    /// and its gradient by every parameter.
    pub fn loss_and_gradients(&mut self, inputs: &Named, targets: &Tensor) -> Result<(f32, Named)> {
        let mut packed = self.pack(inputs)?;
        let output = self.logits()?;
        let (axis, classes) = match self.signal(output)? {
            Signal::Sequence { mirrored: true, .. } => {
                return Err(Error::unsupported("model: an output in reversed order has no loss"));
            }
            Signal::Sequence { features, axis, .. } => (Some(axis), features),
            Signal::Rows { features } => (None, features),
            Signal::Tokens { .. } => return Err(Error::unsupported("model: an output of tokens has no loss")),
        };
        let values = targets.u32s().map_err(|e| e.within("targets"))?;
        if let Some(class) = values.iter().find(|&&c| c as usize >= classes) {
            return Err(Error::data(format!("targets: expected classes below {classes}, got {class}")));
        }
        let batch = &packed.batch;
        let values = match axis {
            Some(axis) => {
                let kept = packed.kept.get(axis as usize);
                let steps = kept.map_or(batch.axis(axis)?.steps(), |k| k.steps);
                check_shape("targets", targets.shape(), &[batch.sequences(), steps])?;
                mask::pack(batch, axis, kept, values, steps, 1)?
            }
            None => {
                check_shape("targets", targets.shape(), &[batch.sequences()])?;
                batch.sort_rows(values, 1)
            }
        };
        packed.tensors.push(("targets".to_string(), Tensor::from_u32(&[values.len()], values)?));
        let at = self.program(&Task::Gradients(output), &packed.batch)?;
        self.start(at, &packed)?;
        let loss = self.session.output(&self.programs[at].1, "loss")?.into_f32s()?[0];
        let mut gradients = Named::new();
        for spec in &self.specs {
            let tensor = self.session.output(&self.programs[at].1, &format!("grad.{}", spec.name))?;
            gradients.insert(spec.name.clone(), tensor);
        }
        Ok((loss, gradients))
    }

    /// `steps` tokens after `prompt`, each the likeliest, fed back with the state carried.
    pub fn greedy(&mut self, prompt: &[u32], steps: usize) -> Result<Vec<u32>> {
        let [(input, Input::Tokens)] = &self.network.inputs[..] else {
            return Err(Error::unsupported("model: only a model that reads tokens alone goes on from a prompt"));
        };
        let (input, output) = (input.clone(), self.logits()?);
        if self.signal(output)?.axis() != Some(0) {
            return Err(Error::unsupported("model: a model that goes on from a prompt has an output at each step"));
        }
        let one_way = |l: &Layer| !matches!(l, Layer::Lstm(l) if l.direction != Direction::Forward || l.go_backwards);
        if !self.network.nodes.iter().all(|n| one_way(&n.layer)) {
            return Err(Error::unsupported("model: a model that reads backwards has read no end to go on from"));
        }
        // Only states are carried: what sees other steps than its own would see the new ones alone.
        let own_step = |l: &Layer| {
            matches!(
                l,
                Layer::Embedding(_)
                    | Layer::Lstm(_)
                    | Layer::Dense(_)
                    | Layer::Dropout(_)
                    | Layer::Activation(_)
                    | Layer::LayerNormalization(_)
                    | Layer::Merge(_)
                    | Layer::WorkingMemory(_)
                    | Layer::Columns(_)
                    | Layer::FeatureSum(_)
                    | Layer::LogSoftmax(_)
                    | Layer::Formula(_)
            )
        };
        if let Some(node) = self.network.nodes.iter().find(|n| !own_step(&n.layer)) {
            let class = node.layer.class();
            return Err(Error::unsupported(format!("model: a model with a {class} cannot go on token by token")));
        }
        if prompt.is_empty() {
            return Err(Error::argument("model: expected a prompt of at least one token"));
        }
        let (mut given, mut read, mut reset) = (prompt.to_vec(), Vec::with_capacity(steps), true);
        let most = self.network.memory().map_or(usize::MAX, |memory| memory.op().steps());
        while read.len() < steps {
            // What is left of a prompt that is read in pieces.
            let later = given.split_off(given.len().min(most));
            let batch = Batch::dense(given.len(), 1)?;
            let at = self.program(&Task::Greedy(output), &batch)?;
            let program = &mut self.programs[at].1;
            if std::mem::take(&mut reset) {
                zero_states(&mut self.session, program)?;
            }
            self.session.run(program, &batch, &[(&input, &Tensor::from_u32(&[given.len()], given)?)])?;
            if !later.is_empty() {
                given = later;
                continue;
            }
            let logits = self.session.output(program, "logits")?;
            let classes = logits.shape()[1];
            let last = &logits.f32s()?[logits.shape()[0].saturating_sub(1) * classes..];
            if let Some(bad) = last.iter().find(|l| !l.is_finite()) {
                return Err(Error::data(format!("model: expected finite logits, got {bad}")));
            }
            // The first of equals, as PyTorch and NumPy have it.
            let token = (0..classes).fold(0, |best, at| if last[at] > last[best] { at } else { best });
            read.push(token as u32);
            given = vec![token as u32];
        }
        Ok(read)
    }

    /// The output that is no state, if there is one such.
    fn logits(&self) -> Result<usize> {
        let plain: Vec<usize> = (0..self.network.outputs.len())
            .filter(|&at| self.network.state_part(self.network.outputs[at].1).is_none())
            .collect();
        match plain[..] {
            [one] => Ok(one),
            _ => {
                Err(Error::unsupported(format!("model: expected one output besides states, there are {}", plain.len())))
            }
        }
    }

    fn signal(&self, output: usize) -> Result<Signal> {
        self.network.signal(self.network.outputs[output].1)
    }

    /// The place of the program for a task over `batch`, made where there is none.
    fn program(&mut self, task: &Task, batch: &Batch) -> Result<usize> {
        // Carried states have a row for each sequence, no more.
        let mut capacity = Capacity::around(batch);
        if self.network.nodes.iter().any(|n| n.layer.is_stateful()) {
            capacity.sequences = batch.sequences();
        }
        let key = format!("{task:?} {capacity:?}");
        if let Some(at) = self.programs.iter().position(|p| p.0 == key) {
            return Ok(at);
        }
        let graph = self.graph(task)?;
        let executable = self.load(&|session| session.load(&graph, &capacity))?;
        Ok(self.keep_program(key, executable))
    }

    fn keep_program(&mut self, key: String, executable: Executable) -> usize {
        if self.programs.len() >= PROGRAMS {
            self.programs.remove(0);
        }
        self.programs.push((key, executable));
        self.programs.len() - 1
    }

    fn graph(&self, task: &Task) -> Result<Graph> {
        let mut graph = Graph::new();
        let g = &mut graph;
        let mut network = self.network.clone();
        let mut prefix = "";
        if let Task::Greedy(_) = task {
            prefix = GREEDY;
            for node in &mut network.nodes {
                match &mut node.layer {
                    Layer::Lstm(lstm) => lstm.stateful = true,
                    Layer::WorkingMemory(memory) => memory.stateful = true,
                    _ => {}
                }
            }
        }
        let built = network.build(g, GraphOptions { state_prefix: prefix, ..GraphOptions::default() })?;
        match *task {
            Task::Outputs => {
                for (at, &(value, _)) in built.outputs.iter().enumerate() {
                    g.output(&format!("{at}"), value)?;
                }
            }
            Task::Greedy(output) => g.output("logits", built.outputs[output].0)?,
            Task::Gradients(output) => {
                built.check_trainable()?;
                let (value, signal) = built.outputs[output];
                let rows = signal.axis().map_or(Symbol::Batch, Symbol::Rows);
                let targets = g.input("targets", [Dim::Symbol(rows)], DType::U32)?;
                let loss = built.cross_entropy(g, value, targets, None, None)?;
                let parameters =
                    self.specs.iter().map(|s| g.persistent(&s.name, &s.shape)).collect::<Result<Vec<Value>>>()?;
                let gradients = g.gradients(loss.mean, &parameters)?;
                g.output("loss", loss.mean)?;
                for (spec, gradient) in self.specs.iter().zip(gradients) {
                    g.output(&format!("grad.{}", spec.name), gradient)?;
                }
            }
        }
        if !matches!(task, Task::Gradients(_)) {
            built.states.into_iter().try_for_each(|(state, new)| g.update(state, new))?;
        }
        Ok(graph)
    }

    fn start(&mut self, program: usize, packed: &Packed) -> Result<()> {
        let program = &mut self.programs[program].1;
        let named = packed.named(program);
        self.session.run(program, &packed.batch, &named)
    }

    /// An output of the last run in the caller's order.
    fn read(&mut self, program: usize, packed: &Packed, name: &str) -> Result<Tensor> {
        let Some(parts) = self.output_named(name) else {
            return Err(Error::argument(format!("model: there is no output `{name}`, only {:?}", self.outputs())));
        };
        let fills = self.network.output_fills()?;
        let (mut data, mut shape) = (Vec::new(), Vec::new());
        for &at in &parts {
            let values = self.session.output(&self.programs[program].1, &format!("{at}"))?.into_f32s()?;
            let batch = &packed.batch;
            match self.signal(at)? {
                Signal::Sequence { features, axis, mirrored } => {
                    let (kept, fill) = (packed.kept.get(axis as usize), fills[at]);
                    let steps = kept.map_or(batch.axis(axis)?.steps(), |k| k.steps);
                    let zero = match kept {
                        Some(kept) if mask::needs_zero_row(kept, fill) => self.zero_row(at)?,
                        _ => Vec::new(),
                    };
                    let rows = mask::unpack(batch, axis, kept, &values, features, (fill, &zero));
                    let mut rows = rows.map_err(|e| e.within(name))?;
                    if mirrored {
                        mask::mirror(batch, axis, kept, &mut rows, features).map_err(|e| e.within(name))?;
                    }
                    data.extend(rows);
                    shape = vec![batch.sequences(), steps, features];
                }
                Signal::Rows { features } => {
                    data.extend(batch.unsort_rows(&values, features));
                    shape = vec![batch.sequences(), features];
                }
                Signal::Tokens { .. } => return Err(Error::unsupported("model: an input is no output")),
            }
        }
        if !self.network.outputs.iter().any(|o| o.0 == name) && self.network.outputs[parts[0]].0.ends_with(']') {
            shape.insert(0, parts.len());
        }
        Tensor::new(&shape, data)
    }

    /// What an output holds at a step where the LSTMs before it hold zeros.
    fn zero_row(&mut self, output: usize) -> Result<Vec<f32>> {
        let tail = mask::tail(&self.network, output)?;
        let mut graph = Graph::new();
        let built = tail.build(&mut graph, GraphOptions::default())?;
        graph.output("row", built.outputs[0].0)?;
        let batch = Batch::dense(1, 1)?;
        let mut program = self.session.load(&graph, &Capacity::exactly(&batch))?;
        let zeros: Vec<Tensor> =
            built.inputs.iter().map(|(_, signal)| Tensor::zeros(&[1, signal.features().unwrap_or(0)])).collect();
        let inputs: Vec<(&str, &Tensor)> = tail.inputs.iter().map(|i| i.0.as_str()).zip(&zeros).collect();
        self.session.run(&mut program, &batch, &inputs)?;
        self.session.output(&program, "row")?.into_f32s()
    }

    /// Checks the caller's inputs and packs them.
    fn pack(&self, inputs: &Named) -> Result<Packed> {
        let (given, lengths) = self.given(inputs)?;
        check_inputs(&self.network, &given)?;
        pack(&self.network, &given, lengths, None)
    }

    /// The network's inputs in order, from the caller's, and lengths where they are given.
    pub(super) fn given<'a>(&'a self, inputs: &'a Named) -> Result<(Vec<Given<'a>>, Option<&'a Tensor>)> {
        let mut given: Vec<Given<'_>> = Vec::new();
        let mut unknown: Vec<&str> = inputs.keys().map(String::as_str).collect();
        let names: Vec<&str> = self.network.inputs.iter().map(|i| i.0.as_str()).collect();
        for (name, input) in &self.network.inputs {
            let alias = (self.network.inputs.len() == 1).then_some("x");
            let found = inputs.get_key_value(name).or_else(|| inputs.get_key_value(alias?));
            let Some((called, tensor)) = found else {
                let got: Vec<&String> = inputs.keys().collect();
                return Err(Error::argument(format!("model: expected the inputs {names:?}, got {got:?}")));
            };
            unknown.retain(|n| n != called);
            given.push((name, *input, tensor));
        }
        unknown.retain(|&n| n != LENGTHS);
        if let Some(name) = unknown.first() {
            return Err(Error::argument(format!("model: there is no input `{name}`, only {names:?}")));
        }
        Ok((given, inputs.get(LENGTHS).filter(|_| !names.contains(&LENGTHS))))
    }
}
