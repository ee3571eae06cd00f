//! A device against numbers that are known to be right: conformance cases from files, and the f64 reference on random
//! cases.

pub mod cases;
pub mod random;
pub mod report;
pub mod run;

pub use cases::Case;
pub use report::{Report, Status, TensorError};

use crate::device::Device;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Values by the names of the conformance format, row-major, in the caller's order.
pub type Tensors<V> = BTreeMap<String, Vec<V>>;

/// Runs the cases in `folder` whose names `only` accepts, and gives `each` a report as soon as there is one.
pub fn folder(
    device: &Device,
    folder: &Path,
    only: &dyn Fn(&str) -> bool,
    each: &mut dyn FnMut(&Report),
) -> Result<()> {
    for (name, case) in cases::list(folder)? {
        if only(&name) {
            each(&judge(device, &name, || against_file(device, &case?, folder)));
        }
    }
    Ok(())
}

/// Runs random cases whose names `only` accepts against the f64 reference.
pub fn random(device: &Device, only: &dyn Fn(&str) -> bool, each: &mut dyn FnMut(&Report)) {
    for random in random::cases() {
        let name = random.case.name.clone();
        if only(&name) {
            each(&judge(device, &name, || {
                let tensors = random.tensors();
                let expected = run::exactly(&random.case, &tensors)?;
                compare(&random.case, &run::on_device(device, &random.case, &tensors)?, &expected)
            }));
        }
    }
}

fn against_file(device: &Device, case: &Case, folder: &Path) -> Result<Vec<TensorError>> {
    case.supported()?;
    let tensors = case.load(folder)?;
    let actual = run::on_device(device, case, &tensors)?;
    let expected = tensors.into_iter().map(|(name, v)| (name, v.into_iter().map(f64::from).collect())).collect();
    compare(case, &actual, &expected)
}

/// Compares every `out.*` and `grad.*` of a case.
fn compare(case: &Case, actual: &Tensors<f64>, expected: &Tensors<f64>) -> Result<Vec<TensorError>> {
    let find = |all: &Tensors<f64>, name: &str| {
        all.get(name).cloned().ok_or_else(|| Error::data(format!("verify: tensor `{name}` is missing")))
    };
    case.wanted()
        .into_iter()
        .map(|(name, _)| {
            let tolerance = if name.starts_with("out.") { case.tol_forward } else { case.tol_grad };
            let (a, b) = (find(actual, &name)?, find(expected, &name)?);
            Ok(TensorError::of(name, &a, &b, tolerance))
        })
        .collect()
}

fn judge(device: &Device, name: &str, run: impl FnOnce() -> Result<Vec<TensorError>>) -> Report {
    Report::new(name, device.label(), &device.name(), run())
}
