//! Networks over live streams: what a step gives needs that step and what is carried, and nothing that comes later.

use super::{Layer, Lstm, Network, Port, Signal};
use crate::config::Direction;
use crate::error::{Error, Result};
use std::collections::BTreeSet;

impl Network {
    /// The network as it runs on live streams. It reads one sequence, its LSTMs carry their states, and it gives a row at each
    /// step: where an LSTM gives its last h alone, what the network would give if the stream ended there. Outputs that are
    /// final states are left out. An error names the layer that needs more than the steps so far.
    pub fn streaming(&self) -> Result<Self> {
        let refused = |what: &str| Error::unsupported(format!("streams: {what}"));
        let [(_, input)] = &self.inputs[..] else {
            return Err(refused(&format!("expected a network with one input, got {}", self.inputs.len())));
        };
        if let super::Input::Rows(_) | super::Input::Lengths = input {
            return Err(refused("expected an input of steps, got one value a sample"));
        }
        let mut names = BTreeSet::new();
        let mut network = self.clone();
        network.steps.clear();
        let signals = self.signals()?;
        for (at, node) in network.nodes.iter_mut().enumerate() {
            let reads = node.inputs.iter().map(|&port| self.state_part(port)).find_map(|part| part);
            let steps = signals[at].first().is_some_and(|s| matches!(s, Signal::Sequence { .. }));
            let fault = match &mut node.layer {
                _ if reads.is_some() => Some("reads a final state, which a stream has at its end".to_string()),
                Layer::Lstm(lstm) if names.insert(node.name.clone()) => carry(lstm, node.inputs.len() > 1),
                Layer::Lstm(_) => Some("is used twice, each with a state of its own".to_string()),
                Layer::WorkingMemory(memory) => {
                    memory.stateful = true;
                    None
                }
                Layer::Embedding(embedding) => {
                    embedding.mask_zero = false;
                    None
                }
                Layer::Dense(_)
                | Layer::Dropout(_)
                | Layer::Activation(_)
                | Layer::LayerNormalization(_)
                | Layer::Merge(_)
                | Layer::Columns(_)
                | Layer::FeatureSum(_)
                | Layer::LogSoftmax(_)
                | Layer::Formula(_) => None,
                // One row a sample that stays one.
                Layer::Flatten(_) if !steps && node.inputs.iter().all(|&p| self.is_row(p)) => {
                    node.layer = Layer::Activation(super::Activate::new(super::Activation::Linear));
                    None
                }
                other => Some(format!("({}) sees other steps than those so far", other.class())),
            };
            if let Some(fault) = fault {
                return Err(refused(&format!("`{}` {fault}", node.name)));
            }
        }
        network.outputs.retain(|(_, port)| self.state_part(*port).is_none());
        if network.outputs.is_empty() {
            return Err(refused("the network gives nothing at each step"));
        }
        // What each step gives is one value, whatever the layers made of it before.
        network.signals()?;
        Ok(network)
    }

    fn is_row(&self, port: Port) -> bool {
        self.signal(port).is_ok_and(|s| matches!(s, Signal::Rows { .. }))
    }

    /// Whether the number 0 stands for no step at all where the network reads integers.
    pub fn pads_with_zero(&self) -> bool {
        self.nodes.iter().any(|n| matches!(&n.layer, Layer::Embedding(l) if l.mask_zero))
    }
}

/// Makes a layer carry its state and give all of h, or says why it cannot.
fn carry(lstm: &mut Lstm, begins: bool) -> Option<String> {
    if lstm.direction != Direction::Forward || lstm.go_backwards {
        return Some("reads from the last step".to_string());
    }
    if begins {
        return Some("begins from a state that another layer gives".to_string());
    }
    (lstm.stateful, lstm.return_sequences) = (true, true);
    None
}
