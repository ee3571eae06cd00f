//! Forecasts of series: an LSTM over windows, intervals from its own errors, and what it is worth beside naive forecasts.
//!
//! A window and what follows it are seen from the window's last values, in units of how much the series changes in a step, so that a
//! series that rises for ever is nothing new. What scales is taken from the training rows alone and saved with the model. Rows are
//! cut in order into those of training, those by which training stops and intervals are measured, and those that test; no window
//! reaches over what its target must not have seen.

mod plot;

use super::fit::{Fit, History};
use super::metrics::Metric;
use super::{Backup, Callback, EarlyStopping, Loss, Watched, save};
use crate::data::Table;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io;
use crate::nn::{Dense, Input, Lstm, Sequential};
use crate::optim::Optimizer;
use ndarray::{Array2, Array3};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What a forecaster is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ForecasterConfig {
    /// Rows that it reads.
    pub steps: usize,
    /// Rows that it forecasts.
    pub horizon: usize,
    /// L, stacked layers.
    pub layers: usize,
    /// H, units of each.
    pub hidden: usize,
    /// Whether it sees logarithms: for series above 0 that change by shares.
    pub log: bool,
    /// What parameters begin from.
    pub seed: u64,
}

impl Default for ForecasterConfig {
    fn default() -> Self {
        Self { steps: 24, horizon: 12, layers: 1, hidden: 64, log: false, seed: 0 }
    }
}

impl ForecasterConfig {
    /// Refuses what means nothing.
    pub fn validate(&self) -> Result<()> {
        let Self { steps, horizon, layers, .. } = *self;
        match steps >= 2 && horizon >= 1 && layers >= 1 {
            true => Ok(()),
            false => Err(Error::argument(format!(
                "forecaster: steps must be at least 2, horizon and layers at least 1, got {steps}, {horizon} and {layers}"
            ))),
        }
    }

    fn check_column(&self, name: &str, column: &[f32]) -> Result<()> {
        match column.iter().find(|v| self.log && **v <= 0.0) {
            Some(low) => Err(Error::data(format!("forecaster: logarithms need values above 0, got {low} in `{name}`"))),
            None => Ok(()),
        }
    }
}

/// Refuses intervals that hold no share of values.
fn check_level(level: f64) -> Result<()> {
    match level > 0.0 && level < 1.0 {
        true => Ok(()),
        false => Err(Error::argument(format!("forecast: the level of intervals must be in (0, 1), got {level}"))),
    }
}

/// Rows in order: what is trained on, what is validated on, what tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Training.
    pub train: Range<usize>,
    /// When to stop, and how wide intervals are.
    pub valid: Range<usize>,
    /// Never seen before it is forecast.
    pub test: Range<usize>,
}

/// A forecaster with what it has learnt.
pub struct Forecaster {
    config: ForecasterConfig,
    names: Vec<String>,
    /// The root mean square of each column's changes in a step of the training rows, as it is seen.
    scales: Vec<f32>,
    /// Of each step ahead and column, the sizes of validation's errors as they are seen, sorted.
    errors: Vec<Vec<f32>>,
    model: Sequential,
    progress: Option<[PathBuf; 2]>,
}

const PART: &str = "forecaster";
/// Epochs without a better validation loss, after which training stops.
const PATIENCE: usize = 15;

#[derive(Serialize, Deserialize)]
struct Described {
    config: ForecasterConfig,
    names: Vec<String>,
    scales: Vec<f32>,
    errors: Vec<Vec<f32>>,
}

/// What comes after a series: of each step ahead, of each column.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// The forecasts.
    pub values: Vec<Vec<f32>>,
    /// The lower and the upper end of each interval.
    pub intervals: Vec<Vec<(f32, f32)>>,
}

/// How far forecasts were off in a test, over all steps ahead and columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Errors {
    /// Whose.
    pub name: String,
    /// The mean of |forecast - value|.
    pub mean_absolute: f64,
    /// The root of the mean of its square.
    pub root_mean_square: f64,
    /// The mean absolute error over that of forecasting each training row by the season before it (Hyndman and Koehler 2006); of
    /// columns that repeat themselves exactly there, 0.
    pub scaled: f64,
}

/// Forecasts of the test rows beside naive ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Backtest {
    /// Rows that were forecast from.
    pub origins: usize,
    /// The model's errors, those of the last value, and those of the value a season before.
    pub errors: Vec<Errors>,
    /// The share of values inside the intervals.
    pub coverage: f64,
}

impl Forecaster {
    /// Refuses, before anything is trained, a season or a level of intervals that means nothing.
    pub fn check_options(parts: &Parts, season: usize, level: f64) -> Result<()> {
        check_level(level)?;
        check_season(parts, season)
    }

    /// Cuts rows into parts: the last `test` test, as many before them validate, and the rest is trained on.
    pub fn parts(config: &ForecasterConfig, rows: usize, test: usize) -> Result<Parts> {
        config.validate()?;
        let least = config.steps.saturating_add(config.horizon);
        let trained = rows.saturating_sub(test.saturating_mul(2));
        if test < config.horizon || trained < least.saturating_add(config.horizon) {
            return Err(Error::data(format!(
                "forecast: expected parts of at least {} rows for test and validation and {} for training, got {rows} rows with \
                 parts of {test}; fewer steps or a nearer horizon need less",
                config.horizon,
                least.saturating_add(config.horizon)
            )));
        }
        Ok(Parts { train: 0..trained, valid: trained..trained + test, test: trained + test..rows })
    }

    /// A forecaster of the columns of `table`, scaled by its rows `train`.
    pub fn new(device: &Device, config: &ForecasterConfig, table: &Table, train: Range<usize>) -> Result<Self> {
        config.validate()?;
        if train.len() < 2 || train.end > table.len() {
            let rows = table.len();
            return Err(Error::argument(format!(
                "forecaster: expected at least 2 rows of {rows} to train on, got {train:?}"
            )));
        }
        let mut scales = Vec::new();
        for (name, column) in table.names.iter().zip(&table.columns) {
            config.check_column(name, column)?;
            let seen: Vec<f64> = column[train.clone()].iter().map(|&v| f64::from(seen(config, v))).collect();
            let square = seen.windows(2).map(|w| (w[1] - w[0]).powi(2)).sum::<f64>() / (seen.len() - 1).max(1) as f64;
            // A column that never changes in training has no unit of its own.
            scales.push(if square > 0.0 { square.sqrt() as f32 } else { 1.0 });
        }
        let model = Self::network(device, config, scales.len())?;
        let errors = vec![Vec::new(); config.horizon * scales.len()];
        Ok(Self { config: config.clone(), names: table.names.clone(), scales, errors, model, progress: None })
    }

    /// Has training keep its best epoch and its last in these files, and go on from what is there: see
    /// [`Run::progress_files`](super::Run::progress_files).
    pub fn keep_progress(&mut self, files: [PathBuf; 2]) {
        self.progress = Some(files);
    }

    fn network(device: &Device, config: &ForecasterConfig, columns: usize) -> Result<Sequential> {
        let mut model = Sequential::new(device);
        model.seed(config.seed);
        for layer in 1..=config.layers {
            model.add(Lstm::new(config.hidden).return_sequences(layer < config.layers));
        }
        model.add(Dense::new(config.horizon * columns));
        // Each value beside its distance from the window's last.
        model.build(Input::Features(2 * columns))?;
        Ok(model)
    }

    /// What it is.
    pub fn config(&self) -> &ForecasterConfig {
        &self.config
    }

    /// The columns that it forecasts.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The windows that end before the rows `origins`, `[samples, steps, 2 columns]`: how far each value is from the window's last,
    /// and from the one before it.
    fn windows(&self, table: &Table, origins: &[usize]) -> Array3<f32> {
        let (steps, columns) = (self.config.steps, self.scales.len());
        Array3::from_shape_fn((origins.len(), steps, 2 * columns), |(s, t, f)| {
            let (column, end) = (f % columns, origins[s]);
            let at = |row: usize| seen(&self.config, table.columns[column][row]);
            let row = end - steps + t;
            let from = if f < columns { end - 1 } else { row.max(end - steps + 1) - 1 };
            let to = if f < columns { row } else { row.max(end - steps + 1) };
            (at(to) - at(from)) / self.scales[column]
        })
    }

    /// What follows the rows before `origins`, `[samples, horizon · columns]`.
    fn targets(&self, table: &Table, origins: &[usize]) -> Array2<f32> {
        let columns = self.scales.len();
        Array2::from_shape_fn((origins.len(), self.config.horizon * columns), |(s, k)| {
            let (ahead, column) = (k / columns, k % columns);
            let at = |row: usize| seen(&self.config, table.columns[column][row]);
            (at(origins[s] + ahead) - at(origins[s] - 1)) / self.scales[column]
        })
    }

    /// The rows to forecast from so that all that is forecast lies in `rows`.
    fn origins(&self, rows: &Range<usize>) -> Vec<usize> {
        (rows.start.max(self.config.steps)..(rows.end + 1).saturating_sub(self.config.horizon)).collect()
    }

    /// Trains on the training rows until validation gets no better, keeps the best, and measures its errors there. Which samples
    /// validate and what is measured besides the loss is settled, whatever `fit` says.
    pub fn fit(
        &mut self,
        optimizer: impl Into<Optimizer>,
        table: &Table,
        parts: &Parts,
        fit: &Fit,
        callbacks: &mut [&mut dyn Callback],
    ) -> Result<History> {
        self.check(table)?;
        self.check_parts(table, parts)?;
        let (train, valid) = (self.origins(&parts.train), self.origins(&parts.valid));
        let (x, y) = (self.windows(table, &train), self.targets(table, &train));
        let (x_valid, y_valid) = (self.windows(table, &valid), self.targets(table, &valid));
        let fit = Fit {
            validation_data: Some((x_valid.clone().into_dyn(), y_valid.clone().into_dyn())),
            metrics: vec![Metric::MeanAbsoluteError],
            ..fit.clone()
        };
        self.model.compile(optimizer, Loss::MeanSquaredError)?;
        let mut stopping = EarlyStopping::new(Watched::lower("val_loss"), PATIENCE).restore_best(true);
        let mut backup = None;
        if let Some([best, last]) = self.progress.clone() {
            stopping = stopping.kept_in(best);
            backup = Some(Backup::new(last).stays());
        }
        let mut all: Vec<&mut dyn Callback> = vec![&mut stopping];
        all.extend(callbacks.iter_mut().map(|c| &mut **c as &mut dyn Callback));
        all.extend(backup.as_mut().map(|backup| backup as &mut dyn Callback));
        let history = self.model.fit_with_callbacks(&x, &y, &fit, &mut all)?;
        let predicted = self.model.predict(&x_valid)?;
        let outputs = y_valid.ncols();
        self.errors = (0..outputs)
            .map(|k| {
                let mut sizes: Vec<f32> =
                    (0..valid.len()).map(|s| (predicted[[s, k]] - y_valid[[s, k]]).abs()).collect();
                sizes.sort_by(f32::total_cmp);
                sizes
            })
            .collect();
        Ok(history)
    }

    /// What comes after the first `end` rows, with intervals that hold the share `level` of values, in (0, 1).
    pub fn forecast(&mut self, table: &Table, end: usize, level: f64) -> Result<Forecast> {
        Ok(self.forecasts(table, &[end], level)?.remove(0))
    }

    fn forecasts(&mut self, table: &Table, origins: &[usize], level: f64) -> Result<Vec<Forecast>> {
        self.check(table)?;
        check_level(level)?;
        if let Some(end) = origins.iter().find(|&&end| end < self.config.steps || end > table.len()) {
            let steps = self.config.steps;
            return Err(Error::data(format!("forecast: expected from {steps} to {} rows, got {end}", table.len())));
        }
        let predicted = self.model.predict(&self.windows(table, origins))?;
        let columns = self.scales.len();
        let half: Vec<f32> = self.errors.iter().map(|sizes| quantile(sizes, level)).collect();
        let mut all = Vec::new();
        for (s, &end) in origins.iter().enumerate() {
            let (mut values, mut intervals) = (Vec::new(), Vec::new());
            for ahead in 0..self.config.horizon {
                let of = |column: usize, off: f32| {
                    let last = seen(&self.config, table.columns[column][end - 1]);
                    let k = ahead * columns + column;
                    meant(&self.config, last + self.scales[column] * (predicted[[s, k]] + off * half[k]))
                };
                values.push((0..columns).map(|c| of(c, 0.0)).collect());
                intervals.push((0..columns).map(|c| (of(c, -1.0), of(c, 1.0))).collect());
            }
            all.push(Forecast { values, intervals });
        }
        Ok(all)
    }

    /// Forecasts from every test row beside naive forecasts; a season has so many rows.
    pub fn backtest(&mut self, table: &Table, parts: &Parts, season: usize, level: f64) -> Result<Backtest> {
        if season == 0 || season >= parts.train.len() {
            let rows = parts.train.len();
            return Err(Error::argument(format!(
                "backtest: a season must have from 1 to {} rows, got {season}",
                rows - 1
            )));
        }
        let origins = self.origins(&parts.test);
        let forecasts = self.forecasts(table, &origins, level)?;
        let (mut inside, mut count) = (0u64, 0u64);
        let mut off = vec![(0.0f64, 0.0f64, 0.0f64); 3];
        for (column, values) in table.columns.iter().enumerate() {
            let naive: f64 =
                parts.train.clone().skip(season).map(|t| f64::from((values[t] - values[t - season]).abs())).sum();
            let scale = naive / (parts.train.len() - season) as f64;
            for (forecast, &end) in forecasts.iter().zip(&origins) {
                for ahead in 0..self.config.horizon {
                    let value = values[end + ahead];
                    // The last season that is known, again and again.
                    let back = season * (ahead / season + 1);
                    let seasonal = values[(end + ahead).saturating_sub(back)];
                    let guesses = [forecast.values[ahead][column], values[end - 1], seasonal];
                    for (sums, guess) in off.iter_mut().zip(guesses) {
                        let size = f64::from((guess - value).abs());
                        (sums.0, sums.1, sums.2) = (
                            sums.0 + size,
                            sums.1 + size * size,
                            sums.2 + if scale > 0.0 { size / scale } else { 0.0 },
                        );
                    }
                    let (low, high) = forecast.intervals[ahead][column];
                    inside += u64::from(low <= value && value <= high);
                    count += 1;
                }
            }
        }
        let n = count as f64;
        let names = ["lstm".to_string(), "last value".to_string(), format!("{season} before")];
        let errors = names.into_iter().zip(off).map(|(name, (absolute, squares, scaled))| Errors {
            name,
            mean_absolute: absolute / n,
            root_mean_square: (squares / n).sqrt(),
            scaled: scaled / n,
        });
        Ok(Backtest { origins: origins.len(), errors: errors.collect(), coverage: inside as f64 / n })
    }

    fn check(&self, table: &Table) -> Result<()> {
        if table.names != self.names {
            let (wanted, got) = (&self.names, &table.names);
            return Err(Error::data(format!("forecaster: expected the columns {wanted:?}, got {got:?}")));
        }
        table.names.iter().zip(&table.columns).try_for_each(|(name, column)| self.config.check_column(name, column))
    }

    fn check_parts(&self, table: &Table, parts: &Parts) -> Result<()> {
        let Parts { train, valid, test } = parts;
        let in_order = train.end <= valid.start && valid.end <= test.start && test.end <= table.len();
        match in_order && !self.origins(train).is_empty() && !self.origins(valid).is_empty() {
            true => Ok(()),
            false => Err(Error::argument(format!("forecaster: {parts:?} are no parts of {} rows", table.len()))),
        }
    }

    /// The least values of validation by which intervals of this level are known.
    pub fn least_errors(level: f64) -> usize {
        (level / (1.0 - level)).ceil() as usize
    }

    /// Writes it with its scales and errors.
    pub fn save(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let mut file = save::file(&mut self.model)?;
        let (config, names) = (self.config.clone(), self.names.clone());
        let (scales, errors) = (self.scales.clone(), self.errors.clone());
        file.metadata[PART] = json!(Described { config, names, scales, errors });
        io::save(path.as_ref(), &file)
    }

    /// Reads what [`Self::save`] wrote.
    pub fn load(device: &Device, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let load = || {
            let file = io::load(path)?;
            if file.metadata.get(PART).is_none() {
                return Err(Error::data("expected a forecaster, got a model without scales"));
            }
            let Described { config, names, scales, errors } = file.part(PART)?;
            config.validate()?;
            if scales.len() != names.len() || errors.len() != config.horizon.saturating_mul(names.len()) {
                return Err(Error::data("the forecaster's scales and errors are not those of its columns"));
            }
            let model = Sequential::from_file(device, &file)?;
            Ok(Self { config, names, scales, errors, model, progress: None })
        };
        load().map_err(|e: Error| e.within(path.display()))
    }
}

/// Refuses a season that the training rows do not hold.
fn check_season(parts: &Parts, season: usize) -> Result<()> {
    let most = parts.train.len().saturating_sub(1);
    match (1..=most).contains(&season) {
        true => Ok(()),
        false => Err(Error::argument(format!("forecast: a season must have from 1 to {most} rows, got {season}"))),
    }
}

/// A value as the model sees it.
fn seen(config: &ForecasterConfig, value: f32) -> f32 {
    if config.log { value.ln() } else { value }
}

/// The inverse of [`seen`].
fn meant(config: &ForecasterConfig, value: f32) -> f32 {
    if config.log { value.exp() } else { value }
}

/// The size that the share `level` of errors is within, of so few: the ⌈level (n+1)⌉-th (Papadopoulos et al. 2002); without errors
/// nothing is known.
fn quantile(sorted: &[f32], level: f64) -> f32 {
    let rank = (level * (sorted.len() + 1) as f64).ceil() as usize;
    rank.checked_sub(1).and_then(|at| sorted.get(at)).or(sorted.last()).copied().unwrap_or(f32::NAN)
}

/// The season that a series shows: how many rows apart its changes are most alike, at least 2; 1 where they are not.
pub fn season_of(values: &[f32], most: usize) -> usize {
    let changes: Vec<f64> = values.windows(2).map(|w| f64::from(w[1] - w[0])).collect();
    let mean = changes.iter().sum::<f64>() / changes.len().max(1) as f64;
    let off: Vec<f64> = changes.iter().map(|c| c - mean).collect();
    let variance: f64 = off.iter().map(|o| o * o).sum();
    let alike = |lag: usize| off.iter().zip(&off[lag..]).map(|(a, b)| a * b).sum::<f64>() / variance;
    let best = (2..=most.min(off.len() / 2)).map(|lag| (lag, alike(lag))).max_by(|a, b| a.1.total_cmp(&b.1));
    // Twice the deviation that changes which are not alike have.
    let chance = 2.0 / (off.len().max(1) as f64).sqrt();
    best.filter(|b| b.1 > chance).map_or(1, |b| b.0)
}
