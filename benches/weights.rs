//! A model whose weights do not fit beside the same where they do: inference and training.
//!
//!     cargo bench --bench weights -- [--layers 8] [--hidden 1024] [--batch 64] [--steps 100] [--part 4] [--rounds 3] [--train 0]
//!
//! The budget is one part in `--part` of the parameters' bytes; for training of the parameters, their gradients and Adam's
//! state. MNEMON_DEVICE chooses the device (cpu unless set). Weights are in a safetensors file, and the last layer gives its last
//! h. JSON lines: the median of `--rounds` runs in turn, GFLOP/s counted as 8 · B · T · H (I + H) a layer (three times that for
//! training), the most that was ever allocated, and whether the outputs are the same bits.

use mnemon::device::{Device, GpuLimits};
use mnemon::error::Result;
use mnemon::graph::Graph;
use mnemon::io;
use mnemon::nn::{GraphOptions, Input, Lstm, Network};
use mnemon::optim::Adam;
use mnemon::params::random::Random;
use mnemon::params::{ParameterSpec, Tensor};
use mnemon::scheduler::{Batch, Capacity};
use mnemon::train::{Fit, Loss, Model, Named};
use std::collections::BTreeMap;
use std::time::Instant;

fn arguments() -> BTreeMap<String, usize> {
    let known =
        [("layers", 8), ("hidden", 1024), ("batch", 64), ("steps", 100), ("part", 4), ("rounds", 3), ("train", 0)];
    let mut all: BTreeMap<String, usize> = known.map(|(name, value)| (name.to_string(), value)).into();
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let value = words.next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{word}: a number"));
        let name = word.trim_start_matches("--");
        *all.get_mut(name).unwrap_or_else(|| panic!("expected one of {known:?}, got {word}")) = value;
    }
    all
}

fn values(shape: &[usize], seed: u64, scale: f64) -> Tensor {
    let mut random = Random::new(seed, 1);
    let len = shape.iter().product();
    Tensor::new(shape, (0..len).map(|_| (scale * random.normal()) as f32).collect()).expect("as many as the shape has")
}

fn open() -> Result<Device> {
    let device = std::env::var("MNEMON_DEVICE").unwrap_or_else(|_| "cpu".to_string());
    Device::parse(&device, GpuLimits::default(), None)
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn main() -> Result<()> {
    let all = arguments();
    let [layers, hidden, batch, steps] = ["layers", "hidden", "batch", "steps"].map(|name| all[name]);
    let mut network = Network::default();
    let mut h = vec![network.input("x", Input::Features(hidden))];
    for layer in 0..layers {
        h = network.add(Lstm::new(hidden).return_sequences(layer + 1 < layers), &h)?;
    }
    network.output("y", h[0]);
    let scale = 1.0 / (hidden as f64).sqrt();
    let value = |(at, p): (usize, &ParameterSpec)| (p.name.clone(), values(&p.shape, at as u64, scale));
    let parameters: Named = network.parameters()?.iter().enumerate().map(value).collect();
    let bytes: u64 = parameters.values().map(|t| 4 * t.len() as u64).sum();
    let path = std::env::temp_dir().join(format!("mnemon-bench-{}.safetensors", std::process::id()));
    io::write_tensors(&path, parameters)?;
    let parameters = io::read_tensors(&path)?;
    let flops = (8 * layers * batch * steps * hidden * 2 * hidden) as f64;
    let train = all["train"] > 0;
    let budget = if train { 4 * bytes } else { bytes } / all["part"] as u64;
    let done = if train {
        training(&network, &parameters, [batch, steps, hidden], budget, 3.0 * flops)
    } else {
        inference(&network, &parameters, [batch, steps, hidden], budget, flops, all["rounds"])
    };
    let _ = std::fs::remove_file(&path);
    done
}

fn inference(
    network: &Network,
    parameters: &Named,
    [batch, steps, features]: [usize; 3],
    budget: u64,
    flops: f64,
    rounds: usize,
) -> Result<()> {
    let mut graph = Graph::new();
    let built = network.build(&mut graph, GraphOptions::default())?;
    graph.output("y", built.outputs[0].0)?;
    let batch = Batch::dense(steps, batch)?;
    let x = values(&[batch.axis(0)?.rows(), features], 99, 1.0);
    let mut sides = Vec::new();
    for (name, device) in [("waits", open()?.with_memory(budget)), ("resident", open()?)] {
        let mut session = device.session()?;
        parameters.iter().try_for_each(|(name, tensor)| session.set(name, tensor))?;
        let executable = session.load(&graph, &Capacity::exactly(&batch))?;
        println!("# {name} on {}: {}", device.name(), executable.program().summary().replace('\n', "; "));
        sides.push((name, session, executable, Vec::new(), None));
    }
    for _ in 0..=rounds {
        for (_, session, executable, times, output) in &mut sides {
            let begin = Instant::now();
            session.run(executable, &batch, &[("x", &x)])?;
            *output = Some(session.output(executable, "y")?);
            times.push(begin.elapsed().as_secs_f64());
        }
    }
    let same = sides[0].4 == sides[1].4;
    let mut speeds = Vec::new();
    for (name, session, _, times, _) in sides {
        let seconds = median(times[1..].to_vec());
        let most = session.allocated().1;
        speeds.push(flops / seconds / 1e9);
        println!(
            "{{\"side\": \"{name}\", \"seconds\": {seconds:.3}, \"gflops\": {:.1}, \"allocated\": {most}, \"budget\": {budget}}}",
            flops / seconds / 1e9
        );
    }
    println!("{{\"of_resident\": {:.3}, \"same_bits\": {same}}}", speeds[0] / speeds[1]);
    Ok(())
}

/// Epochs of two steps; the first counts for nothing.
fn training(
    network: &Network,
    parameters: &Named,
    [batch, steps, features]: [usize; 3],
    budget: u64,
    flops: f64,
) -> Result<()> {
    let x = Named::from([("x".to_string(), values(&[2 * batch, steps, features], 98, 1.0))]);
    let y = Named::from([("y".to_string(), values(&[2 * batch, features], 97, 1.0))]);
    let fit = Fit { epochs: 2, batch_size: batch, ..Fit::default() };
    let mut trained = Vec::new();
    for (name, device) in [("waits", open()?.with_memory(budget)), ("resident", open()?)] {
        let mut model = Model::new(&device, network, parameters)?;
        model.compile(Adam::default(), &[("y", Loss::MeanSquaredError)])?;
        let mut seconds = 0.0;
        let mut losses = Vec::new();
        model.fit_with(&x, &y, &fit, |epoch| {
            seconds = epoch.seconds / 2.0;
            losses.push(epoch.loss);
            std::ops::ControlFlow::Continue(())
        })?;
        let most = model.allocated().1;
        println!(
            "{{\"side\": \"{name}\", \"seconds\": {seconds:.3}, \"gflops\": {:.1}, \"allocated\": {most}, \"budget\": {budget}}}",
            flops / seconds / 1e9
        );
        trained.push((seconds, losses));
    }
    let same = trained[0].1 == trained[1].1;
    println!("{{\"of_resident\": {:.3}, \"same_losses\": {same}}}", trained[1].0 / trained[0].0);
    Ok(())
}
