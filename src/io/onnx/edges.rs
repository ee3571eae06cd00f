//! How a file's inputs and outputs lie over those of its network, which are batch-first.

use super::host::strides;
use super::layout::{Atom, Axis};
use crate::error::{Error, Result};
use crate::nn::{Input, Network, Port};
use crate::params::{DType, Tensor};
use std::collections::BTreeMap;

/// What a dimension of an input runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Sequences.
    Batch,
    /// Steps.
    Steps,
    /// Features of a row.
    Features,
}

/// An input of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct InputEdge {
    /// What the file, and the network, call it.
    pub name: String,
    /// What the network reads.
    pub input: Input,
    /// What each dimension is.
    pub roles: Vec<Role>,
    /// Its sizes, where the file says them.
    pub sizes: Vec<Option<usize>>,
}

/// An output of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputEdge {
    /// What the file calls it.
    pub name: String,
    /// What the network calls it.
    pub output: String,
    /// What each dimension runs over, outermost factor first.
    pub dims: Vec<Axis>,
    /// Whether it is the number of the largest feature.
    pub best: bool,
}

/// How the tensors that a file names become those that its network reads, and back. Nothing where they are the same.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Edges {
    /// Inputs.
    pub inputs: Vec<InputEdge>,
    /// Outputs.
    pub outputs: Vec<OutputEdge>,
    /// Inputs of the network that the file gives.
    pub constants: BTreeMap<String, Tensor>,
    /// Inputs of the file that are parameters: their values were taken when it was read.
    pub parameters: Vec<String>,
}

impl Edges {
    /// Whether the file's tensors are the network's own.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The inputs and outputs that are not as the file has them once they are the network's own, each in words.
    pub fn changes(&self, network: &Network) -> Result<Vec<String>> {
        let size = |n: Option<usize>| n.map_or_else(|| "?".to_string(), |n| n.to_string());
        let mut all = Vec::new();
        for (at, edge) in self.inputs.iter().enumerate() {
            let theirs = edge.roles.iter().zip(&edge.sizes).map(|(role, &n)| match role {
                Role::Batch => "B".to_string(),
                Role::Steps => "T".to_string(),
                Role::Features => size(n),
            });
            let theirs = format!("[{}]", theirs.collect::<Vec<_>>().join(", "));
            let ours = network.signal(Port::Input(at))?.to_string();
            if theirs != ours && edge.input != Input::Lengths {
                all.push(format!("input {} {theirs} as {ours}", edge.name));
            }
        }
        for edge in &self.outputs {
            let Some((_, port)) = network.outputs.iter().find(|o| o.0 == edge.output) else { continue };
            let factor = |atom: &Atom| match atom {
                Atom::Batch | Atom::Sorted(_) => "B".to_string(),
                Atom::Steps(_) => "T".to_string(),
                Atom::Features { size, .. } => size.to_string(),
            };
            let dim = |axis: &Axis| match axis[..] {
                [] => "1".to_string(),
                _ => axis.iter().map(factor).collect::<Vec<_>>().join("·"),
            };
            let theirs = format!("[{}]", edge.dims.iter().map(dim).collect::<Vec<_>>().join(", "));
            let mut ours = network.signal(*port)?.to_string();
            if edge.best {
                // The number of a feature is one.
                ours = ours.rsplit_once(',').map_or(ours.clone(), |(rest, _)| format!("{rest}]"));
            }
            if theirs != ours || edge.name != edge.output {
                all.push(format!("output {} {theirs} as {} {ours}", edge.name, edge.output));
            }
        }
        Ok(all)
    }

    /// Whether the file has an output called `name`.
    pub fn gives(&self, name: &str) -> bool {
        self.outputs.iter().any(|e| e.name == name)
    }

    /// The network's inputs, from the file's.
    pub fn arrange(&self, given: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        if self.is_empty() {
            return Ok(given.clone());
        }
        let mut all = self.constants.clone();
        for edge in &self.inputs {
            let tensor = given.get(&edge.name).ok_or_else(|| {
                let (names, got): (Vec<_>, Vec<_>) =
                    (self.inputs.iter().map(|e| &e.name).collect(), given.keys().collect());
                Error::argument(format!("model: expected the inputs {names:?}, got {got:?}"))
            })?;
            all.insert(edge.name.clone(), edge.arrange(tensor).map_err(|e| e.within(&edge.name))?);
        }
        let known = |name: &String| self.inputs.iter().any(|e| e.name == *name) || self.parameters.contains(name);
        match given.keys().find(|name| !known(name)) {
            Some(name) => Err(Error::argument(format!("model: there is no input `{name}`"))),
            None => Ok(all),
        }
    }

    /// The file's outputs, from the network's.
    pub fn restore(&self, outputs: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        if self.is_empty() {
            return Ok(outputs);
        }
        let mut all = BTreeMap::new();
        for edge in &self.outputs {
            let tensor = outputs.get(&edge.output);
            let tensor = tensor.ok_or_else(|| Error::internal(format!("the network gives no `{}`", edge.output)))?;
            all.insert(edge.name.clone(), edge.restore(tensor).map_err(|e| e.within(&edge.name))?);
        }
        Ok(all)
    }
}

/// The values at the places that each index of `shape` has by `steps`.
fn moved<V: Copy>(values: &[V], shape: &[usize], steps: &[usize]) -> Vec<V> {
    let own = strides(shape);
    let len = shape.iter().product();
    let place = |at: usize| shape.iter().zip(&own).zip(steps).map(|((n, s), step)| at / s % n * step).sum::<usize>();
    (0..len).map(|at| values[place(at)]).collect()
}

impl InputEdge {
    fn arrange(&self, tensor: &Tensor) -> Result<Tensor> {
        let shape = tensor.shape();
        let fits = shape.len() == self.sizes.len()
            && shape.iter().zip(&self.sizes).all(|(&n, wanted)| n > 0 && wanted.is_none_or(|w| w == n));
        if !fits {
            let sizes: Vec<String> =
                self.sizes.iter().map(|s| s.map_or_else(|| "any".to_string(), |n| n.to_string())).collect();
            return Err(Error::shape(format!("expected the sizes [{}], got {shape:?}", sizes.join(", "))));
        }
        let own = strides(shape);
        // Sequences first, then steps, then features in their order.
        let rank = |role: &Role| match role {
            Role::Batch => 0,
            Role::Steps => 1,
            Role::Features => 2,
        };
        let mut order: Vec<usize> = (0..shape.len()).collect();
        order.sort_by_key(|&at| rank(&self.roles[at]));
        let sizes: Vec<usize> = order.iter().map(|&at| shape[at]).collect();
        let steps: Vec<usize> = order.iter().map(|&at| own[at]).collect();
        let count = |role: Role| -> usize {
            self.roles.iter().zip(shape).filter(|(r, _)| **r == role).map(|(_, &n)| n).product()
        };
        let (batch, time, features) = (count(Role::Batch), count(Role::Steps), count(Role::Features));
        let target = match self.input {
            Input::Features(_) => vec![batch, time, features],
            Input::Rows(_) => vec![batch, features],
            Input::Tokens => vec![batch, time],
            Input::Lengths => vec![batch],
        };
        match tensor.dtype() {
            DType::F32 => Tensor::new(&target, moved(tensor.f32s()?, &sizes, &steps)),
            DType::U32 => Tensor::from_u32(&target, moved(tensor.u32s()?, &sizes, &steps)),
        }
    }
}

impl OutputEdge {
    fn restore(&self, tensor: &Tensor) -> Result<Tensor> {
        let (batch, time, features) = match *tensor.shape() {
            [batch, time, features] => (batch, time, features),
            [batch, features] => (batch, 1, features),
            ref other => return Err(Error::internal(format!("an output of shape {other:?}"))),
        };
        let atoms: Vec<Atom> = self.dims.iter().flatten().copied().collect();
        let row = if self.best { 1 } else { features };
        let size = |atom: Atom| match atom {
            Atom::Batch | Atom::Sorted(_) => batch,
            Atom::Steps(_) => time,
            Atom::Features { size, .. } => size,
        };
        let sizes: Vec<usize> = atoms.iter().map(|&a| size(a)).collect();
        let steps: Vec<usize> = atoms
            .iter()
            .map(|&atom| match atom {
                Atom::Batch | Atom::Sorted(_) => time * row,
                Atom::Steps(_) => row,
                Atom::Features { stride, .. } => stride,
            })
            .collect();
        let whole: usize = sizes.iter().product();
        if whole != batch * time * row {
            return Err(Error::internal(format!("{whole} values of an output of shape {:?}", tensor.shape())));
        }
        let shape: Vec<usize> = self.dims.iter().map(|dim| dim.iter().map(|&a| size(a)).product()).collect();
        let values = tensor.f32s()?;
        if self.best {
            // The first of equals, as NumPy has it.
            let best =
                |row: &[f32]| (0..row.len()).fold(0, |best, at| if row[at] > row[best] { at } else { best }) as u32;
            let numbers: Vec<u32> = values.chunks_exact(features.max(1)).map(best).collect();
            return Tensor::from_u32(&shape, moved(&numbers, &sizes, &steps));
        }
        Tensor::new(&shape, moved(values, &sizes, &steps))
    }
}
