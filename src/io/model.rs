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
}

/// A file's part that says which working memory was fitted for its model.
pub const MEMORY: &str = "memory";

/// [`MEMORY`] of a file.
pub fn fitted_memory(file: &ModelFile) -> Result<Option<WorkingMemory>> {
    file.metadata.get(MEMORY).map(|_| file.part(MEMORY)).transpose()
}

/// Reads a model that mnemon or Keras 3 saved, or the parameters of PyTorch modules as `.safetensors` or as
/// `torch.save` writes them; `config` says what the latter are, see [`pytorch::Config`].
pub fn read_model(path: &Path, config: Option<&pytorch::Config>) -> Result<Imported> {
    let mut start = [0u8; 4];
    let mut file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let checkpoint = pytorch::is_checkpoint(path)?;
    let keras = !checkpoint && file.read_exact(&mut start).is_ok() && &start == b"PK\x03\x04";
    let own = !checkpoint && !keras && safetensors::is_own(path)?;
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
    check(&imported.network, &imported.parameters, &imported.sources).map_err(|e| e.within(path.display()))?;
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
        Ok(Imported { title: "Sequential".to_string(), network, parameters, sources, memory })
    };
    read().map_err(|e: Error| e.within(path.display()))
}

/// Refuses parameters that are missing, too many, or of another shape than the network's; `sources` says what their
/// file calls them, where that is not what the network does.
pub(super) fn check(
    network: &Network,
    parameters: &BTreeMap<String, Tensor>,
    sources: &BTreeMap<String, String>,
) -> Result<()> {
    let specs = network.parameters()?;
    for spec in &specs {
        let source = sources.get(&spec.name).unwrap_or(&spec.name);
        let Some(found) = parameters.get(&spec.name) else {
            return Err(Error::data(format!("expected the parameter `{source}`, there is none")));
        };
        if found.shape() != spec.shape {
            let (name, wanted, got) = (&spec.name, &spec.shape, found.shape());
            return Err(Error::shape(format!("`{source}`: expected {wanted:?} as `{name}`, got {got:?}")));
        }
    }
    match parameters.keys().find(|name| specs.iter().all(|s| &s.name != *name)) {
        None => Ok(()),
        Some(name) => Err(Error::data(format!("the parameter `{name}` belongs to no layer of the model"))),
    }
}
