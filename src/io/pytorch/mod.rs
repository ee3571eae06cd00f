//! PyTorch: a `state_dict` as safetensors or as `torch.save` writes it, whose modules are told by the names and
//! shapes of their parameters; and the parameters of a network by the names that such modules have for them.

mod checkpoint;
mod pickle;
mod save;
mod view;
mod write;

pub(super) use checkpoint::is_checkpoint;
pub use checkpoint::read_checkpoint;
pub use save::write_checkpoint;
pub use write::state_dict;

use super::{Imported, safetensors};
use crate::config::{Bias, Direction, GATES};
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{Dense, Embedding, Init, Input, Lstm, Network, Port};
use crate::params::Tensor;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What a state dict holds. Whatever is left out is told by names and shapes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Config {
    /// The prefix of the `nn.Embedding`.
    pub embedding: Option<String>,
    /// The prefix of the `nn.LSTM`.
    pub lstm: Option<String>,
    /// The prefix of the `nn.Linear` over the LSTM's output.
    pub linear: Option<String>,
    /// Whether the linear layer's weight is the embedding's.
    pub tied: Option<bool>,
    /// Whether the linear layer reads every step, which it does otherwise, or the last h alone.
    pub return_sequences: Option<bool>,
    /// Inputs and outputs are batch-first here.
    pub batch_first: Option<bool>,
}

impl Config {
    /// Reads a JSON file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        serde_json::from_str(&text)
            .map_err(|e| Error::file(path, format!("expected a JSON object that says what a state dict holds: {e}")))
    }
}

/// The sizes of an `nn.LSTM`.
struct Stack {
    prefix: String,
    layers: usize,
    input: usize,
    hidden: usize,
    direction: Direction,
    projection: Option<usize>,
    bias: Bias,
}

impl Stack {
    fn output(&self) -> usize {
        self.direction.count() * self.projection.unwrap_or(self.hidden)
    }
}

/// What the names of embeddings are like.
const EMBEDDINGS: &[&str] = &["emb", "wte", "lookup", "encoder"];
/// What the names of linear layers are like.
const LINEARS: &[&str] = &["linear", "fc", "head", "out", "decoder", "proj", "dense", "classif"];

fn named(module: &Module, like: &[&str]) -> bool {
    let name = module.prefix.to_lowercase();
    like.iter().any(|part| name.contains(part))
}

/// A parameter's place: `module.name`, or `name` where the module is the whole model.
fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_string() } else { format!("{prefix}.{name}") }
}

/// Reads a state dict of an embedding, an LSTM and a linear layer, of which only the LSTM must be there, from a file of
/// safetensors or of `torch.save`.
pub fn read_model(path: &Path, config: &Config) -> Result<Imported> {
    let tensors = if is_checkpoint(path)? { read_checkpoint(path)? } else { safetensors::read_shared(path)? };
    from_tensors(tensors, config).map_err(|e| e.within(path.display()))
}

fn from_tensors(mut tensors: BTreeMap<String, Tensor>, config: &Config) -> Result<Imported> {
    if config.batch_first == Some(false) {
        return Err(Error::unsupported(
            "state dict: models are batch-first here, and the configuration says otherwise",
        ));
    }
    let stack = stack(&tensors, config)?;
    let inside = |name: &String| match stack.prefix.is_empty() {
        true => {
            ["weight_ih_l", "weight_hh_l", "weight_hr_l", "bias_ih_l", "bias_hh_l"].iter().any(|p| name.starts_with(p))
        }
        false => name.strip_prefix(&stack.prefix).is_some_and(|rest| rest.starts_with('.')),
    };
    let others: BTreeMap<&String, &Tensor> = tensors.iter().filter(|(name, _)| !inside(name)).collect();
    let modules = modules(&others)?;
    let (embedding, linear) = recognise(&stack, &modules, config)?;
    let tied = ties(&tensors, &stack, embedding.as_deref(), linear.as_deref(), config)?;

    let mut network = Network::default();
    let mut sources: BTreeMap<String, String> = BTreeMap::new();
    let mut at = match &embedding {
        Some(prefix) => {
            let (name, table) = (join(prefix, "weight"), matrix(&tensors, &join(prefix, "weight"))?);
            sources.insert("embedding.weight".to_string(), name);
            let x = network.input("tokens", Input::Tokens);
            network.add(Embedding::new(table.0, table.1).initializers(Init::PyTorch), &[x])?[0]
        }
        None => network.input("x", Input::Features(stack.input)),
    };
    let mut states: Vec<[Port; 2]> = Vec::new();
    for layer in 0..stack.layers {
        let lstm = Lstm::new(stack.hidden)
            .return_sequences(true)
            .return_state(true)
            .direction(stack.direction)
            .projection(stack.projection)
            .bias(stack.bias)
            .initializers(Init::PyTorch);
        let out = network.add(lstm.clone(), &[at])?;
        at = out[0];
        states.extend(out[1..].chunks_exact(2).map(|pair| [pair[0], pair[1]]));
        let name = network.nodes.last().map(|node| node.name.clone()).unwrap_or_default();
        for p in crate::params::lstm_parameters(&lstm.config(stack.input), 0) {
            let theirs = join(&stack.prefix, &p.name.replacen("_l0", &format!("_l{layer}"), 1));
            sources.insert(format!("{name}.{}", p.name), theirs);
        }
    }
    let mut output = "y";
    if linear.is_some() || tied {
        let prefix = linear.clone().unwrap_or_default();
        let bias = linear.as_ref().map(|p| join(p, "bias")).filter(|n| tensors.contains_key(n));
        let weight = if tied { sources["embedding.weight"].clone() } else { join(&prefix, "weight") };
        let mut dense = Dense::new(matrix(&tensors, &weight)?.0).bias(bias.is_some()).initializers(Init::PyTorch);
        if tied {
            dense = dense.tied("embedding");
        } else {
            sources.insert("dense.weight".to_string(), weight);
        }
        sources.extend(bias.map(|name| ("dense.bias".to_string(), name)));
        if config.return_sequences == Some(false) {
            at = last(&mut network, &stack, &states)?;
        }
        at = network.add(dense, &[at])?[0];
        output = if embedding.is_some() { "logits" } else { "y" };
    } else if config.return_sequences == Some(false) {
        at = last(&mut network, &stack, &states)?;
    }
    network.output(output, at);
    for (number, [h, c]) in states.into_iter().enumerate() {
        network.output(&format!("h_n[{number}]"), h);
        network.output(&format!("c_n[{number}]"), c);
    }
    let used: BTreeSet<&String> = sources.values().collect();
    let copy = linear.filter(|_| tied).map(|prefix| join(&prefix, "weight"));
    if let Some(name) = tensors.keys().find(|name| !used.contains(name) && Some(*name) != copy.as_ref()) {
        return Err(Error::unsupported(format!(
            "state dict: `{name}` belongs to no embedding, LSTM or linear layer that is known; a configuration can name them"
        )));
    }
    let mut parameters = BTreeMap::new();
    for (ours, theirs) in &sources {
        let missing = || Error::data(format!("state dict: expected `{theirs}`, there is none"));
        parameters.insert(ours.clone(), tensors.remove(theirs).ok_or_else(missing)?);
    }
    Ok(Imported::new("state dict", network, parameters, sources))
}

/// The last h of the last layer, directions side by side.
fn last(network: &mut Network, stack: &Stack, states: &[[Port; 2]]) -> Result<Port> {
    let h: Vec<Port> = states[states.len() - stack.direction.count()..].iter().map(|s| s[0]).collect();
    match h[..] {
        [one] => Ok(one),
        _ => Ok(network.add(crate::nn::Merge { kind: crate::nn::MergeKind::Concatenate }, &h)?[0]),
    }
}

/// The rows and columns of a matrix.
fn matrix(tensors: &BTreeMap<String, Tensor>, name: &str) -> Result<(usize, usize)> {
    match tensors.get(name).map(Tensor::shape) {
        Some(&[rows, columns]) => Ok((rows, columns)),
        Some(other) => Err(Error::shape(format!("state dict: expected a matrix `{name}`, got {other:?}"))),
        None => Err(Error::data(format!("state dict: expected `{name}`, there is none"))),
    }
}

fn stack(tensors: &BTreeMap<String, Tensor>, config: &Config) -> Result<Stack> {
    let first = "weight_ih_l0";
    let found: Vec<&str> = tensors
        .keys()
        .filter_map(|name| match name.strip_suffix(first) {
            Some("") => Some(""),
            Some(prefix) => prefix.strip_suffix('.'),
            None => None,
        })
        .collect();
    let prefix = match (&config.lstm, &found[..]) {
        (Some(prefix), _) => prefix.clone(),
        (None, [one]) => (*one).to_string(),
        (None, []) => {
            return Err(Error::unsupported(
                "state dict: expected the parameters of an LSTM, got none named weight_ih_l0",
            ));
        }
        (None, many) => {
            return Err(Error::unsupported(format!(
                "state dict: one LSTM is supported, there are {}: {many:?}",
                many.len()
            )));
        }
    };
    let has = |name: &str| tensors.contains_key(&join(&prefix, name));
    let (gates, input) = matrix(tensors, &join(&prefix, first))?;
    let (_, r) = matrix(tensors, &join(&prefix, "weight_hh_l0"))?;
    if gates == 0 || !gates.is_multiple_of(GATES) {
        return Err(Error::unsupported(format!(
            "state dict: `{}` has {gates} rows, which are not the four gates of an LSTM (a GRU has three)",
            join(&prefix, first)
        )));
    }
    Ok(Stack {
        layers: (0..).take_while(|l| has(&format!("weight_ih_l{l}"))).count(),
        input,
        hidden: gates / GATES,
        direction: if has("weight_ih_l0_reverse") { Direction::Both } else { Direction::Forward },
        projection: has("weight_hr_l0").then_some(r),
        bias: if has("bias_ih_l0") { Bias::Two } else { Bias::None },
        prefix,
    })
}

/// A module of a weight and perhaps a bias.
struct Module {
    prefix: String,
    weight: Option<(usize, usize)>,
    bias: Option<usize>,
}

fn modules(others: &BTreeMap<&String, &Tensor>) -> Result<Vec<Module>> {
    let mut all: BTreeMap<String, Module> = BTreeMap::new();
    for (name, tensor) in others {
        let (prefix, role) = name.rsplit_once('.').unwrap_or(("", name.as_str()));
        let module = all.entry(prefix.to_string()).or_insert_with(|| Module {
            prefix: prefix.to_string(),
            weight: None,
            bias: None,
        });
        match (role, tensor.shape()) {
            ("weight", &[rows, columns]) => module.weight = Some((rows, columns)),
            ("bias", &[rows]) => module.bias = Some(rows),
            (_, shape) => {
                return Err(Error::unsupported(format!(
                    "state dict: `{name}` of {shape:?} belongs to no embedding, LSTM or linear layer"
                )));
            }
        }
    }
    Ok(all.into_values().collect())
}

/// The prefixes of the embedding and of the linear layer, by configuration, or by what can be only one or the other.
fn recognise(stack: &Stack, modules: &[Module], config: &Config) -> Result<(Option<String>, Option<String>)> {
    let embeds = |m: &Module| m.bias.is_none() && m.weight.is_some_and(|w| w.1 == stack.input);
    let projects = |m: &Module| match m.weight {
        Some((rows, columns)) => columns == stack.output() && m.bias.is_none_or(|b| b == rows),
        None => true, // a bias whose weight is the embedding's
    };
    let mut embedding = config.embedding.clone();
    let mut linear = config.linear.clone();
    let mut open: Vec<&Module> = modules
        .iter()
        .filter(|m| Some(&m.prefix) != embedding.as_ref() && Some(&m.prefix) != linear.as_ref())
        .collect();
    // What has one reading first, then by name; each module that is settled may leave the next one reading.
    for by_name in [false, false, true, true] {
        open.retain(|m| {
            let (e, l) = (embedding.is_none() && embeds(m), linear.is_none() && projects(m));
            let only = |other: &dyn Fn(&Module) -> bool| modules.iter().filter(|o| other(o)).count() == 1;
            let (looks_e, looks_l) = (by_name && named(m, EMBEDDINGS), by_name && named(m, LINEARS));
            match (e, l) {
                (true, false) => embedding = Some(m.prefix.clone()),
                (false, true) => linear = Some(m.prefix.clone()),
                (true, true) if (!only(&projects) && only(&embeds)) || (looks_e && !looks_l) => {
                    embedding = Some(m.prefix.clone());
                }
                (true, true) if looks_l && !looks_e => linear = Some(m.prefix.clone()),
                _ => return true,
            }
            false
        });
    }
    if let Some(m) = open.first() {
        let (e, l) = (embedding.is_none() && embeds(m), linear.is_none() && projects(m));
        let what = if e && l { "may be either" } else { "is neither" };
        return Err(Error::unsupported(format!(
            "state dict: `{}` {what} an embedding of {} values or a linear layer over {}; a configuration can name them",
            m.prefix,
            stack.input,
            stack.output()
        )));
    }
    Ok((embedding, linear))
}

/// Whether the linear layer's weight is the embedding's.
fn ties(
    tensors: &BTreeMap<String, Tensor>,
    stack: &Stack,
    embedding: Option<&str>,
    linear: Option<&str>,
    config: &Config,
) -> Result<bool> {
    let weight = |prefix: Option<&str>| prefix.and_then(|p| tensors.get(&join(p, "weight")));
    let (table, matrix) = (weight(embedding), weight(linear));
    let alike = match (table, matrix) {
        (Some(table), Some(matrix)) => table == matrix,
        (Some(_), None) => linear.is_some() || config.tied == Some(true),
        _ => false,
    };
    match config.tied {
        Some(false) if matrix.is_some() => Ok(false),
        Some(true) if !alike => {
            let error =
                "state dict: the configuration ties the linear layer to the embedding, and their weights differ";
            Err(Error::new(ErrorKind::Data, error))
        }
        _ if alike && table.is_some_and(|t| t.shape().get(1) != Some(&stack.output())) => {
            Err(Error::shape("state dict: a linear layer tied to the embedding needs an LSTM whose output is as wide"))
        }
        _ => Ok(alike),
    }
}
