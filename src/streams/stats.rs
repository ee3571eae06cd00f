//! What streams have done so far.

use std::time::Duration;

/// Upper ends of the classes of latencies, in seconds; one more class holds what is longer.
pub(super) const CLASSES: [f64; 12] = [1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 1e-1, 2.5e-1, 1.0];

/// Counts since streams were opened.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Streams that are open.
    pub open: usize,
    /// Streams that were ever opened.
    pub opened: u64,
    /// Steps that wait to run.
    pub waiting: u64,
    /// Steps that have run.
    pub steps: u64,
    /// Ticks that have run.
    pub ticks: u64,
    /// Seconds that ticks took.
    pub seconds: f64,
    /// How often work went on on a device that was opened again, or on another.
    pub recoveries: u64,
    /// From a push to the output of its last step: how many took at most each of [`Stats::classes`], and how many took longer.
    pub latencies: [u64; CLASSES.len() + 1],
    /// The sum of these, in seconds.
    pub latency_sum: f64,
}

impl Stats {
    /// Upper ends of the classes of latencies, in seconds.
    pub fn classes() -> &'static [f64] {
        &CLASSES
    }

    pub(super) fn note(&mut self, latency: Duration) {
        let seconds = latency.as_secs_f64();
        self.latencies[CLASSES.partition_point(|&end| end < seconds)] += 1;
        self.latency_sum += seconds;
    }
}
