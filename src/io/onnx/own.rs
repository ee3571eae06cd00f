//! The networks in files that mnemon wrote: a part of such a file says which network its graph is of. It is believed
//! where writing that network gives the same graph once more, with other values alone.

use super::edges::Edges;
use super::schema::{Graph, Model, Tensor as Message, dtype};
use super::write::graph;
use crate::error::{Error, Result};
use crate::io::Imported;
use crate::nn::{Layer, Network};
use crate::params::Tensor;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What a file's part about its network is called.
pub(super) const KEY: &str = "mnemon";
/// The version of that part.
const VERSION: u64 = 1;

/// The part about a network.
pub(super) fn described(network: &Network) -> String {
    json!({ "version": VERSION, "network": network }).to_string()
}

/// Whether a network carries states from run to run: inputs and outputs of its graph, which the network has not.
pub(super) fn is_stateful(network: &Network) -> bool {
    network.nodes.iter().any(|node| match &node.layer {
        Layer::Lstm(lstm) => lstm.stateful,
        Layer::WorkingMemory(memory) => memory.stateful,
        _ => false,
    })
}

/// The network that a file says its graph is of, if it is.
pub(super) fn read(model: &Model, bytes: u64) -> Option<Imported> {
    let part = model.metadata_props.iter().find(|entry| entry.key == KEY)?;
    let read = || {
        let mut value: Value = serde_json::from_str(&part.value)
            .map_err(|e| Error::data(format!("what it says is not JSON: {e}")).caused_by(e))?;
        if value["version"].as_u64() != Some(VERSION) {
            return Err(Error::unsupported(format!("a version other than {VERSION}")));
        }
        let network: Network = serde_json::from_value(value["network"].take())
            .map_err(|e| Error::data(format!("what it says is no network: {e}")).caused_by(e))?;
        let written = model.graph.as_ref().ok_or_else(|| Error::data("there is no graph"))?;
        taken(network, written, bytes)
    };
    match read() {
        Ok(imported) => Some(imported),
        Err(e) => {
            log::debug!("onnx: the file says which network it is of, which is left aside: {e}");
            None
        }
    }
}

/// The values of a network's parameters where its graph has them.
fn taken(network: Network, written: &Graph, bytes: u64) -> Result<Imported> {
    let specs = network.parameters()?;
    let total = specs.iter().try_fold(0usize, |sum, spec| {
        spec.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).and_then(|n| sum.checked_add(n))
    });
    // No file has more values than bytes.
    let total = total.filter(|&n| n as u64 <= bytes / 4).ok_or_else(|| Error::data("it has more parameters"))?;
    // Each value another number, once from 1 on and once from `total` + 1 on: what differs is a parameter, and which.
    let numbered = |base: usize| -> Result<Graph> {
        let mut next = base as u32;
        let mut parameters = BTreeMap::new();
        for spec in &specs {
            let count: usize = spec.shape.iter().product();
            let values = (next..next + count as u32).map(f32::from_bits).collect();
            next += count as u32;
            parameters.insert(spec.name.clone(), Tensor::new(&spec.shape, values)?);
        }
        graph(&written.name, &network, &parameters, &Edges::default(), Some(bytes))
    };
    let (first, second) = (numbered(1)?, numbered(total + 1)?);
    let other = || Error::data("its graph is another");
    let same = first.node == written.node
        && first.input == written.input
        && first.output == written.output
        && written.sparse_initializer.is_empty()
        && first.initializer.len() == written.initializer.len();
    if !same {
        return Err(other());
    }
    let mut values: Vec<Option<u32>> = vec![None; total];
    let mut owners: Vec<Option<&str>> = vec![None; total];
    for ((a, b), own) in first.initializer.iter().zip(&second.initializer).zip(&written.initializer) {
        let bare = |m: &Message| Message { raw_data: Default::default(), ..m.clone() };
        if bare(a) != bare(own) || a.raw_data.len() != own.raw_data.len() {
            return Err(other());
        }
        if a.data_type != dtype::FLOAT || a.raw_data == b.raw_data {
            if a.raw_data != own.raw_data {
                return Err(other());
            }
            continue;
        }
        for ((a, b), own) in words(a).zip(words(b)).zip(words(own)) {
            if a == b {
                if a != own {
                    return Err(other());
                }
                continue;
            }
            let at = (a as usize).wrapping_sub(1);
            let place = values.get_mut(at).ok_or_else(other)?;
            if place.is_some_and(|known| known != own) {
                return Err(other());
            }
            *place = Some(own);
        }
        if let Some(at) = words(a).zip(words(b)).find(|(a, b)| a != b).map(|(a, _)| (a as usize).wrapping_sub(1)) {
            owners[at] = Some(&own.name);
        }
    }
    let mut parameters = BTreeMap::new();
    let mut sources = BTreeMap::new();
    let mut first = 0;
    for spec in &specs {
        let count: usize = spec.shape.iter().product();
        let own =
            values[first..first + count].iter().map(|word| word.map(f32::from_bits)).collect::<Option<Vec<f32>>>();
        let own = own.ok_or_else(|| Error::data(format!("it has not all of `{}`", spec.name)))?;
        let source = owners[first..first + count].iter().flatten().next().copied().unwrap_or(&spec.name);
        sources.insert(spec.name.clone(), source.to_string());
        parameters.insert(spec.name.clone(), Tensor::new(&spec.shape, own)?);
        first += count;
    }
    Ok(Imported::new("ONNX, from mnemon", network, parameters, sources))
}

/// The values of a tensor of floats, bit by bit.
fn words(tensor: &Message) -> impl Iterator<Item = u32> {
    tensor.raw_data.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word))
}
