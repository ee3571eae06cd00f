//! Every gradient rule of the graph against central differences, in f64 on the reference executor.

#[path = "../common/axes.rs"]
mod axes;

use mnemon::config::{Activation, Bias, Cell, Direction, LstmConfig, Mask};
use mnemon::error::Result;
use mnemon::graph::builder::LstmWeights;
use mnemon::graph::{
    B, Binary, Dim, Expr, Graph, Kind, LstmOp, MemoryOp, N, Over, ReduceKind, Ring, Shape, TimeKind, Unary, Value,
};
use mnemon::params::random::Random;
use mnemon::params::{DType, Tensor, lstm_parameters};
use mnemon::reference::Reference;
use mnemon::scheduler::{Batch, Capacity, CompileOptions, Program, Target, compile};
use std::sync::Arc;

/// Half the distance of a central difference: with values and third derivatives around 1 it errs by about
/// STEP² = 1e-10 for the series it cuts off and 1e-16 / STEP = 1e-11 for rounding.
const STEP: f64 = 1e-5;
/// Absolute and relative: a thousand times those errors, which covers sums of hundreds of such terms; a wrong factor,
/// index or sign is off by far more.
const TOLERANCE: f64 = 1e-6;
const SEED: u64 = 20_240;
/// Integers of inputs are below this, so it is the number of classes and of table rows.
const BELOW: usize = 5;

type Build = Box<dyn Fn(&mut Graph) -> Result<Value>>;

/// A graph that ends in a scalar, and the sequences it runs on. All its persistent floats are its parameters.
struct Case {
    name: String,
    lengths: Vec<usize>,
    build: Build,
}

/// Lengths out of order, one of them zero: B = 4, T = 5, N = 8.
const RAGGED: [usize; 4] = [2, 0, 5, 1];

fn case(name: impl Into<String>, build: impl Fn(&mut Graph) -> Result<Value> + 'static) -> Case {
    Case { name: name.into(), lengths: RAGGED.to_vec(), build: Box::new(build) }
}

/// Σ value · k with a different k for each element, so that no element's gradient can stand for another's.
fn weighted(g: &mut Graph, value: Value, name: &str) -> Result<Value> {
    let shape = g.shape(value).clone();
    let k = g.input(name, shape, DType::F32)?;
    let product = g.elementwise(Expr::Input(0) * Expr::Input(1), &[value, k])?;
    g.sum(&[product])
}

fn layer(g: &mut Graph, name: &str, input: usize, hidden: usize, biases: usize) -> Result<LstmWeights> {
    let four_h = 4 * hidden;
    let weight_ih = g.persistent(&format!("{name}.weight_ih"), [four_h, input])?;
    let weight_hh = g.persistent(&format!("{name}.weight_hh"), [four_h, hidden])?;
    let bias_ih = if biases > 0 { Some(g.persistent(&format!("{name}.bias_ih"), [four_h])?) } else { None };
    let bias_hh = if biases > 1 { Some(g.persistent(&format!("{name}.bias_hh"), [four_h])?) } else { None };
    Ok(LstmWeights::new(weight_ih, weight_hh).bias(bias_ih, bias_hh))
}

fn state(g: &mut Graph, name: &str, hidden: usize) -> Result<(Value, Value)> {
    let shape = || Shape::from([B, hidden.into()]);
    Ok((g.persistent(&format!("{name}.h0"), shape())?, g.persistent(&format!("{name}.c0"), shape())?))
}

/// One layer of I = 3, H = 2; `reads` says which of y, h_n and c_n the loss reads.
fn lstm(g: &mut Graph, biases: usize, with_state: bool, reads: [bool; 3]) -> Result<Value> {
    let x = g.persistent("x", [N, 3.into()])?;
    let weights = layer(g, "lstm", 3, 2, biases)?;
    let initial = if with_state { Some(state(g, "lstm", 2)?) } else { None };
    let out = g.lstm(x, initial, &weights)?;
    let mut sums = Vec::new();
    for (value, name) in
        [(out.y, "ky"), (out.h_n, "kh"), (out.c_n, "kc")].into_iter().zip(reads).filter_map(|(v, r)| r.then_some(v))
    {
        sums.push(weighted(g, value, name)?);
    }
    g.sum(&sums)
}

fn lstm_cases() -> Vec<Case> {
    let mut all = Vec::new();
    for lengths in [vec![3, 3], RAGGED.to_vec()] {
        for biases in 0..=2 {
            for with_state in [false, true] {
                for reads in [[true, false, false], [false, true, false], [false, false, true], [true, true, true]] {
                    let name =
                        format!("lstm lengths {lengths:?} biases {biases} state {with_state} y, h_n, c_n {reads:?}");
                    let build: Build = Box::new(move |g| lstm(g, biases, with_state, reads));
                    all.push(Case { name, lengths: lengths.clone(), build });
                }
            }
        }
    }
    all.push(case("two stacked layers with states", |g| {
        let x = g.persistent("x", [N, 4.into()])?;
        let (lower, upper) = (layer(g, "lower", 4, 2, 1)?, layer(g, "upper", 2, 3, 2)?);
        let (first, second) = (state(g, "lower", 2)?, state(g, "upper", 3)?);
        let below = g.lstm(x, Some(first), &lower)?;
        let above = g.lstm(below.y, Some(second), &upper)?;
        let sums = [weighted(g, above.y, "k")?, weighted(g, below.h_n, "kh")?, weighted(g, above.c_n, "kc")?];
        g.sum(&sums)
    }));
    all.push(case("one layer used twice", |g| {
        let x = g.persistent("x", [N, 2.into()])?;
        let weights = layer(g, "lstm", 2, 2, 1)?;
        let below = g.lstm(x, None, &weights)?;
        let above = g.lstm(below.y, Some((below.h_n, below.c_n)), &weights)?;
        weighted(g, above.y, "k")
    }));
    all
}

/// Layers of I = 3, H = 4 (R = 2 where they are projected) of any kind, with dropout between them while training; the
/// loss reads y and each layer's h_n and c_n.
fn lstm_kind(g: &mut Graph, config: &LstmConfig, training: bool) -> Result<Value> {
    let mut y = g.persistent("x", [N, config.input_size.into()])?;
    let mut sums = Vec::new();
    for layer in 0..config.num_layers {
        let mut op = LstmOp { direction: config.direction, cell: config.cell, random: None };
        if training {
            op.random = Some(g.random_operations(3));
        }
        let mut values = Vec::new();
        for p in lstm_parameters(config, layer) {
            let value = g.persistent(&p.name, &p.shape)?;
            values.push((p, value));
        }
        let of = |d: usize, role: &str| {
            values.iter().find(|(p, _)| p.direction == d && p.role == role).map(|(_, value)| *value)
        };
        let weights =
            (0..op.directions()).map(|d| LstmWeights::by_role(|role| of(d, role))).collect::<Result<Vec<_>>>()?;
        let columns = |n: usize| Shape::from([B, (op.directions() * n).into()]);
        let h0 = g.persistent(&format!("h0_l{layer}"), columns(config.output_size()))?;
        let c0 = g.persistent(&format!("c0_l{layer}"), columns(config.hidden_size))?;
        if layer > 0 && training {
            y = g.dropout(y, 0.25)?;
        }
        let out = g.lstm_layer(y, Some((h0, c0)), &op, &weights)?;
        y = out.y;
        sums.push(weighted(g, out.h_n, &format!("kh_l{layer}"))?);
        sums.push(weighted(g, out.c_n, &format!("kc_l{layer}"))?);
    }
    sums.push(weighted(g, y, "ky")?);
    g.sum(&sums)
}

/// The options of a cell, one at a time.
fn cells() -> Vec<Cell> {
    let plain = Cell::default();
    let mut all = vec![
        plain,
        Cell { clip: Some(0.9), ..plain },
        Cell { cell_clip: Some(0.7), ..plain },
        Cell { coupled: true, ..plain },
        Cell { peepholes: true, ..plain },
        Cell { layer_norm: Some(1e-3), ..plain },
        Cell { recurrent_dropout: 0.3, ..plain },
        Cell { recurrent_dropout: 0.3, recurrent_mask: Mask::Step, ..plain },
        Cell { zoneout_h: 0.4, ..plain },
        Cell { zoneout_c: 0.4, ..plain },
        // Too large to have an effect, so that differences see the same function.
        Cell { gradient_clip: Some(1e6), ..plain },
    ];
    let (alpha, beta) = (0.7, 0.4);
    for activation in [
        Activation::Linear,
        Activation::Relu,
        Activation::Affine { alpha, beta },
        Activation::LeakyRelu { alpha },
        Activation::ThresholdedRelu { alpha: 0.1 },
        Activation::ScaledTanh { alpha, beta },
        Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
        Activation::Elu { alpha },
        Activation::Softsign,
        Activation::Softplus,
        Activation::Selu,
        Activation::Swish,
        Activation::Exponential,
    ] {
        // e to a sum of products leaves what differences of doubles resolve, unless it is clipped.
        let clip = (activation == Activation::Exponential).then_some(1.5);
        all.push(Cell { gate: activation, clip, ..plain });
        all.push(Cell { candidate: activation, ..plain });
        all.push(Cell { output: activation, ..plain });
    }
    all
}

/// Every option by itself, and all pairs of: direction, layers, lengths, projection, bias, dropout, normalisation, peepholes,
/// zoneout, clipping, coupling, training. A row of an orthogonal array is a bit pattern; each two columns of it show all
/// four pairs.
fn kind_cases() -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |config: LstmConfig, lengths: Vec<usize>, training: bool| {
        let name = format!("lstm {config:?} lengths {lengths:?} training {training}");
        let build: Build = Box::new(move |g| lstm_kind(g, &config, training));
        all.push(Case { name, lengths, build });
    };
    let config = LstmConfig::new(3, 4);
    for cell in cells() {
        // Gates without bounds multiply from step to step: third derivatives grow beyond what central differences allow.
        let bounded = matches!(cell.gate, Activation::Sigmoid | Activation::HardSigmoid { .. } | Activation::Softsign);
        let lengths = if bounded { RAGGED.to_vec() } else { vec![1, 0, 2] };
        for training in [false, true] {
            add(config.clone().cell(cell), lengths.clone(), training);
        }
    }
    for direction in [Direction::Reverse, Direction::Both] {
        for projection in [None, Some(2)] {
            add(config.clone().direction(direction).projection(projection), RAGGED.to_vec(), false);
        }
    }
    // The Hadamard array of strength 2: column c of row r is the parity of r & c, for c in 1..32.
    for row in 0..32u32 {
        let bit = |column: u32| (row & column).count_ones() % 2 == 1;
        let cell = Cell {
            peepholes: bit(1),
            layer_norm: bit(2).then_some(1e-3),
            recurrent_dropout: if bit(3) { 0.3 } else { 0.0 },
            recurrent_mask: if bit(4) { Mask::Step } else { Mask::Sequence },
            zoneout_h: if bit(5) { 0.25 } else { 0.0 },
            zoneout_c: if bit(6) { 0.25 } else { 0.0 },
            coupled: bit(7),
            clip: bit(8).then_some(1.1),
            cell_clip: bit(9).then_some(1.2),
            gate: if bit(10) { Activation::HardSigmoid { alpha: 0.2, beta: 0.5 } } else { Activation::Sigmoid },
            ..Cell::default()
        };
        let direction = if bit(11) { Direction::Both } else { Direction::Reverse };
        let lengths = if bit(12) { RAGGED.to_vec() } else { vec![3, 3] };
        let config = config.clone().layers(1 + usize::from(bit(16))).cell(cell).direction(direction);
        let config = config.projection(bit(13).then_some(2));
        add(config.bias(if bit(14) { Bias::Two } else { Bias::None }), lengths, bit(15));
    }
    all
}

fn columns_cases() -> Vec<Case> {
    let joined = case("columns side by side, taken and normalised", |g| {
        let (a, b) = (g.persistent("a", [N, 3.into()])?, g.persistent("b", [N, 2.into()])?);
        let both = g.concat(&[a, b, a])?;
        let part = g.slice(both, 2, 4)?;
        let (gain, bias) = (g.persistent("gain", [4])?, g.persistent("bias", [4])?);
        let normed = g.layer_norm(part, 1e-3, Some(gain), Some(bias))?;
        let sums = [weighted(g, normed, "k")?, weighted(g, both, "kb")?];
        g.sum(&sums)
    });
    let softmax = case("softmax", |g| {
        let x = g.persistent("x", [N, 4.into()])?;
        let y = g.softmax(x)?;
        weighted(g, y, "k")
    });
    let time = case("the sum and the largest over time, and a row at each step", |g| {
        let x = g.persistent("x", [N, 3.into()])?;
        let (sum, largest) = (g.over_time(TimeKind::Sum, x)?, g.over_time(TimeKind::Max, x)?);
        let product = g.elementwise(Expr::Input(0) * Expr::Input(1), &[sum, largest])?;
        let each = g.each_step(0, product)?;
        let y = g.elementwise(Expr::Input(0) * Expr::Input(1), &[each, x])?;
        weighted(g, y, "k")
    });
    vec![joined, softmax, time]
}

fn matrix_cases() -> Vec<Case> {
    let mut all = Vec::new();
    for rows in [N, B, Dim::Fixed(3)] {
        for bias in [false, true] {
            let rows = rows.clone();
            all.push(case(format!("linear of {rows} rows, bias {bias}"), move |g| {
                let (x, w) = (g.persistent("x", [rows.clone(), 4.into()])?, g.persistent("w", [2, 4])?);
                let b = if bias { Some(g.persistent("b", [2])?) } else { None };
                let y = g.linear(x, w, b)?;
                weighted(g, y, "k")
            }));
        }
        let of = rows.clone();
        all.push(case(format!("matmul of {rows} rows"), move |g| {
            let (a, b) = (g.persistent("a", [of.clone(), 4.into()])?, g.persistent("b", [4, 3])?);
            let c = g.matmul(a, b)?;
            weighted(g, c, "k")
        }));
        let of = rows.clone();
        all.push(case(format!("dropout of {rows} rows"), move |g| {
            let x = g.persistent("x", [of.clone(), 7.into()])?;
            let once = g.dropout(x, 0.3)?;
            let twice = g.dropout(once, 0.1)?;
            weighted(g, twice, "k")
        }));
        let of = rows.clone();
        all.push(case(format!("embedding of {rows} tokens"), move |g| {
            let tokens = g.input("tokens", [of.clone()], DType::U32)?;
            let table = g.persistent("table", [BELOW, 3])?;
            let y = g.embedding(table, tokens)?;
            let squares = g.elementwise(Expr::Input(0) * Expr::Input(0), &[y])?;
            weighted(g, squares, "k")
        }));
    }
    all.push(case("rows replaced in a table", |g| {
        let rows = g.input("distinct", [B], DType::U32)?;
        let (table, x) = (g.persistent("table", [BELOW, 3])?, g.persistent("x", [B, 3.into()])?);
        let y = g.scatter(table, rows, x)?;
        let squares = g.elementwise(Expr::Input(0) * Expr::Input(0), &[y])?;
        weighted(g, squares, "k")
    }));
    all.push(case("a view of rows and of numbers", |g| {
        let x = g.persistent("x", [N, 6.into()])?;
        let seen = g.view(x, [N, 2.into(), 3.into()])?;
        let w = g.persistent("w", [2, 3])?;
        let flat = g.view(w, [6])?;
        let sums = [weighted(g, seen, "kx")?, weighted(g, flat, "kw")?];
        g.sum(&sums)
    }));
    all
}

/// Shapes that spread over `[N, 3]` in each of the four ways.
fn classes() -> [(&'static str, Shape); 4] {
    [("full", [N, 3.into()].into()), ("row", [3].into()), ("column", [N, 1.into()].into()), ("scalar", [1].into())]
}

fn elementwise_case(name: &str, expr: Expr) -> Vec<Case> {
    let cases = classes().into_iter().map(|(class, shape)| {
        let expr = expr.clone();
        case(format!("elementwise {name}, {class}"), move |g| {
            let (a, b) = (g.persistent("a", [N, 3.into()])?, g.persistent("b", shape.clone())?);
            let y = g.elementwise(expr.clone(), &[a, b])?;
            weighted(g, y, "k")
        })
    });
    cases.collect()
}

fn elementwise_cases() -> Vec<Case> {
    let (a, b) = (|| Expr::Input(0), || Expr::Input(1));
    let positive = |e: Expr| e.clone() * e + Expr::Const(0.5);
    let mut all = Vec::new();
    use Unary::{Abs, Exp, IsFinite, Log, Neg, Sigmoid, Sign, Sqrt, Tanh};
    for f in [Neg, Exp, Log, Sqrt, Abs, Sign, Sigmoid, Tanh, IsFinite] {
        let product = a() * b();
        let argument = if matches!(f, Log | Sqrt) { positive(product) } else { product };
        all.extend(elementwise_case(&format!("{f:?}"), Expr::Unary(f, Arc::new(argument))));
    }
    use Binary::{Add, Div, Less, Max, Min, Mul, Sub};
    for f in [Add, Sub, Mul, Div, Max, Min, Less] {
        let right = if f == Div { positive(b()) } else { b() };
        all.extend(elementwise_case(&format!("{f:?}"), Expr::Binary(f, Arc::new(a()), Arc::new(right.clone()))));
        all.extend(elementwise_case(&format!("{f:?} inside"), Expr::Binary(f, Arc::new(a()), Arc::new(right)) * b()));
    }
    all.extend(elementwise_case("select", a().less(b()).select(a() * b(), b().sigmoid() - a())));
    all.extend(elementwise_case("scalar and size", Expr::scalar("rate") * a() * b() / Expr::Size(symbol())));
    all.push(case("two outputs, operands shared", |g| {
        let (a, b) = (g.persistent("a", [N, 3.into()])?, g.persistent("b", [3])?);
        let first = Expr::Input(0) * Expr::Input(1);
        let second = Expr::Input(0).tanh() + Expr::Input(1).exp();
        let out = g.elementwise_many(vec![first, second], &[a, b])?;
        let sums = [weighted(g, out[0], "k0")?, weighted(g, out[1], "k1")?, weighted(g, a, "ka")?];
        g.sum(&sums)
    }));
    all
}

fn symbol() -> mnemon::graph::Symbol {
    mnemon::graph::Symbol::Rows(0)
}

fn reduction_cases() -> Vec<Case> {
    let mut all = Vec::new();
    for kind in [ReduceKind::Sum, ReduceKind::SumOfSquares] {
        for over in [Over::Rows, Over::Columns, Over::All] {
            for columns in [1usize, 3] {
                all.push(case(format!("{kind:?} over {over:?} of {columns} columns"), move |g| {
                    let x = g.persistent("x", [N, columns.into()])?;
                    let sum = g.reduce(kind, over, x)?;
                    let curved = g.elementwise(Expr::Input(0) * Expr::Input(0), &[sum])?;
                    weighted(g, curved, "k")
                }));
            }
        }
    }
    all.push(case("sums of several values", |g| {
        let (a, b, c) = (g.persistent("a", [N, 2.into()])?, g.persistent("b", [B, 3.into()])?, g.persistent("c", [N])?);
        let (sum, squares) = (g.sum(&[a, b, c])?, g.sum_of_squares(&[c, a, a])?);
        g.elementwise(Expr::Input(0) * Expr::Input(1).sqrt(), &[sum, squares])
    }));
    for rows in [N, B] {
        for ignore in [None, Some(1)] {
            let rows = rows.clone();
            all.push(case(format!("cross entropy of {rows} rows, ignore {ignore:?}"), move |g| {
                let logits = g.persistent("logits", [rows.clone(), BELOW.into()])?;
                let targets = g.input("targets", [rows.clone()], DType::U32)?;
                Ok(g.cross_entropy(logits, targets, ignore)?.mean)
            }));
        }
        all.push(case(format!("mean squared error of {rows} rows"), move |g| {
            let shape = || Shape::from([rows.clone(), 3.into()]);
            let (p, t) = (g.persistent("prediction", shape())?, g.persistent("target", shape())?);
            Ok(g.mean_squared_error(p, t)?.mean)
        }));
    }
    all.push(case("tokens to loss", |g| {
        let (tokens, targets) = (g.input("tokens", [N], DType::U32)?, g.input("targets", [N], DType::U32)?);
        let table = g.persistent("table", [BELOW, 3])?;
        let (x, weights) = (g.embedding(table, tokens)?, layer(g, "lstm", 3, 2, 2)?);
        let y = g.lstm(x, None, &weights)?.y;
        let y = g.dropout(y, 0.25)?;
        let (w, b) = (g.persistent("w", [BELOW, 2])?, g.persistent("b", [BELOW])?);
        let logits = g.linear(y, w, Some(b))?;
        Ok(g.cross_entropy(logits, targets, Some(3))?.mean)
    }));
    all
}

/// Passes where each difference is within [`TOLERANCE`], absolute plus relative; what is not finite never passes.
fn compare(what: &str, gradient: &[f64], differences: &[f64]) -> std::result::Result<(), String> {
    if gradient.len() != differences.len() {
        return Err(format!("{what}: {} gradients, {} differences", gradient.len(), differences.len()));
    }
    for (at, (g, d)) in gradient.iter().zip(differences).enumerate() {
        // A comparison that NaN passes would be `>` here.
        let within = (g - d).abs() <= TOLERANCE + TOLERANCE * d.abs();
        if !within || !g.is_finite() {
            return Err(format!("{what}[{at}]: gradient {g:e}, central difference {d:e}"));
        }
    }
    Ok(())
}

fn compiled(graph: &Graph, batch: &Batch) -> Result<Arc<Program>> {
    let options = CompileOptions::new(&Capacity::exactly(batch));
    Ok(Arc::new(compile(graph, Target::REFERENCE, &options)?))
}

fn random_inputs(program: &Program, batch: &Batch, random: &mut Random) -> Result<Vec<Tensor>> {
    let tensor = |(_, value): &(String, usize)| {
        let info = &program.values[*value];
        let shape = batch.resolve(&info.shape)?;
        let len: usize = shape.iter().product();
        match info.dtype {
            DType::F32 => Tensor::new(&shape, (0..len).map(|_| random.normal() as f32).collect()),
            DType::U32 if info.name == "distinct" => Tensor::from_u32(&shape, (0..len as u32).rev().collect()),
            DType::U32 => Tensor::from_u32(&shape, (0..len).map(|_| random.below(BELOW as u32)).collect()),
        }
    };
    program.inputs.iter().map(tensor).collect()
}

/// Compares the gradients of all elements of all parameters, and gives how many there were.
fn check(case: &Case) -> std::result::Result<usize, String> {
    let ended = |e: mnemon::error::Error| e.to_string();
    let mut batch = Batch::ragged(&case.lengths).map_err(ended)?.at_step(SEED, 3).starting_at(11);
    batch.set_scalar("rate", 0.7);
    check_graph(&batch, &case.build)
}

fn check_graph(batch: &Batch, build: &Build) -> std::result::Result<usize, String> {
    let ended = |e: mnemon::error::Error| e.to_string();
    let mut graph = Graph::new();
    let loss = build(&mut graph).map_err(ended)?;
    graph.output("loss", loss).map_err(ended)?;
    let forward = compiled(&graph, batch).map_err(ended)?;
    let parameters: Vec<(String, Vec<usize>, Value)> = (graph.values().iter())
        .filter(|v| v.kind == Kind::Persistent)
        .filter_map(|v| Some((v.name.clone(), batch.resolve(&v.shape).ok()?, graph.find(&v.name)?)))
        .collect();
    let values: Vec<Value> = parameters.iter().map(|p| p.2).collect();
    let gradients = graph.gradients(loss, &values).map_err(ended)?;
    for ((name, ..), gradient) in parameters.iter().zip(gradients) {
        graph.output(&format!("d{name}"), gradient).map_err(ended)?;
    }
    let backward = compiled(&graph, batch).map_err(ended)?;

    let mut random = Random::new(SEED, 0);
    let inputs = random_inputs(&forward, batch, &mut random).map_err(ended)?;
    let mut reference = Reference::<f64>::new();
    let mut written = Vec::new();
    for (name, shape, _) in &parameters {
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| random.normal()).collect();
        reference.declare(name, shape, DType::F32);
        reference.write_exact(name, &values).map_err(ended)?;
        written.push(values);
    }
    let mut prepared = reference.prepare(&backward).map_err(ended)?;
    // Both programs name the same inputs: what the gradient reads, the loss reads.
    if forward.inputs.iter().map(|i| &i.0).ne(backward.inputs.iter().map(|i| &i.0)) {
        return Err("the gradient has other inputs than the loss".to_string());
    }
    reference.run(&mut prepared, batch, &inputs).map_err(ended)?;
    let mut counted = 0;
    let mut loss_only = reference.prepare(&forward).map_err(ended)?;
    for (at, (name, ..)) in parameters.iter().enumerate() {
        let mut differences = Vec::new();
        for element in 0..written[at].len() {
            let mut moved = |by: f64| -> Result<f64> {
                let mut values = written[at].clone();
                values[element] += by;
                reference.write_exact(name, &values)?;
                reference.run(&mut loss_only, batch, &inputs)?;
                Ok(reference.output_exact(&loss_only, 0)?[0])
            };
            let (up, down) = (moved(STEP).map_err(ended)?, moved(-STEP).map_err(ended)?);
            differences.push((up - down) / (2.0 * STEP));
        }
        reference.write_exact(name, &written[at]).map_err(ended)?;
        let gradient = reference.output_exact(&prepared, at + 1).map_err(ended)?;
        compare(&format!("d{name}"), &gradient, &differences)?;
        counted += differences.len();
    }
    Ok(counted)
}

fn check_all(cases: &[Case]) {
    let mut failures = Vec::new();
    for case in cases {
        match check(case) {
            Ok(0) => failures.push(format!("{}: no parameter was compared", case.name)),
            Ok(_) => {}
            Err(why) => failures.push(format!("{}: {why}", case.name)),
        }
    }
    assert!(failures.is_empty(), "seed {SEED}, {} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn lstms_have_the_gradients_of_their_differences() {
    check_all(&lstm_cases());
}

#[test]
fn lstms_of_every_kind_have_the_gradients_of_their_differences() {
    check_all(&kind_cases());
}

#[test]
fn columns_have_the_gradients_of_their_differences() {
    check_all(&columns_cases());
}

#[test]
fn products_tables_and_dropout_have_the_gradients_of_their_differences() {
    check_all(&matrix_cases());
}

#[test]
fn expressions_have_the_gradients_of_their_differences() {
    check_all(&elementwise_cases());
}

#[test]
fn sums_and_losses_have_the_gradients_of_their_differences() {
    check_all(&reduction_cases());
}

/// Two sums over the places of a memory, of sequences that go on after three steps of zeros.
fn memory(g: &mut Graph) -> Result<Value> {
    let op = MemoryOp::new(3, 5);
    let [q, h] = ["q", "h"].map(|name| g.persistent(name, [N, 2.into()]));
    let (q, h) = (q?, h?);
    let tokens = [g.input("tokens", [N], DType::U32)?, g.input("targets", [N], DType::U32)?];
    let nothing = g.input("nothing", [B, 1.into()], DType::F32)?;
    let position = g.elementwise(Expr::Const(3.0), &[nothing])?;
    let empty = g.input("empty", [B, op.len(2).into()], DType::F32)?;
    let empty = g.elementwise(Expr::Input(0) * Expr::Const(0.0), &[empty])?;
    let ring = Ring { op, values: empty, position, slots: None };
    let values = g.remember(ring, h, tokens[0])?;
    let sums = g.recall(Ring { values, ..ring }, q, h, tokens[1])?;
    let found = Expr::Const(-1e29).less(Expr::Input(0));
    let sums = g.elementwise(found.select(Expr::Input(0), Expr::Const(0.0)), &[sums])?;
    weighted(g, sums, "k")
}

#[test]
fn what_is_recalled_has_the_gradients_of_its_differences() {
    check_all(&[case("memory", memory)]);
}

#[test]
fn what_runs_on_several_time_axes_has_the_gradients_of_its_differences() {
    let mut failures = Vec::new();
    for case in axes::cases() {
        match check_graph(&case.batch().at_step(SEED, 3), &case.build) {
            Ok(0) => failures.push(format!("{}: no parameter was compared", case.name)),
            Ok(_) => {}
            Err(why) => failures.push(format!("{}: {why}", case.name)),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_comparison_fails_where_it_must() {
    let right = [0.25, -3.0, 0.0];
    assert!(compare("right", &right, &right).is_ok());
    assert!(compare("perturbed", &[0.25, -3.0001, 0.0], &right).is_err());
    assert!(compare("swapped", &[-3.0, 0.25, 0.0], &right).is_err());
    assert!(compare("nan", &[0.25, f64::NAN, 0.0], &right).is_err());
    assert!(compare("nan", &right, &[0.25, f64::NAN, 0.0]).is_err());
    assert!(compare("infinite", &[f64::INFINITY], &[f64::INFINITY]).is_err());
    assert!(compare("short", &right[..2], &right).is_err());
    assert!(compare("empty", &[], &right).is_err());
    let none = case("no parameter", |g| {
        let x = g.input("x", [N, 2.into()], DType::F32)?;
        g.sum(&[x])
    });
    assert_eq!(check(&none), Ok(0));
}
