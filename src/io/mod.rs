//! Files: models and training states as safetensors.

pub mod safetensors;

pub use safetensors::{ModelFile, load, save};
