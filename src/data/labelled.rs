//! Labelled texts from CSV and TSV files, and texts of labelled words.

use crate::error::{Error, Result};
use csv::{ReaderBuilder, StringRecord};
use std::path::Path;

/// Texts, each with a label.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labelled {
    /// The texts.
    pub texts: Vec<String>,
    /// A label for each.
    pub labels: Vec<String>,
}

/// Which columns of a file hold what: by its header's names, or by numbers counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Columns {
    /// The text [default: a header's `text`, `sentence` or `review`, else the first].
    pub text: Option<String>,
    /// The label [default: a header's `label`, `class`, `category`, `sentiment` or `target`, else the last].
    pub label: Option<String>,
}

const TEXTS: [&str; 3] = ["text", "sentence", "review"];
const LABELS: [&str; 5] = ["label", "class", "category", "sentiment", "target"];

/// The rows of a file, and its header where it has one: lines of fields between tabs, taken as they are, where its name ends
/// in `.tsv` or `.txt`, else fields between commas that may be quoted.
fn rows(path: &Path, is_header: impl Fn(&StringRecord) -> bool) -> Result<(Option<StringRecord>, Vec<StringRecord>)> {
    let tabs = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv") || e.eq_ignore_ascii_case("txt"));
    let mut reader = ReaderBuilder::new();
    reader.has_headers(false).flexible(true).delimiter(if tabs { b'\t' } else { b',' }).quoting(!tabs);
    let failed = |e: csv::Error| Error::file(path, format!("cannot read: {e}"));
    let mut reader = reader.from_path(path).map_err(failed)?;
    let mut all = reader.records().collect::<std::result::Result<Vec<_>, _>>().map_err(failed)?;
    let header = all.first().is_some_and(is_header).then(|| all.remove(0));
    Ok((header, all))
}

impl Labelled {
    /// Reads a file. Its first line is a header where `columns` or the usual names say so.
    pub fn read(path: &Path, columns: &Columns) -> Result<Self> {
        let named = |field: &str| {
            let asked = [&columns.text, &columns.label].into_iter().flatten();
            asked.into_iter().any(|c| c == field && c.parse::<usize>().is_err())
        };
        let usual = |fields: &StringRecord| {
            let any = |names: &[&str]| fields.iter().any(|f| names.contains(&f.trim().to_lowercase().as_str()));
            fields.len() >= 2 && (any(&TEXTS) || any(&LABELS))
        };
        let (header, rows) = rows(path, |fields| fields.iter().any(named) || usual(fields))?;
        let place = |asked: &Option<String>, usual: &[&str], otherwise: Option<usize>| -> Result<Option<usize>> {
            let fields = header.as_ref();
            match asked {
                None => Ok(fields
                    .and_then(|h| h.iter().position(|f| usual.contains(&f.trim().to_lowercase().as_str())))
                    .or(otherwise)),
                Some(name) => match (fields.and_then(|h| h.iter().position(|f| f == name)), name.parse::<usize>()) {
                    (Some(at), _) => Ok(Some(at)),
                    (None, Ok(number)) if number > 0 => Ok(Some(number - 1)),
                    _ => Err(Error::file(path, format!("there is no column `{name}`"))),
                },
            }
        };
        let text = place(&columns.text, &TEXTS, Some(0))?;
        let label = place(&columns.label, &LABELS, None)?;
        let mut read = Self::default();
        let width = header.as_ref().or(rows.first()).map_or(0, StringRecord::len);
        for (number, row) in rows.iter().enumerate() {
            let line = number + 1 + usize::from(header.is_some());
            if row.len() != width {
                let message = format!("row {line}: expected {width} fields as in the first row, got {}", row.len());
                return Err(Error::file(path, message));
            }
            let label = label.or(row.len().checked_sub(1));
            let field = |at: Option<usize>| at.and_then(|at| row.get(at));
            match (field(text), field(label)) {
                (Some(text_of), Some(label_of)) if label != text && !label_of.trim().is_empty() => {
                    read.texts.push(text_of.to_string());
                    read.labels.push(label_of.trim().to_string());
                }
                _ => {
                    let got = row.len();
                    return Err(Error::file(
                        path,
                        format!("row {line}: expected a text and a label, got {got} fields"),
                    ));
                }
            }
        }
        if read.texts.is_empty() {
            return Err(Error::file(path, "expected rows of a text and a label, got none"));
        }
        Ok(read)
    }

    /// How many texts there are.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// The rows `order`.
    #[must_use]
    pub fn take(&self, order: &[usize]) -> Self {
        let of = |all: &[String]| order.iter().map(|&row| all[row].clone()).collect();
        Self { texts: of(&self.texts), labels: of(&self.labels) }
    }
}

/// Texts whose words have labels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tagged {
    /// The words of each text.
    pub words: Vec<Vec<String>>,
    /// A label for each word.
    pub labels: Vec<Vec<String>>,
}

impl Tagged {
    /// Reads a file of a word and its label on each line (the first and the last of what tabs, or else spaces, separate), with an
    /// empty line between texts, as CoNLL's files are. Lines that begin with `#` and a space, and CoNLL-2003's `-DOCSTART-`, are
    /// passed over.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        let text = text.trim_start_matches('\u{feff}');
        let (mut read, mut words, mut labels) = (Self::default(), Vec::new(), Vec::new());
        for (number, line) in text.lines().chain([""]).enumerate() {
            if line.trim().is_empty() {
                if !words.is_empty() {
                    read.words.push(std::mem::take(&mut words));
                    read.labels.push(std::mem::take(&mut labels));
                }
                continue;
            }
            if line.starts_with("# ") || line.starts_with("-DOCSTART-") {
                continue;
            }
            let fields: Vec<&str> =
                if line.contains('\t') { line.split('\t').collect() } else { line.split_whitespace().collect() };
            match (fields.first().map(|f| f.trim()), fields.last().map(|f| f.trim()), fields.len()) {
                (Some(word), Some(label), 2..)
                    if !word.is_empty() && !label.is_empty() && !word.contains(char::is_whitespace) =>
                {
                    words.push(word.to_string());
                    labels.push(label.to_string());
                }
                _ => {
                    let message = format!("line {}: expected a word and a label, got `{line}`", number + 1);
                    return Err(Error::file(path, message));
                }
            }
        }
        match read.words.is_empty() {
            true => Err(Error::file(path, "expected lines of a word and a label, got none")),
            false => Ok(read),
        }
    }

    /// How many texts there are.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The texts `order`.
    #[must_use]
    pub fn take(&self, order: &[usize]) -> Self {
        let of = |all: &[Vec<String>]| order.iter().map(|&row| all[row].clone()).collect();
        Self { words: of(&self.words), labels: of(&self.labels) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str, columns: &Columns) -> Result<Labelled> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Labelled::read(&path, columns)
    }

    #[test]
    fn columns_are_found_by_name_and_by_place() {
        let plain = Columns::default();
        let wanted =
            Labelled { texts: vec!["good , \"really\"".into(), "bad".into()], labels: vec!["1".into(), "0".into()] };
        assert_eq!(read("a.tsv", "good , \"really\"\t1\nbad\t0\n", &plain).unwrap(), wanted);
        assert_eq!(read("a.csv", "\"good , \"\"really\"\"\",1\nbad,0\n", &plain).unwrap(), wanted);
        let header = "id,Sentiment,Review\n7,1,\"good , \"\"really\"\"\"\n8,0,bad\n";
        assert_eq!(read("a.csv", header, &plain).unwrap(), wanted);
        assert_eq!(read("a.csv", "comment,label\n\"good , \"\"really\"\"\",1\nbad,0\n", &plain).unwrap(), wanted);
        let odd = "stars,id,said\n1,7,\"good , \"\"really\"\"\"\n0,8,bad\n";
        let columns = Columns { text: Some("said".into()), label: Some("stars".into()) };
        assert_eq!(read("a.csv", odd, &columns).unwrap(), wanted);
        let columns = Columns { text: Some("3".into()), label: Some("1".into()) };
        assert_eq!(read("a.csv", odd, &columns).unwrap().len(), 3, "numbers say nothing of a header");
    }

    #[test]
    fn labelled_words_are_read_text_by_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words.txt");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Tagged::read(&path)
        };
        let words = |all: &[&str]| all.iter().map(|w| w.to_string()).collect::<Vec<_>>();
        let wanted = Tagged {
            words: vec![words(&["EU", "rejects"]), words(&["#", "Peter"])],
            labels: vec![words(&["B-ORG", "O"]), words(&["O", "B-PER"])],
        };
        assert_eq!(
            read("-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\n#\tO\nPeter\tB-PER").unwrap(),
            wanted
        );
        assert_eq!(read("# text 1\nEU\tB-ORG\nrejects\tO\n\n# O\n#\tO\nPeter B-PER\n").unwrap(), wanted);
        assert!(read("EU B-ORG\nrejects\n").unwrap_err().to_string().contains("line 2"));
        assert!(read("\n\n").unwrap_err().to_string().contains("got none"));
    }

    #[test]
    fn what_is_no_labelled_text_is_refused_by_row() {
        let plain = Columns::default();
        for (text, wanted) in [("", "got none"), ("a\t1\nb\n", "row 2"), ("only\n", "row 1"), ("a\t1\nb\t \n", "row 2")]
        {
            let error = read("a.tsv", text, &plain).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let columns = Columns { text: Some("said".into()), label: None };
        assert!(read("a.csv", "a,1\n", &columns).unwrap_err().to_string().contains("no column `said`"));
    }
}
