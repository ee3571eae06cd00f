//! Keras 3: `.keras` archives and `.weights.h5` files.

mod archive;
mod config;
mod entry;
mod model;
mod rules;

pub use archive::{KerasArchive, KerasTensor, read_keras, read_weights};
pub(super) use archive::{Metered, ZIP_START};
pub use model::read_model;
