//! Each layer as operations of a graph.

use super::activation::apply;
use super::axes::Axes;
use super::masks::zeros_input;
use super::{
    Fill, GraphOptions, Layer, Lstm, MergeKind, MergeMode, Node, Pooling1D, PoolingKind, Recalled, Signal, recall,
};
use crate::config::{Direction, Mask};
use crate::error::{Error, Result};
use crate::graph::builder::{LstmOutputs, LstmWeights};
use crate::graph::{
    AttentionOp, B, Dim, Expr, Gather, Graph, LstmOp, Over, Padding, ReduceKind, Score, TimeKind, Value, Window,
};
use crate::params::{DType, lstm_parameters};

/// A layer in its place in a graph.
pub(super) struct Placed<'a> {
    pub node: &'a Node,
    pub inputs: &'a [(Value, Signal)],
    pub outputs: &'a [Signal],
    pub parameters: &'a [Value],
    pub axes: &'a Axes,
    /// What the first input holds at masked steps.
    pub fill: Fill,
    pub options: GraphOptions<'a>,
}

/// Adds a layer; gives its outputs. Carried states go to `states`, a memory's output and what it came from to `recalled`.
pub(super) fn append(
    graph: &mut Graph,
    placed: &Placed<'_>,
    states: &mut Vec<(Value, Value)>,
    recalled: &mut Vec<(Value, Recalled)>,
) -> Result<Vec<Value>> {
    let Placed { node, inputs, outputs, parameters, axes, fill, options } = *placed;
    let Some(&(x, signal)) = inputs.first() else { return Err(Error::internal("a layer without input")) };
    let one = match &node.layer {
        Layer::Embedding(layer) => {
            let mut table = parameters[0];
            if options.training && layer.dropout > 0.0 {
                let column = graph.slice(table, 0, 1)?;
                let ones = graph.elementwise(Expr::Const(1.0), &[column])?;
                let kept = graph.dropout(ones, layer.dropout)?;
                table = graph.elementwise(Expr::Input(0) * Expr::Input(1), &[table, kept])?;
            }
            graph.embedding(table, x)?
        }
        Layer::Lstm(layer) => return lstm(graph, placed, layer, states),
        Layer::Dense(layer) => {
            let y = graph.linear(x, parameters[0], parameters.get(1).copied())?;
            apply(layer.activation, graph, y)?
        }
        Layer::Dropout(layer) if options.training => graph.dropout_masked(x, layer.rate, layer.mask)?,
        // What is left out is left out where sequences are packed.
        Layer::Dropout(_) | Layer::Masking(_) => x,
        Layer::Activation(layer) => apply(layer.activation, graph, x)?,
        Layer::LayerNormalization(layer) => {
            let mut rest = parameters.iter().copied();
            let gain = if layer.scale { rest.next() } else { None };
            let bias = if layer.center { rest.next() } else { None };
            graph.layer_norm(x, layer.epsilon, gain, bias)?
        }
        Layer::Pooling(layer) => match layer.kind {
            PoolingKind::Max => {
                let largest = graph.over_time(TimeKind::Max, x)?;
                match signal.axis().and_then(|axis| zeros_input(axis, fill)) {
                    Some(name) => {
                        let zeros = graph.input(&name, [B, 1.into()], DType::F32)?;
                        let with = Expr::Input(0).max(Expr::Const(0.0));
                        graph.elementwise(Expr::Input(1).select(with, Expr::Input(0)), &[largest, zeros])?
                    }
                    None => largest,
                }
            }
            PoolingKind::Average => mean_over_time(graph, x)?,
            PoolingKind::Sum => graph.over_time(TimeKind::Sum, x)?,
        },
        Layer::Conv1D(layer) => {
            let seen = windows(graph, layer.window, (x, signal), outputs, 0.0)?;
            let inputs = layer.window.taps * signal.features().unwrap_or(0);
            let weight = graph.view(parameters[0], [layer.filters, inputs])?;
            let y = graph.linear(seen, weight, parameters.get(1).copied())?;
            apply(layer.activation, graph, y)?
        }
        Layer::Cropping1D(layer) => windows(graph, layer.window(), (x, signal), outputs, 0.0)?,
        Layer::Pooling1D(layer) => pool(graph, layer, (x, signal), outputs)?,
        Layer::RepeatVector(_) => graph.each_step(axis(outputs)?, x)?,
        Layer::Flatten(_) => flat(graph, (x, signal), outputs[0].features())?,
        Layer::Reshape(_) => match outputs[0] {
            Signal::Sequence { features, axis, .. } => {
                let steps = axes.count(axis).unwrap_or(0);
                let row = flat(graph, (x, signal), Some(steps * features))?;
                graph.gather(Gather::Unflatten { steps, axis }, row)?
            }
            rows => flat(graph, (x, signal), rows.features())?,
        },
        Layer::Permute(_) => {
            let steps = outputs[0].features().unwrap_or(0);
            graph.gather(Gather::Transpose { steps, axis: axis(outputs)? }, x)?
        }
        Layer::Attention(layer) => {
            let (mut query, value) = (x, inputs[1].0);
            let (key, mut scale) = (inputs.get(2).map_or(value, |i| i.0), parameters.first().copied());
            if let (Score::Dot, Some(factor)) = (layer.score, scale) {
                query = graph.elementwise(Expr::Input(0) * Expr::Input(1), &[query, factor])?;
                scale = None;
            }
            graph.attention(AttentionOp { score: layer.score, causal: layer.causal }, query, key, value, scale)?
        }
        Layer::WorkingMemory(layer) => {
            let (y, from) = recall::append(graph, placed, layer, states)?;
            recalled.push((y, from));
            y
        }
        Layer::Merge(layer) => merge(graph, layer.kind, &inputs.iter().map(|i| i.0).collect::<Vec<_>>())?,
        Layer::Along(_) => match signal.axis() {
            None => graph.each_step(axis(outputs)?, x)?,
            from if from == outputs[0].axis() => x,
            _ => graph.gather(Gather::Along { axis: axis(outputs)? }, x)?,
        },
        Layer::Columns(layer) => graph.slice(x, layer.first, layer.count)?,
        Layer::Step(layer) => graph.gather(Gather::Step { at: layer.at }, x)?,
        Layer::FeatureSum(layer) => {
            let sum = graph.reduce(ReduceKind::Sum, Over::Columns, x)?;
            let by = if layer.mean { 1.0 / signal.features().unwrap_or(1) as f32 } else { 1.0 };
            graph.elementwise(Expr::Input(0) * Expr::Const(by), &[sum])?
        }
        Layer::TimeSoftmax(_) => {
            let axis = axis(outputs)?;
            let largest = graph.over_time(TimeKind::Max, x)?;
            let largest = graph.each_step(axis, largest)?;
            let powers = graph.elementwise((Expr::Input(0) - Expr::Input(1)).exp(), &[x, largest])?;
            let sum = graph.over_time(TimeKind::Sum, powers)?;
            let sum = graph.each_step(axis, sum)?;
            graph.elementwise(Expr::Input(0) / Expr::Input(1), &[powers, sum])?
        }
        // What is stored stays in the order of time, whichever way it is read.
        Layer::Flip(_) => x,
        Layer::LogSoftmax(_) => {
            // The logarithm of the sum is what a cross entropy gives besides, whatever its targets.
            let any = graph.argmax(x)?;
            let sum = graph.log_sum_exp(x, any)?;
            graph.elementwise(Expr::Input(0) - Expr::Input(1), &[x, sum])?
        }
        Layer::Formula(layer) => {
            let mut operands: Vec<Value> = inputs.iter().map(|i| i.0).collect();
            operands.extend(parameters);
            graph.elementwise(layer.expr(inputs.len())?, &operands)?
        }
    };
    debug_assert!(signal.features().is_some() || matches!(node.layer, Layer::Embedding(_)));
    Ok(vec![one])
}

/// What h `[N, R]` adds to the loss of training by its size and its changes, `[1]`.
pub(super) fn steadiness(graph: &mut Graph, layer: &Lstm, h: Value) -> Result<Option<Value>> {
    let (Some(axis), Some(features)) = (graph.shape(h).axis(), graph.shape(h).columns()) else { return Ok(None) };
    // A factor times Σ of squares over how many there are.
    let mean = |graph: &mut Graph, factor: f32, squares: Value, rows: Value| {
        let count = Expr::Input(1).max(Expr::Const(1.0)) * Expr::Const(features as f32);
        graph.elementwise(Expr::Const(factor) * Expr::Input(0) / count, &[squares, rows])
    };
    let column = graph.slice(h, 0, 1)?;
    let one = graph.elementwise(Expr::Const(1.0), &[column])?;
    let mut parts = Vec::new();
    if layer.activation_penalty > 0.0 {
        let (squares, rows) = (graph.sum_of_squares(&[h])?, graph.sum(&[one])?);
        parts.push(mean(graph, layer.activation_penalty, squares, rows)?);
    }
    if layer.temporal_penalty > 0.0 {
        // Each step beside the one before; a sequence's first has none.
        let window = Window { padding: Padding::Causal, ..Window::new(2) };
        let pairs = graph.gather(Gather::Windows { window, axis, fill: 0.0 }, h)?;
        let there = graph.gather(Gather::Windows { window, axis, fill: 0.0 }, one)?;
        let (before, now) = (graph.slice(pairs, 0, features)?, graph.slice(pairs, features, features)?);
        let has = graph.slice(there, 0, 1)?;
        let change = (Expr::Input(1) - Expr::Input(0)) * Expr::Input(2);
        let change = graph.elementwise(change, &[before, now, has])?;
        let (squares, rows) = (graph.sum_of_squares(&[change])?, graph.sum(&[has])?);
        parts.push(mean(graph, layer.temporal_penalty, squares, rows)?);
    }
    Ok(if parts.is_empty() { None } else { Some(graph.sum(&parts)?) })
}

fn axis(outputs: &[Signal]) -> Result<u8> {
    outputs.first().and_then(Signal::axis).ok_or_else(|| Error::internal("a sequence without a time axis"))
}

/// The steps of each window side by side, `fill` beyond a sequence.
fn windows(
    graph: &mut Graph,
    window: Window,
    (x, signal): (Value, Signal),
    outputs: &[Signal],
    fill: f32,
) -> Result<Value> {
    let axis = axis(outputs)?;
    let shifted = matches!(window.padding, Padding::Explicit { before, .. } if before != 0);
    if window.taps == 1 && signal.axis() == Some(axis) && !shifted {
        return Ok(x);
    }
    graph.gather(Gather::Windows { window, axis, fill }, x)
}

/// The largest or the mean of the steps of each window that are in its sequence.
fn pool(graph: &mut Graph, layer: &Pooling1D, x: (Value, Signal), outputs: &[Signal]) -> Result<Value> {
    let (window, features) = (layer.window, x.1.features().unwrap_or(0));
    let fill = if layer.kind == PoolingKind::Max { f32::MIN } else { 0.0 };
    let seen = windows(graph, window, x, outputs, fill)?;
    let taps = (0..window.taps).map(|tap| graph.slice(seen, tap * features, features)).collect::<Result<Vec<_>>>()?;
    if layer.kind == PoolingKind::Max {
        return merge(graph, MergeKind::Maximum, &taps);
    }
    let sum = merge(graph, MergeKind::Add, &taps)?;
    // One for each step that a window sees.
    let column = graph.slice(x.0, 0, 1)?;
    let ones = graph.elementwise(Expr::Const(1.0), &[column])?;
    let ones = windows(graph, window, (ones, x.1), outputs, 0.0)?;
    let count = graph.reduce(ReduceKind::Sum, Over::Columns, ones)?;
    graph.elementwise(Expr::Input(0) / Expr::Input(1), &[sum, count])
}

/// All values of a sample in a row of `len`.
fn flat(graph: &mut Graph, (x, signal): (Value, Signal), len: Option<usize>) -> Result<Value> {
    match (signal, len) {
        (Signal::Sequence { features, .. }, Some(len)) => graph.gather(Gather::Flatten { steps: len / features }, x),
        _ => Ok(x),
    }
}

/// The mean over each sequence's own steps; zero where there is none.
fn mean_over_time(graph: &mut Graph, x: Value) -> Result<Value> {
    let sum = graph.over_time(TimeKind::Sum, x)?;
    let column = graph.slice(x, 0, 1)?;
    let one = graph.elementwise(Expr::Const(1.0), &[column])?;
    let count = graph.over_time(TimeKind::Sum, one)?;
    graph.elementwise(Expr::Input(0) / Expr::Input(1).max(Expr::Const(1.0)), &[sum, count])
}

/// Values that one expression joins, so that it stays flat and binds few buffers.
const JOINED: usize = 4;

fn merge(graph: &mut Graph, kind: MergeKind, inputs: &[Value]) -> Result<Value> {
    if inputs.len() > JOINED && kind != MergeKind::Concatenate {
        let part = if kind == MergeKind::Average { MergeKind::Add } else { kind };
        let parts = inputs.chunks(JOINED).map(|some| merge(graph, part, some)).collect::<Result<Vec<_>>>()?;
        let whole = merge(graph, part, &parts)?;
        return match kind {
            MergeKind::Average => graph.elementwise(Expr::Input(0) * Expr::Const(1.0 / inputs.len() as f32), &[whole]),
            _ => Ok(whole),
        };
    }
    let all = (1..inputs.len()).map(Expr::Input);
    let first = Expr::Input(0);
    let expr = match kind {
        MergeKind::Concatenate => return graph.concat(inputs),
        MergeKind::Add => all.fold(first, |a, b| a + b),
        MergeKind::Subtract => all.fold(first, |a, b| a - b),
        MergeKind::Multiply => all.fold(first, |a, b| a * b),
        MergeKind::Average => all.fold(first, |a, b| a + b) * Expr::Const(1.0 / inputs.len() as f32),
        MergeKind::Maximum => all.fold(first, Expr::max),
        MergeKind::Minimum => all.fold(first, Expr::min),
    };
    graph.elementwise(expr, inputs)
}

fn lstm(graph: &mut Graph, placed: &Placed<'_>, layer: &Lstm, states: &mut Vec<(Value, Value)>) -> Result<Vec<Value>> {
    let Placed { node, inputs, parameters, options, .. } = *placed;
    let (mut x, input) = (inputs[0].0, inputs[0].1.features().unwrap_or(0));
    let (d, config) = (layer.direction.count(), layer.config(input));
    let cell = config.cell;
    let draws = cell.recurrent_dropout > 0.0 || cell.zoneout_h > 0.0 || cell.zoneout_c > 0.0;
    let random = (options.training && draws).then(|| graph.random_operations(3));
    // What is reversed is stored in the order of time: a layer that reads it from its start reads back in time.
    let direction = match (layer.direction, inputs[0].1.mirrored() != layer.go_backwards) {
        (Direction::Forward, true) => Direction::Reverse,
        (Direction::Reverse, true) => Direction::Forward,
        (direction, _) => direction,
    };
    let op = LstmOp { direction, cell, random };
    if options.training && layer.dropout > 0.0 {
        x = graph.dropout_masked(x, layer.dropout, Mask::Sequence)?;
    }
    let mut values: Vec<Value> = parameters.to_vec();
    let named = lstm_parameters(&config, 0);
    if options.training && layer.weight_drop > 0.0 {
        for (parameter, value) in named.iter().zip(&mut values).filter(|(p, _)| p.role == "weight_hh") {
            debug_assert!(parameter.direction < d);
            *value = graph.dropout(*value, layer.weight_drop)?;
        }
    }
    let of = |direction: usize, role: &str| {
        named.iter().position(|p| p.direction == direction && p.role == role).map(|at| values[at])
    };
    let mut weights =
        (0..d).map(|direction| LstmWeights::by_role(|role| of(direction, role))).collect::<Result<Vec<_>>>()?;
    // Over what is reversed, the layer's forward direction is the one that runs back in time.
    let swapped = inputs[0].1.mirrored() && d == 2;
    if swapped {
        weights.swap(0, 1);
    }
    let (mut state, mut kept) = (None, None);
    if inputs.len() > 1 {
        // h and c of each direction, in turn.
        let every = |first: usize| {
            let mut all: Vec<Value> = inputs[first..].iter().step_by(2).map(|i| i.0).collect();
            if swapped {
                all.reverse();
            }
            all
        };
        state = Some((graph.concat(&every(1))?, graph.concat(&every(2))?));
    } else if layer.stateful {
        let mut carried = |part: &str, size: usize| {
            let name = format!("{}{}.{part}_l0", options.state_prefix, node.name);
            let rows = options.slots.map_or(B, |slots| Dim::Fixed(slots.count));
            graph.persistent(&name, [rows, Dim::Fixed(d * size)])
        };
        kept = Some((carried("h", config.output_size())?, carried("c", layer.units)?));
        state = kept;
        if let (Some((h, c)), Some(slots)) = (kept, options.slots) {
            state = Some((graph.embedding(h, slots.from)?, graph.embedding(c, slots.from)?));
        }
    }
    let out = graph.lstm_layer(x, state, &op, &weights)?;
    if let Some((h, c)) = kept {
        for (kept, end) in [(h, out.h_n), (c, out.c_n)] {
            states.push((kept, options.slots.map_or(Ok(end), |slots| graph.scatter(kept, slots.to, end))?));
        }
    }
    lstm_results(graph, layer, &out, config.output_size(), swapped)
}

/// The layer's outputs: all of h or the last of it, directions merged, then the final states.
fn lstm_results(graph: &mut Graph, layer: &Lstm, out: &LstmOutputs, r: usize, swapped: bool) -> Result<Vec<Value>> {
    let main = if layer.return_sequences { out.y } else { out.h_n };
    let both = layer.direction == Direction::Both;
    let half = |graph: &mut Graph, value: Value, d: usize, size: usize| match both {
        true => graph.slice(value, if swapped { 1 - d } else { d } * size, size),
        false => Ok(value),
    };
    let mut all = match layer.merge {
        MergeMode::Concat if !swapped => vec![main],
        _ if !both => vec![main],
        mode => {
            let (forward, reverse) = (half(graph, main, 0, r)?, half(graph, main, 1, r)?);
            let pair = [forward, reverse];
            match mode {
                MergeMode::Sum => vec![merge(graph, MergeKind::Add, &pair)?],
                MergeMode::Product => vec![merge(graph, MergeKind::Multiply, &pair)?],
                MergeMode::Average => vec![merge(graph, MergeKind::Average, &pair)?],
                MergeMode::Concat => vec![graph.concat(&pair)?],
                MergeMode::Apart => pair.to_vec(),
            }
        }
    };
    if layer.return_state {
        for d in 0..layer.direction.count() {
            all.extend([half(graph, out.h_n, d, r)?, half(graph, out.c_n, d, layer.units)?]);
        }
    }
    Ok(all)
}
