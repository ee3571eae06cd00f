//! A network's inputs and targets as programs take them.

use super::mask::{self, Kept};
use crate::device::Executable;
use crate::error::{Error, Result};
use crate::nn::{Fill, Input, Network, Signal, zeros_input};
use crate::params::{DType, Tensor};
use crate::scheduler::Batch;

/// Inputs as a program takes them.
pub(super) struct Packed {
    pub(super) batch: Batch,
    pub(super) tensors: Vec<(String, Tensor)>,
    /// For each time axis that inputs have, which steps are kept of how many.
    pub(super) kept: Vec<Kept>,
}

impl Packed {
    /// The tensors that a program reads, by name: it may compute a part of the network.
    pub(super) fn named(&self, executable: &Executable) -> Vec<(&str, &Tensor)> {
        let reads = |name: &str| executable.program().inputs.iter().any(|i| i.0 == name);
        self.tensors.iter().filter(|t| reads(&t.0)).map(|(name, tensor)| (name.as_str(), tensor)).collect()
    }

    /// Adds values for each step of `signal`, `[B, T, width]`, or for each sequence where it has none, `[B, width]`.
    pub(super) fn add(&mut self, name: &str, signal: Signal, tensor: &Tensor) -> Result<()> {
        let mut shape = tensor.shape().to_vec();
        let (steps, width) = match signal.axis() {
            Some(_) => (shape[1], shape[2..].iter().product()),
            None => (1, shape[1..].iter().product()),
        };
        if signal.axis().is_some() {
            shape.remove(0);
        }
        let tensor = match tensor.dtype() {
            DType::F32 => {
                let values = self.rows(signal, tensor.f32s()?, steps, width)?;
                shape[0] = values.len() / width;
                Tensor::new(&shape, values)?
            }
            DType::U32 => {
                let values = self.rows(signal, tensor.u32s()?, steps, width)?;
                shape[0] = values.len() / width;
                Tensor::from_u32(&shape, values)?
            }
        };
        self.tensors.push((name.to_string(), tensor));
        Ok(())
    }

    fn rows<V: Copy>(&self, signal: Signal, data: &[V], steps: usize, width: usize) -> Result<Vec<V>> {
        match signal.axis() {
            Some(axis) => mask::pack(&self.batch, axis, self.kept.get(axis as usize), data, steps, width),
            None => Ok(self.batch.sort_rows(data, width)),
        }
    }
}

/// An input's name, what it is, and its values.
pub(super) type Given<'a> = (&'a str, Input, &'a Tensor);

/// Packs inputs of these names, all of as many sequences; `lengths` `[B]` may say how long each of the first input is.
pub(super) fn pack(
    network: &Network,
    given: &[Given<'_>],
    lengths: Option<&Tensor>,
    samples: Option<&[u32]>,
) -> Result<Packed> {
    let sequences = given.first().and_then(|g| g.2.shape().first().copied()).unwrap_or(0);
    let kept = mask::kept(network, given, lengths)?;
    let own: Vec<Vec<usize>> = kept.iter().map(Kept::lengths).collect();
    let mut batch = mask::batch(network, &own, sequences)?;
    if let Some(samples) = samples {
        batch = batch.with_samples(samples)?;
    }
    let stateful = network.nodes.iter().any(|n| n.layer.is_stateful());
    if stateful && batch.order().windows(2).any(|pair| pair[0] > pair[1]) {
        // States are kept in the order in which a batch is packed.
        return Err(Error::unsupported(
            "a stateful layer over sequences of different lengths that are not longest first",
        ));
    }
    let mut packed = Packed { batch, tensors: Vec::new(), kept };
    for ((name, input, tensor), axis) in given.iter().zip(network.input_axes()?) {
        let axis = axis.unwrap_or(0);
        let signal = match *input {
            Input::Rows(features) => Signal::Rows { features },
            Input::Features(features) => Signal::Sequence { features, axis, mirrored: false },
            Input::Tokens | Input::Lengths => Signal::Tokens { axis },
        };
        if *input == Input::Lengths {
            let steps = packed.kept.get(axis as usize).map_or(1, |k| k.steps);
            let numbers = (0..sequences).flat_map(|_| 0..steps as u32).collect();
            packed.add(name, signal, &Tensor::from_u32(&[sequences, steps], numbers)?)?;
        } else {
            packed.add(name, signal, tensor)?;
        }
    }
    for axis in 0..packed.kept.len() {
        for fill in [Fill::Repeat, Fill::Zero] {
            let Some(name) = zeros_input(axis as u8, fill) else { continue };
            let rows = Tensor::new(&[sequences, 1], packed.kept[axis].zeros(fill))?;
            packed.add(&name, Signal::Rows { features: 1 }, &rows)?;
        }
    }
    Ok(packed)
}

/// Refuses inputs that are not what the network reads.
pub(super) fn check_inputs(network: &Network, given: &[Given<'_>]) -> Result<usize> {
    let sequences = given.first().and_then(|g| g.2.shape().first().copied()).unwrap_or(0);
    if sequences == 0 {
        return Err(Error::data("model: expected at least one sequence, got none"));
    }
    for (at, (name, input, tensor)) in given.iter().enumerate() {
        check_input(name, *input, tensor, sequences)?;
        let steps = tensor.shape().get(1).copied().unwrap_or(0);
        if let Some((_, most)) = network.steps.iter().find(|s| s.0 == at && s.1 < steps) {
            return Err(Error::shape(format!("{name}: the model takes at most {most} steps, got {steps}")));
        }
    }
    Ok(sequences)
}

fn check_input(name: &str, input: Input, tensor: &Tensor, sequences: usize) -> Result<()> {
    let expected = match (input, tensor.dtype(), tensor.shape()) {
        (Input::Tokens, DType::U32, &[b, t]) if b == sequences && t > 0 => return Ok(()),
        (Input::Features(f), DType::F32, &[b, t, features]) if b == sequences && t > 0 && features == f => {
            return Ok(());
        }
        (Input::Rows(f), DType::F32, &[b, features]) if b == sequences && features == f => return Ok(()),
        (Input::Lengths, DType::U32, &[b]) if b == sequences => return Ok(()),
        (Input::Tokens, ..) => format!("integers [{sequences}, T]"),
        (Input::Lengths, ..) => format!("integers [{sequences}]"),
        (Input::Features(f), ..) => format!("floats [{sequences}, T, {f}]"),
        (Input::Rows(f), ..) => format!("floats [{sequences}, {f}]"),
    };
    Err(Error::shape(format!("{name}: expected {expected}, got {:?} {:?}", tensor.dtype(), tensor.shape())))
}
