//! Options that every subcommand that computes takes.

use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use mnemon::device::{Device, DeviceKind, FIRST_USE, GpuLimits, Tuner};
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::scheduler::{Family, Kernels, Precision};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

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

    /// How a GPU runs the recurrence of each layer that can be run so [default: what is picked for it, else a fixed table]
    #[arg(long, env = "MNEMON_STRATEGY", value_name = "STRATEGY", value_parser = strategies())]
    strategy: Option<String>,

    /// Let the tuner try workgroups that wait for each other, which no standard promises to work; a device shows at the start
    /// whether they do, and what does not meet is resumed
    #[arg(long, env = "MNEMON_GRID")]
    grid: bool,

    /// In how many bits a GPU multiplies: f16-weights reads weights in 16, f16-products rounds both operands where there are matrix
    /// units; sums, states and what is stored have 32
    #[arg(long, env = "MNEMON_PRECISION", default_value = "f32", value_parser = precisions())]
    precision: String,

    /// Whether to measure each new kind of layer before it runs, for about 2 seconds a model, and to use what was measured
    /// before; auto does on real GPUs
    #[arg(long, env = "MNEMON_TUNE", value_enum, default_value_t = Tune::Auto)]
    tune: Tune,

    /// Where measurements are remembered [default: mnemon/kernels.json in the user's folder for caches]
    #[arg(long, env = "MNEMON_TUNED", value_name = "FILE")]
    tuned: Option<PathBuf>,

    /// Most memory to hold on the device, as 900MiB or 2GiB [default: the device's, half of the host's where it computes]
    #[arg(long, env = "MNEMON_MEMORY", value_name = "BYTES", value_parser = bytes)]
    memory: Option<u64>,
}

/// A number of bytes, perhaps with a unit.
fn bytes(text: &str) -> std::result::Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024f64.powi(2),
        "g" | "gib" => 1024f64.powi(3),
        "t" | "tib" => 1024f64.powi(4),
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        other => return Err(format!("expected a number of bytes, B, KiB, MiB, GiB or TiB, got the unit `{other}`")),
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 && number * factor <= 2f64.powi(63) => Ok((number * factor) as u64),
        _ => Err(format!("expected a positive number of bytes, got `{text}`")),
    }
}

/// The names of strategies.
fn strategies() -> PossibleValuesParser {
    PossibleValuesParser::new(Family::ALL.map(Family::name))
}

/// The names of precisions.
fn precisions() -> PossibleValuesParser {
    PossibleValuesParser::new(Precision::ALL.map(Precision::name))
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Limits {
    /// WebGPU's default limits and no optional feature
    Default,
    /// All that the adapter has
    Adapter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tune {
    /// On real GPUs
    Auto,
    /// On whatever GPU there is
    On,
    /// Never: a fixed table chooses
    Off,
}

impl DeviceOptions {
    /// The device without a tuner.
    pub fn open_untuned(&self) -> Result<Device> {
        Self { tune: Tune::Off, ..self.clone() }.open()
    }

    /// A tuner for `device` that spends at most `budget` at a time.
    pub fn tuner(&self, device: &Device, budget: Duration) -> Result<Tuner> {
        Tuner::new(device, self.tuned.clone().or_else(Tuner::default_file), budget)
    }

    pub fn open(&self) -> Result<Device> {
        let limits = match self.gpu_limits {
            Limits::Default => GpuLimits::Default,
            Limits::Adapter => GpuLimits::Adapter,
        };
        let device = Device::parse(&self.device, limits, self.threads)?.with_precision(self.precision.parse()?)?;
        let device = self.memory.iter().fold(device, |device, &bytes| device.with_memory(bytes));
        let family = self.strategy.as_deref().map(str::parse).transpose()?;
        let device = device.with_kernels(Kernels { family, ..Kernels::default() });
        let device = if self.grid { device.with_grid() } else { device };
        let real = device.kind() == DeviceKind::Gpu;
        let gpu = real || device.kind() == DeviceKind::Software;
        if !gpu && (family.is_some() || self.tune == Tune::On || self.grid) {
            let message = format!("--strategy, --grid and --tune on are for GPUs, got {}", device.name());
            return Err(Error::new(ErrorKind::Argument, message));
        }
        let device = match self.tune {
            Tune::On => {
                let tuner = self.tuner(&device, FIRST_USE)?;
                device.with_tuner(Arc::new(tuner))
            }
            Tune::Auto if real => {
                // What only saves time does not stop a command.
                let tuner = self.tuner(&device, FIRST_USE).or_else(|e| {
                    log::warn!("{e}; nothing is remembered");
                    Tuner::new(&device, None, FIRST_USE)
                })?;
                device.with_tuner(Arc::new(tuner))
            }
            Tune::Auto | Tune::Off => device,
        };
        log::info!("computing on {}, {}", device.name(), device.budget());
        Ok(device)
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn amounts_have_units() {
        assert_eq!(bytes("256MiB"), Ok(256 << 20));
        assert_eq!(bytes("1.5 GiB"), Ok(3 << 29));
        assert_eq!(bytes("2gb"), Ok(2_000_000_000));
        assert_eq!(bytes("17"), Ok(17));
        for wrong in ["", "MiB", "0", "-1", "1 parsec", "1e99", "9999999 TiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
