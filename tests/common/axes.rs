//! Graphs over several time axes of unrelated lengths, each ending in a scalar; all their persistent floats are parameters.

use mnemon::config::{Direction, Mask};
use mnemon::error::Result;
use mnemon::graph::builder::LstmWeights;
use mnemon::graph::{
    AttentionOp, B, Dim, Expr, Gather, Graph, LstmOp, N, Padding, Score, Symbol, TimeKind, Value, Window,
};
use mnemon::params::DType;
use mnemon::scheduler::Batch;

type Build = Box<dyn Fn(&mut Graph) -> Result<Value>>;

/// A graph and the lengths of its sequences on each axis.
pub struct AxesCase {
    pub name: String,
    pub lengths: Vec<Vec<usize>>,
    pub build: Build,
}

impl AxesCase {
    pub fn batch(&self) -> Batch {
        let first = Batch::ragged(&self.lengths[0]).unwrap();
        self.lengths[1..].iter().fold(first, |batch, lengths| batch.with_axis(lengths).unwrap())
    }
}

const FIRST: [usize; 5] = [2, 0, 5, 1, 5];
const SECOND: [usize; 5] = [3, 4, 0, 6, 2];

fn case(
    name: impl Into<String>,
    more: &[Vec<usize>],
    build: impl Fn(&mut Graph) -> Result<Value> + 'static,
) -> AxesCase {
    let mut lengths = vec![FIRST.to_vec(), SECOND.to_vec()];
    lengths.extend_from_slice(more);
    AxesCase { name: name.into(), lengths, build: Box::new(build) }
}

pub fn on(axis: u8) -> Dim {
    Dim::Symbol(Symbol::Rows(axis))
}

/// Σ value · k with a different k for each element.
fn weighted(g: &mut Graph, value: Value, name: &str) -> Result<Value> {
    let shape = g.shape(value).clone();
    let k = g.input(name, shape, DType::F32)?;
    let product = g.elementwise(Expr::Input(0) * Expr::Input(1), &[value, k])?;
    g.sum(&[product])
}

fn layer(g: &mut Graph, name: &str, input: usize, hidden: usize) -> Result<LstmWeights> {
    let weight_ih = g.persistent(&format!("{name}.weight_ih"), [4 * hidden, input])?;
    let weight_hh = g.persistent(&format!("{name}.weight_hh"), [4 * hidden, hidden])?;
    let bias = g.persistent(&format!("{name}.bias"), [4 * hidden])?;
    Ok(LstmWeights::new(weight_ih, weight_hh).bias(Some(bias), None))
}

fn windows() -> Vec<AxesCase> {
    let mut all = Vec::new();
    for (taps, stride, dilation, padding) in [
        (3, 1, 1, Padding::Valid),
        (2, 2, 1, Padding::Valid),
        (3, 1, 2, Padding::Causal),
        (2, 2, 2, Padding::Same),
        (4, 3, 1, Padding::Same),
        (3, 2, 1, Padding::Explicit { before: 2, after: 1 }),
        (1, 2, 1, Padding::Explicit { before: -1, after: 0 }),
        (2, 1, 1, Padding::Explicit { before: 1, after: -2 }),
    ] {
        let window = Window { taps, stride, dilation, padding };
        let lengths = SECOND.iter().map(|&l| window.steps(l)).collect();
        all.push(case(format!("{window:?}"), &[lengths], move |g| {
            let x = g.persistent("x", [on(1), 3.into()])?;
            let seen = g.gather(Gather::Windows { window, axis: 2, fill: 0.5 }, x)?;
            let w = g.persistent("w", [2, 3 * taps])?;
            let y = g.linear(seen, w, None)?;
            let y = g.tanh(y)?;
            weighted(g, y, "k")
        }));
    }
    all
}

fn attentions() -> Vec<AxesCase> {
    let mut all = Vec::new();
    for (score, scaled, causal) in [
        (Score::Dot, false, false),
        (Score::Dot, false, true),
        (Score::Additive, false, false),
        (Score::Additive, true, false),
        (Score::Additive, true, true),
    ] {
        all.push(case(format!("attention {score:?} scaled {scaled} causal {causal}"), &[], move |g| {
            let q = g.persistent("q", [N, 3.into()])?;
            let (k, v) = (g.persistent("k", [on(1), 3.into()])?, g.persistent("v", [on(1), 5.into()])?);
            let s = if scaled { Some(g.persistent("s", [3])?) } else { None };
            let y = g.attention(AttentionOp { score, causal }, q, k, v, s)?;
            weighted(g, y, "ky")
        }));
    }
    all
}

/// Attention of a sequence to itself, over more keys and columns than a workgroup takes at once.
#[allow(dead_code, reason = "too many elements for differences")]
pub fn wide() -> AxesCase {
    let build = |g: &mut Graph| {
        let x = g.persistent("x", [N, 67.into()])?;
        let v = g.persistent("v", [N, 261.into()])?;
        // Scores near each other: where one key wins, the gradient is what is left of numbers that are nearly equal.
        let q = g.elementwise(Expr::Input(0) * Expr::Const(0.1), &[x])?;
        let y = g.attention(AttentionOp { score: Score::Dot, causal: false }, q, x, v, None)?;
        weighted(g, y, "ky")
    };
    AxesCase { name: "wide attention".into(), lengths: vec![vec![3, 64, 0, 128, 61]], build: Box::new(build) }
}

/// All cases: windows, attention, sequences as rows, layers over two axes.
pub fn cases() -> Vec<AxesCase> {
    let mut all = windows();
    all.extend(attentions());
    all.push(case("sequences as rows and back, features as steps", &[vec![4; 5], vec![3; 5]], |g| {
        let x = g.persistent("x", [on(1), 3.into()])?;
        let row = g.gather(Gather::Flatten { steps: 7 }, x)?;
        let w = g.persistent("w", [8, 21])?;
        let y = g.linear(row, w, None)?;
        let back = g.gather(Gather::Unflatten { steps: 4, axis: 2 }, y)?;
        let turned = g.gather(Gather::Transpose { steps: 7, axis: 3 }, x)?;
        let sums = [weighted(g, back, "kb")?, weighted(g, turned, "kt")?];
        g.sum(&sums)
    }));
    all.push(case("single steps, and the steps of another sequence", &[], |g| {
        let x = g.persistent("x", [on(1), 3.into()])?;
        let mut sums = Vec::new();
        for at in [0, 2, -1, -3] {
            let step = g.gather(Gather::Step { at }, x)?;
            let back = g.gather(Gather::AtStep { at: at - 1, axis: 0 }, step)?;
            sums.push(weighted(g, step, &format!("k{at}"))?);
            sums.push(weighted(g, back, &format!("kb{at}"))?);
        }
        let along = g.gather(Gather::Along { axis: 0 }, x)?;
        let along = g.tanh(along)?;
        sums.push(weighted(g, along, "ka")?);
        g.sum(&sums)
    }));
    all.push(case("logarithms of a softmax, and a sum over steps beside each", &[], |g| {
        let x = g.persistent("x", [on(1), 3.into()])?;
        let any = g.argmax(x)?;
        let sum = g.log_sum_exp(x, any)?;
        let logarithms = g.elementwise(Expr::Input(0) - Expr::Input(1), &[x, sum])?;
        let total = g.over_time(TimeKind::Sum, x)?;
        let total = g.each_step(1, total)?;
        let shares = g.elementwise(Expr::Input(0) * Expr::Input(1).exp(), &[x, total])?;
        let sums = [weighted(g, logarithms, "kl")?, weighted(g, shares, "ks")?];
        g.sum(&sums)
    }));
    all.push(case("layers on two axes that share states", &[], |g| {
        let (x, y) = (g.persistent("x", [N, 3.into()])?, g.persistent("y", [on(1), 2.into()])?);
        let (h, c) = (g.persistent("h0", [B, 2.into()])?, g.persistent("c0", [B, 2.into()])?);
        let encoder = layer(g, "encoder", 3, 2)?;
        let decoder = layer(g, "decoder", 2, 2)?;
        let mut op = LstmOp::plain();
        (op.cell.recurrent_dropout, op.cell.recurrent_mask, op.cell.zoneout_c) = (0.3, Mask::Sequence, 0.2);
        let encoded = g.lstm(x, Some((h, c)), &encoder)?;
        op.random = Some(g.random_operations(3));
        op.direction = Direction::Reverse;
        let y = g.dropout_masked(y, 0.3, Mask::Sequence)?;
        let decoded = g.lstm_layer(y, Some((encoded.h_n, encoded.c_n)), &op, &[decoder])?;
        let (sum, largest) = (g.over_time(TimeKind::Sum, decoded.y)?, g.over_time(TimeKind::Max, decoded.y)?);
        let each = g.each_step(1, largest)?;
        let mut sums = Vec::new();
        for (value, name) in [(decoded.y, "ky"), (decoded.h_n, "kh"), (decoded.c_n, "kc"), (sum, "ks"), (each, "ke")] {
            sums.push(weighted(g, value, name)?);
        }
        g.sum(&sums)
    }));
    all
}

/// Windows, and a layer over them, over sequences that are long enough to be cut into pieces.
#[allow(dead_code, reason = "only the executors are cut")]
pub fn long() -> AxesCase {
    let lengths = [4, 9, 300, 17, 300, 1];
    let window = Window { taps: 3, stride: 2, dilation: 1, padding: Padding::Same };
    let halves = lengths.iter().map(|&l| window.steps(l)).collect();
    let build = move |g: &mut Graph| {
        let x = g.persistent("x", [on(1), 16.into()])?;
        let seen = g.gather(Gather::Windows { window, axis: 2, fill: 0.0 }, x)?;
        let weights = layer(g, "layer", 48, 3)?;
        let out = g.lstm(seen, None, &weights)?;
        let turned = g.gather(Gather::Flatten { steps: 150 }, out.y)?;
        let sums = [weighted(g, out.h_n, "kh")?, weighted(g, turned, "kt")?];
        g.sum(&sums)
    };
    let first = [1, 2, 3, 4, 5, 6].to_vec();
    AxesCase { name: "long".into(), lengths: vec![first, lengths.to_vec(), halves], build: Box::new(build) }
}
