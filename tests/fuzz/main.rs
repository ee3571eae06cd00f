//! Damaged files: each reader of models gets real files with parts of them changed, and must give a model or an error,
//! soon, and without taking more memory than a small multiple of the file.
//!
//! `MNEMON_FUZZ` is how many files each reader gets (`tests/run fuzz`), `MNEMON_FUZZ_SEED` which ones.

mod json;
mod meter;
mod mutate;
mod wire;

use meter::Meter;
use mnemon::error::ErrorKind;
use mnemon::io::pytorch::Config;
use mutate::{Form, Rng, mutated};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How many files each reader gets unless told.
const FILES: u64 = 400;
/// What reading a file may take beside a multiple of it: an ONNX file may name weights that are inputs, which are some million
/// zeros where no run gives them.
const ALLOWANCE: usize = 8 << 20;
/// How many times the file, as it was before its members were packed.
const FACTOR: usize = 64;
/// The longest that a file may take: the slowest whole one takes a hundredth, and the machine may be busy.
const TIME: Duration = Duration::from_secs(5);

struct Reader {
    name: &'static str,
    /// What its files end in.
    extension: &'static str,
    form: Form,
    read: fn(&Path) -> mnemon::error::Result<()>,
}

fn model(path: &Path) -> mnemon::error::Result<()> {
    let imported = mnemon::io::read_model(path, None)?;
    imported.network.summary(&imported.title).map(drop)
}

/// A state dict whose modules are known by shape, or else by the names that one of them has.
fn state_dict(path: &Path) -> mnemon::error::Result<()> {
    let name = |name: &str| Some(name.to_string());
    let named = Config { embedding: name("a"), lstm: name("b"), linear: name("c"), ..Config::default() };
    let imported = mnemon::io::read_model(path, None).or_else(|_| mnemon::io::read_model(path, Some(&named)))?;
    imported.network.summary(&imported.title).map(drop)
}

fn weights(path: &Path) -> mnemon::error::Result<()> {
    mnemon::io::keras::read_weights(path).map(drop)
}

/// Files of the tests' own that end in `extension` and are in one of `folders`.
fn files(folders: &[&str], extension: &str) -> Vec<PathBuf> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let within = |folder: &&str| std::fs::read_dir(data.join(folder)).unwrap().map(|e| e.unwrap().path());
    let mut all: Vec<PathBuf> = folders.iter().flat_map(within).collect();
    all.retain(|p| p.to_string_lossy().ends_with(extension));
    all.sort();
    assert!(!all.is_empty(), "no {extension} in {folders:?}");
    all
}

fn fuzz(reader: &Reader, corpus: &[Vec<u8>]) {
    let number = |name: &str, usual: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}: expected a number, got `{text}`")),
        Err(_) => usual,
    };
    let (count, seed) = (number("MNEMON_FUZZ", FILES), number("MNEMON_FUZZ_SEED", 1));
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    std::fs::create_dir_all(&home).unwrap();
    let path = home.join(format!("{}.{}", reader.name, reader.extension));
    let mut meter = Meter::new(&path, TIME);
    // Whole files are read, or nothing that follows means anything; a few are of kinds that are refused.
    let whole = corpus.iter().filter(|bytes| {
        std::fs::write(&path, bytes).unwrap();
        meter.take(|| (reader.read)(&path)).outcome.is_ok()
    });
    let whole = whole.count();
    assert!(4 * whole > 3 * corpus.len(), "{}: {whole} of {} whole files are read", reader.name, corpus.len());
    let mut outcomes = BTreeMap::<String, u64>::new();
    let (mut most, mut slowest) = (0.0f64, Duration::ZERO);
    for n in 0..count {
        let mut rng = Rng::new(seed ^ (n << 20));
        let (bytes, unpacked) = mutated(reader.form, corpus, &mut rng);
        std::fs::write(&path, &bytes).unwrap();
        let taken = meter.take(|| (reader.read)(&path));
        let allowed = FACTOR * unpacked + ALLOWANCE;
        let kept = || {
            let kept = path.with_extension(format!("{n}.{}", reader.extension));
            std::fs::copy(&path, &kept).unwrap();
            kept
        };
        assert!(!taken.panicked, "{}: a panic at file {n}, kept as {}", reader.name, kept().display());
        assert!(taken.time < TIME, "{}: {:?} for file {n}, kept as {}", reader.name, taken.time, kept().display());
        assert!(
            taken.bytes <= allowed,
            "{}: {} bytes for file {n} of {unpacked}, kept as {}",
            reader.name,
            taken.bytes,
            kept().display()
        );
        most = most.max(taken.bytes as f64 / allowed as f64);
        slowest = slowest.max(taken.time);
        let outcome = taken.outcome.map_or_else(
            |e| match e.kind() {
                // No file is to blame for it.
                ErrorKind::Internal => format!("Internal: {e}"),
                kind => format!("{kind:?}"),
            },
            |()| "read".to_string(),
        );
        *outcomes.entry(outcome).or_default() += 1;
    }
    eprintln!(
        "{}: {count} files, {outcomes:?}; at most {:.0} % of the memory allowed, {:.0} ms, {} panics in libraries",
        reader.name,
        most * 100.0,
        slowest.as_secs_f64() * 1e3,
        meter.panics(),
    );
    assert!(outcomes.len() > 1, "{}: all files came to {outcomes:?}", reader.name);
}

fn read_all(paths: &[PathBuf]) -> Vec<Vec<u8>> {
    paths.iter().map(|p| std::fs::read(p).unwrap()).collect()
}

#[test]
fn onnx() {
    let reader = Reader { name: "onnx", extension: "onnx", form: Form::Onnx, read: model };
    fuzz(&reader, &read_all(&files(&["onnx"], ".onnx")));
}

#[test]
fn keras_archives() {
    let reader = Reader { name: "keras", extension: "keras", form: Form::Zip, read: model };
    fuzz(&reader, &read_all(&files(&["models", "legacy"], ".keras")));
}

#[test]
fn keras_legacy() {
    let reader = Reader { name: "legacy", extension: "h5", form: Form::Hdf5, read: model };
    fuzz(&reader, &read_all(&files(&["legacy"], ".h5")));
}

#[test]
fn keras_weights() {
    let reader = Reader { name: "weights", extension: "weights.h5", form: Form::Hdf5, read: weights };
    let archives = read_all(&files(&["models", "legacy"], ".keras"));
    let inside: Vec<Vec<u8>> = archives.iter().map(|a| mutate::member(a, "model.weights.h5")).collect();
    fuzz(&reader, &inside);
}

#[test]
fn pytorch_checkpoints() {
    let reader = Reader { name: "checkpoint", extension: "pt", form: Form::Zip, read: state_dict };
    fuzz(&reader, &read_all(&files(&["models"], ".pt")));
}

#[test]
fn pytorch_state_dicts() {
    let reader = Reader { name: "state", extension: "safetensors", form: Form::Safetensors, read: state_dict };
    fuzz(&reader, &read_all(&files(&["models"], ".state.safetensors")));
}

#[test]
fn own_models() {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut corpus = Vec::new();
    for (at, source) in files(&["models"], ".keras").iter().chain(&files(&["onnx"], ".onnx")).enumerate() {
        let Ok(imported) = mnemon::io::read_model(source, None) else { continue };
        if imported.network.parameters().unwrap().iter().map(|p| p.shape.iter().product::<usize>()).sum::<usize>()
            > 8192
        {
            continue;
        }
        let path = home.join(format!("own-{at}.safetensors"));
        mnemon::io::save(&path, &mnemon::train::model_file(&imported).unwrap()).unwrap();
        corpus.push(std::fs::read(&path).unwrap());
    }
    let reader = Reader { name: "own", extension: "safetensors", form: Form::Safetensors, read: model };
    fuzz(&reader, &corpus);
}
