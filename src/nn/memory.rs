//! Networks with a working memory: where it is, what it reads, what it refuses.

use super::{Activation, Input, Layer, Network, Port, WorkingMemory};
use crate::error::{Error, Result};
use std::collections::BTreeSet;

impl Network {
    /// Its working memory, if it has one.
    pub fn memory(&self) -> Option<&WorkingMemory> {
        self.nodes.iter().find_map(|n| if let Layer::WorkingMemory(memory) = &n.layer { Some(memory) } else { None })
    }

    /// The network with another working memory over its one output of logits, or with none.
    pub fn with_memory(&self, memory: Option<WorkingMemory>) -> Result<Self> {
        let mut network = self.clone();
        if let Some(at) = network.nodes.iter().position(|n| matches!(n.layer, Layer::WorkingMemory(_))) {
            if let Some(memory) = memory {
                network.nodes[at].layer = memory.into();
                network.signals()?;
                return Ok(network);
            }
            let refused = || Error::unsupported("a working memory that other layers read");
            if at + 1 != network.nodes.len() {
                return Err(refused());
            }
            let logits = network.nodes.pop().and_then(|n| n.inputs.get(1).copied()).ok_or_else(refused)?;
            for (_, port) in &mut network.outputs {
                if *port == Port::Node(at, 0) {
                    *port = logits;
                }
            }
        }
        let Some(memory) = memory else { return Ok(network) };
        let [(_, logits)] = network.outputs[..] else {
            return Err(Error::unsupported("a working memory: expected a network with one output, its logits"));
        };
        let read = network.memory_inputs(logits)?;
        network.outputs[0].1 = network.add(memory, &read)?[0];
        Ok(network)
    }

    /// What a working memory over `logits` reads: the last LSTM's h, the logits, and the tokens that are read.
    pub(super) fn memory_inputs(&self, logits: Port) -> Result<Vec<Port>> {
        let hidden = self.nodes.iter().rposition(|n| matches!(n.layer, Layer::Lstm(_)));
        let tokens = self.inputs.iter().position(|i| i.1 == Input::Tokens);
        match (hidden, tokens) {
            (Some(hidden), Some(tokens)) => Ok(vec![Port::Node(hidden, 0), logits, Port::Input(tokens)]),
            _ => Err(Error::unsupported("a working memory: expected a network that reads tokens by an LSTM")),
        }
    }

    /// Refuses memories of steps that masks may take away, and two of one name, which would share a ring.
    pub(super) fn check_memories(&self) -> Result<()> {
        let mut names = BTreeSet::new();
        for node in self.nodes.iter().filter(|n| matches!(n.layer, Layer::WorkingMemory(_))) {
            let [_, logits, tokens] = node.inputs[..] else { continue };
            let features = self.signal(logits)?.features().unwrap_or(0);
            let probabilities = match logits {
                Port::Node(at, _) => match &self.nodes[at].layer {
                    Layer::Dense(l) => l.activation == Activation::Softmax,
                    Layer::Activation(l) => l.activation == Activation::Softmax,
                    _ => false,
                },
                Port::Input(_) => false,
            };
            let tables = self.nodes.iter().filter(|n| n.inputs.first() == Some(&tokens));
            let mut sizes =
                tables.filter_map(|n| if let Layer::Embedding(l) = &n.layer { Some(l.vocabulary) } else { None });
            let fault = match sizes.find(|&size| size != features) {
                _ if self.masks() => "a working memory of steps that masks may leave out".to_string(),
                _ if !names.insert(&node.name) => "a working memory that is used twice".to_string(),
                _ if probabilities => "a working memory takes logits, got what a softmax gives".to_string(),
                Some(size) => {
                    format!("a working memory takes logits of the tokens that are read, {size}, got {features}")
                }
                None => continue,
            };
            return Err(Error::unsupported(fault).within(&node.name));
        }
        Ok(())
    }
}
