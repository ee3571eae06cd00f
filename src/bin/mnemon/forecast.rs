//! `mnemon forecast`: what comes after a series.

use crate::options::DeviceOptions;
use crate::output::say;
use crate::words::open_run;
use clap::Args;
use mnemon::data::Table;
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::io::replace;
use mnemon::optim::{Adam, Clipping, Optimizer};
use mnemon::train::{Backtest, Fit, Forecast, Forecaster, ForecasterConfig, season_of};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  mnemon forecast sales.csv --horizon 12 --log
  mnemon forecast meters.csv --column load --column temperature --season 24 --steps 48 --level 0.95

Writes OUTPUT.csv with the forecasts and their intervals, OUTPUT.svg with the picture, OUTPUT.safetensors with the model, and
the records of the training in runs/ beside them. The last rows are kept to test on: there the model's errors are shown beside
those of naive forecasts.";

/// Forecast series from a CSV file, with intervals and a backtest
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Columns of numbers, a row a moment, the oldest first; with a header or without
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// A column to forecast, by its name or its number from 1; may be given again [default: all that hold numbers]
    #[arg(long, value_name = "NAME")]
    column: Vec<String>,

    /// Rows to forecast
    #[arg(long, value_name = "N", default_value_t = 12)]
    horizon: usize,

    /// Rows that the model reads [default: two seasons, from 8 to 400]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,

    /// Rows of a season, to forecast by the season before beside the model [default: what the first column shows, 1 for none]
    #[arg(long, value_name = "N")]
    season: Option<usize>,

    /// Rows at the end to test on, and as many before them to validate on [default: a tenth, at least two horizons]
    #[arg(long, value_name = "N")]
    test: Option<usize>,

    /// Forecast logarithms: for values above 0 that change by shares
    #[arg(long)]
    log: bool,

    /// The share of values that intervals are to hold
    #[arg(long, value_name = "SHARE", default_value_t = 0.8)]
    level: f64,

    /// Stacked LSTM layers
    #[arg(long, value_name = "N", default_value_t = 1)]
    layers: usize,

    /// Units of each layer
    #[arg(long, value_name = "N", default_value_t = 64)]
    hidden: usize,

    /// The most epochs; training stops before where validation gets no better
    #[arg(long, value_name = "N", default_value_t = 200)]
    epochs: usize,

    /// Windows a step
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch: usize,

    /// Learning rate of Adam
    #[arg(long, value_name = "RATE", default_value_t = 2e-3)]
    learning_rate: f64,

    /// Seed of all random numbers
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// What the files that are written are called, without an ending
    #[arg(long, short, value_name = "OUTPUT", default_value = "forecast")]
    output: PathBuf,

    /// Go on with the last training of this name, which was stopped, to what it would have come to
    #[arg(long)]
    resume: bool,

    #[command(flatten)]
    device: DeviceOptions,
}

/// The longest season that is looked for.
const LONGEST_SEASON: usize = 400;

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let named = |ending: &str| {
        let mut name = arguments.output.clone().into_os_string();
        name.push(ending);
        PathBuf::from(name)
    };
    let (model_file, csv_file, svg_file) = (named(".safetensors"), named(".csv"), named(".svg"));
    crate::output::check_folder(&model_file)?;
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same(&csv_file, &arguments.file) {
        let message = format!("forecast: {} would be written over: name another --output", arguments.file.display());
        return Err(Error::new(ErrorKind::Argument, message));
    }
    let table = Table::read(&arguments.file, &arguments.column)?;
    // What tests must not be looked at: neither may the season.
    let unseen = arguments.test.unwrap_or(table.len() / 10).saturating_mul(2).min(table.len() / 2);
    let known = &table.columns[0][..table.len() - unseen];
    let season = arguments.season.unwrap_or_else(|| season_of(known, LONGEST_SEASON));
    let config = ForecasterConfig {
        steps: arguments.steps.unwrap_or(season.saturating_mul(2).clamp(8, LONGEST_SEASON)),
        horizon: arguments.horizon,
        layers: arguments.layers,
        hidden: arguments.hidden,
        log: arguments.log,
        seed: arguments.seed,
    };
    let test = arguments.test.unwrap_or((table.len() / 10).max(config.horizon.saturating_mul(2)));
    let parts = Forecaster::parts(&config, table.len(), test)?;
    Forecaster::check_options(&parts, season, arguments.level)?;
    let errors = test + 1 - config.horizon;
    if errors < Forecaster::least_errors(arguments.level) {
        log::warn!("intervals are measured by {errors} errors alone and may be too narrow: a larger --test has more");
    }
    let adam = Adam::default().learning_rate(arguments.learning_rate);
    let optimizer = Optimizer::from(adam).clip(Clipping::GlobalNorm(1.0));
    optimizer.validate()?;
    let fit = Fit { epochs: arguments.epochs, batch_size: arguments.batch, seed: config.seed, ..Fit::default() };
    fit.validate()?;
    let device = arguments.device.open()?;
    let mut forecaster = Forecaster::new(&device, &config, &table, parts.train.clone())?;
    for (name, filled) in table.names.iter().zip(&table.filled).filter(|f| *f.1 > 0) {
        eprintln!("{filled} missing values of `{name}` are taken to be as the last before them");
    }
    let columns = table.names.join(", ");
    eprintln!(
        "{} rows of {columns}: {} to train on, {test} to validate, {test} to test",
        table.len(),
        parts.train.len()
    );
    eprintln!("reads {} rows, forecasts {}; a season of {season} on {}", config.steps, config.horizon, device.name());
    let name = arguments.output.file_name().unwrap_or_default();
    let configuration = serde_json::json!({
        "model": config,
        "batch": arguments.batch,
        "learning_rate": arguments.learning_rate,
        "files": [&arguments.file],
    });
    let seed = config.seed;
    let mut run = open_run(&arguments.output, name, (None, arguments.resume), (&configuration, seed), &device)?;
    forecaster.keep_progress(run.progress_files()?);
    let history = forecaster.fit(optimizer, &table, &parts, &fit, &mut [&mut run])?;
    eprintln!("{} epochs", history.loss.len());
    show(&forecaster.backtest(&table, &parts, season, arguments.level)?, arguments);
    let forecast = forecaster.forecast(&table, table.len(), arguments.level)?;
    forecaster.save(&model_file)?;
    run.clear_progress()?;
    replace(&csv_file, csv(&table, &forecast).as_bytes())?;
    replace(&svg_file, forecaster.plot(&table, &forecast, arguments.level)?.as_bytes())?;
    let output = arguments.output.display();
    say!("wrote {output}.csv, {output}.svg and {output}.safetensors");
    Ok(ExitCode::SUCCESS)
}

fn show(backtest: &Backtest, arguments: &Arguments) {
    say!("forecasts of {} rows from {} places of the test:", arguments.horizon, backtest.origins);
    say!("{:>16}  {:>12}  {:>12}  {:>8}", "", "mean error", "root square", "scaled");
    for errors in &backtest.errors {
        let (mean, root, scaled) = (errors.mean_absolute, errors.root_mean_square, errors.scaled);
        say!("{:>16}  {mean:>12.4}  {root:>12.4}  {scaled:>8.3}", errors.name);
    }
    let (held, level) = (100.0 * backtest.coverage, 100.0 * arguments.level);
    say!("{held:.1} % of the values were inside the {level:.0} % intervals");
}

/// A row for each step ahead.
fn csv(table: &Table, forecast: &Forecast) -> String {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let names = table.names.iter().flat_map(|n| [n.clone(), format!("{n} low"), format!("{n} high")]);
    let mut text = format!("ahead,{}\n", names.map(|n| quoted(&n)).collect::<Vec<_>>().join(","));
    for (ahead, (values, intervals)) in forecast.values.iter().zip(&forecast.intervals).enumerate() {
        let fields = values.iter().zip(intervals).map(|(value, (low, high))| format!("{value},{low},{high}"));
        text += &format!("{},{}\n", ahead + 1, fields.collect::<Vec<_>>().join(","));
    }
    text
}
