//! Files: models and training states as safetensors, and the models of PyTorch, Keras and ONNX.

pub mod keras;
pub mod model;
pub mod onnx;
pub mod pytorch;
pub mod safetensors;
#[cfg(test)]
mod samples;

pub use model::{FileKind, Imported, MEMORY, fitted_memory, read_model, read_model_for, read_model_with_weights};
pub use onnx::Edges;
pub use safetensors::{
    ModelFile, load, read_tensors, replace, save, tensors_from_bytes, tensors_to_bytes, write_tensors,
};
