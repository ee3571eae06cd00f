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
    /// So many steps before its first and after its last; less than 0 leaves steps of the sequence out.
    Explicit {
        /// Before the first step.
        before: i32,
        /// After the last step.
        after: i32,
    },
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
        match self.padding {
            Padding::Explicit { before, after }
                if [before, after].iter().any(|n| n.unsigned_abs() as usize > WINDOW_LIMIT) =>
            {
                Err(Error::argument(format!(
                    "window: padding must be in -{WINDOW_LIMIT}..={WINDOW_LIMIT}, got {before} and {after}"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Steps from its first to its last, both counted.
    pub fn span(&self) -> usize {
        (self.taps - 1) * self.dilation + 1
    }

    /// Steps before and after a sequence of `length` steps that windows may see.
    fn around(&self, length: usize) -> (i64, i64) {
        match self.padding {
            Padding::Valid => (0, 0),
            Padding::Causal => (self.span() as i64 - 1, 0),
            Padding::Same => {
                let reached = length.div_ceil(self.stride).saturating_sub(1) * self.stride + self.span();
                let beyond = reached.saturating_sub(length) as i64;
                (beyond / 2, beyond - beyond / 2)
            }
            Padding::Explicit { before, after } => (before.into(), after.into()),
        }
    }

    /// The simplest windows of which there are as many over any sequence.
    #[must_use]
    pub fn alike(self) -> Self {
        let (span, plain) = (self.span(), Self { taps: 1, dilation: 1, ..self });
        match self.padding {
            Padding::Valid => Self { taps: span, ..plain },
            Padding::Same | Padding::Causal => Self { padding: Padding::Same, ..plain },
            // Windows that reach over as many steps as there are more are as many as steps.
            Padding::Explicit { before, after } => match span as i32 - before.saturating_add(after) {
                1 => Self { padding: Padding::Same, ..plain },
                taps @ 2.. => Self { taps: taps as usize, padding: Padding::Valid, ..plain },
                taps => Self { padding: Padding::Explicit { before: 1 - taps, after: 0 }, ..plain },
            },
        }
    }

    /// Windows over a sequence of `length` steps; none over one that has none.
    pub fn steps(&self, length: usize) -> usize {
        match self.padding {
            Padding::Same | Padding::Causal => length.div_ceil(self.stride),
            Padding::Valid | Padding::Explicit { .. } => {
                let (before, after) = self.around(length);
                let left = length as i64 + before + after - self.span() as i64;
                if left < 0 || length == 0 { 0 } else { left as usize / self.stride + 1 }
            }
        }
    }

    /// The step that tap `tap` of window `at` sees in a sequence of `length` steps, if there is one.
    pub fn step(&self, length: usize, at: usize, tap: usize) -> Option<usize> {
        let step = (at * self.stride + tap * self.dilation) as i64 - self.around(length).0;
        usize::try_from(step).ok().filter(|&step| step < length)
    }

    /// The inverse of [`Self::step`]: the window whose tap `tap` sees step `step`, if there is one.
    pub fn window(&self, length: usize, step: usize, tap: usize) -> Option<usize> {
        let distance = step as i64 + self.around(length).0 - (tap * self.dilation) as i64;
        let distance = usize::try_from(distance).ok()?;
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
    fn windows_that_are_alike_are_as_many() {
        for (before, after) in [(0, 0), (1, 1), (2, 3), (-2, 0), (0, -2), (-1, 1), (5, -1)] {
            for (taps, stride, dilation) in [(1, 1, 1), (3, 1, 1), (2, 2, 3)] {
                let window = Window { taps, stride, dilation, padding: Padding::Explicit { before, after } };
                // What is shorter than what is left out may differ in whether there is one window or none.
                for length in 8..16 {
                    assert_eq!(window.alike().steps(length), window.steps(length), "{window:?} {length}");
                }
            }
        }
    }

    #[test]
    fn taps_are_the_inverse_of_windows() {
        let explicit = |before, after| Padding::Explicit { before, after };
        let known = [Padding::Valid, Padding::Same, Padding::Causal];
        for padding in known.into_iter().chain([explicit(1, 2), explicit(3, 0), explicit(-1, -2), explicit(1, -1)]) {
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
