//! Files: models and training states as safetensors.

pub mod keras;
pub mod safetensors;

pub use safetensors::{ModelFile, load, save};
