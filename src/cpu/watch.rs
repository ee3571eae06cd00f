//! When each step of a run began and ended.

use crate::scheduler::Step;
use crate::scheduler::profile::Span;
use std::time::Instant;

/// The steps of one run, with their times from when it began.
#[derive(Debug)]
pub(super) struct Watch {
    begin: Instant,
    pub spans: Vec<Span>,
}

impl Watch {
    /// Begins now.
    pub fn new() -> Self {
        Self { begin: Instant::now(), spans: Vec::new() }
    }

    /// Seconds since it began.
    pub fn now(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    /// Notes `step`, which began at `begin` and ends now.
    pub fn note(&mut self, step: &Step, begin: f64) {
        let time = Some([begin, self.now()]);
        self.spans.push(Span { step: Some(step.number), what: step.op.name().to_string(), time });
    }
}
