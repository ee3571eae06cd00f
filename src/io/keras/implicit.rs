//! Masks that layers pass on to one another with no word of it in the file, as those of Keras 2 do.

use super::model::{Reader, takes_mask};
use crate::error::{Error, Result};
use crate::nn::{Fill, Layer, Node, Port};

impl Reader<'_> {
    /// Takes away the masks of tokens that no layer reads, because those that do not pass them on have no use for them:
    /// Keras lets these see all steps.
    pub(super) fn drop_unread_masks(&mut self) -> Result<()> {
        self.network.change(|network| {
            Self::drop_masks(&mut network.nodes);
            Ok(())
        })
    }

    fn drop_masks(nodes: &mut [Node]) {
        for at in 0..nodes.len() {
            if !matches!(&nodes[at].layer, Layer::Embedding(l) if l.mask_zero) {
                continue;
            }
            let mut carries = vec![false; nodes.len()];
            carries[at] = true;
            let (mut read, mut dropped) = (false, false);
            for next in at + 1..nodes.len() {
                let carried = |port: &Port| matches!(*port, Port::Node(from, _) if carries[from]);
                if !nodes[next].inputs.iter().any(carried) {
                    continue;
                }
                match &nodes[next].layer {
                    layer if takes_mask(layer) || matches!(layer, Layer::Attention(_)) => read = true,
                    Layer::Dense(_) | Layer::Dropout(_) | Layer::Activation(_) => carries[next] = true,
                    Layer::LayerNormalization(_) | Layer::Merge(_) => carries[next] = true,
                    _ => dropped = true,
                }
            }
            match &mut nodes[at].layer {
                Layer::Embedding(l) if dropped && !read => l.mask_zero = false,
                _ => {}
            }
        }
    }

    /// Refuses a layer that reads steps that a mask leaves out beside others: what Keras makes of the two is not known
    /// here.
    pub(super) fn check_implicit_masks(&self) -> Result<()> {
        let fills = self.network.fills()?;
        for node in self.network.nodes.iter().filter(|n| takes_mask(&n.layer) || matches!(n.layer, Layer::Attention(_)))
        {
            let mixed = |port: &Port| matches!(*port, Port::Node(at, _) if fills[at] == Fill::Mixed);
            if node.inputs.iter().any(mixed) {
                let error = format!("keras: {}: masks of several layers that are joined are not supported", node.name);
                return Err(Error::unsupported(error));
            }
        }
        Ok(())
    }
}
