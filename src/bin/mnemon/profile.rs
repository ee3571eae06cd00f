//! `mnemon profile`: where the time of a call goes.

use crate::bench::prepare;
use crate::configs::{Config, ConfigOptions, Mode};
use crate::options::DeviceOptions;
use crate::output::say;
use clap::Args;
use mnemon::device::{Device, Executable, Session};
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::graph::{Expr, Graph, N};
use mnemon::params::{DType, Tensor};
use mnemon::scheduler::profile::{Profile, Work};
use mnemon::scheduler::{Batch, Capacity};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

const EXAMPLES: &str = "\
Examples:
  mnemon profile --only small --device software
  mnemon profile --only med --mode infer --trace med.json

For each step of the program: its kernels' dispatches and time by the adapter's timestamps (on the CPU by the clock), what it
computes (matrix products alone) and the least it has to move. Each dispatch is timed by itself, so that the sum is more than
a call takes; the call's own time, as mnemon bench measures it, is printed beside. The rates at the foot are what a large
matrix product and a large sum of two values reach on the device. A trace opens in Perfetto (ui.perfetto.dev) and in
chrome://tracing. With --count nothing runs: dispatches and bytes alone.";

/// Show where the time of a call goes, kernel by kernel
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    configs: ConfigOptions,

    /// A forward pass, or loss and gradients of all weights and of the input
    #[arg(long, value_enum, default_value = "train")]
    mode: Mode,

    /// Write a trace of the last configuration's call here
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Only count what a GPU would be given
    #[arg(long, conflicts_with = "trace")]
    count: bool,

    #[command(flatten)]
    device: DeviceOptions,
}

/// What the profile holds of one step, or of one kernel.
#[derive(Default)]
struct Row {
    name: String,
    count: usize,
    seconds: f64,
    work: Work,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let configs = arguments.configs.read()?;
    let device = arguments.device.open()?;
    say!("{}", device.name());
    for config in &configs {
        let (mut session, graph, batch) = prepare(&device, config, arguments.mode)?;
        let mut executable = session.load(&graph, &Capacity::exactly(&batch))?;
        if arguments.count {
            let profile = session.count(&mut executable, &batch, &[])?;
            say!("\n{}", counts(config, &executable, &batch, &profile)?);
            continue;
        }
        let seconds = call_time(&mut session, &mut executable, &batch)?;
        let profile = session.profile(&mut executable, &batch, &[])?;
        report(config, &executable, &batch, &profile, seconds)?;
        match session.stalls()? {
            0 => {}
            stalls => say!("{stalls} tiles of sequences had to be resumed, because their workgroups did not meet"),
        }
        if let Some(path) = &arguments.trace {
            let text = trace(&profile, &executable).to_string();
            std::fs::write(path, text)
                .map_err(|e| Error::new(ErrorKind::File, format!("{}: cannot write: {e}", path.display())))?;
        }
    }
    if !arguments.count {
        match rates(&device) {
            Ok((product, pass)) => {
                say!(
                    "\nthis device: {product:.1} GFLOP/s in a large product, {pass:.1} GB/s in a large pass over values"
                );
            }
            Err(e) => say!("\nthis device's rates are not known: {e}"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The median of some calls, in seconds.
fn call_time(session: &mut Session, executable: &mut Executable, batch: &Batch) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..6 {
        let begin = Instant::now();
        session.run(executable, batch, &[])?;
        session.wait()?;
        times.push(begin.elapsed().as_secs_f64());
    }
    // The first is warm-up.
    times.remove(0);
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn counts(config: &Config, executable: &Executable, batch: &Batch, profile: &Profile) -> Result<String> {
    let work = executable.program().whole_work(batch)?;
    Ok(format!(
        "{}: {} dispatches, {} copies, {:.3} GFLOP, {:.1} MB to move, {} bytes held",
        config.name,
        profile.device.len(),
        profile.copies,
        work.flops as f64 / 1e9,
        work.bytes as f64 / 1e6,
        executable.program().memory().bytes()
    ))
}

/// The name of a step, with its number.
fn step_name(executable: &Executable, step: Option<usize>) -> String {
    let found = step.and_then(|n| executable.program().stage_steps().find(|s| s.number == n));
    found.map_or_else(|| "other".to_string(), |s| format!("{}.{}", s.op.name(), s.number))
}

fn report(config: &Config, executable: &Executable, batch: &Batch, profile: &Profile, call: f64) -> Result<()> {
    let program = executable.program();
    let (mut steps, mut kernels) = (BTreeMap::<Option<usize>, Row>::new(), BTreeMap::<&str, Row>::new());
    for span in &profile.device {
        let seconds = span.time.map_or(0.0, |[begin, end]| end - begin);
        let name = step_name(executable, span.step);
        let step = steps.entry(span.step).or_insert_with(|| Row { name, ..Row::default() });
        let kernel = kernels.entry(&span.what).or_insert_with(|| Row { name: span.what.clone(), ..Row::default() });
        for row in [step, kernel] {
            row.count += 1;
            row.seconds += seconds;
        }
    }
    for step in program.stage_steps() {
        if let Some(row) = steps.get_mut(&Some(step.number)) {
            row.work = row.work + program.work(step, batch)?;
        }
    }
    let timed = profile.device.iter().any(|s| s.time.is_some());
    let total: f64 = steps.values().map(|r| r.seconds).sum();
    say!("\n{}: {:.3} ms a call; {}", config.name, call * 1e3, counts(config, executable, batch, profile)?);
    if !timed {
        say!("the device has no timestamps: no times of kernels");
    }
    say!("{:<28} {:>10} {:>10} {:>6} {:>10} {:>10}", "step", "dispatches", "ms", "%", "GFLOP/s", "GB/s");
    let mut rows: Vec<Row> = steps.into_values().collect();
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    for row in rows {
        let rate = |amount: u64| {
            if row.seconds > 0.0 { format!("{:.2}", amount as f64 / row.seconds / 1e9) } else { "-".into() }
        };
        let (flops, bytes) = (rate(row.work.flops), rate(row.work.bytes));
        say!(
            "{:<28} {:>10} {:>10} {:>6} {flops:>10} {bytes:>10}",
            row.name,
            row.count,
            ms(&row, timed),
            share(&row, total)
        );
    }
    say!("{:<28} {:>10} {:>10} {:>6}", "kernel", "dispatches", "ms", "%");
    let mut rows: Vec<Row> = kernels.into_values().collect();
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    for row in rows {
        say!("{:<28} {:>10} {:>10} {:>6}", row.name, row.count, ms(&row, timed), share(&row, total));
    }
    for span in &profile.host {
        let [begin, end] = span.time.unwrap_or_default();
        say!("host: {:<22} {:>21.3}", span.what, (end - begin) * 1e3);
    }
    Ok(())
}

fn ms(row: &Row, timed: bool) -> String {
    if timed { format!("{:.3}", row.seconds * 1e3) } else { "-".to_string() }
}

fn share(row: &Row, total: f64) -> String {
    if total > 0.0 { format!("{:.1}", 100.0 * row.seconds / total) } else { "-".to_string() }
}

/// The call as events that Perfetto reads: the device's on one track, the host's on another.
fn trace(profile: &Profile, executable: &Executable) -> Value {
    let mut events = vec![
        json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {"name": "host"}}),
        json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": 2, "args": {"name": "device"}}),
    ];
    for (thread, spans) in [(1, &profile.host), (2, &profile.device)] {
        for (span, [begin, end]) in spans.iter().filter_map(|s| Some((s, s.time?))) {
            events.push(json!({
                "ph": "X", "pid": 1, "tid": thread, "name": span.what, "ts": begin * 1e6, "dur": (end - begin) * 1e6,
                "args": {"step": step_name(executable, span.step)},
            }));
        }
    }
    json!({"traceEvents": events, "displayTimeUnit": "ms"})
}

/// What a large product, and a large pass over values, reach: GFLOP/s and GB/s.
pub fn rates(device: &Device) -> Result<(f64, f64)> {
    let (n, values) = (1024, 1 << 24);
    let mut product = Graph::new();
    let (x, w) = (product.persistent("x", [N, n.into()])?, product.persistent("w", [n, n])?);
    let y = product.linear(x, w, None)?;
    product.output("y", y)?;
    let mut pass = Graph::new();
    let (a, b) = (pass.persistent("a", [values])?, pass.persistent("b", [values])?);
    let sum = pass.elementwise(Expr::Input(0) + Expr::Input(1), &[a, b])?;
    pass.output("sum", sum)?;
    let mut session = device.session()?;
    for (name, shape) in [("x", vec![n, n]), ("w", vec![n, n]), ("a", vec![values]), ("b", vec![values])] {
        session.zero(name, &shape, DType::F32)?;
    }
    session.set("w", &Tensor::new(&[n, n], vec![0.5; n * n])?)?;
    let batch = Batch::dense(n, 1)?;
    let mut time = |graph: &Graph| {
        let mut executable = session.load(graph, &Capacity::exactly(&batch))?;
        call_time(&mut session, &mut executable, &batch)
    };
    let (product, pass) = (time(&product)?, time(&pass)?);
    Ok((2.0 * (n as f64).powi(3) / product / 1e9, 12.0 * values as f64 / pass / 1e9))
}
