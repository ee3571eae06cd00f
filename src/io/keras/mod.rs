//! Keras 3: `.keras` archives and `.weights.h5` files; whole models in HDF5 of Keras 2 and 3.

mod archive;
mod calls;
mod config;
mod describe;
mod entry;
mod functional;
mod implicit;
mod inner;
mod legacy;
mod masking;
mod model;
mod names;
mod nested;
mod order;
mod rules;
mod training;
mod variables;
mod write;
mod write_legacy;

pub(super) use archive::HDF5_START;
pub use archive::{KerasArchive, KerasTensor, read_keras, read_weights};
pub(super) use archive::{Metered, ZIP_START};
pub use model::{read_model, read_model_with_weights};
pub use training::Training;
pub use write::{write_model, write_weights};
pub use write_legacy::write_legacy;
