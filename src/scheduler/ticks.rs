//! Ticks: which live streams share a batch, and how many steps of each it runs, within a bound on its time.

use std::time::Duration;

/// What one tick may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TickLimits {
    /// Streams.
    pub sequences: usize,
    /// Steps of each.
    pub steps: usize,
    /// Steps of all.
    pub rows: usize,
    /// How long it may take, by what ticks have taken.
    pub bound: Duration,
}

/// Rows of a tick before anything is known of how long they take: few enough for any device.
const FIRST_ROWS: usize = 64;

/// The part of the streams that a further step must still have, so that the weights are not read for a few: what is left over
/// runs with what comes meanwhile.
const SHARE: usize = 2;

/// What each of the streams that wait runs in the next tick. `waiting` holds the steps that wait on each, in the order in which
/// they are to be served; those past the end of the result wait on. At least one step runs where one waits.
pub fn tick(waiting: &[usize], limits: &TickLimits, pace: &Pace) -> Vec<usize> {
    let most = limits.rows.min(if pace.is_known() { usize::MAX } else { FIRST_ROWS });
    let served = &waiting[..waiting.len().min(limits.sequences).min(most)];
    let bound = limits.bound.as_secs_f64();
    // As many streams as fit into the bound with one step each, half as many until they do.
    let mut first = served.len();
    while first > 1 && pace.seconds(1, first) > bound {
        first = first.div_ceil(2);
    }
    let served = &served[..first];
    let (mut steps, mut rows) = (1, first);
    while steps < limits.steps {
        let more = served.iter().filter(|&&n| n > steps).count();
        if more == 0 || more * SHARE < first || rows + more > most || pace.seconds(steps + 1, rows + more) > bound {
            break;
        }
        (steps, rows) = (steps + 1, rows + more);
    }
    served.iter().map(|&n| n.min(steps)).collect()
}

/// How long ticks take: seconds a tick, a step and a row of one, fitted to what was measured, the latest most.
#[derive(Debug, Clone)]
pub struct Pace {
    /// The inverse of the weighted squares of what was measured, and the estimate: recursive least squares.
    inverse: [[f64; 3]; 3],
    estimate: [f64; 3],
    count: usize,
}

/// How much a tick counts less for each that follows.
const FORGET: f64 = 0.98;
/// Ticks after which the estimate is used.
const KNOWN: usize = 4;

impl Default for Pace {
    fn default() -> Self {
        let mut inverse = [[0.0; 3]; 3];
        // Nothing is known: the first ticks decide. In squares of what a row takes, where it takes some microseconds.
        (0..3).for_each(|at| inverse[at][at] = 1e3);
        Self { inverse, estimate: [0.0; 3], count: 0 }
    }
}

impl Pace {
    /// Whether enough ticks were measured.
    pub fn is_known(&self) -> bool {
        self.count >= KNOWN
    }

    /// Seconds that so many steps with so many rows in all would take; zero before anything is known.
    pub fn seconds(&self, steps: usize, rows: usize) -> f64 {
        if !self.is_known() {
            return 0.0;
        }
        let [tick, step, row] = self.estimate.map(|x| x.max(0.0));
        tick + step * steps as f64 + row * rows as f64
    }

    /// Learns that so many steps with so many rows in all took `seconds`.
    pub fn learn(&mut self, steps: usize, rows: usize, seconds: f64) {
        let x = [1.0, steps as f64, rows as f64];
        let times = |m: &[[f64; 3]; 3]| [0, 1, 2].map(|r| (0..3).map(|c| m[r][c] * x[c]).sum::<f64>());
        let gain = times(&self.inverse);
        let scale = FORGET + (0..3).map(|at| x[at] * gain[at]).sum::<f64>();
        let error = seconds - (0..3).map(|at| x[at] * self.estimate[at]).sum::<f64>();
        for r in 0..3 {
            self.estimate[r] += gain[r] / scale * error;
            for c in 0..3 {
                self.inverse[r][c] = (self.inverse[r][c] - gain[r] * gain[c] / scale) / FORGET;
            }
        }
        // Ticks that are all alike say nothing of the rest, and forgetting would blow it up.
        let largest = (0..3).map(|at| self.inverse[at][at]).fold(0.0, f64::max);
        if largest > 1e3 {
            self.inverse.iter_mut().flatten().for_each(|x| *x *= 1e3 / largest);
        }
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: TickLimits = TickLimits { sequences: 100, steps: 32, rows: 1000, bound: Duration::from_millis(10) };

    /// A tick of 0.1 ms, 0.2 ms a step, 10 µs a row.
    fn pace() -> Pace {
        let mut pace = Pace::default();
        for n in 0..200usize {
            let (steps, rows) = (1 + n % 7, (1 + n % 7) * (1 + n % 11));
            pace.learn(steps, rows, 1e-4 + 2e-4 * steps as f64 + 1e-5 * rows as f64);
        }
        pace
    }

    #[test]
    fn the_pace_is_what_was_measured() {
        let pace = pace();
        for (steps, rows) in [(1, 1), (5, 200), (32, 1000)] {
            let wanted = 1e-4 + 2e-4 * steps as f64 + 1e-5 * rows as f64;
            assert!((pace.seconds(steps, rows) / wanted - 1.0).abs() < 1e-3, "{steps} {rows}");
        }
    }

    #[test]
    fn ticks_of_one_size_keep_the_estimate_finite() {
        let mut pace = Pace::default();
        (0..100_000).for_each(|_| pace.learn(1, 64, 1e-3));
        assert!((pace.seconds(1, 64) - 1e-3).abs() < 1e-6);
        pace.learn(4, 64, 1.5e-3);
        assert!(pace.seconds(4, 64).is_finite());
    }

    #[test]
    fn steps_are_run_while_half_of_the_streams_have_them() {
        // Of four streams two have three steps, one has nine.
        assert_eq!(tick(&[3, 1, 9, 2], &LIMITS, &pace()), [3, 1, 3, 2]);
        assert_eq!(tick(&[9], &LIMITS, &pace()), [9]);
        assert_eq!(tick(&[], &LIMITS, &pace()), [0; 0]);
    }

    #[test]
    fn limits_hold() {
        assert_eq!(tick(&[40], &LIMITS, &pace()), [32], "steps");
        assert_eq!(tick(&[1; 300], &LIMITS, &pace()).len(), 100, "streams");
        let rows = TickLimits { rows: 150, ..LIMITS };
        assert_eq!(tick(&[2; 100], &rows, &pace()), [1; 100], "rows");
        // 10 steps of 60 rows take 8.1 ms, 12 take 9.7.
        assert_eq!(tick(&[30; 60], &LIMITS, &pace()), [12; 60], "time");
        let short = TickLimits { bound: Duration::from_micros(700), ..LIMITS };
        assert_eq!(tick(&[1; 100], &short, &pace()).len(), 25, "time of one step");
        let none = TickLimits { bound: Duration::ZERO, ..LIMITS };
        assert_eq!(tick(&[5; 10], &none, &pace()), [1], "something always runs");
        assert_eq!(tick(&[1; 100], &LIMITS, &Pace::default()).len(), FIRST_ROWS, "before anything is known");
    }
}
