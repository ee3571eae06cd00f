//! In which pieces a program runs: all rows at once, or part by part so that less of them is held at a time.
//!
//! A [`Cut`] stage runs its body once a part: some timesteps ([`Cut::steps`]) of some sequences. Values of rows exist
//! there for one part only; [`Move`]s bring what a part needs and keep what outlives it. A recurrence carries its state
//! from part to part. Sums over rows go on from part to part, whole chunks of 64 timesteps each, so that with all
//! sequences in one part they have the bits of a run at once.

use super::program::Step;
use super::{Axis, Batch, Capacity};
use crate::error::Result;
use crate::graph::{Dim, Shape, Symbol};
use std::ops::Range;

/// The parts that values exist for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The time axis whose rows are cut.
    pub axis: u8,
    /// Timesteps of a part, a multiple of [`super::batch::GRADIENT_CHUNK`] where rows are summed; `usize::MAX` for all.
    pub steps: usize,
    /// Sequences of a part, as the axis packs them; `usize::MAX` for all.
    pub sequences: usize,
}

impl Cut {
    /// The largest part of the largest batch.
    pub fn capacity(&self, whole: &Capacity) -> Capacity {
        whole.part(self.axis, self.steps, self.sequences)
    }

    /// Parts of the largest batch.
    pub fn slots(&self, whole: &Capacity) -> usize {
        let steps = whole.axes.get(self.axis as usize).map_or(0, |a| a.0);
        steps.div_ceil(self.steps).max(1) * whole.sequences.div_ceil(self.sequences).max(1)
    }

    /// Whether a sequence is in several parts.
    pub fn cuts_time(&self) -> bool {
        self.steps != usize::MAX
    }

    /// The sequences of the parts of a run, one group after the other; one that is empty where there is none.
    pub fn groups(&self, sequences: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let size = self.sequences.min(sequences.max(1));
        (0..sequences.div_ceil(size).max(1)).map(move |g| g * size..((g + 1) * size).min(sequences))
    }

    /// How many parts a group of a run has.
    pub fn windows(&self, steps: usize) -> usize {
        steps.div_ceil(self.steps).max(1)
    }
}

/// One side of a [`Move`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Zeros.
    Zero,
    /// The part's rows of the program's input of this number.
    Input(usize),
    /// All that a value holds.
    Whole(usize),
    /// The part's rows, or its sequences' rows, of a value that holds all.
    Part(usize),
    /// What a value keeps for this part.
    Slot(usize),
    /// All of a value that waits in the host's memory or in a file, away from the device.
    Home(usize),
}

impl Side {
    /// The value, if it is one of the program's memory.
    pub fn value(self) -> Option<usize> {
        match self {
            Self::Zero | Self::Input(_) | Self::Home(_) => None,
            Self::Whole(v) | Self::Part(v) | Self::Slot(v) => Some(v),
        }
    }
}

/// Copies values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// From where.
    pub from: Side,
    /// To where; never [`Side::Zero`] or [`Side::Input`].
    pub to: Side,
}

/// What a stage does.
#[allow(clippy::large_enum_variant, reason = "nearly every action is a step")]
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Runs a step.
    Step(Step),
    /// Copies values.
    Move(Move),
    /// Makes this workspace of a step that comes later from values that are gone by then.
    Pack(Box<Step>, usize),
    /// Brings this workspace of a step that comes later: the host makes it from what waits away from the device, the step's
    /// inputs here, on its way.
    Bring(Box<Step>, usize),
}

impl Action {
    /// Values that are read.
    pub fn reads(&self) -> Vec<usize> {
        match self {
            Self::Step(step) => step.reads().collect(),
            Self::Move(m) => m.from.value().into_iter().collect(),
            Self::Pack(step, workspace) => step.sources(*workspace).collect(),
            Self::Bring(..) => Vec::new(),
        }
    }

    /// Values that are written, workspaces among them.
    pub fn writes(&self) -> Vec<usize> {
        match self {
            Self::Step(step) => step.outputs.iter().flatten().chain(&step.workspace).copied().collect(),
            Self::Move(m) => m.to.value().into_iter().collect(),
            Self::Pack(step, workspace) | Self::Bring(step, workspace) => vec![step.workspace[*workspace]],
        }
    }
}

/// Actions that run together: once, or once a part.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stage {
    /// The parts; none where the body runs once, over everything.
    pub cut: Option<Cut>,
    /// Whether the parts of each sequence run from the last to the first.
    pub backward: bool,
    /// Before the first part of each group of sequences.
    pub before: Vec<Move>,
    /// For each part.
    pub body: Vec<Action>,
    /// After the last part of each group of sequences.
    pub after: Vec<Move>,
}

impl Stage {
    /// Its steps.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.body.iter().filter_map(|action| match action {
            Action::Step(step) => Some(step),
            Action::Move(_) | Action::Pack(..) | Action::Bring(..) => None,
        })
    }

    /// All that it does, in order.
    pub fn actions(&self) -> impl Iterator<Item = Action> + '_ {
        let moves = |all: &[Move]| all.iter().map(|m| Action::Move(*m)).collect::<Vec<_>>();
        moves(&self.before).into_iter().chain(self.body.iter().cloned()).chain(moves(&self.after))
    }

    /// Calls `work` for each part of `batch`, in order; for the whole batch where the stage is not cut.
    pub fn for_parts(&self, batch: &Batch, mut work: impl FnMut(&Part<'_>) -> Result<()>) -> Result<()> {
        let Some(cut) = self.cut else {
            let nothing = 0..0;
            return work(&Part {
                batch,
                whole: batch,
                cut: None,
                steps: nothing.clone(),
                sequences: nothing,
                slot: 0,
                begins: true,
                ends: true,
                continues: false,
            });
        };
        let axis = batch.axis(cut.axis)?;
        let mut slot = 0;
        for (number, sequences) in cut.groups(batch.sequences()).enumerate() {
            let windows = cut.windows(axis.steps());
            for at in 0..windows {
                let window = if self.backward { windows - 1 - at } else { at };
                let steps = window.saturating_mul(cut.steps)..(window + 1).saturating_mul(cut.steps);
                let steps = steps.start.min(axis.steps())..steps.end.min(axis.steps());
                let part = batch.part(cut.axis, steps.clone(), sequences.clone())?;
                work(&Part {
                    batch: &part,
                    whole: batch,
                    cut: Some(cut),
                    steps,
                    sequences: sequences.clone(),
                    slot: slot + window,
                    begins: at == 0,
                    ends: at + 1 == windows,
                    continues: number + at > 0,
                })?;
            }
            slot += windows;
        }
        Ok(())
    }
}

/// One part of a run, as a stage sees it.
#[derive(Debug, Clone)]
pub struct Part<'a> {
    /// The part, as a batch of its own.
    pub batch: &'a Batch,
    /// The run's batch.
    pub whole: &'a Batch,
    /// How the stage is cut.
    pub cut: Option<Cut>,
    /// Its timesteps.
    pub steps: Range<usize>,
    /// Its sequences, as the axis packs them.
    pub sequences: Range<usize>,
    /// Its number in values that keep something for each part.
    pub slot: usize,
    /// Whether it is the first of its sequences.
    pub begins: bool,
    /// Whether it is the last of its sequences.
    pub ends: bool,
    /// Whether sums go on from the part before.
    pub continues: bool,
}

impl Part<'_> {
    /// Which rows of a whole value of `shape` belong to the part: ranges one after the other.
    pub fn rows(&self, shape: &Shape) -> Result<Vec<Range<usize>>> {
        let (Some(cut), Some(Dim::Symbol(symbol))) = (self.cut, shape.rows()) else {
            let rows = shape.rows().map_or(Ok(1), |rows| self.whole.size(rows))?;
            return Ok(std::iter::once(0..rows).collect());
        };
        if *symbol == Symbol::Batch {
            return Ok(std::iter::once(self.sequences.clone()).collect());
        }
        let axis = self.whole.axis(cut.axis)?;
        if self.sequences.len() == self.whole.sequences() {
            return Ok(std::iter::once(axis.offset(self.steps.start)..axis.offset(self.steps.end)).collect());
        }
        Ok(self.steps.clone().map(|t| own_rows(axis, t, &self.sequences)).filter(|r| !r.is_empty()).collect())
    }
}

/// The rows at step `t` of some sequences.
fn own_rows(axis: &Axis, t: usize, sequences: &Range<usize>) -> Range<usize> {
    let (first, running) = (axis.offset(t), axis.rows_at(t));
    first + sequences.start.min(running)..first + sequences.end.min(running)
}
