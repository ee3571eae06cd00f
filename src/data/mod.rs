//! Text and series, made ready for training.

pub mod series;
pub mod text;

pub use crate::scheduler::sampler::{Batching, Cost, Sampler};
pub use series::{AIR_PASSENGERS, Scaler, windows};
pub use text::{Corpus, Vocabulary, read_corpus, split};
