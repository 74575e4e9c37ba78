//! PoCL's cache folder, of which PoCL makes the binary of a program.
//!
//! The folder has one library for each version of a kernel:
//! `<program>/<kernel>/<work-group, offset, grid>/<kernel>.so`. Asked for a binary, PoCL adds a
//! version for any work-group and grid, which costs as much time as the version that a plan
//! launches. No launch takes the general version: PoCL compiles what it lacks.

use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::RuntimeError;

/// The environment variable that names the folder.
pub(super) const FOLDER: &str = "POCL_CACHE_DIR";

/// Folder of the version for any work-group and grid.
const GENERAL: &str = "0-0-0";

/// Checks that PoCL can write the cache folder that this process would give it.
///
/// Errors: `PoclFolder`.
pub(crate) fn check_folder() -> Result<(), RuntimeError> {
    let in_cache = |folder: PathBuf| folder.join("pocl/kcache");
    let folder = env::var_os(FOLDER).map(PathBuf::from);
    let folder = folder.or_else(|| Some(in_cache(env::var_os("XDG_CACHE_HOME")?.into())));
    let of_home = || Some(in_cache(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    let folder = folder.or_else(of_home).unwrap_or_else(|| in_cache(env::temp_dir()));
    let probe = folder.join(format!(".kiln-{}", std::process::id()));
    let written = fs::create_dir_all(&folder).and_then(|()| File::create(&probe));
    written.map_err(|source| RuntimeError::PoclFolder { folder, source })?;
    let _ = fs::remove_file(probe);
    Ok(())
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_launched_version_stands_for_the_general_one() {
        let folder = tempfile::tempdir().unwrap();
        let library = |version: &str, kernel: &str| {
            folder.path().join(format!("AB/CD/{kernel}/{version}/{kernel}.so"))
        };
        for (version, kernel) in [("1-1-1-goffs0", "add"), ("0-0-0", "scale"), ("8-1-1", "scale")] {
            let path = library(version, kernel);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, version).unwrap();
        }
        for kernel in ["add", "scale", "absent"] {
            omit_general_version(folder.path(), kernel).unwrap();
        }
        assert_eq!(fs::read_to_string(library(GENERAL, "add")).unwrap(), "1-1-1-goffs0");
        // One that PoCL has compiled stays.
        assert_eq!(fs::read_to_string(library(GENERAL, "scale")).unwrap(), GENERAL);
        assert!(!folder.path().join("AB/CD/absent").exists());
    }

    #[test]
    fn another_layout_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("index"), "").unwrap();
        omit_general_version(folder.path(), "add").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        omit_general_version(&folder.path().join("absent"), "add").unwrap_err();
    }
}
