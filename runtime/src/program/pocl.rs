//! PoCL's cache folder, of which PoCL makes the binary of a program.
//!
//! The folder has one library for each version of a kernel:
//! `<program>/<kernel>/<work-group, offset, grid>/<kernel>.so`. Asked for a binary, PoCL adds a
//! version for any work-group and grid, which costs as much time as the version that a plan
//! launches. No launch takes the general version: PoCL compiles what it lacks.

use std::fs;
use std::io;
use std::path::Path;

/// The environment variable that names the folder.
pub(super) const FOLDER: &str = "POCL_CACHE_DIR";

/// Folder of the version for any work-group and grid.
const GENERAL: &str = "0-0-0";

/// Puts the version of a kernel that was launched in the place of its general version, which then
/// is not compiled.
///
/// Errors: those of the file system. Without the folder, or if it looks otherwise, nothing is done.
pub(super) fn omit_general_version(folder: &Path, kernel: &str) -> io::Result<()> {
    let library = format!("{kernel}.so");
    for programs in fs::read_dir(folder)? {
        for program in fs::read_dir(programs?.path()).into_iter().flatten() {
            let kernel = program?.path().join(kernel);
            for version in fs::read_dir(&kernel).into_iter().flatten() {
                let launched = version?.path().join(&library);
                let general = kernel.join(GENERAL);
                if launched.is_file() && !general.exists() {
                    fs::create_dir(&general)?;
                    fs::hard_link(launched, general.join(&library))?;
                }
            }
        }
    }
    Ok(())
}
