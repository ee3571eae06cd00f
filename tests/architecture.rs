//! The arrows of docs/architecture.md: which room may use which. Read from the `use crate::` lines and paths of `src`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What each room may use besides itself and `error`. `scheduler` in a list means all of it.
const ARROWS: &[(&str, &[&str])] = &[
    ("train", &["nn", "optim", "io", "data", "device", "scheduler", "graph", "params", "config"]),
    ("io", &["nn", "optim", "graph", "params", "config"]),
    // The f64 reference takes a program of its own, which a device does not make.
    ("verify", &["device", "reference", "graph", "io", "params", "config", "scheduler"]),
    ("streams", &["device", "scheduler", "graph", "nn", "params", "config"]),
    ("data", &["scheduler"]),
    ("nn", &["graph", "params", "config", "device"]),
    ("optim", &["graph", "params"]),
    ("device", &["reference", "cpu", "gpu", "scheduler", "graph", "params", "config"]),
    ("reference", &["scheduler", "graph", "params", "config"]),
    ("cpu", &["scheduler", "graph", "params", "config"]),
    ("gpu", &["scheduler", "graph", "params", "config"]),
    ("scheduler", &["graph", "params", "config"]),
    ("graph", &["params", "config"]),
    ("params", &["config"]),
    ("config", &[]),
    ("error", &[]),
];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The rooms that a source names after `crate::`, also inside braces; comments and the tests at its end left out.
fn named(source: &str) -> BTreeSet<String> {
    let code: String = source
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default()
        .lines()
        .map(|l| l.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n");
    let mut rooms = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let list = rest.strip_prefix('{').map_or(rest, |inside| inside.split('}').next().unwrap_or(inside));
        let many = rest.starts_with('{');
        for part in list.split(',').take(if many { usize::MAX } else { 1 }) {
            let word: String = part.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            rooms.insert(word);
        }
    }
    rooms
}

fn violations(room: &str, path: &str, source: &str) -> Vec<String> {
    let allowed: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let Some(may) = allowed.get(room) else {
        return vec![format!("{path}: no arrows are known for the room `{room}`")];
    };
    named(source)
        .into_iter()
        .filter(|r| allowed.contains_key(r.as_str()) && r != room && r != "error" && !may.contains(&r.as_str()))
        .map(|r| {
            format!(
                "{path}: `{room}` uses `{r}`, but may use only {may:?}: descriptions flow down to executors, and executors \
                 never see each other, so that each can be checked against the others (docs/architecture.md)"
            )
        })
        .collect()
}

#[test]
fn every_arrow_is_allowed() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&src, &mut all);
    let mut found = Vec::new();
    let mut seen = 0;
    for path in all {
        let inside = path.strip_prefix(&src).unwrap();
        let room = inside.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_string();
        if room == "lib" || room == "bin" || inside.ends_with("tests.rs") {
            continue;
        }
        seen += 1;
        found.extend(violations(&room, &inside.display().to_string(), &std::fs::read_to_string(&path).unwrap()));
    }
    assert!(seen > 40, "only {seen} files were read");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn only_the_gpu_room_names_wgpu_and_only_the_command_prints() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&src, &mut all);
    for path in all {
        let inside = path.strip_prefix(&src).unwrap().display().to_string().replace('\\', "/");
        let source = std::fs::read_to_string(&path).unwrap();
        let code = || source.lines().map(|l| l.split("//").next().unwrap_or_default());
        if !inside.starts_with("gpu/") && inside != "device.rs" {
            assert!(!code().any(|l| l.contains("wgpu::")), "{inside} names wgpu; only gpu/ may");
        }
        if !inside.starts_with("bin/") {
            for word in ["println!", "print!(", "process::exit"] {
                assert!(!code().any(|l| l.contains(word)), "{inside} has {word}; only bin/ prints or exits");
            }
        }
    }
}

#[test]
fn the_check_finds_a_forbidden_arrow() {
    assert_eq!(violations("graph", "graph/op.rs", "use crate::{error::Result, gpu::Gpu};").len(), 1);
    assert_eq!(violations("cpu", "cpu/x.rs", "fn f() { crate::reference::g() }").len(), 1);
    assert!(violations("cpu", "cpu/x.rs", "use crate::graph::Op; // not crate::gpu").is_empty());
    assert_eq!(violations("attic", "attic/x.rs", "").len(), 1);
}
