//! Rows taken from other places: windows over steps, sequences as single rows and back, other orders.

use super::op::{Inputs, OutputSpec, float};
use super::shape::{B, Dim, Symbol};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Where a window may reach beyond its sequence, and so how many steps come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// Nowhere.
    #[default]
    Valid,
    /// On both sides, so that as many steps come out as go in, over the stride; the odd one is at the end.
    Same,
    /// Before its first step, so that no window sees a later step than its own.
    Causal,
}

/// The largest number of taps, and of steps between windows or taps.
const WINDOW_LIMIT: usize = 4096;

/// Windows over the steps of each sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Steps in a window.
    pub taps: usize,
    /// Steps from a window to the next.
    pub stride: usize,
    /// Steps from a step of a window to the next.
    pub dilation: usize,
    /// Where it may reach beyond its sequence.
    pub padding: Padding,
}

impl Window {
    /// Windows of `taps` steps beside each other, at each step.
    pub fn new(taps: usize) -> Self {
        Self { taps, stride: 1, dilation: 1, padding: Padding::Valid }
    }

    /// Refuses what means nothing.
    pub fn validate(&self) -> Result<()> {
        for (name, n) in [("taps", self.taps), ("stride", self.stride), ("dilation", self.dilation)] {
            if !(1..=WINDOW_LIMIT).contains(&n) {
                return Err(Error::argument(format!("window: {name} must be in 1..={WINDOW_LIMIT}, got {n}")));
            }
        }
        Ok(())
    }

    /// Steps from its first to its last, both counted.
    fn span(&self) -> usize {
        (self.taps - 1) * self.dilation + 1
    }

    /// The simplest windows of which there are as many over any sequence.
    #[must_use]
    pub fn alike(self) -> Self {
        match self.padding {
            Padding::Valid => Self { taps: self.span(), dilation: 1, ..self },
            Padding::Same | Padding::Causal => Self { taps: 1, dilation: 1, padding: Padding::Same, ..self },
        }
    }

    /// Windows over a sequence of `length` steps.
    pub fn steps(&self, length: usize) -> usize {
        match self.padding {
            Padding::Valid if length < self.span() => 0,
            Padding::Valid => (length - self.span()) / self.stride + 1,
            Padding::Same | Padding::Causal => length.div_ceil(self.stride),
        }
    }

    /// Steps before a sequence of `length` steps that the first window sees.
    fn before(&self, length: usize) -> usize {
        match self.padding {
            Padding::Valid => 0,
            Padding::Causal => self.span() - 1,
            Padding::Same => {
                let reached = self.steps(length).saturating_sub(1) * self.stride + self.span();
                reached.saturating_sub(length) / 2
            }
        }
    }

    /// The step that tap `tap` of window `at` sees in a sequence of `length` steps, if there is one.
    pub fn step(&self, length: usize, at: usize, tap: usize) -> Option<usize> {
        (at * self.stride + tap * self.dilation).checked_sub(self.before(length)).filter(|&step| step < length)
    }

    /// The inverse of [`Self::step`]: the window whose tap `tap` sees step `step`, if there is one.
    pub fn window(&self, length: usize, step: usize, tap: usize) -> Option<usize> {
        let distance = (step + self.before(length)).checked_sub(tap * self.dilation)?;
        let at = distance / self.stride;
        (distance.is_multiple_of(self.stride) && at < self.steps(length)).then_some(at)
    }
}

/// Which rows are taken, and where they go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gather {
    /// x `[N, F]` gives the steps of each window side by side, `[N', taps·F]` on `axis`.
    Windows {
        /// The windows.
        window: Window,
        /// The time axis of the output.
        axis: u8,
        /// What a window holds where it reaches beyond its sequence.
        fill: f32,
    },
    /// One tap's part of the gradient of [`Self::Windows`]: x `[N', F]` gives `[N, F]` on `axis`, the row of the window
    /// whose tap saw the step, or zero.
    Tap {
        /// The windows.
        window: Window,
        /// The tap.
        tap: usize,
        /// The time axis of what the windows were over.
        axis: u8,
    },
    /// x `[B, F]` gives the same row at each step of its sequence `[N, F]`.
    EachStep {
        /// The time axis.
        axis: u8,
    },
    /// x `[N, F]` gives the same steps on another time axis `[N', F]`, less those past its sequences' ends, and zero past
    /// x's own. The inverse of itself, as far as there is one.
    Along {
        /// The time axis of the output.
        axis: u8,
    },
    /// Rows `[B, F]` in the order in which `axis` packs its sequences.
    IntoOrder {
        /// The time axis.
        axis: u8,
    },
    /// The inverse of [`Self::IntoOrder`].
    OutOfOrder {
        /// The time axis.
        axis: u8,
    },
    /// x `[N, F]` gives one step of each sequence `[B, F]`, zero where there is none.
    Step {
        /// Its number; -1 is a sequence's last.
        at: i64,
    },
    /// The inverse of [`Self::Step`]: x `[B, F]` gives `[N, F]` on `axis`, zero at other steps.
    AtStep {
        /// The step.
        at: i64,
        /// The time axis.
        axis: u8,
    },
    /// x `[N, F]` gives the steps of each sequence side by side `[B, steps·F]`, zero past its end.
    Flatten {
        /// How many.
        steps: usize,
    },
    /// The inverse of [`Self::Flatten`]: x `[B, steps·F]` gives `[N, F]` on `axis`.
    Unflatten {
        /// How many steps a row holds.
        steps: usize,
        /// The time axis.
        axis: u8,
    },
    /// x `[N, F]` gives a step for each feature and a feature for each of `steps` steps, `[N', steps]` on `axis`.
    Transpose {
        /// How many steps x has.
        steps: usize,
        /// The time axis of the output, whose sequences have F steps.
        axis: u8,
    },
}

impl Gather {
    /// Values that are moved as one, of a row of x of `columns` values.
    pub fn unit(&self, columns: usize) -> usize {
        match self {
            Self::Unflatten { steps, .. } => columns / steps,
            Self::Transpose { .. } => 1,
            _ => columns,
        }
    }

    /// The step with number `at` of a sequence of `length`, if there is one.
    pub fn step(at: i64, length: usize) -> Option<usize> {
        let length = length as i64;
        let step = if at < 0 { length.checked_add(at)? } else { at };
        (0..length).contains(&step).then_some(step as usize)
    }

    /// What a unit holds that comes from nowhere.
    pub fn fill(&self) -> f32 {
        if let Self::Windows { fill, .. } = self { *fill } else { 0.0 }
    }
}

pub(super) fn infer(i: &Inputs<'_>, gather: &Gather) -> Result<Vec<OutputSpec>> {
    let (rows, columns) = i.matrix(0, "x")?;
    let on = |axis: u8| Dim::Symbol(Symbol::Rows(axis));
    let reads_axis = matches!(rows, Dim::Symbol(Symbol::Rows(_)));
    let wants_axis = matches!(
        gather,
        Gather::Windows { .. }
            | Gather::Tap { .. }
            | Gather::Step { .. }
            | Gather::Along { .. }
            | Gather::Flatten { .. }
            | Gather::Transpose { .. }
    );
    if reads_axis != wants_axis || (!wants_axis && *rows != B) {
        let wanted = if wants_axis { "the rows of a time axis (N)" } else { "a row a sequence (B)" };
        return Err(Error::shape(format!("x must have {wanted}, got {rows}")));
    }
    let (rows, columns) = match *gather {
        Gather::Windows { window, axis, .. } => {
            window.validate()?;
            (on(axis), window.taps * columns)
        }
        Gather::Tap { axis, .. } | Gather::EachStep { axis } | Gather::Along { axis } | Gather::AtStep { axis, .. } => {
            (on(axis), columns)
        }
        Gather::IntoOrder { .. } | Gather::OutOfOrder { .. } | Gather::Step { .. } => (B, columns),
        Gather::Flatten { steps } => (B, steps * columns),
        Gather::Unflatten { steps, axis } if steps > 0 && columns.is_multiple_of(steps) => (on(axis), columns / steps),
        Gather::Unflatten { steps, .. } => {
            return Err(Error::shape(format!("{columns} values are not {steps} steps of as many values each")));
        }
        Gather::Transpose { steps, axis } => (on(axis), steps),
    };
    if columns == 0 {
        return Err(Error::shape("there is nothing to take: no step or no feature"));
    }
    Ok(vec![float("y", [rows, columns.into()])])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_see_what_they_should() {
        let window = Window { taps: 3, stride: 2, dilation: 1, padding: Padding::Same };
        // Six steps, three windows that reach seven: the odd one is at the end.
        let seen: Vec<_> = (0..3).map(|at| [0, 1, 2].map(|tap| window.step(6, at, tap))).collect();
        assert_eq!(seen[0], [Some(0), Some(1), Some(2)]);
        assert_eq!(seen[2], [Some(4), Some(5), None]);
        let causal = Window { dilation: 2, stride: 1, padding: Padding::Causal, ..window };
        assert_eq!([0, 1, 2].map(|tap| causal.step(5, 3, tap)), [None, Some(1), Some(3)]);
    }

    #[test]
    fn taps_are_the_inverse_of_windows() {
        for padding in [Padding::Valid, Padding::Same, Padding::Causal] {
            for (taps, stride, dilation) in [(1, 1, 1), (3, 1, 1), (3, 2, 1), (2, 3, 2), (4, 1, 3), (2, 5, 1)] {
                let window = Window { taps, stride, dilation, padding };
                for length in 0..12 {
                    for tap in 0..taps {
                        let forward: Vec<_> = (0..window.steps(length))
                            .filter_map(|at| Some((window.step(length, at, tap)?, at)))
                            .collect();
                        let back: Vec<_> =
                            (0..length).filter_map(|step| Some((step, window.window(length, step, tap)?))).collect();
                        assert_eq!(forward, back, "{window:?} {length} {tap}");
                    }
                }
            }
        }
    }
}
