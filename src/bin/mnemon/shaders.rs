//! `mnemon shaders`: the shaders as tools can read them.

use crate::output::say;
use clap::Args;
use mnemon::error::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Write every assembled shader variant to a folder, for WGSL tools
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mnemon shaders /tmp/shaders && naga /tmp/shaders/*.wgsl")]
pub struct Arguments {
    /// Where to write; made where it does not exist
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let failed = |path: &Path, e| Error::new(ErrorKind::File, format!("{}: cannot write: {e}", path.display()));
    std::fs::create_dir_all(&arguments.folder).map_err(|e| failed(&arguments.folder, e))?;
    let all = mnemon::gpu::shaders()?;
    for (name, source) in &all {
        let path = arguments.folder.join(name);
        std::fs::write(&path, source).map_err(|e| failed(&path, e))?;
    }
    say!("{} shaders written to {}", all.len(), arguments.folder.display());
    Ok(ExitCode::SUCCESS)
}
