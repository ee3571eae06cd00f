//! The program that a network runs as, without running it.

use super::mask;
use super::step::training_graph;
use super::{Loss, Objective};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::nn::{GraphOptions, Network, Signal};
use crate::optim::{Adam, Optimizer};
use crate::scheduler::{Capacity, CompileOptions, Program, Target, compile};

/// The program of a network over sequences of these lengths within `budget` bytes, on a device that is `target`: its
/// outputs or, with a loss, a training step of Adam on the first output that is no state. Nothing is allocated.
pub fn plan(
    network: &Network,
    lengths: &[usize],
    loss: Option<Loss>,
    target: Target,
    budget: Option<u64>,
) -> Result<Program> {
    let axes = network.input_axes()?.into_iter().flatten().map(|axis| axis as usize + 1).max().unwrap_or(0);
    let batch = mask::batch(network, &vec![lengths.to_vec(); axes], lengths.len())?;
    let graph = match loss {
        Some(loss) => {
            let trained = |at: &usize| network.state_part(network.outputs[*at].1).is_none();
            let output = (0..network.outputs.len()).find(trained);
            let output = output.ok_or_else(|| Error::argument("plan: the model has no output to train"))?;
            let objective = Objective { output, ..Objective::sole(loss) };
            training_graph(
                network,
                &[objective],
                &Optimizer::from(Adam::default()),
                "train.",
                target.matrix() > 0,
                false,
            )?
        }
        None => {
            let mut graph = Graph::new();
            let built = network.build(&mut graph, GraphOptions::default())?;
            for ((name, _), (value, signal)) in network.outputs.iter().zip(&built.outputs) {
                if !matches!(signal, Signal::Tokens { .. }) {
                    graph.output(name, *value)?;
                }
            }
            built.states.into_iter().try_for_each(|(state, new)| graph.update(state, new))?;
            graph
        }
    };
    // As `fit` and `Model::run` choose them.
    let mut capacity = if loss.is_some() { Capacity::exactly(&batch) } else { Capacity::around(&batch) };
    if network.nodes.iter().any(|n| n.layer.is_stateful()) {
        capacity.sequences = batch.sequences();
    }
    compile(&graph, target, &CompileOptions { budget, ..CompileOptions::new(&capacity) })
}
