//! Standard output, for which a reader that goes away (`mnemon bench | head -1`) is no error, and files that are written late.

use mnemon::error::{Error, ErrorKind, Result};
use std::fmt::Arguments;
use std::io::{self, Write};
use std::path::Path;

/// Writes to standard output at once. Ends the process where nobody reads any more.
pub fn emit(text: Arguments<'_>) {
    let mut out = io::stdout().lock();
    if out.write_fmt(text).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// `println!` by [`emit`].
macro_rules! say {
    ($($text:tt)*) => { $crate::output::emit(format_args!("{}\n", format_args!($($text)*))) };
}
pub(crate) use say;

/// Refuses, before hours of training, an output that could not be written after them.
pub fn check_folder(output: &Path) -> Result<()> {
    let folder = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if output.is_dir() || !folder.is_dir() {
        let message = format!("{}: cannot be written: expected a file in a folder that exists", output.display());
        return Err(Error::new(ErrorKind::File, message));
    }
    Ok(())
}
