//! Tokenizer files of Hugging Face.

use crate::error::{Error, Result};
use std::fmt;
use std::sync::Arc;

/// A tokenizer, with the file that it was made of.
#[derive(Clone)]
pub(super) struct Tokenizer {
    file: Arc<str>,
    #[cfg(feature = "tokenizers")]
    inner: Arc<tokenizers::Tokenizer>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer of {} bytes", self.file.len())
    }
}

impl PartialEq for Tokenizer {
    fn eq(&self, other: &Self) -> bool {
        self.file == other.file
    }
}

impl Eq for Tokenizer {}

impl Tokenizer {
    pub fn file(&self) -> &str {
        &self.file
    }
}

#[cfg(feature = "tokenizers")]
impl Tokenizer {
    pub fn new(file: &str) -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_bytes(file.as_bytes());
        let inner = inner.map_err(|e| Error::data(format!("tokenizer: the file cannot be understood: {e}")))?;
        if inner.get_vocab_size(true) == 0 {
            return Err(Error::data("tokenizer: there is no token"));
        }
        Ok(Self { file: file.into(), inner: Arc::new(inner) })
    }

    /// What each token is called, by its number; numbers that no token has are empty.
    pub fn pieces(&self) -> Vec<String> {
        let tokens = self.inner.get_vocab(true);
        let count = tokens.values().max().map_or(0, |&most| most as usize + 1);
        let mut pieces = vec![String::new(); count];
        tokens.into_iter().for_each(|(piece, token)| pieces[token as usize] = piece);
        pieces
    }

    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false);
        Ok(encoding.map_err(|e| Error::data(format!("tokenizer: {e}")))?.get_ids().to_vec())
    }

    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner.decode(tokens, false).map_err(|e| Error::data(format!("tokenizer: {e}")))
    }
}

#[cfg(not(feature = "tokenizers"))]
impl Tokenizer {
    pub fn new(_: &str) -> Result<Self> {
        Err(Error::unsupported("tokenizer: this program was built without the feature `tokenizers`"))
    }

    pub fn pieces(&self) -> Vec<String> {
        Vec::new()
    }

    pub fn encode(&self, _: &str) -> Result<Vec<u32>> {
        Err(Error::unsupported("tokenizer: this program was built without the feature `tokenizers`"))
    }

    pub fn decode(&self, _: &[u32]) -> Result<String> {
        Err(Error::unsupported("tokenizer: this program was built without the feature `tokenizers`"))
    }
}
