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

/// Steps of each that a tick has rather than more streams: rows of states go in and out of their slots once a tick.
const STEPS: usize = 4;

/// What each of the streams that wait runs in the next tick. `waiting` holds the steps that wait on each, in the order in which
/// they are to be served; those past the end of the result wait on. At least one step runs where one waits.
pub fn tick(waiting: &[usize], limits: &TickLimits, pace: &Pace) -> Vec<usize> {
    let most = limits.rows.min(if pace.is_known() { usize::MAX } else { FIRST_ROWS });
    let served = &waiting[..waiting.len().min(limits.sequences).min(most)];
    let bound = limits.bound.as_secs_f64();
    let have = |steps: usize| served.iter().filter(|&&n| n >= steps).count();
    let each =
        (2..=STEPS.min(limits.steps)).take_while(|&steps| have(steps) * SHARE >= served.len()).last().unwrap_or(1);
    // As many streams as fit into the bound with so many steps each, an eighth fewer until they do.
    let mut first = served.len();
    while first > 1 && (first * each > most || pace.seconds(each, first * each) > bound) {
        first -= first.div_ceil(8);
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

/// How long a row takes in a tick, by how many rows a step has: what was measured, the latest most.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    /// Seconds a row where a step has 1, 2 to 3, 4 to 7 rows and so on; the last class holds all that are larger.
    classes: [Option<f64>; CLASSES],
}

const CLASSES: usize = 16;
/// How much the latest tick counts.
const LATEST: f64 = 0.2;
/// A tick that took longer than this many times what was expected was held up by something else, and counts as so many.
const HELD_UP: f64 = 2.0;

impl Pace {
    fn class(steps: usize, rows: usize) -> usize {
        ((rows / steps.max(1)).max(1).ilog2() as usize).min(CLASSES - 1)
    }

    /// Whether anything was measured.
    pub fn is_known(&self) -> bool {
        self.classes.iter().any(Option::is_some)
    }

    /// Seconds that so many steps with so many rows in all would take; zero before anything is known.
    pub fn seconds(&self, steps: usize, rows: usize) -> f64 {
        let class = Self::class(steps, rows);
        // A row takes no longer where there are more beside it, so that no class can stay too high for ever.
        let fewer = self.classes[..=class].iter().flatten().copied().reduce(f64::min);
        // A step takes no longer where it has fewer.
        let more = || {
            let (at, row) = self.classes.iter().enumerate().find_map(|(at, row)| Some((at, (*row)?)))?;
            Some(row * (1u64 << (at - class.min(at))) as f64)
        };
        fewer.or_else(more).unwrap_or(0.0) * rows as f64
    }

    /// Learns that so many steps with so many rows in all took `seconds`.
    pub fn learn(&mut self, steps: usize, rows: usize, seconds: f64) {
        let row = seconds / rows.max(1) as f64;
        let class = &mut self.classes[Self::class(steps, rows)];
        *class = Some(class.map_or(row, |old| old + LATEST * (row.min(HELD_UP * old) - old)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: TickLimits = TickLimits { sequences: 100, steps: 32, rows: 1000, bound: Duration::from_millis(10) };

    /// A step of 0.2 ms, 10 µs a row.
    fn pace() -> Pace {
        let mut pace = Pace::default();
        for n in 0..2000usize {
            let (steps, rows) = (1 + n % 7, (1 + n % 7) << (n % 9));
            pace.learn(steps, rows, 2e-4 * steps as f64 + 1e-5 * rows as f64);
        }
        pace
    }

    #[test]
    fn the_pace_is_what_was_measured() {
        let pace = pace();
        for (steps, rows) in [(1, 1), (5, 80), (3, 384), (1, 256)] {
            let wanted = 2e-4 * steps as f64 + 1e-5 * rows as f64;
            assert!((pace.seconds(steps, rows) / wanted - 1.0).abs() < 1e-3, "{steps} {rows}");
        }
    }

    #[test]
    fn the_pace_of_other_sizes_is_bounded_by_what_is_known() {
        let mut pace = Pace::default();
        assert!(!pace.is_known() && pace.seconds(3, 99) == 0.0);
        (0..50).for_each(|_| pace.learn(1, 64, 64e-5));
        assert!((pace.seconds(1, 256) - 256e-5).abs() < 1e-9, "rows as they are among fewer");
        assert!((pace.seconds(2, 2) - 2.0 * 64e-5).abs() < 1e-9, "steps as they are with more");
        // Something held a large tick up; smaller ones show that it was not the tick.
        pace.learn(1, 256, 1.0);
        assert!(pace.seconds(1, 256) < 3e-3);
        (0..3).for_each(|_| pace.learn(1, 64, 1.0));
        assert!(pace.seconds(1, 64) < 2e-3, "{}", pace.seconds(1, 64));
    }

    #[test]
    fn steps_are_run_while_half_of_the_streams_have_them() {
        // Of four streams two have three steps, one has nine.
        assert_eq!(tick(&[3, 1, 9, 2], &LIMITS, &pace()), [3, 1, 3, 2]);
        assert_eq!(tick(&[9], &LIMITS, &pace()), [9]);
        assert_eq!(tick(&[], &LIMITS, &pace()), [0; 0]);
    }

    #[test]
    fn steps_come_before_streams() {
        // All of them would take 4.8 ms with four steps each, and 1.2 with one; 20 take 1.8 with four.
        let short = TickLimits { bound: Duration::from_millis(2), ..LIMITS };
        assert_eq!(tick(&[4; 100], &short, &pace()), [4; 20]);
        // Where most have one step, as many as there is time for run it.
        let mut few = [1; 100];
        few[..40].fill(4);
        assert_eq!(tick(&few, &short, &pace()), [1; 100]);
    }

    #[test]
    fn limits_hold() {
        assert_eq!(tick(&[40], &LIMITS, &pace()), [32], "steps");
        assert_eq!(tick(&[1; 300], &LIMITS, &pace()).len(), 100, "streams");
        let rows = TickLimits { rows: 150, ..LIMITS };
        assert_eq!(tick(&[2; 100], &rows, &pace()), [2; 66], "rows");
        // 11 steps of 64 rows take 9.2 ms, 12 take 10.1.
        assert_eq!(tick(&[30; 64], &LIMITS, &pace()), [11; 64], "time");
        let short = TickLimits { bound: Duration::from_micros(700), ..LIMITS };
        assert_eq!(tick(&[1; 100], &short, &pace()).len(), 42, "time of one step");
        let none = TickLimits { bound: Duration::ZERO, ..LIMITS };
        assert_eq!(tick(&[5; 10], &none, &pace()), [1], "something always runs");
        assert_eq!(tick(&[1; 100], &LIMITS, &Pace::default()).len(), FIRST_ROWS, "before anything is known");
    }
}
