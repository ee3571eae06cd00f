//! `mnemon compare`: does a model give what another program says it gives?

use crate::options::DeviceOptions;
use crate::output::say;
use crate::run::inputs;
use crate::summary::ModelOptions;
use clap::Args;
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::io::{self, pytorch};
use mnemon::params::{DType, Tensor};
use mnemon::train::{Model, Named};
use mnemon::verify::TensorError;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  mnemon compare forecast.keras forecast.safetensors
  mnemon compare char_lm.safetensors char_lm.expected.safetensors --device cpu

EXPECTED holds the inputs as in.NAME and what is expected as out.NAME. out.loss is the cross entropy with in.targets, and
grad.NAME its gradients; out.greedy are the likeliest tokens after row 0 of the inputs. Tolerances, and what a state dict
holds, come from the entry for EXPECTED in a cases.json beside it.

Exit code: 0 if every tensor is within its tolerance, 1 if one is not, 2 if the model cannot be run.";

/// The tolerance where nothing else says one.
const TOLERANCE: f64 = 1e-5;

/// Compare a model's outputs with expected ones
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelOptions,

    /// A .safetensors file with inputs and expected outputs
    #[arg(value_name = "EXPECTED")]
    expected: PathBuf,

    /// The largest error allowed, ‖a - b‖ / ‖b‖
    #[arg(long, value_name = "ERROR")]
    tol: Option<f64>,

    #[command(flatten)]
    device: DeviceOptions,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let errors = match compare(arguments) {
        Ok(errors) => errors,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(ExitCode::from(2));
        }
    };
    for tensor in &errors {
        let word = if tensor.passed() { "pass" } else { "FAIL" };
        say!("{word} {:<28} error {:.2e}, allowed {:.0e}", tensor.name, tensor.error, tensor.tolerance);
    }
    let failed = errors.iter().filter(|t| !t.passed()).count();
    say!("{} passed, {failed} failed", errors.len() - failed);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// What a cases.json says of one file.
#[derive(Default)]
struct Entry {
    forward: Option<f64>,
    gradient: Option<f64>,
    config: Option<pytorch::Config>,
}

impl Entry {
    /// The entry for `expected` in the cases.json beside it, if there are such.
    fn beside(expected: &Path) -> Result<Self> {
        let path = expected.with_file_name("cases.json");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(Error::new(ErrorKind::File, format!("{}: cannot read: {e}", path.display()))),
        };
        let broken = |e: serde_json::Error| Error::new(ErrorKind::File, format!("{}: {e}", path.display()));
        let all: Value = serde_json::from_str(&text).map_err(broken)?;
        let name = expected.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let cases = all.get("cases").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let about = |case: &&Value| ["data", "expected", "file"].iter().any(|k| case[*k].as_str() == Some(name));
        let Some(case) = cases.iter().find(about) else { return Ok(Self::default()) };
        let number = |keys: &[&str]| keys.iter().find_map(|k| case[*k].as_f64());
        let config = case.get("state_dict").is_some().then(|| serde_json::from_value(case.clone()).map_err(broken));
        Ok(Self {
            forward: number(&["tol_forward", "tol"]),
            gradient: number(&["tol_grad", "tol"]),
            config: config.transpose()?,
        })
    }
}

fn compare(arguments: &Arguments) -> Result<Vec<TensorError>> {
    if let Some(tol) = arguments.tol.filter(|t| !(t.is_finite() && *t >= 0.0)) {
        return Err(Error::new(ErrorKind::Argument, format!("--tol: expected a number of at least 0, got {tol}")));
    }
    let expected = io::read_tensors(&arguments.expected)?;
    let entry = Entry::beside(&arguments.expected)?;
    let (forward, gradient_tol) =
        (arguments.tol.or(entry.forward).unwrap_or(TOLERANCE), arguments.tol.or(entry.gradient).unwrap_or(TOLERANCE));
    let mut given = inputs(&arguments.expected)?;
    let imported = arguments.model.read_for(entry.config, Some(&given))?;
    let mut model = Model::new(&arguments.device.open()?, &imported.network, &imported.parameters)?;
    if !expected.keys().any(|name| name.starts_with("in.")) {
        return Err(Error::new(ErrorKind::Argument, "expected inputs called in.NAME, got none"));
    }
    let named = |name: &str| imported.network.inputs.iter().any(|i| i.0 == name);
    let targets = if named("targets") { None } else { given.remove("targets") };

    let mut errors = Vec::new();
    let mut add = |name: &str, actual: &Tensor, wanted: &Tensor, tolerance: f64| -> Result<()> {
        if actual.shape() != wanted.shape() && actual.len() == wanted.len() {
            return Err(Error::new(
                ErrorKind::Shape,
                format!("{name}: the model gives {:?}, expected {:?}", actual.shape(), wanted.shape()),
            ));
        }
        errors.push(TensorError::of(name.to_string(), &doubles(actual)?, &doubles(wanted)?, tolerance));
        Ok(())
    };
    let wanted = |name: &str| name.strip_prefix("out.").map(str::to_string);
    let edges = &imported.edges;
    let gives = |name: &str| if edges.is_empty() { model.gives(name) } else { edges.gives(name) };
    let names: Vec<String> = expected.keys().filter_map(|n| wanted(n)).filter(|n| gives(n)).collect();
    let given = edges.arrange(&given)?;
    let mut outputs = match edges.is_empty() {
        true => model.run_for(&given, &names.iter().map(String::as_str).collect::<Vec<_>>())?,
        false => edges.restore(model.run(&given)?)?,
    };
    outputs.retain(|name, _| names.contains(name));
    for (name, tensor) in &outputs {
        let full = format!("out.{name}");
        add(&full, tensor, &expected[&full], forward)?;
    }
    let mut missing: Vec<String> = expected.keys().filter_map(|n| wanted(n)).filter(|n| !names.contains(n)).collect();
    let has_gradients = expected.keys().any(|n| n.starts_with("grad."));
    if let Some(targets) = targets.filter(|_| has_gradients || missing.iter().any(|n| n == "loss")) {
        let (loss, gradients) = model.loss_and_gradients(&given, &targets)?;
        if let Some(wanted) = expected.get("out.loss") {
            add("out.loss", &Tensor::scalar(loss), wanted, forward)?;
            missing.retain(|n| n != "loss");
        }
        for (name, wanted) in expected.iter().filter(|(n, _)| n.starts_with("grad.")) {
            let theirs = &name["grad.".len()..];
            let ours = imported.sources.iter().find(|(_, source)| *source == theirs).map(|(ours, _)| ours);
            match ours.and_then(|ours| gradients.get(ours)) {
                Some(gradient) => add(name, gradient, wanted, gradient_tol)?,
                None => {
                    return Err(Error::new(ErrorKind::Data, format!("{name}: the model has no parameter `{theirs}`")));
                }
            }
        }
    } else if has_gradients {
        return Err(Error::new(
            ErrorKind::Data,
            "gradients are expected, and there is no in.targets that a loss could compare with",
        ));
    }
    if let (true, Some(wanted)) = (missing.iter().any(|n| n == "greedy"), expected.get("out.greedy")) {
        add("out.greedy", &greedy(&mut model, &given, wanted.len())?, wanted, 0.0)?;
        missing.retain(|n| n != "greedy");
    }
    for name in missing {
        eprintln!("not compared: out.{name}, which the model does not give, only {:?}", model.outputs());
    }
    if errors.is_empty() {
        return Err(Error::new(ErrorKind::Data, format!("nothing to compare: the model gives {:?}", model.outputs())));
    }
    Ok(errors)
}

/// The likeliest tokens after row 0 of the one input.
fn greedy(model: &mut Model, given: &Named, steps: usize) -> Result<Tensor> {
    let tokens = given.values().find(|t| t.dtype() == DType::U32 && t.shape().len() == 2);
    let tokens = tokens
        .ok_or_else(|| Error::new(ErrorKind::Data, "out.greedy: expected tokens [B, T] to go on from, got none"))?;
    let prompt = &tokens.u32s()?[..tokens.shape()[1]];
    Tensor::from_u32(&[steps], model.greedy(prompt, steps)?)
}

fn doubles(tensor: &Tensor) -> Result<Vec<f64>> {
    match tensor.dtype() {
        DType::F32 => Ok(tensor.f32s()?.iter().map(|&v| f64::from(v)).collect()),
        DType::U32 => Ok(tensor.u32s()?.iter().map(|&v| f64::from(v)).collect()),
    }
}
