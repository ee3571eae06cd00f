//! Keras 3: `.keras` archives and `.weights.h5` files.

mod archive;
mod config;
mod describe;
mod entry;
mod functional;
mod model;
mod order;
mod rules;
mod variables;
mod write;

pub use archive::{KerasArchive, KerasTensor, read_keras, read_weights};
pub use model::read_model;
pub use write::{write_model, write_weights};
