//! Picking strategies by measurement: for each kind of layer and each product a few candidates, checked against the reference,
//! timed, and the fastest remembered for the adapter and its driver.

mod measure;

use super::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::scheduler::products::ProductShape;
use crate::scheduler::recurrence::{Kernels, Layer, Recurrence};
use crate::scheduler::{Precision, Product, Program};
use measure::{Subject, measure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The time after which first use begins to measure nothing more: so that what is measured then, and what is compiled besides, end
/// within about two seconds.
pub const FIRST_USE: Duration = Duration::from_millis(1200);

/// What was found for one layer, or for one product.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding<Of = Layer, Choice = Recurrence> {
    /// What it was found for.
    pub of: Of,
    /// The fastest candidate.
    pub pick: Choice,
    /// Every candidate with the seconds of a call; none for one that was wrong, and so is struck out.
    pub timed: Vec<(Choice, Option<f64>)>,
    /// Whether time was left for every candidate; what first use has begun, `mnemon tune` finishes.
    pub complete: bool,
}

/// All that was found of one adapter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// Of layers.
    pub layers: Vec<Finding>,
    /// Of products.
    pub products: Vec<Finding<ProductShape, Product>>,
}

/// Findings of one adapter, remembered in a file.
#[derive(Debug)]
pub struct Tuner {
    /// Of all adapters.
    file: Option<PathBuf>,
    /// The adapter with its driver, and the version of the kernels.
    key: String,
    budget: Duration,
    findings: Mutex<Findings>,
}

/// What the file holds, by adapter and version; what other versions wrote is kept as it is.
type Remembered = BTreeMap<String, serde_json::Value>;

fn remembered(file: &Path) -> Result<Remembered> {
    match std::fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|e| Error::new(ErrorKind::File, format!("{}: not a file of findings: {e}", file.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Remembered::new()),
        Err(e) => Err(Error::new(ErrorKind::File, format!("{}: cannot read: {e}", file.display()))),
    }
}

impl Tuner {
    /// The user's file of findings; none where the system has no folder for caches.
    pub fn default_file() -> Option<PathBuf> {
        dirs::cache_dir().map(|folder| folder.join("mnemon").join("kernels.json"))
    }

    /// A tuner for `device`, which begins with what `file` remembers of it and spends at most `budget` at a time. A file that
    /// cannot be read is an error.
    pub fn new(device: &Device, file: Option<PathBuf>, budget: Duration) -> Result<Self> {
        let precision = match device.precision() {
            Precision::F32 => String::new(),
            precision => format!(", {precision}"),
        };
        let key = format!("{}{precision}, mnemon {}", device.name(), env!("CARGO_PKG_VERSION"));
        let all = file.as_deref().map_or_else(|| Ok(Remembered::new()), remembered)?;
        let own = all.get(&key).and_then(|own| serde_json::from_value(own.clone()).ok()).unwrap_or_default();
        Ok(Self { file, key, budget, findings: Mutex::new(own) })
    }

    /// All that was found.
    pub fn findings(&self) -> Findings {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds what was found to `kernels`; what they already pick stays.
    pub(super) fn extend(&self, kernels: &mut Kernels) {
        let Findings { layers, products } = self.findings();
        for f in layers {
            kernels.picks.entry(f.of).or_insert(f.pick);
        }
        for f in products {
            kernels.products.entry(f.of).or_insert(f.pick);
        }
    }

    /// Measures the layers and products of `program` that nothing is known of yet, as far as the budget goes, layers first,
    /// and remembers what it found. Gives how many are left unmeasured.
    pub fn settle(&self, device: &Device, program: &Program) -> Result<usize> {
        let end = Instant::now() + self.budget;
        let ahead = self.budget > FIRST_USE;
        let (mut layers, mut products) = (Vec::new(), Vec::new());
        for step in program.stage_steps() {
            layers.extend(Layer::of(step, &program.values, &program.capacity));
            products.extend(ProductShape::of(step, &program.values, &program.capacity)?.map(|shape| shape.bucket()));
        }
        let Findings { layers: mut of_layers, products: mut of_products } = self.findings();
        let mut left = measured(device, layers, &mut of_layers, end, ahead)?;
        left += measured(device, products, &mut of_products, end, ahead)?;
        let now = Findings { layers: of_layers, products: of_products };
        if now != self.findings() {
            *self.findings.lock().unwrap_or_else(PoisonError::into_inner) = now;
            self.remember()?;
        }
        Ok(left)
    }

    /// Writes the findings beside those of other adapters; a kill leaves the old or the new file whole.
    fn remember(&self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let failed = |e: std::io::Error| Error::new(ErrorKind::File, format!("{}: cannot write: {e}", file.display()));
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let mut all = remembered(file)?;
        let own = serde_json::to_value(self.findings()).map_err(|e| Error::internal(e.to_string()))?;
        all.insert(self.key.clone(), own);
        let text = serde_json::to_vec_pretty(&all).map_err(|e| Error::internal(e.to_string()))?;
        let temporary = file.with_extension(format!("{}.tmp", std::process::id()));
        std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, file)).map_err(failed)
    }
}

/// Measures those of `subjects` of which `known` holds nothing; `ahead` of time those too that are known in part. Gives how
/// many are left.
fn measured<S: Subject + Ord>(
    device: &Device,
    mut subjects: Vec<S>,
    known: &mut Vec<Finding<S, S::Choice>>,
    end: Instant,
    ahead: bool,
) -> Result<usize> {
    subjects.sort();
    subjects.dedup();
    // What has shown since that it can run in more ways is known in part.
    let whole = |f: &Finding<S, S::Choice>| {
        f.complete && f.of.candidates(device).is_ok_and(|all| all.len() <= f.timed.len().max(1))
    };
    subjects.retain(|s| !known.iter().any(|f| f.of == *s && (!ahead || whole(f))));
    let mut left = 0;
    for subject in subjects {
        match measure(device, subject, end.saturating_duration_since(Instant::now()))? {
            Some(finding) => {
                known.retain(|f| f.of != subject);
                known.push(finding);
            }
            None => left += 1,
        }
    }
    Ok(left)
}
