//! A model's loss and metrics over samples.

use super::Learner;
use crate::device::{Executable, Session};
use crate::error::{Error, Result};
use crate::train::Objective;
use crate::train::dataset::Dataset;
use crate::train::fit::{Evaluate, Scores, check_stateful};
use crate::train::metrics::{Meter, Metric};
use crate::train::pack::Packed;
use crate::train::prefetch::Prefetch;
use crate::train::step::{EVALUATE, evaluation_graph};
use std::ops::Range;

/// What is measured of which outputs.
pub(super) struct Meters<'a> {
    pub(super) metrics: &'a [Metric],
    pub(super) objectives: Vec<Objective>,
    pub(super) features: Vec<usize>,
}

impl Meters<'_> {
    /// Whether predictions have to be read.
    pub(super) fn observe(&self) -> bool {
        !self.metrics.iter().all(|m| m.is_of_the_loss())
    }

    /// A meter for each metric of each objective, by its name.
    pub(super) fn begin(&self) -> Result<Vec<(String, usize, Meter)>> {
        let mut all = Vec::new();
        if let (Some(metric), 2..) = (self.metrics.iter().find(|m| m.is_of_the_loss()), self.objectives.len()) {
            return Err(Error::argument(format!(
                "{}: expected one loss, got {}",
                metric.name(),
                self.objectives.len()
            )));
        }
        for (at, (objective, &features)) in self.objectives.iter().zip(&self.features).enumerate() {
            for &metric in self.metrics {
                let name = match self.objectives.len() {
                    1 => metric.name(),
                    _ => format!("{} {}", objective.name.trim_start_matches("target of "), metric.name()),
                };
                all.push((name, at, Meter::new(metric, objective, features)?));
            }
        }
        Ok(all)
    }

    /// Adds what a run gave.
    pub(super) fn add(
        &self,
        meters: &mut [(String, usize, Meter)],
        session: &mut Session,
        program: &Executable,
        packed: &Packed,
    ) -> Result<()> {
        if !self.observe() {
            return Ok(());
        }
        for (at, objective) in self.objectives.iter().enumerate() {
            let targets = packed.tensors.iter().find(|t| t.0 == objective.name);
            let (_, targets) = targets.ok_or_else(|| Error::internal("metrics: a batch without targets"))?;
            let predictions = session.output(program, &objective.name)?;
            meters.iter_mut().filter(|m| m.1 == at).try_for_each(|m| m.2.add(&predictions, targets))?;
        }
        Ok(())
    }
}

pub(super) fn measured(meters: Vec<(String, usize, Meter)>, loss: f32) -> Vec<(String, f64)> {
    meters.into_iter().map(|(name, _, meter)| (name, meter.value(loss))).collect()
}

/// The loss and metrics over some samples, without dropout.
pub(in crate::train) fn evaluate(
    learner: &mut dyn Learner,
    data: &Dataset,
    rows: Range<usize>,
    how: &Evaluate,
) -> Result<Scores> {
    if how.batch_size == 0 {
        return Err(Error::argument("evaluate: batch_size must be at least 1, got 0"));
    }
    let size = how.batch_size.min(rows.len());
    let network = learner.network()?;
    check_stateful(&network, rows.len(), size, false)?;
    let objectives = data.objectives();
    let of = Meters { metrics: &how.metrics, objectives: objectives.clone(), features: data.features() };
    let (mut meters, observed) = (of.begin()?, of.observe());
    let key = format!("evaluate {objectives:?} {observed} {size} {}", data.key()?);
    let (session, program) = learner.program(&key, &|session| {
        let graph = evaluation_graph(&network, &objectives, &format!("infer.{size}."), observed)?;
        EVALUATE.zero(session)?;
        session.load(&graph, &data.capacity(size)?)
    })?;
    EVALUATE.zero(session)?;
    let rows: Vec<usize> = rows.collect();
    let chunks = rows.chunks(size).take(how.steps.unwrap_or(usize::MAX));
    std::thread::scope(|scope| {
        let mut batches = Prefetch::begin(scope, chunks.map(|chunk| data.batch(chunk)))?;
        while let Some(packed) = batches.next() {
            let packed = packed?;
            session.run(program, &packed.batch, &packed.named(program))?;
            of.add(&mut meters, session, program, &packed)?;
        }
        let loss = EVALUATE.mean(session)?;
        Ok(Scores { loss, metrics: measured(meters, loss) })
    })
}
