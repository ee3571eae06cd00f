//! What a file takes once it is decoded: messages of a few bytes each become structures of hundreds.

use super::schema::{
    Attribute, Dimension, Entry, Function, Graph, Node, OperatorSet, Sparse, Tensor, TensorShape, TensorType, Type,
    ValueInfo,
};
use crate::error::{Error, Result};
use prost::encoding::{WireType, decode_key, decode_varint};

/// How many bytes a decoded file may take for each of its own: its smallest real messages, such as sizes of inputs, take
/// some twenty for each.
const FACTOR: u64 = 32;
/// What any file may take.
const ALLOWANCE: u64 = 1 << 16;
/// How deep messages may be in each other, which is what the decoder allows.
const DEPTH: usize = 100;

#[derive(Clone, Copy)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    ValueInfo,
    Type,
    TensorType,
    TensorShape,
    Function,
    /// One that holds no other.
    Leaf,
}

/// What a field that has a length is, and how many bytes of memory each of it takes beside those in it.
fn field(message: Message, number: u32) -> Option<(Message, usize)> {
    use Message as M;
    let text = Some((M::Leaf, size_of::<String>()));
    match (message, number) {
        (M::Model, 7) => Some((M::Graph, size_of::<Graph>())),
        (M::Model, 8) | (M::Function, 9) => Some((M::Leaf, size_of::<OperatorSet>())),
        (M::Model, 25) => Some((M::Function, size_of::<Function>())),
        (M::Graph, 1) | (M::Function, 7) => Some((M::Node, size_of::<Node>())),
        (M::Graph, 5) | (M::Attribute, 5) => Some((M::Tensor, size_of::<Tensor>())),
        (M::Graph, 11 | 12) => Some((M::ValueInfo, size_of::<ValueInfo>())),
        (M::Graph, 15) => Some((M::Leaf, size_of::<Sparse>())),
        (M::Node, 5) | (M::Function, 11) => Some((M::Attribute, size_of::<Attribute>())),
        (M::Attribute, 6) => Some((M::Graph, size_of::<Graph>())),
        (M::Model, 14) | (M::Tensor, 13) => Some((M::Leaf, size_of::<Entry>())),
        (M::ValueInfo, 2) => Some((M::Type, size_of::<Type>())),
        (M::Type, 1) => Some((M::TensorType, size_of::<TensorType>())),
        (M::TensorType, 2) => Some((M::TensorShape, size_of::<TensorShape>())),
        (M::TensorShape, 1) => Some((M::Leaf, size_of::<Dimension>())),
        (M::Node, 1 | 2) | (M::Function, 4 | 5) | (M::Attribute, 9) => text,
        _ => None,
    }
}

/// Refuses a file that would take far more memory than it has bytes. What is no message is left to the decoder.
pub(super) fn check(bytes: &[u8]) -> Result<()> {
    let limit = ALLOWANCE + FACTOR * bytes.len() as u64;
    let mut left = limit;
    if walk(bytes, Message::Model, 0, &mut left) == Some(false) {
        return Err(Error::data(format!(
            "expected an ONNX model that takes at most {limit} bytes of memory, got more"
        )));
    }
    Ok(())
}

/// Whether what is left was enough; none where the bytes are no message.
fn walk(mut bytes: &[u8], message: Message, depth: usize, left: &mut u64) -> Option<bool> {
    while !bytes.is_empty() {
        let (number, wire) = decode_key(&mut bytes).ok()?;
        let len = match wire {
            WireType::Varint => {
                decode_varint(&mut bytes).ok()?;
                0
            }
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => usize::try_from(decode_varint(&mut bytes).ok()?).ok()?,
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        let (inner, rest) = bytes.split_at_checked(len)?;
        bytes = rest;
        let Some((kind, size)) = field(message, number).filter(|_| wire == WireType::LengthDelimited) else { continue };
        // A list that grows takes up to twice what is in it.
        let Some(rest) = left.checked_sub(2 * size as u64) else { return Some(false) };
        *left = rest;
        if !matches!(kind, Message::Leaf) && depth < DEPTH && !walk(inner, kind, depth + 1, left)? {
            return Some(false);
        }
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn empty_messages_by_the_thousand_are_refused_before_they_are_decoded() {
        // A graph of nodes that hold nothing, two bytes each.
        let nodes = [0x0a, 0x00].repeat(1 << 14);
        let mut file = vec![0x3a];
        prost::encoding::encode_varint(nodes.len() as u64, &mut file);
        file.extend(nodes);
        assert_eq!(check(&file).unwrap_err().kind(), ErrorKind::Data);
        assert!(check(&file[..file.len() / 2]).is_ok(), "what is cut off is the decoder's to refuse");
        assert!(check(&[]).is_ok() && check(&[0x3a, 0x00]).is_ok());
    }
}
