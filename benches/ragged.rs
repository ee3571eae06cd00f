//! Seconds an epoch over sequences of real lengths: packed, for each way of batching, and padded to each batch's longest.
//!
//!     cargo bench --bench ragged -- LENGTHS.json... [--batch 64] [--epochs 3] [--batches FOLDER]
//!
//! A file holds a JSON list of lengths. The work is a training step of a classifier: embedding of 128, LSTM of 256, the
//! last h to two classes, plain gradient descent. MNEMON_DEVICE chooses the device (cpu unless set). `--batches` writes
//! which samples share a batch, so that `benches/ragged_torch.py` can be timed on the same ones. JSON lines; the time is
//! the median epoch after one that is not counted.

use mnemon::data::{Batching, Cost, Sampler};
use mnemon::device::{Device, GpuLimits, Session};
use mnemon::error::Result;
use mnemon::graph::builder::LstmWeights;
use mnemon::graph::{B, Expr, Graph, N};
use mnemon::params::{DType, Initializer, Tensor};
use mnemon::scheduler::{Batch, Capacity};
use std::time::Instant;

const VOCABULARY: usize = 10_000;
const EMBEDDING: usize = 128;
const HIDDEN: usize = 256;
const CLASSES: usize = 2;

struct Options {
    files: Vec<String>,
    batch: usize,
    epochs: usize,
    batches: Option<String>,
}

fn options() -> Options {
    let mut all = Options { files: Vec::new(), batch: 64, epochs: 3, batches: None };
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--batch" => all.batch = value().parse().expect("a number of sequences"),
            "--epochs" => all.epochs = value().parse().expect("a number of epochs"),
            "--batches" => all.batches = Some(value()),
            _ => all.files.push(word),
        }
    }
    all
}

/// The training step, and its parameters in the session.
fn graph(session: &mut Session) -> Result<Graph> {
    let mut g = Graph::new();
    let shapes = [
        ("table", vec![VOCABULARY, EMBEDDING]),
        ("weight_ih", vec![4 * HIDDEN, EMBEDDING]),
        ("weight_hh", vec![4 * HIDDEN, HIDDEN]),
        ("bias_ih", vec![4 * HIDDEN]),
        ("weight", vec![CLASSES, HIDDEN]),
        ("bias", vec![CLASSES]),
    ];
    let mut values = Vec::new();
    for (stream, (name, shape)) in shapes.iter().enumerate() {
        let first = Initializer::Uniform(1.0 / 16.0).values(shape, 0, stream as u64)?;
        session.set(name, &Tensor::new(shape, first)?)?;
        values.push(g.persistent(name, shape)?);
    }
    let tokens = g.input("tokens", [N], DType::U32)?;
    let x = g.embedding(values[0], tokens)?;
    let weights = LstmWeights::new(values[1], values[2]).bias(Some(values[3]), None);
    let last = g.lstm(x, None, &weights)?.h_n;
    let logits = g.linear(last, values[4], Some(values[5]))?;
    let classes = g.input("classes", [B], DType::U32)?;
    let loss = g.cross_entropy(logits, classes, None)?;
    g.output("loss", loss.mean)?;
    let gradients = g.gradients(loss.mean, &values)?;
    for (&value, gradient) in values.iter().zip(gradients) {
        let step = Expr::Input(0) - Expr::Const(0.1) * Expr::Input(1);
        let next = g.elementwise(step, &[value, gradient])?;
        g.update(value, next)?;
    }
    Ok(g)
}

/// One batch of these lengths with tokens and classes.
fn inputs(lengths: &[usize], padded: bool) -> Result<(Batch, Tensor, Tensor)> {
    let longest = lengths.iter().copied().max().unwrap_or(1);
    let batch = if padded { Batch::dense(longest, lengths.len())? } else { Batch::ragged(lengths)? };
    let rows = batch.axis(0)?.rows();
    let tokens = (0..rows).map(|r| (r * 7919 % VOCABULARY) as u32).collect();
    let classes = (0..lengths.len()).map(|b| (b % CLASSES) as u32).collect();
    Ok((batch, Tensor::from_u32(&[rows], tokens)?, Tensor::from_u32(&[lengths.len()], classes)?))
}

fn main() -> Result<()> {
    let options = options();
    if options.files.is_empty() || options.epochs == 0 {
        println!("no file of lengths is named: nothing to time");
        return Ok(());
    }
    let device = std::env::var("MNEMON_DEVICE").unwrap_or_else(|_| "cpu".to_string());
    let device = Device::parse(&device, GpuLimits::Adapter, None)?;
    for file in &options.files {
        let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{file}: {e}"));
        let lengths: Vec<usize> = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{file}: {e}"));
        let data = std::path::Path::new(file).file_stem().map_or(String::new(), |s| s.to_string_lossy().to_string());
        let mean = (lengths.iter().sum::<usize>() / lengths.len().max(1)).max(1);
        let kinds = [
            ("plain", Batching::Plain),
            ("sorted", Batching::Sorted { batches: 20 }),
            ("buckets", Batching::Buckets),
            ("tokens", Batching::Tokens { most: options.batch * mean }),
        ];
        for (kind, batching) in kinds {
            // Batches of a token budget have as many sequences as fit.
            let size = if kind == "tokens" { 16 * options.batch } else { options.batch };
            let sampler = Sampler::new(lengths.clone(), size, batching, Some(0))?;
            let batches: Vec<Vec<usize>> = sampler.epoch(0);
            if let Some(folder) = &options.batches {
                let path = format!("{folder}/{data}.{kind}.json");
                let of = |batch: &Vec<usize>| batch.iter().map(|&s| lengths[s]).collect::<Vec<_>>();
                let all: Vec<Vec<usize>> = batches.iter().map(of).collect();
                std::fs::write(&path, serde_json::json!(all).to_string()).unwrap_or_else(|e| panic!("{path}: {e}"));
            }
            for padded in [false, true] {
                let line = measure(&device, &lengths, &batches, padded, options.epochs)?;
                println!(
                    "{}",
                    serde_json::json!({
                        "data": data, "device": device.label(), "batching": kind, "padded": padded,
                        "seconds": line.0, "batches": batches.len(), "tokens": line.1.real,
                        "real/computed": line.1.efficiency(), "real/padded": line.1.efficiency_padded(),
                    })
                );
            }
        }
    }
    Ok(())
}

/// The median of seconds an epoch, and what it costs.
fn measure(
    device: &Device,
    lengths: &[usize],
    batches: &[Vec<usize>],
    padded: bool,
    epochs: usize,
) -> Result<(f64, Cost)> {
    let mut session = device.session()?;
    let graph = graph(&mut session)?;
    let all: Vec<(Batch, Tensor, Tensor)> = batches
        .iter()
        .map(|batch| inputs(&batch.iter().map(|&s| lengths[s]).collect::<Vec<_>>(), padded))
        .collect::<Result<_>>()?;
    let most = |of: &dyn Fn(&Batch) -> usize| all.iter().map(|b| of(&b.0)).max().unwrap_or(1);
    let axis = |b: &Batch| b.axes().first().map_or((0, 0), |a| (a.steps(), a.rows()));
    let capacity =
        Capacity { sequences: most(&Batch::sequences), axes: vec![(most(&|b| axis(b).0), most(&|b| axis(b).1))] };
    let mut executable = session.load(&graph, &capacity)?;
    let mut cost = Cost::default();
    for (batch, ..) in &all {
        cost.add(Cost::of(batch, &device.target()));
    }
    let mut seconds = Vec::new();
    for _ in 0..=epochs {
        let begin = Instant::now();
        for (batch, tokens, classes) in &all {
            session.run(&mut executable, batch, &[("tokens", tokens), ("classes", classes)])?;
        }
        session.wait()?;
        seconds.push(begin.elapsed().as_secs_f64());
    }
    let mut timed = seconds.split_off(1);
    timed.sort_by(f64::total_cmp);
    Ok((timed[timed.len() / 2], cost))
}
