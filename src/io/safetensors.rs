//! One `.safetensors` file: tensors by name, and JSON under the metadata key `mnemon`.

use crate::error::{Error, Result};
use crate::params::mapping::Mapping;
use crate::params::{DType, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const KEY: &str = "mnemon";
const VERSION: u64 = 1;
/// The largest header that safetensors allows, in bytes.
const HEADER_LIMIT: u64 = 100_000_000;
/// Bytes of a tensor from which on it is read where it is used, rather than at once.
const MAPPED: usize = 64 * 1024;

/// What a file holds.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFile {
    /// A JSON object: the model's description and the state of its training. `format` and `version` are added on saving.
    pub metadata: Value,
    /// Parameters, optimiser state, recurrent states.
    pub tensors: BTreeMap<String, Tensor>,
}

impl ModelFile {
    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| Error::data(format!("model file: there is no tensor `{name}`")))
    }

    /// The part of the metadata under `key`, as a type of its own.
    pub fn part<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<T> {
        let part = self.metadata.get(key).cloned().unwrap_or(Value::Null);
        serde_json::from_value(part).map_err(|e| Error::data(format!("model file: `{key}` cannot be understood: {e}")))
    }
}

/// Writes a file so that a kill at any moment leaves the old one or the new one whole: to a temporary file in the same
/// folder, flushed to the disk, then renamed.
pub fn save(path: &Path, file: &ModelFile) -> Result<()> {
    let mut metadata = file.metadata.clone();
    let Some(object) = metadata.as_object_mut() else {
        return Err(Error::internal("model file: the metadata is not an object"));
    };
    object.insert("format".to_string(), json!(KEY));
    object.insert("version".to_string(), json!(VERSION));
    replace(path, &encode(path, &file.tensors, Some(HashMap::from([(KEY.to_string(), metadata.to_string())])))?)
}

/// Puts a file of these bytes in the place of an old one, so that a kill at any moment leaves one of both whole.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = temporary(path)?;
    let written = write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(Error::io(path, "write", error));
    }
    // The rename itself is durable once the folder is flushed; not every system can, and the file is whole either way.
    if let Some(folder) = folder(path) {
        let _ = File::open(folder).and_then(|f| f.sync_all());
    }
    Ok(())
}

fn folder(path: &Path) -> Option<&Path> {
    path.parent().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p })
}

fn temporary(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::file(path, "expected the name of a file"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.tmp", std::process::id()));
    Ok(path.with_file_name(hidden))
}

fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn encode(path: &Path, tensors: &BTreeMap<String, Tensor>, info: Option<HashMap<String, String>>) -> Result<Vec<u8>> {
    let mut data = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let (dtype, bytes): (Dtype, Vec<u8>) = match tensor.dtype() {
            DType::F32 => (Dtype::F32, tensor.f32s()?.iter().flat_map(|x| x.to_le_bytes()).collect()),
            DType::U32 => (Dtype::U32, tensor.u32s()?.iter().flat_map(|x| x.to_le_bytes()).collect()),
        };
        data.push((name, tensor.shape().to_vec(), dtype, bytes));
    }
    let foreign = |e: safetensors::SafeTensorError| Error::file(path, format!("cannot encode: {e}"));
    let views = data
        .iter()
        .map(|(name, shape, dtype, bytes)| Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(foreign)?;
    safetensors::serialize(views, info).map_err(foreign)
}

/// Reads a file that [`save`] wrote. Large tensors stay in the file, which must stay as it is until they are no longer used.
pub fn load(path: &Path) -> Result<ModelFile> {
    let file = open(path)?;
    let Some(text) = own_metadata(path, file.bytes()?)? else {
        return Err(Error::file(path, "expected a model that mnemon saved, got a safetensors file of another program"));
    };
    let metadata: Value = serde_json::from_str(&text)
        .map_err(|e| Error::file(path, format!("its metadata `{KEY}` is not JSON: {e}")).caused_by(e))?;
    if metadata.get("format") != Some(&json!(KEY)) || metadata.get("version") != Some(&json!(VERSION)) {
        let found = metadata.get("version").unwrap_or(&Value::Null);
        return Err(Error::file(path, format!("expected version {VERSION} of the format, got {found}")));
    }
    Ok(ModelFile { metadata, tensors: mapped_tensors(path, &file)? })
}

/// Whether [`save`] wrote the safetensors file.
pub(super) fn is_own(path: &Path) -> Result<bool> {
    Ok(own_metadata(path, open(path)?.bytes()?)?.is_some())
}

/// Reads the tensors of any safetensors file. F64, F16 and BF16 become F32, integers and truths become U32 where they
/// fit. Large tensors of F32 stay in the file, as [`load`] says.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    mapped_tensors(path, &open(path)?)
}

/// [`read_tensors`] of what `safetensors.torch.save_model` wrote: a tensor that a module has under two names is there once,
/// and the metadata has the other name.
pub(super) fn read_shared(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let file = open(path)?;
    let bytes = file.bytes()?;
    let mut all = mapped_tensors(path, &file)?;
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| broken(path, bytes, &e))?;
    let mut left = bytes.len();
    for (name, kept) in header.metadata().iter().flatten() {
        let Some(tensor) = all.get(kept).filter(|_| !all.contains_key(name)).cloned() else { continue };
        let taken = left.checked_sub(4 * tensor.len());
        left = taken.ok_or_else(|| Error::file(path, "expected tensors of about the file's size under other names"))?;
        all.insert(name.clone(), tensor);
    }
    Ok(all)
}

/// Writes tensors without a model.
pub fn write_tensors(path: &Path, tensors: BTreeMap<String, Tensor>) -> Result<()> {
    replace(path, &encode(path, &tensors, None)?)
}

/// The tensors of a safetensors file that came as bytes, as [`read_tensors`] reads them.
pub fn tensors_from_bytes(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    tensors(Path::new("tensors"), bytes, &|_| None)
}

/// Tensors as the bytes of a safetensors file.
pub fn tensors_to_bytes(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    encode(Path::new("tensors"), tensors, None)
}

fn broken(path: &Path, bytes: &[u8], e: &safetensors::SafeTensorError) -> Error {
    Error::file(path, format!("expected a whole safetensors file, got {} bytes that are not: {e}", bytes.len()))
}

fn own_metadata(path: &Path, bytes: &[u8]) -> Result<Option<String>> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| broken(path, bytes, &e))?;
    Ok(header.metadata().as_ref().and_then(|m| m.get(KEY)).cloned())
}

/// The tensors of `bytes`, those whose values `kept` knows from there.
fn tensors(
    path: &Path,
    bytes: &[u8],
    kept: &dyn Fn(&TensorView<'_>) -> Option<Result<Tensor>>,
) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (name, view) in SafeTensors::deserialize(bytes).map_err(|e| broken(path, bytes, &e))?.tensors() {
        let tensor = kept(&view).unwrap_or_else(|| tensor(&view));
        tensors.insert(name.clone(), tensor.map_err(|e| e.within(&name).within(path.display()))?);
    }
    Ok(tensors)
}

fn mapped_tensors(path: &Path, file: &Arc<Mapping>) -> Result<BTreeMap<String, Tensor>> {
    let bytes = file.bytes()?;
    tensors(path, bytes, &|view| {
        let first = view.data().as_ptr().addr() - bytes.as_ptr().addr();
        // Other writers need not align what they write, nor do all hosts order bytes as the file does.
        let as_here = cfg!(target_endian = "little") && view.dtype() == Dtype::F32 && first.is_multiple_of(4);
        (as_here && view.data().len() >= MAPPED).then(|| Tensor::mapped(view.shape(), Arc::clone(file), first))
    })
}

/// The values of `view`, `SIZE` bytes each.
fn words<'a, const SIZE: usize>(view: &TensorView<'a>) -> impl Iterator<Item = [u8; SIZE]> + use<'a, SIZE> {
    view.data().as_chunks::<SIZE>().0.iter().copied()
}

/// The values of `view`, as [`read_tensors`] says.
pub(super) fn tensor(view: &TensorView<'_>) -> Result<Tensor> {
    let integers = |values: &mut dyn Iterator<Item = i64>| -> Result<Tensor> {
        let fit = |n: i64| u32::try_from(n).map_err(|_| Error::data(format!("expected integers in 0..2^32, got {n}")));
        Tensor::from_u32(view.shape(), values.map(fit).collect::<Result<_>>()?)
    };
    match view.dtype() {
        Dtype::F32 => Tensor::new(view.shape(), words(view).map(f32::from_le_bytes).collect()),
        Dtype::F64 => Tensor::new(view.shape(), words(view).map(|b| f64::from_le_bytes(b) as f32).collect()),
        Dtype::F16 => Tensor::new(view.shape(), words(view).map(|b| half::f16::from_le_bytes(b).to_f32()).collect()),
        Dtype::BF16 => Tensor::new(view.shape(), words(view).map(|b| half::bf16::from_le_bytes(b).to_f32()).collect()),
        Dtype::U32 => Tensor::from_u32(view.shape(), words(view).map(u32::from_le_bytes).collect()),
        Dtype::I32 => integers(&mut words(view).map(|b| i64::from(i32::from_le_bytes(b)))),
        Dtype::I64 => integers(&mut words(view).map(i64::from_le_bytes)),
        Dtype::I16 => integers(&mut words(view).map(|b| i64::from(i16::from_le_bytes(b)))),
        Dtype::I8 => integers(&mut words(view).map(|b| i64::from(i8::from_le_bytes(b)))),
        Dtype::U8 => integers(&mut words(view).map(|[b]| i64::from(b))),
        Dtype::BOOL => integers(&mut words(view).map(|[b]| i64::from(b != 0))),
        other => Err(Error::unsupported(format!("expected floats, integers or truths, got {other:?}"))),
    }
}

/// A file, mapped once its first eight bytes say that it may be ours: a foreign file may be anything.
fn open(path: &Path) -> Result<Arc<Mapping>> {
    let io = |e| Error::io(path, "read", e);
    let mut file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let size = file.metadata().map_err(io)?.len();
    let mut first = [0u8; 8];
    if size >= 8 {
        file.read_exact(&mut first).map_err(io)?;
    }
    let header = u64::from_le_bytes(first);
    if size < 8 || header == 0 || header > HEADER_LIMIT || header > size - 8 {
        return Err(Error::file(path, format!("expected a whole safetensors file, got {size} bytes that are not")));
    }
    Mapping::new(file, path).map(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn example() -> ModelFile {
        let tensors = BTreeMap::from([
            ("a.weight".to_string(), Tensor::new(&[2, 2], vec![1.0, -0.0, f32::MIN_POSITIVE, 4.5]).unwrap()),
            ("b".to_string(), Tensor::from_u32(&[3], vec![1, 2, u32::MAX]).unwrap()),
        ]);
        ModelFile { metadata: json!({"model": {"layers": []}}), tensors }
    }

    fn place(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("mnemon-io-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder.join("model.safetensors")
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let path = place("round");
        save(&path, &example()).unwrap();
        let back = load(&path).unwrap();
        assert_eq!(back.tensors, example().tensors);
        assert_eq!(back.metadata["model"], json!({"layers": []}));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn halves_become_floats_and_plain_tensors_say_of_no_model() {
        let path = place("half");
        let halves: Vec<u8> = [0x3c00u16, 0xc100, 0x0001, 0x7bff].iter().flat_map(|h| h.to_le_bytes()).collect();
        let upper: Vec<u8> = [0x3f80u16, 0xc020].iter().flat_map(|h| h.to_le_bytes()).collect();
        let views = [
            ("f16", TensorView::new(Dtype::F16, vec![4], &halves).unwrap()),
            ("bf16", TensorView::new(Dtype::BF16, vec![2], &upper).unwrap()),
        ];
        fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        let read = read_tensors(&path).unwrap();
        assert_eq!(read["f16"].f32s().unwrap(), [1.0, -2.5, 2.0f32.powi(-24), 65504.0]);
        assert_eq!(read["bf16"].f32s().unwrap(), [1.0, -2.5]);
        write_tensors(&path, read.clone()).unwrap();
        assert!(!is_own(&path).unwrap());
        assert_eq!(read_tensors(&path).unwrap(), read);
    }

    #[test]
    fn truncated_foreign_and_newer_files_are_refused() {
        let path = place("bad");
        save(&path, &example()).unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in [0, 5, 8, 60, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            let error = load(&path).unwrap_err();
            assert!(
                error.kind() == ErrorKind::File && error.to_string().contains("whole safetensors"),
                "{cut}: {error}"
            );
        }
        fs::write(&path, "just a text file, long enough to have a header length").unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("whole safetensors"));
        let foreign = safetensors::serialize(Vec::<(String, TensorView<'_>)>::new(), None).unwrap();
        fs::write(&path, foreign).unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("another program"));
        let info = HashMap::from([(KEY.to_string(), json!({"format": KEY, "version": 9}).to_string())]);
        let newer = safetensors::serialize(Vec::<(String, TensorView<'_>)>::new(), Some(info)).unwrap();
        fs::write(&path, newer).unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("expected version 1 of the format, got 9"));
        assert!(load(&path.with_file_name("none")).unwrap_err().to_string().contains("cannot open"));
    }

    #[test]
    fn a_save_that_fails_leaves_the_old_file() {
        let path = place("kill");
        save(&path, &example()).unwrap();
        // A folder in the place of the temporary file makes writing fail.
        fs::create_dir_all(temporary(&path).unwrap()).unwrap();
        let mut other = example();
        other.tensors.clear();
        assert!(save(&path, &other).unwrap_err().to_string().contains("cannot write"));
        assert_eq!(load(&path).unwrap().tensors, example().tensors);
        // What a kill leaves behind is a partial temporary file, which nobody reads.
        fs::remove_dir_all(temporary(&path).unwrap()).unwrap();
        fs::write(temporary(&path).unwrap(), b"partial").unwrap();
        assert_eq!(load(&path).unwrap().tensors, example().tensors);
        save(&path, &other).unwrap();
        assert!(load(&path).unwrap().tensors.is_empty());
    }
}
