//! The files of a command, checked before its work.

use anyhow::{Result, bail};
use kiln_bundle::paths::Paths;
use kiln_compiler::size::mib;
use std::path::{Path, PathBuf};

/// Room that the folder of an output must have.
const LEAST_ROOM_BYTES: u64 = 64 << 10;
/// Folders below a checkpoint's folder in which files are looked for.
const MAX_DEPTH: usize = 4;

/// Checks that a command can write its output, and that the output is none of its inputs.
///
/// `extension`: the one that the output must have, if there is one.
pub fn check<'a>(
    inputs: impl IntoIterator<Item = (&'static str, &'a Path)>,
    name: &'static str,
    output: &Path,
    extension: Option<&'static str>,
) -> Result<()> {
    Ok(Paths::of_inputs(inputs, LEAST_ROOM_BYTES).writes(name, output, extension)?)
}

/// A file, or the files of a folder and of those in it.
pub fn all(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    below(path, MAX_DEPTH, &mut found);
    found
}

fn below(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if depth > 0 && path.is_dir() {
            below(&path, depth - 1, found);
        }
        found.push(path);
    }
}

/// Checks that the disk of a file has room for it.
#[cfg(unix)]
pub fn check_room(path: &Path, needed_bytes: u64) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    // A disk that does not tell is written to until it is full.
    let Ok(disk) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let room_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
    if room_bytes < needed_bytes {
        bail!(
            "{} will have {}, its disk has room for {}; free some or write elsewhere",
            path.display(),
            mib(needed_bytes),
            mib(room_bytes)
        );
    }
    Ok(())
}

/// Checks nothing: the system does not tell.
#[cfg(not(unix))]
pub fn check_room(_: &Path, _: u64) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_disk_too_small_is_told_before_the_work() {
        check_room(Path::new("x.kiln"), 0).unwrap();
        let error = check_room(Path::new("./x.kiln"), u64::MAX).unwrap_err().to_string();
        assert!(error.starts_with("./x.kiln will have ") && error.contains("room for"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}
