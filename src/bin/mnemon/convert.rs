//! `mnemon convert`: a model's file as one of another program.

use crate::output::say;
use crate::summary::ModelOptions;
use clap::{Args, ValueEnum};
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::io::{self, Imported, keras, onnx, pytorch};
use mnemon::params::Tensor;
use mnemon::train::model_file;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  mnemon convert model.keras model.onnx
  mnemon convert lm.pt lm.safetensors
  mnemon convert model.onnx state.safetensors --format pytorch

What TO is follows from its name: .safetensors is mnemon's own file, .keras, .h5 and .weights.h5 are Keras's, .pt and .pth
PyTorch's, .onnx is ONNX's. A PyTorch state dict may be a .safetensors file too, which is asked for by --format pytorch;
`load_state_dict` takes either for modules with the names of the layers. What a format cannot say is refused, and no file is written.

Exit code: 0 if TO was written, 2 if the model cannot be said in it, 1 for all else.";

/// Write a model's file as one of another program
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelOptions,

    /// The file to write
    #[arg(value_name = "TO")]
    to: PathBuf,

    /// What to write [default: what TO's name says]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
}

/// What a model can be written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A file of mnemon's own, as safetensors
    Mnemon,
    /// A state dict of PyTorch modules, as safetensors
    Pytorch,
    /// A state dict of PyTorch modules, as torch.save writes it
    PytorchZip,
    /// A .keras archive of Keras 3
    Keras,
    /// A whole model of Keras in one HDF5 file
    KerasHdf5,
    /// The weights of a Keras 3 model, as HDF5
    KerasWeights,
    /// A graph of ONNX
    Onnx,
}

impl Format {
    /// What a file of this name is.
    fn of(path: &Path) -> Result<Self> {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_lowercase();
        let ends = |end: &str| name.ends_with(end);
        if ends(".safetensors") {
            Ok(Self::Mnemon)
        } else if ends(".keras") {
            Ok(Self::Keras)
        } else if ends(".weights.h5") {
            Ok(Self::KerasWeights)
        } else if ends(".h5") || ends(".hdf5") {
            Ok(Self::KerasHdf5)
        } else if ends(".pt") || ends(".pth") {
            Ok(Self::PytorchZip)
        } else if ends(".onnx") {
            Ok(Self::Onnx)
        } else {
            let expected =
                "expected a name that ends in .safetensors, .pt, .keras, .h5, .weights.h5 or .onnx, or a --format";
            Err(Error::new(ErrorKind::Argument, format!("{}: {expected}", path.display())))
        }
    }
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let to = &arguments.to;
    let format = arguments.format.map_or_else(|| Format::of(to), Ok)?;
    let imported = arguments.model.read(None)?;
    if let Some(name) = imported.edges.parameters.first() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the model takes weights from its input `{name}`, which a run gives"),
        ));
    }
    // What only ONNX can say.
    if let Some(name) = imported.edges.constants.keys().next().filter(|_| format != Format::Onnx) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the model is for sequences of its own: it gives `{name}` for each of them"),
        ));
    }
    if let Some(edge) = imported.edges.outputs.iter().find(|edge| edge.best && format != Format::Onnx) {
        let name = &edge.name;
        let message =
            format!("its output `{name}` is the number of the largest feature, which only ONNX has outputs for");
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let Imported { network, parameters, .. } = &imported;
    let title = to.file_stem().and_then(|n| n.to_str()).unwrap_or("model");
    let written: BTreeMap<String, Tensor> = match format {
        Format::Mnemon => {
            io::save(to, &model_file(&imported)?)?;
            parameters.clone()
        }
        Format::Pytorch | Format::PytorchZip => {
            let tensors = pytorch::state_dict(network, parameters)?;
            match format {
                Format::Pytorch => io::write_tensors(to, tensors.clone())?,
                _ => pytorch::write_checkpoint(to, &tensors)?,
            }
            tensors
        }
        Format::Keras => keras::write_model(to, title, network, parameters).map(|()| parameters.clone())?,
        Format::KerasHdf5 => keras::write_legacy(to, title, network, parameters).map(|()| parameters.clone())?,
        Format::KerasWeights => keras::write_weights(to, network, parameters).map(|()| parameters.clone())?,
        Format::Onnx => {
            onnx::write_model(to, title, network, parameters, &imported.edges).map(|()| parameters.clone())?
        }
    };
    say!("{}: {}", arguments.model.model.display(), imported.title);
    for node in &network.nodes {
        say!("  {:<24} {}", node.name, node.layer.class());
    }
    // What is written is batch-first.
    for line in imported.edges.changes(network)? {
        say!("  {line}");
    }
    for (name, tensor) in parameters {
        let source = imported.sources.get(name).filter(|s| *s != name);
        let source = source.map_or_else(String::new, |s| format!(" from {s}"));
        say!("  {name} {:?}{source}", tensor.shape());
    }
    let values: usize = written.values().map(Tensor::len).sum();
    say!("{}: {} tensors, {values} values", to.display(), written.len());
    Ok(ExitCode::SUCCESS)
}
