//! Picking strategies by measurement: for each kind of layer a few candidates, checked against the reference, timed, and the
//! fastest remembered for the adapter and its driver.

use super::{Device, Executable, Session};
use crate::config::{Cell, Direction, LstmConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::builder::LstmWeights;
use crate::graph::{Graph, LstmOp, N};
use crate::params::{Initializer, Tensor, lstm_parameters};
use crate::scheduler::recurrence::{Family, Kernels, Layer, Recurrence};
use crate::scheduler::{Batch, Capacity, Precision, Program};
use half::f16;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Candidates that one layer gets at most, in each direction of time.
const CANDIDATES: usize = 6;
/// Steps over which a candidate is timed.
const TIMED_STEPS: usize = 64;
/// Sizes of the case on which a candidate must agree with the reference.
const CHECKED: [usize; 3] = [3, 1, 2];
/// Relative error of a candidate's outputs and gradients, in the 2-norm: the bound of the conformance cases for gradients.
const TOLERANCE: f64 = 1e-4;
/// The time after which first use tunes no more.
pub const FIRST_USE: Duration = Duration::from_secs(2);

/// What was found for one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The layer.
    pub layer: Layer,
    /// The fastest candidate.
    pub pick: Recurrence,
    /// Every candidate with the seconds of a call; none for one that was wrong, and so is struck out.
    pub timed: Vec<(Recurrence, Option<f64>)>,
    /// Whether time was left for every candidate; what first use has begun, `mnemon tune` finishes.
    pub complete: bool,
}

/// Findings of one adapter, remembered in a file.
#[derive(Debug)]
pub struct Tuner {
    /// Of all adapters.
    file: Option<PathBuf>,
    /// The adapter with its driver, and the version of the kernels.
    key: String,
    budget: Duration,
    findings: Mutex<BTreeMap<Layer, Finding>>,
}

/// What the file holds, by adapter.
type Remembered = BTreeMap<String, Vec<Finding>>;

fn remembered(file: &Path) -> Result<Remembered> {
    match std::fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|e| Error::new(ErrorKind::File, format!("{}: not a file of findings: {e}", file.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Remembered::new()),
        Err(e) => Err(Error::new(ErrorKind::File, format!("{}: cannot read: {e}", file.display()))),
    }
}

impl Tuner {
    /// The user's file of findings; none where the system has no folder for caches.
    pub fn default_file() -> Option<PathBuf> {
        dirs::cache_dir().map(|folder| folder.join("mnemon").join("kernels.json"))
    }

    /// A tuner for `device`, which begins with what `file` remembers of it and spends at most `budget` at a time. A file that
    /// cannot be read is an error.
    pub fn new(device: &Device, file: Option<PathBuf>, budget: Duration) -> Result<Self> {
        let precision = match device.precision() {
            Precision::F32 => String::new(),
            precision => format!(", {precision}"),
        };
        let key = format!("{}{precision}, mnemon {}", device.name(), env!("CARGO_PKG_VERSION"));
        let all = file.as_deref().map_or_else(|| Ok(Remembered::new()), remembered)?;
        let own = all.get(&key).cloned().unwrap_or_default();
        let findings = own.into_iter().map(|f| (f.layer, f)).collect();
        Ok(Self { file, key, budget, findings: Mutex::new(findings) })
    }

    /// All that was found.
    pub fn findings(&self) -> Vec<Finding> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Adds what was found to `kernels`; what they already pick stays.
    pub(super) fn extend(&self, kernels: &mut Kernels) {
        for f in self.findings() {
            kernels.picks.entry(f.layer).or_insert(f.pick);
        }
    }

    /// Measures the layers of `program` that nothing is known of yet, as far as the budget goes, and remembers what it found.
    /// Gives how many are left unmeasured.
    pub fn settle(&self, device: &Device, program: &Program) -> Result<usize> {
        let begin = Instant::now();
        let of = |step| Layer::of(step, &program.values, &program.capacity);
        let mut layers: Vec<Layer> = program.stage_steps().filter_map(of).collect();
        layers.sort();
        layers.dedup();
        let known = self.findings();
        let ahead = self.budget > FIRST_USE;
        layers.retain(|l| !known.iter().any(|f| f.layer == *l && (f.complete || !ahead)));
        let (mut left, mut new) = (0, Vec::new());
        for layer in layers {
            let remaining = self.budget.saturating_sub(begin.elapsed());
            match measure(device, &layer, remaining)? {
                Some(finding) => new.push(finding),
                None => left += 1,
            }
        }
        if !new.is_empty() {
            let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
            findings.extend(new.into_iter().map(|f| (f.layer, f)));
            drop(findings);
            self.remember()?;
        }
        Ok(left)
    }

    /// Writes the findings beside those of other adapters; a kill leaves the old or the new file whole.
    fn remember(&self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let failed = |e: std::io::Error| Error::new(ErrorKind::File, format!("{}: cannot write: {e}", file.display()));
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let mut all = remembered(file)?;
        all.insert(self.key.clone(), self.findings());
        let text = serde_json::to_vec_pretty(&all).map_err(|e| Error::internal(e.to_string()))?;
        let temporary = file.with_extension(format!("{}.tmp", std::process::id()));
        std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, file)).map_err(failed)
    }
}

/// The candidates of a layer: the table's choice first, then the best guess of each family.
fn candidates(device: &Device, layer: &Layer) -> Result<Vec<Recurrence>> {
    let target = device.target();
    let mut all = vec![layer.by_table(&target)?];
    for candidate in Family::ALL.into_iter().filter_map(|family| layer.member(family, &target)) {
        if !all.contains(&candidate) {
            all.push(candidate);
        }
    }
    all.truncate(CANDIDATES);
    Ok(all)
}

/// The fastest candidate that is right; none where `budget` ends before the table's own choice was compared with another.
fn measure(device: &Device, layer: &Layer, budget: Duration) -> Result<Option<Finding>> {
    let begin = Instant::now();
    let all = candidates(device, layer)?;
    if let [only] = all[..] {
        return Ok(Some(Finding { layer: *layer, pick: only, timed: Vec::new(), complete: true }));
    }
    let mut timed = Vec::new();
    for &candidate in &all {
        if begin.elapsed() >= budget {
            break;
        }
        let right = agrees(device, layer, candidate);
        let time = match right {
            Ok(true) => Some(time(device, layer, candidate)?),
            Ok(false) => {
                log::warn!("tuner: `{candidate}` is wrong on {} and is not used", device.name());
                None
            }
            Err(e) if e.kind() == ErrorKind::Memory => return Err(e),
            Err(e) => {
                log::warn!("tuner: `{candidate}` cannot run on {}: {e}", device.name());
                None
            }
        };
        timed.push((candidate, time));
    }
    let best = timed.iter().filter_map(|&(c, t)| Some((c, t?))).min_by(|a, b| a.1.total_cmp(&b.1));
    let complete = timed.len() == all.len();
    Ok(best.filter(|_| timed.len() > 1).map(|(pick, _)| Finding { layer: *layer, pick, timed, complete }))
}

/// The layer as a user would write it, over an input as wide as its state.
fn config(layer: &Layer) -> LstmConfig {
    let cell = Cell { layer_norm: layer.normed.then_some(1e-3), ..Cell::default() };
    let direction = if layer.directions == 2 { Direction::Both } else { Direction::Forward };
    let config = LstmConfig::new(layer.hidden, layer.hidden).direction(direction).cell(cell);
    config.projection((layer.output != layer.hidden).then_some(layer.output))
}

/// One layer over x with weights of its own; for the way back with the gradient of x.
fn graph(layer: &Layer) -> Result<Graph> {
    let config = config(layer);
    let mut g = Graph::new();
    let x = g.persistent("x", [N, layer.hidden.into()])?;
    let mut values = Vec::new();
    for p in lstm_parameters(&config, 0) {
        let value = g.persistent(&p.name, &p.shape)?;
        values.push((p, value));
    }
    let of = |d: usize, role: &str| values.iter().find(|(p, _)| p.direction == d && p.role == role).map(|v| v.1);
    let weights: Result<Vec<_>> = (0..layer.directions).map(|d| LstmWeights::by_role(|role| of(d, role))).collect();
    let op = LstmOp { direction: config.direction, cell: config.cell, random: None };
    let y = g.lstm_layer(x, None, &op, &weights?)?.y;
    g.output("y", y)?;
    if layer.backward {
        let loss = g.sum_of_squares(&[y])?;
        let gradients = g.gradients(loss, &[x])?;
        g.output("dx", gradients[0])?;
    }
    Ok(g)
}

/// A session on `device` that runs `layer` by `candidate`, with its values set, and the program for `lengths`.
fn loaded(
    device: &Device,
    layer: &Layer,
    candidate: Option<Recurrence>,
    batch: &Batch,
) -> Result<(Session, Executable)> {
    let mut kernels = Kernels::default();
    let here = Layer { sequences: batch.sequences().next_power_of_two(), ..*layer };
    kernels.picks.extend(candidate.map(|c| (here, c)));
    let mut session = device.clone().untuned().with_kernels(kernels).session()?;
    let rows = batch.axis(0)?.rows();
    let x = Initializer::Normal(1.0).values(&[rows, layer.hidden], 0, 1)?;
    session.set("x", &Tensor::new(&[rows, layer.hidden], x)?)?;
    for (at, p) in lstm_parameters(&config(layer), 0).iter().enumerate() {
        let mut values = Initializer::Uniform(1.0 / (layer.hidden as f32).sqrt()).values(&p.shape, 0, 2 + at as u64)?;
        // The same in any precision.
        values.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
        session.set(&p.name, &Tensor::new(&p.shape, values)?)?;
    }
    let executable = session.load(&graph(layer)?, &Capacity::exactly(batch))?;
    Ok((session, executable))
}

/// Whether `candidate` agrees with the reference on a small ragged batch.
fn agrees(device: &Device, layer: &Layer, candidate: Recurrence) -> Result<bool> {
    let batch = Batch::ragged(&CHECKED)?;
    let outputs = if layer.backward { &["y", "dx"][..] } else { &["y"] };
    let of = |device: &Device, candidate| -> Result<Vec<Tensor>> {
        let (mut session, mut executable) = loaded(device, layer, candidate, &batch)?;
        session.run(&mut executable, &batch, &[])?;
        outputs.iter().map(|name| session.output(&executable, name)).collect()
    };
    let (got, wanted) = (of(device, Some(candidate))?, of(&Device::reference(), None)?);
    let mut right = true;
    for (got, wanted) in got.iter().zip(&wanted) {
        right &= close(got.f32s()?, wanted.f32s()?);
    }
    Ok(right)
}

/// Whether `got` is within [`TOLERANCE`] of `wanted`; what is not a number is not.
fn close(got: &[f32], wanted: &[f32]) -> bool {
    let pairs = got.iter().zip(wanted).map(|(&a, &b)| (f64::from(a), f64::from(b)));
    let (difference, size) = pairs.fold((0.0, 0.0), |(d, s), (a, b)| (d + (a - b).powi(2), s + b * b));
    got.len() == wanted.len() && difference <= TOLERANCE.powi(2) * size
}

/// Seconds of one call by `candidate`: the median of five after one of warm-up.
fn time(device: &Device, layer: &Layer, candidate: Recurrence) -> Result<f64> {
    let batch = Batch::dense(TIMED_STEPS, layer.sequences)?;
    let (mut session, mut executable) = loaded(device, layer, Some(candidate), &batch)?;
    let mut times = Vec::new();
    for _ in 0..6 {
        let begin = Instant::now();
        session.run(&mut executable, &batch, &[])?;
        session.wait()?;
        times.push(begin.elapsed().as_secs_f64());
    }
    times.remove(0);
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::close;

    #[test]
    fn a_candidate_that_is_wrong_is_found_out() {
        let wanted = [1.0, -2.0, 3.0];
        assert!(close(&wanted, &wanted));
        assert!(close(&[1.00001, -2.0, 3.0], &wanted));
        assert!(!close(&[1.01, -2.0, 3.0], &wanted));
        assert!(!close(&[f32::NAN, -2.0, 3.0], &wanted));
        assert!(!close(&[1.0, -2.0], &wanted));
    }
}
