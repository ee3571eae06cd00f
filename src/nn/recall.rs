//! The working memory as operations of a graph: what is remembered, what is found, and the loss of both together.

use super::append::Placed;
use super::{Built, Mixture, WorkingMemory};
use crate::error::{Error, Result};
use crate::graph::builder::RowLoss;
use crate::graph::memory::NOTHING;
use crate::graph::{B, Dim, Expr, Graph, N, Op, Ring, TimeKind, Value};

/// Positions stay below this, so that a float holds them: then whole turns of the ring are taken off.
const FAR: usize = 1 << 23;

/// A working memory in a graph.
#[derive(Debug, Clone, Copy)]
pub struct Recalled {
    memory: WorkingMemory,
    /// With what this run reads in it.
    ring: Ring,
    /// h `[N, H]` and logits `[N, V]`.
    hidden: Value,
    logits: Value,
    /// q `[N, H]`
    queries: Value,
    /// q·s `[N, 1]` of a sentinel.
    sentinel: Option<Value>,
    /// The share of each place `[N, R]`: place i mod R of step i, counted from the sequence's beginning.
    pub places: Value,
    /// The memory's part of the mixture, `[N, 1]`.
    pub gate: Value,
}

/// Whether a logarithm of a sum is one of something.
fn is_something(sum: Expr) -> Expr {
    Expr::Const(NOTHING / 2.0).less(sum)
}

/// ln(1 + e^x)
fn softplus(x: Expr) -> Expr {
    let size = x.clone().abs();
    x.max(Expr::Const(0.0)) + (Expr::Const(1.0) + (Expr::Const(0.0) - size).exp()).ln()
}

/// ln(e^a + e^b)
fn log_add(a: Expr, b: Expr) -> Expr {
    let far = (a.clone() - b.clone()).abs();
    a.max(b) + softplus(Expr::Const(0.0) - far)
}

/// ln of a share of the mixture.
fn log(share: f32) -> Expr {
    Expr::Const(if share > 0.0 { share.ln() } else { NOTHING })
}

/// Adds a memory; gives log p `[N, V]`.
pub(super) fn append(
    graph: &mut Graph,
    placed: &Placed<'_>,
    memory: &WorkingMemory,
    states: &mut Vec<(Value, Value)>,
) -> Result<(Value, Recalled)> {
    let Placed { node, inputs, outputs, parameters, options, .. } = *placed;
    let &[(hidden, signal), (logits, _), (tokens, _)] = inputs else {
        return Err(Error::internal("a working memory without its inputs"));
    };
    let (op, features) = (memory.op(), signal.features().unwrap_or(0));
    let vocabulary = outputs[0].features().unwrap_or(0);

    let column = graph.slice(hidden, 0, 1)?;
    let one = graph.elementwise(Expr::Const(1.0), &[column])?;
    let read = graph.over_time(TimeKind::Sum, one)?;
    let rows = options.slots.map_or(B, |slots| Dim::Fixed(slots.count));
    let name = |part: &str| format!("{}{}.{part}", options.state_prefix, node.name);
    let (table, position) = if memory.stateful {
        let table = graph.persistent(&name("ring"), [rows.clone(), op.len(features).into()])?;
        let kept = graph.persistent(&name("position"), [rows, 1.into()])?;
        let position = options.slots.map_or(Ok(kept), |slots| graph.embedding(kept, slots.from))?;
        // At least a turn is left, in which the window is.
        let turns = (FAR / op.places).saturating_sub(1).max(1) * op.places;
        let next = Expr::Input(0) + Expr::Input(1);
        let far = Expr::Const((turns + op.places) as f32).less(next.clone());
        let next = far.select(next.clone() - Expr::Const(turns as f32), next);
        let next = graph.elementwise(next, &[position, read])?;
        states.push((kept, options.slots.map_or(Ok(next), |slots| graph.scatter(kept, slots.to, next))?));
        (table, position)
    } else {
        // Whatever is in it before is not seen.
        let table = graph.push_one(Op::Pad { before: 0, after: op.len(features) - 1 }, &[read])?;
        (table, graph.elementwise(Expr::Const(0.0), &[read])?)
    };
    let slots = options.slots.map(|slots| slots.to);
    let values = graph.remember(Ring { op, values: table, position, slots }, hidden, tokens)?;
    if memory.stateful {
        states.push((table, values));
    }
    let ring = Ring { op, values, position, slots };

    let (queries, sentinel) = match (memory.mixture, parameters) {
        (Mixture::Linear { theta, .. } | Mixture::Global { theta, .. }, _) => {
            (graph.elementwise(Expr::Input(0) * Expr::Const(theta), &[hidden])?, None)
        }
        (Mixture::Pointer, &[weight, bias, sentinel]) => {
            let q = graph.linear(hidden, weight, Some(bias))?;
            let q = graph.tanh(q)?;
            (q, Some(graph.linear(q, sentinel, None)?))
        }
        (Mixture::Pointer, _) => return Err(Error::internal("a pointer without parameters")),
    };
    let (places, total) = graph.recall_places(ring, queries)?;
    let found = graph.recall_tokens(ring, places, vocabulary)?;
    // The sum over all tokens does not depend on which is asked for.
    let out = graph.push(Op::CrossEntropy { ignore: None }, vec![Some(logits), Some(tokens)])?;
    let log_sum = graph.view(out[2], [N, 1.into()])?;
    let (of_memory, of_network) = memory.parts(Expr::Input(0), Expr::Input(1));
    let parts = graph.elementwise_many(vec![of_memory, of_network], &[total, sentinel.unwrap_or(log_sum)])?;
    let [logit, sum, share, of_memory, of_network] = [0, 1, 2, 3, 4].map(Expr::Input);
    let share = Expr::Const(0.0).less(share.clone()).select(share.ln(), Expr::Const(NOTHING));
    let mixed = log_add(of_network + (logit - sum), of_memory + share);
    let y = graph.elementwise(mixed, &[logits, log_sum, found, parts[0], parts[1]])?;
    let gate = graph.elementwise(Expr::Input(0).exp(), &[parts[0]])?;
    let recalled = Recalled { memory: *memory, ring, hidden, logits, queries, sentinel, places, gate };
    Ok((y, recalled))
}

impl WorkingMemory {
    /// ln of the memory's part of the mixture and of the network's, from the logarithms of the sum over places and of what it
    /// competes with: the sum over tokens, or the sentinel.
    fn parts(&self, total: Expr, rest: Expr) -> (Expr, Expr) {
        let zero = Expr::Const(0.0);
        let advantage = match self.mixture {
            Mixture::Linear { lambda, .. } => {
                let of =
                    |share: f32, nothing: f32| is_something(total.clone()).select(log(share), Expr::Const(nothing));
                return (of(lambda, NOTHING), of(1.0 - lambda, 0.0));
            }
            Mixture::Global { alpha, .. } => total + Expr::Const(alpha) - rest,
            Mixture::Pointer => total - rest,
        };
        (zero.clone() - softplus(zero.clone() - advantage.clone()), zero - softplus(advantage))
    }
}

impl Recalled {
    /// -ln p of targets `[N]`, and whether each counts, both `[N]`: what the places come to is added up for the targets alone.
    fn losses(&self, graph: &mut Graph, targets: Value, ignore: Option<u32>) -> Result<[Value; 2]> {
        let out = graph.push(Op::CrossEntropy { ignore }, vec![Some(self.logits), Some(targets)])?;
        let column = |graph: &mut Graph, value: Value| graph.view(value, [N, 1.into()]);
        let sums = graph.recall(self.ring, self.queries, self.hidden, targets)?;
        let (found, total) = (graph.slice(sums, 0, 1)?, graph.slice(sums, 1, 1)?);
        let own = column(graph, out[0])?;
        let counts = column(graph, out[1])?;
        let rest = self.sentinel.map_or_else(|| column(graph, out[2]), Ok)?;
        let operands = [own, found, total, counts, rest];
        let [own, found, total, counts, rest] = [0, 1, 2, 3, 4].map(Expr::Input);
        let (of_memory, of_network) = self.memory.parts(total.clone(), rest);
        let mixed = log_add(of_network - own, of_memory + found - total);
        let zero = Expr::Const(0.0);
        let losses = graph.elementwise((zero - mixed) * counts, &operands)?;
        Ok([graph.view(losses, [N])?, out[1]])
    }
}

/// What a mixture of any strength is made of, to find the best: values of each step.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// -ln p of the target by the network alone, `[N]`.
    pub own: Value,
    /// ln Σ e^logit, `[N]`.
    pub log_sum: Value,
    /// For each θ the sums over places whose token is the target, and over all, `[N, 2]`.
    pub sums: Vec<Value>,
}

impl Recalled {
    /// What each θ finds of targets `[N]`.
    pub fn evidence(&self, graph: &mut Graph, targets: Value, thetas: &[f32]) -> Result<Evidence> {
        let out = graph.push(Op::CrossEntropy { ignore: None }, vec![Some(self.logits), Some(targets)])?;
        let mut sums = Vec::with_capacity(thetas.len());
        for &theta in thetas {
            let queries = graph.elementwise(Expr::Input(0) * Expr::Const(theta), &[self.hidden])?;
            sums.push(graph.recall(self.ring, queries, self.hidden, targets)?);
        }
        Ok(Evidence { own: out[0], log_sum: out[2], sums })
    }
}

impl Built {
    /// Refuses to train what has no gradient.
    pub fn check_trainable(&self) -> Result<()> {
        let global = |r: &(Value, Recalled)| matches!(r.1.memory.mixture, Mixture::Global { .. });
        if self.recalled.iter().any(global) {
            return Err(Error::unsupported(
                "a working memory's global mixture is fitted to a model, not trained with it: train a pointer",
            ));
        }
        Ok(())
    }

    /// Cross entropy of an output, logits or log p `[R, V]`, with targets `[R]`; rows whose target is `ignore` do not count, others
    /// their weights `[R]`. Where a working memory gave the output, only the targets' places are looked for.
    pub fn cross_entropy(
        &self,
        graph: &mut Graph,
        output: Value,
        targets: Value,
        ignore: Option<u32>,
        weights: Option<Value>,
    ) -> Result<RowLoss> {
        match self.recalled.iter().find(|r| r.0 == output) {
            Some((_, recalled)) => {
                let [losses, counts] = recalled.losses(graph, targets, ignore)?;
                graph.row_loss(losses, counts, weights)
            }
            None => graph.weighted_cross_entropy(output, targets, ignore, weights),
        }
    }
}
