//! What a session keeps between runs, and where each value is: on the device, or away from it.

use crate::error::{Error, Result};
use crate::params::{DType, Tensor, admit};
use crate::scheduler::Pin;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where the device has a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// In its memory.
    Memory,
    /// In a file that is mapped into the host's, where the host computes.
    File,
}

/// A persistent value.
#[derive(Debug)]
pub(super) struct Entry {
    pub shape: Vec<usize>,
    pub dtype: DType,
    /// Its contents away from the device; those of the device are the same, where both are there.
    pub home: Option<Tensor>,
    pub kept: Option<Kept>,
    /// Cloned by every program that has it on the device, that has it brought, and that changes it.
    pub resident: Arc<()>,
    pub brought: Arc<()>,
    pub changed: Arc<()>,
}

/// Whether a program holds `of`.
pub(super) fn held(of: &Arc<()>) -> bool {
    Arc::strong_count(of) > 1
}

impl Entry {
    fn new(shape: &[usize], dtype: DType, home: Option<Tensor>, kept: Option<Kept>) -> Self {
        let [resident, brought, changed] = [(); 3].map(Arc::new);
        Self { shape: shape.to_vec(), dtype, home, kept, resident, brought, changed }
    }

    /// Bytes that it takes of the device's memory.
    pub fn bytes(&self) -> u64 {
        if self.kept == Some(Kept::Memory) { 4 * self.shape.iter().product::<usize>() as u64 } else { 0 }
    }

    /// Changes its first values away from the device, if it is there.
    pub fn write_home(&mut self, tensor: &Tensor) -> Result<()> {
        let Some(home) = &mut self.home else { return Ok(()) };
        *home = match (tensor.shape() == home.shape(), tensor.dtype()) {
            (true, _) => tensor.clone(),
            (false, DType::F32) => Tensor::new(home.shape(), front(tensor.f32s()?, home.f32s()?))?,
            (false, DType::U32) => Tensor::from_u32(home.shape(), front(tensor.u32s()?, home.u32s()?))?,
        };
        Ok(())
    }
}

/// `new`, and what `old` has beyond it.
fn front<T: Copy>(new: &[T], old: &[T]) -> Vec<T> {
    [new, &old[new.len()..]].concat()
}

/// All persistent values by name.
#[derive(Debug, Default)]
pub(super) struct Registry(BTreeMap<String, Entry>);

impl Registry {
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.0.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Where programs have values, that have them in one place.
    pub fn pins(&self) -> BTreeMap<String, Pin> {
        let pin = |(name, entry): (&String, &Entry)| {
            let (here, away) = (held(&entry.resident), held(&entry.brought));
            (here != away).then(|| (name.clone(), Pin { away, changed: held(&entry.changed) }))
        };
        self.0.iter().filter_map(pin).collect()
    }

    pub fn find(&self, name: &str) -> Option<&Entry> {
        self.0.get(name)
    }

    pub fn get(&self, name: &str) -> Result<&Entry> {
        self.find(name).ok_or_else(|| missing(name))
    }

    pub fn get_mut(&mut self, name: &str) -> Result<&mut Entry> {
        self.0.get_mut(name).ok_or_else(|| missing(name))
    }

    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// A new value that waits for a program to say where it should be.
    pub fn add(&mut self, name: &str, tensor: Tensor) -> Result<()> {
        if tensor.file().is_none() {
            admit(name, tensor.shape())?;
        }
        let (shape, dtype) = (tensor.shape().to_vec(), tensor.dtype());
        self.0.insert(name.to_string(), Entry::new(&shape, dtype, Some(tensor), None));
        Ok(())
    }

    /// A new value that the device has in its memory.
    pub fn declared(&mut self, name: &str, shape: &[usize], dtype: DType) {
        self.0.insert(name.to_string(), Entry::new(shape, dtype, None, Some(Kept::Memory)));
    }
}

fn missing(name: &str) -> Error {
    Error::argument(format!("session: there is no value `{name}`"))
}
