//! Devices and sessions: the only place that names the executors, and the only place that blocks on a GPU.

mod budget;
#[cfg(feature = "gpu")]
mod exact;
mod registry;
mod session;
mod tuner;

pub use crate::scheduler::strategy::AdapterReport;
pub use budget::{Budget, Source};
pub use session::{Executable, Reading, Session};
pub use tuner::{FIRST_USE, Finding, Findings, Tuner};

use crate::error::{Error, Result};
#[cfg(feature = "gpu")]
use crate::gpu;
use crate::scheduler::{Kernels, Precision, Recurrence, Target};
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
    memory: Option<u64>,
    kernels: Kernels,
    precision: Precision,
    tuner: Option<Arc<Tuner>>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.name())
    }
}

impl Device {
    fn of(choice: Choice) -> Self {
        Self { choice, memory: None, kernels: Kernels::default(), precision: Precision::F32, tuner: None }
    }

    /// A real GPU if there is one, else the CPU; never a software rasteriser.
    pub fn best() -> Result<Self> {
        Self::parse("best", GpuLimits::Adapter, None)
    }

    /// The CPU with as many threads as the process may use.
    pub fn cpu() -> Self {
        Self::of(Choice::Cpu(None))
    }

    /// The CPU with `threads` threads.
    pub fn cpu_with_threads(threads: usize) -> Result<Self> {
        if threads == 0 {
            return Err(Error::argument("device: threads must be at least 1, got 0"));
        }
        Ok(Self::of(Choice::Cpu(Some(threads))))
    }

    /// The reference: plain loops, for checking.
    pub fn reference() -> Self {
        Self::of(Choice::Reference)
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
        let cpu = || {
            crate::cpu::instructions()?;
            threads.map_or_else(|| Ok(Self::cpu()), Self::cpu_with_threads)
        };
        match text {
            "cpu" => cpu(),
            "reference" => Ok(Self::reference()),
            #[cfg(feature = "gpu")]
            "best" => match gpu::Context::open(gpu::Wanted::Real, limits == GpuLimits::Default).await {
                Ok(context) => Ok(Self::of(Choice::Gpu(Arc::new(context)))),
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
                Ok(Self::of(Choice::Gpu(Arc::new(context))))
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
        Ok(Self::of(Choice::Gpu(Arc::new(gpu::Context::from_wgpu(adapter, device, queue)?))))
    }

    /// The same device opened again, with the same settings: what goes on where this one is lost.
    pub fn reopen(self) -> Result<Self> {
        #[cfg(feature = "gpu")]
        if let Choice::Gpu(context) = &self.choice {
            let context = Arc::new(block_on(context.reopen())?);
            if self.kernels.meet() {
                context.prove_meetings();
            }
            return Self { choice: Choice::Gpu(context), ..self.clone() }.with_precision(self.precision);
        }
        Ok(self)
    }

    /// Where work goes on once this device has failed, the first that does not fail too: the same opened again, then the CPU.
    pub fn elsewhere(&self) -> impl Iterator<Item = Result<Self>> + use<> {
        let (this, is_cpu) = (self.clone(), self.kind() == DeviceKind::Cpu);
        // A budget is a promise wherever the work is done.
        let cpu = Self { memory: self.memory, ..Self::cpu() };
        std::iter::once_with(move || this.reopen()).chain((!is_cpu).then_some(Ok(cpu)))
    }

    /// Refuses allocations beyond `bytes` in all on a GPU, as a device does that has no more; for tests of what happens then.
    pub fn refuse_beyond(&self, bytes: u64) {
        let _ = bytes;
        #[cfg(feature = "gpu")]
        if let Choice::Gpu(context) = &self.choice {
            context.buffers.meter().limit(bytes);
        }
    }

    /// Destroys a GPU's device, as if it had been lost, for everyone who shares it; for tests of what happens then.
    pub fn lose(&self) {
        #[cfg(feature = "gpu")]
        if let Choice::Gpu(context) = &self.choice {
            context.lose();
        }
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
                let instructions = crate::cpu::instructions().map_or(String::new(), |name| format!(", {name}"));
                format!("cpu, {threads} threads{instructions}")
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
            Choice::Gpu(context) => Target { precision: self.precision, ..context.target() },
        }
    }

    /// A session: persistent values, and programs over them.
    pub fn session(&self) -> Result<Session> {
        Session::open(self)
    }

    /// The same device, whose sessions hold at most `bytes`.
    #[must_use]
    pub fn with_memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// The same device, which shows how many of its workgroups run at a time and can meet, so that a tuner may pick
    /// [`Recurrence::Grid`]. Nothing on one that has no Vulkan.
    #[must_use]
    pub fn with_grid(self) -> Self {
        #[cfg(feature = "gpu")]
        if let Choice::Gpu(context) = &self.choice {
            context.prove_meetings();
        }
        self
    }

    /// The same device, whose sessions compute so. Matrix units are used once they have multiplied numbers that halves hold
    /// exactly without an error. An error where fewer than 32 bits are asked for and it is not a GPU, or one without halves.
    pub fn with_precision(mut self, precision: Precision) -> Result<Self> {
        let can = match &self.choice {
            Choice::Cpu(_) | Choice::Reference => false,
            #[cfg(feature = "gpu")]
            Choice::Gpu(context) => context.has_halves(),
        };
        if precision != Precision::F32 && !can {
            return Err(Error::unsupported(format!(
                "device: precision {precision} is for GPUs that unpack halves, {} computes in 32 bits",
                self.name()
            )));
        }
        self.precision = precision;
        #[cfg(feature = "gpu")]
        if let Choice::Gpu(context) = &self.choice
            && self.target().matrix() > 0
            && !exact::multiplies_exactly(&self).unwrap_or_else(|e| {
                log::warn!("device: whether matrix units are right was not found out: {e}");
                false
            })
        {
            log::warn!("device: matrix units of {} are not right; they are not used", context.describe());
            context.distrust_matrices();
        }
        Ok(self)
    }

    /// In how many bits its sessions hold weights where kernels read them.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The same device, whose sessions run layers by these strategies where they can.
    #[must_use]
    pub fn with_kernels(mut self, kernels: Kernels) -> Self {
        if kernels.meet() {
            self = self.with_grid();
        }
        self.kernels = kernels;
        self
    }

    /// Which strategies its sessions run layers by: those given, and those a tuner has found.
    pub fn kernels(&self) -> Kernels {
        let mut kernels = self.kernels.clone();
        self.tuner.iter().for_each(|tuner| tuner.extend(&mut kernels));
        kernels
    }

    /// The same device, whose sessions let `tuner` measure each new kind of layer before they run it, and use what it found.
    /// Only GPUs have strategies to choose from.
    #[must_use]
    pub fn with_tuner(mut self, tuner: Arc<Tuner>) -> Self {
        if tuner.findings().layers.iter().any(|f| matches!(f.pick, Recurrence::Grid { .. })) {
            self = self.with_grid();
        }
        self.tuner = Some(tuner);
        self
    }

    /// The same device without a tuner.
    #[must_use]
    pub(crate) fn untuned(mut self) -> Self {
        self.tuner = None;
        self
    }

    /// The tuner, if it has one.
    pub fn tuner(&self) -> Option<&Arc<Tuner>> {
        self.tuner.as_ref()
    }

    /// What a session on it may hold: what [`Self::with_memory`] said, else the memory of a GPU that tells it, else half of
    /// the host's for what computes there.
    pub fn budget(&self) -> Budget {
        if let Some(bytes) = self.memory {
            return Budget { bytes, source: Source::Given };
        }
        match &self.choice {
            Choice::Cpu(_) | Choice::Reference => Budget::host(),
            #[cfg(feature = "gpu")]
            Choice::Gpu(context) if context.shares_host_memory() => Budget::host(),
            #[cfg(feature = "gpu")]
            Choice::Gpu(context) => Budget::device(context.memory()),
        }
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
