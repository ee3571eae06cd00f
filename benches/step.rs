//! Microseconds of one step of one stream: x goes in, y comes out, the state stays on the device for the next step.
//!
//!     cargo bench --bench step -- [--steps 20000]
//!
//! B = 1, I = H = 128, one layer; MNEMON_DEVICE chooses the device (cpu unless set). Beside it: `benches/step_onnxruntime.py`. A
//! JSON line with the median and the 99th percentile of the calls after the first tenth.

use mnemon::device::{Device, GpuLimits};
use mnemon::error::Result;
use mnemon::graph::builder::LstmWeights;
use mnemon::graph::{B, Graph, N};
use mnemon::params::{DType, Initializer, Tensor};
use mnemon::scheduler::{Batch, Capacity};
use std::time::Instant;

const SIZE: usize = 128;

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let steps: usize = match (words.next().as_deref(), words.next()) {
        (None, _) => 20_000,
        (Some("--steps"), Some(n)) => n.parse().expect("a number of steps"),
        (Some(word), _) => panic!("expected --steps N, got {word}"),
    };
    let device = std::env::var("MNEMON_DEVICE").unwrap_or_else(|_| "cpu".to_string());
    let device = Device::parse(&device, GpuLimits::default(), None)?;
    let mut session = device.session()?;
    let mut g = Graph::new();
    let shapes =
        [("weight_ih", vec![4 * SIZE, SIZE]), ("weight_hh", vec![4 * SIZE, SIZE]), ("bias_ih", vec![4 * SIZE])];
    let mut values = Vec::new();
    for (stream, (name, shape)) in shapes.iter().enumerate() {
        let first = Initializer::Uniform(1.0 / (SIZE as f32).sqrt()).values(shape, 0, stream as u64)?;
        session.set(name, &Tensor::new(shape, first)?)?;
        values.push(g.persistent(name, shape)?);
    }
    let x = g.input("x", [N, SIZE.into()], DType::F32)?;
    let state = (g.persistent("h", [B, SIZE.into()])?, g.persistent("c", [B, SIZE.into()])?);
    let out = g.lstm(x, Some(state), &LstmWeights::new(values[0], values[1]).bias(Some(values[2]), None))?;
    g.update(state.0, out.h_n)?;
    g.update(state.1, out.c_n)?;
    g.output("y", out.y)?;
    let batch = Batch::dense(1, 1)?;
    let mut step = session.load(&g, &Capacity::exactly(&batch))?;
    let mut x = Tensor::new(&[1, SIZE], Initializer::Normal(1.0).values(&[1, SIZE], 0, 9)?)?;
    let mut times = Vec::with_capacity(steps);
    for _ in 0..steps {
        let begin = Instant::now();
        session.run(&mut step, &batch, &[("x", &x)])?;
        let y = session.output(&step, "y")?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
        // The next x depends on this y, as where a model reads what it has said.
        x = y;
    }
    let mut times = times.split_off(steps / 10);
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!(
        r#"{{"peer":"mnemon","device":"{}","median_us":{:.2},"p99_us":{:.2},"steps":{}}}"#,
        device.name(),
        at(0.5),
        at(0.99),
        times.len()
    );
    Ok(())
}
