//! What the values of a network are: rows, sequences on time axes, tokens.

use super::axes::Axes;
use super::layers::SIZE_LIMIT;
use super::network::{Network, Node, Port};
use super::{Attention, Embedding, Input, Layer};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::fmt;

/// What a value of a network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Integers, `[B, T]`.
    Tokens {
        /// The time axis.
        axis: u8,
    },
    /// Floats at each step, `[B, T, features]`.
    Sequence {
        /// Values a step.
        features: usize,
        /// The time axis.
        axis: u8,
        /// Whether its first step is each sequence's last: it is stored in the order of its axis all the same.
        mirrored: bool,
    },
    /// Floats, `[B, features]`.
    Rows {
        /// Values a sample.
        features: usize,
    },
}

impl Signal {
    /// Values a row; none for tokens.
    pub fn features(&self) -> Option<usize> {
        match *self {
            Self::Tokens { .. } => None,
            Self::Sequence { features, .. } | Self::Rows { features } => Some(features),
        }
    }

    /// Its time axis.
    pub fn axis(&self) -> Option<u8> {
        match *self {
            Self::Tokens { axis } | Self::Sequence { axis, .. } => Some(axis),
            Self::Rows { .. } => None,
        }
    }

    /// Whether its first step is each sequence's last.
    pub fn mirrored(&self) -> bool {
        matches!(self, Self::Sequence { mirrored: true, .. })
    }

    /// The same with other features.
    pub(super) fn with_features(self, features: usize) -> Self {
        match self {
            Self::Sequence { axis, mirrored, .. } => Self::Sequence { features, axis, mirrored },
            Self::Tokens { axis } => Self::Sequence { features, axis, mirrored: false },
            Self::Rows { .. } => Self::Rows { features },
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tokens { .. } => write!(f, "[B, T]"),
            Self::Sequence { features, mirrored: true, .. } => write!(f, "[B, T, {features}] reversed"),
            Self::Sequence { features, .. } => write!(f, "[B, T, {features}]"),
            Self::Rows { features } => write!(f, "[B, {features}]"),
        }
    }
}

/// What is known of a network's values, as far as its nodes have been placed.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// The inputs.
    pub inputs: Vec<Signal>,
    /// The outputs of each node.
    pub nodes: Vec<Vec<Signal>>,
    /// All time axes.
    pub axes: Axes,
    /// The first node of each name.
    names: HashMap<String, usize>,
}

impl Known {
    /// All of a network, or what does not fit.
    pub fn of(network: &Network) -> Result<Self> {
        let (inputs, axes) = input_signals(network)?;
        let mut known = Self { inputs, axes, ..Self::default() };
        for _ in &network.nodes {
            known.place(&network.nodes)?;
        }
        Ok(known)
    }

    /// Adds a node to the network that this is known of; gives its outputs. What does not fit changes nothing.
    pub fn add(&mut self, network: &mut Network, node: Node) -> Result<Vec<Port>> {
        let at = network.nodes.len();
        network.nodes.push(node);
        let placed = match network.nodes[at].layer.masks() && !self.axes.masked() {
            // Other nodes may then have other axes.
            true => Self::of(network).map(|all| *self = all),
            false => {
                let axes = self.axes.clone();
                self.place(&network.nodes).inspect_err(|_| self.axes = axes)
            }
        };
        match placed {
            Ok(()) => Ok((0..self.nodes[at].len()).map(|output| Port::Node(at, output)).collect()),
            Err(error) => {
                network.nodes.pop();
                Err(error)
            }
        }
    }

    /// Takes the next of `nodes`.
    fn place(&mut self, nodes: &[Node]) -> Result<()> {
        let node = &nodes[self.nodes.len()];
        let within = |e: Error| e.within(&node.name);
        let first = self.names.get(&node.name).map(|&at| &nodes[at].layer);
        if node.name.is_empty() || node.name.contains('.') || first.is_some_and(|first| !shares(first, &node.layer)) {
            return Err(Error::argument(format!(
                "network: layer names must be unique, not empty and without a dot, got `{}`",
                node.name
            )));
        }
        node.layer.validate().map_err(within)?;
        let read = node.inputs.iter().map(|&port| self.signal(port)).collect::<Result<Vec<_>>>();
        let outputs = node.layer.outputs(&read.map_err(within)?, &mut self.axes).map_err(within)?;
        if let Some(large) = outputs.iter().find(|s| s.features().is_some_and(|f| f > SIZE_LIMIT)) {
            return Err(within(Error::shape(format!("expected at most {SIZE_LIMIT} values a row, got {large}"))));
        }
        if self.axes.all().len() > usize::from(u8::MAX) {
            return Err(within(Error::unsupported(format!("more than {} time axes", u8::MAX))));
        }
        if first.is_none() {
            self.names.insert(node.name.clone(), self.nodes.len());
        }
        self.nodes.push(outputs);
        Ok(())
    }

    /// What comes from `port`.
    pub fn signal(&self, port: Port) -> Result<Signal> {
        let found = match port {
            Port::Input(at) => self.inputs.get(at).copied(),
            Port::Node(node, output) => self.nodes.get(node).and_then(|s| s.get(output)).copied(),
        };
        found.ok_or_else(|| Error::argument(format!("network: nothing comes from {port:?} here")))
    }
}

/// Whether nodes of one name may have these layers: one layer, whose shared table may mask here and not there.
fn shares(a: &Layer, b: &Layer) -> bool {
    match (a, b) {
        (Layer::Embedding(a), Layer::Embedding(b)) => a == &Embedding { mask_zero: a.mask_zero, ..b.clone() },
        (Layer::Attention(a), Layer::Attention(b)) => a == &Attention { causal: a.causal, ..b.clone() },
        (a, b) => a == b,
    }
}

/// What the inputs are; each sequence has a time axis of its own, but for those that are aligned.
pub(super) fn input_signals(network: &Network) -> Result<(Vec<Signal>, Axes)> {
    let (mut all, mut axes) = (Vec::<Signal>::with_capacity(network.inputs.len()), Axes::new(network.masks()));
    for (at, (name, input)) in network.inputs.iter().enumerate() {
        let with = network.aligned.iter().find(|a| a.0 == at).and_then(|a| all.get(a.1)?.axis());
        // Of itself, or of one that takes its steps from it.
        let own = |other: usize| other == at || network.aligned.contains(&(other, at));
        let steps = network.steps.iter().filter(|s| own(s.0)).map(|s| s.1).min();
        all.push(match *input {
            Input::Features(n) | Input::Rows(n) if !(1..=SIZE_LIMIT).contains(&n) => {
                return Err(Error::shape(format!("{name}: the input must have 1 to {SIZE_LIMIT} features, got {n}")));
            }
            _ if axes.all().len() > 128 => {
                return Err(Error::unsupported(format!("{name}: more than 128 sequences are read")));
            }
            Input::Rows(features) => Signal::Rows { features },
            Input::Features(features) => {
                let axis = with.unwrap_or_else(|| axes.give(steps));
                Signal::Sequence { features, axis, mirrored: false }
            }
            Input::Tokens | Input::Lengths => Signal::Tokens { axis: with.unwrap_or_else(|| axes.give(steps)) },
        });
    }
    Ok((all, axes))
}
