//! Tensors of an ONNX file, and of files beside it that it names.

use super::host::{Data, Host};
use super::int::Int;
use super::schema::{Tensor, dtype};
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

/// Where the values of a file's tensors may be.
pub(super) struct Reader {
    /// The folder of the file, where it has one.
    folder: Option<PathBuf>,
}

impl Reader {
    pub fn beside(path: &Path) -> Self {
        Self { folder: path.parent().map(Path::to_path_buf) }
    }

    /// The values of a tensor. F64, F16 and BF16 become F32, integers of any width are whole numbers.
    pub fn host(&self, tensor: &Tensor) -> Result<Host> {
        let read = || -> Result<Host> {
            let shape = tensor.dims.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<Vec<usize>>>();
            let shape = shape.ok_or_else(|| Error::data(format!("a shape of {:?}", tensor.dims)))?;
            let len = shape.iter().try_fold(1usize, |len, &n| len.checked_mul(n));
            let len = len.ok_or_else(|| Error::data(format!("a shape of {shape:?}")))?;
            let external;
            let raw: &[u8] = match tensor.data_location {
                0 => &tensor.raw_data,
                _ => {
                    external = self.external(tensor)?;
                    &external
                }
            };
            let width = width(tensor.data_type)?;
            if !raw.is_empty() || tensor.data_location != 0 {
                if len.checked_mul(width) != Some(raw.len()) {
                    let got = raw.len();
                    return Err(Error::data(format!("expected {len} values of {width} bytes each, got {got} bytes")));
                }
                return Host::new(shape, from_raw(tensor.data_type, raw)?);
            }
            Host::new(shape, from_fields(tensor)?)
        };
        read().map_err(|e| if tensor.name.is_empty() { e } else { e.within(format!("tensor `{}`", tensor.name)) })
    }

    /// Bytes of a file beside the model's, never of one elsewhere.
    fn external(&self, tensor: &Tensor) -> Result<Vec<u8>> {
        let entry = |key: &str| tensor.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let location = entry("location").ok_or_else(|| Error::data("values in a file without a name"))?;
        let inside = |p: Component<'_>| matches!(p, Component::Normal(_) | Component::CurDir);
        let folder = self.folder.as_ref().filter(|_| Path::new(location).components().all(inside));
        let Some(folder) = folder else {
            return Err(Error::data(format!("expected a file beside the model's, got `{location}`")));
        };
        let number = |key: &str| entry(key).map(|n| n.parse::<u64>()).transpose();
        let (Ok(offset), Ok(length)) = (number("offset"), number("length")) else {
            return Err(Error::data("an offset or a length that is no number"));
        };
        let path = folder.join(location);
        let io = |e| Error::io(&path, "read", e);
        let real = path.canonicalize().map_err(io)?;
        let home = if folder.as_os_str().is_empty() { Path::new(".") } else { folder }.canonicalize().map_err(io)?;
        if !real.starts_with(&home) {
            return Err(Error::data(format!("`{location}` leads out of the folder of the model")));
        }
        let mut file = File::open(&real).map_err(io)?;
        let (size, offset) = (file.metadata().map_err(io)?.len(), offset.unwrap_or(0));
        let length = length.unwrap_or_else(|| size.saturating_sub(offset));
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(Error::file(&path, format!("expected {length} bytes from {offset} on, it has {size}")));
        }
        file.seek(SeekFrom::Start(offset)).map_err(io)?;
        let mut bytes = Vec::new();
        file.take(length).read_to_end(&mut bytes).map_err(io)?;
        Ok(bytes)
    }
}

fn unsupported<T>(data_type: i32) -> Result<T> {
    Err(Error::unsupported(format!("values of type {data_type}; expected floats, integers or truth values")))
}

/// Bytes of a value.
fn width(data_type: i32) -> Result<usize> {
    use dtype::{BFLOAT16, BOOL, DOUBLE, FLOAT, FLOAT16, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64};
    Ok(match data_type {
        BOOL | INT8 | UINT8 => 1,
        FLOAT16 | BFLOAT16 | INT16 | UINT16 => 2,
        FLOAT | INT32 | UINT32 => 4,
        DOUBLE | INT64 | UINT64 => 8,
        other => return unsupported(other),
    })
}

fn from_raw(data_type: i32, raw: &[u8]) -> Result<Data> {
    fn words<const SIZE: usize>(raw: &[u8]) -> impl Iterator<Item = [u8; SIZE]> + use<'_, SIZE> {
        raw.as_chunks::<SIZE>().0.iter().copied()
    }
    let float = |values: Vec<f32>| Ok(Data::Float(values));
    let int = |values: &mut dyn Iterator<Item = i64>| Ok(Data::Int(values.map(Int::Known).collect()));
    match data_type {
        dtype::FLOAT => float(words(raw).map(f32::from_le_bytes).collect()),
        dtype::DOUBLE => float(words(raw).map(|b| f64::from_le_bytes(b) as f32).collect()),
        dtype::FLOAT16 => float(words(raw).map(|b| half::f16::from_le_bytes(b).to_f32()).collect()),
        dtype::BFLOAT16 => float(words(raw).map(|b| half::bf16::from_le_bytes(b).to_f32()).collect()),
        dtype::BOOL => Ok(Data::Bool(raw.iter().map(|&b| b != 0).collect())),
        dtype::INT8 => int(&mut raw.iter().map(|&b| i64::from(b as i8))),
        dtype::UINT8 => int(&mut raw.iter().map(|&b| i64::from(b))),
        dtype::INT16 => int(&mut words(raw).map(|b| i64::from(i16::from_le_bytes(b)))),
        dtype::UINT16 => int(&mut words(raw).map(|b| i64::from(u16::from_le_bytes(b)))),
        dtype::INT32 => int(&mut words(raw).map(|b| i64::from(i32::from_le_bytes(b)))),
        dtype::UINT32 => int(&mut words(raw).map(|b| i64::from(u32::from_le_bytes(b)))),
        dtype::INT64 => int(&mut words(raw).map(i64::from_le_bytes)),
        dtype::UINT64 => {
            let whole = |b| i64::try_from(u64::from_le_bytes(b)).map(Int::Known);
            let values = words(raw).map(whole).collect::<std::result::Result<_, _>>();
            values.map(Data::Int).map_err(|_| Error::unsupported("an integer beyond 2^63"))
        }
        other => unsupported(other),
    }
}

fn from_fields(tensor: &Tensor) -> Result<Data> {
    let bits = |n: &i32| u16::try_from(*n).map_err(|_| Error::data(format!("{n} is no value of 16 bits")));
    Ok(match tensor.data_type {
        dtype::FLOAT => Data::Float(tensor.float_data.clone()),
        dtype::DOUBLE => Data::Float(tensor.double_data.iter().map(|&x| x as f32).collect()),
        dtype::FLOAT16 => {
            let value = |n: &i32| bits(n).map(|b| half::f16::from_bits(b).to_f32());
            Data::Float(tensor.int32_data.iter().map(value).collect::<Result<_>>()?)
        }
        dtype::BFLOAT16 => {
            let value = |n: &i32| bits(n).map(|b| half::bf16::from_bits(b).to_f32());
            Data::Float(tensor.int32_data.iter().map(value).collect::<Result<_>>()?)
        }
        dtype::BOOL => Data::Bool(tensor.int32_data.iter().map(|&n| n != 0).collect()),
        dtype::INT64 => Data::Int(tensor.int64_data.iter().map(|&n| Int::Known(n)).collect()),
        dtype::UINT32 | dtype::UINT64 => {
            let value = |&n: &u64| i64::try_from(n).map(Int::Known);
            let values = tensor.uint64_data.iter().map(value).collect::<std::result::Result<_, _>>();
            Data::Int(values.map_err(|_| Error::unsupported("an integer beyond 2^63"))?)
        }
        dtype::INT8 | dtype::UINT8 | dtype::INT16 | dtype::UINT16 | dtype::INT32 => {
            Data::Int(tensor.int32_data.iter().map(|&n| Int::Known(i64::from(n))).collect())
        }
        other => return unsupported(other),
    })
}
