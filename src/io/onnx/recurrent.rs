//! ONNX's LSTM, in every form, as layers.

use super::constants;
use super::host::Host;
use super::int::Int;
use super::layout::{Atom, Axis, Kind, Lifted};
use super::lower::{Lower, Outputs};
use super::node::Node;
use super::value::Val;
use crate::config::{Activation, Bias, Cell, Direction, GATES, PEEPHOLES};
use crate::error::{Error, Result};
use crate::nn::{Columns, Init, Input, Lstm, Merge, MergeKind, Port};
use crate::params::{Tensor, lstm_parameters};
use std::rc::Rc;

/// ONNX's blocks are i, o, f, c: where i, f, g, o are among them.
const BLOCKS: [usize; GATES] = [0, 2, 3, 1];
/// Its peepholes are i, o, f: where i, f, o are among them.
const PEEPHOLE_BLOCKS: [usize; PEEPHOLES] = [0, 2, 1];

/// Blocks of `rows` rows in another order.
fn reordered(values: &[f32], blocks: &[usize]) -> Vec<f32> {
    let block = values.len() / blocks.len();
    blocks.iter().flat_map(|&at| &values[at * block..(at + 1) * block]).copied().collect()
}

/// An activation by ONNX's name; alpha and beta are the next of those listed, where it has them.
fn activation(
    name: &str,
    alphas: &mut dyn Iterator<Item = f32>,
    betas: &mut dyn Iterator<Item = f32>,
) -> Result<Activation> {
    // No operator says what these are where the file does not, and programs differ.
    let missing = || Error::unsupported(format!("the activation `{name}` without its parameters"));
    Ok(match name.to_ascii_lowercase().as_str() {
        "sigmoid" => Activation::Sigmoid,
        "tanh" => Activation::Tanh,
        "relu" => Activation::Relu,
        "softsign" => Activation::Softsign,
        "softplus" => Activation::Softplus,
        "affine" => {
            Activation::Affine { alpha: alphas.next().ok_or_else(missing)?, beta: betas.next().ok_or_else(missing)? }
        }
        "leakyrelu" => Activation::LeakyRelu { alpha: alphas.next().unwrap_or(0.01) },
        "thresholdedrelu" => Activation::ThresholdedRelu { alpha: alphas.next().ok_or_else(missing)? },
        "scaledtanh" => Activation::ScaledTanh {
            alpha: alphas.next().ok_or_else(missing)?,
            beta: betas.next().ok_or_else(missing)?,
        },
        "hardsigmoid" => {
            Activation::HardSigmoid { alpha: alphas.next().unwrap_or(0.2), beta: betas.next().unwrap_or(0.5) }
        }
        "elu" => Activation::Elu { alpha: alphas.next().unwrap_or(1.0) },
        _ => return Err(Error::unsupported(format!("the activation `{name}` is not supported"))),
    })
}

/// The values of a node's weights.
struct Weights<'a> {
    w: &'a Host,
    r: &'a Host,
    b: Option<&'a Host>,
    p: Option<&'a Host>,
    hidden: usize,
    input: usize,
    directions: usize,
}

impl Weights<'_> {
    /// A parameter of direction `d`.
    fn values(&self, role: &str, d: usize) -> Result<Vec<f32>> {
        let of = |host: &Host, first: usize, len: usize| -> Result<Vec<f32>> {
            let run = host.floats()?.len() / self.directions;
            Ok(host.floats()?[d * run + first..d * run + first + len].to_vec())
        };
        let four_h = GATES * self.hidden;
        let (values, blocks) = match (role, self.b, self.p) {
            ("weight_ih", ..) => (of(self.w, 0, four_h * self.input)?, &BLOCKS[..]),
            ("weight_hh", ..) => (of(self.r, 0, four_h * self.hidden)?, &BLOCKS[..]),
            ("bias_ih", Some(b), _) => (of(b, 0, four_h)?, &BLOCKS[..]),
            ("bias_hh", Some(b), _) => (of(b, four_h, four_h)?, &BLOCKS[..]),
            ("peepholes", _, Some(p)) => (of(p, 0, PEEPHOLES * self.hidden)?, &PEEPHOLE_BLOCKS[..]),
            _ => return Err(Error::internal(format!("an LSTM without `{role}`"))),
        };
        Ok(reordered(&values, blocks))
    }
}

/// A node as layers.
pub(super) fn lstm(lower: &mut Lower<'_>, node: &Node<'_>) -> Outputs {
    let layout = node.int("layout")?.unwrap_or(0);
    if !matches!(layout, 0 | 1) || (layout == 1 && node.version < 14) {
        return Err(Error::data(format!("layout {layout} of version {}", node.version)));
    }
    let batch_first = layout == 1;
    let directions = match node.text("direction")?.unwrap_or("forward") {
        "forward" => vec![Direction::Forward],
        "reverse" => vec![Direction::Reverse],
        "bidirectional" => vec![Direction::Forward, Direction::Reverse],
        other => return Err(Error::data(format!("the direction `{other}` is not known"))),
    };
    let d = directions.len();
    let cells = cells(node, d)?;
    let (w, r) = (node.input(1)?.host()?, node.input(2)?.host()?);
    let (b, p) = (node.maybe(3).map(Val::host).transpose()?, node.maybe(7).map(Val::host).transpose()?);
    let (&[wd, four_h, input], &[rd, same, hidden]) = (&w.shape[..], &r.shape[..]) else {
        return Err(Error::shape(format!("W of {:?} and R of {:?}", w.shape, r.shape)));
    };
    let fits = |host: Option<&Rc<Host>>, wanted: [usize; 2]| host.is_none_or(|h| h.shape == wanted);
    let whole = four_h == same && Some(four_h) == hidden.checked_mul(GATES) && wd == d && rd == d && hidden > 0;
    if !whole || input == 0 || !fits(b, [d, 8 * hidden]) || !fits(p, [d, PEEPHOLES * hidden]) {
        return Err(Error::shape(format!(
            "W of {:?}, R of {:?}, B of {:?} and P of {:?} in {d} directions",
            w.shape,
            r.shape,
            b.map(|b| &b.shape),
            p.map(|p| &p.shape)
        )));
    }
    if let Some(size) = node.int("hidden_size")?.filter(|&n| n != hidden as i64) {
        return Err(Error::shape(format!("hidden_size {size}, where R has {hidden}")));
    }
    let weights = Weights { w, r, b: b.map(|b| &**b), p: p.map(|p| &**p), hidden, input, directions: d };

    let x = lower.lifted(node.input(0)?)?;
    let (steps, batch) = if batch_first { (1, 0) } else { (0, 1) };
    let x = sequence(lower, &x, steps, batch, input)?;
    let (outer, axis) = (x.port, x.axis.ok_or_else(|| Error::internal("a sequence without steps"))?);
    let mut inner = outer;
    let order = x.dims[batch].clone();
    let lengths = match node.maybe(4) {
        None => None,
        Some(value) => lengths(lower, (value, node.name(4)), axis, &order)?,
    };
    if let Some(lengths) = lengths {
        inner = lower.add(crate::nn::Along {}, &[outer, lengths])?[0];
    }
    let states = initial(lower, node, (batch, d, hidden), x.clone())?;

    // One layer for both directions where they differ in nothing.
    let alike = d == 2 && cells[0] == cells[1];
    let kinds = if alike { vec![(Direction::Both, 0)] } else { directions.into_iter().zip(0..).collect() };
    let (mut ys, mut ends) = (Vec::new(), Vec::new());
    for (direction, first) in kinds {
        let cell = cells[first];
        let layer = Lstm::new(hidden)
            .activation(cell.candidate)
            .recurrent_activation(cell.gate)
            .output_activation((cell.output != cell.candidate).then_some(cell.output))
            .direction(direction)
            .return_sequences(true)
            .return_state(true)
            .bias(if b.is_some() { Bias::Two } else { Bias::None })
            .cell(cell)
            .initializers(Init::PyTorch);
        let mut inputs = vec![inner];
        if let Some(states) = &states {
            inputs.extend(&states[2 * first..2 * (first + direction.count())]);
        }
        let out = lower.add(layer.clone(), &inputs)?;
        ys.push(out[0]);
        ends.extend(&out[1..]);
        for parameter in lstm_parameters(&layer.config(input), 0) {
            let values = weights.values(parameter.role, first + parameter.direction)?;
            let source = match parameter.role {
                "weight_ih" => node.name(1),
                "weight_hh" => node.name(2),
                "peepholes" => node.name(7),
                _ => node.name(3),
            };
            lower.parameter(&parameter.name, Tensor::new(&parameter.shape, values)?, source);
        }
    }
    let mut outputs = vec![None; 3];
    let h = Atom::Features { size: hidden, stride: 1 };
    let both = Atom::Features { size: d, stride: hidden };
    let (time, sequences) = (lower.sizes.as_axis(Atom::Steps(axis)), order);
    if node.gives(0) {
        let mut y = join(lower, &ys)?;
        if lengths.is_some() {
            y = lower.add(crate::nn::Along {}, &[y, outer])?[0];
        }
        let dims = match batch_first {
            false => vec![time, vec![both], sequences.clone(), vec![h]],
            true => vec![sequences.clone(), time, vec![both], vec![h]],
        };
        let y = lower.lift(y, Kind::Float, dims)?;
        // One step alone is a row again.
        outputs[0] = Some(lower.rows(&y)?.into());
    }
    for (at, part) in [(1, 0), (2, 1)] {
        if node.gives(at) {
            let all: Vec<Port> = ends.iter().skip(part).step_by(2).copied().collect();
            let state = join(lower, &all)?;
            let dims = match batch_first {
                false => vec![vec![both], sequences.clone(), vec![h]],
                true => vec![sequences.clone(), vec![both], vec![h]],
            };
            outputs[at] = Some(lower.lift(state, Kind::Float, dims)?.into());
        }
    }
    Ok(outputs)
}

/// Values side by side.
fn join(lower: &mut Lower<'_>, ports: &[Port]) -> Result<Port> {
    match ports {
        [one] => Ok(*one),
        _ => Ok(lower.add(Merge::new(MergeKind::Concatenate), ports)?[0]),
    }
}

/// What a step computes in each direction.
fn cells(node: &Node<'_>, d: usize) -> Result<Vec<Cell>> {
    let names = node.texts("activations")?.filter(|names| !names.is_empty());
    if let Some(names) = names.as_ref().filter(|names| names.len() != 3 * d) {
        return Err(Error::data(format!("expected {} activations, got {names:?}", 3 * d)));
    }
    let mut alphas = node.floats("activation_alpha")?.unwrap_or(&[]).iter().copied();
    let mut betas = node.floats("activation_beta")?.unwrap_or(&[]).iter().copied();
    let clip = node.float("clip")?.filter(|&c| c != 0.0);
    let coupled = node.int("input_forget")?.unwrap_or(0) != 0;
    let own = ["Sigmoid", "Tanh", "Tanh"];
    let cells = (0..d).map(|at| {
        let mut next = |of: usize| {
            let name = names.as_ref().map_or(own[of], |names| names[3 * at + of]);
            activation(name, &mut alphas, &mut betas)
        };
        let (gate, candidate, output) = (next(0)?, next(1)?, next(2)?);
        Ok(Cell { gate, candidate, output, clip, coupled, peepholes: node.maybe(7).is_some(), ..Cell::default() })
    });
    let cells = cells.collect::<Result<Vec<_>>>()?;
    if let Some(left) = alphas.next().or(betas.next()) {
        return Err(Error::data(format!("a parameter of activations, {left}, that no activation takes")));
    }
    Ok(cells)
}

/// X as a sequence of `input` features.
fn sequence(lower: &mut Lower<'_>, x: &Lifted, steps: usize, batch: usize, input: usize) -> Result<Lifted> {
    let wrong = |what: &str| Err(Error::unsupported(format!("X: {what}")));
    let [_, _, features] = &x.dims[..] else {
        return wrong(&format!("expected 3 dimensions, got {}", x.dims.len()));
    };
    if !x.is_features(features) {
        return wrong("its last dimension is not the features of a step");
    }
    if x.features != input {
        return Err(Error::shape(format!("X has {} features, W takes {input}", x.features)));
    }
    if !lower.sizes.are_sequences(&x.dims[batch]) {
        return wrong("one of its dimensions is not that of the model's sequences");
    }
    match (&x.dims[steps][..], x.axis) {
        ([Atom::Steps(_)], Some(_)) => Ok(x.clone()),
        ([], _) => lower.sequence(x),
        _ => wrong("one of its dimensions is not that of steps"),
    }
}

/// The input that says how long sequences are; none where all are as long as they can be.
fn lengths(lower: &mut Lower<'_>, (value, name): (&Val, &str), axis: u8, order: &Axis) -> Result<Option<Port>> {
    let other = || Error::unsupported("sequence_lens in another order than the sequences");
    match value {
        Val::Lifted(lengths) if lengths.kind == Kind::Lengths => {
            if lengths.dims[..] == [order.clone()] {
                Ok(Some(lengths.port))
            } else {
                Err(other())
            }
        }
        Val::Host(_) | Val::Spread { .. } => {
            let full = match value {
                Val::Host(host) | Val::Spread { base: host, .. } => {
                    let steps = lower.sizes.atom(Atom::Steps(axis));
                    host.whole()?.iter().all(|n| *n == steps)
                }
                _ => false,
            };
            if full {
                return Ok(None);
            }
            let known = lower.constant_lengths.get(name).copied();
            if *order != lower.sizes.as_axis(Atom::Batch) {
                return Err(other());
            }
            known.map(Some).ok_or_else(|| Error::unsupported("sequence_lens that the file computes"))
        }
        _ => Err(Error::unsupported("sequence_lens that depend on the values of tensors, other than an input's")),
    }
}

/// The initial h and c of each direction in turn; none where all are zero.
fn initial(
    lower: &mut Lower<'_>,
    node: &Node<'_>,
    (batch, d, hidden): (usize, usize, usize),
    x: Lifted,
) -> Result<Option<Vec<Port>>> {
    let given = [node.maybe(5), node.maybe(6)];
    let zero = |value: &Val| match value {
        Val::Host(host) | Val::Spread { base: host, .. } => host.floats().is_ok_and(|v| v.iter().all(|&x| x == 0.0)),
        _ => false,
    };
    let (_, others) = if batch == 0 { (0, 1) } else { (1, 0) };
    let mut ports = vec![Vec::new(); 2];
    for (part, value) in ports.iter_mut().zip(given) {
        let Some(value) = value else { continue };
        let sizes = value.dims(&lower.sizes)?;
        let whole = |at: usize, n: usize| sizes.get(at) == Some(&Int::Known(n as i64));
        if sizes.len() != 3 || !whole(others, d) || !whole(2, hidden) || sizes[batch] != lower.sizes.batch {
            let sizes: Vec<String> = sizes.iter().map(Int::to_string).collect();
            return Err(Error::shape(format!("an initial state of [{}]", sizes.join(", "))));
        }
        if zero(value) {
            continue;
        }
        let other = || Error::unsupported("initial states in another order than the sequences");
        *part = match value {
            Val::Lifted(state) if state.dims[batch] != x.dims[batch] => return Err(other()),
            Val::Host(base) | Val::Spread { base, .. }
                if base.shape[batch] != 1 && x.dims[batch] != lower.sizes.as_axis(Atom::Batch) =>
            {
                return Err(other());
            }
            Val::Lifted(state) => columns(lower, state, batch, (d, hidden))?,
            Val::Host(base) | Val::Spread { base, .. } => constant(lower, base, batch, (d, hidden), &x)?,
            _ => return Err(Error::unsupported("an initial state that is no float")),
        };
    }
    if ports.iter().all(Vec::is_empty) {
        return Ok(None);
    }
    for part in &mut ports {
        if part.is_empty() {
            let zeros = Host::new(vec![1, 1, 1], super::host::Data::Float(vec![0.0]))?;
            let zeros = zeros.expand(&lower.budget, &if batch == 0 { [1, d, hidden] } else { [d, 1, hidden] })?;
            *part = constant(lower, &zeros, batch, (d, hidden), &x)?;
        }
    }
    Ok(Some(ports[0].iter().zip(&ports[1]).flat_map(|(&h, &c)| [h, c]).collect()))
}

/// A state that the network has, by directions.
fn columns(lower: &mut Lower<'_>, state: &Lifted, batch: usize, (d, hidden): (usize, usize)) -> Result<Vec<Port>> {
    let state = lower.rows(state)?;
    let in_order = super::layout::joined(
        state.dims.iter().enumerate().filter(|a| a.0 != batch).flat_map(|a| a.1.clone()).collect(),
    );
    if state.axis.is_some() || !state.is_features(&in_order) {
        return Err(Error::unsupported("an initial state that is not a row of each sequence, in its order"));
    }
    if d == 1 {
        return Ok(vec![state.port]);
    }
    (0..d).map(|at| Ok(lower.add(Columns { first: at * hidden, count: hidden }, &[state.port])?[0])).collect()
}

/// The same state for each sequence, by directions: a bias over a column of zeros.
fn constant(
    lower: &mut Lower<'_>,
    base: &Host,
    batch: usize,
    (d, hidden): (usize, usize),
    x: &Lifted,
) -> Result<Vec<Port>> {
    if base.shape[batch] != 1 {
        // One of its own for each sequence, of which there are as many as the file says: an input that it gives.
        let rows = if batch == 0 { base.clone() } else { base.transpose(&lower.budget, &[1, 0, 2])? };
        let name = format!("initial_state_{}", lower.constants.len());
        let values = Tensor::new(&[rows.shape[0], d * hidden], rows.floats()?.to_vec())?;
        lower.constants.insert(name.clone(), values);
        let port = lower.network.input(&name, Input::Rows(d * hidden))?;
        let halves = (0..d).map(|at| lower.add(Columns { first: at * hidden, count: hidden }, &[port]).map(|p| p[0]));
        return if d == 1 { Ok(vec![port]) } else { halves.collect() };
    }
    let all = base.expand(&lower.budget, &if batch == 0 { [1, d, hidden] } else { [d, 1, hidden] })?;
    let values: Vec<&[f32]> = all.floats()?.chunks_exact(hidden).collect();
    constants::rows(lower, x.port, &values)
}
