//! Models from files of any kind that is known.

use super::{ModelFile, keras, pytorch, safetensors};
use crate::error::{Error, Result};
use crate::nn::{Description, Network, WorkingMemory};
use crate::params::Tensor;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A model from a file: what it computes, and the values of its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// What the file calls it.
    pub title: String,
    /// Its layers. Outputs called `NAME[0]`, `NAME[1]` and so on are one output along a first axis.
    pub network: Network,
    /// Every parameter of the network by name.
    pub parameters: BTreeMap<String, Tensor>,
    /// What the file calls each parameter.
    pub sources: BTreeMap<String, String>,
    /// The working memory that was fitted for it, where its file has one.
    pub memory: Option<WorkingMemory>,
    /// How it was being trained, where a file of Keras says so and all of it is known here.
    pub training: Option<keras::Training>,
}

/// A file's part that says which working memory was fitted for its model.
pub const MEMORY: &str = "memory";

/// [`MEMORY`] of a file.
pub fn fitted_memory(file: &ModelFile) -> Result<Option<WorkingMemory>> {
    file.metadata.get(MEMORY).map(|_| file.part(MEMORY)).transpose()
}

/// Reads a model that mnemon or Keras saved (`.keras`, or a whole model in HDF5), or the parameters of PyTorch modules
/// as `.safetensors`; `config` is a JSON file that says what the latter are, see [`pytorch::Config`].
pub fn read_model(path: &Path, config: Option<&pytorch::Config>) -> Result<Imported> {
    let mut start = [0u8; 8];
    let mut file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let begins = file.read_exact(&mut start).is_ok();
    let keras = begins && (start.starts_with(b"PK\x03\x04") || start == keras::HDF5_START);
    let own = !keras && safetensors::is_own(path)?;
    if let (true, Some(_)) = (keras || own, config) {
        return Err(Error::argument(format!(
            "{}: the file says itself what its model is, and takes no configuration",
            path.display()
        )));
    }
    let imported = if keras {
        keras::read_model(path)?
    } else if own {
        own_model(path)?
    } else {
        pytorch::read_model(path, config.unwrap_or(&pytorch::Config::default()))?
    };
    check(&imported).map_err(|e| e.within(path.display()))?;
    Ok(imported)
}

fn own_model(path: &Path) -> Result<Imported> {
    let file = safetensors::load(path)?;
    let read = || {
        let Description { input, steps, layers } = file.part("model")?;
        let network = Network::chain(input, steps, &layers)?;
        let mut parameters = BTreeMap::new();
        for spec in network.parameters()? {
            parameters.insert(spec.name.clone(), file.tensor(&spec.name)?.clone());
        }
        let sources = parameters.keys().map(|name| (name.clone(), name.clone())).collect();
        let memory = fitted_memory(&file)?;
        Ok(Imported { title: "Sequential".to_string(), network, parameters, sources, memory, training: None })
    };
    read().map_err(|e: Error| e.within(path.display()))
}

/// Refuses parameters that are missing, too many, or of another shape than the network's.
fn check(imported: &Imported) -> Result<()> {
    let specs = imported.network.parameters()?;
    for spec in &specs {
        let source = imported.sources.get(&spec.name).unwrap_or(&spec.name);
        let Some(found) = imported.parameters.get(&spec.name) else {
            return Err(Error::data(format!("expected the parameter `{source}`, there is none")));
        };
        if found.shape() != spec.shape {
            let (name, wanted, got) = (&spec.name, &spec.shape, found.shape());
            return Err(Error::shape(format!("`{source}`: expected {wanted:?} as `{name}`, got {got:?}")));
        }
    }
    match imported.parameters.keys().find(|name| specs.iter().all(|s| &s.name != *name)) {
        None => Ok(()),
        Some(name) => Err(Error::data(format!("the parameter `{name}` belongs to no layer of the model"))),
    }
}
