//! `mnemon verify`: does this device compute LSTMs right?

use crate::options::DeviceOptions;
use crate::output::say;
use clap::Args;
use mnemon::error::Result;
use mnemon::verify::{self, Report, Status};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  mnemon verify                                  does my driver compute LSTMs right?
  mnemon verify tests/data/conformance --device cpu
  mnemon verify cases --only 'lengths*' --json

Exit code: 0 if every case passed, 1 if one failed, 2 if one could not be run.";

/// Compare a device with known results, forward and backward
///
/// With a folder, runs its conformance cases. Without one, compares the device with the reference in 64 bits on random
/// cases over odd sizes, saturated inputs and long sequences.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// A folder with cases.json
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,

    /// Only cases whose names match; * stands for any characters, ? for one
    #[arg(long, value_name = "GLOB")]
    only: Option<String>,

    /// Print one line of JSON a case
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    device: DeviceOptions,
}

#[derive(Default)]
struct Counts {
    passed: usize,
    failed: Vec<String>,
    unsupported: Vec<String>,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut counts = Counts::default();
    let outcome = run_all(arguments, &mut counts);
    if let Err(error) = outcome {
        // Nothing could be run: a missing folder is no more a failed case than a missing device.
        eprintln!("error: {error}");
        return Ok(ExitCode::from(2));
    }
    if !arguments.json {
        let list = |names: &[String]| if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
        say!(
            "{} passed, {} failed{}, {} not run{}",
            counts.passed,
            counts.failed.len(),
            list(&counts.failed),
            counts.unsupported.len(),
            list(&counts.unsupported)
        );
    }
    Ok(match (counts.failed.is_empty(), counts.unsupported.is_empty()) {
        (false, _) => ExitCode::from(1),
        (true, false) => ExitCode::from(2),
        (true, true) if counts.passed == 0 => {
            eprintln!("error: verify: no case matches `{}`", arguments.only.as_deref().unwrap_or("*"));
            ExitCode::from(2)
        }
        (true, true) => ExitCode::SUCCESS,
    })
}

fn run_all(arguments: &Arguments, counts: &mut Counts) -> Result<()> {
    let device = arguments.device.open()?;
    let only = |name: &str| arguments.only.as_ref().is_none_or(|glob| matches(glob.as_bytes(), name.as_bytes()));
    if !arguments.json {
        say!("on {}", device.name());
    }
    let mut each = |report: &Report| {
        match report.status {
            Status::Passed => counts.passed += 1,
            Status::Failed => counts.failed.push(report.case.clone()),
            Status::Unsupported => counts.unsupported.push(report.case.clone()),
        }
        if arguments.json { json(report) } else { show(report) }
    };
    match &arguments.folder {
        Some(folder) => verify::folder(&device, folder, &only, &mut each),
        None => {
            verify::random(&device, &only, &mut each);
            Ok(())
        }
    }
}

fn json(report: &Report) {
    match serde_json::to_string(report) {
        Ok(line) => say!("{line}"),
        Err(error) => log::error!("{}: {error}", report.case),
    }
}

fn show(report: &Report) {
    let (word, why) = match report.status {
        Status::Passed => ("pass", String::new()),
        Status::Failed => ("FAIL", String::new()),
        Status::Unsupported => ("not run", format!(": {}", report.error.as_deref().unwrap_or("unknown"))),
    };
    say!("{word} {}{why}", report.case);
    for tensor in &report.tensors {
        let word = if tensor.passed() { "pass" } else { "FAIL" };
        say!("  {word} {:<20} error {:.2e}, allowed {:.0e}", tensor.name, tensor.error, tensor.tolerance);
    }
}

/// Whether `name` matches `glob`, in which * stands for any characters and ? for one.
fn matches(glob: &[u8], name: &[u8]) -> bool {
    let (mut g, mut n, mut retry) = (0, 0, None);
    while n < name.len() {
        match glob.get(g) {
            Some(b'*') => {
                retry = Some((g + 1, n));
                g += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => (g, n) = (g + 1, n + 1),
            _ => match retry {
                Some((after, at)) => {
                    retry = Some((after, at + 1));
                    (g, n) = (after, at + 1);
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn globs() {
        let yes = [("*", ""), ("h*", "h3"), ("*layer*", "2layer_x"), ("h?", "h3"), ("a*b*c", "a_b_b_c"), ("h3", "h3")];
        let no = [("h?", "h17"), ("h", "h3"), ("*y", "lengths"), ("?", "")];
        assert!(yes.iter().all(|(g, n)| matches(g.as_bytes(), n.as_bytes())));
        assert!(no.iter().all(|(g, n)| !matches(g.as_bytes(), n.as_bytes())));
    }
}
