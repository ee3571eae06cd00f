//! The adding problem of Hochreiter and Schmidhuber (1997, experiment 4): of T pairs, two are marked; what is wanted at the end is
//! 0.5 + (x₁ + x₂)/4 of the marked values in [-1, 1].
//!
//!     cargo run --release --example adding [T, 100 unless given]
//!
//! Trains on new sequences until 2,000 that it has never seen are all answered within 0.04, and exits with 1 if that does not
//! happen in as many epochs as are plenty. Forget gates begin open for as long as T (Tallec and Ollivier 2018).

use mnemon::device::Device;
use mnemon::nn::{Dense, Input, Lstm, Sequential};
use mnemon::optim::{Adam, Clipping, Optimizer};
use mnemon::params::random::Random;
use mnemon::params::{Initializer, Rules};
use mnemon::train::{Fit, Loss};
use ndarray::{Array2, Array3};
use std::process::ExitCode;
use std::time::Instant;

const UNITS: usize = 128;
const BATCH: usize = 50;
const SEQUENCES: usize = 5000;
const UNSEEN: usize = 2000;
const EPOCHS: u64 = 100;
const WITHIN: f32 = 0.04;

/// Sequences, and what is wanted of each.
fn sequences(count: usize, steps: usize, random: &mut Random) -> (Array3<f32>, Array2<f32>) {
    let mut x = Array3::zeros((count, steps, 2));
    let mut y = Array2::from_elem((count, 1), 0.5f32);
    for s in 0..count {
        for t in 0..steps {
            x[[s, t, 0]] = (random.uniform() * 2.0 - 1.0) as f32;
        }
        // One mark in each half.
        let half = (steps / 2) as u32;
        for t in [random.below(half), half + random.below(steps as u32 - half)] {
            x[[s, t as usize, 1]] = 1.0;
            y[[s, 0]] += x[[s, t as usize, 0]] / 4.0;
        }
    }
    (x, y)
}

fn main() -> mnemon::error::Result<ExitCode> {
    let steps = std::env::args().nth(1).map_or(Ok(100), |text| text.parse::<usize>());
    let Some(steps) = steps.ok().filter(|&steps| steps >= 4) else {
        eprintln!("adding: expected a number of steps of at least 4");
        return Ok(ExitCode::from(2));
    };
    let device = Device::best()?;
    let mut model = Sequential::new(&device);
    let open = Rules::default().initializer(Initializer::Chrono(steps as f32));
    model.add(Lstm::new(UNITS).bias_rules(open)).add(Dense::new(1));
    model.build(Input::Features(2))?;
    let adam = Optimizer::from(Adam::default().learning_rate(2e-3)).clip(Clipping::GlobalNorm(1.0));
    model.compile(adam, Loss::MeanSquaredError)?;
    let (unseen, wanted) = sequences(UNSEEN, steps, &mut Random::new(1, 0));
    let start = Instant::now();
    for epoch in 1..=EPOCHS {
        let (x, y) = sequences(SEQUENCES, steps, &mut Random::new(0, epoch));
        let loss = model.fit(&x, &y, &Fit { batch_size: BATCH, ..Fit::default() })?.loss[0];
        let predicted = model.predict(&unseen)?;
        let off = |s: usize| (predicted[[s, 0]] - wanted[[s, 0]]).abs();
        let (right, most) =
            (0..UNSEEN).fold((0, 0.0f32), |(n, most), s| (n + usize::from(off(s) < WITHIN), most.max(off(s))));
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "epoch {epoch}: loss {loss:.5}, {right} of {UNSEEN} within {WITHIN}, at most {most:.3} off, {seconds:.0} s"
        );
        if right == UNSEEN {
            println!("solved for {steps} steps after {} sequences on {}", epoch as usize * SEQUENCES, device.name());
            return Ok(ExitCode::SUCCESS);
        }
    }
    Ok(ExitCode::FAILURE)
}
