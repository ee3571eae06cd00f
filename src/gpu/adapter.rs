//! Finding adapters and opening a device on one.

use super::buffer::Buffers;
use super::meeting;
use crate::error::{Error, Result};
use crate::scheduler::Precision;
use crate::scheduler::strategy::{AdapterReport, Executor, Limits, Target};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Which adapter is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A real GPU.
    Real,
    /// A real GPU, else a software one with a warning.
    RealOrSoftware,
    /// A software rasteriser.
    Software,
    /// The first whose name contains this, whatever the case.
    Named(String),
}

/// An open device with its queue.
pub struct Context {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    /// Where all its memory is made.
    pub buffers: Buffers,
    info: wgpu::AdapterInfo,
    limits: wgpu::Limits,
    memory: Option<u64>,
    halves: bool,
    matrix: AtomicUsize,
    resident: OnceLock<usize>,
    failure: Arc<Mutex<Option<String>>>,
}

fn keep(failure: &Mutex<Option<String>>, message: String) {
    log::error!("{message}");
    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
}

fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    // Vulkan, Metal, DX12; GL computes too, but without what the kernels rely on.
    descriptor.backends = wgpu::Backends::PRIMARY & descriptor.backends;
    wgpu::Instance::new(descriptor)
}

async fn all() -> Vec<wgpu::Adapter> {
    instance().enumerate_adapters(wgpu::Backends::PRIMARY).await
}

fn is_software(info: &wgpu::AdapterInfo) -> bool {
    info.device_type == wgpu::DeviceType::Cpu
}

/// Discrete before integrated before whatever else, so that `best` means it.
fn rank(info: &wgpu::AdapterInfo) -> u8 {
    match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

fn choose(mut adapters: Vec<wgpu::Adapter>, wanted: &Wanted) -> Result<wgpu::Adapter> {
    adapters.sort_by_key(|a| rank(&a.get_info()));
    let names: Vec<String> = adapters.iter().map(|a| a.get_info().name).collect();
    let found = |what: &str| {
        let list = if names.is_empty() { "none".to_string() } else { names.join(", ") };
        Error::device(format!("device: {what}; adapters found: {list}"))
    };
    let position = |test: &dyn Fn(&wgpu::AdapterInfo) -> bool| adapters.iter().position(|a| test(&a.get_info()));
    let at = match wanted {
        Wanted::Real => position(&|i| !is_software(i)).ok_or_else(|| found("there is no GPU"))?,
        Wanted::Software => position(&is_software).ok_or_else(|| found("there is no software GPU"))?,
        Wanted::RealOrSoftware => {
            if adapters.is_empty() {
                return Err(found("there is no GPU, nor a software one"));
            }
            if is_software(&adapters[0].get_info()) {
                log::warn!("no GPU found; using the software rasteriser {}", names[0]);
            }
            0
        }
        Wanted::Named(part) => {
            let part = part.to_lowercase();
            position(&|i| i.name.to_lowercase().contains(&part))
                .ok_or_else(|| found(&format!("no adapter's name contains `{part}`")))?
        }
    };
    Ok(adapters.swap_remove(at))
}

impl Context {
    /// Opens the wanted adapter, with WebGPU's default limits if `default_limits`, else with all it has.
    pub async fn open(wanted: Wanted, default_limits: bool) -> Result<Self> {
        let adapter = choose(all().await, &wanted)?;
        let required_limits = if default_limits { wgpu::Limits::default() } else { adapter.limits() };
        let useful = if default_limits {
            wgpu::Features::empty()
        } else {
            let matrix = wgpu::Features::SHADER_F16 | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
            let matrix = if matrix_side(&adapter) > 0 { matrix } else { wgpu::Features::empty() };
            wgpu::Features::SUBGROUP | wgpu::Features::TIMESTAMP_QUERY | matrix
        };
        // SAFETY: the experiment is that of matrix units. What is not sound about it concerns how memory that is written in
        // a dispatch is seen by others in it; those kernels let barriers alone decide, and run only after a device has shown
        // that they are right there (`Device::with_precision`).
        let experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("mnemon"),
            required_features: useful & adapter.features(),
            required_limits,
            experimental_features,
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        };
        let name = adapter.get_info().name;
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|e| Error::device(format!("device: {name} cannot be opened: {e}")).caused_by(e))?;
        Self::from_wgpu(adapter, device, queue)
    }

    /// Takes an open device, which must have at least WebGPU's default limits for compute.
    pub fn from_wgpu(adapter: wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        let (limits, least) = (device.limits(), wgpu::Limits::default());
        let wanted = [
            (
                "storage buffers",
                limits.max_storage_buffers_per_shader_stage,
                least.max_storage_buffers_per_shader_stage,
            ),
            (
                "invocations a workgroup",
                limits.max_compute_invocations_per_workgroup,
                least.max_compute_invocations_per_workgroup,
            ),
            (
                "workgroups a dimension",
                limits.max_compute_workgroups_per_dimension,
                least.max_compute_workgroups_per_dimension,
            ),
        ];
        for (what, has, needs) in wanted {
            if has < needs {
                return Err(Error::device(format!(
                    "device: expected at least {needs} {what}, the device allows {has}"
                )));
            }
        }
        let failure = Arc::new(Mutex::new(None));
        let on_error = Arc::clone(&failure);
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| keep(&on_error, format!("device: {e}"))));
        let on_loss = Arc::clone(&failure);
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                keep(&on_loss, format!("device: lost: {message}"));
            }
        });
        let buffers = Buffers::new(device.clone());
        let memory = vulkan_memory(&adapter);
        let features =
            wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        let matrix = if device.features().contains(features) { matrix_side(&adapter) } else { 0 };
        let halves = adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::SHADER_F16_IN_F32);
        Ok(Self {
            memory,
            halves,
            matrix: AtomicUsize::new(matrix),
            resident: OnceLock::new(),
            buffers,
            info: adapter.get_info(),
            limits,
            device,
            queue,
            failure,
        })
    }

    /// Opens the same adapter again, with the same limits.
    pub async fn reopen(&self) -> Result<Self> {
        Self::open(Wanted::Named(self.info.name.clone()), self.limits == wgpu::Limits::default()).await
    }

    /// Destroys the device, as if it had been lost.
    pub fn lose(&self) {
        keep(&self.failure, "device: lost: it was destroyed".to_string());
        self.device.destroy();
    }

    /// Whether it is a software rasteriser.
    pub fn is_software(&self) -> bool {
        is_software(&self.info)
    }

    /// Whether its memory is the host's.
    pub fn shares_host_memory(&self) -> bool {
        use wgpu::DeviceType::{Cpu, IntegratedGpu};
        self.is_software() || matches!(self.info.device_type, Cpu | IntegratedGpu)
    }

    /// Whether kernels can unpack weights in 16 bits.
    pub fn has_halves(&self) -> bool {
        self.halves
    }

    /// Its matrix units are not to be used.
    pub fn distrust_matrices(&self) {
        self.matrix.store(0, Ordering::Relaxed);
    }

    /// Whether Vulkan runs it.
    pub(super) fn is_vulkan(&self) -> bool {
        self.info.backend == wgpu::Backend::Vulkan
    }

    /// Finds out how many workgroups run at a time and can meet, once; from then on the target says so. Blocks; for
    /// `device.rs` alone.
    pub fn prove_meetings(&self) {
        self.resident.get_or_init(|| {
            let resident = meeting::resident(self).unwrap_or_else(|e| {
                log::warn!("device: whether workgroups can meet was not found out: {e}");
                0
            });
            if resident == 0 {
                log::warn!("device: workgroups of {} do not meet; grid is not used there", self.describe());
            }
            resident
        });
    }

    /// Bytes of its largest heap, where the driver tells.
    pub fn memory(&self) -> Option<u64> {
        self.memory
    }

    /// Its name, backend and driver.
    pub fn describe(&self) -> String {
        format!("{} ({:?}, {})", self.info.name, self.info.backend, self.info.driver_info)
    }

    /// What programs for it are compiled for.
    pub fn target(&self) -> Target {
        Target {
            executor: Executor::Gpu,
            limits: Limits {
                buffer: self.limits.max_buffer_size,
                // Kernels count values in 32 bits.
                binding: self.limits.max_storage_buffer_binding_size.min(1 << 31),
                // Two uniforms are bound beside them, and Metal counts all together.
                storage_bindings: self
                    .limits
                    .max_storage_buffers_per_shader_stage
                    .min(self.limits.max_buffers_and_acceleration_structures_per_shader_stage.saturating_sub(2))
                    as usize,
                subgroup: if self.device.features().contains(wgpu::Features::SUBGROUP) {
                    self.info.subgroup_min_size as usize
                } else {
                    0
                },
                // The largest parameters are 32 fields.
                uniform: u64::from(self.limits.min_uniform_buffer_offset_alignment).max(128),
                invocations: self
                    .limits
                    .max_compute_invocations_per_workgroup
                    .min(self.limits.max_compute_workgroup_size_x) as usize,
                workgroup: self.limits.max_compute_workgroup_storage_size as usize,
                resident: self.resident.get().copied().unwrap_or(0),
                matrix: self.matrix.load(Ordering::Relaxed),
            },
            software: self.is_software(),
            unified: self.shares_host_memory(),
            precision: Precision::F32,
        }
    }

    /// Workgroups that one dimension of a dispatch may have.
    pub(super) fn workgroups(&self) -> u32 {
        self.limits.max_compute_workgroups_per_dimension
    }

    /// Whether dispatches can be timed.
    pub(super) fn has_timestamps(&self) -> bool {
        self.device.features().contains(wgpu::Features::TIMESTAMP_QUERY)
    }

    /// The first failure that the device reported, if any.
    pub(super) fn check(&self) -> Result<()> {
        match self.failure.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(message) => Err(Error::device(message)),
            None => Ok(()),
        }
    }

    /// Waits until `submission`, or all there is, is done. The only call here that blocks; for `device.rs` alone.
    pub fn block(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        self.device
            .poll(wgpu::PollType::Wait { submission_index: submission, timeout: None })
            .map_err(|e| Error::device(format!("device: waiting failed: {e}")))?;
        self.check()
    }
}

/// Rows and columns of the largest square of halves that its matrix units multiply into floats; 0 where they do not.
fn matrix_side(adapter: &wgpu::Adapter) -> usize {
    use wgpu::CooperativeScalarType::{F16, F32};
    let square = |p: &wgpu::CooperativeMatrixProperties| p.m_size == p.n_size && p.n_size == p.k_size;
    let all = adapter.cooperative_matrix_properties();
    let usable = all.iter().filter(|p| square(p) && p.ab_type == F16 && p.cr_type == F32);
    usable.map(|p| p.m_size as usize).filter(|side| matches!(side, 8 | 16)).max().unwrap_or(0)
}

/// Bytes of the largest heap that is the device's own, as Vulkan tells; nothing on other backends.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "windows")))]
fn vulkan_memory(_: &wgpu::Adapter) -> Option<u64> {
    None
}

/// Bytes of the largest heap that is the device's own, as Vulkan tells; nothing on other backends.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "windows"))]
fn vulkan_memory(adapter: &wgpu::Adapter) -> Option<u64> {
    // SAFETY: the handles are only read from, and only while `adapter` keeps them alive.
    let heaps = unsafe {
        let hal = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = hal.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(hal.raw_physical_device())
    };
    let heaps = &heaps.memory_heaps[..heaps.memory_heap_count as usize];
    // DEVICE_LOCAL is the first bit of a heap's flags.
    heaps.iter().filter(|heap| heap.flags.as_raw() & 1 != 0).map(|heap| heap.size).max()
}

/// What is known of every adapter.
pub async fn adapters() -> Vec<AdapterReport> {
    let mut all = all().await;
    all.sort_by_key(|a| rank(&a.get_info()));
    all.iter().map(report).collect()
}

fn report(adapter: &wgpu::Adapter) -> AdapterReport {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    AdapterReport {
        software: is_software(&info),
        backend: format!("{:?}", info.backend),
        kind: format!("{:?}", info.device_type),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
        name: info.name,
        limits: vec![
            ("storage buffers a shader", u64::from(limits.max_storage_buffers_per_shader_stage)),
            ("storage binding, bytes", limits.max_storage_buffer_binding_size),
            ("buffer, bytes", limits.max_buffer_size),
            ("invocations a workgroup", u64::from(limits.max_compute_invocations_per_workgroup)),
            ("workgroup memory, bytes", u64::from(limits.max_compute_workgroup_storage_size)),
            ("workgroups a dimension", u64::from(limits.max_compute_workgroups_per_dimension)),
        ],
        features: [
            ("f16", wgpu::Features::SHADER_F16),
            ("subgroups", wgpu::Features::SUBGROUP),
            ("timestamps", wgpu::Features::TIMESTAMP_QUERY),
            ("immediates", wgpu::Features::IMMEDIATES),
            ("cooperative matrices", wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
        ]
        .into_iter()
        .map(|(name, feature)| (name, features.contains(feature)))
        .collect(),
    }
}
