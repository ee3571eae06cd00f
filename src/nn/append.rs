//! Each layer as operations of a graph.

use super::activation::apply;
use super::{GraphOptions, Layer, Lstm, MergeKind, MergeMode, Node, PoolingKind, Signal};
use crate::config::{Direction, Mask};
use crate::error::{Error, Result};
use crate::graph::builder::{LstmOutputs, LstmWeights};
use crate::graph::{B, Dim, Expr, Graph, LstmOp, TimeKind, Value};
use crate::params::lstm_parameters;

/// Adds a layer over `inputs`; gives its outputs, which are `outputs`. Carried states go to `states`.
pub(super) fn append(
    graph: &mut Graph,
    node: &Node,
    inputs: &[(Value, Signal)],
    outputs: &[Signal],
    parameters: &[Value],
    options: GraphOptions<'_>,
    states: &mut Vec<(Value, Value)>,
) -> Result<Vec<Value>> {
    let Some(&(x, signal)) = inputs.first() else { return Err(Error::internal("a layer without input")) };
    let one = match &node.layer {
        Layer::Embedding(_) => graph.embedding(parameters[0], x)?,
        Layer::Lstm(layer) => return lstm(graph, node, layer, inputs, parameters, options, states),
        Layer::Dense(layer) => {
            let y = graph.linear(x, parameters[0], parameters.get(1).copied())?;
            apply(layer.activation, graph, y)?
        }
        Layer::Dropout(layer) if options.training => graph.dropout(x, layer.rate)?,
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
            PoolingKind::Max => graph.over_time(TimeKind::Max, x)?,
            PoolingKind::Average => mean_over_time(graph, x)?,
        },
        Layer::RepeatVector(_) => match outputs.first().and_then(Signal::axis) {
            Some(axis) => graph.each_step(axis, x)?,
            None => return Err(Error::internal("a sequence without a time axis")),
        },
        Layer::Merge(layer) => merge(graph, layer.kind, &inputs.iter().map(|i| i.0).collect::<Vec<_>>())?,
    };
    debug_assert!(signal.features().is_some() || matches!(node.layer, Layer::Embedding(_)));
    Ok(vec![one])
}

/// The mean over each sequence's own steps; zero where there is none.
fn mean_over_time(graph: &mut Graph, x: Value) -> Result<Value> {
    let sum = graph.over_time(TimeKind::Sum, x)?;
    let column = graph.slice(x, 0, 1)?;
    let one = graph.elementwise(Expr::Const(1.0), &[column])?;
    let count = graph.over_time(TimeKind::Sum, one)?;
    graph.elementwise(Expr::Input(0) / Expr::Input(1).max(Expr::Const(1.0)), &[sum, count])
}

fn merge(graph: &mut Graph, kind: MergeKind, inputs: &[Value]) -> Result<Value> {
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

fn lstm(
    graph: &mut Graph,
    node: &Node,
    layer: &Lstm,
    inputs: &[(Value, Signal)],
    parameters: &[Value],
    options: GraphOptions<'_>,
    states: &mut Vec<(Value, Value)>,
) -> Result<Vec<Value>> {
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
    let weights =
        (0..d).map(|direction| LstmWeights::by_role(|role| of(direction, role))).collect::<Result<Vec<_>>>()?;
    let mut state = None;
    if inputs.len() > 1 {
        // h and c of each direction, in turn.
        let every = |first: usize| inputs[first..].iter().step_by(2).map(|i| i.0).collect::<Vec<_>>();
        state = Some((graph.concat(&every(1))?, graph.concat(&every(2))?));
    } else if layer.stateful {
        let mut carried = |part: &str, size: usize| {
            let name = format!("{}{}.{part}_l0", options.state_prefix, node.name);
            graph.persistent(&name, [B, Dim::Fixed(d * size)])
        };
        state = Some((carried("h", config.output_size())?, carried("c", layer.units)?));
    }
    let out = graph.lstm_layer(x, state, &op, &weights)?;
    if let (Some((h, c)), true) = (state, layer.stateful) {
        states.extend([(h, out.h_n), (c, out.c_n)]);
    }
    lstm_results(graph, layer, &out, config.output_size())
}

/// The layer's outputs: all of h or the last of it, directions merged, then the final states.
fn lstm_results(graph: &mut Graph, layer: &Lstm, out: &LstmOutputs, r: usize) -> Result<Vec<Value>> {
    let main = if layer.return_sequences { out.y } else { out.h_n };
    let both = layer.direction == Direction::Both;
    let half = |graph: &mut Graph, value: Value, d: usize, size: usize| match both {
        true => graph.slice(value, d * size, size),
        false => Ok(value),
    };
    let mut all = match layer.merge {
        MergeMode::Concat => vec![main],
        _ if !both => vec![main],
        mode => {
            let (forward, reverse) = (half(graph, main, 0, r)?, half(graph, main, 1, r)?);
            let pair = [forward, reverse];
            match mode {
                MergeMode::Sum => vec![merge(graph, MergeKind::Add, &pair)?],
                MergeMode::Product => vec![merge(graph, MergeKind::Multiply, &pair)?],
                MergeMode::Average => vec![merge(graph, MergeKind::Average, &pair)?],
                MergeMode::Concat | MergeMode::Apart => pair.to_vec(),
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
