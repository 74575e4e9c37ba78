//! Readers of files and texts from strangers, as targets for a fuzzer.
//!
//! A target is given any bytes. It may refuse them in one line; it may not panic, hang, or take more
//! memory than the fuzzer allows. `make fuzz-guided` gives it bytes that reach new code;
//! `tests/random.rs` gives it damaged seeds.
#![forbid(unsafe_code)]

mod checkpoints;
mod files;
mod texts;

use std::fs;
use std::path::{Path, PathBuf};

/// A reader of bytes from anywhere.
pub struct Target {
    /// Its name, in arguments and reports.
    pub name: &'static str,
    /// Valid inputs, from which a fuzzer begins.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Reads an input, with a folder for files. Panics if the reader breaks a promise.
    pub run: fn(&Path, &[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    checkpoints::SAFETENSORS,
    checkpoints::CKPT,
    checkpoints::NPY_FOLDER,
    checkpoints::ZST,
    checkpoints::LORA,
    files::BUNDLE,
    files::PLAN,
    files::PICTURE,
    files::NPY,
    texts::PROFILE,
    texts::MODEL,
    texts::PROMPT,
    texts::ARGUMENTS,
];

/// The target of a name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Writes `bytes` to a file in `folder`, and returns its path.
fn file(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).expect("a temporary folder can be written");
    path
}

/// A file of the repository.
fn stored(path: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// An error is one line.
fn expect_line(error: &str) {
    assert!(!error.trim().is_empty() && !error.contains('\n'), "not one line: {error:?}");
}
