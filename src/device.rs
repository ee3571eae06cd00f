//! Devices and sessions: the only place that names the executors, and the only place that blocks on a GPU.

use crate::cpu::{self, Cpu};
use crate::error::{Error, Result};
#[cfg(feature = "gpu")]
use crate::gpu::{self, Gpu};
use crate::graph::Graph;
use crate::params::{DType, Tensor, admit};
use crate::reference::{self, Reference};
use crate::scheduler::program::{Bound, Storage};
pub use crate::scheduler::strategy::AdapterReport;
use crate::scheduler::{Batch, Capacity, CompileOptions, Program, Target, compile};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which limits and features of a GPU to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GpuLimits {
    /// WebGPU's default limits and no optional feature: what every adapter has.
    Default,
    /// All that the adapter has.
    #[default]
    Adapter,
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// The threaded CPU executor.
    Cpu,
    /// Plain loops: slow, and the definition of correct.
    Reference,
    /// wgpu on a real GPU.
    Gpu,
    /// wgpu on a software rasteriser.
    Software,
}

#[derive(Clone)]
enum Choice {
    Cpu(Option<usize>),
    Reference,
    #[cfg(feature = "gpu")]
    Gpu(Arc<gpu::Context>),
}

/// Something that computes. Cheap to clone; opens [`Session`]s.
#[derive(Clone)]
pub struct Device {
    choice: Choice,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.name())
    }
}

impl Device {
    /// A real GPU if there is one, else the CPU; never a software rasteriser.
    pub fn best() -> Result<Self> {
        Self::parse("best", GpuLimits::Adapter, None)
    }

    /// The CPU with as many threads as the process may use.
    pub fn cpu() -> Self {
        Self { choice: Choice::Cpu(None) }
    }

    /// The CPU with `threads` threads.
    pub fn cpu_with_threads(threads: usize) -> Result<Self> {
        if threads == 0 {
            return Err(Error::argument("device: threads must be at least 1, got 0"));
        }
        Ok(Self { choice: Choice::Cpu(Some(threads)) })
    }

    /// The reference: plain loops, for checking.
    pub fn reference() -> Self {
        Self { choice: Choice::Reference }
    }

    /// A real GPU, else a software one with a warning in the log.
    pub fn gpu() -> Result<Self> {
        Self::parse("gpu", GpuLimits::Adapter, None)
    }

    /// The first adapter whose name contains `name`, whatever the case of its letters.
    pub fn gpu_named(name: &str) -> Result<Self> {
        Self::parse(&format!("gpu:{name}"), GpuLimits::Adapter, None)
    }

    /// A software GPU: lavapipe, SwiftShader or WARP.
    pub fn software() -> Result<Self> {
        Self::parse("software", GpuLimits::Adapter, None)
    }

    /// The device that `best`, `cpu`, `reference`, `gpu`, `gpu:SUBSTRING` or `software` names. `threads` is for the CPU.
    pub fn parse(text: &str, limits: GpuLimits, threads: Option<usize>) -> Result<Self> {
        block_on(Self::parse_async(text, limits, threads))
    }

    /// [`Self::parse`] without blocking, for hosts that cannot.
    pub async fn parse_async(text: &str, limits: GpuLimits, threads: Option<usize>) -> Result<Self> {
        let cpu = || threads.map_or_else(|| Ok(Self::cpu()), Self::cpu_with_threads);
        match text {
            "cpu" => cpu(),
            "reference" => Ok(Self::reference()),
            #[cfg(feature = "gpu")]
            "best" => match gpu::Context::open(gpu::Wanted::Real, limits == GpuLimits::Default).await {
                Ok(context) => Ok(Self { choice: Choice::Gpu(Arc::new(context)) }),
                Err(_) => cpu(),
            },
            #[cfg(feature = "gpu")]
            _ if text == "gpu" || text == "software" || text.starts_with("gpu:") => {
                let wanted = match text {
                    "gpu" => gpu::Wanted::RealOrSoftware,
                    "software" => gpu::Wanted::Software,
                    _ => gpu::Wanted::Named(text["gpu:".len()..].to_string()),
                };
                let context = gpu::Context::open(wanted, limits == GpuLimits::Default).await?;
                Ok(Self { choice: Choice::Gpu(Arc::new(context)) })
            }
            #[cfg(not(feature = "gpu"))]
            "best" => {
                let _ = limits;
                cpu()
            }
            #[cfg(not(feature = "gpu"))]
            _ if text == "gpu" || text == "software" || text.starts_with("gpu:") => {
                Err(Error::device("device: this build has no GPU executor (cargo feature `gpu`)"))
            }
            _ => Err(Error::argument(format!(
                "device: expected best, cpu, reference, gpu, gpu:SUBSTRING or software, got `{text}`"
            ))),
        }
    }

    /// [`Self::best`] without blocking.
    pub async fn best_async() -> Result<Self> {
        Self::parse_async("best", GpuLimits::Adapter, None).await
    }

    /// [`Self::gpu`] without blocking.
    pub async fn gpu_async() -> Result<Self> {
        Self::parse_async("gpu", GpuLimits::Adapter, None).await
    }

    /// [`Self::gpu_named`] without blocking.
    pub async fn gpu_named_async(name: &str) -> Result<Self> {
        Self::parse_async(&format!("gpu:{name}"), GpuLimits::Adapter, None).await
    }

    /// [`Self::software`] without blocking.
    pub async fn software_async() -> Result<Self> {
        Self::parse_async("software", GpuLimits::Adapter, None).await
    }

    /// A program's own wgpu device. It must have been made with at least WebGPU's default limits.
    #[cfg(feature = "gpu")]
    pub fn from_wgpu(adapter: wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        Ok(Self { choice: Choice::Gpu(Arc::new(gpu::Context::from_wgpu(adapter, device, queue)?)) })
    }

    /// What it is.
    pub fn kind(&self) -> DeviceKind {
        match &self.choice {
            Choice::Cpu(_) => DeviceKind::Cpu,
            Choice::Reference => DeviceKind::Reference,
            #[cfg(feature = "gpu")]
            Choice::Gpu(context) if context.is_software() => DeviceKind::Software,
            #[cfg(feature = "gpu")]
            Choice::Gpu(_) => DeviceKind::Gpu,
        }
    }

    /// `cpu`, `reference`, `gpu` or `software`.
    pub fn label(&self) -> &'static str {
        match self.kind() {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Reference => "reference",
            DeviceKind::Gpu => "gpu",
            DeviceKind::Software => "software",
        }
    }

    /// Its name and, for a GPU, its backend and driver.
    pub fn name(&self) -> String {
        match &self.choice {
            Choice::Cpu(threads) => {
                let threads = threads.or(std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
                format!("cpu, {threads} threads")
            }
            Choice::Reference => "reference".to_string(),
            #[cfg(feature = "gpu")]
            Choice::Gpu(context) => context.describe(),
        }
    }

    /// What programs for it are compiled for.
    pub fn target(&self) -> Target {
        match &self.choice {
            Choice::Cpu(_) => Target::CPU,
            Choice::Reference => Target::REFERENCE,
            #[cfg(feature = "gpu")]
            Choice::Gpu(context) => context.target(),
        }
    }

    /// A session: persistent values, and programs over them.
    pub fn session(&self) -> Result<Session> {
        let backend = match &self.choice {
            Choice::Cpu(threads) => Backend::Cpu(Cpu::new(*threads)?),
            Choice::Reference => Backend::Reference(Reference::new()),
            #[cfg(feature = "gpu")]
            Choice::Gpu(context) => Backend::Gpu(Box::new(Gpu::new(Arc::clone(context))?)),
        };
        Ok(Session { device: self.clone(), backend, registry: BTreeMap::new() })
    }

    /// What is known of every adapter, one entry each; empty without the feature `gpu`.
    pub fn adapters() -> Vec<AdapterReport> {
        #[cfg(feature = "gpu")]
        return block_on(gpu::adapters());
        #[cfg(not(feature = "gpu"))]
        Vec::new()
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    #[cfg(feature = "gpu")]
    return pollster::block_on(future);
    #[cfg(not(feature = "gpu"))]
    {
        // Without a GPU nothing here ever waits.
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut future = std::pin::pin!(future);
        loop {
            if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
        }
    }
}

enum Backend {
    Cpu(Cpu),
    Reference(Reference<f32>),
    #[cfg(feature = "gpu")]
    Gpu(Box<Gpu>),
}

enum Prepared {
    Cpu(cpu::Prepared),
    Reference(reference::Prepared<f32>),
    #[cfg(feature = "gpu")]
    Gpu(Box<gpu::Prepared>),
}

/// A program made ready by one session.
pub struct Executable {
    program: Arc<Program>,
    prepared: Prepared,
}

impl Executable {
    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }
}

/// Values that outlive runs, on one device, and the programs over them.
pub struct Session {
    device: Device,
    backend: Backend,
    registry: BTreeMap<String, (Vec<usize>, DType)>,
}

/// Calls `$body` with `$b` bound to whichever executor a session has.
macro_rules! with_backend {
    ($backend:expr, $b:ident => $body:expr) => {
        match $backend {
            Backend::Cpu($b) => $body,
            Backend::Reference($b) => $body,
            #[cfg(feature = "gpu")]
            Backend::Gpu($b) => $body,
        }
    };
}

impl Session {
    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The names of all persistent values.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.registry.keys().map(String::as_str)
    }

    /// Makes the persistent value `name` of zeros, or zeroes it where it exists with that shape.
    pub fn zero(&mut self, name: &str, shape: &[usize], dtype: DType) -> Result<()> {
        if self.registry.get(name) == Some(&(shape.to_vec(), dtype)) {
            let len = shape.iter().product();
            let zeros = match dtype {
                DType::F32 => Tensor::zeros(shape),
                DType::U32 => Tensor::from_u32(shape, vec![0; len])?,
            };
            return with_backend!(&mut self.backend, b => b.write(name, &zeros));
        }
        if self.registry.contains_key(name) {
            return Err(Error::shape(format!("session: `{name}` exists with another shape than {shape:?}")));
        }
        self.declare(name, shape, dtype)
    }

    fn declare(&mut self, name: &str, shape: &[usize], dtype: DType) -> Result<()> {
        admit(name, shape)?;
        #[allow(clippy::let_unit_value, reason = "the executors differ in whether declaring can fail")]
        match &mut self.backend {
            Backend::Cpu(b) => b.declare(name, shape, dtype),
            Backend::Reference(b) => b.declare(name, shape, dtype),
            #[cfg(feature = "gpu")]
            Backend::Gpu(b) => b.declare(name, shape, dtype)?,
        };
        self.registry.insert(name.to_string(), (shape.to_vec(), dtype));
        Ok(())
    }

    /// Gives the persistent value `name` its contents; makes it where it does not exist. Where it exists it takes a
    /// tensor of its shape, or one with fewer rows.
    pub fn set(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        match self.registry.get(name) {
            None => self.declare(name, tensor.shape(), tensor.dtype())?,
            Some((shape, dtype)) => {
                let fits = *dtype == tensor.dtype()
                    && shape.len() == tensor.shape().len()
                    && shape.first() >= tensor.shape().first()
                    && shape.get(1..) == tensor.shape().get(1..);
                if !fits {
                    return Err(Error::shape(format!(
                        "session: `{name}` holds {dtype:?} of {shape:?}, got {:?} of {:?}",
                        tensor.dtype(),
                        tensor.shape()
                    )));
                }
            }
        }
        with_backend!(&mut self.backend, b => b.write(name, tensor))
    }

    /// The contents of the persistent value `name`. Waits for the device.
    pub fn get(&mut self, name: &str) -> Result<Tensor> {
        self.known(name)?;
        match &mut self.backend {
            Backend::Cpu(b) => b.read(name),
            Backend::Reference(b) => b.read(name),
            #[cfg(feature = "gpu")]
            Backend::Gpu(b) => arrive(b.begin_read(name)?),
        }
    }

    /// [`Self::get`] without blocking.
    pub async fn get_async(&mut self, name: &str) -> Result<Tensor> {
        self.known(name)?;
        match &mut self.backend {
            Backend::Cpu(b) => b.read(name),
            Backend::Reference(b) => b.read(name),
            #[cfg(feature = "gpu")]
            Backend::Gpu(b) => b.begin_read(name)?.await,
        }
    }

    /// Begins to read the persistent value `name` as it is after all runs so far, without waiting.
    pub fn begin_get(&mut self, name: &str) -> Result<Reading> {
        self.known(name)?;
        Ok(match &mut self.backend {
            Backend::Cpu(b) => Reading(Pending::Ready(b.read(name)?)),
            Backend::Reference(b) => Reading(Pending::Ready(b.read(name)?)),
            #[cfg(feature = "gpu")]
            Backend::Gpu(b) => Reading(Pending::Gpu(b.begin_read(name)?)),
        })
    }

    fn known(&self, name: &str) -> Result<()> {
        if self.registry.contains_key(name) {
            return Ok(());
        }
        Err(Error::argument(format!("session: there is no value `{name}`")))
    }

    /// Compiles `graph` for batches up to `capacity` and makes it ready. Persistent values with a batch or row size
    /// are made of zeros where they do not exist; others must have been [`set`](Self::set).
    pub fn load(&mut self, graph: &Graph, capacity: &Capacity) -> Result<Executable> {
        self.load_with(graph, &CompileOptions::new(capacity))
    }

    /// [`Self::load`] with further options.
    pub fn load_with(&mut self, graph: &Graph, options: &CompileOptions) -> Result<Executable> {
        self.load_program(compile(graph, self.device.target(), options)?)
    }

    /// Makes a program ready that was compiled elsewhere for this session's device.
    pub fn load_program(&mut self, program: Program) -> Result<Executable> {
        let program = Arc::new(program);
        for value in program.values.iter().filter(|v| v.storage == Storage::Persistent) {
            let sizes = program.capacity.resolve(&value.shape)?;
            let fixed = value.shape.fixed_len().is_some();
            match self.registry.get(&value.name) {
                None if fixed => {
                    return Err(Error::argument(format!("session: `{}` has not been given a value", value.name)));
                }
                None => self.declare(&value.name, &sizes, value.dtype)?,
                Some((shape, dtype)) => {
                    let rows = if fixed { shape.first() == sizes.first() } else { shape.first() >= sizes.first() };
                    if !rows || shape.get(1..) != sizes.get(1..) || *dtype != value.dtype {
                        return Err(Error::shape(format!(
                            "session: `{}` holds {dtype:?} of {shape:?}, the program needs {:?} of {sizes:?}",
                            value.name, value.dtype
                        )));
                    }
                }
            }
        }
        if matches!(self.backend, Backend::Cpu(_)) {
            let bytes = usize::try_from(program.placement.bytes()).unwrap_or(usize::MAX);
            admit("the program's values", &[bytes.div_ceil(4)])?;
        }
        let prepared = match &mut self.backend {
            Backend::Cpu(b) => Prepared::Cpu(b.prepare(&program)?),
            Backend::Reference(b) => Prepared::Reference(b.prepare(&program)?),
            #[cfg(feature = "gpu")]
            Backend::Gpu(b) => Prepared::Gpu(Box::new(b.prepare(&program)?)),
        };
        Ok(Executable { program, prepared })
    }

    /// Runs a program over `batch` with its inputs by name, packed as [`Batch::pack`] packs them. Returns as soon as
    /// the device has what it needs.
    pub fn run(&mut self, executable: &mut Executable, batch: &Batch, inputs: &[(&str, &Tensor)]) -> Result<()> {
        let program = &executable.program;
        program.capacity.admits(batch)?;
        if let Some((name, _)) = inputs.iter().find(|(n, _)| !program.inputs.iter().any(|(m, _)| m == n)) {
            let names: Vec<&str> = program.inputs.iter().map(|i| i.0.as_str()).collect();
            return Err(Error::argument(format!("session: the program has inputs {names:?}, got `{name}`")));
        }
        let mut ordered = Vec::with_capacity(program.inputs.len());
        for (name, value) in &program.inputs {
            let Some((_, tensor)) = inputs.iter().find(|(n, _)| n == name) else {
                return Err(Error::argument(format!("session: input `{name}` is missing")));
            };
            let wanted = &program.values[*value];
            let sizes = batch.resolve(&wanted.shape)?;
            if tensor.shape() != sizes || tensor.dtype() != wanted.dtype {
                return Err(Error::shape(format!(
                    "session: input `{name}` must be {:?} of {} = {sizes:?}, got {:?} of {:?}",
                    wanted.dtype,
                    wanted.shape,
                    tensor.dtype(),
                    tensor.shape()
                )));
            }
            for bound in program.bounds.iter().filter(|b| b.value == *value) {
                check_bound(name, tensor, bound)?;
            }
            ordered.push(*tensor);
        }
        match (&mut self.backend, &mut executable.prepared) {
            (Backend::Cpu(b), Prepared::Cpu(p)) => b.run(p, batch, &ordered),
            (Backend::Reference(b), Prepared::Reference(p)) => b.run(p, batch, &ordered),
            #[cfg(feature = "gpu")]
            (Backend::Gpu(b), Prepared::Gpu(p)) => {
                b.run(p, batch, &ordered)?;
                // The host keeps a few runs ahead and no more, so that what it has staged stays bounded.
                while let Some(oldest) = b.crowded() {
                    b.context().block(Some(oldest))?;
                }
                Ok(())
            }
            _ => Err(Error::argument("session: the program was made ready by a session on another device")),
        }
    }

    /// The output `name` of the program's last run. Waits for the device.
    pub fn output(&mut self, executable: &Executable, name: &str) -> Result<Tensor> {
        let at = output_index(executable, name)?;
        match (&mut self.backend, &executable.prepared) {
            (Backend::Cpu(b), Prepared::Cpu(p)) => b.output(p, at),
            (Backend::Reference(b), Prepared::Reference(p)) => b.output(p, at),
            #[cfg(feature = "gpu")]
            (Backend::Gpu(b), Prepared::Gpu(p)) => arrive(b.begin_output(p, at)?),
            _ => Err(Error::argument("session: the program was made ready by a session on another device")),
        }
    }

    /// [`Self::output`] without blocking.
    pub async fn output_async(&mut self, executable: &Executable, name: &str) -> Result<Tensor> {
        let at = output_index(executable, name)?;
        match (&mut self.backend, &executable.prepared) {
            (Backend::Cpu(b), Prepared::Cpu(p)) => b.output(p, at),
            (Backend::Reference(b), Prepared::Reference(p)) => b.output(p, at),
            #[cfg(feature = "gpu")]
            (Backend::Gpu(b), Prepared::Gpu(p)) => b.begin_output(p, at)?.await,
            _ => Err(Error::argument("session: the program was made ready by a session on another device")),
        }
    }

    /// Waits until the device has done all it was given.
    pub fn wait(&mut self) -> Result<()> {
        #[cfg(feature = "gpu")]
        if let Backend::Gpu(b) = &mut self.backend {
            return b.context().block(None);
        }
        Ok(())
    }

    /// Pipelines, bind groups and buffers made so far, in this order; zeros without a GPU.
    pub fn created(&self) -> [u64; 3] {
        #[cfg(feature = "gpu")]
        if let Backend::Gpu(b) = &self.backend {
            return b.created();
        }
        [0; 3]
    }
}

fn output_index(executable: &Executable, name: &str) -> Result<usize> {
    executable.program.outputs.iter().position(|(n, _)| n == name).ok_or_else(|| {
        let names: Vec<&str> = executable.program.outputs.iter().map(|o| o.0.as_str()).collect();
        Error::argument(format!("session: the program has outputs {names:?}, not `{name}`"))
    })
}

fn check_bound(name: &str, tensor: &Tensor, bound: &Bound) -> Result<()> {
    let bad = tensor.u32s()?.iter().position(|&v| v as usize >= bound.below && Some(v) != bound.except);
    match bad {
        None => Ok(()),
        Some(at) => Err(Error::data(format!(
            "{}: input `{name}` has {} at position {at}, expected integers below {}",
            bound.reader,
            tensor.u32s()?[at],
            bound.below
        ))),
    }
}

/// Waits for a value on its way from a GPU.
#[cfg(feature = "gpu")]
fn arrive(mut reading: gpu::Reading) -> Result<Tensor> {
    reading.context().block(None)?;
    reading.take()
}

enum Pending {
    Ready(Tensor),
    #[cfg(feature = "gpu")]
    Gpu(gpu::Reading),
}

/// A value on its way from the device.
pub struct Reading(Pending);

impl Reading {
    /// Whether [`Self::wait`] would return at once.
    pub fn is_ready(&mut self) -> bool {
        match &mut self.0 {
            Pending::Ready(_) => true,
            #[cfg(feature = "gpu")]
            Pending::Gpu(r) => r.is_ready(),
        }
    }

    /// The value.
    pub fn wait(self) -> Result<Tensor> {
        match self.0 {
            Pending::Ready(tensor) => Ok(tensor),
            #[cfg(feature = "gpu")]
            Pending::Gpu(r) => arrive(r),
        }
    }
}
