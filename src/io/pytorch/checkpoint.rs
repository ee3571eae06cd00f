//! What `torch.save` writes since PyTorch 1.6: a zip archive of a pickle, and the values of its tensors in storages
//! beside.
//!
//! The file is untrusted. Nothing of the pickle is run, see [`Pickle`]; what is allocated follows bytes that exist,
//! and what is unpacked and gathered is kept in proportion to the file.

use super::super::keras::{Metered, ZIP_START};
use super::pickle::{Id, Object, Pickle};
use super::view::View;
use crate::error::{Error, ErrorKind, Result};
use crate::params::Tensor;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use zip::ZipArchive;

/// The most bytes that the pickle may unpack to: names and sizes take some hundred for each tensor.
const PICKLE_LIMIT: u64 = 32 << 20;
/// The most bytes of a member that holds one word.
const WORD_LIMIT: u64 = 64;
/// The most tensors in a state dict.
const TENSOR_LIMIT: usize = 1 << 16;
/// How many bytes may be unpacked and gathered for each of the file's, and those on top that make this no matter for a
/// small one. Bytes become words of four, weights may be in several tensors, and members may be deflated.
const BYTE_FACTOR: u64 = 16;
const BYTE_ALLOWANCE: u64 = 64 << 20;
/// The newest version of the format that PyTorch itself reads.
const VERSION: u64 = 10;

/// How a file begins that `torch.save` wrote before: with a pickle of a number.
const LEGACY_START: &[u8] = b"\x80\x02\x8a\x0a";
/// What checkpoints call the state dict among what else they keep.
const STATE_DICTS: [&str; 6] = ["state_dict", "model_state_dict", "model", "net", "weights", "model_state"];
/// What wrappers of a module put before the names of its parameters: `DataParallel` and `torch.compile`.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];

/// Whether `torch.save` wrote the file, as far as its members tell; it may be one of those that [`read_checkpoint`]
/// refuses.
pub(in crate::io) fn is_checkpoint(path: &Path) -> Result<bool> {
    let start = start(path)?;
    if start != ZIP_START {
        return Ok(start == LEGACY_START);
    }
    let zip = open(path, BufReader::new(File::open(path).map_err(|e| Error::io(path, "open", e))?))?;
    Ok(zip.file_names().any(|name| name.ends_with("/data.pkl")) && zip.file_names().all(|name| name != "config.json"))
}

/// Reads the tensors that `torch.save` wrote by name: a state dict, or a checkpoint that has one under `state_dict`,
/// `model_state_dict`, `model`, `net`, `weights` or `model_state`. F64, F16 and BF16 become F32, integers and truths
/// become U32 where they fit. Names lose what `DataParallel` and `torch.compile` put before all of them.
pub fn read_checkpoint(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    if start(path)? == LEGACY_START {
        return Err(Error::unsupported(format!(
            "{}: expected a file as torch.save writes it since PyTorch 1.6, got one of before; load and save it there",
            path.display()
        )));
    }
    checkpoint_from(path, BufReader::new(File::open(path).map_err(|e| Error::io(path, "open", e))?))
}

/// The first four bytes, or all of a shorter file.
fn start(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let mut start = Vec::new();
    file.take(4).read_to_end(&mut start).map_err(|e| Error::io(path, "read", e))?;
    Ok(start)
}

fn open<R: Read + Seek>(path: &Path, reader: R) -> Result<ZipArchive<Metered<R>>> {
    let reader = Metered::new(path, reader, ZIP_START, "a file of torch.save, which is a zip archive")?;
    ZipArchive::new(reader).map_err(|e| Error::file(path, format!("expected a whole zip archive: {e}")).caused_by(e))
}

fn checkpoint_from<R: Read + Seek>(path: &Path, mut reader: R) -> Result<BTreeMap<String, Tensor>> {
    let length = reader.seek(SeekFrom::End(0)).and_then(|length| reader.rewind().map(|()| length));
    let length = length.map_err(|e| Error::io(path, "read", e))?;
    let zip = open(path, reader)?;
    let budget = Budget(length.saturating_mul(BYTE_FACTOR).saturating_add(BYTE_ALLOWANCE));
    Archive::new(zip, budget).and_then(Archive::tensors).map_err(|e| e.within(path.display()))
}

fn broken(message: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::File, message)
}

/// How many bytes may still be unpacked or gathered.
struct Budget(u64);

impl Budget {
    fn spend(&mut self, bytes: u64) -> Result<()> {
        let left = self.0.checked_sub(bytes);
        self.0 = left.ok_or_else(|| broken("expected tensors of about the file's size, got many times as much"))?;
        Ok(())
    }
}

struct Archive<R> {
    zip: ZipArchive<R>,
    /// What the names of all members begin with.
    folder: String,
    budget: Budget,
}

impl<R: Read + Seek> Archive<R> {
    fn new(zip: ZipArchive<R>, budget: Budget) -> Result<Self> {
        let folders = zip.file_names().filter_map(|name| name.strip_suffix("data.pkl")).filter(|f| f.ends_with('/'));
        let folder = match folders.collect::<Vec<_>>()[..] {
            [folder] => folder.to_string(),
            ref other => return Err(broken(format!("expected one `data.pkl` in a folder, got {}", other.len()))),
        };
        let inside = |name: &str, of: &str| name.strip_prefix(&folder).is_some_and(|rest| rest.starts_with(of));
        if zip.file_names().any(|name| inside(name, "constants.pkl") || inside(name, "code/")) {
            return Err(Error::unsupported(
                "expected a state dict, got a program of TorchScript; load it there and save `model.state_dict()`",
            ));
        }
        Ok(Self { zip, folder, budget })
    }

    fn tensors(mut self) -> Result<BTreeMap<String, Tensor>> {
        if let Some(order) = self.word("byteorder")?
            && order != "little"
        {
            return Err(Error::unsupported(format!("expected values that begin with the lowest byte, got `{order}`")));
        }
        if let Some(version) = self.word("version")?
            && !version.parse().is_ok_and(|n: u64| (1..=VERSION).contains(&n))
        {
            return Err(Error::unsupported(format!(
                "expected a version of the format up to {VERSION}, got `{version}`"
            )));
        }
        let pickle = self.member("data.pkl", PICKLE_LIMIT)?;
        let pickle = Pickle::read(&pickle).map_err(|e| e.within("data.pkl"))?;
        // What is in one storage is read with it, so that no more than one is held beside the tensors.
        let mut storages: BTreeMap<&str, Vec<(&str, View<'_>)>> = BTreeMap::new();
        for (name, id) in without_wrappers(state_dict(&pickle)?) {
            let view = View::of(&pickle, id).map_err(|e| e.within(name))?;
            storages.entry(view.storage).or_default().push((name, view));
        }
        let mut tensors = BTreeMap::new();
        for (storage, views) in storages {
            let bytes = self.member(&format!("data/{storage}"), u64::MAX)?;
            for (name, view) in views {
                let read = self.budget.spend((view.len as u64).saturating_mul(4)).and_then(|()| view.read(&bytes));
                tensors.insert(name.to_string(), read.map_err(|e| e.within(name))?);
            }
        }
        Ok(tensors)
    }

    /// The word that a member holds, if there is such a member.
    fn word(&mut self, name: &str) -> Result<Option<String>> {
        if self.zip.index_for_name(&format!("{}{name}", self.folder)).is_none() {
            return Ok(None);
        }
        Ok(Some(String::from_utf8_lossy(&self.member(name, WORD_LIMIT)?).trim().to_string()))
    }

    /// The bytes of the member with exactly this name.
    fn member(&mut self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let unreadable = |e: &dyn std::fmt::Display| broken(format!("cannot read `{name}`: {e}"));
        let entry = self.zip.by_name(&format!("{}{name}", self.folder)).map_err(|e| unreadable(&e).caused_by(e))?;
        let size = entry.size();
        if size > limit {
            return Err(broken(format!("expected at most {limit} bytes in `{name}`, got {size}")));
        }
        self.budget.spend(size).map_err(|e| e.within(name))?;
        // The buffer grows with what is unpacked, and one byte past the stated size already tells that it is not true.
        let mut bytes = Vec::new();
        entry.take(size.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| unreadable(&e).caused_by(e))?;
        if bytes.len() as u64 != size {
            return Err(broken(format!("expected {size} bytes in `{name}`, as it states, got others")));
        }
        Ok(bytes)
    }
}

/// The tensors of a dictionary by name.
fn tensors_in(pickle: &Pickle, id: Id) -> BTreeMap<&str, Id> {
    let mut named = pickle.named(id);
    named.retain(|_, id| matches!(pickle.get(*id), Object::Tensor(_) | Object::Parameter(_)));
    named
}

/// The tensors of the state dict that a file is or has.
fn state_dict(pickle: &Pickle) -> Result<BTreeMap<&str, Id>> {
    let names = pickle.named(pickle.top);
    let inside = STATE_DICTS.iter().filter_map(|&name| Some((name, tensors_in(pickle, *names.get(name)?))));
    let mut inside: BTreeMap<&str, _> = inside.filter(|(_, tensors)| !tensors.is_empty()).collect();
    let tensors = match inside.pop_first() {
        None => tensors_in(pickle, pickle.top),
        Some((_, tensors)) if inside.is_empty() => tensors,
        Some((one, _)) => {
            let more: Vec<&str> = inside.into_keys().collect();
            return Err(Error::unsupported(format!("expected one state dict, got `{one}` and {more:?}")));
        }
    };
    match tensors.len() {
        0 => {
            let got: Vec<String> = names.keys().take(8).map(|name| name.chars().take(40).collect()).collect();
            let (kind, advice) = (pickle.get(pickle.top).kind(), "save `model.state_dict()`");
            let expected = format!("expected a dictionary of tensors by name, or one under one of {STATE_DICTS:?}");
            Err(Error::unsupported(format!("{expected}, got {kind} with the names {got:?}; {advice}")))
        }
        1..=TENSOR_LIMIT => Ok(tensors),
        got => Err(broken(format!("expected at most {TENSOR_LIMIT} tensors, got {got}"))),
    }
}

/// The tensors under the names that they have in the module itself.
fn without_wrappers(tensors: BTreeMap<&str, Id>) -> Vec<(&str, Id)> {
    let mut tensors: Vec<(&str, Id)> = tensors.into_iter().collect();
    while let Some(prefix) = WRAPPERS.iter().find(|prefix| tensors.iter().all(|t| t.0.starts_with(**prefix))) {
        tensors.iter_mut().for_each(|t| t.0 = t.0.strip_prefix(prefix).unwrap_or(t.0));
    }
    tensors
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Cursor, Write};
    use zip::CompressionMethod::{self, Deflated, Stored};

    fn join(parts: &[Vec<u8>]) -> Vec<u8> {
        parts.concat()
    }

    fn text(text: &str) -> Vec<u8> {
        join(&[b"X".to_vec(), (text.len() as u32).to_le_bytes().to_vec(), text.as_bytes().to_vec()])
    }

    fn integer(n: i32) -> Vec<u8> {
        join(&[b"J".to_vec(), n.to_le_bytes().to_vec()])
    }

    fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
        join(&[b"(".to_vec(), join(items), b"t".to_vec()])
    }

    fn integers(all: &[i32]) -> Vec<u8> {
        tuple(&all.iter().map(|&n| integer(n)).collect::<Vec<_>>())
    }

    fn global(module: &str, name: &str) -> Vec<u8> {
        format!("c{module}\n{name}\n").into_bytes()
    }

    fn call(module: &str, name: &str, arguments: &[Vec<u8>]) -> Vec<u8> {
        join(&[global(module, name), tuple(arguments), b"R".to_vec()])
    }

    fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let items: Vec<Vec<u8>> = entries.iter().flat_map(|(key, value)| [text(key), value.clone()]).collect();
        join(&[b"}(".to_vec(), join(&items), b"u".to_vec()])
    }

    /// A view of the storage `key` of `count` values.
    fn tensor(kind: &str, (key, count): (&str, i32), offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
        let place = [text("storage"), global("torch", kind), text(key), text("cpu"), integer(count)];
        let storage = join(&[tuple(&place), b"Q".to_vec()]);
        let none = call("collections", "OrderedDict", &[]);
        let arguments = [storage, integer(offset), integers(shape), integers(strides), b"\x89".to_vec(), none];
        call("torch._utils", "_rebuild_tensor_v2", &arguments)
    }

    /// Two floats of the storage `0`.
    fn pair() -> Vec<u8> {
        tensor("FloatStorage", ("0", 2), 0, &[2], &[1])
    }

    fn pickle(body: &[u8]) -> Vec<u8> {
        [b"\x80\x02", body, b"."].concat()
    }

    fn zipped(members: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in members {
            let options = zip::write::SimpleFileOptions::default().compression_method(method);
            zip.start_file(format!("archive/{name}"), options).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    fn file(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
        zipped(&[("data.pkl", pickle), ("byteorder", b"little"), ("data/0", storage), ("version", b"3\n")], Stored)
    }

    fn read(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
        checkpoint_from(Path::new("test.pt"), Cursor::new(bytes))
    }

    /// What a pickle of `body` gives whose storage `0` has these bytes.
    fn body(body: &[u8], storage: &[u8]) -> Result<BTreeMap<String, Tensor>> {
        read(&file(&pickle(body), storage))
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    /// The storage of [`pair`].
    fn two() -> Vec<u8> {
        floats(&[1.0, -2.5])
    }

    fn refused(result: Result<BTreeMap<String, Tensor>>, kind: ErrorKind, wanted: &str) {
        let error = result.unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(wanted), "expected {kind:?} `{wanted}`: {error}");
    }

    #[test]
    fn values_of_every_type_are_read() {
        let one = |kind: &str, bytes: &[u8]| {
            let all = body(&dict(&[("t", tensor(kind, ("0", 2), 0, &[2], &[1]))]), bytes).unwrap();
            all["t"].clone()
        };
        let doubles: Vec<u8> = [1.0f64, -2.5].iter().flat_map(|v| v.to_le_bytes()).collect();
        for (kind, bytes) in [
            ("FloatStorage", two()),
            ("DoubleStorage", doubles),
            ("HalfStorage", vec![0x00, 0x3c, 0x00, 0xc1]),
            ("BFloat16Storage", vec![0x80, 0x3f, 0x20, 0xc0]),
        ] {
            assert_eq!(one(kind, &bytes).f32s().unwrap(), [1.0, -2.5], "{kind}");
        }
        let longs: Vec<u8> = [1i64, 200].iter().flat_map(|v| v.to_le_bytes()).collect();
        for (kind, bytes, wanted) in [
            ("LongStorage", longs, [1, 200]),
            ("IntStorage", vec![1, 0, 0, 0, 0, 1, 0, 0], [1, 256]),
            ("ShortStorage", vec![1, 0, 0, 1], [1, 256]),
            ("CharStorage", vec![1, 127], [1, 127]),
            ("ByteStorage", vec![1, 255], [1, 255]),
            ("BoolStorage", vec![1, 0], [1, 0]),
        ] {
            assert_eq!(one(kind, &bytes).u32s().unwrap(), wanted, "{kind}");
        }
        let negative = body(&dict(&[("t", tensor("CharStorage", ("0", 1), 0, &[1], &[1]))]), &[0xff]);
        refused(negative, ErrorKind::Data, "t: expected integers in 0..2^32, got -1");
    }

    #[test]
    fn views_are_gathered_from_the_storage_that_they_share() {
        let storage = floats(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let view = |offset, shape: &[i32], strides: &[i32]| tensor("FloatStorage", ("0", 6), offset, shape, strides);
        let all = [
            ("whole", view(0, &[2, 3], &[3, 1])),
            ("turned", view(0, &[3, 2], &[1, 3])),
            ("row", view(3, &[3], &[1])),
            ("column", view(1, &[2], &[3])),
            ("spread", view(2, &[2, 2], &[0, 1])),
            ("scalar", view(5, &[], &[])),
            ("lone", view(4, &[1, 2], &[77, 1])),
            ("none", view(0, &[0, 3], &[3, 1])),
        ];
        for method in [Stored, Deflated] {
            let read = read(&zipped(&[("data.pkl", &pickle(&dict(&all))), ("data/0", &storage)], method)).unwrap();
            for (name, shape, values) in [
                ("whole", &[2, 3][..], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0][..]),
                ("turned", &[3, 2], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]),
                ("row", &[3], &[3.0, 4.0, 5.0]),
                ("column", &[2], &[1.0, 4.0]),
                ("spread", &[2, 2], &[2.0, 3.0, 2.0, 3.0]),
                ("scalar", &[], &[5.0]),
                ("lone", &[1, 2], &[4.0, 5.0]),
                ("none", &[0, 3], &[]),
            ] {
                assert_eq!(read[name], Tensor::new(shape, values.to_vec()).unwrap(), "{name}");
            }
        }
    }

    #[test]
    fn views_that_reach_out_of_their_storage_are_refused() {
        for (offset, shape, strides) in [
            (0, &[3][..], &[1][..]),
            (1, &[2], &[1]),
            (0, &[2], &[2]),
            (2, &[1], &[1]),
            (0, &[i32::MAX, i32::MAX], &[i32::MAX, i32::MAX]),
            (0, &[i32::MAX, i32::MAX, i32::MAX], &[0, 0, 0]),
        ] {
            let view = dict(&[("t", tensor("FloatStorage", ("0", 2), offset, shape, strides))]);
            refused(body(&view, &two()), ErrorKind::File, "t: shape");
        }
        for (offset, shape, strides) in [(-1, &[1][..], &[1][..]), (0, &[-1], &[1]), (0, &[1], &[-1]), (0, &[1], &[])] {
            let view = dict(&[("t", tensor("FloatStorage", ("0", 2), offset, shape, strides))]);
            refused(body(&view, &two()), ErrorKind::File, "t: expected a tensor of");
        }
        // One value, a hundred million times.
        let many = dict(&[("t", tensor("FloatStorage", ("0", 2), 0, &[100_000_000], &[0]))]);
        refused(body(&many, &two()), ErrorKind::File, "t: expected tensors of about the file's size");
        refused(body(&dict(&[("t", pair())]), &two()[1..]), ErrorKind::File, "a storage of 2 values of 4 bytes, got 7");
        let other = dict(&[("t", tensor("FloatStorage", ("1", 2), 0, &[2], &[1]))]);
        refused(body(&other, &two()), ErrorKind::File, "cannot read `data/1`");
    }

    #[test]
    fn checkpoints_have_their_state_dict_among_other_things() {
        let plain = body(&dict(&[("a.weight", pair())]), &two()).unwrap();
        assert_eq!(plain["a.weight"].f32s().unwrap(), [1.0, -2.5]);
        // A list of a float, of a large integer and of bytes; nothing; truth; a dictionary by numbers.
        let seed = b"](G\x3f\xf0\0\0\0\0\0\0\x8a\x09123456789C\x03abce".to_vec();
        let state = join(&[b"}".to_vec(), integer(7), pair(), b"s".to_vec()]);
        for name in STATE_DICTS {
            let entries = [
                ("epoch", integer(3)),
                ("seed", seed.clone()),
                ("best", b"N".to_vec()),
                (name, dict(&[("a.weight", pair())])),
                ("optimizer", dict(&[("state", state.clone()), ("truth", b"\x88".to_vec())])),
            ];
            assert_eq!(body(&dict(&entries), &two()).unwrap(), plain, "{name}");
        }
        let both = [("model", dict(&[("a", pair())])), ("net", dict(&[("a", pair())]))];
        refused(body(&dict(&both), &two()), ErrorKind::Unsupported, "expected one state dict");
        let none = [("epoch", integer(3)), ("model", integer(4))];
        refused(
            body(&dict(&none), &two()),
            ErrorKind::Unsupported,
            r#"a dictionary with the names ["epoch", "model"]"#,
        );
        refused(body(&pair(), &two()), ErrorKind::Unsupported, "got a tensor");
    }

    #[test]
    fn names_lose_what_wrappers_put_before_all_of_them() {
        let names = |all: &[&str]| -> Vec<String> {
            let entries: Vec<_> = all.iter().map(|name| (*name, pair())).collect();
            body(&dict(&entries), &two()).unwrap().into_keys().collect()
        };
        assert_eq!(names(&["module.a.weight", "module.module.b"]), ["a.weight", "module.b"]);
        assert_eq!(names(&["_orig_mod.module.a", "_orig_mod.module.b"]), ["a", "b"]);
        assert_eq!(names(&["module.a", "b"]), ["b", "module.a"]);
        let count = tensor("LongStorage", ("0", 1), 0, &[], &[]);
        let counted = body(&dict(&[("module.n.num_batches_tracked", count)]), &[5, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!(counted["n.num_batches_tracked"], Tensor::from_u32(&[], vec![5]).unwrap());
    }

    #[test]
    fn newer_protocols_parameters_and_metadata_are_read() {
        let parameter = call("torch._utils", "_rebuild_parameter", &[pair(), b"\x88".to_vec(), b"N".to_vec()]);
        let metadata = join(&[b"}".to_vec(), text("_metadata"), b"}sb".to_vec()]);
        let filled = join(&[text("p"), parameter, b"s".to_vec(), metadata]);
        let ordered = join(&[b"\x8c\x0bcollections\x8c\x0bOrderedDict\x93\x94)R\x94".to_vec(), filled]);
        let framed = [b"\x80\x04\x95\0\0\0\0\0\0\0\0", &ordered[..], b"."].concat();
        assert_eq!(read(&file(&framed, &two())).unwrap()["p"].f32s().unwrap(), [1.0, -2.5]);
    }

    #[test]
    fn what_is_not_a_state_dict_is_refused_by_what_it_is() {
        let system = call("os", "system", &[text("true")]);
        refused(body(&dict(&[("t", system)]), &two()), ErrorKind::Unsupported, "`os.system`");
        let module = join(&[global("__main__", "Net"), b")\x81.".to_vec()]);
        refused(body(&module, &two()), ErrorKind::Unsupported, "`__main__.Net`, which is not known and was not run");
        refused(body(&module, &two()), ErrorKind::Unsupported, "save `model.state_dict()`");
        let hidden = join(&[text("builtins"), text("eval"), b"\x93".to_vec()]);
        refused(body(&hidden, &two()), ErrorKind::Unsupported, "`builtins.eval`");
        let quantised = dict(&[("t", tensor("QInt8Storage", ("0", 2), 0, &[2], &[1]))]);
        refused(body(&quantised, &two()), ErrorKind::Unsupported, "`torch.QInt8Storage`");

        let good = pickle(&dict(&[("t", pair())]));
        let with =
            |name: &str, bytes: &[u8]| read(&zipped(&[("data.pkl", &good), (name, bytes), ("data/0", &two())], Stored));
        assert!(with("byteorder", b"little").is_ok() && with("version", b"10").is_ok());
        refused(with("byteorder", b"big"), ErrorKind::Unsupported, "got `big`");
        refused(with("version", b"11"), ErrorKind::Unsupported, "got `11`");
        for name in ["constants.pkl", "code/__torch__.py"] {
            refused(with(name, b""), ErrorKind::Unsupported, "TorchScript");
        }
        refused(with("more/data.pkl", b""), ErrorKind::File, "expected one `data.pkl` in a folder, got 2");
        refused(
            read(&zipped(&[("data/0", b"")], Stored)),
            ErrorKind::File,
            "expected one `data.pkl` in a folder, got 0",
        );
        refused(read(b"PK\x03\x04"), ErrorKind::File, "whole zip archive");
        refused(read(b""), ErrorKind::File, "a file of torch.save");

        let folder = std::env::temp_dir().join(format!("mnemon-checkpoint-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("old.pt");
        std::fs::write(&path, b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.").unwrap();
        assert!(is_checkpoint(&path).unwrap());
        refused(read_checkpoint(&path), ErrorKind::Unsupported, "since PyTorch 1.6");
        std::fs::write(&path, file(&good, &two())).unwrap();
        assert!(is_checkpoint(&path).unwrap() && read_checkpoint(&path).unwrap().len() == 1);
    }

    #[test]
    fn broken_pickles_are_refused() {
        for (broken, wanted) in [
            (&b""[..], "1 more bytes, got 0"),
            (b"}.", "its protocol first"),
            (b"\x80\x01}.", "the protocols 2 to 5, got 1"),
            (b"\x80\x06}.", "the protocols 2 to 5, got 6"),
            (b"\x80\x02.", "expected an object, got none"),
            (b"\x80\x02(0.", "expected an object, got none"),
            (b"\x80\x02}(0.", "expected an object, got none"),
            (b"\x80\x02t.", "expected a mark"),
            (b"\x80\x02}(Nu.", "a value for each key"),
            (b"\x80\x02NNNs.", "a dictionary to fill"),
            (b"\x80\x02}Na.", "a list to append to, got a dictionary"),
            (b"\x80\x02h\x01.", "expected what is remembered as 1"),
            (b"\x80\x02NNR.", "expected calls"),
            (b"\x80\x02NNb.", "attributes of a plain value"),
            (b"\x80\x02NN\x93.", "the names of a module"),
            (b"\x80\x02cos", "expected a line"),
            (b"\x80\x02X\xff\xff\xff\xffa.", "more bytes, got 2"),
            (b"\x80\x02X\x01\0\0\0\xff.", "text in UTF-8"),
            (b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", "more bytes, got 1"),
            (b"\x80\x02I1\n.", "got 0x49"),
        ] {
            let error = read(&file(broken, &two())).unwrap_err().to_string();
            assert!(error.contains("test.pt: data.pkl: ") && error.contains(wanted), "{broken:?}: {error}");
        }
    }

    #[test]
    fn what_is_cut_short_or_damaged_does_no_harm() {
        let whole = pickle(&dict(&[("epoch", integer(3)), ("model", dict(&[("t", pair())]))]));
        let archive = file(&whole, &two());
        assert!((0..archive.len()).all(|cut| read(&archive[..cut]).is_err()));
        assert!((0..whole.len()).all(|cut| read(&file(&whole[..cut], &two())).is_err()));
        for at in 0..8 * archive.len() {
            let mut damaged = archive.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            let _ = read(&damaged);
        }
        for at in 0..8 * whole.len() {
            let mut damaged = whole.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            let _ = read(&file(&damaged, &two()));
        }
    }

    #[test]
    fn deep_and_circular_objects_do_no_harm() {
        const DEEP: usize = 300_000;
        let lists = join(&[vec![b']'; DEEP], vec![b'a'; DEEP - 1]]);
        let tuples = join(&[b"N".to_vec(), vec![0x85; DEEP]]);
        let dicts = join(&[b"}Nq\x05".repeat(DEEP), b"}".to_vec(), b"s".repeat(DEEP)]);
        for deep in [lists, tuples, dicts] {
            assert_eq!(body(&dict(&[("deep", deep), ("t", pair())]), &two()).unwrap().len(), 1);
        }
        // A dictionary whose `model` is itself.
        let own = |more: &[u8]| join(&[b"}q\0".to_vec(), text("model"), b"h\0s".to_vec(), more.to_vec()]);
        refused(body(&own(b""), &two()), ErrorKind::Unsupported, "by name");
        let more = join(&[text("t"), pair(), b"s".to_vec()]);
        assert_eq!(body(&own(&more), &two()).unwrap().len(), 1);
        // A parameter of a tuple that holds what holds the parameter.
        let parameter = global("torch._utils", "_rebuild_parameter");
        let held = join(&[text("t"), parameter, b"h\0\x85Rs".to_vec()]);
        refused(body(&join(&[b"}q\0".to_vec(), held]), &two()), ErrorKind::File, "t: expected a tensor of");
        let many = vec![b'('; (1 << 20) + 1];
        refused(body(&many, &two()), ErrorKind::File, "objects that wait");
    }

    #[test]
    fn members_that_lie_about_their_size_are_refused() {
        let good = pickle(&dict(&[("t", pair())]));
        for method in [Stored, Deflated] {
            let archive = zipped(&[("data.pkl", &good), ("data/0", &two())], method);
            let entry = archive.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
            for size in [0, 7, 9, u32::MAX - 1] {
                let mut lying = archive.clone();
                lying[entry + 24..entry + 28].copy_from_slice(&u32::to_le_bytes(size));
                refused(read(&lying), ErrorKind::File, "data/0");
            }
        }
    }
}
