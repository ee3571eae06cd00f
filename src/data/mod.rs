//! Text and series, made ready for training.

pub mod labelled;
pub mod series;
pub mod table;
pub mod text;
mod tokenizer;
pub mod vocabulary;

pub use crate::scheduler::sampler::{Batching, Cost, Sampler};
pub use labelled::{Columns, Labelled, Tagged};
pub use series::{AIR_PASSENGERS, Scaler, windows};
pub use table::Table;
pub use text::{Corpus, read_corpus, split};
pub use vocabulary::{Decoder, Level, Vocabulary};
