//! `mnemon plot`: the curves of runs in one picture.

use crate::output::say;
use clap::Args;
use mnemon::error::{Error, ErrorKind, Result};
use mnemon::io::replace;
use mnemon::train::{Records, plot_runs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Example:
  mnemon plot runs/1 runs/2 --output both.svg";

/// Draw the curves of runs that `mnemon train` recorded, in one picture
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Folders of runs
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,

    /// Where to draw them
    #[arg(long, short, value_name = "FILE", default_value = "runs.svg")]
    output: PathBuf,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let name = |folder: &Path| folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
    let mut runs: Vec<(String, Records)> = Vec::new();
    for folder in &arguments.runs {
        let records = Records::read(folder)?;
        if records.0.is_empty() {
            let message = format!("{}: expected at least one epoch, got none", folder.display());
            return Err(Error::new(ErrorKind::Data, message));
        }
        // Two folders of one name are told apart by their whole path.
        let twice = arguments.runs.iter().filter(|other| name(other) == name(folder)).count() > 1;
        runs.push((if twice { folder.display().to_string() } else { name(folder) }, records));
    }
    replace(&arguments.output, plot_runs(&runs)?.as_bytes())?;
    say!("drew {} runs in {}", runs.len(), arguments.output.display());
    Ok(ExitCode::SUCCESS)
}
