//! The graphs of a training step, of an evaluation and of a prediction.

use super::scaling::LossScale;
use super::{Loss, Objective};
use crate::device::{Executable, Session};
use crate::error::{Error, Result};
use crate::graph::builder::RowLoss;
use crate::graph::{Dim, Expr, Graph, Symbol, Value};
use crate::nn::{Built, Flow, GraphOptions, Network, Sequential};
use crate::optim::{Course, Gate, Kept, Optimizer};
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
    pub(super) fn names(self) -> [&'static str; 2] {
        [self.sum, self.count]
    }

    pub(super) fn zero(self, session: &mut Session) -> Result<()> {
        self.names().into_iter().try_for_each(|name| session.zero(name, &[1], DType::F32))
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

/// Adds the targets as inputs and the losses of a network's outputs, with what regularisers add to them.
fn append_loss(graph: &mut Graph, network: &Network, built: &Built, objectives: &[Objective]) -> Result<RowLoss> {
    let losses = objectives.iter().map(|o| data_loss(graph, o, built)).collect::<Result<Vec<RowLoss>>>()?;
    let mut plain = *losses.first().ok_or_else(|| Error::argument("training: there is no loss"))?;
    if losses.len() > 1 {
        // The sum of means has no rows of its own: each sequence of the batch counts.
        let means: Vec<Value> = losses.iter().map(|l| l.mean).collect();
        plain.mean = graph.sum(&means)?;
        plain.count = graph.elementwise(Expr::Size(Symbol::Batch), &[plain.mean])?;
        plain.sum = graph.elementwise(Expr::Input(0) * Expr::Input(1), &[plain.mean, plain.count])?;
    }
    let mut penalties = built.penalties.clone();
    for spec in network.parameters()? {
        let Some(regularizer) = spec.regularizer else { continue };
        let parameter = graph.persistent(&spec.name, &spec.shape)?;
        penalties.extend(graph.penalty(regularizer, parameter)?);
    }
    if !built.steady.is_empty() {
        let steady = graph.sum(&built.steady)?;
        plain.mean = graph.add(plain.mean, steady)?;
    }
    if penalties.is_empty() {
        return Ok(plain);
    }
    let penalty = graph.sum(&penalties)?;
    // The sum is what a mean over these rows and those of other batches is made of.
    let weighted = Expr::Input(0) + Expr::Input(1) * Expr::Input(2);
    let sum = graph.elementwise(weighted, &[plain.sum, penalty, plain.count])?;
    let mean = graph.add(plain.mean, penalty)?;
    Ok(RowLoss { sum, mean, ..plain })
}

fn data_loss(graph: &mut Graph, objective: &Objective, built: &Built) -> Result<RowLoss> {
    let (output, signal) = built.outputs[objective.output];
    let rows = Dim::Symbol(signal.axis().map_or(Symbol::Batch, Symbol::Rows));
    let Some(features) = signal.features().filter(|_| !signal.mirrored()) else {
        return Err(Error::unsupported(format!("{}: an output of {signal} has no loss", objective.name)));
    };
    let name = &objective.name;
    let mut weights = None;
    if objective.weighted {
        weights = Some(graph.input(&objective.weights(), [rows.clone(), Dim::Fixed(1)], DType::F32)?);
    }
    if objective.loss == Loss::CrossEntropy {
        let y = graph.input(name, [rows.clone()], DType::U32)?;
        let weights = weights.map(|w| graph.view(w, [rows])).transpose()?;
        return built.cross_entropy(graph, output, y, None, weights);
    }
    let y = graph.input(name, [rows, Dim::Fixed(features)], DType::F32)?;
    match pointwise(objective.loss) {
        (_, _) if objective.loss == Loss::MeanSquaredError && weights.is_none() => graph.mean_squared_error(output, y),
        (expr, each) => graph.pointwise_loss(expr, output, y, each, weights),
    }
}

/// A loss of each prediction, input 0, and its target, input 1, and whether each counts, rather than each row.
fn pointwise(loss: Loss) -> (Expr, bool) {
    let (p, y, one) = (Expr::Input(0), Expr::Input(1), Expr::Const(1.0));
    let size = (p.clone() - y.clone()).abs();
    // As Keras, whose float32 knows 1 - 1e-7.
    let least = Expr::Const(1e-7);
    match loss {
        Loss::MeanSquaredError => (size.clone() * size, true),
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
        // That of classes is an operation of its own; a distribution over them is what it takes here.
        Loss::CategoricalCrossEntropy | Loss::CrossEntropy => (Expr::Const(0.0) - y * p.max(least).ln(), false),
    }
}

/// Forward, loss, backward, clipping and the optimiser's updates, all of which change nothing unless the loss and the
/// gradient are finite and always were. Where gradients pass through 16 bits the loss is `scaled`. What the objectives are about
/// is an output where it is `observed`.
pub(super) fn training_graph(
    network: &Network,
    objectives: &[Objective],
    optimizer: &Optimizer,
    state_prefix: &str,
    scaled: bool,
    observed: bool,
) -> Result<Graph> {
    if scaled && optimizer.accumulation > 1 {
        return Err(Error::unsupported("training: gradients of several batches in one step, with f16-products"));
    }
    let mut graph = Graph::new();
    let g = &mut graph;
    let built = network.build(g, GraphOptions { training: true, state_prefix, ..GraphOptions::default() })?;
    built.check_trainable()?;
    let loss = append_loss(g, network, &built, objectives)?;
    if observed {
        observe(g, &built, objectives)?;
    }
    // Parameters that only lead to outputs without a loss stay as they are.
    let (mut specs, mut values) = (Vec::new(), Vec::new());
    for spec in network.parameters()? {
        let value = g.persistent(&spec.name, &spec.shape)?;
        if g.depends(loss.mean, value) {
            values.push(value);
            specs.push(spec);
        }
    }
    let loss_scale = if scaled { Some(LossScale::new(g)?) } else { None };
    let gradients = match &loss_scale {
        Some(scale) => scale.gradients(g, loss.mean, &values)?,
        None => g.gradients(loss.mean, &values)?,
    };
    let mut squares = g.sum_of_squares(&gradients)?;
    let mut unscale = None;
    if let Some(scale) = &loss_scale {
        let (inverse, true_squares) = scale.undo(g, squares)?;
        (unscale, squares) = (Some(inverse), true_squares);
    }

    let latch = g.persistent(LATCH, [1])?;
    let [bad, l, s] = [0, 1, 2].map(Expr::Input);
    let finite = l.is_finite() * s.is_finite();
    let alive = g.elementwise(bad.select(Expr::Const(0.0), finite), &[latch, loss.mean, squares])?;
    let [bad, alive_now, l, shrinks] = [0, 1, 2, 3].map(Expr::Input);
    let number = Expr::scalar(STEP) + Expr::Const(1.0);
    let first = match &loss_scale {
        // A gradient that overflows under a scale that may shrink is no failure.
        Some(_) => alive_now.select(Expr::Const(0.0), (l.is_finite() * shrinks).select(Expr::Const(0.0), number)),
        None => alive_now.select(Expr::Const(0.0), number),
    };
    let mut read = vec![latch, alive];
    if let Some(scale) = loss_scale {
        read.extend([loss.mean, scale.may_shrink(g)?]);
        scale.update(g, alive, latch)?;
    }
    let latched = g.elementwise(bad.clone().select(bad, first), &read)?;
    g.update(latch, latched)?;

    TRAIN.add(g, loss, Some(alive))?;
    for &(state, new) in &built.states {
        // What a step wrote that is undone is never seen.
        if g.is_remembered(new) {
            g.update(state, new)?;
            continue;
        }
        let guarded = Expr::Input(2).select(Expr::Input(1), Expr::Input(0));
        let kept = g.elementwise(guarded, &[state, new, alive])?;
        g.update(state, kept)?;
    }
    optimizer.apply(g, &specs, &gradients, Gate { scale: unscale, squares: Some(squares), alive })?;
    Ok(graph)
}

/// What metrics read is called by the name of its objective.
fn observe(graph: &mut Graph, built: &Built, objectives: &[Objective]) -> Result<()> {
    objectives.iter().try_for_each(|o| graph.output(&o.name, built.outputs[o.output].0))
}

/// The scalars that a training step reads.
pub(super) fn training_scalars(optimizer: &Optimizer, course: &Course) -> Vec<(&'static str, f32)> {
    let mut scalars = optimizer.scalars(course);
    scalars.push((STEP, course.step as f32));
    scalars
}

/// Forward without dropout, and the loss into [`EVALUATE`].
pub(super) fn evaluation_graph(
    network: &Network,
    objectives: &[Objective],
    state_prefix: &str,
    observed: bool,
) -> Result<Graph> {
    let mut graph = Graph::new();
    let built = network.build(&mut graph, GraphOptions { state_prefix, ..GraphOptions::default() })?;
    let loss = append_loss(&mut graph, network, &built, objectives)?;
    if observed {
        observe(&mut graph, &built, objectives)?;
    }
    EVALUATE.add(&mut graph, loss, None)?;
    built.states.into_iter().try_for_each(|(state, new)| graph.update(state, new))?;
    Ok(graph)
}

/// Forward without dropout, with the output `y`.
pub(super) fn prediction_graph(model: &Sequential, state_prefix: &str) -> Result<(Graph, Flow)> {
    let mut graph = Graph::new();
    let flow = model.build_graph(&mut graph, GraphOptions { state_prefix, ..GraphOptions::default() })?;
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

/// Whether gradients pass through 16 bits.
pub(super) fn is_scaled(session: &Session) -> bool {
    session.device().target().matrix() > 0
}

/// Begins what a training program keeps besides parameters and states: the latch, the optimiser's slots; and sets the scale of
/// its loss, if it has none yet.
pub(super) fn begin_slots(session: &mut Session, slots: &[Kept]) -> Result<()> {
    session.set(LATCH, &Tensor::scalar(0.0))?;
    if is_scaled(session) {
        LossScale::begin(session)?;
    }
    for slot in slots {
        let first = slot.begin(|name| session.get(name))?;
        session.set(&slot.name, &first)?;
    }
    Ok(())
}
