//! Keras's classic, in Rust: an LSTM forecasts a year of airline passengers from the eleven years before.
//!
//! The series is taken as growth over the same month a year before, ln(x_t / x_{t-12}); the model reads twelve months
//! of it and gives the next. The last twelve figures are held out: each forecast is fed back to reach the next, so
//! nothing of the last year is ever read. Exits with 1 unless the forecast beats "same month a year ago".

use mnemon::data::{AIR_PASSENGERS, Scaler, windows};
use mnemon::device::Device;
use mnemon::nn::{Activation, Dense, Lstm, Sequential};
use mnemon::optim::Adam;
use mnemon::train::{Fit, Loss};
use ndarray::Array3;
use std::process::ExitCode;

const YEAR: usize = 12;

fn root_mean_square(errors: impl Iterator<Item = f32>) -> f32 {
    let squares: Vec<f32> = errors.map(|e| e * e).collect();
    (squares.iter().sum::<f32>() / squares.len() as f32).sqrt()
}

fn main() -> mnemon::error::Result<ExitCode> {
    let (known, held_out) = AIR_PASSENGERS.split_at(AIR_PASSENGERS.len() - YEAR);
    let growth: Vec<f32> = known[YEAR..].iter().zip(known).map(|(now, before)| (now / before).ln()).collect();
    let scaler = Scaler::fit(&growth)?;
    let mut scaled: Vec<f32> = growth.iter().map(|&g| scaler.scale(g)).collect();
    let (x_train, y_train) = windows(&scaled, YEAR, 1)?;

    let device = Device::best()?;
    let mut model = Sequential::new(&device);
    model.add(Lstm::new(50).activation(Activation::Tanh));
    model.add(Dense::new(1));
    model.compile(Adam::default(), Loss::MeanSquaredError)?;
    let history = model.fit(&x_train, &y_train, &Fit { epochs: 100, batch_size: 32, ..Fit::default() })?;
    println!("on {}", device.name());
    print!("{}", model.summary());
    println!("loss {:.4} after 1 epoch, {:.4} after {}", history.loss[0], history.loss[99], history.loss.len());

    let mut forecast = known.to_vec();
    for _ in 0..YEAR {
        let last = Array3::from_shape_fn((1, YEAR, 1), |(_, t, _)| scaled[scaled.len() - YEAR + t]);
        let next = model.predict(&last)?[[0, 0]];
        scaled.push(next);
        forecast.push(forecast[forecast.len() - YEAR] * scaler.restore(next).exp());
    }
    let forecast = &forecast[known.len()..];
    println!("month  passengers  forecast  year ago");
    for (month, actual) in held_out.iter().enumerate() {
        println!("{:>5}{actual:>12}{:>10.0}{:>10}", month + 1, forecast[month], known[known.len() - YEAR + month]);
    }
    let ours = root_mean_square(forecast.iter().zip(held_out).map(|(f, a)| f - a));
    let naive = root_mean_square(known[known.len() - YEAR..].iter().zip(held_out).map(|(f, a)| f - a));
    println!("root mean square error: lstm {ours:.1}, same month a year ago {naive:.1} (thousand passengers)");
    Ok(if ours < naive { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
