//! What a command prints.

use std::fmt::Display;
use std::io::Write;

use anyhow::{Context, Result};

/// Prints a result, and a newline.
///
/// # Errors
/// The output cannot be written.
pub(super) fn print(text: impl Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).context("cannot write to the standard output")
}

/// Says something beside the result. A command goes on if nobody can read it.
pub(super) fn note(text: impl Display) {
    _ = writeln!(std::io::stderr(), "{text}");
}
