//! Options that every subcommand that computes takes.

use clap::{Args, ValueEnum};
use mnemon::device::{Device, GpuLimits};
use mnemon::error::Result;

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Device")]
pub struct DeviceOptions {
    /// Where to compute: best, cpu, reference, gpu, gpu:SUBSTRING of an adapter's name, or software
    #[arg(long, env = "MNEMON_DEVICE", default_value = "best", value_name = "DEVICE")]
    device: String,

    /// Which limits of a GPU to use; `default` is what every adapter has, and no optional feature
    #[arg(long, env = "MNEMON_GPU_LIMITS", value_enum, default_value_t = Limits::Adapter)]
    gpu_limits: Limits,

    /// Threads of the CPU device [default: as many as the process may use]
    #[arg(long, env = "MNEMON_THREADS", value_name = "N")]
    threads: Option<usize>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Limits {
    /// WebGPU's default limits and no optional feature
    Default,
    /// All that the adapter has
    Adapter,
}

impl DeviceOptions {
    pub fn open(&self) -> Result<Device> {
        let limits = match self.gpu_limits {
            Limits::Default => GpuLimits::Default,
            Limits::Adapter => GpuLimits::Adapter,
        };
        let device = Device::parse(&self.device, limits, self.threads)?;
        log::info!("computing on {}", device.name());
        Ok(device)
    }
}
