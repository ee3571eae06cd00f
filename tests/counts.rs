//! Dispatches of a call, and bytes that it has to move and to hold, for each configuration and strategy, so that they do not
//! creep up.
#![cfg(all(feature = "gpu", feature = "cli"))]

use std::collections::BTreeMap;
use std::process::Command;

/// `mnemon profile --count` on the GPU under test: for each configuration dispatches, copies, MB to move and bytes held.
fn counted(mode: &str, strategy: Option<&str>) -> BTreeMap<String, [f64; 4]> {
    let device = std::env::var("MNEMON_TEST_GPU").unwrap_or_else(|_| "software".to_string());
    let mut command = Command::new(env!("CARGO_BIN_EXE_mnemon"));
    command.args(["profile", "--count", "--mode", mode, "--device", &device, "--tune", "off"]);
    command.args(strategy.into_iter().flat_map(|s| ["--strategy", s]));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let number = |part: &str| part.split_whitespace().next().and_then(|n| n.parse().ok());
    let line = |line: &str| {
        let (name, rest) = line.split_once(": ")?;
        let parts: Vec<f64> = rest.split(", ").filter_map(number).collect();
        let &[dispatches, copies, _, moved, held] = parts.as_slice() else { return None };
        Some((name.to_string(), [dispatches, copies, moved, held]))
    };
    text.lines().filter_map(line).collect()
}

#[test]
fn no_configuration_dispatches_or_moves_more_than_it_did() {
    if std::env::var("MNEMON_TEST_GPU").is_ok_and(|gpu| gpu == "none") {
        return;
    }
    let table: BTreeMap<String, BTreeMap<String, [f64; 4]>> =
        serde_json::from_str(include_str!("data/counts.json")).unwrap();
    assert_eq!(table.len(), 6);
    for (case, most) in &table {
        let (mode, strategy) = case.split_once(' ').unwrap();
        let now = counted(mode, Some(strategy).filter(|s| *s != "table"));
        assert_eq!(now.keys().collect::<Vec<_>>(), most.keys().collect::<Vec<_>>(), "{case}");
        for (name, most) in most {
            for (what, (now, most)) in
                ["dispatches", "copies", "MB to move", "bytes held"].iter().zip(now[name].iter().zip(most))
            {
                assert!(now <= most, "{case}, {name}: {now} {what}, were {most}");
            }
        }
    }
}
