//! Keras 3: `.keras` archives and `.weights.h5` files.

mod archive;

pub use archive::{KerasArchive, KerasTensor, read_keras, read_weights};
