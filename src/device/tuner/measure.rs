//! Measuring the candidates of one layer, or of one product.

use super::Finding;
use crate::config::{Cell, Direction, LstmConfig};
use crate::device::{Device, Executable, Session};
use crate::error::{Error, Result};
use crate::graph::builder::LstmWeights;
use crate::graph::{Expr, Graph, LstmOp, N};
use crate::params::{Initializer, Tensor, lstm_parameters};
use crate::scheduler::products::ProductShape;
use crate::scheduler::recurrence::{Family, Kernels, Layer, Recurrence};
use crate::scheduler::{Batch, Capacity, Product, Program};
use half::f16;
use std::fmt::Display;
use std::time::{Duration, Instant};

/// Candidates that one layer gets at most, in each direction of time.
const CANDIDATES: usize = 6;
/// Steps over which a candidate is timed.
const TIMED_STEPS: usize = 64;
/// The part of the table's time that a candidate has to take less than: times of two runs differ by as much.
const NOISE: f64 = 0.95;
/// A GPU that has idled, as one does while a candidate is compiled, takes so long to run at its full clock: an H200 ran at a
/// third of its speed without.
const WARM_UP: Duration = Duration::from_millis(30);
/// Lengths of the sequences on which a candidate must agree with the reference; fewer where it is for fewer.
const CHECKED: [usize; 3] = [3, 1, 2];
/// Relative error of a candidate's outputs and gradients, in the 2-norm: the bound of the conformance cases for gradients.
const TOLERANCE: f64 = 1e-4;
/// The same where operands are rounded to 16 bits: see `docs/numerics.md`.
const TOLERANCE_OF_HALVES: f64 = 5e-3;
/// Timesteps and sequences of the product on which a candidate must agree with the reference: two chunks, several tiles.
const CHECKED_ROWS: [usize; 2] = [67, 2];
/// Most values of an operand of the product that is timed: larger ones run as fast.
const TIMED_VALUES: usize = 1 << 24;

/// Values by their names.
type Shapes = Vec<(String, Vec<usize>)>;

/// What can be measured: a layer or a product.
pub(super) trait Subject: Copy {
    /// One way to run it.
    type Choice: Copy + PartialEq + Display;

    /// The table's choice first.
    fn candidates(&self, device: &Device) -> Result<Vec<Self::Choice>>;

    /// The device, which runs it by `choice` in batches of as many sequences as `batch` has.
    fn by(&self, device: &Device, choice: Self::Choice, batch: &Batch) -> Device;

    /// Whether a step of `program` runs by `choice`.
    fn runs_by(choice: Self::Choice, program: &Program) -> bool;

    /// The batch on which a candidate must agree with the reference, or is timed.
    fn batch(&self, timed: bool) -> Result<Batch>;

    /// It as a user would write it, in batches like `batch`: a graph, and its values by their names.
    fn graph(&self, batch: &Batch) -> Result<(Graph, Shapes)>;
}

/// The fastest candidate that is right; none where `budget` ends before the table's own choice was compared with another.
pub(super) fn measure<S: Subject>(
    device: &Device,
    subject: S,
    budget: Duration,
) -> Result<Option<Finding<S, S::Choice>>> {
    let begin = Instant::now();
    let all = subject.candidates(device)?;
    if let [only] = all[..] {
        return Ok(Some(Finding { of: subject, pick: only, timed: Vec::new(), complete: true }));
    }
    let mut wanted = None;
    let mut timed = Vec::new();
    for &candidate in &all {
        if begin.elapsed() >= budget {
            break;
        }
        let time = match agrees(device, subject, candidate, &mut wanted) {
            Ok(true) => time(device, subject, candidate).map(Some),
            Ok(false) => {
                log::warn!("tuner: `{candidate}` is wrong on {} and is not used", device.name());
                Ok(None)
            }
            Err(e) => Err(e),
        };
        let time = time.unwrap_or_else(|e| {
            log::warn!("tuner: `{candidate}` cannot run on {}: {e}", device.name());
            None
        });
        timed.push((candidate, time));
    }
    let best = fastest(&timed);
    let complete = timed.len() == all.len();
    Ok(best.filter(|_| timed.len() > 1).map(|pick| Finding { of: subject, pick, timed, complete }))
}

/// The fastest of what was timed. The first, which is the table's, stays where the difference may be noise.
fn fastest<Choice: Copy>(timed: &[(Choice, Option<f64>)]) -> Option<Choice> {
    let right = || timed.iter().filter_map(|&(choice, time)| Some((choice, time?)));
    let (best, time) = right().min_by(|a, b| a.1.total_cmp(&b.1))?;
    let stays = timed.first().and_then(|&(first, own)| (time > NOISE * own?).then_some(first));
    Some(stays.unwrap_or(best))
}

/// A session on `device` with the values of `subject` set, and the program for `batch`.
fn loaded<S: Subject>(device: &Device, subject: S, batch: &Batch) -> Result<(Session, Executable)> {
    let mut session = device.clone().untuned().session()?;
    let (graph, values) = subject.graph(batch)?;
    for (at, (name, shape)) in values.iter().enumerate() {
        let width = shape.last().copied().unwrap_or(1).max(1);
        let mut values = Initializer::Uniform(1.0 / (width as f32).sqrt()).values(shape, 0, 1 + at as u64)?;
        // The same in any precision.
        values.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
        session.set(name, &Tensor::new(shape, values)?)?;
    }
    let executable = session.load(&graph, &Capacity::exactly(batch))?;
    Ok((session, executable))
}

/// Whether `candidate` agrees with the reference on a small batch; what the reference gave stays in `wanted`.
fn agrees<S: Subject>(
    device: &Device,
    subject: S,
    candidate: S::Choice,
    wanted: &mut Option<Vec<Tensor>>,
) -> Result<bool> {
    let batch = subject.batch(false)?;
    let of = |device: &Device| -> Result<Vec<Tensor>> {
        let (mut session, mut executable) = loaded(device, subject, &batch)?;
        session.run(&mut executable, &batch, &[])?;
        let names: Vec<String> = executable.program().outputs.iter().map(|o| o.0.clone()).collect();
        names.iter().map(|name| session.output(&executable, name)).collect()
    };
    let by = subject.by(device, candidate, &batch);
    // What was checked has to be what is timed.
    if !S::runs_by(candidate, loaded(&by, subject, &batch)?.1.program()) {
        return Err(Error::unsupported("it does not run the case that is checked"));
    }
    let got = of(&by)?;
    if wanted.is_none() {
        *wanted = Some(of(&Device::reference())?);
    }
    let tolerance = if device.target().matrix() > 0 { TOLERANCE_OF_HALVES } else { TOLERANCE };
    let mut right = true;
    for (got, wanted) in got.iter().zip(wanted.iter().flatten()) {
        right &= close(got.f32s()?, wanted.f32s()?, tolerance);
    }
    Ok(right)
}

/// Whether `got` is within `tolerance` of `wanted`; what is not a number is not.
fn close(got: &[f32], wanted: &[f32], tolerance: f64) -> bool {
    let pairs = got.iter().zip(wanted).map(|(&a, &b)| (f64::from(a), f64::from(b)));
    let (difference, size) = pairs.fold((0.0, 0.0), |(d, s), (a, b)| (d + (a - b).powi(2), s + b * b));
    got.len() == wanted.len() && difference <= tolerance.powi(2) * size
}

/// Seconds of one call by `candidate`: the median of five after at least one of warm-up.
fn time<S: Subject>(device: &Device, subject: S, candidate: S::Choice) -> Result<f64> {
    let batch = subject.batch(true)?;
    let (mut session, mut executable) = loaded(&subject.by(device, candidate, &batch), subject, &batch)?;
    let mut call = || -> Result<f64> {
        let begin = Instant::now();
        session.run(&mut executable, &batch, &[])?;
        session.wait()?;
        Ok(begin.elapsed().as_secs_f64())
    };
    let begin = Instant::now();
    call()?;
    while !device.target().software && begin.elapsed() < WARM_UP {
        call()?;
    }
    let mut times = (0..5).map(|_| call()).collect::<Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

impl Subject for Layer {
    type Choice = Recurrence;

    /// The table's choice, and what there is of each family.
    fn candidates(&self, device: &Device) -> Result<Vec<Recurrence>> {
        let target = device.target();
        let mut all = vec![self.by_table(&target)?];
        for candidate in Family::ALL.into_iter().flat_map(|family| self.members(family, &target)) {
            if !all.contains(&candidate) {
                all.push(candidate);
            }
        }
        all.truncate(CANDIDATES);
        Ok(all)
    }

    fn by(&self, device: &Device, choice: Recurrence, batch: &Batch) -> Device {
        let here = Layer { sequences: batch.sequences().next_power_of_two(), ..*self };
        let mut kernels = Kernels::default();
        kernels.picks.insert(here, choice);
        device.clone().with_kernels(kernels)
    }

    fn runs_by(choice: Recurrence, program: &Program) -> bool {
        program.stage_steps().any(|s| s.recurrence == Some(choice))
    }

    fn batch(&self, timed: bool) -> Result<Batch> {
        if timed {
            return Batch::dense(TIMED_STEPS, self.sequences);
        }
        Batch::ragged(&CHECKED[..self.sequences.clamp(1, CHECKED.len())])
    }

    /// Over an input as wide as the state; for the way back with the gradient of x.
    fn graph(&self, batch: &Batch) -> Result<(Graph, Shapes)> {
        let cell = Cell { layer_norm: self.normed.then_some(1e-3), ..Cell::default() };
        let direction = if self.directions == 2 { Direction::Both } else { Direction::Forward };
        let config = LstmConfig::new(self.hidden, self.hidden).direction(direction).cell(cell);
        let config = config.projection((self.output != self.hidden).then_some(self.output));
        let mut g = Graph::new();
        let x = g.persistent("x", [N, self.hidden.into()])?;
        let mut all = vec![("x".to_string(), vec![batch.axis(0)?.rows(), self.hidden])];
        let mut values = Vec::new();
        for p in lstm_parameters(&config, 0) {
            let value = g.persistent(&p.name, &p.shape)?;
            all.push((p.name.clone(), p.shape.clone()));
            values.push((p, value));
        }
        let of = |d: usize, role: &str| values.iter().find(|(p, _)| p.direction == d && p.role == role).map(|v| v.1);
        let weights: Result<Vec<_>> = (0..self.directions).map(|d| LstmWeights::by_role(|role| of(d, role))).collect();
        let op = LstmOp { direction: config.direction, cell: config.cell, random: None };
        let y = g.lstm_layer(x, None, &op, &weights?)?.y;
        g.output("y", y)?;
        if self.backward {
            let loss = g.sum_of_squares(&[y])?;
            let gradients = g.gradients(loss, &[x])?;
            g.output("dx", gradients[0])?;
        }
        Ok((g, all))
    }
}

impl Subject for ProductShape {
    type Choice = Product;

    fn candidates(&self, device: &Device) -> Result<Vec<Product>> {
        let mut all = self.candidates(&device.target());
        all.truncate(CANDIDATES);
        Ok(all)
    }

    fn by(&self, device: &Device, choice: Product, _: &Batch) -> Device {
        device.clone().with_kernels(Kernels { product: Some(choice), ..Kernels::default() })
    }

    fn runs_by(choice: Product, program: &Program) -> bool {
        program.stage_steps().any(|s| s.product == Some(choice))
    }

    fn batch(&self, timed: bool) -> Result<Batch> {
        if !timed {
            return Batch::dense(CHECKED_ROWS[0], CHECKED_ROWS[1]);
        }
        let (rows, widest) = match self.gradient {
            true => (self.inner, self.rows.max(self.columns)),
            false => (self.rows, self.columns.max(self.inner)),
        };
        let rows = rows.min(TIMED_VALUES / widest.max(1)).max(1);
        // Chunks of as many rows as those of a usual batch: one of 64 timesteps, or a few.
        let steps = rows.min(TIMED_STEPS);
        Batch::dense(steps, rows.div_ceil(steps))
    }

    /// A linear layer, or the gradient of its weight alone.
    fn graph(&self, batch: &Batch) -> Result<(Graph, Shapes)> {
        let [outputs, inputs] = if self.gradient { [self.rows, self.columns] } else { [self.columns, self.inner] };
        let rows = batch.axis(0)?.rows();
        let mut g = Graph::new();
        let (x, weight) = (g.persistent("x", [N, inputs.into()])?, g.persistent("weight", [outputs, inputs])?);
        let mut all = vec![("x".to_string(), vec![rows, inputs]), ("weight".to_string(), vec![outputs, inputs])];
        let y = g.linear(x, weight, None)?;
        if self.gradient {
            let up = g.persistent("up", [N, outputs.into()])?;
            all.push(("up".to_string(), vec![rows, outputs]));
            let products = g.elementwise(Expr::Input(0) * Expr::Input(1), &[y, up])?;
            let loss = g.sum(&[products])?;
            let gradients = g.gradients(loss, &[weight])?;
            g.output("dweight", gradients[0])?;
        } else {
            g.output("y", y)?;
        }
        Ok((g, all))
    }
}

#[cfg(test)]
mod tests {
    use super::{TOLERANCE, TOLERANCE_OF_HALVES, close, fastest};

    #[test]
    fn the_table_yields_to_what_is_clearly_faster() {
        assert_eq!(fastest(&[('a', Some(1.0)), ('b', Some(0.96)), ('c', Some(2.0))]), Some('a'));
        assert_eq!(fastest(&[('a', Some(1.0)), ('b', Some(0.9)), ('c', Some(0.8))]), Some('c'));
        assert_eq!(fastest(&[('a', None), ('b', Some(3.0)), ('c', None)]), Some('b'));
        assert_eq!(fastest(&[('a', None)]), None);
    }

    #[test]
    fn a_candidate_that_is_wrong_is_found_out() {
        let wanted = [1.0, -2.0, 3.0];
        assert!(close(&wanted, &wanted, TOLERANCE));
        assert!(close(&[1.00001, -2.0, 3.0], &wanted, TOLERANCE));
        assert!(!close(&[1.01, -2.0, 3.0], &wanted, TOLERANCE));
        assert!(close(&[1.01, -2.0, 3.0], &wanted, TOLERANCE_OF_HALVES));
        assert!(!close(&[f32::NAN, -2.0, 3.0], &wanted, TOLERANCE_OF_HALVES));
        assert!(!close(&[1.0, -2.0], &wanted, TOLERANCE_OF_HALVES));
    }
}
