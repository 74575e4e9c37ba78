//! Bad input of every kind: each is one clear line before the work, and destroys nothing.

mod checkpoint;
mod finite;
#[path = "../harness/mod.rs"]
mod harness;
mod identify;
mod memory;
mod paths;
mod shapes;
mod standard_output;

use harness::{scratch, shared};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// The small model with its image encoder, compiled.
fn bundle() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(shared)
}

/// An empty folder.
fn empty(name: &str) -> PathBuf {
    let folder = scratch("faults").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("the target folder can be written");
    folder
}

/// Runs a line of bash with `kiln` as `$0` and more arguments from `$1` on.
fn bash(line: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("bash");
    command.args(["-c", line, env!("CARGO_BIN_EXE_kiln")]).args(arguments);
    command.current_dir(harness::root()).stdin(Stdio::null());
    command.output().expect("bash starts")
}

/// What a command said on standard error.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
