//! The files of a command, checked before its work: every output can be written, and none is a file
//! that the command reads or writes elsewhere.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;
use xxhash_rust::xxh3::xxh3_128;

use crate::whole::WholeFile;

/// What a file is for, in messages: an argument, or a line of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Purpose {
    name: &'static str,
    /// Number of the line; 0 for none.
    line: usize,
}

impl Purpose {
    /// The line of a list of files, counted from 1.
    pub fn line(line: usize) -> Purpose {
        Purpose { name: "line", line }
    }
}

impl From<&'static str> for Purpose {
    fn from(name: &'static str) -> Purpose {
        Purpose { name, line: 0 }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(self.name),
            line => write!(f, "{} {line}", self.name),
        }
    }
}

/// An output that cannot be written, or that would replace another file of the command.
#[derive(Debug, Error)]
pub enum PathError {
    /// Two files of a command are one.
    #[error("{} is the same file as {other}; name another", path.display())]
    Same {
        /// The output.
        path: PathBuf,
        /// What the file is for already.
        other: Purpose,
    },
    /// The name promises another format.
    #[error("{} would be a .{expected} file; name it so", path.display())]
    Extension {
        /// The output.
        path: PathBuf,
        /// The extension of the format.
        expected: &'static str,
    },
    /// The file cannot be written.
    #[error("cannot write {}: {}", path.display(), reason(path, error))]
    Unwritable {
        /// The output.
        path: PathBuf,
        /// The error of the operating system, which the message says.
        error: io::Error,
    },
}

fn reason(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => match folder(path) {
            folder if folder.exists() => error.to_string(),
            folder => format!("the folder {} is not there; create it", folder.display()),
        },
        io::ErrorKind::IsADirectory => "it is a folder; name a file in it".into(),
        _ => error.to_string(),
    }
}

/// The files of a command.
#[derive(Debug, Default)]
pub struct Paths {
    /// The purpose of each file, and whether the command writes it.
    known: HashMap<u128, (Purpose, bool)>,
    /// The folder in which a file was made last, and the length of its name.
    probed: Option<(PathBuf, usize)>,
    room_bytes: u64,
}

impl Paths {
    /// The files that the command reads. They may be the same.
    ///
    /// `room_bytes`: each folder of an output must have room for these bytes.
    pub fn of_inputs<'a>(
        inputs: impl IntoIterator<Item = (&'static str, &'a Path)>,
        room_bytes: u64,
    ) -> Paths {
        let inputs = inputs.into_iter();
        let known = inputs.filter_map(|(name, path)| Some((identity(path)?, (name.into(), false))));
        Paths { known: known.collect(), probed: None, room_bytes }
    }

    /// Adds a file that the command reads.
    ///
    /// Errors: the command writes it.
    pub fn reads(&mut self, purpose: impl Into<Purpose>, path: &Path) -> Result<(), PathError> {
        let Some(identity) = identity(path) else { return Ok(()) };
        match *self.known.entry(identity).or_insert((purpose.into(), false)) {
            (_, false) => Ok(()),
            (other, true) => Err(PathError::Same { path: path.to_owned(), other }),
        }
    }

    /// Adds a file that the command writes, in the format of `extension` if there is one. A device
    /// or a pipe may be written any number of times.
    ///
    /// Errors: the file is one of the command's already; its name ends with another extension; it
    /// is a folder; its folder is not there, cannot be written or is full.
    pub fn writes(
        &mut self,
        purpose: impl Into<Purpose>,
        path: &Path,
        extension: Option<&'static str>,
    ) -> Result<(), PathError> {
        let Some(identity) = identity(path) else { return Ok(()) };
        if let Some(&(other, _)) = self.known.get(&identity) {
            return Err(PathError::Same { path: path.to_owned(), other });
        }
        let found = path.extension().and_then(OsStr::to_str);
        if let (Some(expected), Some(found)) = (extension, found)
            && !found.eq_ignore_ascii_case(expected)
        {
            return Err(PathError::Extension { path: path.to_owned(), expected });
        }
        self.probe(path).map_err(|error| PathError::Unwritable { path: path.to_owned(), error })?;
        self.known.insert(identity, (purpose.into(), true));
        Ok(())
    }

    /// Makes a file beside `path` and removes it. A file in a folder that was probed is taken for
    /// possible, unless its name is longer or leads elsewhere.
    fn probe(&mut self, path: &Path) -> io::Result<()> {
        let length = path.file_name().map_or(0, OsStr::len);
        let same =
            |(known, longest): &(PathBuf, usize)| known == folder(path) && length <= *longest;
        let names_file = length > 0 && !path.as_os_str().as_encoded_bytes().ends_with(b"/");
        let is_here = fs::symlink_metadata(path).map_or(true, |found| found.is_file());
        if names_file && is_here && self.probed.as_ref().is_some_and(same) {
            return Ok(());
        }
        let mut file = WholeFile::create(path)?;
        io::copy(&mut io::repeat(0).take(self.room_bytes), &mut file)?;
        self.probed = Some((folder(path).to_owned(), length));
        Ok(())
    }
}

/// The folder of a file.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A number that two paths share if they lead to one file; `None` for a device or a pipe.
fn identity(path: &Path) -> Option<u128> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => Some(of_file(path, &found)),
        Ok(found) if !found.is_dir() => None,
        // A file that is not there: its place below the nearest folder that is.
        _ => {
            let mut ancestors = path.ancestors().skip(1).map(|path| match path.as_os_str().len() {
                0 => Path::new("."),
                _ => path,
            });
            let whole = ancestors.find_map(|ancestor| {
                let rest = path.strip_prefix(ancestor).unwrap_or(path);
                Some(fs::canonicalize(ancestor).ok()?.join(rest))
            });
            let whole = whole.unwrap_or_else(|| path.to_owned());
            Some(xxh3_128(whole.as_os_str().as_encoded_bytes()))
        }
    }
}

#[cfg(unix)]
fn of_file(_: &Path, found: &fs::Metadata) -> u128 {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&found.dev().to_le_bytes());
    bytes[8..].copy_from_slice(&found.ino().to_le_bytes());
    xxh3_128(&bytes)
}

#[cfg(not(unix))]
fn of_file(path: &Path, _: &fs::Metadata) -> u128 {
    let whole = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    xxh3_128(whole.as_os_str().as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(path: &Path) -> Paths {
        Paths::of_inputs([("the bundle", path)], 1 << 16)
    }

    fn message(result: Result<(), PathError>) -> String {
        let error = result.unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    }

    #[test]
    fn an_output_is_no_other_file_of_the_command() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("x.kiln"), "a bundle").unwrap();
        fs::create_dir(at("sub")).unwrap();
        let mut paths = inputs(&at("x.kiln"));
        for same in ["x.kiln", "./x.kiln", "sub/../x.kiln"] {
            let error = message(paths.writes("--output", &at(same), None));
            assert!(error.contains("the same file as the bundle; name another"), "{error}");
        }
        paths.writes("--output", &at("y.png"), Some("png")).unwrap();
        paths.writes(Purpose::line(3), &at("z.PNG"), Some("png")).unwrap();
        let error = message(paths.writes("--report", &at("sub/../y.png"), None));
        assert!(error.contains("the same file as --output;"), "{error}");
        let error = message(paths.writes(Purpose::line(7), &at("./z.PNG"), None));
        assert!(error.contains("the same file as line 3;"), "{error}");
        assert_eq!(fs::read(at("x.kiln")).unwrap(), b"a bundle");
        // Nothing is left of the probes.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn links_lead_to_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("x"), "").unwrap();
        fs::hard_link(at("x"), at("hard")).unwrap();
        std::os::unix::fs::symlink("x", at("soft")).unwrap();
        fs::create_dir(at("sub")).unwrap();
        std::os::unix::fs::symlink("sub", at("other")).unwrap();
        let mut paths = inputs(&at("x"));
        for same in ["hard", "soft"] {
            assert!(paths.writes("--output", &at(same), None).is_err(), "{same}");
        }
        paths.writes("--output", &at("sub/new"), None).unwrap();
        assert!(paths.writes("--report", &at("other/new"), None).is_err());
        // A device takes any number of outputs.
        for _ in 0..2 {
            paths.writes("--report", Path::new("/dev/null"), Some("json")).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_written_is_told_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("sub")).unwrap();
        fs::write(at("file"), "").unwrap();
        let long = "n".repeat(250);
        let mut paths = inputs(&at("x"));
        // A folder that was probed hides nothing.
        paths.writes("--report", &at("report"), None).unwrap();
        for (path, expected) in [
            (at("no/such/x.png"), "no/such is not there; create it"),
            (at("sub"), "it is a folder"),
            (at("file/x.png"), "cannot write"),
            (at("x.jpg"), "would be a .png file"),
            (at(&long), "cannot write"),
            (PathBuf::new(), "names no file"),
            (at("x.png/"), "names no file"),
        ] {
            let error = message(paths.writes("--output", &path, Some("png")));
            assert!(error.contains(expected), "{error}");
        }
        #[cfg(target_os = "linux")]
        assert!(message(paths.writes("--output", Path::new("/sys/x"), None)).contains("denied"));
    }

    #[test]
    fn a_folder_that_will_be_made_has_an_identity() {
        let folder = tempfile::tempdir().unwrap();
        let (one, same) = (folder.path().join("a/b/c"), folder.path().join("./a/b/c"));
        assert_eq!(identity(&one), identity(&same));
        assert_ne!(identity(&one), identity(&folder.path().join("a/b/d")));
    }
}
