//! A Keras model, Sequential or functional, as a network with its parameters.

use super::archive::{HDF5_START, KerasArchive, read_hdf5, read_keras};
use super::config::{Object, class, layer};
use super::entry::{
    Entry, IN_ORDER, Masks, Reference, entry, is_mask, keras_order, masks, masks_of, reads, references, tensors,
};
use super::legacy::read_legacy;
use super::names::{node_name, numbered};
use super::nested::flatten;
use super::training::{Training, training};
use super::variables::{Variable, variables};
use crate::error::{Error, Result};
use crate::io::Imported;
use crate::nn::{Fill, Growing, Input, Layer, PoolingKind, Port};
use crate::params::Tensor;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The most calls of layers, which is far beyond those of any model with an LSTM.
pub(super) const CALLS: usize = 1 << 11;

/// Reads a `.keras` file, or a whole model in HDF5 (`.h5`) as Keras 2 and 3 write it: its layers as a network, and the
/// values of its parameters.
pub fn read_model(path: &Path) -> Result<Imported> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    file.take(HDF5_START.len() as u64).read_to_end(&mut start).map_err(|e| Error::io(path, "read", e))?;
    if start == HDF5_START {
        return read_legacy(path);
    }
    let archive = flatten(archive_of(path)?).map_err(|e| e.within(path.display()))?;
    Reader::new(&archive, false).model().map_err(|e| e.within(path.display()))
}

/// [`read_model`] of a `.keras` file with the parameters of a `.weights.h5` file of the same model in place of its own.
pub fn read_model_with_weights(path: &Path, weights: &Path) -> Result<Imported> {
    let mut archive = archive_of(path)?;
    let file = read_hdf5(weights)?;
    // What its optimiser keeps is of the parameters that it has itself.
    if let Some(config) = archive.config.as_object_mut() {
        config.remove("compile_config");
    }
    (archive.weights, archive.names, archive.step) = (file.weights, file.names, None);
    let archive = flatten(archive).map_err(|e| e.within(path.display()))?;
    Reader::new(&archive, false).model().map_err(|e| e.within(weights.display()))
}

/// What a `.keras` file of Keras 3 holds.
fn archive_of(path: &Path) -> Result<KerasArchive> {
    let archive = read_keras(path)?;
    // Keras 2 wrote archives too, in which the same names mean other things (its hard sigmoid is another).
    if !archive.keras_version.starts_with("3.") {
        let error = format!("expected a file of Keras 3, got one of Keras {}", archive.keras_version);
        return Err(Error::unsupported(error).within(path.display()));
    }
    Ok(archive)
}

pub(super) struct Reader<'a> {
    archive: &'a KerasArchive,
    /// Whether calls are not told of masks, which layers pass on to one another.
    implicit: bool,
    /// Whether calls of attention are told of masks as others are, which Keras does not do.
    is_told_all: bool,
    pub(super) network: Growing,
    parameters: BTreeMap<String, Tensor>,
    sources: BTreeMap<String, String>,
    used: BTreeSet<String>,
    /// Weighted layers so far by class, for the names of their groups.
    classes: BTreeMap<String, usize>,
    /// The group that carries each layer's name.
    groups: BTreeMap<&'a str, &'a str>,
}

/// The outputs of each call of each layer that has been placed, by name and number of the call.
type Placed<'a> = BTreeMap<(&'a str, usize), Vec<Port>>;

/// The layers whose call has a mask, if what they read has one.
pub(super) fn takes_mask(layer: &Layer) -> bool {
    matches!(layer, Layer::Lstm(_)) || matches!(layer, Layer::Pooling(p) if p.kind == PoolingKind::Average)
}

impl<'a> Reader<'a> {
    pub fn new(archive: &'a KerasArchive, implicit: bool) -> Self {
        let mut groups = BTreeMap::new();
        for (path, name) in &archive.names {
            let group = path.strip_prefix("layers/").and_then(|p| p.strip_suffix("/vars"));
            // The group of a layer of a model inside lies in that of its model.
            if let Some(group) = group.filter(|group| group.split("/layers/").all(|part| !part.contains('/'))) {
                groups.entry(name.as_str()).or_insert(group);
            }
        }
        Self {
            groups,
            archive,
            implicit,
            is_told_all: archive.config.get("config").is_some_and(|c| c.get(IN_ORDER) == Some(&Value::Bool(true))),
            network: Growing::default(),
            parameters: BTreeMap::new(),
            sources: BTreeMap::new(),
            used: BTreeSet::new(),
            classes: BTreeMap::new(),
        }
    }

    pub fn model(mut self) -> Result<Imported> {
        let (name, config) = class(&self.archive.config, "the model")?;
        let layers = config.list("layers")?;
        let entries = layers.iter().map(entry).collect::<Result<Vec<_>>>()?;
        let calls: usize = entries.iter().map(|e| e.nodes.len().max(1)).sum();
        if calls > CALLS {
            return Err(Error::unsupported(format!("keras: expected at most {CALLS} calls of layers, got {calls}")));
        }
        match name {
            "Sequential" => self.sequential(config, &entries)?,
            "Functional" | "Model" => self.functional(config, &entries)?,
            other => return Err(Error::unsupported(format!("keras: a model of class {other} is not supported"))),
        }
        for entry in entries.iter().filter(|e| !is_mask(e)) {
            self.weights(entry)?;
        }
        let rest = self.archive.weights.keys().find(|k| k.starts_with("layers/") && !self.used.contains(*k));
        if let Some(path) = rest.filter(|p| !p.contains("seed_generator")) {
            return Err(Error::data(format!("keras: the weight `{path}` belongs to no layer of the model")));
        }
        let training = self.training(config, &entries).unwrap_or_else(|e| {
            log::warn!("how the model was being trained is left out: {e}");
            None
        });
        let title = config.get("name").as_str().unwrap_or(name).to_string();
        let Self { network, parameters, sources, .. } = self;
        Ok(Imported { training, ..Imported::new(&title, network.finish(), parameters, sources) })
    }

    /// How the model was being trained.
    fn training(&self, config: Object<'a>, entries: &[Entry<'a>]) -> Result<Option<Training>> {
        if let Some(entry) = entries.iter().find(|e| e.config.get("trainable") == &Value::Bool(false)) {
            return Err(Error::unsupported(format!("keras: {}: a layer that is not trained", entry.name)));
        }
        let nodes: BTreeMap<&str, &Layer> = self.network.nodes.iter().map(|n| (n.name.as_str(), &n.layer)).collect();
        let of = |&at: &usize| {
            let name = entries.get(at).map(|e| node_name(e.name)).unwrap_or_default();
            nodes.get(name.as_str()).map(|layer| variables(&name, layer)).unwrap_or_default()
        };
        let listed: Vec<Variable> = keras_order(config, entries).iter().flat_map(of).collect();
        training(self.archive, &listed, &self.network.parameters()?)
    }

    fn sequential(&mut self, config: Object<'a>, entries: &[Entry<'a>]) -> Result<()> {
        let (shape, rest) = match entries {
            [first, rest @ ..] if first.class == "InputLayer" => (input_shape(first)?, rest),
            all => (config.get("build_input_shape"), all),
        };
        let embeds = rest.first().is_some_and(|e| e.class == "Embedding");
        let mut at = vec![self.network.input("x", input(shape, embeds, "the input")?)?];
        self.fix_steps(at[0], shape)?;
        for entry in rest {
            at = self.place(entry, &at, false)?;
        }
        self.drop_unread_masks()?;
        self.outputs(&[("y".to_string(), at.clone())]);
        Ok(())
    }

    fn functional(&mut self, config: Object<'a>, entries: &[Entry<'a>]) -> Result<()> {
        let mut placed = Placed::new();
        let mut waiting: Vec<(&Entry<'a>, usize)> = Vec::new();
        let given = references(config.get("input_layers"));
        // The caller's order of inputs is the model's, not that of its layers.
        for &(name, ..) in &given {
            let Some(entry) = entries.iter().find(|e| e.name == name && e.class == "InputLayer") else {
                return Err(Error::data(format!("keras: the model: its input `{name}` is no input layer")));
            };
            let embeds = entries.iter().filter(|e| e.class == "Embedding").any(|e| reads(e, name));
            let port = self.network.input(name, input(input_shape(entry)?, embeds, name)?)?;
            self.fix_steps(port, input_shape(entry)?)?;
            placed.insert((name, 0), vec![port]);
        }
        self.align(entries, &given)?;
        for entry in entries.iter().filter(|e| e.class != "InputLayer" && !is_mask(e)) {
            waiting.extend((0..entry.nodes.len()).map(|call| (entry, call)));
        }
        let masks = masks(entries)?;
        // The masks that some layer takes, by the tensor that they are made from.
        let mut taken: BTreeSet<Reference<'a>> = BTreeSet::new();
        for &(entry, call) in &waiting {
            taken.extend(masks_of(entry, call, &masks)?.into_iter().flatten());
        }
        while !waiting.is_empty() {
            let before = waiting.len();
            let mut later = Vec::new();
            for (entry, call) in std::mem::take(&mut waiting) {
                match self.arguments(entry, call, &placed)? {
                    Some(ports) => {
                        let before = self.network.nodes.len();
                        let kwargs = Object { value: &entry.nodes[call], place: entry.name }.get("kwargs");
                        let causal = kwargs.get("use_causal_mask") == Some(&Value::Bool(true));
                        let outputs = self.place(entry, &ports, causal)?;
                        if self.network.nodes.len() > before && !self.implicit {
                            self.mask(entry, call, &masks, &taken)?;
                        }
                        placed.insert((entry.name, call), outputs);
                    }
                    None => later.push((entry, call)),
                }
            }
            if later.len() == before {
                let name = later[0].0.name;
                return Err(Error::data(format!("keras: {name}: what it reads comes from no layer of the model")));
            }
            waiting = later;
        }
        if self.implicit {
            self.drop_unread_masks()?;
            self.check_implicit_masks()?;
        }
        let wanted = references(config.get("output_layers"));
        let mut outputs: Vec<(String, Vec<Port>)> = Vec::new();
        for (name, call, tensor) in wanted {
            let port = placed.get(&(name, call)).and_then(|p| p.get(tensor)).copied();
            let port = port.ok_or_else(|| Error::data(format!("keras: the model: there is no output of `{name}`")))?;
            match outputs.iter_mut().find(|o| o.0 == name) {
                Some(output) => output.1.push(port),
                None => outputs.push((name.to_string(), vec![port])),
            }
        }
        if outputs.is_empty() {
            return Err(Error::data("keras: the model: expected at least one of `output_layers`"));
        }
        self.outputs(&outputs);
        Ok(())
    }

    /// Takes the number of steps of an input of `shape`, whose first size is the batch, where it says one.
    fn fix_steps(&mut self, port: Port, shape: &Value) -> Result<()> {
        let steps = shape.get(1).and_then(Value::as_u64);
        let Port::Input(at) = port else { return Ok(()) };
        match steps {
            Some(steps) if !matches!(self.network.inputs[at].1, Input::Rows(_)) => {
                self.network.fix_steps(port, steps as usize)
            }
            _ => Ok(()),
        }
    }

    /// Inputs that are as long by the file have the same steps, unless masks may shorten one and not the other.
    fn align(&mut self, entries: &[Entry<'a>], given: &[Reference<'a>]) -> Result<()> {
        let steps = |name: &str| -> Option<u64> {
            let entry = entries.iter().find(|e| e.name == name)?;
            entry.config.get("batch_shape").get(1)?.as_u64()
        };
        let makes = |e: &Entry<'a>| e.class == "Masking" || e.config.get("mask_zero") == &Value::Bool(true);
        let masked = entries.iter().any(|e| is_mask(e) || self.implicit && makes(e));
        let axes = self.network.input_axes()?;
        let lengths: Vec<Option<u64>> = given.iter().zip(&axes).map(|(g, axis)| axis.and(steps(g.0))).collect();
        for (at, length) in lengths.iter().enumerate().filter(|l| l.1.is_some() && !masked) {
            if let Some(earlier) = lengths[..at].iter().position(|l| l == length) {
                self.network.align(Port::Input(at), Port::Input(earlier))?;
            }
        }
        Ok(())
    }

    /// Names outputs: a layer's first after the layer, its states after that and `.h` and `.c`.
    fn outputs(&mut self, outputs: &[(String, Vec<Port>)]) {
        for (name, ports) in outputs {
            for &port in ports {
                let part = self.network.state_part(port);
                let full = part.map_or_else(|| name.clone(), |part| format!("{name}.{part}"));
                let taken = |n: &str| self.network.outputs.iter().any(|o| o.0 == n);
                let number = (1..).map(|n| format!("{full}_{n}")).find(|n| !taken(n));
                let unique = if taken(&full) { number.unwrap_or_default() } else { full };
                self.network.output(&unique, port);
            }
        }
    }

    /// Adds one call of a layer over `inputs`; attention sees only earlier steps if `causal`.
    fn place(&mut self, entry: &Entry<'a>, inputs: &[Port], causal: bool) -> Result<Vec<Port>> {
        let Some(mut layer) = layer(entry.class, entry.config)? else { return Ok(inputs.to_vec()) };
        if let Layer::Attention(attention) = &mut layer {
            attention.causal = causal;
        }
        self.network.add_named(&node_name(entry.name), layer, inputs)
    }

    /// Makes the last node's masks those that the file tells of: Keras masks a call where the file says so alone.
    fn mask(
        &mut self,
        entry: &Entry<'a>,
        call: usize,
        masks: &Masks<'a>,
        taken: &BTreeSet<Reference<'a>>,
    ) -> Result<()> {
        let mut read = Vec::new();
        tensors(Object { value: &entry.nodes[call], place: entry.name }.get("args"), &mut read);
        let Some(node) = self.network.nodes.last() else { return Ok(()) };
        if let Layer::Embedding(l) = &node.layer {
            let masked = l.mask_zero && read.first().is_some_and(|tensor| taken.contains(tensor));
            if masked != l.mask_zero {
                self.network.change(|network| {
                    if let Some(Layer::Embedding(l)) = network.nodes.last_mut().map(|n| &mut n.layer) {
                        l.mask_zero = masked;
                    }
                    Ok(())
                })?;
            }
            return Ok(());
        }
        let attends = matches!(node.layer, Layer::Attention(_)) && self.is_told_all;
        if takes_mask(&node.layer) || attends {
            let fills = self.network.fills()?;
            let masked = |port: Option<&Port>| matches!(port, Some(&Port::Node(at, _)) if fills[at] != Fill::None);
            let told = masks_of(entry, call, masks)?;
            let differs = |at: usize| masked(node.inputs.get(at)) != told.get(at).is_some_and(Option::is_some);
            let count = if attends { 2 } else { 1 };
            if (0..count).any(differs) {
                return Err(Error::unsupported(format!(
                    "keras: {}: a mask that reaches it by another way than from the layers before it is not supported",
                    entry.name
                )));
            }
        }
        Ok(())
    }

    /// What a call reads, once all of it has been placed.
    fn arguments(&self, entry: &Entry<'a>, call: usize, placed: &Placed<'a>) -> Result<Option<Vec<Port>>> {
        let node = Object { value: &entry.nodes[call], place: entry.name };
        let mut found = Vec::new();
        tensors(node.get("args"), &mut found);
        let other = |v: &&Value| v.is_number() || v.is_boolean() || v.is_string();
        if let Some(value) = node.get("args").as_array().and_then(|args| args.iter().find(other)) {
            let name = entry.name;
            return Err(Error::unsupported(format!(
                "keras: {name}: the argument {value}, which is no tensor, is not supported"
            )));
        }
        if let Some(kwargs) = node.get("kwargs").as_object() {
            for (key, value) in kwargs.iter().filter(|(_, v)| !v.is_null()) {
                match (key.as_str(), entry.class) {
                    ("initial_state", "LSTM" | "Bidirectional") => tensors(value, &mut found),
                    ("training", _) if value == &Value::Bool(false) => {}
                    ("use_causal_mask", "Attention" | "AdditiveAttention") if value.is_boolean() => {}
                    ("return_attention_scores", "Attention" | "AdditiveAttention") if value == &Value::Bool(false) => {}
                    ("mask", "LSTM" | "Bidirectional" | "GlobalAveragePooling1D") => {}
                    ("mask", "Attention" | "AdditiveAttention") if self.is_told_all => {}
                    _ => {
                        let name = entry.name;
                        return Err(Error::unsupported(format!(
                            "keras: {name}: the argument `{key}` is not supported"
                        )));
                    }
                }
            }
        }
        let port = |&(name, call, tensor): &Reference<'a>| {
            placed.get(&(name, call)).map(|ports| {
                let missing = || Error::data(format!("keras: {}: `{name}` has no output {tensor}", entry.name));
                ports.get(tensor).copied().ok_or_else(missing)
            })
        };
        found.iter().map(port).collect::<Option<Result<Vec<Port>>>>().transpose()
    }

    /// Takes the values of a layer's parameters from the archive.
    fn weights(&mut self, entry: &Entry<'a>) -> Result<()> {
        let base = self.group(entry);
        let name = node_name(entry.name);
        let Some(node) = self.network.nodes.iter().find(|n| n.name == name).cloned() else { return Ok(()) };
        for Variable { path, parameter, form } in variables(&name, &node.layer) {
            let path = format!("{base}/{path}");
            let found = self.archive.weights.get(&path);
            let tensor =
                found.ok_or_else(|| Error::data(format!("keras: expected the weight `{path}`, there is none")))?;
            self.parameters.insert(parameter.clone(), form.read(tensor).map_err(|e| e.within(&path))?);
            self.used.insert(path.clone());
            self.sources.insert(parameter, path);
        }
        Ok(())
    }

    /// The group of a layer's weights: the one that carries its name, else that of its class in the order of layers.
    fn group(&mut self, entry: &Entry<'a>) -> String {
        let numbered = numbered(&mut self.classes, entry.class);
        let inner = if entry.class == "TimeDistributed" { "/layer" } else { "" };
        let group = self.groups.get(entry.name).map_or(numbered, |group| group.to_string());
        format!("layers/{group}{inner}")
    }
}

fn input_shape<'a>(entry: &Entry<'a>) -> Result<&'a Value> {
    let flag = |key: &str| entry.config.get(key) == &Value::Bool(true);
    if flag("sparse") || flag("ragged") {
        return Err(Error::unsupported(format!("keras: {}: sparse and ragged inputs are not supported", entry.name)));
    }
    Ok(entry.config.get("batch_shape"))
}

/// What an input of `shape`, whose first size is the batch, gives.
fn input(shape: &Value, embeds: bool, name: &str) -> Result<Input> {
    let sizes: Vec<Option<usize>> = match shape.as_array() {
        Some(sizes) => sizes.iter().map(|s| s.as_u64().and_then(|n| usize::try_from(n).ok())).collect(),
        None => {
            return Err(Error::data(format!("keras: {name}: the model was saved before it knew its input's shape")));
        }
    };
    match (embeds, &sizes[..]) {
        (true, [_, _]) => Ok(Input::Tokens),
        (false, &[_, _, Some(features)]) => Ok(Input::Features(features)),
        (false, &[_, Some(features)]) => Ok(Input::Rows(features)),
        _ => Err(Error::unsupported(format!("keras: {name}: an input of shape {shape} is not supported"))),
    }
}
