//! What a file saved by Keras 3 holds: a model's configuration, and its weights by path.
//!
//! The file is untrusted. What is allocated follows bytes that exist, not sizes that the file claims, and reading is
//! metered: a small file can refer to its own parts so often that a reader of it never ends.

use crate::error::{Error, Result};
use hdf5_pure::{Datatype, DatatypeByteOrder, FloatingPointLayout, Layout, ReadSeekSource};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;
use zip::{ZipArchive, result::ZipError};

/// The most bytes that the weights in a `.keras` file may unpack to: they are held in memory.
const WEIGHTS_LIMIT: u64 = 4 << 30;
/// The most bytes that a JSON member may unpack to; parsed JSON takes many times its size.
pub(super) const JSON_LIMIT: u64 = 16 << 20;
/// The most groups and datasets that are visited: one may have many names, and groups may form a circle.
const OBJECT_LIMIT: usize = 1 << 17;
/// The longest path in bytes, which also keeps groups from being nested more than half as deep.
const PATH_LIMIT: usize = 1 << 10;
/// How many times over a file may be read, and the bytes on top that make this no matter for a small one.
const READ_FACTOR: u64 = 32;
const READ_ALLOWANCE: u64 = 64 << 20;
/// What a read costs beside its bytes, so that short reads come to an end too.
const READ_COST: u64 = 64;
/// The stack that hdf5-pure may need: it recurses into a datatype, of which one message can nest some 8000, each
/// taking some 14 KiB in a build without optimisation. What is not used takes no memory.
const STACK: usize = 256 << 20;

/// How a zip archive begins.
pub(in crate::io) const ZIP_START: &[u8] = b"PK\x03\x04";
/// Where an optimiser counts its steps.
const STEP: &str = "optimizer/vars/0";
/// How the names of the numbers of steps of an optimiser end in files of one group for it, by version.
const COUNTERS: [&str; 4] = ["/iteration", "/iteration:0", "/iter:0", "/iterations:0"];
/// What an optimiser keeps, in a whole model in HDF5.
pub(super) const OPTIMIZER: &str = "optimizer_weights";
/// How an HDF5 file begins.
pub(in crate::io) const HDF5_START: &[u8] = b"\x89HDF\r\n\x1a\n";

/// What a `.keras` file holds.
#[derive(Debug, Clone, PartialEq)]
pub struct KerasArchive {
    /// The version of Keras that saved it, such as `3.15.1`.
    pub keras_version: String,
    /// `config.json` as it is: the model's class, layers and settings.
    pub config: Value,
    /// Every float dataset by its path inside the HDF5 file, such as `layers/lstm/cell/vars/0`.
    pub weights: BTreeMap<String, KerasTensor>,
    /// The layer's name by the path of the group that carries it, such as `layers/lstm/cell/vars`.
    pub names: BTreeMap<String, String>,
    /// Steps that its optimiser has taken, if it has one.
    pub step: Option<u64>,
}

/// The values of one weight, row-major; f64 are rounded to f32.
#[derive(Debug, Clone, PartialEq)]
pub struct KerasTensor {
    /// The size of each axis; empty for a scalar.
    pub shape: Vec<usize>,
    /// As many values as the product of `shape`.
    pub data: Vec<f32>,
}

/// Reads a `.keras` file.
pub fn read_keras(path: &Path) -> Result<KerasArchive> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    keras_from(path, BufReader::new(file))
}

/// Reads a `.weights.h5` file: every float dataset by its path.
pub fn read_weights(path: &Path) -> Result<BTreeMap<String, KerasTensor>> {
    Ok(read_hdf5(path)?.weights)
}

/// Reads all that an HDF5 file of Keras holds.
pub(super) fn read_hdf5(path: &Path) -> Result<Contents> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    hdf5_from(path, file)
}

fn keras_from<R: Read + Seek>(path: &Path, reader: R) -> Result<KerasArchive> {
    let reader = Metered::new(path, reader, ZIP_START, "a .keras file, which is a zip archive")?;
    let mut archive = ZipArchive::new(reader)
        .map_err(|e| Error::file(path, format!("expected a whole zip archive: {e}")).caused_by(e))?;
    let metadata = json(path, &mut archive, "metadata.json")?;
    let Some(version) = metadata.get("keras_version").and_then(Value::as_str) else {
        return Err(Error::file(path, "expected `keras_version` in its metadata.json"));
    };
    let config = json(path, &mut archive, "config.json")?;
    let bytes = member(path, &mut archive, "model.weights.h5", WEIGHTS_LIMIT)?;
    let Contents { weights, names, step, .. } = hdf5_from(&path.join("model.weights.h5"), Cursor::new(bytes))?;
    Ok(KerasArchive { keras_version: version.to_string(), config, weights, names, step })
}

fn json<R: Read + Seek>(path: &Path, archive: &mut ZipArchive<R>, name: &str) -> Result<Value> {
    let bytes = member(path, archive, name, JSON_LIMIT)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::file(path, format!("`{name}` is not JSON: {e}")).caused_by(e))
}

/// The bytes of the member with exactly this name.
fn member<R: Read + Seek>(path: &Path, archive: &mut ZipArchive<R>, name: &str, limit: u64) -> Result<Vec<u8>> {
    let entry = archive.by_name(name).map_err(|e| match e {
        ZipError::FileNotFound => Error::file(path, format!("expected a file of Keras 3, but it has no `{name}`")),
        e => Error::file(path, format!("cannot read `{name}`: {e}")).caused_by(e),
    })?;
    let size = entry.size();
    if size > limit {
        return Err(Error::file(path, format!("expected at most {limit} bytes in `{name}`, got {size}")));
    }
    // The buffer grows with what is unpacked, and one byte past the stated size already tells that it is not true.
    let mut bytes = Vec::new();
    entry.take(size + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, &format!("read `{name}`"), e))?;
    if bytes.len() as u64 != size {
        return Err(Error::file(path, format!("expected {size} bytes in `{name}`, as it states, got others")));
    }
    Ok(bytes)
}

/// What one HDF5 file holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub weights: BTreeMap<String, KerasTensor>,
    pub names: BTreeMap<String, String>,
    pub step: Option<u64>,
    /// The attributes of whole models, by the path of their group and their name.
    texts: BTreeMap<(String, String), Vec<String>>,
}

impl Contents {
    /// The attribute of a group, if it is one text.
    pub fn text(&self, group: &str, name: &str) -> Option<&str> {
        match self.texts.get(&(group.to_string(), name.to_string())).map(Vec::as_slice) {
            Some([one]) => Some(one),
            _ => None,
        }
    }

    /// The attribute of a group, a list that is in parts `name0`, `name1` and so on where it is long; empty if there is
    /// none.
    pub fn list(&self, group: &str, name: &str) -> Vec<String> {
        let part = |name: String| self.texts.get(&(group.to_string(), name));
        match part(name.to_string()) {
            Some(whole) => whole.clone(),
            None => (0..).map_while(|at| part(format!("{name}{at}"))).flatten().cloned().collect(),
        }
    }
}

/// Which attributes are those of whole models: texts, and lists in one part or several.
fn is_text(name: &str) -> bool {
    let lists = ["layer_names", "weight_names"];
    let listed = lists.iter().filter_map(|l| name.strip_prefix(l)).any(|n| n.bytes().all(|b| b.is_ascii_digit()));
    listed || ["keras_version", "model_config", "training_config"].contains(&name)
}

/// Reads HDF5 on a thread of its own, which has the stack for any file and whose panic is an error here: hdf5-pure
/// states some of what it assumes about a file as `expect` and `unreachable`.
fn hdf5_from<R: Read + Seek + Send + 'static>(path: &Path, reader: R) -> Result<Contents> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("hdf5".to_string()).stack_size(STACK);
        let walk = thread.spawn_scoped(scope, || Walk::run(path, reader)).map_err(|e| Error::io(path, "read", e))?;
        walk.join().unwrap_or_else(|_| Err(Error::file(path, "the HDF5 in it is damaged in a way not foreseen")))
    })
}

/// A walk over all groups of an HDF5 file.
struct Walk<'a> {
    path: &'a Path,
    /// How many bytes of values may still be read; together they are no more than the file is long.
    bytes_left: u64,
    visited: usize,
    found: Contents,
}

impl Walk<'_> {
    fn run<R: Read + Seek + Send + 'static>(path: &Path, reader: R) -> Result<Contents> {
        let reader = Metered::new(path, reader, HDF5_START, "an HDF5 file of Keras")?;
        let length = reader.length;
        let source = ReadSeekSource::new(reader).map_err(|e| Error::file(path, e))?;
        let file = hdf5_pure::File::from_source(source)
            .map_err(|e| Error::file(path, format!("expected a whole HDF5 file: {e}")).caused_by(e))?;
        let whole = file.superblock().eof_address;
        if whole > length {
            return Err(Error::file(path, format!("expected a whole HDF5 file of {whole} bytes, got {length}")));
        }
        let mut walk = Walk { path, bytes_left: length, visited: 0, found: Contents::default() };
        walk.group(&file.root(), "")?;
        Ok(walk.found)
    }

    /// Visits a group and what is in it. Only hard links are listed: hdf5-pure follows none out of the file.
    fn group(&mut self, group: &hdf5_pure::Group, at: &str) -> Result<()> {
        let broken = |e| failure(self.path, "group", at, e);
        let attributes = group.attrs().map_err(broken)?;
        let (datasets, groups) = (group.iter_datasets().map_err(broken)?, group.iter_groups().map_err(broken)?);
        if let Some(name) = attributes.get("name").and_then(|value| value.as_str()) {
            self.found.names.insert(at.to_string(), name.to_string());
        }
        for (name, value) in attributes.iter().filter(|(name, _)| is_text(name)) {
            if let Some(texts) = value.as_strings() {
                self.found.texts.insert((at.to_string(), name.clone()), texts.to_vec());
            }
        }
        for (name, dataset) in datasets {
            let at = self.child(at, &name)?;
            self.dataset(&dataset, at)?;
        }
        for (name, child) in groups {
            let at = self.child(at, &name)?;
            self.group(&child, &at)?;
        }
        Ok(())
    }

    /// The path of the member called `name` of the group at `parent`, which counts as visited.
    fn child(&mut self, parent: &str, name: &str) -> Result<String> {
        self.visited += 1;
        if self.visited > OBJECT_LIMIT {
            return Err(Error::file(self.path, format!("expected at most {OBJECT_LIMIT} groups and datasets")));
        }
        if name.is_empty() || name.contains('/') || parent.len() + name.len() > PATH_LIMIT {
            let expected = format!("expected names without `/` and paths of at most {PATH_LIMIT} bytes");
            return Err(Error::file(self.path, format!("group `{parent}`: {expected}")));
        }
        Ok(if parent.is_empty() { name.to_string() } else { format!("{parent}/{name}") })
    }

    /// Reads a dataset of floats, and passes over whole numbers, which are counters and seeds, but for the step.
    fn dataset(&mut self, dataset: &hdf5_pure::Dataset, at: String) -> Result<()> {
        let path = self.path;
        let broken = |e| failure(path, "dataset", &at, e);
        let datatype = dataset.datatype().map_err(broken)?;
        let layout = dataset.layout().map_err(broken)?;
        if matches!(datatype, Datatype::FixedPoint { .. } | Datatype::Enumeration { .. }) {
            let one = matches!(layout, Layout::Contiguous { .. } | Layout::Compact { .. })
                && dataset.shape().is_ok_and(|shape| shape.is_empty());
            let counts = |name: &str| COUNTERS.iter().any(|end| name.ends_with(end));
            let steps = at == STEP || at.strip_prefix(OPTIMIZER).is_some_and(counts);
            if steps && one {
                let values = dataset.read_i64().map_err(broken)?;
                self.found.step = values.first().and_then(|&step| u64::try_from(step).ok());
            }
            return Ok(());
        }
        // Keras writes no chunks, and hdf5-pure allocates a chunk by the size that the file claims for it.
        let whole = matches!(layout, Layout::Contiguous { .. } | Layout::Compact { .. });
        let Some(width) = float_width(&datatype).filter(|_| whole) else {
            let got = format!("{:.60}{}", datatype.to_string(), if whole { "" } else { " in chunks" });
            let message = format!("dataset `{at}`: expected f32 or f64 in one piece, got {got}");
            return Err(Error::unsupported(format!("{}: {message}", path.display())));
        };
        let shape = dataset.shape().map_err(broken)?;
        // Values that were never written are not in the file, yet hdf5-pure makes as many as the shape claims.
        let bytes = shape.iter().try_fold(width, |bytes, &size| bytes.checked_mul(size));
        let left = bytes.and_then(|bytes| self.bytes_left.checked_sub(bytes));
        let sizes = shape.iter().map(|&size| usize::try_from(size).ok()).collect::<Option<Vec<usize>>>();
        let (Some(left), Some(shape)) = (left, sizes) else {
            return Err(Error::file(path, format!("dataset `{at}`: the file is too short for shape {shape:?}")));
        };
        self.bytes_left = left;
        let data = dataset.read_f32().map_err(broken)?;
        if data.len() != shape.iter().product::<usize>() {
            let message = format!("dataset `{at}`: expected values of shape {shape:?}, got {} values", data.len());
            return Err(Error::file(path, message));
        }
        if self.found.weights.insert(at.clone(), KerasTensor { shape, data }).is_some() {
            return Err(Error::file(path, format!("dataset `{at}`: expected it once, got it twice")));
        }
        Ok(())
    }
}

fn failure(path: &Path, what: &str, at: &str, error: hdf5_pure::Error) -> Error {
    Error::file(path, format!("{what} `{at}`: {error}")).caused_by(error)
}

/// The bytes of one value, if it is an IEEE f32 or f64: hdf5-pure takes every float of 4 or 8 bytes for one.
fn float_width(datatype: &Datatype) -> Option<u64> {
    let Datatype::FloatingPoint { size, byte_order, layout } = datatype else { return None };
    let ieee = match size {
        4 => FloatingPointLayout::IEEE754_BINARY32,
        8 => FloatingPointLayout::IEEE754_BINARY64,
        _ => return None,
    };
    (*layout == ieee && *byte_order != DatatypeByteOrder::Vax).then_some(u64::from(*size))
}

/// A reader that fails once it was read many times over: neither zip nor hdf5-pure notices structures that refer to
/// the same bytes again and again, and these multiply with every level that does so.
pub(in crate::io) struct Metered<R> {
    inner: R,
    length: u64,
    left: u64,
    /// Whether the names of a group in HDF5 come next, since their header was read last.
    names_next: bool,
    /// The longest of the names read last.
    longest_name: u64,
}

impl<R: Read + Seek> Metered<R> {
    /// Fails unless the file begins with `start`: a foreign file may be of any size, and is not searched.
    pub fn new(path: &Path, mut inner: R, start: &[u8], expected: &str) -> Result<Self> {
        let io = |e| Error::io(path, "read", e);
        let mut first = Vec::new();
        inner.by_ref().take(start.len() as u64).read_to_end(&mut first).map_err(io)?;
        if first != start {
            return Err(Error::file(path, format!("expected {expected}, got a file that begins with {first:02x?}")));
        }
        let length = inner.seek(SeekFrom::End(0)).map_err(io)?;
        inner.rewind().map_err(io)?;
        let left = length.saturating_mul(READ_FACTOR).saturating_add(READ_ALLOWANCE);
        Ok(Self { inner, length, left, names_next: false, longest_name: 0 })
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let bytes = buffer.get(..count).unwrap_or_default();
        // A group's names follow a header `HEAP`. For each entry of a node `SNOD`, which takes more than 24 bytes,
        // hdf5-pure copies one; as thousands may share a name of megabytes, they pay for its length.
        if self.names_next {
            self.longest_name = bytes.split(|&b| b == 0).map(|name| name.len() as u64).max().unwrap_or(0);
        }
        self.names_next = bytes.starts_with(b"HEAP");
        let entries = if bytes.starts_with(b"SNOD") { count as u64 / 24 } else { 0 };
        let cost = entries.saturating_mul(self.longest_name).saturating_add(READ_COST + count as u64);
        let left = self.left.checked_sub(cost);
        self.left = left.ok_or_else(|| io::Error::other("its parts refer to one another without end"))?;
        Ok(count)
    }
}

impl<R: Seek> Seek for Metered<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdf5_pure::{AttrValue, DatasetBuilder, FileBuilder};
    use std::io::Write;
    use zip::CompressionMethod::{self, Deflated, Stored};

    const NAMES: [&str; 3] = ["metadata.json", "config.json", "model.weights.h5"];
    const METADATA: &[u8] = br#"{"keras_version":"3.15.1"}"#;

    /// An HDF5 file with weights in f32 and f64, a counter, and what `more` makes of one more dataset.
    fn hdf5(more: impl FnOnce(&mut DatasetBuilder) -> &mut DatasetBuilder) -> Vec<u8> {
        let mut file = FileBuilder::new();
        let mut vars = file.create_group("vars");
        vars.set_attr("name", AttrValue::String("lstm".into()));
        vars.create_dataset("0").with_f32_data(&[1.0, -2.5, 3.0, 4.0, 5.0, 6.0]).with_shape(&[2, 3]);
        vars.create_dataset("1").with_f64_data(&[0.1]);
        vars.create_dataset("2").with_i64_data(&[7]);
        more(vars.create_dataset("3").with_i32_data(&[1]));
        file.add_group(vars.finish());
        file.finish().unwrap()
    }

    fn zipped(members: [&[u8]; 3], method: CompressionMethod, without: Option<usize>) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for i in (0..3).filter(|&i| Some(i) != without) {
            let options = zip::write::SimpleFileOptions::default().compression_method(method);
            zip.start_file(NAMES[i], options).unwrap();
            zip.write_all(members[i]).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    fn keras(bytes: &[u8]) -> Result<KerasArchive> {
        keras_from(Path::new("test.keras"), Cursor::new(bytes))
    }

    fn weights(bytes: &[u8]) -> Result<Contents> {
        hdf5_from(Path::new("test.weights.h5"), Cursor::new(bytes.to_vec()))
    }

    fn message<T>(result: Result<T>) -> String {
        result.map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn reads_weights_names_and_configuration() {
        let h5 = hdf5(|d| d);
        for method in [Stored, Deflated] {
            let archive = keras(&zipped([METADATA, b"[5]", &h5], method, None)).unwrap();
            assert_eq!((&archive.keras_version[..], &archive.config), ("3.15.1", &serde_json::json!([5])));
            assert_eq!(archive.names, BTreeMap::from([("vars".into(), "lstm".into())]));
            assert_eq!(archive.weights, weights(&h5).unwrap().weights);
            let kernel = KerasTensor { shape: vec![2, 3], data: vec![1.0, -2.5, 3.0, 4.0, 5.0, 6.0] };
            let bias = KerasTensor { shape: vec![1], data: vec![0.1] };
            assert_eq!(archive.weights, BTreeMap::from([("vars/0".into(), kernel), ("vars/1".into(), bias)]));
        }
    }

    #[test]
    fn refuses_what_is_cut_short_and_survives_what_is_damaged() {
        let h5 = hdf5(|d| d);
        let archive = zipped([METADATA, b"[]", &h5], Stored, None);
        assert!((0..h5.len()).step_by(13).all(|cut| weights(&h5[..cut]).is_err()));
        assert!((0..archive.len()).step_by(13).all(|cut| keras(&archive[..cut]).is_err()));
        for at in 0..h5.len() {
            let mut damaged = h5.clone();
            damaged[at] ^= 1 << (at % 8);
            assert!(weights(&damaged).map_err(|e| e.to_string()).err().is_none_or(|e| !e.contains("not foreseen")));
        }
    }

    #[test]
    fn refuses_foreign_files_and_missing_members() {
        for foreign in [&b""[..], b"{}", b"\x89PNG\r\n\x1a\n12345678", ZIP_START, HDF5_START] {
            assert!(keras(foreign).is_err() && weights(foreign).is_err());
        }
        let h5 = hdf5(|d| d);
        for (i, name) in NAMES.iter().enumerate() {
            assert!(message(keras(&zipped([METADATA, b"[]", &h5], Stored, Some(i)))).contains(name));
        }
        assert!(message(keras(&zipped([b"{}", b"[]", &h5], Stored, None))).contains("keras_version"));
        assert!(message(keras(&zipped([METADATA, b"[", &h5], Stored, None))).contains("`config.json` is not JSON"));
    }

    #[test]
    fn refuses_a_member_that_lies_about_its_size() {
        let h5 = hdf5(|d| d);
        for method in [Stored, Deflated] {
            let archive = zipped([METADATA, b"[]", &h5], method, None);
            let entry = archive.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
            for size in [0, h5.len() as u32 - 1, h5.len() as u32 + 1, u32::MAX - 1] {
                let mut lying = archive.clone();
                lying[entry + 24..entry + 28].copy_from_slice(&size.to_le_bytes());
                assert!(message(keras(&lying)).contains("`model.weights.h5`"), "{size}");
            }
        }
    }

    #[test]
    fn refuses_by_name_a_dataset_that_cannot_be_read() {
        let chunks = hdf5(|d| d.with_f32_data(&[0.0; 8]).with_shape(&[8]).with_chunks(&[4]));
        assert!(message(weights(&chunks)).contains("`vars/3`"));
        assert!(message(weights(&hdf5(|d| d.with_vlen_strings(&["a"])))).contains("`vars/3`"));
    }

    #[test]
    fn stops_reading_in_circles() {
        let mut reader = Metered::new(Path::new("test"), Cursor::new(HDF5_START), HDF5_START, "HDF5").unwrap();
        let reads = (0u64..).take_while(|_| reader.rewind().is_ok() && reader.read(&mut [0; 8]).is_ok()).count();
        assert!(reads as u64 <= (READ_ALLOWANCE + 8 * READ_FACTOR) / READ_COST);
    }
}
