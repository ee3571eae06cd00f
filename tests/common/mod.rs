//! What the integration tests share: the devices under test, and a comparison that cannot pass by accident.
#![allow(dead_code, reason = "each test program uses a part")]

use mnemon::device::{Device, GpuLimits};
use mnemon::scheduler::products::Tile;
use mnemon::scheduler::{Family, Kernels, Product};

/// The executors under test. `MNEMON_TEST_GPU` names the GPU (`software` unless set, `none` for no GPU); one that is
/// named and missing is a failure.
pub fn devices() -> Vec<Device> {
    let mut all = vec![Device::reference(), Device::cpu_with_threads(2).expect("two threads")];
    all.extend(gpus());
    all
}

/// The GPU under test, with all its limits and with WebGPU's default limits.
pub fn gpus() -> Vec<Device> {
    let name = std::env::var("MNEMON_TEST_GPU").unwrap_or_else(|_| "software".to_string());
    if name == "none" || !cfg!(feature = "gpu") {
        return Vec::new();
    }
    let open = |limits| Device::parse(&name, limits, None).unwrap_or_else(|e| panic!("MNEMON_TEST_GPU={name}: {e}"));
    vec![open(GpuLimits::Adapter), open(GpuLimits::Default)]
}

/// The GPU under test once for each family of strategies, which runs every layer that it can carry, and each tile of products,
/// of which every other splits sums over rows.
/// *Grid*, whose workgroups need the processor to themselves, is tested apart (`tests/grid.rs`), and so are matrix units
/// (`tests/precision.rs`).
pub fn strategies() -> Vec<Device> {
    let families = |device: Device| {
        let of = move |(n, (family, tile))| {
            let product = if n % 2 == 0 { Product::Tiled(tile) } else { Product::Split(tile, 2 + n) };
            let kernels = Kernels { family: Some(family), product: Some(product), ..Kernels::default() };
            device.clone().with_kernels(kernels)
        };
        let here = |f: &Family| !matches!(f, Family::Grid | Family::Matrix);
        Family::ALL.into_iter().filter(here).zip(Tile::ALL).enumerate().map(of)
    };
    gpus().into_iter().take(1).flat_map(families).collect()
}

/// `||got - wanted|| / ||wanted||`, where a norm below f32's smallest normal number, which f32 cannot hold with its
/// precision, counts as that number; `None` where the lengths differ or a value is not finite.
pub fn error(got: &[f64], wanted: &[f64]) -> Option<f64> {
    if got.len() != wanted.len() || got.iter().chain(wanted).any(|v| !v.is_finite()) {
        return None;
    }
    let difference = got.iter().zip(wanted).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let size = wanted.iter().map(|b| b * b).sum::<f64>().sqrt();
    Some(if size == 0.0 {
        got.iter().fold(0.0, |m: f64, a| m.max(a.abs()))
    } else {
        difference / size.max(f64::from(f32::MIN_POSITIVE))
    })
}

/// Panics where `got` is further than `tolerance` from `wanted`, or cannot be compared.
pub fn assert_close(what: &str, got: &[f64], wanted: &[f64], tolerance: f64) {
    match error(got, wanted) {
        Some(e) if e <= tolerance => {}
        e => panic!("{what}: error {e:?}, tolerance {tolerance}; {} values, {} wanted", got.len(), wanted.len()),
    }
}
