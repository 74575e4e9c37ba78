//! Standard output. Every command writes to it here, so that a reader that closes its pipe early
//! ends the command quietly, and a full device is an error.

use anyhow::Result;
use std::fmt::Display;
use std::io::{self, BufWriter, Write};

/// Standard output cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}")]
pub struct OutputError(pub io::Error);

impl OutputError {
    /// Whether the reader has closed its pipe, which is no failure.
    pub fn is_closed(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// Writes all output of `print`.
///
/// Errors: [`OutputError`].
pub fn printed(print: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    let written = print(&mut out).and_then(|()| out.flush());
    // What the reader did not take is not written again when the buffer is dropped.
    let _ = out.into_parts();
    Ok(written.map_err(OutputError)?)
}

/// Writes one line at once.
///
/// Errors: [`OutputError`].
pub fn line(line: impl Display) -> Result<()> {
    printed(|out| writeln!(out, "{line}"))
}

/// Writes a value as JSON.
///
/// Errors: [`OutputError`].
pub fn json(value: &impl serde::Serialize) -> Result<()> {
    line(serde_json::to_string_pretty(value)?)
}
