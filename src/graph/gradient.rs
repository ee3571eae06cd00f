//! Gradients as a graph transformation: each operation's rule adds the operations that compute its inputs' gradients.

use super::op::{Broadcast, LstmPart, Op, Over, ReduceKind, broadcast, lstm, lstm_backward};
use super::{Expr, Graph, Node, Value};
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
        if parts.len() == 1 {
            return Ok(Some(parts[0]));
        }
        let sum = (1..parts.len()).fold(Expr::Input(0), |sum, i| sum + Expr::Input(i));
        Ok(Some(graph.elementwise(sum, &parts)?))
    }
}

impl Graph {
    /// Adds the gradients of the scalar `loss` by each of `with_respect_to`, and gives them in that order.
    pub fn gradients(&mut self, loss: Value, with_respect_to: &[Value]) -> Result<Vec<Value>> {
        let one = self.elementwise(Expr::Const(1.0), &[loss])?;
        self.gradients_from(&[(loss, one)], with_respect_to)
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
            (Op::Lstm, _) => self.lstm(gradients),
            (Op::Elementwise { exprs }, _) => self.elementwise(exprs, gradients),
            (Op::CrossEntropy { .. }, None) | (Op::ArgMax, _) => Ok(()),
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
                let Some(super::Dim::Fixed(rows)) = self.graph.shape(table).rows().cloned() else {
                    return Err(Error::unsupported("a table with a symbolic number of rows has no gradient"));
                };
                self.give(0, Op::EmbeddingBackward { rows }, &[tokens, dy])
            }
            (Op::Dropout { .. }, Some(dy)) => self.give(0, node.op.clone(), &[dy]),
            (Op::Reduce { kind, over }, Some(dsum)) => self.reduce(*kind, *over, dsum),
            (Op::CrossEntropy { ignore }, Some(dloss)) => {
                let inputs = [self.input(0)?, self.input(1)?, node.outputs[2], dloss];
                if gradients[2].is_some() {
                    return Err(Error::unsupported("only the loss has a gradient"));
                }
                self.give(0, Op::CrossEntropyBackward { ignore: *ignore }, &inputs)
            }
            (Op::View { .. }, Some(dy)) => {
                let shape = self.graph.shape(self.input(0)?).clone();
                self.give(0, Op::View { shape }, &[dy])
            }
            (
                Op::LstmBackward
                | Op::LstmInputGradient
                | Op::LstmWeightGradient(_)
                | Op::WeightGradient
                | Op::EmbeddingBackward { .. }
                | Op::CrossEntropyBackward { .. },
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

    fn lstm(&mut self, gradients: &[Option<Value>]) -> Result<()> {
        let node = self.node;
        if gradients[lstm::GATES].is_some() || gradients[lstm::CELLS].is_some() {
            return Err(Error::unsupported("saved gates and cells have no gradient"));
        }
        let mut inputs = vec![None; 7];
        inputs[lstm_backward::GATES] = Some(node.outputs[lstm::GATES]);
        inputs[lstm_backward::CELLS] = Some(node.outputs[lstm::CELLS]);
        inputs[lstm_backward::C0] = node.inputs[lstm::C0];
        inputs[lstm_backward::WEIGHT_HH] = node.inputs[lstm::WEIGHT_HH];
        inputs[lstm_backward::DY] = gradients[lstm::Y];
        inputs[lstm_backward::DH_N] = gradients[lstm::H_N];
        inputs[lstm_backward::DC_N] = gradients[lstm::C_N];
        let back = self.graph.push(Op::LstmBackward, inputs)?;
        let dgates = back[lstm_backward::DGATES];
        self.pending.add(self.wants(lstm::H0), back[lstm_backward::DH0]);
        self.pending.add(self.wants(lstm::C0), back[lstm_backward::DC0]);
        let (x, weight_ih) = (self.input(lstm::X)?, self.input(lstm::WEIGHT_IH)?);
        self.give(lstm::X, Op::LstmInputGradient, &[dgates, weight_ih])?;
        self.give(lstm::WEIGHT_IH, Op::LstmWeightGradient(LstmPart::InputWeights), &[dgates, x])?;
        if let Some(weight_hh) = self.wants(lstm::WEIGHT_HH) {
            let inputs = vec![Some(dgates), Some(node.outputs[lstm::Y]), node.inputs[lstm::H0]];
            let gradient = self.graph.push(Op::LstmWeightGradient(LstmPart::RecurrentWeights), inputs)?[0];
            self.pending.add(Some(weight_hh), gradient);
        }
        let (ih, hh) = (self.wants(lstm::BIAS_IH), self.wants(lstm::BIAS_HH));
        if ih.is_some() || hh.is_some() {
            let gradient = self.graph.push_one(Op::LstmWeightGradient(LstmPart::Bias), &[dgates])?;
            self.pending.add(ih, gradient);
            self.pending.add(hh, gradient);
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
