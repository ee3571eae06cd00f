//! An LSTM layer as ONNX's operator, or as a scan over its step where that is another.

use super::builder::{Writer, float, floats, graph, info, int, ints, text, texts};
use super::schema::{Graph, dtype};
use super::write::Value;
use crate::config::{Bias, Cell, Direction, GATES};
use crate::error::{Error, Result};
use crate::nn::{Activation, Fill, Lstm, MergeMode, Node as Placed, Signal};
use crate::params::{LstmParameter, Tensor, lstm_parameters};

/// Ours are i, f, g, o: where ONNX's i, o, f, c are among them.
const BLOCKS: [usize; 4] = [0, 3, 1, 2];
/// Ours are i, f, o: where its i, o, f are among them.
const PEEPHOLE_BLOCKS: [usize; 3] = [0, 2, 1];

/// An activation by ONNX's name, with alpha and beta where it has them.
fn named(activation: Activation) -> Option<(&'static str, Option<f32>, Option<f32>)> {
    Some(match activation {
        Activation::Sigmoid => ("Sigmoid", None, None),
        Activation::Tanh => ("Tanh", None, None),
        Activation::Relu => ("Relu", None, None),
        Activation::Softsign => ("Softsign", None, None),
        Activation::Softplus => ("Softplus", None, None),
        Activation::Linear => ("Affine", Some(1.0), Some(0.0)),
        Activation::Affine { alpha, beta } => ("Affine", Some(alpha), Some(beta)),
        Activation::LeakyRelu { alpha } => ("LeakyRelu", Some(alpha), None),
        Activation::ThresholdedRelu { alpha } => ("ThresholdedRelu", Some(alpha), None),
        Activation::ScaledTanh { alpha, beta } => ("ScaledTanh", Some(alpha), Some(beta)),
        Activation::HardSigmoid { alpha, beta } => ("HardSigmoid", Some(alpha), Some(beta)),
        Activation::Elu { alpha } => ("Elu", Some(alpha), None),
        Activation::Selu | Activation::Swish | Activation::Exponential | Activation::Softmax => return None,
    })
}

/// A layer in its place.
struct Layer<'a> {
    node: &'a Placed,
    layer: &'a Lstm,
    cell: Cell,
    parameters: Vec<LstmParameter>,
    /// For each direction that runs, forward first where there are two, which of the layer's it is.
    directions: Vec<usize>,
    /// Whether each of them runs back in time.
    reversed: Vec<bool>,
    /// R and H.
    sizes: [usize; 2],
}

impl Layer<'_> {
    /// The name of a parameter of a direction that runs.
    fn name(&self, at: usize, role: &str) -> Option<String> {
        let own = self.directions[at];
        let found = self.parameters.iter().find(|p| p.direction == own && p.role == role)?;
        Some(format!("{}.{}", self.node.name, found.name))
    }

    /// Whether ONNX's operator computes its step.
    fn is_plain(&self) -> bool {
        let cell = &self.cell;
        let activations = [cell.gate, cell.candidate, cell.output].into_iter().all(|a| named(a).is_some());
        activations
            && cell.layer_norm.is_none()
            && cell.cell_clip.is_none()
            && cell.zoneout_h == 0.0
            && cell.zoneout_c == 0.0
            && self.layer.projection.is_none()
    }
}

/// What a layer gives for all steps, `[B, T, R]` for each direction that runs, and its final h and c, `[B, ..]`.
struct Ran {
    steps: Vec<String>,
    h: Vec<String>,
    c: Vec<String>,
}

impl Writer<'_> {
    pub(super) fn lstm(
        &mut self,
        node: &Placed,
        layer: &Lstm,
        read: &[Value],
        signals: &[Signal],
        fill: Fill,
    ) -> Result<Vec<Value>> {
        let x = read.first().ok_or_else(|| Error::internal("an LSTM without input"))?;
        let input = x.signal.features().unwrap_or(0);
        let config = layer.config(input);
        // What is reversed is stored in the order of time: a layer that reads it from its start reads back in time.
        let turned = x.signal.mirrored() != layer.go_backwards;
        let both = layer.direction == Direction::Both;
        let directions = match (both, x.signal.mirrored()) {
            (false, _) => vec![0],
            (true, swapped) => {
                if swapped {
                    vec![1, 0]
                } else {
                    vec![0, 1]
                }
            }
        };
        let reversed = match layer.direction {
            Direction::Both => vec![false, true],
            direction => vec![(direction == Direction::Reverse) != turned],
        };
        let of = Layer {
            node,
            layer,
            cell: config.cell,
            parameters: lstm_parameters(&config, 0),
            directions,
            reversed,
            sizes: [config.output_size(), layer.units],
        };
        let (packed, lengths) = self.packed(x)?;
        let states = self.states(&of, &read[1..])?;
        let by_time = self.op("Transpose", &[&packed], vec![ints("perm", &[1, 0, 2])]);
        let ran = match of.is_plain() {
            true => self.plain(&of, &by_time, lengths.as_deref(), states)?,
            false => self.scanned(&of, &by_time, &packed, lengths.as_deref(), states)?,
        };
        if layer.stateful {
            for (part, all) in [("h", &ran.h), ("c", &ran.c)] {
                let whole = if let [one] = &all[..] { one.clone() } else { self.merged(MergeMode::Concat, all) };
                let name = format!("{}.{part}_n", node.name);
                self.state(&whole, &name);
                let size = of.directions.len() * of.sizes[usize::from(part == "c")];
                self.graph.output.push(info(&name, dtype::FLOAT, &[None, Some(size)], &["batch", ""]));
            }
        }
        self.results(&of, x, ran, signals, fill)
    }

    /// The layer's outputs: all of h or the last of it, directions merged, then the final states.
    fn results(&mut self, of: &Layer<'_>, x: &Value, ran: Ran, signals: &[Signal], fill: Fill) -> Result<Vec<Value>> {
        let layer = of.layer;
        // In the layer's order of directions.
        let own = |all: &[String]| -> Vec<String> {
            let mut list = all.to_vec();
            if of.directions == [1, 0] {
                list.reverse();
            }
            list
        };
        let mut steps = own(&ran.steps);
        if layer.return_sequences && x.mask.is_some() {
            for half in &mut steps {
                *half = self.unpacked(half, x, fill)?;
            }
        }
        let halves = if layer.return_sequences { steps } else { own(&ran.h) };
        let mains = match (&halves[..], layer.merge) {
            ([one], _) => vec![one.clone()],
            (_, MergeMode::Apart) => halves.clone(),
            (_, merge) => vec![self.merged(merge, &halves)],
        };
        let sequence = layer.return_sequences;
        let (mask, lengths) = if sequence { (x.mask.clone(), x.lengths.clone()) } else { (None, None) };
        let mut values: Vec<Value> = mains
            .into_iter()
            .zip(signals)
            .map(|(name, &signal)| Value { name, signal, mask: mask.clone(), lengths: lengths.clone() })
            .collect();
        if layer.return_state {
            let (h, c) = (own(&ran.h), own(&ran.c));
            let states = h.into_iter().zip(c).flat_map(|(h, c)| [h, c]);
            let rest = &signals[values.len()..];
            let states = states.zip(rest).map(|(name, &signal)| Value { name, signal, mask: None, lengths: None });
            values.extend(states.collect::<Vec<_>>());
        }
        Ok(values)
    }

    /// A sequence with the steps that its mask keeps in front, in their order, and how many they are.
    fn packed(&mut self, x: &Value) -> Result<(String, Option<String>)> {
        let Some(mask) = &x.mask else { return Ok((x.name.clone(), x.lengths.clone())) };
        let shape = self.op("Shape", &[mask], Vec::new());
        let (at, zero, one) = (self.index(1), self.index(0), self.index(1));
        let steps = self.op("Gather", &[&shape, &at], vec![int("axis", 0)]);
        let range = self.op("Range", &[&zero, &steps, &one], Vec::new());
        let to_float = || vec![int("to", i64::from(dtype::FLOAT))];
        let (range, wide) = (self.op("Cast", &[&range], to_float()), self.op("Cast", &[&steps], to_float()));
        let kept = self.op("Mul", &[mask, &wide], Vec::new());
        let key = self.op("Sub", &[&kept, &range], Vec::new());
        let first = self.whole(&[0]);
        let count = self.op("Unsqueeze", &[&steps, &first], Vec::new());
        let order = self.ops("TopK", &[&key, &count], 2, vec![int("axis", 1)]).remove(1);
        let packed = self.taken(&x.name, &order);
        let axis = self.whole(&[1]);
        let lengths = self.op("ReduceSum", &[mask, &axis], vec![int("keepdims", 0)]);
        Ok((packed, Some(self.op("Cast", &[&lengths], vec![int("to", i64::from(dtype::INT32))]))))
    }

    /// Steps of x `[B, T, F]` by their numbers `[B, T]`.
    pub fn taken(&mut self, x: &str, order: &str) -> String {
        let last = self.whole(&[2]);
        let order = self.op("Unsqueeze", &[order, &last], Vec::new());
        let shape = self.op("Shape", &[x], Vec::new());
        let order = self.op("Expand", &[&order, &shape], Vec::new());
        self.op("GatherElements", &[x, &order], vec![int("axis", 1)])
    }

    /// The inverse of [`Self::packed`]: what a step that is left out holds is the last one before it, or zero.
    fn unpacked(&mut self, y: &str, x: &Value, fill: Fill) -> Result<String> {
        let mask = x.mask.as_ref().ok_or_else(|| Error::internal("a mask that is not there"))?;
        let (axis, one, zero) = (self.index(1), self.number(1.0), self.number(0.0));
        let sum = self.op("CumSum", &[mask, &axis], Vec::new());
        let place = self.op("Sub", &[&sum, &one], Vec::new());
        let inside = self.op("Max", &[&place, &zero], Vec::new());
        let inside = self.op("Cast", &[&inside], vec![int("to", i64::from(dtype::INT64))]);
        let moved = self.taken(y, &inside);
        let shown = match fill {
            Fill::Zero => mask.clone(),
            Fill::Repeat => {
                let any = self.op("Greater", &[&sum, &zero], Vec::new());
                self.op("Cast", &[&any], vec![int("to", i64::from(dtype::FLOAT))])
            }
            _ => return Err(Error::unsupported("what a layer gives at steps that a mask leaves out")),
        };
        let last = self.whole(&[2]);
        let column = self.op("Unsqueeze", &[&shown, &last], Vec::new());
        Ok(self.op("Mul", &[&moved, &column], Vec::new()))
    }

    /// The initial h and c of each direction that runs, `[B, ..]`: those given, or those that are carried.
    fn states(&mut self, of: &Layer<'_>, given: &[Value]) -> Result<Option<[Vec<String>; 2]>> {
        let d = of.directions.len();
        if of.layer.stateful {
            let mut carried = |part: &str, size: usize| {
                let name = format!("{}.{part}_0", of.node.name);
                self.graph.input.push(info(&name, dtype::FLOAT, &[None, Some(d * size)], &["batch", ""]));
                if d == 1 {
                    return vec![name];
                }
                self.ops("Split", &[&name], d, vec![int("axis", 1)])
            };
            return Ok(Some([carried("h", of.sizes[0]), carried("c", of.sizes[1])]));
        }
        if given.is_empty() {
            return Ok(None);
        }
        let part = |first: usize| of.directions.iter().map(|&own| given[2 * own + first].name.clone()).collect();
        Ok(Some([part(0), part(1)]))
    }

    /// A parameter of each direction that runs as one tensor `[D, ..]`, its blocks in ONNX's order.
    fn stacked(&mut self, of: &Layer<'_>, roles: &[&str], blocks: &[usize]) -> Result<Option<String>> {
        let mut values = Vec::new();
        let mut shape = Vec::new();
        for at in 0..of.directions.len() {
            for role in roles {
                let Some(name) = of.name(at, role) else { continue };
                let tensor = self.parameters.get(&name);
                let tensor: &Tensor = tensor.ok_or_else(|| Error::internal(format!("there is no `{name}`")))?;
                let own = tensor.f32s()?;
                let block = own.len() / blocks.len();
                values.extend(blocks.iter().flat_map(|&b| &own[b * block..(b + 1) * block]));
                shape = tensor.shape().to_vec();
            }
        }
        if values.is_empty() {
            return Ok(None);
        }
        let name = format!("{}.{}", of.node.name, roles[0]);
        let rest: usize = shape[1..].iter().product();
        let rows = values.len() / of.directions.len() / rest.max(1);
        let shape = [&[of.directions.len(), rows], &shape[1..]].concat();
        Ok(Some(self.floats(&name, &shape, &values)))
    }

    /// As ONNX's operator.
    fn plain(
        &mut self,
        of: &Layer<'_>,
        x: &str,
        lengths: Option<&str>,
        states: Option<[Vec<String>; 2]>,
    ) -> Result<Ran> {
        let d = of.directions.len();
        let missing = || Error::internal("an LSTM without weights");
        let w = self.stacked(of, &["weight_ih"], &BLOCKS)?.ok_or_else(missing)?;
        let r = self.stacked(of, &["weight_hh"], &BLOCKS)?.ok_or_else(missing)?;
        let b = match of.layer.bias {
            Bias::None => String::new(),
            Bias::Two => self.stacked(of, &["bias_ih", "bias_hh"], &BLOCKS)?.ok_or_else(missing)?,
            Bias::One => {
                let half = self.stacked(of, &["bias_ih"], &BLOCKS)?.ok_or_else(missing)?;
                let zeros = self.filled("zeros", &[d, GATES * of.sizes[1]], 0.0)?;
                self.op("Concat", &[&half, &zeros], vec![int("axis", 1)])
            }
        };
        let p = match of.cell.peepholes {
            true => self.stacked(of, &["peepholes"], &PEEPHOLE_BLOCKS)?.ok_or_else(missing)?,
            false => String::new(),
        };
        let [h, c] = match states {
            None => [String::new(), String::new()],
            Some(parts) => {
                let first = self.whole(&[0]);
                parts.map(|all| {
                    let all: Vec<String> =
                        all.iter().map(|part| self.op("Unsqueeze", &[part, &first], Vec::new())).collect();
                    let names: Vec<&str> = all.iter().map(String::as_str).collect();
                    if d == 1 { all[0].clone() } else { self.op("Concat", &names, vec![int("axis", 0)]) }
                })
            }
        };
        let direction = match of.reversed[..] {
            [_, _] => "bidirectional",
            [true] => "reverse",
            _ => "forward",
        };
        let mut attributes = vec![int("hidden_size", of.sizes[1] as i64), text("direction", direction)];
        let all = [of.cell.gate, of.cell.candidate, of.cell.output].map(|a| named(a).unwrap_or(("Tanh", None, None)));
        let every: Vec<_> = (0..d).flat_map(|_| all).collect();
        attributes.push(texts("activations", &every.iter().map(|a| a.0).collect::<Vec<_>>()));
        let alphas: Vec<f32> = every.iter().filter_map(|a| a.1).collect();
        let betas: Vec<f32> = every.iter().filter_map(|a| a.2).collect();
        if !alphas.is_empty() {
            attributes.push(floats("activation_alpha", &alphas));
        }
        if !betas.is_empty() {
            attributes.push(floats("activation_beta", &betas));
        }
        attributes.extend(of.cell.clip.map(|clip| float("clip", clip)));
        if of.cell.coupled {
            attributes.push(int("input_forget", 1));
        }
        let inputs = [x, &w, &r, &b, lengths.unwrap_or(""), &h, &c, &p];
        let last = inputs.iter().rposition(|i| !i.is_empty()).unwrap_or(0);
        let out = self.ops("LSTM", &inputs[..=last], 3, attributes);
        // [T, D, B, H] as [B, T, H] of each direction.
        let halves = |writer: &mut Self, name: &str, axis: i64| -> Vec<String> {
            (0..d as i64)
                .map(|at| {
                    let index = writer.index(at);
                    writer.op("Gather", &[name, &index], vec![int("axis", axis)])
                })
                .collect()
        };
        let steps = halves(self, &out[0], 1);
        let steps = steps.iter().map(|y| self.op("Transpose", &[y], vec![ints("perm", &[1, 0, 2])])).collect();
        Ok(Ran { steps, h: halves(self, &out[1], 0), c: halves(self, &out[2], 0) })
    }

    /// As a scan over its step, for each direction that runs.
    fn scanned(
        &mut self,
        of: &Layer<'_>,
        by_time: &str,
        packed: &str,
        lengths: Option<&str>,
        states: Option<[Vec<String>; 2]>,
    ) -> Result<Ran> {
        let inside = lengths.map(|lengths| {
            let inside = self.within(packed, lengths);
            let turned = self.op("Transpose", &[&inside], vec![ints("perm", &[1, 0])]);
            let last = self.whole(&[2]);
            self.op("Unsqueeze", &[&turned, &last], Vec::new())
        });
        let mut ran = Ran { steps: Vec::new(), h: Vec::new(), c: Vec::new() };
        for at in 0..of.directions.len() {
            let given = states.as_ref().map(|[h, c]| [h[at].clone(), c[at].clone()]);
            let [h, c] = match given {
                Some(states) => states,
                None => {
                    let shape = self.op("Shape", &[packed], Vec::new());
                    let (first, second) = (self.whole(&[0]), self.whole(&[1]));
                    let batch = self.op("Slice", &[&shape, &first, &second], Vec::new());
                    of.sizes.map(|size| {
                        let size = self.whole(&[size as i64]);
                        let shape = self.op("Concat", &[&batch, &size], vec![int("axis", 0)]);
                        self.op("ConstantOfShape", &[&shape], Vec::new())
                    })
                }
            };
            // The products with the input, of all steps at once.
            let weight = of.name(at, "weight_ih").ok_or_else(|| Error::internal("an LSTM without weights"))?;
            let mut product = self.linear(by_time, &weight, None)?;
            if let (Some(epsilon), Some(gain)) = (of.cell.layer_norm, of.name(at, "norm_ih")) {
                let (gain, _) = self.parameter(&gain)?;
                product =
                    self.op("LayerNormalization", &[&product, &gain], vec![int("axis", -1), float("epsilon", epsilon)]);
            }
            for role in ["bias_ih", "bias_hh"] {
                if let Some(name) = of.name(at, role) {
                    let (bias, _) = self.parameter(&name)?;
                    product = self.op("Add", &[&product, &bias], Vec::new());
                }
            }
            let body = self.body(of, at, inside.is_some())?;
            let mut inputs = vec![h.as_str(), c.as_str(), product.as_str()];
            inputs.extend(inside.as_deref());
            let scans = inputs.len() as i64 - 2;
            let way = i64::from(of.reversed[at]);
            let attributes = vec![
                graph("body", body),
                int("num_scan_inputs", scans),
                ints("scan_input_directions", &vec![way; scans as usize]),
                ints("scan_output_directions", &[way]),
            ];
            let out = self.ops("Scan", &inputs, 3, attributes);
            ran.steps.push(self.op("Transpose", &[&out[2]], vec![ints("perm", &[1, 0, 2])]));
            ran.h.push(out[0].clone());
            ran.c.push(out[1].clone());
        }
        Ok(ran)
    }

    /// One step, as [`Cell`] says: h, c and the products with the input give the next h and c, and h once more.
    fn body(&mut self, of: &Layer<'_>, at: usize, masked: bool) -> Result<Graph> {
        let [r, hidden] = of.sizes;
        let cell = of.cell;
        // Parameters belong to the graph around; the rest is the step's own.
        let mut taken = |role: &str| -> Result<Option<String>> {
            of.name(at, role).map(|name| self.parameter(&name).map(|p| p.0)).transpose()
        };
        let (gain, norm_gain, norm_bias) = (taken("norm_hh")?, taken("norm_gain")?, taken("norm_bias")?);
        let (peepholes, weight, projection) = (taken("peepholes")?, taken("weight_hh")?, taken("weight_hr")?);
        let weight = weight.ok_or_else(|| Error::internal("an LSTM without weights"))?;
        let turned = |writer: &mut Self, name: &str| writer.op("Transpose", &[name], vec![ints("perm", &[1, 0])]);
        let weight = turned(self, &weight);
        let projection = projection.map(|name| turned(self, &name));
        let outside = std::mem::take(&mut self.graph);
        self.graph.name = format!("step of {}", of.node.name);
        let (h, c, a) = (self.fresh("h"), self.fresh("c"), self.fresh("a"));
        let sized = |name: &str, size: usize| info(name, dtype::FLOAT, &[None, Some(size)], &["", ""]);
        self.graph.input = vec![sized(&h, r), sized(&c, hidden), sized(&a, GATES * hidden)];
        let inside = masked.then(|| self.fresh("inside"));
        self.graph.input.extend(inside.as_ref().map(|name| sized(name, 1)));

        let mut product = self.op("MatMul", &[&h, &weight], Vec::new());
        if let (Some(epsilon), Some(gain)) = (cell.layer_norm, &gain) {
            product =
                self.op("LayerNormalization", &[&product, gain], vec![int("axis", -1), float("epsilon", epsilon)]);
        }
        let sum = self.op("Add", &[&a, &product], Vec::new());
        let parts = self.ops("Split", &[&sum], GATES, vec![int("axis", -1)]);
        let peeps = peepholes.map(|p| self.ops("Split", &[&p], 3, vec![int("axis", 0)]));
        let seen = |writer: &mut Self, part: &str, which: usize, c: &str| match &peeps {
            None => part.to_string(),
            Some(peeps) => {
                let product = writer.op("Mul", &[c, &peeps[which]], Vec::new());
                writer.op("Add", &[part, &product], Vec::new())
            }
        };
        let limited = |writer: &mut Self, x: String, limit: Option<f32>| match limit {
            None => x,
            Some(limit) => {
                let (low, high) = (writer.number(-limit), writer.number(limit));
                writer.op("Clip", &[&x, &low, &high], Vec::new())
            }
        };
        let gate = |writer: &mut Self, part: String, activation: Activation| -> Result<String> {
            let part = limited(writer, part, cell.clip);
            writer.activation(activation, &part)
        };
        // z times the last plus 1 - z times the new.
        let kept = |writer: &mut Self, last: &str, new: String, z: f32| match z {
            0.0 => new,
            z => {
                let (z, rest) = (writer.number(z), writer.number(1.0 - z));
                let (last, new) =
                    (writer.op("Mul", &[last, &z], Vec::new()), writer.op("Mul", &[&new, &rest], Vec::new()));
                writer.op("Add", &[&last, &new], Vec::new())
            }
        };
        let part = seen(self, &parts[0], 0, &c);
        let i = gate(self, part, cell.gate)?;
        let f = if cell.coupled {
            let one = self.number(1.0);
            self.op("Sub", &[&one, &i], Vec::new())
        } else {
            let part = seen(self, &parts[1], 1, &c);
            gate(self, part, cell.gate)?
        };
        let g = gate(self, parts[2].clone(), cell.candidate)?;
        let (old, new) = (self.op("Mul", &[&f, &c], Vec::new()), self.op("Mul", &[&i, &g], Vec::new()));
        let candidate = self.op("Add", &[&old, &new], Vec::new());
        let candidate = limited(self, candidate, cell.cell_clip);
        let next_c = kept(self, &c, candidate.clone(), cell.zoneout_c);
        let part = seen(self, &parts[3], 2, &next_c);
        let o = gate(self, part, cell.gate)?;
        let argument = match (cell.layer_norm, &norm_gain, &norm_bias) {
            (Some(epsilon), Some(gain), Some(bias)) => {
                let attributes = vec![int("axis", -1), float("epsilon", epsilon)];
                self.op("LayerNormalization", &[&candidate, gain, bias], attributes)
            }
            _ => candidate,
        };
        let output = self.activation(cell.output, &argument)?;
        let mut next_h = self.op("Mul", &[&o, &output], Vec::new());
        if let Some(projection) = &projection {
            next_h = self.op("MatMul", &[&next_h, projection], Vec::new());
        }
        let next_h = kept(self, &h, next_h, cell.zoneout_h);
        let (mut ends, mut step) = ([next_h.clone(), next_c], next_h);
        if let Some(inside) = &inside {
            // Past a sequence's end nothing changes, and the step gives zeros.
            let one = self.number(1.0);
            let beyond = self.op("Sub", &[&one, inside], Vec::new());
            for (end, last) in ends.iter_mut().zip([&h, &c]) {
                let (new, old) =
                    (self.op("Mul", &[end, inside], Vec::new()), self.op("Mul", &[last, &beyond], Vec::new()));
                *end = self.op("Add", &[&new, &old], Vec::new());
            }
            step = self.op("Mul", &[&step, inside], Vec::new());
        }
        // Each output has a name of its own.
        let step = self.op("Identity", &[&step], Vec::new());
        let [end_h, end_c] = ends.map(|end| self.op("Identity", &[&end], Vec::new()));
        self.graph.output = vec![sized(&end_h, r), sized(&end_c, hidden), sized(&step, r)];
        Ok(std::mem::replace(&mut self.graph, outside))
    }
}
