//! What a language model reads and writes, as numbers: characters, bytes, words, or a tokenizer's tokens.

use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};

/// What a text is cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Unicode characters.
    #[default]
    Characters,
    /// The bytes of UTF-8.
    Bytes,
    /// What white space separates, and the end of each line, `<eos>`.
    Words,
    /// Those of a tokenizer file of Hugging Face.
    Tokens,
}

impl Level {
    /// What one token is called.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Characters => "character",
            Self::Bytes => "byte",
            Self::Words => "word",
            Self::Tokens => "token",
        }
    }
}

/// Tokens of a tokenizer that are decoded together, at most.
const TOGETHER: usize = 64;
/// The word at the end of each line.
pub const END: &str = "<eos>";
/// The word that stands for those that are not known.
pub const UNKNOWN: &str = "<unk>";

/// The tokens of a text by number. Characters are sorted; words come as they were met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Vocabulary {
    level: Level,
    pieces: Vec<String>,
    tokens: HashMap<String, u32>,
    tokenizer: Option<Tokenizer>,
}

/// As files have it. Characters are a list of them, as they always were.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Stored {
    Characters(Vec<char>),
    Other {
        level: Level,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        words: Vec<String>,
        /// The file, as it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tokenizer: Option<String>,
    },
}

impl From<Vocabulary> for Stored {
    fn from(vocabulary: Vocabulary) -> Self {
        let Vocabulary { level, pieces, tokenizer, .. } = vocabulary;
        match level {
            Level::Characters => Self::Characters(pieces.iter().flat_map(|p| p.chars()).collect()),
            Level::Bytes => Self::Other { level, words: Vec::new(), tokenizer: None },
            Level::Words => Self::Other { level, words: pieces, tokenizer: None },
            Level::Tokens => {
                Self::Other { level, words: Vec::new(), tokenizer: tokenizer.map(|t| t.file().to_string()) }
            }
        }
    }
}

impl TryFrom<Stored> for Vocabulary {
    type Error = Error;

    fn try_from(stored: Stored) -> Result<Self> {
        match stored {
            Stored::Characters(all) => Self::new(Level::Characters, all.into_iter().map(String::from).collect()),
            Stored::Other { level: Level::Bytes, .. } => Ok(Self::bytes()),
            Stored::Other { level: Level::Tokens, tokenizer, .. } => {
                Self::of_tokenizer(&tokenizer.ok_or_else(|| Error::data("vocabulary: expected a tokenizer, got none"))?)
            }
            Stored::Other { level, words, .. } => Self::new(level, words),
        }
    }
}

impl Vocabulary {
    fn new(level: Level, pieces: Vec<String>) -> Result<Self> {
        let unit = level.unit();
        if pieces.is_empty() {
            return Err(Error::data(format!("vocabulary: there is no {unit}")));
        }
        let tokens: HashMap<String, u32> = pieces.iter().enumerate().map(|(i, p)| (p.clone(), i as u32)).collect();
        if tokens.len() != pieces.len() {
            return Err(Error::data(format!("vocabulary: a {unit} is there twice")));
        }
        if let (Level::Words, Some(missing)) = (level, [END, UNKNOWN].into_iter().find(|w| !tokens.contains_key(*w))) {
            return Err(Error::data(format!("vocabulary: expected the word {missing}, there is none")));
        }
        Ok(Self { level, pieces, tokens, tokenizer: None })
    }

    /// The tokens of a tokenizer, from the JSON of its file (`tokenizer.json`, as the library `tokenizers` of Hugging Face writes it).
    /// Special tokens are put into no text.
    pub fn of_tokenizer(file: &str) -> Result<Self> {
        let tokenizer = Tokenizer::new(file)?;
        let pieces = tokenizer.pieces();
        let tokens = pieces.iter().enumerate().map(|(i, p)| (p.clone(), i as u32)).collect();
        Ok(Self { level: Level::Tokens, pieces, tokens, tokenizer: Some(tokenizer) })
    }

    /// The characters of `text`.
    pub fn of(text: &str) -> Result<Self> {
        let characters: BTreeSet<char> = text.chars().collect();
        Self::new(Level::Characters, characters.into_iter().map(String::from).collect())
    }

    /// All bytes.
    pub fn bytes() -> Self {
        // A byte's piece is the character of its number, which tells it from others.
        let pieces: Vec<String> = (0..=255u8).map(|b| char::from(b).to_string()).collect();
        let tokens = pieces.iter().enumerate().map(|(i, p)| (p.clone(), i as u32)).collect();
        Self { level: Level::Bytes, pieces, tokens, tokenizer: None }
    }

    /// The words that `text` has at least `least` times, and those for a line's end and for what is not known.
    pub fn words(text: &str, least: usize) -> Result<Self> {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        let mut order = Vec::new();
        for word in split_words(text).chain([UNKNOWN, END]) {
            let count = counts.entry(word).or_insert(0);
            if *count == 0 {
                order.push(word);
            }
            *count += 1;
        }
        let kept = |word: &&str| *word == UNKNOWN || *word == END || counts[word] >= least;
        Self::new(Level::Words, order.into_iter().filter(kept).map(String::from).collect())
    }

    /// The vocabulary of `text` at a level; words that it has at least `least` times.
    pub fn at(level: Level, text: &str, least: usize) -> Result<Self> {
        match level {
            Level::Characters => Self::of(text),
            Level::Bytes => Ok(Self::bytes()),
            Level::Words => Self::words(text, least),
            Level::Tokens => Err(Error::argument("vocabulary: tokens are those of a tokenizer, not of a text")),
        }
    }

    /// What its tokens are.
    pub fn level(&self) -> Level {
        self.level
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Never: a vocabulary has at least one token.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The token of a character, a word, or the character of a byte's number.
    pub fn token(&self, piece: &str) -> Option<u32> {
        self.tokens.get(piece).copied()
    }

    /// The token at which a line ends, or the first.
    pub fn line_end(&self) -> u32 {
        let end = match self.level {
            Level::Words => self.token(END),
            Level::Tokens => self.encode("\n").ok().and_then(|tokens| tokens.last().copied()),
            Level::Characters | Level::Bytes => self.token("\n"),
        };
        end.unwrap_or(0)
    }

    /// The tokens of `text`. Words that are not known become `<unk>`; characters that are not known are an error.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self.level {
            Level::Tokens => self.tokenizer()?.encode(text),
            Level::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Level::Words => {
                let unknown = self.token(UNKNOWN).ok_or_else(|| Error::internal("a vocabulary without <unk>"))?;
                Ok(split_words(text).map(|word| self.token(word).unwrap_or(unknown)).collect())
            }
            Level::Characters => {
                let mut buffer = [0; 4];
                let token = |(at, c): (usize, char)| {
                    self.token(c.encode_utf8(&mut buffer)).ok_or_else(|| {
                        Error::data(format!(
                            "vocabulary: the character {c:?} (U+{:04X}) at position {at} is not among the {} that the \
                             model was trained on",
                            c as u32,
                            self.len()
                        ))
                    })
                };
                text.chars().enumerate().map(token).collect()
            }
        }
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| Error::internal("vocabulary: tokens without a tokenizer"))
    }

    /// The text of `tokens`, as a [`Decoder`] writes it.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        let mut decoder = Decoder::new(self);
        let mut text = tokens.iter().map(|&token| decoder.push(token)).collect::<Result<String>>()?;
        text += &decoder.finish();
        Ok(text)
    }
}

/// Writes text as its tokens come. Words have a space between them, and each line's end is one; bytes that are no UTF-8 come
/// out as U+FFFD.
pub struct Decoder<'a> {
    vocabulary: &'a Vocabulary,
    /// Whether a word follows nothing on its line.
    begins: bool,
    /// Of a character that is not whole yet.
    bytes: Vec<u8>,
    /// Of what a tokenizer's tokens say together: those of the last whole text, and what they said.
    said: (Vec<u32>, String),
}

impl<'a> Decoder<'a> {
    /// At the beginning of a text.
    pub fn new(vocabulary: &'a Vocabulary) -> Self {
        Self { vocabulary, begins: true, bytes: Vec::new(), said: (Vec::new(), String::new()) }
    }

    /// What a token adds to the text.
    pub fn push(&mut self, token: u32) -> Result<String> {
        let Some(piece) = self.vocabulary.pieces.get(token as usize) else {
            let known = self.vocabulary.len();
            return Err(Error::data(format!("vocabulary: expected tokens below {known}, got {token}")));
        };
        Ok(match self.vocabulary.level {
            Level::Characters => piece.clone(),
            Level::Tokens => {
                let (tokens, said) = &mut self.said;
                tokens.push(token);
                let text = self.vocabulary.tokenizer()?.decode(tokens)?;
                // What a token says may depend on the one before it, and half a character comes out as U+FFFD.
                if text.ends_with('\u{fffd}') || !text.starts_with(said.as_str()) {
                    return Ok(String::new());
                }
                let new = text[said.len()..].to_string();
                if tokens.len() > TOGETHER {
                    let last = tokens.split_off(tokens.len() - 1);
                    (*said, *tokens) = (self.vocabulary.tokenizer()?.decode(&last)?, last);
                } else {
                    *said = text;
                }
                new
            }
            Level::Bytes => {
                self.bytes.push(token as u8);
                match std::str::from_utf8(&self.bytes) {
                    Err(e) if e.error_len().is_none() => String::new(),
                    _ => self.finish(),
                }
            }
            Level::Words => {
                let begins = std::mem::replace(&mut self.begins, piece == END);
                match (piece == END, begins) {
                    (true, _) => "\n".to_string(),
                    (false, true) => piece.clone(),
                    (false, false) => format!(" {piece}"),
                }
            }
        })
    }

    /// What is left of a character that never became whole.
    pub fn finish(&mut self) -> String {
        let (tokens, said) = std::mem::take(&mut self.said);
        if let (false, Ok(tokenizer)) = (tokens.is_empty(), self.vocabulary.tokenizer()) {
            let text = tokenizer.decode(&tokens).unwrap_or_default();
            return text.strip_prefix(said.as_str()).unwrap_or_default().to_string();
        }
        let bytes = std::mem::take(&mut self.bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Words, and `<eos>` at the end of each line. A text that does not end a line ends in none.
fn split_words(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').flat_map(|line| line.split_whitespace().chain(line.ends_with('\n').then_some(END)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_to_tokens_and_back_and_unseen_characters_are_named() {
        let vocabulary = Vocabulary::of("hello wörld").unwrap();
        let tokens = vocabulary.encode("wörld").unwrap();
        assert_eq!(vocabulary.decode(&tokens).unwrap(), "wörld");
        let error = vocabulary.encode("hex").unwrap_err().to_string();
        assert!(error.contains("'x'") && error.contains("position 2"), "{error}");
        assert!(vocabulary.decode(&[99]).is_err());
        assert!(Vocabulary::of("").is_err());
        let json = serde_json::to_string(&vocabulary).unwrap();
        assert!(json.starts_with("[\" \","), "{json}");
        assert_eq!(serde_json::from_str::<Vocabulary>(&json).unwrap(), vocabulary);
        assert!(serde_json::from_str::<Vocabulary>(r#"["a","a"]"#).is_err());
    }

    #[test]
    fn words_are_those_of_enough_places_and_lines_end() {
        let text = "the cat sat\nthe dog sat\n\nthe end";
        let vocabulary = Vocabulary::words(text, 2).unwrap();
        assert_eq!(vocabulary.len(), 4, "the, sat, <eos>, <unk>");
        let tokens = vocabulary.encode(text).unwrap();
        assert_eq!(vocabulary.decode(&tokens).unwrap(), "the <unk> sat\nthe <unk> sat\n\nthe <unk>");
        assert_eq!(
            (vocabulary.decode(&[vocabulary.line_end()]).unwrap(), vocabulary.token("cat")),
            ("\n".into(), None)
        );
        let json = serde_json::to_string(&vocabulary).unwrap();
        assert_eq!(serde_json::from_str::<Vocabulary>(&json).unwrap(), vocabulary);
        assert!(serde_json::from_str::<Vocabulary>(r#"{"level":"words","words":["a"]}"#).is_err());
    }

    #[test]
    fn bytes_know_every_text() {
        let vocabulary = Vocabulary::bytes();
        let tokens = vocabulary.encode("ö\n").unwrap();
        assert_eq!(tokens, [0xc3, 0xb6, 10]);
        assert_eq!((vocabulary.decode(&tokens).unwrap(), vocabulary.line_end()), ("ö\n".to_string(), 10));
        assert_eq!(vocabulary.decode(&tokens[1..]).unwrap(), "\u{fffd}\n");
        let json = serde_json::to_string(&vocabulary).unwrap();
        assert_eq!(serde_json::from_str::<Vocabulary>(&json).unwrap(), vocabulary);
    }

    /// A byte-level BPE of twelve tokens.
    #[cfg(feature = "tokenizers")]
    const BPE: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
        "post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
        "model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,
        "fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{"t":0,"h":1,"e":2,"\u0120":3,"c":4,"a":5,
        "th":6,"the":7,"\u010a":8,"\u00c3":9,"\u00b6":10,"\u0120c":11},"merges":["t h","th e","\u0120 c"]}}"#;

    #[cfg(feature = "tokenizers")]
    #[test]
    fn a_tokenizers_tokens_come_back_as_text_piece_by_piece() {
        let vocabulary = Vocabulary::of_tokenizer(BPE).unwrap();
        let tokens = vocabulary.encode("the cat\nö").unwrap();
        assert_eq!((tokens.as_slice(), vocabulary.len()), (&[7, 11, 5, 0, 8, 9, 10][..], 12));
        let mut decoder = Decoder::new(&vocabulary);
        let pieces: Vec<String> = tokens.iter().map(|&t| decoder.push(t).unwrap()).collect();
        assert_eq!(pieces, ["the", " c", "a", "t", "\n", "", "ö"], "half a character waits for the other");
        assert_eq!(decoder.finish(), "");
        let long = tokens.repeat(40);
        assert_eq!(vocabulary.decode(&long).unwrap(), "the cat\nö".repeat(40));
        assert_eq!(vocabulary.decode(&tokens[..6]).unwrap(), "the cat\n\u{fffd}");
        assert!(vocabulary.line_end() == 8 && vocabulary.decode(&[12]).is_err());
        let json = serde_json::to_string(&vocabulary).unwrap();
        assert_eq!(serde_json::from_str::<Vocabulary>(&json).unwrap(), vocabulary);
        assert!(Vocabulary::of_tokenizer("{}").unwrap_err().to_string().contains("tokenizer"));
    }
}
