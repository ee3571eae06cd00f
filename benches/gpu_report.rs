//! Everything that is to be known of a GPU, in one run: microbenchmarks, then every configuration by the fixed table and tuned,
//! beside whatever peers are at hand. One binary with its shaders inside, to carry to any machine:
//!
//!     cargo bench --bench gpu_report -- --budget 600 --output report.jsonl
//!     cargo bench --bench gpu_report -- --peer 'python3 bench_torch.py --device cuda --configs configs.json'
//!
//! `--device` and `--configs` are those of `mnemon bench`; `--peer` (any number of times) is a command that prints lines as
//! `mnemon bench` does, and is run with the rest of the budget as its limit. Lines are written as they come. Run again with
//! the same output it goes on where it was stopped; what a budget did not reach says "not measured yet" in the tables, which
//! go to standard output and beside the lines as Markdown.
#![allow(clippy::print_stdout, dead_code, unused_imports, missing_docs)]

#[path = "../src/bin/mnemon/bench.rs"]
mod bench;
#[path = "../src/bin/mnemon/configs.rs"]
mod configs;
#[path = "../src/bin/mnemon/options.rs"]
mod options;
#[path = "../src/bin/mnemon/output.rs"]
mod output;

use clap::Parser;
use configs::{Config, ConfigOptions, Mode};
use mnemon::device::{Device, GpuLimits, Tuner};
use mnemon::graph::Graph;
use mnemon::params::Tensor;
use mnemon::scheduler::{Batch, Capacity, Precision};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error>;

#[derive(Debug, Parser)]
struct Options {
    /// Stop beginning new work after this many seconds
    #[arg(long, default_value_t = 600.0)]
    budget: f64,
    /// Where lines are written, and read from when it goes on
    #[arg(long, default_value = "gpu_report.jsonl")]
    output: PathBuf,
    /// The device: gpu, software, gpu:SUBSTRING
    #[arg(long, env = "MNEMON_DEVICE", default_value = "gpu")]
    device: String,
    /// A command that prints lines of a peer
    #[arg(long)]
    peer: Vec<String>,
    #[command(flatten)]
    configs: ConfigOptions,
    /// Cargo passes it to benchmarks
    #[arg(long, hide = true)]
    bench: bool,
}

/// The six shapes of the kernel plan.
const SHAPES: &str = r#"[
  {"name": "A", "B": 64,  "T": 128,  "I": 512,  "H": 512,  "layers": 1},
  {"name": "B", "B": 32,  "T": 100,  "I": 128,  "H": 128,  "layers": 1},
  {"name": "C", "B": 16,  "T": 1024, "I": 768,  "H": 768,  "layers": 1},
  {"name": "D", "B": 256, "T": 50,   "I": 1024, "H": 1024, "layers": 2},
  {"name": "E", "B": 1,   "T": 1000, "I": 256,  "H": 256,  "layers": 1},
  {"name": "F", "B": 128, "T": 35,   "I": 650,  "H": 650,  "layers": 2}
]"#;

/// As the command line reads texts, for the files that are shared with it.
fn read_text(path: &std::path::Path) -> mnemon::error::Result<String> {
    let failed = |e| mnemon::error::Error::new(mnemon::error::ErrorKind::File, format!("{}: {e}", path.display()));
    std::fs::read_to_string(path).map_err(failed)
}

struct Report {
    file: std::fs::File,
    lines: Vec<Value>,
    end: Instant,
}

impl Report {
    /// Whether something of this name is to be done now.
    fn wants(&self, id: &str) -> bool {
        Instant::now() < self.end && !self.lines.iter().any(|l| l["id"] == id)
    }

    fn add(&mut self, id: &str, mut line: Value) -> Result<(), Failure> {
        line["id"] = json!(id);
        println!("{line}");
        writeln!(self.file, "{line}")?;
        self.file.flush()?;
        self.lines.push(line);
        Ok(())
    }
}

fn main() -> ExitCode {
    // `cargo test --benches` runs it without cargo's flag: nothing is measured then.
    if std::env::args().len() == 1 {
        println!("gpu_report: nothing to do; run it by cargo bench, or with --budget SECONDS");
        return ExitCode::SUCCESS;
    }
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let budget = Duration::try_from_secs_f64(options.budget)?;
    let text = std::fs::read_to_string(&options.output).unwrap_or_default();
    // A line that a kill has cut is measured again.
    let lines = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let file = std::fs::File::options().create(true).append(true).open(&options.output)?;
    let mut report = Report { file, lines, end: Instant::now() + budget };
    let device = Device::parse(&options.device, GpuLimits::Adapter, None)?;
    micro(&mut report, &options.device)?;
    let mut all: Vec<Config> = options.configs.read()?;
    all.extend(serde_json::from_str::<Vec<Config>>(SHAPES)?);
    let tuner = Arc::new(Tuner::new(&device, None, Duration::from_secs(60))?);
    let resident = device.clone().with_grid().target().limits.resident;
    if report.wants("micro/workgroups that meet") {
        report.add("micro/workgroups that meet", json!({ "value": resident, "unit": "workgroups" }))?;
    }
    let mut ways = vec![(WAYS[0], device.clone()), (WAYS[1], device.clone().with_tuner(tuner))];
    for (way, precision) in [(WAYS[2], Precision::F16Weights), (WAYS[3], Precision::F16Products)] {
        match device.clone().with_precision(precision) {
            Ok(halves) if precision == Precision::F16Products && halves.target().matrix() == 0 => {
                eprintln!("{precision} is left out: there are no matrix units");
            }
            Ok(halves) => {
                let tuner = Arc::new(Tuner::new(&halves, None, Duration::from_secs(60))?);
                ways.push((way, halves.with_tuner(tuner)));
            }
            Err(e) => eprintln!("{precision} is left out: {e}"),
        }
    }
    for (way, (what, unit)) in [(WAYS[0], MICRO[6]), (WAYS[3], MICRO[7])] {
        let id = format!("micro/{what}");
        if let Some((_, device)) = ways.iter().find(|(w, _)| *w == way).filter(|_| report.wants(&id)) {
            report.add(&id, json!({ "value": large_product(device)?, "unit": unit }))?;
        }
    }
    for (way, device) in ways {
        for (config, mode) in all.iter().flat_map(|c| [(c, Mode::Infer), (c, Mode::Train)]) {
            let id = format!("mnemon {way}/{}/{}", config.name, name(mode));
            if report.wants(&id) {
                let limit = report.end.saturating_duration_since(Instant::now()).as_secs_f64();
                let line = bench::line(&device, config, mode, limit)?;
                report.add(&id, line)?;
            }
        }
    }
    for command in &options.peer {
        peer(&mut report, command)?;
    }
    let table = tables(&report, &all, &device.name())?;
    println!("\n{table}");
    std::fs::write(options.output.with_extension("md"), table)?;
    Ok(())
}

fn name(mode: Mode) -> &'static str {
    if mode == Mode::Train { "train" } else { "infer" }
}

/// Runs a peer's command and takes its lines, once.
fn peer(report: &mut Report, command: &str) -> Result<(), Failure> {
    let done = format!("done: {command}");
    if !report.wants(&done) {
        return Ok(());
    }
    let seconds = report.end.saturating_duration_since(Instant::now()).as_secs().max(1);
    let child =
        Command::new("timeout").arg(seconds.to_string()).args(["sh", "-c", command]).stdout(Stdio::piped()).spawn();
    let output = child?.wait_with_output()?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        let text = |key: &str| line[key].as_str().unwrap_or("?").to_string();
        let id = format!("{}/{}/{}", text("peer"), text("config"), text("mode"));
        if !report.lines.iter().any(|l| l["id"] == id.as_str()) {
            report.add(&id, line.clone())?;
        }
    }
    if output.status.success() {
        report.add(&done, json!({}))?;
    }
    Ok(())
}

/// Markdown: the microbenchmarks, then milliseconds of every configuration by everybody.
fn tables(report: &Report, configs: &[Config], device: &str) -> Result<String, Failure> {
    let mut text = format!("# {device}\n\n| microbenchmark | value | unit |\n| --- | --- | --- |\n");
    for (what, unit) in MICRO {
        let found = report.lines.iter().find(|l| l["id"] == format!("micro/{what}"));
        let value = found.and_then(|l| l["value"].as_f64()).map_or("not measured yet".into(), |v| format!("{v:.3}"));
        writeln!(text, "| {what} | {value} | {unit} |")?;
    }
    let mut times: BTreeMap<(String, &str, &str), f64> = BTreeMap::new();
    let mut who = WAYS.map(|way| format!("mnemon {way}")).to_vec();
    for line in &report.lines {
        let Some([peer, config, mode]) = line["id"].as_str().and_then(|id| {
            let parts: Vec<&str> = id.rsplitn(3, '/').collect();
            <[&str; 3]>::try_from(parts).ok().map(|[mode, config, peer]| [peer, config, mode])
        }) else {
            continue;
        };
        let Some(ms) = line["ms"].as_f64() else { continue };
        if !who.contains(&peer.to_string()) {
            who.push(peer.to_string());
        }
        times.insert((peer.to_string(), config, mode), ms);
    }
    writeln!(text, "\nMilliseconds a call; in brackets how many times faster the better of ours in 32 bits is.\n")?;
    writeln!(text, "| configuration | {} |\n| --- |{}", who.join(" | "), " --- |".repeat(who.len()))?;
    for (config, mode) in configs.iter().flat_map(|c| [(c, "infer"), (c, "train")]) {
        let of = |peer: &str| times.get(&(peer.to_string(), config.name.as_str(), mode)).copied();
        let ours = [of(&who[0]), of(&who[1])].into_iter().flatten().reduce(f64::min);
        let cell = |(at, peer): (usize, &String)| match (of(peer), ours) {
            (Some(ms), Some(ours)) if at >= WAYS.len() => format!("{ms:.3} ({:.2})", ms / ours),
            (Some(ms), _) => format!("{ms:.3}"),
            (None, _) => "not measured yet".to_string(),
        };
        let cells: Vec<String> = who.iter().enumerate().map(cell).collect();
        writeln!(text, "| {} {mode} | {} |", config.name, cells.join(" | "))?;
    }
    Ok(text)
}

/// How every configuration is run.
const WAYS: [&str; 4] = ["table", "tuned", "tuned f16-weights", "tuned f16-products"];

const MICRO: [(&str, &str); 8] = [
    ("dependent dispatches", "µs a dispatch, on the device"),
    ("recording", "µs of the host a dispatch"),
    ("multiply-adds", "GFLOP/s"),
    ("reading 2 MiB by all workgroups", "GB/s in all"),
    ("workgroup barriers", "ns a barrier"),
    ("workgroups that meet", "workgroups"),
    ("our product of large squares", "GFLOP/s"),
    ("our product of large squares by matrix units", "GFLOP/s"),
];

/// How long a GPU is kept busy before the median of what was measured counts.
const WARM_UP: Duration = Duration::from_millis(300);

/// The rate of a linear layer of equal numbers of rows, inputs and outputs.
fn large_product(device: &Device) -> Result<f64, Failure> {
    let n = if device.target().software { 256 } else { 4096 };
    let mut session = device.session()?;
    let mut g = Graph::new();
    for name in ["x", "weight"] {
        let values = (0..n * n).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect();
        session.set(name, &Tensor::new(&[n, n], values)?)?;
    }
    let (x, weight) = (g.persistent("x", [n, n])?, g.persistent("weight", [n, n])?);
    let y = g.linear(x, weight, None)?;
    g.output("y", y)?;
    let batch = Batch::dense(1, 1)?;
    let mut executable = session.load(&g, &Capacity::exactly(&batch))?;
    let mut times = Vec::new();
    let warm = Instant::now() + if device.target().software { Duration::ZERO } else { WARM_UP };
    while times.len() < 6 || Instant::now() < warm {
        let begin = Instant::now();
        session.run(&mut executable, &batch, &[])?;
        session.wait()?;
        times.push(begin.elapsed().as_secs_f64());
    }
    times.remove(0);
    times.sort_by(f64::total_cmp);
    Ok(2.0 * (n as f64).powi(3) / times[times.len() / 2] / 1e9)
}

/// What the cost model is made of, on the adapter that `device` names.
fn micro(report: &mut Report, device: &str) -> Result<(), Failure> {
    let ids: Vec<String> = MICRO[..5].iter().map(|(what, _)| format!("micro/{what}")).collect();
    if !ids.iter().any(|id| report.wants(id)) {
        return Ok(());
    }
    let gpu = Gpu::open(device)?;
    let dispatches = 1000;
    for (at, id) in ids.iter().enumerate() {
        if !report.wants(id) {
            continue;
        }
        let value = match at {
            0 => gpu.time("touch", 1, 1, dispatches)?.1 / f64::from(dispatches) * 1e6,
            1 => gpu.time("touch", 1, 1, dispatches)?.0 / f64::from(dispatches) * 1e6,
            2 => {
                // Long enough to measure, short enough for a watchdog.
                let (groups, turns) = if gpu.software { (64, 512) } else { (4096, 4096) };
                let seconds = gpu.time("multiply_add", groups, turns, 1)?.1;
                64.0 * 256.0 * f64::from(groups) * f64::from(turns) / seconds / 1e9
            }
            3 => {
                let (groups, turns) = if gpu.software { (4, 4) } else { (1024, 16) };
                let seconds = gpu.time("stream", groups, turns, 1)?.1;
                Gpu::BYTES as f64 * f64::from(groups) * f64::from(turns) / seconds / 1e9
            }
            _ => gpu.time("barriers", 1, 4096, 1)?.1 / (2.0 * 4096.0) * 1e9,
        };
        report.add(id, json!({ "value": value, "unit": MICRO[at].1 }))?;
    }
    Ok(())
}

/// A bare device, for shaders that are no part of the library.
struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    module: wgpu::ShaderModule,
    data: wgpu::Buffer,
    software: bool,
}

impl Gpu {
    const BYTES: u64 = 2 << 20;

    fn open(name: &str) -> Result<Self, Failure> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let all = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
        let software = |a: &wgpu::Adapter| a.get_info().device_type == wgpu::DeviceType::Cpu;
        let part = name.strip_prefix("gpu:").map(str::to_lowercase);
        let wanted = |a: &wgpu::Adapter| match &part {
            Some(part) => a.get_info().name.to_lowercase().contains(part.as_str()),
            None => software(a) == (name == "software"),
        };
        let adapter = all.iter().find(|a| wanted(a)).or(all.first()).ok_or("there is no adapter")?;
        let descriptor = wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..Default::default() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
        let source = wgpu::ShaderSource::Wgsl(include_str!("micro.wgsl").into());
        let descriptor = wgpu::ShaderModuleDescriptor { label: None, source };
        // SAFETY: every index of these shaders is below the size of what is bound, and every loop counts to a parameter.
        let module = unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) };
        let data = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: Self::BYTES,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Ok(Self { software: software(adapter), device, queue, module, data })
    }

    /// Median seconds of recording, and of running, so many dispatches of so many workgroups.
    fn time(&self, entry: &str, groups: u32, repeats: u32, dispatches: u32) -> Result<(f64, f64), Failure> {
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &self.module,
            entry_point: Some(entry),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let params = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 16,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let words = [repeats, (Self::BYTES / 16) as u32, 0, 0];
        self.queue.write_buffer(&params, 0, bytemuck::cast_slice(&words));
        let layout = pipeline.get_bind_group_layout(0);
        let all = [wgpu::BindGroupEntry { binding: 0, resource: params.as_entire_binding() }];
        let data = wgpu::BindGroupEntry { binding: 1, resource: self.data.as_entire_binding() };
        // Layouts derived from an entry point hold what it uses.
        let uses_params = entry != "touch";
        let entries: Vec<_> = all.into_iter().filter(|_| uses_params).chain([data]).collect();
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &layout,
            entries: &entries,
        });
        let (mut recording, mut running) = (Vec::new(), Vec::new());
        // A GPU that has idled takes a while to reach its clock.
        let warm = Instant::now() + if self.software { Duration::ZERO } else { WARM_UP };
        while recording.len() < 6 || Instant::now() < warm {
            let begin = Instant::now();
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                pass.set_pipeline(&pipeline);
                for _ in 0..dispatches {
                    pass.set_bind_group(0, &group, &[]);
                    pass.dispatch_workgroups(groups, 1, 1);
                }
            }
            let commands = encoder.finish();
            recording.push(begin.elapsed().as_secs_f64());
            let begin = Instant::now();
            self.queue.submit([commands]);
            self.device.poll(wgpu::PollType::wait_indefinitely())?;
            running.push(begin.elapsed().as_secs_f64());
        }
        let median = |mut times: Vec<f64>| {
            times.remove(0);
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        Ok((median(recording), median(running)))
    }
}
