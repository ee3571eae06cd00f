//! What the dimensions of a graph's inputs are: each way that there is, until the graph makes sense.
//!
//! A file does not say which dimension of an input runs over sequences and which over steps; its LSTMs do. Whatever else
//! a graph does comes out the same either way, so the first way in which all of it can be read is right.

use super::edges::{Edges, InputEdge, OutputEdge, Role};
use super::facts::Facts;
use super::given::{Given, Size, agreeing, bind, input, steps, ways, weight};
use super::host::Budget;
use super::int::{Int, Symbol};
use super::layout::{Atom, Axis, Kind, Lifted};
use super::lower::Lower;
use super::moves::as_output;
use super::schema;
use super::tensor::Reader;
use super::value::Val;
use crate::error::{Error, Result};
use crate::io::Imported;
use crate::nn::{Input, Port};
use crate::params::Tensor;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The most ways that are tried.
const WAYS: usize = 1 << 12;
/// How many values of weights that are inputs may be zero because no run gives them, beside as many as the file has bytes.
const ZEROS: u64 = 1 << 20;
/// The most inputs, weights aside.
const INPUTS: usize = 1 << 8;
/// The most nodes that are read in all ways together.
const NODES: usize = 1 << 15;

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
    let facts = Facts::of(model, graph);
    let (mut values, budget) = (HashMap::new(), Budget::new(bytes + ZEROS));
    for tensor in &graph.initializer {
        if values.insert(tensor.name.clone(), Val::from(reader.host(tensor)?)).is_some() {
            return Err(Error::data(format!("the tensor `{}` is there twice", tensor.name)));
        }
    }
    let mut inputs = Vec::new();
    let mut parameters = Vec::new();
    for info in graph.input.iter().filter(|i| !values.contains_key(&i.name)).collect::<Vec<_>>() {
        let input = input(info, facts.lengths.contains(info.name.as_str())).map_err(|e| e.within(&info.name))?;
        if facts.weights.contains(info.name.as_str()) {
            let host = weight(&input, given, &budget).map_err(|e| e.within(&info.name))?;
            values.insert(info.name.clone(), host.into());
            parameters.push(info.name.clone());
        } else {
            inputs.push(input);
        }
    }
    if inputs.len() > INPUTS {
        return Err(Error::unsupported(format!("expected at most {INPUTS} inputs, got {}", inputs.len())));
    }
    let initialised: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let constant_lengths = facts.lengths.iter().copied().filter(|name| initialised.contains(name));
    let mut constant_lengths: Vec<String> = constant_lengths.map(str::to_string).collect();
    constant_lengths.sort();
    let producer = (model.producer_name.as_str(), model.producer_version.as_str());
    let search = Search { producer, graph, version, reader, bytes, facts: &facts, values, constant_lengths };
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

/// Everything that all ways have in common.
struct Search<'m> {
    /// What wrote the file, and its version.
    producer: (&'m str, &'m str),
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
            let agreeing = agreeing(inputs, &roles);
            tried += 1;
            if agreeing == inputs.len() {
                let mut together = Vec::new();
                loop {
                    let failure = match self.attempt(inputs, &roles, &together) {
                        Ok(imported) => return Ok(imported),
                        Err(failure) => failure,
                    };
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
            // The next way, the last input's first: none of those after one that does not go with those before it.
            let next = (0..way.len().min(agreeing + 1)).rev().find(|&at| way[at] + 1 < all[at].len());
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
        let mut lower = Lower::new(self.facts, self.reader, self.bytes, &self.values);
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
            if dims.iter().flatten().any(|atom| matches!(atom, Atom::Sorted(_))) {
                return Err(Error::unsupported(format!("the output `{name}` in the order of the sequences' lengths")));
            }
            let plain = !name.contains('[') && lower.network.outputs.iter().all(|o| o.0 != *name);
            let inner = if plain { name.clone() } else { format!("output_{at}") };
            lower.network.output(&inner, x.port);
            edges.outputs.push(OutputEdge { name: name.clone(), output: inner, dims, best });
        }
        if edges.outputs.is_empty() {
            return Err(Error::data("expected at least one output"));
        }
        edges.constants = std::mem::take(&mut lower.constants);
        let title = match self.producer {
            ("", _) => "ONNX".to_string(),
            (name, version) => format!("ONNX, from {name} {version}").trim_end().to_string(),
        };
        let network = std::mem::take(&mut lower.network).finish();
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
            lower.network.input(&given.name, input)?;
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
            let port = lower.network.input(name, Input::Lengths)?;
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
            lower.define(&given.name, value.into())?;
        }
        Ok(edges)
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
