//! Steps that a mask leaves out, by the layers of a network: what each value holds there, as Keras has it.

use super::{Layer, Network, PoolingKind, Port};
use crate::error::{Error, Result};

/// What a value is at the steps that its mask leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// It has no mask.
    None,
    /// Computed from what the caller gave there.
    Own,
    /// The output of an LSTM at the last kept step, or zero before the first.
    Repeat,
    /// Zero.
    Zero,
    /// A function of [`Self::Repeat`].
    OfRepeat,
    /// A function of zeros.
    OfZero,
    /// Different kinds together.
    Mixed,
}

/// The input of a program that says, `[B, 1]`, which sequences of a time axis have a masked step at which a value of this
/// fill is zero.
pub fn zeros_input(axis: u8, fill: Fill) -> Option<String> {
    match fill {
        Fill::Repeat => Some(format!("masked.{axis}.before")),
        Fill::Zero => Some(format!("masked.{axis}")),
        _ => None,
    }
}

impl Fill {
    /// What a function of each step makes of it.
    fn through(self) -> Self {
        match self {
            Self::Repeat => Self::OfRepeat,
            Self::Zero => Self::OfZero,
            other => other,
        }
    }
}

impl Layer {
    /// Whether it leaves out steps by their values.
    pub(super) fn masks(&self) -> bool {
        match self {
            Self::Embedding(l) => l.mask_zero,
            Self::Masking(_) => true,
            _ => false,
        }
    }
}

impl Network {
    /// What masked steps hold in what comes from `port`, from those of nodes; a final state has no step.
    pub(super) fn fill_of(&self, all: &[Fill], port: Port) -> Fill {
        match port {
            Port::Node(at, _) if self.state_part(port).is_none() => all.get(at).copied().unwrap_or(Fill::None),
            _ => Fill::None,
        }
    }

    /// Whether the network leaves out steps by their values.
    pub fn masks(&self) -> bool {
        self.nodes.iter().any(|n| n.layer.masks())
    }

    /// What masked steps hold in what each node gives first, or which layer has no answer.
    pub fn fills(&self) -> Result<Vec<Fill>> {
        let mut all: Vec<Fill> = Vec::new();
        for node in &self.nodes {
            let read: Vec<Fill> = node.inputs.iter().map(|&p| self.fill_of(&all, p)).collect();
            let first = read.first().copied().unwrap_or(Fill::None);
            all.push(match &node.layer {
                Layer::Embedding(l) if l.mask_zero => Fill::Own,
                Layer::Masking(_) => Fill::Own,
                Layer::Embedding(_) | Layer::RepeatVector(_) => Fill::None,
                // Keras lets these see the steps that a mask leaves out, which are not packed.
                Layer::Conv1D(_) | Layer::Pooling1D(_) | Layer::Flatten(_) | Layer::Reshape(_) | Layer::Permute(_) => {
                    if first != Fill::None {
                        let error = format!("a {} over masked steps is not supported", node.layer.class());
                        return Err(Error::unsupported(error).within(&node.name));
                    }
                    Fill::None
                }
                Layer::Lstm(_) if first == Fill::None => Fill::None,
                // A state of a node has no mask; only the signal of an output tells which it is.
                Layer::Lstm(l) if l.return_sequences && l.zero_output_for_mask => Fill::Zero,
                Layer::Lstm(l) if l.return_sequences => Fill::Repeat,
                Layer::Lstm(_) => Fill::None,
                // Keras takes the largest over masked steps too: repeated outputs change nothing, zeros may.
                Layer::Pooling(l)
                    if l.kind == PoolingKind::Max && !matches!(first, Fill::None | Fill::Repeat | Fill::Zero) =>
                {
                    let error = "the largest over masked steps of other than an LSTM's outputs is not supported";
                    return Err(Error::unsupported(error).within(&node.name));
                }
                Layer::Pooling(_) => Fill::None,
                // Keras gives zeros for queries that a mask leaves out, and lets nothing see such keys.
                Layer::Attention(_) if first == Fill::None => Fill::None,
                Layer::Attention(_) => Fill::Zero,
                // Where steps may be left out there is none.
                Layer::WorkingMemory(_) => Fill::None,
                Layer::Along(_) | Layer::Step(_) | Layer::TimeSoftmax(_) | Layer::Flip(_) | Layer::Cropping1D(_) => {
                    if read.iter().any(|&r| r != Fill::None) {
                        let error = format!("a {} over masked steps is not supported", node.layer.class());
                        return Err(Error::unsupported(error).within(&node.name));
                    }
                    Fill::None
                }
                Layer::Merge(_) | Layer::Formula(_) if read.iter().all(|&r| r == first) => first.through(),
                Layer::Merge(_) | Layer::Formula(_) => Fill::Mixed,
                Layer::Dense(_)
                | Layer::Dropout(_)
                | Layer::Activation(_)
                | Layer::LayerNormalization(_)
                | Layer::Columns(_)
                | Layer::FeatureSum(_)
                | Layer::LogSoftmax(_) => first.through(),
            });
        }
        Ok(all)
    }

    /// What masked steps hold in each of the network's outputs.
    pub fn output_fills(&self) -> Result<Vec<Fill>> {
        let all = self.fills()?;
        Ok(self.outputs.iter().map(|o| self.fill_of(&all, o.1)).collect())
    }
}
