//! Columns of numbers from CSV and TSV files: series, a row a moment.

use crate::error::{Error, Result};
use csv::{ReaderBuilder, StringRecord};
use std::path::Path;

/// Series side by side.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// What each column is called.
    pub names: Vec<String>,
    /// Each column's values.
    pub columns: Vec<Vec<f32>>,
    /// How many values of each column were missing, and are as the last before them.
    pub filled: Vec<usize>,
    /// What the file has beside each row in its first column that is no number, for example a date.
    pub moments: Option<Vec<String>>,
}

/// What stands for a value that is missing.
const MISSING: [&str; 8] = ["", "na", "n/a", "nan", "null", "none", "?", "-"];

/// A field that says a number, or that there is none; nothing where it says something else. Where fields are not separated by
/// commas, one comma without a point is decimal; else commas stand before each three digits of the whole part.
fn number(field: &str, decimal_comma: bool) -> Option<Option<f32>> {
    let field = field.trim();
    if MISSING.contains(&field.to_lowercase().as_str()) {
        return Some(None);
    }
    let plain = match field.matches(',').count() {
        0 => field.to_string(),
        1 if decimal_comma && !field.contains('.') => field.replace(',', "."),
        _ => {
            let (whole, _) = field.split_once('.').unwrap_or((field, ""));
            let mut groups = whole.trim_start_matches('-').split(',');
            let first = groups.next().is_some_and(|g| (1..=3).contains(&g.len()));
            if !first || !groups.all(|g| g.len() == 3) || field.rfind(',') > field.find('.').or(Some(usize::MAX)) {
                return None;
            }
            field.replace(',', "")
        }
    };
    plain.parse::<f32>().ok().filter(|v| v.is_finite()).map(Some)
}

/// Which of the usual separators the first line has most of.
fn separator(line: &str) -> u8 {
    *[b',', b';', b'\t', b'|']
        .iter()
        .max_by_key(|&&s| (line.bytes().filter(|b| *b == s).count(), s == b','))
        .unwrap_or(&b',')
}

impl Table {
    /// Reads the columns called `wanted`, or all that hold numbers. Lines that begin with `#` and empty ones are passed over;
    /// the separator is found from the first line, and so is whether it is a header. Missing values are as the last before them, those
    /// at the beginning as the first.
    pub fn read(path: &Path, wanted: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        let text = text.trim_start_matches('\u{feff}');
        let first = text.lines().find(|l| !l.trim().is_empty() && !l.starts_with('#')).unwrap_or_default();
        let mut reader = ReaderBuilder::new();
        reader.has_headers(false).flexible(true).comment(Some(b'#')).delimiter(separator(first)).trim(csv::Trim::All);
        let rows = reader.from_reader(text.as_bytes()).into_records().collect::<std::result::Result<Vec<_>, _>>();
        let mut rows = rows.map_err(|e| Error::file(path, format!("cannot read: {e}")))?;
        rows.retain(|row| row.iter().any(|field| !field.is_empty()));
        let width = rows.first().map_or(0, StringRecord::len);
        if let Some((at, row)) = rows.iter().enumerate().find(|(_, row)| row.len() > width) {
            let got = row.len();
            return Err(Error::file(
                path,
                format!("row {}: expected {width} fields as in the first, got {got}", at + 1),
            ));
        }
        Self::of(&rows, wanted, separator(first) != b',').map_err(|e| e.within(path.display()))
    }

    fn of(rows: &[StringRecord], wanted: &[String], decimal_comma: bool) -> Result<Self> {
        let number = |field: &str| number(field, decimal_comma);
        let width = rows.first().map_or(0, StringRecord::len);
        // A header says something else than a number over a column of numbers.
        let second = rows.get(1);
        let over_numbers = |at: usize| {
            let below = second.and_then(|row| row.get(at)).and_then(number);
            below.is_some() && rows[0].get(at).is_some_and(|f| number(f).is_none())
        };
        let has_header = (0..width).any(over_numbers);
        let names: Vec<String> = match rows.first().filter(|_| has_header) {
            Some(header) => header.iter().map(String::from).collect(),
            None => (1..=width).map(|n| format!("column {n}")).collect(),
        };
        let body = &rows[usize::from(has_header)..];
        let field = |row: &StringRecord, at: usize| row.get(at).unwrap_or_default().to_string();
        let numeric: Vec<usize> =
            (0..width).filter(|&at| body.iter().all(|row| number(row.get(at).unwrap_or_default()).is_some())).collect();
        let place = |name: &String| {
            let at = names.iter().position(|n| n == name);
            let at = at.or_else(|| name.parse::<usize>().ok().filter(|&n| n > 0 && n <= width).map(|n| n - 1));
            at.ok_or_else(|| Error::argument(format!("there is no column `{name}`, only {}", names.join(", "))))
        };
        let mut chosen: Vec<usize> = wanted.iter().map(place).collect::<Result<_>>()?;
        if chosen.is_empty() {
            chosen = numeric.clone();
        }
        if chosen.is_empty() || body.len() < 2 {
            let rows = body.len();
            return Err(Error::data(format!(
                "expected a column of at least two numbers, got {rows} rows of {width} fields"
            )));
        }
        let (mut columns, mut filled) = (Vec::new(), Vec::new());
        for &at in &chosen {
            let of = |(line, row): (usize, &StringRecord)| {
                number(row.get(at).unwrap_or_default()).ok_or_else(|| {
                    let (name, got) = (&names[at], field(row, at));
                    Error::data(format!("row {} of `{name}`: expected a number, got `{got}`", line + 1))
                })
            };
            let values = body.iter().enumerate().map(of).collect::<Result<Vec<Option<f32>>>>()?;
            filled.push(values.iter().filter(|v| v.is_none()).count());
            columns.push(fill(&values).ok_or_else(|| Error::data(format!("`{}` has no number", names[at])))?);
        }
        let moments = (0..width).find(|at| !numeric.contains(at) && !chosen.contains(at));
        let moments = moments.map(|at| body.iter().map(|row| field(row, at)).collect());
        Ok(Self { names: chosen.iter().map(|&at| names[at].clone()).collect(), columns, filled, moments })
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.columns.first().map_or(0, Vec::len)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Values with those that are missing like the last before them, for nothing may be known before its time; none where all are
/// missing.
fn fill(values: &[Option<f32>]) -> Option<Vec<f32>> {
    let mut last = values.iter().find_map(|v| *v)?;
    let filled = values.iter().map(|value| {
        last = value.unwrap_or(last);
        last
    });
    Some(filled.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, wanted: &[&str]) -> Result<Table> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("series.csv");
        std::fs::write(&path, text).unwrap();
        Table::read(&path, &wanted.iter().map(|w| w.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn headers_separators_and_missing_values_are_understood() {
        let wanted = [vec![1.0, 1.0, 3.0, 4.0], vec![10.0, 10.0, 20.0, 20.0]];
        for text in [
            "date,sales,\"price, net\"\n2020-01,1,\n2020-02,NA,10\n2020-03,3,20\n2020-04,4,n/a\n",
            "\u{feff}# from the till\nday;a;b\nmo;1;?\ntu;;10\n\nwe;3;20\nth;4;-\n",
            "mo\t1\tnull\ntu\tNaN\t10\nwe\t3\t20\nth\t4\tnone\n",
        ] {
            let table = read(text, &[]).unwrap();
            assert_eq!((table.columns.as_slice(), table.filled.as_slice()), (&wanted[..], &[1, 2][..]), "{text}");
            assert_eq!(table.moments.as_ref().unwrap().len(), 4);
        }
        let table =
            read("date,sales,\"price, net\"\n2020-01,1,\n2020-02,NA,10\n2020-03,3,20\n", &["price, net"]).unwrap();
        assert_eq!(
            (table.names.as_slice(), table.columns[0].as_slice()),
            (&["price, net".to_string()][..], &[10.0, 10.0, 20.0][..])
        );
        assert_eq!(read("1\n2\n3\n", &[]).unwrap().names, ["column 1"]);
        assert_eq!(read("t\n\"1,234.5\"\n-2e3\n", &[]).unwrap().columns[0], [1234.5, -2000.0]);
        assert_eq!(read("d;v\na;1,5\nb;12,25\n", &[]).unwrap().columns[0], [1.5, 12.25]);
        assert_eq!(read("x,y\n1,2\n3,4\n", &["2"]).unwrap().columns[0], [2.0, 4.0]);
    }

    #[test]
    fn what_is_no_series_is_refused() {
        for (text, wanted, says) in [
            ("", &[][..], "at least two numbers"),
            ("a,b\nx,y\nz,w\n", &[], "at least two numbers"),
            ("a,b\n1,y\n2,w\n", &["b"], "row 1 of `b`: expected a number, got `y`"),
            ("a,b\n1,y\n2,w\n", &["c"], "no column `c`, only a, b"),
            ("a\n1\n", &[], "got 1 rows"),
            ("v\n1,5\n2,5\n", &[], "row 2: expected 1 fields"),
            ("v\n\"1,5\"\n\"2,5\"\n", &[], "at least two numbers"),
            ("a,b\n1,\n2,\n", &["b"], "`b` has no number"),
        ] {
            let error = read(text, wanted).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
