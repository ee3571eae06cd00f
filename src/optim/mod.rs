//! Optimisers as graph updates: a rule, a schedule of its learning rate, clipping, weight decay, averages, accumulation.
//!
//! An optimiser adds to a training graph one elementwise operation a parameter, which writes the parameter and its slots
//! in place and leaves both alone where the step is not finite. What depends on the step (bias corrections) or changes
//! between runs (learning rate) is a scalar that the host computes in f64.

mod average;
mod clipping;
mod constraint;
mod course;
mod decay;
mod rules;
mod schedule;

pub use average::Average;
pub use clipping::{Clipping, clip_factor};
pub use course::Course;
pub use decay::WeightDecay;
pub use rules::{Adadelta, Adagrad, Adam, AdamW, Adamax, AveragedSgd, Convention, Lion, Nadam, RmsProp, Rule, Sgd};
pub use schedule::{Plateau, Schedule, Waiting};

use crate::error::{Error, Result};
use crate::graph::{Expr, Graph, Value};
use crate::params::{ParameterSpec, Tensor};
use average::AVERAGE;
use rules::{Slot, not_negative, positive};
use serde::{Deserialize, Serialize};

/// How parameters change by their gradients: a [`Rule`] such as [`Adam`], and what is done around it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Optimizer {
    /// What is done with a gradient.
    #[serde(flatten)]
    pub rule: Rule,
    /// Factors of the rule's learning rate.
    #[serde(default)]
    pub schedule: Schedule,
    /// Lowers the learning rate where training stands still.
    #[serde(default)]
    pub plateau: Option<Plateau>,
    /// The largest gradient.
    #[serde(default)]
    pub clipping: Option<Clipping>,
    /// The pull to zero.
    #[serde(default)]
    pub weight_decay: WeightDecay,
    /// The average that is evaluated in place of the parameters.
    #[serde(default)]
    pub average: Option<Average>,
    /// Batches whose mean gradient makes one step, at least 1.
    #[serde(default = "one")]
    pub accumulation: u32,
}

fn one() -> u32 {
    1
}

impl From<Rule> for Optimizer {
    fn from(rule: Rule) -> Self {
        let average = match rule {
            Rule::AveragedSgd(rule) => Some(Average::Mean { after: rule.t0 }),
            _ => None,
        };
        Self {
            rule,
            schedule: Schedule::Constant,
            plateau: None,
            clipping: None,
            weight_decay: WeightDecay::default(),
            average,
            accumulation: 1,
        }
    }
}

macro_rules! from_rules {
    ($($rule:ident)*) => {$(
        impl From<$rule> for Optimizer {
            fn from(rule: $rule) -> Self {
                Rule::$rule(rule).into()
            }
        }
    )*};
}
from_rules!(Sgd AveragedSgd Adam Nadam Adamax Lion RmsProp Adagrad Adadelta);

impl From<AdamW> for Optimizer {
    fn from(AdamW { adam, weight_decay }: AdamW) -> Self {
        Self { weight_decay: WeightDecay::decoupled(weight_decay), ..adam.into() }
    }
}

/// A value that an optimiser keeps beside a parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// The parameter's.
    pub shape: Vec<usize>,
    /// What it is at first.
    pub initial: Initial,
}

/// What a value of an optimiser is at first.
#[derive(Debug, Clone, PartialEq)]
pub enum Initial {
    /// This, all of it.
    Value(f32),
    /// As the parameter of this name.
    Parameter(String),
}

impl Kept {
    /// What it is at first, where `parameter` reads one.
    pub fn begin(&self, parameter: impl FnOnce(&str) -> Result<Tensor>) -> Result<Tensor> {
        match &self.initial {
            Initial::Value(value) => Tensor::new(&self.shape, vec![*value; self.shape.iter().product()]),
            Initial::Parameter(name) => parameter(name),
        }
    }
}

/// What an optimiser's operations read besides parameters and gradients, each `[1]`.
#[derive(Debug, Clone, Copy)]
pub struct Gate {
    /// A factor of all gradients.
    pub scale: Option<Value>,
    /// The sum of squares of all gradients times that factor, where it is known.
    pub squares: Option<Value>,
    /// 1 where the step counts, 0 where it changes nothing.
    pub alive: Value,
}

const ACCUMULATED: Slot = Slot::zero("optimizer.accumulated.");
/// 1 at the last batch of those that make a step, else 0.
const COMPLETE: &str = "optimizer.complete";
const DECAY: &str = "optimizer.decay";

impl Optimizer {
    /// Sets the schedule of its learning rate.
    #[must_use]
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// Lowers the learning rate where training stands still.
    #[must_use]
    pub fn plateau(mut self, plateau: Plateau) -> Self {
        self.plateau = Some(plateau);
        self
    }

    /// Sets how large a gradient may be.
    #[must_use]
    pub fn clip(mut self, clipping: Clipping) -> Self {
        self.clipping = Some(clipping);
        self
    }

    /// Sets the pull to zero.
    #[must_use]
    pub fn weight_decay(mut self, decay: WeightDecay) -> Self {
        self.weight_decay = decay;
        self
    }

    /// Keeps an average, which is evaluated in place of the parameters.
    #[must_use]
    pub fn average(mut self, average: Average) -> Self {
        self.average = Some(average);
        self
    }

    /// Makes a step of the mean gradient of so many batches.
    #[must_use]
    pub fn accumulate(mut self, batches: u32) -> Self {
        self.accumulation = batches;
        self
    }

    /// The learning rate at a moment of training.
    pub fn learning_rate(&self, course: &Course) -> f64 {
        let factor = self.schedule.factor(course.step / self.accumulation, course.epoch);
        let least = if self.plateau.is_some() { course.waiting.factor } else { 1.0 };
        self.rule.update().learning_rate() * factor * least
    }

    /// Refuses settings outside their ranges.
    pub fn validate(&self) -> Result<()> {
        let rule = self.rule.update();
        positive("learning_rate", rule.learning_rate())?;
        rule.validate()?;
        self.schedule.validate()?;
        not_negative("weight decay", self.weight_decay.rate)?;
        self.plateau.as_ref().map_or(Ok(()), Plateau::validate)?;
        self.clipping.map_or(Ok(()), Clipping::validate)?;
        self.average.as_ref().map_or(Ok(()), Average::validate)?;
        match self.accumulation {
            0 => Err(Error::argument("optimizer: gradients of at least 1 batch make a step, got 0")),
            _ => Ok(()),
        }
    }

    /// What is kept of each parameter: by the rule, to be averaged, to be accumulated.
    fn kinds(&self) -> Vec<Slot> {
        let mut slots = self.rule.update().slots();
        slots.extend(self.average.map(|_| AVERAGE));
        slots.extend((self.accumulation > 1).then_some(ACCUMULATED));
        slots
    }

    /// The persistent values that it keeps beside `parameters`.
    pub fn slots(&self, parameters: &[ParameterSpec]) -> Vec<Kept> {
        let one = |slot: Slot, p: &ParameterSpec| {
            let name = format!("{}{}", slot.prefix, p.name);
            let averages = slot == AVERAGE;
            let initial = if averages { Initial::Parameter(p.name.clone()) } else { Initial::Value(slot.initial) };
            Kept { name, shape: p.shape.clone(), initial }
        };
        let of = |slot: Slot| parameters.iter().map(move |p| one(slot, p));
        self.kinds().into_iter().flat_map(of).collect()
    }

    /// The scalars of the next batch.
    pub fn scalars(&self, course: &Course) -> Vec<(&'static str, f32)> {
        let t = f64::from(course.step / self.accumulation) + 1.0;
        let rate = self.learning_rate(course);
        let mut scalars = self.rule.update().scalars(t, rate);
        scalars.extend(self.average.map(|average| average.rate(t, course.averaged_since)));
        if self.accumulation > 1 {
            let last = (course.step + 1).is_multiple_of(self.accumulation);
            scalars.push((COMPLETE, f64::from(u8::from(last))));
        }
        if self.weight_decay.rate > 0.0 && self.weight_decay.decoupled {
            scalars.push((DECAY, rate * self.weight_decay.rate));
        }
        scalars.into_iter().map(|(name, x)| (name, x as f32)).collect()
    }

    /// Adds the updates of `parameters`, which the graph keeps by their names, and of their slots by `gradients`; each
    /// then keeps to its constraint.
    pub fn apply(
        &self,
        graph: &mut Graph,
        parameters: &[ParameterSpec],
        gradients: &[Value],
        gate: Gate,
    ) -> Result<()> {
        if parameters.len() != gradients.len() {
            return Err(Error::internal("optimizer: parameters and gradients differ in number"));
        }
        let accumulated = self.accumulated(graph, parameters, gradients, gate)?;
        let (gradients, mut gate) = match &accumulated {
            Some((gradients, gate)) => (gradients.as_slice(), *gate),
            None => (gradients, gate),
        };
        if let Some(Clipping::GlobalNorm(most)) = self.clipping {
            let squares = match gate.squares {
                Some(squares) => squares,
                None => scaled_squares(graph, gradients, gate.scale)?,
            };
            let factor = clip_factor(graph, squares, most)?;
            gate.scale = Some(times(graph, gate.scale, factor)?);
        }
        for (spec, &gradient) in parameters.iter().zip(gradients) {
            self.apply_one(graph, spec, gradient, gate)?;
        }
        Ok(())
    }

    /// The mean gradients of several batches, where they make a step together, and when they do.
    fn accumulated(
        &self,
        graph: &mut Graph,
        parameters: &[ParameterSpec],
        gradients: &[Value],
        gate: Gate,
    ) -> Result<Option<(Vec<Value>, Gate)>> {
        if self.accumulation == 1 {
            return Ok(None);
        }
        let mut means = Vec::with_capacity(gradients.len());
        let share = Expr::Const((1.0 / f64::from(self.accumulation)) as f32);
        for (spec, &gradient) in parameters.iter().zip(gradients) {
            let sum = graph.persistent(&format!("{}{}", ACCUMULATED.prefix, spec.name), &spec.shape)?;
            let mut operands = vec![sum, gradient, gate.alive];
            operands.extend(gate.scale);
            let [old, g, alive, scale] = [0, 1, 2, 3].map(Expr::Input);
            let g = if gate.scale.is_some() { g * scale } else { g };
            let new = old.clone() + g;
            let kept = Expr::scalar(COMPLETE).select(Expr::Const(0.0), new.clone());
            let made = graph.elementwise_many(vec![alive.select(kept, old), new * share.clone()], &operands)?;
            graph.update(sum, made[0])?;
            means.push(made[1]);
        }
        let alive = graph.elementwise(Expr::Input(0) * Expr::scalar(COMPLETE), &[gate.alive])?;
        Ok(Some((means, Gate { scale: None, squares: None, alive })))
    }

    fn apply_one(&self, graph: &mut Graph, spec: &ParameterSpec, gradient: Value, gate: Gate) -> Result<()> {
        let rule = self.rule.update();
        let parameter = graph.persistent(&spec.name, &spec.shape)?;
        let mut targets = vec![parameter];
        for slot in rule.slots() {
            targets.push(graph.persistent(&format!("{}{}", slot.prefix, spec.name), &spec.shape)?);
        }
        let (kept, averages) = (targets.len(), self.average.is_some());
        if averages {
            targets.push(graph.persistent(&format!("{}{}", AVERAGE.prefix, spec.name), &spec.shape)?);
        }
        let mut scale = gate.scale;
        if let Some(Clipping::Norm(most)) = self.clipping {
            let squares = scaled_squares(graph, &[gradient], scale)?;
            let factor = Expr::Const(most) / Expr::Input(0).sqrt().max(Expr::Const(most));
            let factor = graph.elementwise(factor, &[squares])?;
            scale = Some(times(graph, scale, factor)?);
        }
        // Operands: the values that change, the gradient, alive, scale.
        let at = targets.len();
        let mut operands = targets.clone();
        operands.extend([gradient, gate.alive]);
        operands.extend(scale);
        let (mut w, mut g) = (Expr::Input(0), Expr::Input(at));
        if scale.is_some() {
            g = g * Expr::Input(at + 2);
        }
        if let Some(Clipping::Value(most)) = self.clipping {
            g = g.max(Expr::Const(-most)).min(Expr::Const(most));
        }
        match self.weight_decay.of(&spec.name) {
            Some(decay) if decay.decoupled => w = w.clone() - Expr::scalar(DECAY) * w,
            Some(decay) => g = g + Expr::Const(decay.rate as f32) * w.clone(),
            None => {}
        }
        let slots: Vec<Expr> = (1..kept).map(Expr::Input).collect();
        let mut new = rule.step(w, g, &slots);
        if averages && spec.constraint.is_none() {
            new.push(Average::step(Expr::Input(kept), new[0].clone()));
        }
        let guarded = new.into_iter().enumerate().map(|(i, new)| Expr::Input(at + 1).select(new, Expr::Input(i)));
        let mut updated = graph.elementwise_many(guarded.collect(), &operands)?;
        if let Some(constraint) = spec.constraint {
            let held = constraint::constrained(graph, constraint, updated[0])?;
            let [new, old, alive, average] = [0, 1, 2, 3].map(Expr::Input);
            let mut exprs = vec![alive.clone().select(new.clone(), old)];
            let mut operands = vec![held, parameter, gate.alive];
            if averages {
                exprs.push(alive.select(Average::step(average.clone(), new), average));
                operands.push(targets[kept]);
            }
            let held = graph.elementwise_many(exprs, &operands)?;
            updated[0] = held[0];
            updated.extend(held.get(1));
        }
        for (target, value) in targets.into_iter().zip(updated) {
            graph.update(target, value)?;
        }
        Ok(())
    }

    /// A graph that exchanges `parameters` and their averages; none where no average is kept.
    pub fn exchange(&self, parameters: &[ParameterSpec]) -> Result<Option<Graph>> {
        if self.average.is_none() {
            return Ok(None);
        }
        let mut graph = Graph::new();
        for spec in parameters {
            let parameter = graph.persistent(&spec.name, &spec.shape)?;
            let average = graph.persistent(&format!("{}{}", AVERAGE.prefix, spec.name), &spec.shape)?;
            let exchanged = graph.elementwise_many(vec![Expr::Input(1), Expr::Input(0)], &[parameter, average])?;
            graph.update(parameter, exchanged[0])?;
            graph.update(average, exchanged[1])?;
        }
        Ok(Some(graph))
    }
}

/// The sum of squares of gradients times `scale`.
fn scaled_squares(graph: &mut Graph, gradients: &[Value], scale: Option<Value>) -> Result<Value> {
    let squares = graph.sum_of_squares(gradients)?;
    match scale {
        Some(scale) => {
            let [squares_of, by] = [0, 1].map(Expr::Input);
            graph.elementwise(squares_of * (by.clone() * by), &[squares, scale])
        }
        None => Ok(squares),
    }
}

fn times(graph: &mut Graph, a: Option<Value>, b: Value) -> Result<Value> {
    match a {
        Some(a) => graph.elementwise(Expr::Input(0) * Expr::Input(1), &[a, b]),
        None => Ok(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adams_conventions_differ_only_in_epsilon() {
        let (keras, torch) = (Optimizer::from(Adam::default()), Optimizer::from(Adam::pytorch()));
        let (k, t) = (keras.scalars(&Course::at(0)), torch.scalars(&Course::at(0)));
        assert!((k[0].1 - t[0].1 * t[1].1).abs() < 1e-9, "{k:?} {t:?}");
        assert!((t[0].1 - 1e-2).abs() < 1e-8);
    }

    #[test]
    fn settings_outside_their_ranges_are_refused() {
        let sgd = || Optimizer::from(Sgd::default());
        let refused: Vec<Optimizer> = vec![
            Adam { beta_1: 1.0, ..Adam::default() }.into(),
            Sgd { learning_rate: f64::NAN, ..Sgd::default() }.into(),
            Sgd { nesterov: true, ..Sgd::default() }.into(),
            RmsProp { epsilon: 0.0, ..RmsProp::default() }.into(),
            AveragedSgd { lambda: -1.0, ..AveragedSgd::default() }.into(),
            sgd().clip(Clipping::Value(0.0)),
            sgd().accumulate(0),
            sgd().average(Average::Exponential { momentum: 1.0 }),
            sgd().weight_decay(WeightDecay::l2(-1.0)),
            sgd().plateau(Plateau { factor: 1.0, ..Plateau::default() }),
            sgd().schedule(Schedule::Sequence(vec![(3, Schedule::Cosine { steps: 0, least: 0.0 })])),
            sgd().schedule(Schedule::OneCycle { steps: 10, rise: 0.1, first: 0.0, last: 0.0 }),
        ];
        refused.iter().for_each(|o| assert!(o.validate().is_err(), "{o:?}"));
        assert!(sgd().validate().is_ok());
    }
}
