//! Standard output, for which a reader that goes away (`mnemon bench | head -1`) is no error.

use std::fmt::Arguments;
use std::io::{self, Write};

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
