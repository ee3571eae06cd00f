//! The graphs of a training step, of an evaluation and of a prediction.

use super::Loss;
use crate::device::{Executable, Session};
use crate::error::{Error, Result};
use crate::graph::builder::RowLoss;
use crate::graph::{B, Dim, Expr, Graph, N, Value};
use crate::nn::{Flow, GraphOptions, Sequential};
use crate::optim::{Gate, Optimizer, clip_factor};
use crate::params::{DType, Tensor};
use crate::scheduler::program::Storage;

/// 0, or 1 + the first step whose loss or gradient was not finite, `[1]`. From then on a step changes nothing.
pub(super) const LATCH: &str = "train.bad_step";
/// Where a training step adds its loss, and the rows that count.
pub(super) const TRAIN: Totals = Totals { sum: "train.loss_sum", count: "train.loss_count" };
/// Where an evaluation adds its loss.
pub(super) const EVALUATE: Totals = Totals { sum: "evaluate.loss_sum", count: "evaluate.loss_count" };
/// The scalar that a training step reads its number from.
const STEP: &str = "step";

/// Two persistent `[1]` that losses are added up in, so that the host need not read each.
#[derive(Clone, Copy)]
pub(super) struct Totals {
    pub(super) sum: &'static str,
    pub(super) count: &'static str,
}

impl Totals {
    pub(super) fn zero(self, session: &mut Session) -> Result<()> {
        [self.sum, self.count].into_iter().try_for_each(|name| session.zero(name, &[1], DType::F32))
    }

    /// The mean over all rows so far; NaN where there is none. Waits for the device.
    pub(super) fn mean(self, session: &mut Session) -> Result<f32> {
        let mut read = |name| Ok::<f32, Error>(session.get(name)?.f32s()?[0]);
        Ok(read(self.sum)? / read(self.count)?)
    }

    /// Adds `loss` while `alive`.
    fn add(self, graph: &mut Graph, loss: RowLoss, alive: Option<Value>) -> Result<()> {
        for (name, value) in [(self.sum, loss.sum), (self.count, loss.count)] {
            let total = graph.persistent(name, [1])?;
            let sum = Expr::Input(0) + Expr::Input(1);
            let updated = match alive {
                Some(alive) => {
                    let guarded = Expr::Input(2).select(sum, Expr::Input(0));
                    graph.elementwise(guarded, &[total, value, alive])?
                }
                None => graph.elementwise(sum, &[total, value])?,
            };
            graph.update(total, updated)?;
        }
        Ok(())
    }
}

/// Adds the input `y` and the loss of a model's output, with what regularisers add to it.
fn append_loss(graph: &mut Graph, model: &Sequential, flow: &Flow, loss: Loss) -> Result<RowLoss> {
    let plain = data_loss(graph, flow, loss)?;
    let mut penalties = flow.penalties.clone();
    for spec in model.parameters() {
        let Some(regularizer) = spec.regularizer else { continue };
        let parameter = graph.persistent(&spec.name, &spec.shape)?;
        penalties.extend(graph.penalty(regularizer, parameter)?);
    }
    let Some(total) = (0..penalties.len()).map(Expr::Input).reduce(|a, b| a + b) else { return Ok(plain) };
    let penalty = graph.elementwise(total, &penalties)?;
    // The sum is what a mean over these rows and those of other batches is made of.
    let weighted = Expr::Input(0) + Expr::Input(1) * Expr::Input(2);
    let sum = graph.elementwise(weighted, &[plain.sum, penalty, plain.count])?;
    let mean = graph.add(plain.mean, penalty)?;
    Ok(RowLoss { sum, mean, ..plain })
}

fn data_loss(graph: &mut Graph, flow: &Flow, loss: Loss) -> Result<RowLoss> {
    let rows = if flow.sequence { N } else { B };
    if loss == Loss::CrossEntropy {
        let y = graph.input("y", [rows], DType::U32)?;
        return graph.cross_entropy(flow.output, y, None);
    }
    let y = graph.input("y", [rows, Dim::Fixed(flow.features)], DType::F32)?;
    match pointwise(loss) {
        Some((expr, each)) => graph.pointwise_loss(expr, flow.output, y, each),
        None => graph.mean_squared_error(flow.output, y),
    }
}

/// A loss of each prediction, input 0, and its target, input 1, and whether each counts, rather than each row.
fn pointwise(loss: Loss) -> Option<(Expr, bool)> {
    let (p, y, one) = (Expr::Input(0), Expr::Input(1), Expr::Const(1.0));
    let size = (p.clone() - y.clone()).abs();
    // As Keras, whose float32 knows 1 - 1e-7.
    let least = Expr::Const(1e-7);
    Some(match loss {
        Loss::MeanSquaredError | Loss::CrossEntropy => return None,
        Loss::MeanAbsoluteError => (size, true),
        Loss::Huber { delta } => {
            let delta = Expr::Const(delta);
            let half = Expr::Const(0.5);
            let square = half.clone() * size.clone() * size.clone();
            let line = delta.clone() * (size.clone() - half * delta.clone());
            (delta.less(size).select(line, square), true)
        }
        Loss::BinaryCrossEntropy { from_logits: false } => {
            let p = p.max(least.clone()).min(one.clone() - least);
            let zero = Expr::Const(0.0);
            (zero - (y.clone() * p.clone().ln() + (one.clone() - y) * (one - p).ln()), true)
        }
        // max(z, 0) - z y + ln(1 + e^-|z|), which no z overflows.
        Loss::BinaryCrossEntropy { from_logits: true } => {
            let tail = (one + (Expr::Const(0.0) - p.clone().abs()).exp()).ln();
            (p.clone().max(Expr::Const(0.0)) - p * y + tail, true)
        }
        Loss::CategoricalCrossEntropy => (Expr::Const(0.0) - y * p.max(least).ln(), false),
    })
}

/// Forward, loss, backward, clipping and the optimiser's updates, all of which change nothing unless the loss and the
/// gradient are finite and always were.
pub(super) fn training_graph(
    model: &Sequential,
    optimizer: &Optimizer,
    loss: Loss,
    clip_norm: Option<f32>,
    state_prefix: &str,
) -> Result<Graph> {
    let mut graph = Graph::new();
    let g = &mut graph;
    let flow = model.build_graph(g, GraphOptions { training: true, state_prefix })?;
    let loss = append_loss(g, model, &flow, loss)?;
    let specs = model.parameters();
    let values = specs.iter().map(|p| g.persistent(&p.name, &p.shape)).collect::<Result<Vec<Value>>>()?;
    let gradients = g.gradients(loss.mean, &values)?;
    let squares = g.sum_of_squares(&gradients)?;
    let scale = clip_norm.map(|max| clip_factor(g, squares, max)).transpose()?;

    let latch = g.persistent(LATCH, [1])?;
    let [bad, l, s] = [0, 1, 2].map(Expr::Input);
    let finite = l.is_finite() * s.is_finite();
    let alive = g.elementwise(bad.select(Expr::Const(0.0), finite), &[latch, loss.mean, squares])?;
    let [bad, alive_now] = [0, 1].map(Expr::Input);
    let first = alive_now.select(Expr::Const(0.0), Expr::scalar(STEP) + Expr::Const(1.0));
    let latched = g.elementwise(bad.clone().select(bad, first), &[latch, alive])?;
    g.update(latch, latched)?;

    TRAIN.add(g, loss, Some(alive))?;
    for (state, new) in flow.states {
        let guarded = Expr::Input(2).select(Expr::Input(1), Expr::Input(0));
        let kept = g.elementwise(guarded, &[state, new, alive])?;
        g.update(state, kept)?;
    }
    optimizer.apply(g, &specs, &gradients, Gate { scale, alive })?;
    Ok(graph)
}

/// The scalars that a training step reads.
pub(super) fn training_scalars(optimizer: &Optimizer, step: u32, learning_rate: f64) -> Vec<(&'static str, f32)> {
    let mut scalars = optimizer.scalars(step, learning_rate);
    scalars.push((STEP, step as f32));
    scalars
}

/// Forward without dropout, and the loss into [`EVALUATE`].
pub(super) fn evaluation_graph(model: &Sequential, loss: Loss, state_prefix: &str) -> Result<Graph> {
    let mut graph = Graph::new();
    let flow = model.build_graph(&mut graph, GraphOptions { training: false, state_prefix })?;
    let loss = append_loss(&mut graph, model, &flow, loss)?;
    EVALUATE.add(&mut graph, loss, None)?;
    flow.states.into_iter().try_for_each(|(state, new)| graph.update(state, new))?;
    Ok(graph)
}

/// Forward without dropout, with the output `y`.
pub(super) fn prediction_graph(model: &Sequential, state_prefix: &str) -> Result<(Graph, Flow)> {
    let mut graph = Graph::new();
    let flow = model.build_graph(&mut graph, GraphOptions { training: false, state_prefix })?;
    graph.output("y", flow.output)?;
    flow.states.iter().try_for_each(|&(state, new)| graph.update(state, new))?;
    Ok((graph, flow))
}

/// The carried states of a program with their sizes.
pub(super) fn states(executable: &Executable) -> Result<Vec<(String, Vec<usize>)>> {
    let program = executable.program();
    let carried =
        |v: &&crate::scheduler::ProgramValue| v.storage == Storage::Persistent && v.shape.fixed_len().is_none();
    let values = program.values.iter().filter(carried);
    values.map(|v| Ok((v.name.clone(), program.capacity.resolve(&v.shape)?))).collect()
}

/// Zeroes the carried states of a program.
pub(super) fn zero_states(session: &mut Session, executable: &Executable) -> Result<()> {
    states(executable)?.iter().try_for_each(|(name, shape)| session.zero(name, shape, DType::F32))
}

/// Zeroes what a training program keeps besides parameters and states: the latch, the totals, the optimiser's slots.
pub(super) fn zero_slots(session: &mut Session, model_slots: &[(String, Vec<usize>)]) -> Result<()> {
    session.set(LATCH, &Tensor::scalar(0.0))?;
    TRAIN.zero(session)?;
    model_slots.iter().try_for_each(|(name, shape)| session.zero(name, shape, DType::F32))
}
