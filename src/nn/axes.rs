//! The time axes of a network: those of its inputs, and those that layers make of them.

use crate::graph::Window;

/// How many steps the sequences of a time axis have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steps {
    /// As many as the caller gives.
    Given {
        /// At most this many, where the input says so.
        most: Option<usize>,
        /// Whether it must be that many, because a layer makes sequences of as many to be joined with these.
        exact: bool,
    },
    /// This many, all of them.
    Fixed(usize),
    /// One for each window over the steps of another axis.
    Windows {
        /// The other axis.
        of: u8,
        /// The windows.
        window: Window,
    },
}

/// The time axes of a network by number, those of inputs first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Axes {
    steps: Vec<Steps>,
    /// Whether masks may shorten the sequences of inputs.
    masked: bool,
}

impl Axes {
    /// All of them.
    pub fn all(&self) -> &[Steps] {
        &self.steps
    }

    /// No axis yet.
    pub(super) fn new(masked: bool) -> Self {
        Self { steps: Vec::new(), masked }
    }

    /// Whether masks may shorten the sequences of inputs.
    pub(super) fn masked(&self) -> bool {
        self.masked
    }

    /// Adds the axis of an input.
    pub(super) fn give(&mut self, most: Option<usize>) -> u8 {
        self.steps.push(Steps::Given { most, exact: false });
        self.steps.len() as u8 - 1
    }

    /// The axis of such steps, the same for all that ask for the same. A fixed number of steps is an input's own, where
    /// that is known to have as many and no mask may shorten it.
    pub(super) fn find(&mut self, steps: Steps) -> u8 {
        if let (Steps::Fixed(n), false) = (steps, self.masked) {
            let given = |s: &Steps| matches!(s, Steps::Given { most, .. } if *most == Some(n));
            if let Some(at) = self.steps.iter().position(given) {
                self.steps[at] = Steps::Given { most: Some(n), exact: true };
                return at as u8;
            }
        }
        let at = self.steps.iter().position(|s| *s == steps).unwrap_or_else(|| {
            self.steps.push(steps);
            self.steps.len() - 1
        });
        at as u8
    }

    /// The number of steps of the longest sequence that an axis can have, where it is known beforehand.
    pub fn count(&self, axis: u8) -> Option<usize> {
        match *self.steps.get(axis as usize)? {
            Steps::Given { most, .. } => most,
            Steps::Fixed(steps) => Some(steps),
            Steps::Windows { of, window } => Some(window.steps(self.count(of)?)),
        }
    }

    /// The lengths of the sequences on every axis, from those on the inputs' axes.
    pub fn lengths(&self, given: &[Vec<usize>], sequences: usize) -> Vec<Vec<usize>> {
        let mut all: Vec<Vec<usize>> = Vec::with_capacity(self.steps.len());
        for (axis, steps) in self.steps.iter().enumerate() {
            all.push(match *steps {
                Steps::Given { .. } => given.get(axis).cloned().unwrap_or_else(|| vec![0; sequences]),
                Steps::Fixed(steps) => vec![steps; sequences],
                Steps::Windows { of, window } => all[of as usize].iter().map(|&l| window.steps(l)).collect(),
            });
        }
        all
    }
}
