//! What Prometheus reads, in its text format.

use mnemon::streams::Stats;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// Requests that were answered, by the first digit of their status.
#[derive(Debug, Default)]
pub struct Requests([AtomicU64; 6]);

impl Requests {
    pub fn note(&self, status: u16) {
        self.0[usize::from(status / 100).min(5)].fetch_add(1, Ordering::Relaxed);
    }
}

/// Everything that is counted.
pub fn text(stats: &Stats, requests: &Requests) -> String {
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, lines: &[(String, f64)]| {
        let _ = writeln!(text, "# HELP mnemon_{name} {help}\n# TYPE mnemon_{name} {kind}");
        for (suffix, value) in lines {
            let _ = writeln!(text, "mnemon_{name}{suffix} {value}");
        }
    };
    let one = |value: f64| [(String::new(), value)];
    metric("streams_open", "gauge", "Streams that are open.", &one(stats.open as f64));
    metric("streams_opened_total", "counter", "Streams that were opened.", &one(stats.opened as f64));
    metric("steps_waiting", "gauge", "Steps that wait to run.", &one(stats.waiting as f64));
    metric("steps_total", "counter", "Steps that have run.", &one(stats.steps as f64));
    metric("ticks_total", "counter", "Batches that have run.", &one(stats.ticks as f64));
    metric("tick_seconds_total", "counter", "Seconds that batches took.", &one(stats.seconds));
    metric(
        "recoveries_total",
        "counter",
        "Times that the device had to be opened again.",
        &one(stats.recoveries as f64),
    );
    let mut sum = 0;
    let mut buckets: Vec<(String, f64)> = Vec::new();
    let ends = Stats::classes().iter().map(f64::to_string).chain(std::iter::once("+Inf".to_string()));
    for (end, count) in ends.zip(stats.latencies) {
        sum += count;
        buckets.push((format!("_bucket{{le=\"{end}\"}}"), sum as f64));
    }
    buckets.push(("_sum".to_string(), stats.latency_sum));
    buckets.push(("_count".to_string(), sum as f64));
    metric("latency_seconds", "histogram", "From the arrival of steps to the output of the last.", &buckets);
    let answered: Vec<(String, f64)> = (1..6)
        .map(|class| (format!("{{status=\"{class}xx\"}}"), requests.0[class].load(Ordering::Relaxed) as f64))
        .collect();
    metric("requests_total", "counter", "Requests that were answered.", &answered);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative() {
        let mut stats = Stats { open: 3, latency_sum: 0.5, ..Stats::default() };
        (stats.latencies[0], stats.latencies[2]) = (2, 5);
        let requests = Requests::default();
        [200, 201, 404].into_iter().for_each(|status| requests.note(status));
        let text = text(&stats, &requests);
        for line in [
            "mnemon_streams_open 3",
            "mnemon_latency_seconds_bucket{le=\"0.0001\"} 2",
            "mnemon_latency_seconds_bucket{le=\"0.00025\"} 2",
            "mnemon_latency_seconds_bucket{le=\"0.0005\"} 7",
            "mnemon_latency_seconds_bucket{le=\"+Inf\"} 7",
            "mnemon_latency_seconds_sum 0.5",
            "mnemon_latency_seconds_count 7",
            "mnemon_requests_total{status=\"2xx\"} 2",
            "mnemon_requests_total{status=\"4xx\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
