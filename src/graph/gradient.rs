//! Gradients as a graph transformation: each operation's rule adds the operations that compute its inputs' gradients.

use super::lstm::{LstmOp, LstmPart, Parameter, backward, forward};
use super::op::{Broadcast, Op, Over, ReduceKind, TimeKind, broadcast};
use super::{AttentionOp, AttentionPart, Dim, Expr, Gather, Graph, MemoryOp, MemoryPart, Node, Value};
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};

/// Gradients on their way back: contributions a value, summed when its own operation is reached.
#[derive(Default)]
struct Pending(HashMap<Value, Vec<Value>>);

impl Pending {
    fn add(&mut self, value: Option<Value>, gradient: Value) {
        if let Some(value) = value {
            self.0.entry(value).or_default().push(gradient);
        }
    }

    /// The sum of the contributions to `value`, in the order in which they came.
    fn take(&mut self, graph: &mut Graph, value: Value) -> Result<Option<Value>> {
        let Some(parts) = self.0.remove(&value) else { return Ok(None) };
        // Four at a time, so that an expression stays flat and binds few buffers.
        let mut parts = parts;
        while parts.len() > 1 {
            let sums = parts.chunks(4).map(|some| match some {
                [one] => Ok(*one),
                some => {
                    let sum = (1..some.len()).fold(Expr::Input(0), |sum, i| sum + Expr::Input(i));
                    graph.elementwise(sum, some)
                }
            });
            parts = sums.collect::<Result<_>>()?;
        }
        Ok(Some(parts[0]))
    }
}

impl Graph {
    /// Adds the gradients of the scalar `loss` by each of `with_respect_to`, and gives them in that order.
    pub fn gradients(&mut self, loss: Value, with_respect_to: &[Value]) -> Result<Vec<Value>> {
        let one = self.elementwise(Expr::Const(1.0), &[loss])?;
        self.gradients_from(&[(loss, one)], with_respect_to)
    }

    /// Whether `value` is computed from `from`, or is it.
    pub fn depends(&self, value: Value, from: Value) -> bool {
        let mut dependent = HashSet::from([from]);
        for node in &self.nodes {
            if node.inputs.iter().flatten().any(|v| dependent.contains(v)) {
                dependent.extend(&node.outputs);
            }
        }
        dependent.contains(&value)
    }

    /// Adds the gradients of Σ output · upstream over the pairs (output, upstream) of equal shapes.
    pub fn gradients_from(&mut self, upstream: &[(Value, Value)], with_respect_to: &[Value]) -> Result<Vec<Value>> {
        let mut pending = Pending::default();
        for &(output, up) in upstream {
            if self.shape(output) != self.shape(up) {
                return Err(Error::shape(format!(
                    "gradient: `{}` of {} cannot have an upstream gradient of {}",
                    self.info(output).name,
                    self.shape(output),
                    self.shape(up)
                )));
            }
            pending.add(Some(output), up);
        }
        let nodes = self.nodes.clone();
        let mut dependent: HashSet<Value> = with_respect_to.iter().copied().collect();
        for node in &nodes {
            if node.inputs.iter().flatten().any(|v| dependent.contains(v)) {
                dependent.extend(&node.outputs);
            }
        }
        let wanted: HashSet<Value> = with_respect_to.iter().copied().collect();
        let mut finished: HashMap<Value, Value> = HashMap::new();
        for node in nodes.iter().rev() {
            let live = node.outputs.iter().any(|v| pending.0.contains_key(v) && dependent.contains(v));
            if !live {
                continue;
            }
            let mut gradients = Vec::with_capacity(node.outputs.len());
            for &output in &node.outputs {
                let gradient = pending.take(self, output)?;
                if let (Some(gradient), true) = (gradient, wanted.contains(&output)) {
                    finished.insert(output, gradient);
                }
                gradients.push(gradient);
            }
            Rule { graph: self, node, dependent: &dependent, pending: &mut pending }
                .apply(&gradients)
                .map_err(|e| e.within(format!("gradient of {}", node.op.name())))?;
        }
        let mut result = Vec::with_capacity(with_respect_to.len());
        for &value in with_respect_to {
            let gradient = match finished.get(&value) {
                Some(&g) => Some(g),
                None => {
                    let sum = pending.take(self, value)?;
                    finished.extend(sum.map(|g| (value, g)));
                    sum
                }
            };
            result.push(gradient.ok_or_else(|| {
                Error::argument(format!("gradient: the loss does not depend on `{}`", self.info(value).name))
            })?);
        }
        Ok(result)
    }
}

struct Rule<'a> {
    graph: &'a mut Graph,
    node: &'a Node,
    dependent: &'a HashSet<Value>,
    pending: &'a mut Pending,
}

impl Rule<'_> {
    fn input(&self, at: usize) -> Result<Value> {
        self.node.inputs.get(at).copied().flatten().ok_or_else(|| Error::internal(format!("input {at} is missing")))
    }

    /// The input at `at` if its gradient is wanted.
    fn wants(&self, at: usize) -> Option<Value> {
        self.node.inputs.get(at).copied().flatten().filter(|v| self.dependent.contains(v))
    }

    /// Adds `op` over `inputs` as the gradient of the input at `at`, if that is wanted.
    fn give(&mut self, at: usize, op: Op, inputs: &[Value]) -> Result<()> {
        if let Some(value) = self.wants(at) {
            let gradient = self.graph.push_one(op, inputs)?;
            self.pending.add(Some(value), gradient);
        }
        Ok(())
    }

    fn apply(mut self, gradients: &[Option<Value>]) -> Result<()> {
        let node = self.node;
        let first = gradients[0];
        let sum = |over| Op::Reduce { kind: ReduceKind::Sum, over };
        match (&node.op, first) {
            (Op::Lstm(op), _) => self.lstm(op, gradients),
            (Op::Elementwise { exprs }, _) => self.elementwise(exprs, gradients),
            (Op::CrossEntropy { ignore }, _) => self.cross_entropy(*ignore, gradients),
            (Op::ArgMax, _) => Ok(()),
            (_, None) => Err(Error::internal("no gradient arrives")),
            (Op::Linear, Some(dy)) => {
                let (x, w) = (self.input(0)?, self.input(1)?);
                self.give(0, Op::MatMul, &[dy, w])?;
                self.give(1, Op::WeightGradient, &[dy, x])?;
                self.give(2, sum(Over::Rows), &[dy])
            }
            (Op::MatMul, Some(dc)) => {
                let (a, b) = (self.input(0)?, self.input(1)?);
                self.give(0, Op::Linear, &[dc, b])?;
                self.give(1, Op::WeightGradient, &[a, dc])
            }
            (Op::Embedding, Some(dy)) => {
                let (table, tokens) = (self.input(0)?, self.input(1)?);
                let Some(Dim::Fixed(rows)) = self.graph.shape(table).rows().cloned() else {
                    return Err(Error::unsupported("a table with a symbolic number of rows has no gradient"));
                };
                self.give(0, Op::EmbeddingBackward { rows }, &[tokens, dy])
            }
            (Op::Scatter, Some(dy)) => {
                let (rows, x) = (self.input(1)?, self.input(2)?);
                let zeros = self.graph.elementwise(Expr::Const(0.0), &[x])?;
                self.give(0, Op::Scatter, &[dy, rows, zeros])?;
                self.give(2, Op::Embedding, &[dy, rows])
            }
            (Op::Dropout { .. }, Some(dy)) => self.give(0, node.op.clone(), &[dy]),
            (Op::Reduce { kind, over }, Some(dsum)) => self.reduce(*kind, *over, dsum),
            (Op::Softmax, Some(dy)) => self.softmax(dy),
            (Op::OverTime { kind }, Some(dy)) => self.over_time(*kind, dy),
            (Op::Gather(gather), Some(dy)) => self.gather(gather, dy),
            (Op::Attention(op), Some(dy)) => self.attention(op, dy, gradients),
            (Op::Recall(op), Some(dy)) => self.recall(op, dy),
            (Op::Remember(_) | Op::RecallPlaces(_) | Op::RecallTokens { .. }, Some(_)) => Err(Error::unsupported(
                "what a working memory holds and its shares have no gradient, only a loss over them has",
            )),
            (Op::Concat, Some(dy)) => {
                let mut first = 0;
                for at in 0..node.inputs.len() {
                    let count = self.columns(at)?;
                    self.give(at, Op::Slice { first, count }, &[dy])?;
                    first += count;
                }
                Ok(())
            }
            (Op::Slice { first, count }, Some(dy)) => {
                let after = self.columns(0)? - first - count;
                self.give(0, Op::Pad { before: *first, after }, &[dy])
            }
            (Op::Pad { before, .. }, Some(dy)) => {
                let count = self.columns(0)?;
                self.give(0, Op::Slice { first: *before, count }, &[dy])
            }
            (Op::View { .. }, Some(dy)) => {
                let shape = self.graph.shape(self.input(0)?).clone();
                self.give(0, Op::View { shape }, &[dy])
            }
            (
                Op::LstmBackward(_)
                | Op::LstmInputGradient { .. }
                | Op::LstmWeightGradient { .. }
                | Op::WeightGradient
                | Op::EmbeddingBackward { .. }
                | Op::CrossEntropyBackward { .. }
                | Op::AttentionBackward { .. }
                | Op::RecallBackward { .. },
                Some(_),
            ) => Err(Error::unsupported("gradients of gradients are not supported")),
        }
    }

    fn reduce(&mut self, kind: ReduceKind, over: Over, dsum: Value) -> Result<()> {
        for at in 0..self.node.inputs.len() {
            let Some(x) = self.wants(at) else { continue };
            let expr = match kind {
                ReduceKind::Sum => Expr::Input(0),
                ReduceKind::SumOfSquares => Expr::Const(2.0) * Expr::Input(1) * Expr::Input(0),
            };
            // The sum's shape spreads over x: [1], [F] over rows, [R, 1] over columns.
            if over == Over::Rows && broadcast(self.graph.shape(x), self.graph.shape(dsum)).is_none() {
                return Err(Error::unsupported(format!(
                    "a sum over the rows of {} cannot be spread back",
                    self.graph.shape(x)
                )));
            }
            let gradient = self.graph.elementwise(expr, &[dsum, x])?;
            self.pending.add(Some(x), gradient);
        }
        Ok(())
    }

    fn elementwise(&mut self, exprs: &[Expr], gradients: &[Option<Value>]) -> Result<()> {
        let inputs: Vec<Value> = self.node.inputs.iter().flatten().copied().collect();
        let out_shape = self.graph.shape(self.node.outputs[0]).clone();
        for at in 0..inputs.len() {
            let Some(x) = self.wants(at) else { continue };
            let mut operands = inputs.clone();
            let mut total = Expr::Const(0.0);
            for (expr, &gradient) in exprs.iter().zip(gradients) {
                let Some(gradient) = gradient else { continue };
                let derivative = expr.derivative(at);
                if derivative != Expr::Const(0.0) {
                    total = total + derivative * Expr::Input(operands.len());
                    operands.push(gradient);
                }
            }
            if total == Expr::Const(0.0) && exprs.iter().all(|e| !reads(e, at)) {
                continue; // read for its shape only
            }
            if total == Expr::Const(0.0) {
                let zero = self.graph.elementwise(total, &[x])?;
                self.pending.add(Some(x), zero);
                continue;
            }
            let (total, operands) = only_used(total, &operands);
            let full = self.graph.elementwise(total, &operands)?;
            let gradient = match broadcast(&out_shape, &self.graph.shape(x).clone()) {
                Some(Broadcast::Full) => full,
                Some(Broadcast::Scalar) => self.graph.sum(&[full])?,
                Some(Broadcast::Row) => self.graph.reduce(ReduceKind::Sum, Over::Rows, full)?,
                Some(Broadcast::Column) => self.graph.reduce(ReduceKind::Sum, Over::Columns, full)?,
                None => return Err(Error::internal("an input does not spread over the output")),
            };
            self.pending.add(Some(x), gradient);
        }
        Ok(())
    }

    /// dx = y (dy - Σ dy y)
    fn softmax(&mut self, dy: Value) -> Result<()> {
        let (y, x) = (self.node.outputs[0], self.wants(0));
        let Some(x) = x else { return Ok(()) };
        let product = self.graph.elementwise(Expr::Input(0) * Expr::Input(1), &[dy, y])?;
        let along = self.graph.reduce(ReduceKind::Sum, Over::Columns, product)?;
        let dx = self.graph.elementwise(Expr::Input(0) * (Expr::Input(1) - Expr::Input(2)), &[y, dy, along])?;
        self.pending.add(Some(x), dx);
        Ok(())
    }

    /// Each step has the sum's gradient; the largest's goes to the steps that are as large.
    fn over_time(&mut self, kind: TimeKind, dy: Value) -> Result<()> {
        let Some(x) = self.wants(0) else { return Ok(()) };
        let axis = self.graph.shape(x).axis().ok_or_else(|| Error::internal("x has no time axis"))?;
        let each = self.graph.each_step(axis, dy)?;
        let dx = match kind {
            TimeKind::Sum => each,
            TimeKind::Max => {
                let largest = self.graph.each_step(axis, self.node.outputs[0])?;
                let below = Expr::Input(0).less(Expr::Input(1));
                self.graph.elementwise(below.select(Expr::Const(0.0), Expr::Input(2)), &[x, largest, each])?
            }
        };
        self.pending.add(Some(x), dx);
        Ok(())
    }

    fn cross_entropy(&mut self, ignore: Option<u32>, gradients: &[Option<Value>]) -> Result<()> {
        if let Some(dloss) = gradients[0] {
            let inputs = [self.input(0)?, self.input(1)?, self.node.outputs[2], dloss];
            self.give(0, Op::CrossEntropyBackward { ignore }, &inputs)?;
        }
        let (Some(given), Some(x)) = (gradients[2], self.wants(0)) else { return Ok(()) };
        // The logarithm of the sum of e^x grows with x by the softmax.
        let rows = self.graph.shape(given).0[0].clone();
        let (column, shares) = (self.graph.view(given, [rows, 1.into()])?, self.graph.softmax(x)?);
        let dx = self.graph.elementwise(Expr::Input(0) * Expr::Input(1), &[shares, column])?;
        self.pending.add(Some(x), dx);
        Ok(())
    }

    /// What was taken goes back to where it came from.
    fn gather(&mut self, gather: &Gather, dy: Value) -> Result<()> {
        let (axis, features) = (self.graph.shape(self.input(0)?).axis(), self.columns(0)?);
        let on = || axis.ok_or_else(|| Error::internal("x has no time axis"));
        let back = match *gather {
            Gather::Windows { window, .. } => {
                let Some(x) = self.wants(0) else { return Ok(()) };
                for tap in 0..window.taps {
                    let part = self.graph.slice(dy, tap * features, features)?;
                    let back = Op::Gather(Gather::Tap { window, tap, axis: on()? });
                    let part = self.graph.push_one(back, &[part])?;
                    self.pending.add(Some(x), part);
                }
                return Ok(());
            }
            Gather::EachStep { .. } => return self.give(0, Op::OverTime { kind: TimeKind::Sum }, &[dy]),
            Gather::Tap { .. } => return Err(Error::unsupported("gradients of gradients are not supported")),
            Gather::Step { at } => Gather::AtStep { at, axis: on()? },
            Gather::AtStep { at, .. } => Gather::Step { at },
            Gather::Along { .. } => Gather::Along { axis: on()? },
            Gather::IntoOrder { axis } => Gather::OutOfOrder { axis },
            Gather::OutOfOrder { axis } => Gather::IntoOrder { axis },
            Gather::Flatten { steps } => Gather::Unflatten { steps, axis: on()? },
            Gather::Unflatten { steps, .. } => Gather::Flatten { steps },
            Gather::Transpose { .. } => Gather::Transpose { steps: features, axis: on()? },
        };
        self.give(0, Op::Gather(back), &[dy])
    }

    fn attention(&mut self, op: &AttentionOp, dy: Value, gradients: &[Option<Value>]) -> Result<()> {
        use super::attention::forward::{KEYS, LOG_SUM_EXP, QUERIES, SCALE, VALUES, Y};
        if gradients[LOG_SUM_EXP].is_some() {
            return Err(Error::unsupported("what attention saves for its gradient has no gradient"));
        }
        let node = self.node;
        let given = self.graph.attention_given(node.outputs[Y], node.outputs[LOG_SUM_EXP], dy)?;
        let mut inputs = node.inputs[..=SCALE].to_vec();
        inputs.push(Some(given));
        let parts = [
            (QUERIES, AttentionPart::Queries),
            (KEYS, AttentionPart::Keys),
            (VALUES, AttentionPart::Values),
            (SCALE, AttentionPart::Scale),
        ];
        for (at, part) in parts {
            let Some(value) = self.wants(at) else { continue };
            let op = Op::AttentionBackward { attention: *op, part };
            let mut gradient = self.graph.push(op, inputs.clone())?[0];
            if part == AttentionPart::Scale {
                gradient = self.graph.reduce(ReduceKind::Sum, Over::Rows, gradient)?;
            }
            self.pending.add(Some(value), gradient);
        }
        Ok(())
    }

    fn recall(&mut self, op: &MemoryOp, dy: Value) -> Result<()> {
        use super::memory::recall::{OWN, QUERIES};
        let mut inputs = self.node.inputs.clone();
        inputs.push(Some(self.graph.concat(&[self.node.outputs[0], dy])?));
        for (at, part) in [(QUERIES, MemoryPart::Queries), (OWN, MemoryPart::Own)] {
            let Some(value) = self.wants(at) else { continue };
            let gradient = self.graph.push(Op::RecallBackward { memory: *op, part }, inputs.clone())?[0];
            self.pending.add(Some(value), gradient);
        }
        Ok(())
    }

    /// The columns of the input at `at`, which shape rules have made a number.
    fn columns(&self, at: usize) -> Result<usize> {
        let columns = self.graph.shape(self.input(at)?).columns();
        columns.ok_or_else(|| Error::internal(format!("the columns of input {at} are no number")))
    }

    fn lstm(&mut self, op: &LstmOp, gradients: &[Option<Value>]) -> Result<()> {
        let node = self.node;
        if gradients[forward::GATES..].iter().any(Option::is_some) {
            return Err(Error::unsupported("what a layer saves for its gradient has no gradient"));
        }
        let normed = op.cell.layer_norm.is_some();
        let mut inputs = vec![None; backward::parameter(op.directions(), Parameter::WeightIh)];
        inputs[backward::GATES] = Some(node.outputs[forward::GATES]);
        inputs[backward::CELLS] = Some(node.outputs[forward::CELLS]);
        inputs[backward::PRODUCT] = normed.then_some(node.outputs[forward::PRODUCT]);
        inputs[backward::C0] = node.inputs[forward::C0];
        inputs[backward::DY] = gradients[forward::Y];
        inputs[backward::DH_N] = gradients[forward::H_N];
        inputs[backward::DC_N] = gradients[forward::C_N];
        use Parameter::{BiasHh, BiasIh, NormBias, NormGain, NormHh, Peepholes, WeightHh, WeightHr, WeightIh};
        for d in 0..op.directions() {
            for parameter in [WeightHh, WeightHr, Peepholes, NormHh, NormGain, NormBias] {
                inputs[backward::parameter(d, parameter)] = node.inputs[forward::parameter(d, parameter)];
            }
        }
        let back = self.graph.push(Op::LstmBackward(*op), inputs)?;
        let dgates = back[backward::DGATES];
        self.pending.add(self.wants(forward::H0), back[backward::DH0]);
        self.pending.add(self.wants(forward::C0), back[backward::DC0]);
        if let Some(x) = self.wants(forward::X) {
            let weights = (0..op.directions()).filter_map(|d| node.inputs[forward::parameter(d, WeightIh)]);
            let inputs: Vec<Value> = [dgates].into_iter().chain(weights).collect();
            let gradient = self.graph.push_one(Op::LstmInputGradient { directions: op.directions() }, &inputs)?;
            self.pending.add(Some(x), gradient);
        }
        let product = if normed { back[backward::DPRODUCT] } else { dgates };
        for d in 0..op.directions() {
            let part = |part| Op::LstmWeightGradient { part, direction: d, lstm: *op };
            let at = |parameter| forward::parameter(d, parameter);
            let mut give = |parameter, what, inputs: Vec<Option<Value>>| {
                let Some(value) = self.wants(at(parameter)) else { return Ok(()) };
                let gradient = self.graph.push(part(what), inputs)?[0];
                self.pending.add(Some(value), gradient);
                Ok::<(), Error>(())
            };
            give(WeightIh, LstmPart::InputWeights, vec![Some(dgates), node.inputs[forward::X]])?;
            let (y, h0) = (Some(node.outputs[forward::Y]), node.inputs[forward::H0]);
            give(WeightHh, LstmPart::RecurrentWeights, vec![Some(product), y, h0])?;
            let hidden = Some(node.outputs[forward::HIDDEN]);
            give(WeightHr, LstmPart::Projection, vec![Some(back[backward::DPROJECTED]), hidden])?;
            let (cells, c0) = (Some(node.outputs[forward::CELLS]), node.inputs[forward::C0]);
            give(Peepholes, LstmPart::Peepholes, vec![Some(dgates), cells, c0])?;
            give(NormHh, LstmPart::Bias, vec![Some(back[backward::DGAINS])])?;
            let (ih, hh) = (self.wants(at(BiasIh)), self.wants(at(BiasHh)));
            if ih.is_some() || hh.is_some() {
                let gradient = self.graph.push_one(part(LstmPart::Bias), &[dgates])?;
                self.pending.add(ih, gradient);
                self.pending.add(hh, gradient);
            }
            self.norm_of_cell(d, op, &back)?;
        }
        Ok(())
    }

    /// Gain and bias of the normalised cell: sums over rows of what arrives at it.
    fn norm_of_cell(&mut self, d: usize, op: &LstmOp, back: &[Value]) -> Result<()> {
        let at = |parameter| forward::parameter(d, parameter);
        let (gain, bias) = (self.wants(at(Parameter::NormGain)), self.wants(at(Parameter::NormBias)));
        if gain.is_none() && bias.is_none() {
            return Ok(());
        }
        let columns = self.graph.shape(back[backward::DCELL]).columns().unwrap_or(0) / op.directions();
        let mut own = |value: Value| match op.directions() {
            1 => Ok(value),
            _ => self.graph.slice(value, d * columns, columns),
        };
        let (dcell, normed) = (own(back[backward::DCELL])?, own(back[backward::CELL_NORMED])?);
        if gain.is_some() {
            let product = self.graph.elementwise(Expr::Input(0) * Expr::Input(1), &[dcell, normed])?;
            let sum = self.graph.reduce(ReduceKind::Sum, Over::Rows, product)?;
            self.pending.add(gain, sum);
        }
        if bias.is_some() {
            let sum = self.graph.reduce(ReduceKind::Sum, Over::Rows, dcell)?;
            self.pending.add(bias, sum);
        }
        Ok(())
    }
}

fn reads(expr: &Expr, at: usize) -> bool {
    let mut found = false;
    expr.visit(&mut |e| found |= *e == Expr::Input(at));
    found
}

/// `expr` over only the operands it reads.
fn only_used(expr: Expr, operands: &[Value]) -> (Expr, Vec<Value>) {
    let used: Vec<usize> = (0..operands.len()).filter(|&i| reads(&expr, i)).collect();
    let values = used.iter().map(|&i| operands[i]).collect();
    (renumber(&expr, &used), values)
}

fn renumber(expr: &Expr, used: &[usize]) -> Expr {
    use std::sync::Arc;
    let go = |e: &Arc<Expr>| Arc::new(renumber(e, used));
    match expr {
        Expr::Input(i) => Expr::Input(used.iter().position(|u| u == i).unwrap_or(0)),
        Expr::Const(_) | Expr::Scalar(_) | Expr::Size(_) => expr.clone(),
        Expr::Unary(f, a) => Expr::Unary(*f, go(a)),
        Expr::Binary(f, a, b) => Expr::Binary(*f, go(a), go(b)),
        Expr::Select(a, b, c) => Expr::Select(go(a), go(b), go(c)),
    }
}
