//! `save` and `load` of a model with the state of its training.

use super::Loss;
use super::fit::Compiled;
use super::learner::Learner;
use super::scaling::LossScale;
use super::step::TRAIN;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::{self, ModelFile};
use crate::nn::{Description, Sequential};
use crate::optim::{Course, Optimizer};
use crate::scheduler::Kernels;
use crate::scheduler::strategy::KERNEL_TABLE;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// What a file says of training.
#[derive(Serialize, Deserialize)]
struct Training {
    optimizer: Optimizer,
    loss: Loss,
    #[serde(flatten)]
    course: Course,
    #[serde(default)]
    pass: Option<u32>,
    #[serde(default)]
    batch: u32,
    #[serde(default)]
    taken: u32,
    #[serde(default)]
    order: u64,
    #[serde(default)]
    averaged: bool,
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

/// A model's parameters, with its description where there is one, and the state of its training.
pub(super) fn file(learner: &mut dyn Learner) -> Result<ModelFile> {
    let description = learner.description()?;
    let specs = learner.network()?.parameters()?;
    let compiled = learner.compiled().ok();
    let session = learner.session()?;
    let mut tensors = BTreeMap::new();
    for spec in &specs {
        tensors.insert(spec.name.clone(), session.get(&spec.name)?);
    }
    let mut metadata = json!({ "kernels": Choices::of(session.device()) });
    if let Some(description) = description {
        metadata["model"] = json!(description);
    }
    if let Some(compiled) = compiled {
        let slots = compiled.optimizer.slots(&specs).into_iter().map(|slot| slot.name);
        // In the middle of an epoch its loss so far belongs to it.
        let totals = TRAIN.names().map(String::from).into_iter().filter(|_| compiled.taken > 0);
        let scale = LossScale::NAMES.map(String::from);
        for name in slots.chain(totals).chain(scale).filter(|_| !compiled.fresh) {
            if session.names().any(|n| n == name) {
                tensors.insert(name.clone(), session.get(&name)?);
            }
        }
        let Compiled { optimizer, loss, course, pass, batch, taken, order, averaged, .. } = compiled;
        let pass = Some(pass);
        metadata["training"] = json!(Training { optimizer, loss, course, pass, batch, taken, order, averaged });
    }
    Ok(ModelFile { metadata, tensors })
}

/// What a file says of training that was begun elsewhere, after `step` batches.
pub(super) fn training_part(optimizer: Optimizer, loss: Loss, step: u32) -> serde_json::Value {
    let (course, averaged) = (Course::at(step), false);
    json!(Training { optimizer, loss, course, pass: Some(0), batch: 0, taken: 0, order: 0, averaged })
}

/// Takes on the parameters and the training of a file.
pub(super) fn restore(learner: &mut dyn Learner, file: &ModelFile) -> Result<()> {
    let specs = learner.network()?.parameters()?;
    for spec in &specs {
        check_shape(&spec.name, file.tensor(&spec.name)?.shape(), &spec.shape)?;
    }
    let session = learner.session()?;
    specs.iter().try_for_each(|spec| session.set(&spec.name, file.tensor(&spec.name)?))?;
    restore_training(learner, file)
}

/// Takes on the training of a file, if it has one. A language model's has a state of its own, which
/// [`Trainer::resume`](super::Trainer::resume) reads.
fn restore_training(learner: &mut dyn Learner, file: &ModelFile) -> Result<()> {
    let part = file.metadata.get("training");
    if part.is_none_or(|part| part.get("options").is_some()) {
        return Ok(());
    }
    let training: Training = file.part("training")?;
    training.optimizer.validate()?;
    training.loss.validate()?;
    let Training { optimizer, loss, course, pass, batch, taken, order, averaged } = training;
    let slots = optimizer.slots(&learner.network()?.parameters()?);
    let fresh = !slots.iter().all(|slot| file.tensors.contains_key(&slot.name)) && course.step == 0;
    let kept = TRAIN.names().into_iter().chain(LossScale::NAMES).map(|name| (name.to_string(), vec![1]));
    let session = learner.session()?;
    for (name, shape) in slots.into_iter().map(|slot| (slot.name, slot.shape)).chain(kept) {
        if let Some(tensor) = file.tensors.get(&name) {
            check_shape(&name, tensor.shape(), &shape)?;
            session.set(&name, tensor)?;
        }
    }
    // Earlier files have batches of an epoch alone.
    let (pass, taken) = (pass.unwrap_or(course.epoch), if pass.is_some() { taken } else { batch });
    learner.keep(Compiled { optimizer, loss, course, pass, batch, taken, order, fresh, averaged });
    Ok(())
}

impl Sequential {
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
        io::save(path.as_ref(), &file(self)?)
    }

    /// Reads what [`Self::save`] wrote; training continues from there bit for bit. Stateful layers begin from zero states.
    pub fn load(device: &Device, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = io::load(path)?;
        let load = || {
            let mut model = Self::from_file(device, &file)?;
            restore_training(&mut model, &file)?;
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
