//! State dicts as `torch.save` writes them since PyTorch 1.6: a zip archive of a pickle, and the values of each tensor in
//! a storage of its own beside.

use super::pickle::opcode;
use crate::error::{Error, Result};
use crate::io::safetensors::replace;
use crate::params::{DType, Tensor};
use std::collections::BTreeMap;
use std::io::{Cursor, Write as _};
use std::path::Path;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// The version of the format, as PyTorch has written it ever since.
const VERSION: &[u8] = b"3\n";
/// Members begin at multiples of so many bytes, as PyTorch has it: `torch.load(mmap=True)` uses them where they lie.
const ALIGNMENT: u16 = 64;
/// The archive's folder where the file's name is not one that PyTorch takes.
const FOLDER: &str = "archive";
/// About how many bytes a tensor takes beside its values and twice its name, in the pickle and in the archive. Untuned.
const BESIDE: usize = 512;

/// Writes tensors by name as `torch.save` does a state dict, an `OrderedDict`: `torch.load` reads the file with
/// `weights_only=True`, mapped too. Unsigned integers become 64-bit ones. Tensors that are the same are written each.
pub fn write_checkpoint(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let bytes = archive(folder(path), tensors).map_err(|e| e.within(path.display()))?;
    replace(path, &bytes)
}

/// What the names of all members begin with: the file's name without its ending, if that is plain.
fn folder(path: &Path) -> &str {
    let plain = |name: &&str| name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'\\');
    path.file_stem().and_then(|stem| stem.to_str()).filter(plain).unwrap_or(FOLDER)
}

/// The archive. It has no `.format_version`: by that PyTorch would take members to lie where its own padding puts them.
fn archive(folder: &str, tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    let size: usize = tensors.iter().map(|(name, tensor)| 8 * tensor.len() + 2 * name.len() + BESIDE).sum();
    let mut zip = ZipWriter::new(Cursor::new(Vec::with_capacity(size)));
    let broken = |e: zip::result::ZipError| Error::internal(format!("checkpoint: cannot make an archive: {e}"));
    let mut put = |name: &str, bytes: &[u8]| -> Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .with_alignment(ALIGNMENT)
            .large_file(u32::try_from(bytes.len()).is_err());
        zip.start_file(format!("{folder}/{name}"), options).map_err(broken)?;
        zip.write_all(bytes).map_err(|e| broken(e.into()))
    };
    put("data.pkl", &pickle(tensors)?)?;
    put("byteorder", b"little")?;
    for (number, (name, tensor)) in tensors.iter().enumerate() {
        put(&format!("data/{number}"), &values(tensor).map_err(|e| e.within(name))?)?;
    }
    put("version", VERSION)?;
    Ok(zip.finish().map_err(broken)?.into_inner())
}

/// The class of the storages that hold values of a type. PyTorch has none of unsigned integers of 32 bits; those of 64
/// bits with a sign are what it counts in itself, and hold them all.
fn storage(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "FloatStorage",
        DType::U32 => "LongStorage",
    }
}

/// The bytes of a tensor's [`storage`].
fn values(tensor: &Tensor) -> Result<Vec<u8>> {
    Ok(match tensor.dtype() {
        DType::F32 => tensor.f32s()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::U32 => tensor.u32s()?.iter().flat_map(|&n| u64::from(n).to_le_bytes()).collect(),
    })
}

/// The pickle of a state dict, whose tensors have the storages `0`, `1` and so on in turn.
fn pickle(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    let mut code = Code(vec![opcode::PROTO, 2]);
    code.ordered_dict();
    for (number, (name, tensor)) in tensors.iter().enumerate() {
        code.text(name)?;
        code.tensor(number, tensor).map_err(|e| e.within(name))?;
        code.0.push(opcode::SETITEM);
    }
    code.0.push(opcode::STOP);
    Ok(code.0)
}

/// For each axis, how far the next value lies from one. An axis without values counts as one of one value, as in
/// PyTorch.
fn strides(shape: &[usize]) -> Result<Vec<usize>> {
    let mut strides = vec![1; shape.len()];
    let mut step = 1usize;
    for (stride, &size) in strides.iter_mut().zip(shape).rev() {
        *stride = step;
        let more = step.checked_mul(size.max(1));
        step = more.ok_or_else(|| Error::shape(format!("expected a shape that can be counted, got {shape:?}")))?;
    }
    Ok(strides)
}

/// A pickle that is being written.
struct Code(Vec<u8>);

impl Code {
    fn global(&mut self, module: &str, name: &str) {
        self.0.push(opcode::GLOBAL);
        self.0.extend(format!("{module}\n{name}\n").into_bytes());
    }

    fn text(&mut self, text: &str) -> Result<()> {
        let count = u32::try_from(text.len())
            .map_err(|_| Error::argument(format!("expected a name of less than 4 GiB, got {} bytes", text.len())))?;
        self.0.push(opcode::BINUNICODE);
        self.0.extend(count.to_le_bytes());
        self.0.extend(text.as_bytes());
        Ok(())
    }

    fn integer(&mut self, n: usize) -> Result<()> {
        if let Ok(n) = u8::try_from(n) {
            self.0.extend([opcode::BININT1, n]);
        } else if let Ok(n) = u16::try_from(n) {
            self.0.push(opcode::BININT2);
            self.0.extend(n.to_le_bytes());
        } else if let Ok(n) = i32::try_from(n) {
            self.0.push(opcode::BININT);
            self.0.extend(n.to_le_bytes());
        } else {
            let n = i64::try_from(n).map_err(|_| Error::shape(format!("expected a size below 2^63, got {n}")))?;
            self.0.extend([opcode::LONG1, 8]);
            self.0.extend(n.to_le_bytes());
        }
        Ok(())
    }

    fn integers(&mut self, all: &[usize]) -> Result<()> {
        self.0.push(opcode::MARK);
        all.iter().try_for_each(|&n| self.integer(n))?;
        self.0.push(opcode::TUPLE);
        Ok(())
    }

    /// An empty one.
    fn ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.0.extend([opcode::EMPTY_TUPLE, opcode::REDUCE]);
    }

    /// All of the storage of this number: what PyTorch makes it of is the storage, the place of the first value, sizes,
    /// strides, whether it has a gradient, and what would be called with that.
    fn tensor(&mut self, number: usize, tensor: &Tensor) -> Result<()> {
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.0.extend([opcode::MARK, opcode::MARK]);
        self.text("storage")?;
        self.global("torch", storage(tensor.dtype()));
        self.text(&number.to_string())?;
        self.text("cpu")?;
        self.integer(tensor.len())?;
        self.0.extend([opcode::TUPLE, opcode::BINPERSID]);
        self.integer(0)?;
        self.integers(tensor.shape())?;
        self.integers(&strides(tensor.shape())?)?;
        self.0.push(opcode::NEWFALSE);
        self.ordered_dict();
        self.0.extend([opcode::TUPLE, opcode::REDUCE]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{is_checkpoint, read_checkpoint};
    use super::*;
    use crate::error::ErrorKind;
    use crate::io::keras::ZIP_START;
    use std::path::PathBuf;

    fn place(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("mnemon-save-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder.join(name)
    }

    /// Each value another one.
    fn tensor(shape: &[usize]) -> Tensor {
        Tensor::new(shape, (0..shape.iter().product()).map(|i| i as f32 / 8.0 - 1.0).collect()).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let shapes: [&[usize]; 8] = [&[], &[1], &[0], &[2, 0, 3], &[3, 2], &[2, 3, 4], &[300, 7], &[70_000]];
        let mut all: BTreeMap<String, Tensor> =
            shapes.iter().map(|shape| (format!("module of {shape:?}.weight"), tensor(shape))).collect();
        all.insert("tokens".to_string(), Tensor::from_u32(&[3], vec![0, 7, u32::MAX]).unwrap());
        all.insert("strange".to_string(), Tensor::new(&[3], vec![-0.0, f32::INFINITY, f32::MIN_POSITIVE]).unwrap());
        let path = place("all.pt");
        write_checkpoint(&path, &all).unwrap();
        assert!(std::fs::read(&path).unwrap().starts_with(ZIP_START) && is_checkpoint(&path).unwrap());
        assert_eq!(read_checkpoint(&path).unwrap(), all);
    }

    #[test]
    fn members_are_those_of_pytorch_in_places_that_can_be_mapped() {
        let all = BTreeMap::from([("a".to_string(), tensor(&[3])), ("b".to_string(), tensor(&[2, 2]))]);
        for (name, folder) in [("net.v2.pt", "net.v2"), ("plain", "plain"), ("a b.pth", "a b"), ("ü.pt", "archive")] {
            let path = place(name);
            write_checkpoint(&path, &all).unwrap();
            let mut zip = zip::ZipArchive::new(std::fs::File::open(&path).unwrap()).unwrap();
            let mut names = Vec::new();
            for at in 0..zip.len() {
                let member = zip.by_index(at).unwrap();
                assert_eq!(member.compression(), CompressionMethod::Stored);
                assert!(member.data_start().unwrap().is_multiple_of(u64::from(ALIGNMENT)), "{}", member.name());
                names.push(member.name().to_string());
            }
            let wanted = ["data.pkl", "byteorder", "data/0", "data/1", "version"].map(|m| format!("{folder}/{m}"));
            assert_eq!(names, wanted, "{name}");
        }
    }

    /// PyTorch 2.15 reads it with `weights_only=True`.
    #[test]
    fn a_pickle_is_what_pytorch_reads() {
        let code = pickle(&BTreeMap::from([("x".to_string(), tensor(&[2, 3, 4]))])).unwrap();
        let wanted: [&[u8]; 7] = [
            b"\x80\x02ccollections\nOrderedDict\n)RX\x01\0\0\0x",
            b"ctorch._utils\n_rebuild_tensor_v2\n(",
            b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x18tQ",
            b"K\0(K\x02K\x03K\x04t(K\x0cK\x04K\x01t",
            b"\x89ccollections\nOrderedDict\n)R",
            b"tRs",
            b".",
        ];
        assert_eq!(code, wanted.concat());
        let sizes = [255usize, 256, 65_535, 65_536, 1 << 31, 1 << 40];
        let mut code = Code(Vec::new());
        code.integers(&sizes).unwrap();
        let wanted: [&[u8]; 8] = [
            b"(",
            b"K\xff",
            b"M\0\x01",
            b"M\xff\xff",
            b"J\0\0\x01\0",
            b"\x8a\x08\0\0\0\x80\0\0\0\0",
            b"\x8a\x08\0\0\0\0\0\x01\0\0",
            b"t",
        ];
        assert_eq!(code.0, wanted.concat());
    }

    #[test]
    fn axes_without_values_have_the_strides_of_pytorch_and_shapes_are_counted() {
        assert_eq!(strides(&[2, 0, 3]).unwrap(), [3, 3, 1]);
        assert_eq!(strides(&[]).unwrap(), [0usize; 0]);
        let endless = Tensor::new(&[0, 1 << 62, 8], Vec::new()).unwrap();
        let path = place("endless.pt");
        let error = write_checkpoint(&path, &BTreeMap::from([("w".to_string(), endless)])).unwrap_err();
        assert!(error.kind() == ErrorKind::Shape && error.to_string().contains("endless.pt: w: expected a shape"));
        assert!(!path.exists());
    }
}
