//! Text, read from files and folders.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Text from files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    /// All files' text, one after the other.
    pub text: String,
    /// Files read.
    pub files: usize,
    /// Files skipped because they are not text.
    pub skipped: usize,
}

/// Reads files, and folders with all that is in them, in sorted order. Files that are not UTF-8 or hold a NUL are
/// skipped and counted.
pub fn read_corpus(paths: &[impl AsRef<Path>]) -> Result<Corpus> {
    let mut corpus = Corpus { text: String::new(), files: 0, skipped: 0 };
    for path in paths {
        read_path(path.as_ref(), &mut corpus)?;
    }
    if corpus.text.is_empty() {
        return Err(Error::data(format!(
            "text: expected at least one character, got none from {} text files ({} other files skipped)",
            corpus.files, corpus.skipped
        )));
    }
    Ok(corpus)
}

fn read_path(path: &Path, corpus: &mut Corpus) -> Result<()> {
    let info = std::fs::metadata(path).map_err(|e| Error::io(path, "open", e))?;
    if info.is_dir() {
        let entries = std::fs::read_dir(path).and_then(|all| all.map(|e| Ok(e?.path())).collect());
        let mut entries: Vec<PathBuf> = entries.map_err(|e| Error::io(path, "list", e))?;
        entries.sort();
        // A link inside a folder could lead back to it.
        return entries.iter().filter(|p| !p.is_symlink()).try_for_each(|entry| read_path(entry, corpus));
    }
    if !info.is_file() {
        corpus.skipped += 1;
        return Ok(());
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => {
            corpus.text.push_str(&text);
            corpus.files += 1;
        }
        _ => corpus.skipped += 1,
    }
    Ok(())
}

/// Where validation begins if the last `share` of `length` characters is for it.
pub fn split(length: usize, share: f64) -> Result<usize> {
    if !(0.0..1.0).contains(&share) {
        return Err(Error::argument(format!("split: the validation share must be in [0, 1), got {share}")));
    }
    Ok(length - (length as f64 * share) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_read_in_order_and_what_is_not_text_is_counted() {
        let folder = std::env::temp_dir().join(format!("mnemon-corpus-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("b")).unwrap();
        std::fs::write(folder.join("c.txt"), "three").unwrap();
        std::fs::write(folder.join("a.txt"), "one ").unwrap();
        std::fs::write(folder.join("b/two"), "two ").unwrap();
        std::fs::write(folder.join("b/binary"), [0xffu8, 0xfe, 0]).unwrap();
        std::fs::write(folder.join("nul"), "a\0b").unwrap();
        let corpus = read_corpus(&[&folder]).unwrap();
        assert_eq!(corpus, Corpus { text: "one two three".to_string(), files: 3, skipped: 2 });
        assert!(
            read_corpus(&[folder.join("nul")]).unwrap_err().to_string().contains("expected at least one character")
        );
        assert!(read_corpus(&[folder.join("missing")]).unwrap_err().to_string().contains("missing"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_last_tenth_is_for_validation() {
        assert_eq!(
            [split(1_115_394, 0.1).unwrap(), split(30, 0.1).unwrap(), split(9, 0.1).unwrap()],
            [1_003_855, 27, 9]
        );
        assert!(split(10, 1.0).is_err() && split(10, f64::NAN).is_err());
    }
}
