//! What the dimensions of a graph's inputs are: each way that there is, until the graph makes sense.
//!
//! A file does not say which dimension of an input runs over sequences and which over steps; its LSTMs do. Whatever else
//! a graph does comes out the same either way, so the first way in which all of it can be read is right.

use super::edges::{Edges, InputEdge, OutputEdge, Role};
use super::host::Host;
use super::int::{Int, Symbol};
use super::layout::{Atom, Axis, Kind, Lifted};
use super::lower::Lower;
use super::moves::as_output;
use super::schema::{self, dtype};
use super::tensor::Reader;
use super::value::Val;
use crate::error::{Error, Result};
use crate::io::Imported;
use crate::nn::{Input, Port};
use crate::params::{DType, Tensor};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The most ways that are tried.
const WAYS: usize = 1 << 12;
/// The most nodes that are read in all ways together.
const NODES: usize = 1 << 15;

/// A size of an input.
#[derive(Debug, Clone, PartialEq)]
enum Size {
    Known(usize),
    /// Of one size wherever it has this name.
    Named(String),
    Any,
}

impl Size {
    fn known(&self) -> Option<usize> {
        if let Self::Known(n) = self { Some(*n) } else { None }
    }
}

/// An input of the graph.
struct Given {
    name: String,
    float: bool,
    /// Whether it says how long sequences are.
    lengths: bool,
    sizes: Vec<Size>,
}

/// What is known of a graph before its dimensions are.
struct Facts<'m> {
    uses: HashMap<&'m str, usize>,
    vocabularies: HashMap<&'m str, usize>,
    /// Inputs that are weights.
    weights: HashSet<&'m str>,
    /// Inputs, and initialisers, that say how long sequences are.
    lengths: HashSet<&'m str>,
}

/// The layers of a model, by the first way to read its inputs that makes sense of it.
pub(super) fn read(
    model: &schema::Model,
    reader: &Reader,
    bytes: u64,
    given: Option<&BTreeMap<String, Tensor>>,
) -> Result<Imported> {
    let graph = model.graph.as_ref().ok_or_else(|| Error::data("expected a graph, there is none"))?;
    let version = Lower::version(&model.opset_import)?;
    if let Some(domain) = model.opset_import.iter().find(|o| !super::lower::is_own(&o.domain)).map(|o| &o.domain) {
        log::debug!("onnx: operators of `{domain}` are known only where the file defines them");
    }
    if !graph.sparse_initializer.is_empty() {
        return Err(Error::unsupported("sparse tensors"));
    }
    let facts = facts(graph);
    let mut values = HashMap::new();
    for tensor in &graph.initializer {
        values.insert(tensor.name.clone(), Val::from(reader.host(tensor)?));
    }
    let mut inputs = Vec::new();
    let mut parameters = Vec::new();
    for info in graph.input.iter().filter(|i| !values.contains_key(&i.name)).collect::<Vec<_>>() {
        let input = input(info, facts.lengths.contains(info.name.as_str())).map_err(|e| e.within(&info.name))?;
        if facts.weights.contains(info.name.as_str()) {
            let host = weight(&input, given).map_err(|e| e.within(&info.name))?;
            values.insert(info.name.clone(), host.into());
            parameters.push(info.name.clone());
        } else {
            inputs.push(input);
        }
    }
    let constant_lengths = facts.lengths.iter().copied().filter(|name| {
        matches!(values.get(*name), Some(Val::Host(_))) && graph.initializer.iter().any(|t| t.name == **name)
    });
    let mut constant_lengths: Vec<String> = constant_lengths.map(str::to_string).collect();
    constant_lengths.sort();
    let search = Search { model, graph, version, reader, bytes, facts: &facts, values, constant_lengths };
    let result = search.run(&inputs);
    let result = match (result, given) {
        (Err(first), Some(given)) => {
            // Shapes that cannot be followed for any sizes may be for these.
            let bound = inputs.iter().map(|i| bind(i, given)).collect::<Option<Vec<_>>>();
            bound.map_or(Err(first), |bound| search.run(&bound))
        }
        (result, _) => result,
    };
    let mut imported = result?;
    imported.edges.parameters = parameters;
    Ok(imported)
}

fn facts(graph: &schema::Graph) -> Facts<'_> {
    let mut uses: HashMap<&str, usize> = HashMap::new();
    let mut makers: HashMap<&str, &schema::Node> = HashMap::new();
    count_uses(graph, &mut uses);
    for node in &graph.node {
        makers.extend(node.output.iter().map(|name| (name.as_str(), node)));
    }
    let given = graph.input.iter().map(|i| i.name.as_str()).chain(graph.initializer.iter().map(|t| t.name.as_str()));
    let given: HashSet<&str> = given.filter(|name| !name.is_empty()).collect();
    let (mut weights, mut lengths, mut vocabularies) = (HashSet::new(), HashSet::new(), HashMap::new());
    for node in &graph.node {
        match node.op_type.as_str() {
            "LSTM" => {
                let from = |at: usize| node.input.get(at).map(|n| origin(&makers, n)).filter(|n| given.contains(n));
                weights.extend([1, 2, 3, 7].into_iter().filter_map(from));
                lengths.extend(from(4));
            }
            "Gather" => {
                let table = node.input.first().and_then(|n| graph.initializer.iter().find(|t| t.name == *n));
                let rows = table.and_then(|t| t.dims.first()).and_then(|&n| usize::try_from(n).ok());
                if let (Some(rows), Some(tokens)) = (rows, node.input.get(1).map(|n| origin(&makers, n))) {
                    vocabularies.insert(tokens, rows);
                }
            }
            _ => {}
        }
    }
    Facts { uses, vocabularies, weights, lengths }
}

/// How often each name is read, in branches too.
fn count_uses<'m>(graph: &'m schema::Graph, uses: &mut HashMap<&'m str, usize>) {
    for node in &graph.node {
        for name in &node.input {
            *uses.entry(name).or_default() += 1;
        }
        for branch in node.attribute.iter().filter_map(|a| a.g.as_ref()) {
            count_uses(branch, uses);
        }
    }
    for output in &graph.output {
        *uses.entry(&output.name).or_default() += 1;
    }
}

/// What a value is, but for casts.
fn origin<'m>(makers: &HashMap<&'m str, &'m schema::Node>, mut name: &'m str) -> &'m str {
    for _ in 0..8 {
        match makers.get(name) {
            Some(node) if matches!(node.op_type.as_str(), "Cast" | "Identity") && !node.input.is_empty() => {
                name = &node.input[0];
            }
            _ => break,
        }
    }
    name
}

fn input(info: &schema::ValueInfo, lengths: bool) -> Result<Given> {
    let kind = info.kind.as_ref().and_then(|k| k.tensor.as_ref());
    let kind = kind.ok_or_else(|| Error::unsupported("an input that is no tensor"))?;
    let float = match kind.elem_type {
        dtype::FLOAT | dtype::DOUBLE | dtype::FLOAT16 | dtype::BFLOAT16 => true,
        dtype::INT32
        | dtype::INT64
        | dtype::UINT32
        | dtype::UINT64
        | dtype::INT16
        | dtype::INT8
        | dtype::UINT8
        | dtype::UINT16 => false,
        other => return Err(Error::unsupported(format!("an input of type {other}"))),
    };
    let shape = kind.shape.as_ref().ok_or_else(|| Error::unsupported("an input of any number of dimensions"))?;
    let sizes = shape.dim.iter().map(|dim| match (dim.value, dim.param.as_deref()) {
        (Some(n), _) if n > 0 => Size::Known(usize::try_from(n).unwrap_or(usize::MAX)),
        (_, Some(name)) if !name.is_empty() => Size::Named(name.to_string()),
        _ => Size::Any,
    });
    let sizes: Vec<Size> = sizes.collect();
    if lengths && (float || sizes.len() != 1) {
        return Err(Error::shape("lengths of sequences that are not one dimension of integers"));
    }
    Ok(Given { name: info.name.clone(), float, lengths, sizes })
}

/// The values of a weight that a run gives.
fn weight(input: &Given, given: Option<&BTreeMap<String, Tensor>>) -> Result<Host> {
    let shape = input.sizes.iter().map(Size::known).collect::<Option<Vec<usize>>>();
    match (given.and_then(|g| g.get(&input.name)), shape) {
        (Some(tensor), shape) => {
            if let Some(shape) = shape.filter(|s| s != tensor.shape()) {
                return Err(Error::shape(format!("expected {shape:?}, got {:?}", tensor.shape())));
            }
            Host::new(tensor.shape().to_vec(), super::host::Data::Float(tensor.f32s()?.to_vec()))
        }
        (None, _) if given.is_some() => Err(Error::argument("expected its values among the inputs, there are none")),
        (None, Some(shape)) => {
            let len = shape.iter().try_fold(1usize, |len, &n| len.checked_mul(n)).filter(|&len| len <= 1 << 26);
            let len = len.ok_or_else(|| Error::shape(format!("a weight of shape {shape:?}")))?;
            Host::new(shape, super::host::Data::Float(vec![0.0; len]))
        }
        (None, None) => Err(Error::unsupported("a weight whose sizes only a run tells")),
    }
}

/// An input with the sizes of a run.
fn bind(input: &Given, given: &BTreeMap<String, Tensor>) -> Option<Given> {
    let tensor = given.get(&input.name)?;
    let fits = tensor.shape().len() == input.sizes.len()
        && input.sizes.iter().zip(tensor.shape()).all(|(s, &n)| !matches!(s, Size::Known(m) if *m != n));
    let sizes = tensor.shape().iter().map(|&n| Size::Known(n)).collect();
    (fits && (tensor.dtype() == DType::F32) == input.float).then(|| Given { name: input.name.clone(), sizes, ..*input })
}

/// The ways to read the dimensions of an input.
fn ways(input: &Given) -> Vec<Vec<Role>> {
    use Role::{Batch as B, Features as F, Steps as T};
    let all: Vec<Vec<Role>> = match (input.float, input.sizes.len()) {
        _ if input.lengths => vec![vec![B]],
        (false, 1) => vec![vec![T], vec![B]],
        (false, 2) => vec![vec![B, T], vec![T, B]],
        (true, 1) => vec![vec![F], vec![B], vec![T]],
        (true, 2) => vec![vec![B, F], vec![B, T], vec![T, B], vec![T, F], vec![F, B], vec![F, T]],
        (true, 3) => {
            let all = [[B, T, F], [T, B, F], [F, B, F], [B, F, F], [B, F, T], [T, F, F]];
            all.into_iter().map(|way| way.to_vec()).collect()
        }
        (true, 4) => {
            let all = [[B, T, F, F], [T, B, F, F], [F, F, B, F], [B, F, F, F]];
            all.into_iter().map(|way| way.to_vec()).collect()
        }
        _ => Vec::new(),
    };
    let known =
        |way: &Vec<Role>| way.iter().zip(&input.sizes).all(|(role, size)| *role != F || matches!(size, Size::Known(_)));
    all.into_iter().filter(known).collect()
}

/// Everything that all ways have in common.
struct Search<'m> {
    model: &'m schema::Model,
    graph: &'m schema::Graph,
    version: i64,
    reader: &'m Reader,
    bytes: u64,
    facts: &'m Facts<'m>,
    values: HashMap<String, Val>,
    constant_lengths: Vec<String>,
}

/// What became of one way.
struct Failure {
    error: Error,
    /// Nodes that were read.
    done: usize,
    /// Two inputs that should have the same steps.
    together: Option<(usize, usize)>,
}

impl Search<'_> {
    fn run(&self, inputs: &[Given]) -> Result<Imported> {
        let all: Vec<Vec<Vec<Role>>> = inputs.iter().map(ways).collect();
        if let Some(at) = all.iter().position(Vec::is_empty) {
            let Given { name, sizes, .. } = &inputs[at];
            return Err(Error::unsupported(format!("the input `{name}` of the sizes {sizes:?}")));
        }
        let (mut best, mut tried, mut nodes): (Option<Failure>, usize, usize) = (None, 0, 0);
        let mut way = vec![0usize; inputs.len()];
        loop {
            let roles: Vec<&Vec<Role>> = way.iter().zip(&all).map(|(&at, ways)| &ways[at]).collect();
            if agree(inputs, &roles) {
                let mut together = Vec::new();
                loop {
                    let failure = match self.attempt(inputs, &roles, &together) {
                        Ok(imported) => return Ok(imported),
                        Err(failure) => failure,
                    };
                    tried += 1;
                    nodes += failure.done + 1;
                    let more = failure.together.filter(|pair| !together.contains(pair));
                    if best.as_ref().is_none_or(|b| b.done < failure.done) {
                        best = Some(failure);
                    }
                    match more {
                        Some(pair) if together.len() < inputs.len() => together.push(pair),
                        _ => break,
                    }
                }
            }
            // The next way, the last input's first.
            let next = (0..way.len()).rev().find(|&at| way[at] + 1 < all[at].len());
            let Some(at) = next.filter(|_| tried < WAYS && nodes < NODES) else { break };
            way[at] += 1;
            way[at + 1..].fill(0);
        }
        Err(best.map_or_else(|| Error::unsupported("inputs whose sizes do not go together"), |b| b.error))
    }

    fn attempt(
        &self,
        inputs: &[Given],
        roles: &[&Vec<Role>],
        together: &[(usize, usize)],
    ) -> std::result::Result<Imported, Failure> {
        let (uses, vocabularies) = (&self.facts.uses, &self.facts.vocabularies);
        let mut lower = Lower::new(self.model, self.reader, uses, vocabularies, self.bytes, self.values.clone());
        self.lowered(&mut lower, inputs, roles, together).map_err(|error| Failure {
            error,
            done: lower.done,
            together: lower.together,
        })
    }

    fn lowered(
        &self,
        lower: &mut Lower<'_>,
        inputs: &[Given],
        roles: &[&Vec<Role>],
        together: &[(usize, usize)],
    ) -> Result<Imported> {
        let mut edges = Edges { inputs: self.inputs(lower, inputs, roles, together)?, ..Edges::default() };
        lower.nodes(&self.graph.node, self.version)?;
        for (at, output) in self.graph.output.iter().enumerate() {
            let name = &output.name;
            let value = lower.find(name).cloned();
            let value = value.ok_or_else(|| Error::data(format!("nothing gives the output `{name}`")))?;
            let (x, dims, best) = match value {
                Val::Best { of, dims } => (as_output(lower, &of)?, dims, true),
                other => {
                    let x = lower.lifted(&other).map_err(|e| e.within(format!("the output `{name}`")))?;
                    let x = as_output(lower, &x)?;
                    let dims = x.dims.clone();
                    (x, dims, false)
                }
            };
            let plain = !name.contains('[') && lower.network.outputs.iter().all(|o| o.0 != *name);
            let inner = if plain { name.clone() } else { format!("output_{at}") };
            lower.network.output(&inner, x.port);
            edges.outputs.push(OutputEdge { name: name.clone(), output: inner, dims, best });
        }
        if edges.outputs.is_empty() {
            return Err(Error::data("expected at least one output"));
        }
        edges.constants = std::mem::take(&mut lower.constants);
        let title = match self.model.producer_name.as_str() {
            "" => "ONNX".to_string(),
            name => format!("ONNX, from {name} {}", self.model.producer_version).trim_end().to_string(),
        };
        let network = std::mem::take(&mut lower.network);
        let (parameters, sources) = (std::mem::take(&mut lower.parameters), std::mem::take(&mut lower.sources));
        Ok(Imported { edges, ..Imported::new(&title, network, parameters, sources) })
    }

    /// The inputs of the network.
    fn inputs(
        &self,
        lower: &mut Lower<'_>,
        inputs: &[Given],
        roles: &[&Vec<Role>],
        together: &[(usize, usize)],
    ) -> Result<Vec<InputEdge>> {
        // How many sequences there are: one, where an input has no dimension for them.
        for (given, roles) in inputs.iter().zip(roles) {
            match roles.iter().position(|r| *r == Role::Batch) {
                None => lower.sizes.batch = Int::ONE,
                Some(at) => {
                    if let Some(n) = given.sizes[at].known() {
                        lower.sizes.batch = Int::Known(n as i64);
                    }
                }
            }
        }
        let mut edges = Vec::new();
        for (given, roles) in inputs.iter().zip(roles) {
            let features: usize = given
                .sizes
                .iter()
                .zip(*roles)
                .filter(|(_, r)| **r == Role::Features)
                .try_fold(1usize, |n, (s, _)| n.checked_mul(s.known()?))
                .ok_or_else(|| Error::shape(format!("`{}`: sizes that are too large", given.name)))?;
            let has_steps = roles.contains(&Role::Steps);
            let input = match (given.float, has_steps) {
                _ if given.lengths => Input::Lengths,
                (true, true) => Input::Features(features),
                (true, false) => Input::Rows(features),
                (false, _) => Input::Tokens,
            };
            lower.network.input(&given.name, input);
            edges.push(InputEdge {
                name: given.name.clone(),
                input,
                roles: roles.to_vec(),
                sizes: given.sizes.iter().map(Size::known).collect(),
            });
        }
        for name in &self.constant_lengths {
            let Some(Val::Host(host)) = self.values.get(name) else { continue };
            let words = host.numbers()?.into_iter().map(|n| u32::try_from(n).ok()).collect::<Option<Vec<u32>>>();
            let words = words.ok_or_else(|| Error::data(format!("`{name}`: lengths below 0")))?;
            if lower.sizes.batch != Int::Known(words.len() as i64) {
                let (got, batch) = (words.len(), &lower.sizes.batch);
                return Err(Error::unsupported(format!("`{name}`: lengths of {got} sequences, of {batch}")));
            }
            let port = lower.network.input(name, Input::Lengths);
            lower.constant_lengths.insert(name.clone(), port);
            lower.constants.insert(name.clone(), Tensor::from_u32(&[words.len()], words)?);
        }
        for &(later, earlier) in together {
            lower.network.align(Port::Input(later), Port::Input(earlier))?;
        }
        for (at, (given, roles)) in inputs.iter().zip(roles).enumerate() {
            let count = steps(given, roles, edges[at].input);
            if let Some(count) = count {
                lower.network.fix_steps(Port::Input(at), count)?;
            }
        }
        let axes = lower.network.input_axes()?;
        for (at, (given, roles)) in inputs.iter().zip(roles).enumerate() {
            let count = steps(given, roles, edges[at].input);
            if let (Some(axis), false) = (axes[at], given.lengths) {
                let size = count.map_or_else(|| Symbol::Steps(axis).into(), |n| Int::Known(n as i64));
                lower.sizes.steps.insert(axis, size);
            }
        }
        for (at, (given, roles)) in inputs.iter().zip(roles).enumerate() {
            let value = lifted(lower, Port::Input(at), (given, roles), axes[at], edges[at].input)?;
            lower.define(&given.name, value.into());
        }
        Ok(edges)
    }
}

/// How many steps an input has, where that is known; tokens without steps are one.
fn steps(given: &Given, roles: &[Role], input: Input) -> Option<usize> {
    match (roles.iter().position(|r| *r == Role::Steps), input) {
        (Some(dim), _) => given.sizes[dim].known(),
        (None, Input::Tokens) => Some(1),
        (None, _) => None,
    }
}

fn lifted(
    lower: &Lower<'_>,
    port: Port,
    (given, roles): (&Given, &[Role]),
    axis: Option<u8>,
    input: Input,
) -> Result<Lifted> {
    let (kind, features) = match input {
        Input::Lengths => (Kind::Lengths, 1),
        Input::Tokens => (Kind::Tokens, 1),
        Input::Features(n) | Input::Rows(n) => (Kind::Float, n),
    };
    let mut stride = features;
    let mut dims: Vec<Axis> = Vec::new();
    for (role, size) in roles.iter().zip(&given.sizes) {
        dims.push(match (role, size, axis) {
            (Role::Batch, ..) => lower.sizes.as_axis(Atom::Batch),
            (Role::Steps, _, Some(axis)) => lower.sizes.as_axis(Atom::Steps(axis)),
            (Role::Features, &Size::Known(size), _) => {
                stride /= size;
                vec![Atom::Features { size, stride }]
            }
            _ => return Err(Error::internal("a dimension without its axis")),
        });
    }
    lower.lift(port, kind, dims)
}

/// Whether dimensions of one size, or name, are the same wherever they are sequences.
fn agree(inputs: &[Given], roles: &[&Vec<Role>]) -> bool {
    let (mut names, mut batch): (HashMap<&str, Role>, Option<usize>) = (HashMap::new(), None);
    for (given, roles) in inputs.iter().zip(roles) {
        if !roles.contains(&Role::Batch) && batch.replace(1).is_some_and(|n| n != 1) {
            return false;
        }
        for (size, &role) in given.sizes.iter().zip(*roles) {
            match size {
                Size::Named(name) if names.insert(name, role).is_some_and(|other| other != role) => return false,
                Size::Known(n) if role == Role::Batch && batch.replace(*n).is_some_and(|m| m != *n) => return false,
                Size::Known(0) => return false,
                _ => {}
            }
        }
    }
    true
}
