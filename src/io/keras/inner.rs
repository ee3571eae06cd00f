//! The models in a file, one inside another: their layers, and what each call of these reads.
//!
//! The file is untrusted. What is kept of it is no more than it says, and models lie only so deep in one another.

use super::archive::KerasArchive;
use super::calls::{Finder, call};
use super::config::{Object, class};
use super::entry::{Entry, entry, is_mask, references};
use super::masking::outputs;
use super::model::CALLS;
use super::names::{node_name, numbered};
use super::order::{Called, order};
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// How deep models may lie in one another, which is far beyond what anyone builds.
const DEPTH: usize = 16;
/// The longest name of a layer in bytes. Names are repeated wherever a call reads the layer.
const NAME_LENGTH: usize = 1 << 9;
/// The most tensors that calls read, all together.
const READS: usize = 8 * CALLS;

/// Whether a layer of this class is a model.
pub(super) fn is_model(class: &str) -> bool {
    matches!(class, "Functional" | "Sequential" | "Model")
}

pub(super) fn too_many_calls() -> Error {
    Error::unsupported(format!("keras: expected at most {CALLS} calls of layers, got more"))
}

/// Counts more tensors that are read.
pub(super) fn count(reads: &mut usize, more: usize) -> Result<()> {
    *reads += more;
    if *reads > READS {
        let error = format!("keras: expected at most {READS} tensors that layers read, got more");
        return Err(Error::unsupported(error));
    }
    Ok(())
}

/// A tensor of one model: the member's number, its call, its output.
pub(super) type Place = (usize, usize, usize);

/// What a member of a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Input,
    /// An operation that makes a mask.
    Mask,
    /// A layer, by number.
    Layer(usize),
    /// A model, by number.
    Model(usize),
}

/// One of the layers that a model lists.
pub(super) struct Member<'a> {
    /// What it is called in the whole.
    pub name: String,
    pub entry: Entry<'a>,
    pub part: Part,
    /// Whether it is an operation and no layer.
    pub operation: bool,
    pub calls: Vec<Call>,
}

/// What a call reads.
#[derive(Debug, Default)]
pub(super) struct Call {
    /// The tensors in its first argument.
    pub first: Vec<Place>,
    /// Those in others.
    pub more: Vec<Place>,
    /// The masks that it is told of.
    pub masks: Vec<Option<Place>>,
    pub causal: bool,
    /// The number that an operation compares with.
    pub value: Option<f64>,
}

impl Call {
    /// All tensors, in the order in which Keras follows them.
    pub fn reads(&self) -> impl Iterator<Item = Place> {
        self.first.iter().chain(&self.more).chain(self.masks.iter().flatten()).copied()
    }
}

/// A layer that is no model, and its place in the file.
pub(super) struct Layer<'a> {
    pub name: String,
    pub class: &'a str,
    pub config: Value,
    /// The group of its weights; operations have none.
    pub group: Option<String>,
}

/// A model.
pub(super) struct Model<'a> {
    pub members: Vec<Member<'a>>,
    /// Members that are inputs.
    pub inputs: Vec<usize>,
    pub outputs: Vec<Place>,
    /// Calls of members, each after those that it reads.
    pub calls: Vec<(usize, usize)>,
    /// Members in the order in which Keras lists them.
    pub listed: Vec<usize>,
}

/// Where a model is.
pub(super) struct Level<'a> {
    /// What its layers are called after; empty for the whole.
    name: String,
    /// What the file calls it.
    place: &'a str,
    /// The group of its weights and a slash; empty for the whole.
    base: String,
    depth: usize,
    /// Whether what is in it is trained.
    trained: bool,
}

impl Level<'_> {
    pub fn whole() -> Self {
        Self { name: String::new(), place: "the model", base: String::new(), depth: 0, trained: true }
    }
}

/// All models and layers of a file.
pub(super) struct Models<'a> {
    archive: &'a KerasArchive,
    pub models: Vec<Model<'a>>,
    pub layers: Vec<Layer<'a>>,
    /// The names that are taken, as a network has them.
    names: BTreeSet<String>,
    calls: usize,
    reads: usize,
}

impl<'a> Models<'a> {
    pub fn new(archive: &'a KerasArchive) -> Self {
        Self { archive, models: Vec::new(), layers: Vec::new(), names: BTreeSet::new(), calls: 0, reads: 0 }
    }

    /// Whether it is a file of Keras 2, which counts calls otherwise.
    pub fn is_old(&self) -> bool {
        self.archive.keras_version.starts_with("2")
    }

    /// Takes in a model with those inside it; gives its number.
    pub fn read(&mut self, value: &'a Value, level: &Level<'a>) -> Result<usize> {
        if level.depth > DEPTH {
            return Err(Error::unsupported(format!(
                "keras: {}: expected models at most {DEPTH} deep in one another, got more",
                level.name
            )));
        }
        let (class, config) = class(value, level.place)?;
        let layers = config.list("layers")?;
        let mut members = self.members(layers, class == "Sequential", level)?;
        let (inputs, outputs) = match class {
            "Sequential" => self.sequential(config, &mut members)?,
            _ => self.functional(config, &mut members, level)?,
        };
        let all: Vec<Called> = members.iter().map(called).collect();
        let ends: Vec<(usize, usize)> = outputs.iter().map(|&(at, call, _)| (at, call)).collect();
        let listed = if class == "Sequential" { (0..members.len()).collect() } else { order(&all, &inputs, &ends) };
        let calls = sorted(&members)?;
        self.models.push(Model { members, inputs, outputs, calls, listed });
        Ok(self.models.len() - 1)
    }

    /// A name that no other layer has.
    pub fn unique(&mut self, name: String) -> Result<String> {
        if name.len() > NAME_LENGTH {
            let length = name.len();
            let error = format!("keras: expected names of layers of at most {NAME_LENGTH} bytes, got one of {length}");
            return Err(Error::data(format!("{error}: {name:.80}..")));
        }
        let mut free = name.clone();
        for number in 1.. {
            if self.names.insert(node_name(&free)) {
                break;
            }
            free = format!("{name}_{number}");
        }
        Ok(free)
    }

    /// The layers that a model lists, without their calls.
    fn members(&mut self, layers: &'a [Value], sequential: bool, level: &Level<'a>) -> Result<Vec<Member<'a>>> {
        let entries = layers.iter().map(entry).collect::<Result<Vec<_>>>()?;
        let named = groups(&self.archive.names, &level.base);
        self.calls += entries.iter().map(|e| e.nodes.len().max(1)).sum::<usize>();
        if self.calls > CALLS {
            return Err(too_many_calls());
        }
        // The layers of the whole keep their names, whatever comes before them. The input of a Sequential has another.
        let mut names: Vec<String> = Vec::new();
        for entry in &entries {
            names.push(match level.depth {
                0 if sequential && entry.class == "InputLayer" => entry.name.to_string(),
                0 => self.unique(entry.name.to_string())?,
                _ => format!("{}_{}", level.name, entry.name).replace(['/', '.'], "_"),
            });
        }
        let (mut classes, mut seen) = (BTreeMap::new(), BTreeSet::new());
        let mut members: Vec<Member<'a>> = Vec::new();
        for ((value, entry), name) in layers.iter().zip(entries).zip(names) {
            if !seen.insert(entry.name) {
                let error = format!("keras: {}: expected layers of different names, got two", entry.name);
                return Err(Error::data(error));
            }
            let operation = is_operation(value, &entry);
            let group = (!operation).then(|| {
                let number = numbered(&mut classes, entry.class);
                let group = named.get(entry.name).map_or(number, |group| group.to_string());
                format!("{}layers/{group}", level.base)
            });
            let (part, name) = self.part(value, &entry, name, group, level)?;
            members.push(Member { name, entry, part, operation, calls: Vec::new() });
        }
        Ok(members)
    }

    /// What a listed layer is, and its name in the whole.
    fn part(
        &mut self,
        value: &'a Value,
        entry: &Entry<'a>,
        name: String,
        group: Option<String>,
        level: &Level<'a>,
    ) -> Result<(Part, String)> {
        if entry.class == "InputLayer" || is_mask(entry) {
            let part = if is_mask(entry) { Part::Mask } else { Part::Input };
            return Ok((part, name));
        }
        let name = if level.depth == 0 { name } else { self.unique(name)? };
        let trained = level.trained && entry.config.get("trainable") != &Value::Bool(false);
        let part = if is_model(entry.class) {
            let base = group.map_or_else(String::new, |group| format!("{group}/"));
            let inner = Level { name: name.clone(), place: entry.name, base, depth: level.depth + 1, trained };
            Part::Model(self.read(value, &inner)?)
        } else {
            let mut config = entry.config.value.clone();
            config["name"] = name.clone().into();
            if !trained {
                config["trainable"] = false.into();
            }
            self.layers.push(Layer { name: name.clone(), class: entry.class, config, group });
            Part::Layer(self.layers.len() - 1)
        };
        Ok((part, name))
    }

    /// The calls of a Sequential, each layer over what the one before it gives; its inputs and outputs.
    fn sequential(&self, config: Object<'a>, members: &mut Vec<Member<'a>>) -> Result<(Vec<usize>, Vec<Place>)> {
        if members.first().is_none_or(|m| m.part != Part::Input) {
            let entry = Entry { name: config.place, class: "InputLayer", config, nodes: &[] };
            let (name, calls) = (config.place.to_string(), Vec::new());
            members.insert(0, Member { name, entry, part: Part::Input, operation: false, calls });
        }
        let mut given = vec![(0, 0, 0)];
        for at in 1..members.len() {
            let Some(member) = members.get(at) else { continue };
            let (1, Part::Layer(_) | Part::Model(_)) = (given.len(), member.part) else {
                let error = format!("keras: {}: it does not follow on one output of another layer", member.name);
                return Err(Error::unsupported(error));
            };
            let call = Call { first: given, ..Call::default() };
            self.check_inputs(members, member, &call, &[])?;
            let count = match member.part {
                Part::Model(inner) => self.models.get(inner).map_or(0, |m| m.outputs.len()),
                _ => outputs(&member.entry),
            };
            if let Some(member) = members.get_mut(at) {
                member.calls.push(call);
            }
            given = (0..count).map(|output| (at, 0, output)).collect();
        }
        Ok((vec![0], given))
    }

    /// The calls of a functional model as it tells of them; its inputs and outputs.
    fn functional(
        &mut self,
        config: Object<'a>,
        members: &mut [Member<'a>],
        level: &Level<'a>,
    ) -> Result<(Vec<usize>, Vec<Place>)> {
        let finder = Finder::of(config, members, &self.models, self.is_old());
        let mut calls = Vec::new();
        for member in members.iter() {
            for node in member.entry.nodes {
                let (call, shapes) = call(&finder, member, node)?;
                count(&mut self.reads, call.reads().count())?;
                self.check_inputs(members, member, &call, &shapes)?;
                calls.push(call);
            }
        }
        let after = |name: &str| finder.outputs_from(name);
        let outputs = references(config.get("output_layers"));
        count(&mut self.reads, outputs.len())?;
        let outputs: Vec<Place> =
            outputs.iter().map(|r| finder.find(level.place, r, after(r.0))).collect::<Result<_>>()?;
        let inputs = references(config.get("input_layers"));
        let inputs: Vec<Place> = inputs.iter().map(|r| finder.find(level.place, r, 0)).collect::<Result<_>>()?;
        if inputs.is_empty() || outputs.is_empty() {
            let error = format!("keras: {}: expected at least one of `input_layers` and `output_layers`", level.place);
            return Err(Error::data(error));
        }
        if let Some(member) = inputs.iter().filter_map(|i| members.get(i.0)).find(|m| m.part != Part::Input) {
            let error = format!("keras: {}: its input `{}` is no input layer", level.place, member.entry.name);
            return Err(Error::data(error));
        }
        let mut calls = calls.into_iter();
        for member in members.iter_mut() {
            member.calls = calls.by_ref().take(member.entry.nodes.len()).collect();
        }
        Ok((inputs.iter().map(|i| i.0).collect(), outputs))
    }
}

/// Whether it is an operation and no layer of the same class: a file in HDF5 does not say, but tells more of layers.
fn is_operation(value: &Value, entry: &Entry<'_>) -> bool {
    match value.get("module").and_then(Value::as_str) {
        Some(module) => module.starts_with("keras.src.ops"),
        None => {
            let both = matches!(entry.class, "Add" | "Subtract" | "Multiply" | "Maximum" | "Minimum");
            both && entry.config.get("trainable").is_null()
        }
    }
}

/// The shape of an input, whose first size is the batch.
pub(super) fn shape_of<'a>(entry: &Entry<'a>) -> &'a Value {
    match entry.config.get("batch_shape") {
        Value::Null => entry.config.get("build_input_shape"),
        shape => shape,
    }
}

/// The groups of weights of the layers right inside `base`, by the name that they carry.
fn groups<'a>(names: &'a BTreeMap<String, String>, base: &str) -> BTreeMap<&'a str, &'a str> {
    let start = format!("{base}layers/");
    let mut groups = BTreeMap::new();
    for (path, name) in names.range(start.clone()..).take_while(|(path, _)| path.starts_with(&start)) {
        let group = path.strip_prefix(&start).and_then(|path| path.strip_suffix("/vars"));
        if let Some(group) = group.filter(|group| !group.contains('/')) {
            groups.entry(name.as_str()).or_insert(group);
        }
    }
    groups
}

/// What the calls of a member read, as their order takes it.
fn called(member: &Member<'_>) -> Called {
    let mut calls: Vec<_> =
        member.calls.iter().map(|call| call.reads().map(|(at, call, _)| (at, call)).collect()).collect();
    if calls.is_empty() {
        calls.push(Vec::new());
    }
    Called { calls }
}

/// The calls of all members but inputs, each after those that it reads.
fn sorted(members: &[Member<'_>]) -> Result<Vec<(usize, usize)>> {
    let inputs = (0..members.len()).filter(|&at| members.get(at).is_some_and(|m| m.part == Part::Input));
    let mut placed: BTreeSet<(usize, usize)> = inputs.map(|at| (at, 0)).collect();
    let mut sorted = Vec::new();
    let calls = |(at, member): (usize, &Member<'_>)| (0..member.calls.len()).map(move |call| (at, call));
    let mut waiting: Vec<(usize, usize)> = members.iter().enumerate().flat_map(calls).collect();
    while !waiting.is_empty() {
        let before = waiting.len();
        waiting.retain(|&(at, number)| {
            let Some(call) = members.get(at).and_then(|m| m.calls.get(number)) else { return false };
            let ready = call.reads().all(|(from, call, _)| placed.contains(&(from, call)));
            if ready {
                placed.insert((at, number));
                sorted.push((at, number));
            }
            !ready
        });
        if waiting.len() == before {
            let name = waiting.first().and_then(|w| members.get(w.0)).map_or("", |m| m.name.as_str());
            return Err(Error::data(format!("keras: {name}: what it reads comes from no layer of the model")));
        }
    }
    Ok(sorted)
}
