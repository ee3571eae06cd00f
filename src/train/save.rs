//! `save` and `load` of a model with the state of its training.

use super::Loss;
use super::fit::Compiled;
use super::scaling::LossScale;
use super::step::TRAIN;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::{self, ModelFile};
use crate::nn::{Description, Sequential};
use crate::optim::Optimizer;
use crate::scheduler::Kernels;
use crate::scheduler::strategy::KERNEL_TABLE;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Serialize, Deserialize)]
struct Training {
    optimizer: Optimizer,
    loss: Loss,
    step: u32,
    epoch: u32,
    #[serde(default)]
    batch: u32,
    #[serde(default)]
    order: u64,
}

/// Which kernels a file was written by: the table, and what was chosen besides it.
#[derive(Debug, Serialize, Deserialize)]
struct Choices {
    table: String,
    chosen: Kernels,
}

impl Choices {
    fn of(device: &Device) -> Self {
        Self { table: KERNEL_TABLE.to_string(), chosen: device.kernels() }
    }
}

impl Sequential {
    /// The model's description and parameters.
    pub(super) fn model_file(&mut self) -> Result<ModelFile> {
        let Some(input) = self.input() else {
            return Err(Error::argument("sequential: a model that is not built has nothing to save"));
        };
        let description = Description { input, steps: self.steps(), layers: self.layers().to_vec() };
        let mut tensors = BTreeMap::new();
        for spec in self.parameters() {
            tensors.insert(spec.name.clone(), self.session()?.get(&spec.name)?);
        }
        let metadata = json!({ "kernels": Choices::of(self.session()?.device()), "model": description });
        Ok(ModelFile { metadata, tensors })
    }

    /// The model that a file describes, with its parameters.
    pub(super) fn from_file(device: &Device, file: &ModelFile) -> Result<Self> {
        let description: Description = file.part("model")?;
        let choices = file.metadata.get("kernels").and_then(|k| serde_json::from_value::<Choices>(k.clone()).ok());
        let choices = choices.filter(|c| c.table == KERNEL_TABLE);
        // Training goes on by the choices that it was begun with.
        let device = match &choices {
            Some(c) if c.chosen != Kernels::default() => &device.clone().with_kernels(c.chosen.clone()),
            _ => device,
        };
        let mut model = Self::new(device);
        for layer in description.layers {
            model.add(layer);
        }
        // Before anything is allocated: a file may claim any size.
        for spec in model.specs(description.input, description.steps)? {
            check_shape(&spec.name, file.tensor(&spec.name)?.shape(), &spec.shape)?;
        }
        model.build_for(description.input, description.steps)?;
        for spec in model.parameters() {
            model.set_parameter(&spec.name, file.tensor(&spec.name)?)?;
        }
        if choices.is_none() {
            log::warn!("the file was written with other kernel choices: training continues, but not bit for bit");
        }
        Ok(model)
    }

    /// Writes the model, its parameters and the state of its training to one file. A kill at any moment leaves the old
    /// or the new file whole.
    pub fn save(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut file = self.model_file()?;
        if let Ok(c) = self.compiled() {
            let Compiled { optimizer, loss, step, epoch, batch, order } = c;
            let training = Training { optimizer, loss, step, epoch, batch, order };
            file.metadata["training"] = json!(training);
            let slots = c.optimizer.slots(&self.parameters()).into_iter().map(|(name, _)| name);
            // In the middle of an epoch its loss so far belongs to it.
            let totals = TRAIN.names().map(String::from).into_iter().filter(|_| c.batch > 0);
            let scale = LossScale::NAMES.map(String::from);
            for name in slots.chain(totals).chain(scale) {
                let session = self.session()?;
                if session.names().any(|n| n == name) {
                    file.tensors.insert(name.clone(), session.get(&name)?);
                }
            }
        }
        io::save(path, &file)
    }

    /// Reads what [`Self::save`] wrote; training continues from there bit for bit. Stateful layers begin from zero states.
    pub fn load(device: &Device, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = io::load(path)?;
        let load = || {
            let mut model = Self::from_file(device, &file)?;
            // A language model's training has a state of its own, which `Trainer::resume` reads.
            let Ok(training) = file.part::<Training>("training") else { return Ok(model) };
            training.optimizer.validate()?;
            training.loss.validate()?;
            for (name, shape) in training.optimizer.slots(&model.parameters()) {
                if let Some(slot) = file.tensors.get(&name) {
                    check_shape(&name, slot.shape(), &shape)?;
                    model.session()?.set(&name, slot)?;
                }
            }
            for name in TRAIN.names().into_iter().chain(LossScale::NAMES) {
                if let Some(kept) = file.tensors.get(name) {
                    check_shape(name, kept.shape(), &[1])?;
                    model.session()?.set(name, kept)?;
                }
            }
            let Training { optimizer, loss, step, epoch, batch, order } = training;
            model.compiled = Some(Box::new(Compiled { optimizer, loss, step, epoch, batch, order }));
            Ok(model)
        };
        load().map_err(|e: Error| e.within(path.display()))
    }
}

/// Refuses a tensor of another shape.
pub(super) fn check_shape(name: &str, found: &[usize], wanted: &[usize]) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(Error::shape(format!("`{name}`: expected {wanted:?}, got {found:?}")))
}
