//! Steps that a mask leaves out: they are no part of their sequence where it is packed, and come back on the way out.
//!
//! As Keras has it: a masked step leaves the state of an LSTM as it was, and at that step its output is its last one, or
//! zero. What other layers give at masked steps follows from what they read there.

use crate::error::{Error, Result};
use crate::nn::{Fill, Input, Layer, Network, Port, Steps};
use crate::params::Tensor;
use crate::scheduler::Batch;
use std::collections::BTreeMap;

/// Which steps of each sequence of one time axis are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    /// All steps that there are.
    pub(super) steps: usize,
    /// Those kept, ascending; all where there is no list.
    places: Vec<Option<Vec<usize>>>,
    /// Whether a mask left them out, rather than the sequence's end.
    masked: bool,
}

impl Kept {
    pub(super) fn lengths(&self) -> Vec<usize> {
        self.places.iter().map(|p| p.as_ref().map_or(self.steps, Vec::len)).collect()
    }
}

impl Kept {
    /// For each sequence whether a value of this fill is zero at a masked step.
    pub(super) fn zeros(&self, fill: Fill) -> Vec<f32> {
        let zero = |places: &Vec<usize>| match fill {
            Fill::Repeat => places.first() != Some(&0),
            _ => true,
        };
        self.places.iter().map(|p| f32::from(self.masked && p.as_ref().is_some_and(zero))).collect()
    }
}

/// The layers between LSTMs and an output that is a function of each of their steps, over rows instead of sequences.
pub(super) fn tail(network: &Network, output: usize) -> Result<Network> {
    let (mut tail, mut places) = (Network::default(), BTreeMap::new());
    let port = network.outputs[output].1;
    let at = tail_port(network, port, &mut tail, &mut places)?;
    tail.output("row", at);
    Ok(tail)
}

fn tail_port(network: &Network, port: Port, tail: &mut Network, places: &mut BTreeMap<usize, Port>) -> Result<Port> {
    let Port::Node(at, _) = port else { return Err(Error::internal("an output without an LSTM before it")) };
    if let Some(&known) = places.get(&at) {
        return Ok(known);
    }
    let node = &network.nodes[at];
    let here = if let Layer::Lstm(_) | Layer::Attention(_) = node.layer {
        let features = network.signal(port)?.features().unwrap_or(0);
        tail.input(&format!("{at}"), Input::Rows(features))
    } else {
        let read = node.inputs.iter().map(|&p| tail_port(network, p, tail, places)).collect::<Result<Vec<_>>>()?;
        tail.add_named(&node.name, node.layer.clone(), &read)?[0]
    };
    places.insert(at, here);
    Ok(here)
}

/// The masks of the inputs' time axes, from their values.
pub(super) fn kept(
    network: &Network,
    inputs: &[(&str, Input, &Tensor)],
    lengths: Option<&Tensor>,
) -> Result<Vec<Kept>> {
    let mut all: Vec<Kept> = Vec::new();
    let axes = network.input_axes()?;
    let longest = |i: &(&str, Input, &Tensor)| match i.1 {
        Input::Features(_) | Input::Tokens => i.2.shape()[1],
        Input::Rows(_) | Input::Lengths => 0,
    };
    let longest = inputs.iter().map(longest).max().unwrap_or(0);
    for (at, (name, input, tensor)) in inputs.iter().enumerate() {
        let Some(axis) = axes[at] else { continue };
        let sequences = tensor.shape()[0];
        let steps = if *input == Input::Lengths { longest } else { tensor.shape()[1] };
        let mut kept = Kept { steps, places: vec![None; sequences], masked: false };
        if *input == Input::Lengths {
            set_lengths(name, &mut kept, tensor)?;
        }
        let readers: Vec<&Layer> =
            network.nodes.iter().filter(|n| n.inputs.contains(&Port::Input(at))).map(|n| &n.layer).collect();
        let masks = |layer: &&Layer| match layer {
            Layer::Embedding(l) => l.mask_zero,
            Layer::Masking(_) => true,
            _ => false,
        };
        if let Some(layer) = readers.iter().find(|l| masks(l)) {
            if !readers.iter().all(|other| same_mask(other, layer)) {
                let error = "layers that read an input with a mask and without, or with two, are not supported";
                return Err(Error::unsupported(error).within(name));
            }
            let is_kept = |b: usize, t: usize| -> Result<bool> {
                Ok(match layer {
                    Layer::Masking(l) => {
                        let width = tensor.shape()[2];
                        let row = (b * steps + t) * width;
                        tensor.f32s()?[row..row + width].iter().any(|&v| v != l.value)
                    }
                    _ => tensor.u32s()?[b * steps + t] != 0,
                })
            };
            kept.masked = true;
            for b in 0..sequences {
                let mut places = Vec::new();
                for t in 0..steps {
                    if is_kept(b, t)? {
                        places.push(t);
                    }
                }
                kept.places[b] = (places.len() < steps).then_some(places);
            }
        }
        match all.get(axis as usize) {
            None => all.push(kept),
            Some(other) if other == &kept => {}
            Some(other) => {
                return Err(Error::shape(format!(
                    "{name}: expected the {} steps of the input that it is aligned with, and its mask, got {steps} steps",
                    other.steps
                )));
            }
        }
    }
    // A mask is known where an input is read, and nowhere else.
    let inner = network
        .nodes
        .iter()
        .find(|n| matches!(&n.layer, Layer::Masking(_)) && !matches!(n.inputs[..], [Port::Input(_)]));
    if let Some(node) = inner {
        let error = "a mask by values that the model computes is not supported, only one by those of an input";
        return Err(Error::unsupported(error).within(&node.name));
    }
    if let Some(lengths) = lengths {
        if matches!(network.axes()?.all().first(), Some(Steps::Given { exact: true, .. })) {
            return Err(Error::argument(
                "lengths: the model joins its input with sequences of its own, so all are as long",
            ));
        }
        let Some(kept) = all.first_mut() else { return Err(Error::argument("lengths: the model reads no sequence")) };
        if kept.masked {
            return Err(Error::argument("lengths: the model has a mask, which says the same"));
        }
        set_lengths("lengths", kept, lengths)?;
    }
    Ok(all)
}

/// The batch of sequences of these lengths on the axes of a network's inputs, with the axes that its layers make.
pub(super) fn batch(network: &Network, given: &[Vec<usize>], sequences: usize) -> Result<Batch> {
    let axes = network.axes()?;
    for (axis, lengths) in given.iter().enumerate() {
        if let Some(Steps::Given { most: Some(n), exact: true }) = axes.all().get(axis)
            && let Some(length) = lengths.iter().find(|l| *l != n)
        {
            return Err(Error::shape(format!("model: expected sequences of exactly {n} steps, got {length}")));
        }
    }
    let lengths = axes.lengths(given, sequences);
    let first = match lengths.first() {
        Some(first) => Batch::ragged(first)?,
        None => Batch::dense(1, sequences)?,
    };
    lengths.iter().skip(1).try_fold(first, |batch, more| batch.with_axis(more))
}

fn set_lengths(name: &str, kept: &mut Kept, lengths: &Tensor) -> Result<()> {
    let values = lengths.u32s().map_err(|e| e.within(name))?;
    super::save::check_shape(name, lengths.shape(), &[kept.places.len()])?;
    for (place, &length) in kept.places.iter_mut().zip(values) {
        let length = length as usize;
        if length > kept.steps {
            return Err(Error::shape(format!("{name}: expected at most {}, got {length}", kept.steps)));
        }
        *place = (length < kept.steps).then(|| (0..length).collect());
    }
    Ok(())
}

fn same_mask(a: &Layer, b: &Layer) -> bool {
    match (a, b) {
        (Layer::Embedding(a), Layer::Embedding(b)) => a.mask_zero == b.mask_zero,
        (Layer::Masking(a), Layer::Masking(b)) => a.value == b.value,
        _ => false,
    }
}

/// Packs `[B, T, width]`, leaving out what is not kept.
pub(super) fn pack<V: Copy>(
    batch: &Batch,
    axis: u8,
    kept: Option<&Kept>,
    data: &[V],
    steps: usize,
    width: usize,
) -> Result<Vec<V>> {
    let Some(kept) = kept.filter(|k| k.places.iter().any(Option::is_some)) else {
        return batch.pack(axis, data, steps, width, true);
    };
    // Kept steps move to the front of their sequence, each from its own place or a later one; what is left behind them
    // is past its end.
    let mut moved = data.to_vec();
    for (b, places) in kept.places.iter().enumerate() {
        for (to, &from) in places.iter().flatten().enumerate() {
            let row = |t: usize| (b * steps + t) * width;
            moved.copy_within(row(from)..row(from) + width, row(to));
        }
    }
    batch.pack(axis, &moved, steps, width, true)
}

/// What an output holds where an LSTM before it holds zeros; only some need it.
pub(super) fn needs_zero_row(kept: &Kept, fill: Fill) -> bool {
    let leads = || kept.places.iter().flatten().any(|places| places.first() != Some(&0));
    kept.masked
        && kept.places.iter().any(Option::is_some)
        && (fill == Fill::OfZero || (fill == Fill::OfRepeat && leads()))
}

/// The inverse of [`pack`]: `[B, T, width]`, with what masked steps hold by `fill`, and zeros past a sequence's end.
/// `zero` is what the output holds where an LSTM before it holds zeros.
pub(super) fn unpack(
    batch: &Batch,
    axis: u8,
    kept: Option<&Kept>,
    rows: &[f32],
    width: usize,
    (fill, zero): (Fill, &[f32]),
) -> Result<Vec<f32>> {
    let steps = kept.map_or(batch.axis(axis)?.steps(), |k| k.steps);
    let dense = batch.unpack(axis, rows, steps, width, true, 0.0)?;
    let Some(kept) = kept.filter(|k| k.masked && k.places.iter().any(Option::is_some)) else { return Ok(dense) };
    if matches!(fill, Fill::None | Fill::Own | Fill::Mixed) {
        return Err(Error::unsupported(
            "what an output is at steps that are masked is known only where all of it comes from LSTMs alike",
        ));
    }
    let mut out = vec![0.0; dense.len()];
    for (b, places) in kept.places.iter().enumerate() {
        let row = |t: usize| (b * steps + t) * width..(b * steps + t + 1) * width;
        let mut last = None;
        for t in 0..steps {
            let found = places.as_ref().map_or(Some(t), |places| places.binary_search(&t).ok());
            let repeats = matches!(fill, Fill::Repeat | Fill::OfRepeat);
            match if repeats { found.or(last) } else { found } {
                Some(from) => out[row(t)].copy_from_slice(&dense[row(from)]),
                None if !zero.is_empty() => out[row(t)].copy_from_slice(zero),
                None => {}
            }
            last = found.or(last);
        }
    }
    Ok(out)
}

/// Turns each sequence of `[B, T, width]` round.
pub(super) fn mirror(batch: &Batch, axis: u8, kept: Option<&Kept>, rows: &mut [f32], width: usize) -> Result<()> {
    if kept.is_some_and(|k| k.masked && k.places.iter().any(Option::is_some)) {
        return Err(Error::unsupported("an output in reversed order with steps that are masked"));
    }
    let steps = kept.map_or(batch.axis(axis)?.steps(), |k| k.steps);
    let lengths = kept.map_or_else(|| vec![steps; batch.sequences()], Kept::lengths);
    for (b, length) in lengths.into_iter().enumerate() {
        let sequence = &mut rows[b * steps * width..(b * steps + length) * width];
        sequence.reverse();
        sequence.chunks_exact_mut(width).for_each(<[f32]>::reverse);
    }
    Ok(())
}
