//! Models from files of any kind that is known.

use super::onnx::{self, Edges};
use super::{ModelFile, keras, pytorch, safetensors};
use crate::error::{Error, Result};
use crate::nn::{Description, Network, WorkingMemory};
use crate::params::Tensor;
use std::collections::{BTreeMap, BTreeSet};
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
    /// How the file's inputs and outputs lie over the network's.
    pub edges: Edges,
}

impl Imported {
    /// A model and no more, whose inputs and outputs are the network's.
    pub fn new(
        title: &str,
        network: Network,
        parameters: BTreeMap<String, Tensor>,
        sources: BTreeMap<String, String>,
    ) -> Self {
        let (title, edges) = (title.to_string(), Edges::default());
        Self { title, network, parameters, sources, memory: None, training: None, edges }
    }
}

/// The kinds of files that models come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// What mnemon itself saves, as safetensors.
    Own,
    /// The parameters of PyTorch modules, as safetensors.
    StateDict,
    /// The same as `torch.save` writes them.
    Checkpoint,
    /// A `.keras` archive, or a whole model in HDF5.
    Keras,
    /// A graph of ONNX.
    Onnx,
}

impl FileKind {
    /// What a file is: ONNX by its name, which nothing in it tells, others by how they begin.
    pub fn of(path: &Path) -> Result<Self> {
        let mut start = Vec::new();
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        file.take(8).read_to_end(&mut start).map_err(|e| Error::io(path, "read", e))?;
        Ok(if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")) {
            Self::Onnx
        } else if pytorch::is_checkpoint(path)? {
            Self::Checkpoint
        } else if start.starts_with(keras::ZIP_START) || start == keras::HDF5_START {
            Self::Keras
        } else if safetensors::is_own(path)? {
            Self::Own
        } else {
            Self::StateDict
        })
    }
}

/// A file's part that says which working memory was fitted for its model.
pub const MEMORY: &str = "memory";
/// A file's part that describes a model whose layers are in a row, and one of any other.
const MODEL: &str = "model";
const NETWORK: &str = "network";

/// [`MEMORY`] of a file.
pub fn fitted_memory(file: &ModelFile) -> Result<Option<WorkingMemory>> {
    file.metadata.get(MEMORY).map(|_| file.part(MEMORY)).transpose()
}

/// Reads a model that mnemon or Keras saved (`.keras`, or a whole model in HDF5), an ONNX file (called `.onnx`), or the
/// parameters of PyTorch modules as `.safetensors` or as `torch.save` writes them; `config` says what the latter are, see
/// [`pytorch::Config`].
pub fn read_model(path: &Path, config: Option<&pytorch::Config>) -> Result<Imported> {
    read_model_for(path, config, None)
}

/// [`read_model`] for a run over `given`, which an ONNX file may take its weights and sizes from.
pub fn read_model_for(
    path: &Path,
    config: Option<&pytorch::Config>,
    given: Option<&BTreeMap<String, Tensor>>,
) -> Result<Imported> {
    let kind = FileKind::of(path)?;
    if let (FileKind::Own | FileKind::Keras | FileKind::Onnx, Some(_)) = (kind, config) {
        return Err(Error::argument(format!(
            "{}: the file says itself what its model is, and takes no configuration",
            path.display()
        )));
    }
    let imported = match kind {
        FileKind::Onnx => onnx::read_model(path, given)?,
        FileKind::Keras => keras::read_model(path)?,
        FileKind::Own => own_model(path)?,
        FileKind::StateDict | FileKind::Checkpoint => {
            pytorch::read_model(path, config.unwrap_or(&pytorch::Config::default()))?
        }
    };
    checked(imported, path)
}

/// Reads a `.keras` file with the parameters of a `.weights.h5` file of the same model in place of its own.
pub fn read_model_with_weights(path: &Path, weights: &Path) -> Result<Imported> {
    match FileKind::of(path)? {
        FileKind::Keras => checked(keras::read_model_with_weights(path, weights)?, weights),
        _ => Err(Error::argument(format!(
            "{}: expected a .keras file, whose parameters {} has, got one of another kind",
            path.display(),
            weights.display()
        ))),
    }
}

fn checked(imported: Imported, path: &Path) -> Result<Imported> {
    check(&imported.network, &imported.parameters, &imported.sources).map_err(|e| e.within(path.display()))?;
    Ok(imported)
}

fn own_model(path: &Path) -> Result<Imported> {
    let file = safetensors::load(path)?;
    let read = || {
        let (title, network) = match file.metadata.get(NETWORK) {
            Some(_) => ("Network", file.part(NETWORK)?),
            None => {
                let Description { input, steps, layers } = file.part(MODEL)?;
                ("Sequential", Network::chain(input, steps, &layers)?)
            }
        };
        let mut parameters = BTreeMap::new();
        for spec in network.parameters()? {
            parameters.insert(spec.name.clone(), file.tensor(&spec.name)?.clone());
        }
        let sources = parameters.keys().map(|name| (name.clone(), name.clone())).collect();
        let memory = fitted_memory(&file)?;
        Ok(Imported { memory, ..Imported::new(title, network, parameters, sources) })
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
    let known: BTreeSet<&String> = specs.iter().map(|s| &s.name).collect();
    match parameters.keys().find(|name| !known.contains(name)) {
        None => Ok(()),
        Some(name) => Err(Error::data(format!("the parameter `{name}` belongs to no layer of the model"))),
    }
}
