//! Dispatches of a call, and bytes that it has to move and to hold, for each configuration and strategy, so that they do not
//! creep up.
#![cfg(all(feature = "gpu", feature = "cli"))]

mod common;

use mnemon::graph::Graph;
use mnemon::optim::{Adam, Course, Gate, Kept, Optimizer, clip_factor};
use mnemon::params::{DType, Initializer, ParameterSpec, Tensor};
use mnemon::scheduler::{Batch, Capacity};
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
    // It was made on a device with the limits of most; one with narrow workgroups takes other strategies.
    let limits = common::gpus()[0].target().limits;
    if limits.invocations < 1024 {
        eprintln!("workgroups of {} threads: not compared", limits.invocations);
        return;
    }
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

/// Clipping and Adam over nine parameters: their norm takes two dispatches of seven values at most and one for the sum, all
/// updates as few as the device binds.
#[test]
fn an_optimiser_is_a_few_dispatches() {
    for device in common::gpus() {
        let mut g = Graph::new();
        let spec = |n: usize| ParameterSpec {
            name: format!("w{n}"),
            shape: vec![n + 3, 5],
            initializer: Initializer::Zeros,
            regularizer: None,
            constraint: None,
        };
        let specs: Vec<ParameterSpec> = (0..9).map(spec).collect();
        let mut session = device.session().unwrap();
        let mut gradients = Vec::new();
        for (n, spec) in specs.iter().enumerate() {
            let name = format!("g{n}");
            let values = Initializer::Normal(1.0).values(&spec.shape, 1, n as u64).unwrap();
            session.set(&name, &Tensor::new(&spec.shape, values.clone()).unwrap()).unwrap();
            session.set(&spec.name, &Tensor::new(&spec.shape, values).unwrap()).unwrap();
            gradients.push(g.persistent(&name, &spec.shape).unwrap());
        }
        session.set("alive", &Tensor::new(&[1], vec![1.0]).unwrap()).unwrap();
        let alive = g.persistent("alive", [1]).unwrap();
        let squares = g.sum_of_squares(&gradients).unwrap();
        let scale = Some(clip_factor(&mut g, squares, 1.0).unwrap());
        let optimizer = Optimizer::from(Adam::default());
        optimizer.apply(&mut g, &specs, &gradients, Gate { scale, squares: None, alive }).unwrap();
        for Kept { name, shape, .. } in optimizer.slots(&specs) {
            session.zero(&name, &shape, DType::F32).unwrap();
        }
        let mut batch = Batch::dense(1, 1).unwrap();
        for (name, value) in optimizer.scalars(&Course::at(0)) {
            batch.set_scalar(name, value);
        }
        let mut executable = session.load(&g, &Capacity::exactly(&batch)).unwrap();
        let profile = session.count(&mut executable, &batch, &[]).unwrap();
        // Four values of each parameter, the factor and the gate.
        let together = (device.target().limits.storage_bindings - 2) / 4;
        let updates = 9usize.div_ceil(together);
        assert_eq!(profile.device.len(), 2 + 1 + 1 + updates, "{device:?}");
    }
}
