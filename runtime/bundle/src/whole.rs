//! Files that are complete or absent, even if the process that writes them is killed.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Most processes that may write to one path at a time.
const MAX_NAMES: u32 = 100;

/// A file that is being written. It has a hidden name in the folder of its path, `.NAME.0.part`,
/// until it is complete and on the disk.
///
/// If it is dropped before that, it is removed. A hidden file that a killed process left is
/// overwritten by the next process that writes to the path. A lock distinguishes it from a file in
/// use.
#[derive(Debug)]
pub struct WholeFile {
    file: File,
    hidden: PathBuf,
    path: PathBuf,
    is_named: bool,
}

impl WholeFile {
    /// Starts a file. It appears at `path` with [`finish`](Self::finish). An older file stays there
    /// until then. A symbolic link is followed.
    ///
    /// Errors: `path` is a folder or not a regular file; its folder does not exist or is not
    /// writable.
    pub fn create(path: &Path) -> io::Result<WholeFile> {
        let path = match fs::metadata(path) {
            Ok(found) if found.is_file() => fs::canonicalize(path)?,
            Ok(found) if found.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(_) => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
            }
            Err(_) => path.to_owned(),
        };
        let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
        let is_file = !path.as_os_str().as_encoded_bytes().ends_with(b"/");
        let name = path.file_name().filter(|_| is_file).ok_or_else(no_name)?;
        for number in 0..MAX_NAMES {
            let mut hidden = OsString::from(".");
            hidden.push(name);
            hidden.push(format!(".{number}.part"));
            let hidden = path.with_file_name(hidden);
            if let Some(file) = claim(&hidden)? {
                return Ok(WholeFile { file, hidden, path, is_named: false });
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, "no unused temporary name"))
    }

    /// Lets nobody but the owner read the file.
    pub fn for_owner_alone(&self) -> io::Result<()> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            self.file.set_permissions(fs::Permissions::from_mode(0o600))?;
        }
        Ok(())
    }

    /// The open file, which is readable.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Waits for the disk and gives the file its name.
    pub fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        // Still locked, so that no other process takes it for abandoned.
        fs::rename(&self.hidden, &self.path)?;
        self.is_named = true;
        sync_folder(&self.path);
        Ok(())
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for WholeFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if !self.is_named {
            // If it cannot be removed, it stays.
            let _ = fs::remove_file(&self.hidden);
        }
    }
}

/// Writes the output of `body` to a file that is complete or absent. A pipe or a device is written
/// directly.
///
/// Errors: those of [`WholeFile`] and of `body`.
pub fn write<E: From<io::Error>>(
    path: &Path,
    body: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        let mut file = BufWriter::new(OpenOptions::new().write(true).open(path)?);
        body(&mut file)?;
        return Ok(file.flush()?);
    }
    let mut file = BufWriter::new(WholeFile::create(path)?);
    body(&mut file)?;
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(file.finish()?)
}

/// An empty, locked file of this name; `None` if another process has it.
fn claim(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let (file, is_new) = match options.clone().create_new(true).open(path) {
        Ok(file) => (file, true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match options.open(path) {
            Ok(file) => (file, false),
            // Another process has just finished it, or owns it.
            Err(_) => return Ok(None),
        },
        Err(error) => return Err(error),
    };
    let is_ours = match file.try_lock() {
        // Another process may have finished the file before the lock was taken.
        Ok(()) => is_at(&file, path).unwrap_or(is_new),
        Err(TryLockError::WouldBlock) => false,
        // Without locks on this file system, no process takes over the file of another.
        Err(TryLockError::Error(_)) => is_new,
    };
    if !is_ours {
        return Ok(None);
    }
    file.set_len(0)?;
    Ok(Some(file))
}

/// Whether `path` names the open file; `None` if the system cannot say.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> Option<bool> {
    use std::os::unix::fs::MetadataExt;
    let (Ok(open), Ok(named)) = (file.metadata(), fs::symlink_metadata(path)) else {
        return Some(false);
    };
    Some((open.dev(), open.ino(), open.nlink()) == (named.dev(), named.ino(), 1))
}

#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> Option<bool> {
    None
}

/// Makes the file's name durable, if the file system can sync folders. The file is complete either
/// way.
fn sync_folder(path: &Path) {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, "older").unwrap();
        let mut file = WholeFile::create(&path).unwrap();
        file.write_all(b"newer").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"older");
        file.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newer");
        drop(WholeFile::create(&path).unwrap());
        assert_eq!(names(folder.path()), ["x"]);
    }

    #[test]
    fn writers_at_the_same_time_do_not_meet() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let mut first = WholeFile::create(&path).unwrap();
        let mut second = WholeFile::create(&path).unwrap();
        first.write_all(b"first").unwrap();
        second.write_all(b"second").unwrap();
        second.finish().unwrap();
        first.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(names(folder.path()), ["x"]);
    }

    #[cfg(unix)]
    #[test]
    fn what_a_killed_process_left_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(folder.path().join(".x.0.part"), "a longer text that was cut").unwrap();
        write(&path, |file| file.write_all(b"whole")).unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), names(folder.path())),
            (b"whole".into(), vec!["x".into()])
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_planted_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "dear").unwrap();
        std::os::unix::fs::symlink(&victim, folder.path().join(".x.0.part")).unwrap();
        fs::hard_link(&victim, folder.path().join(".x.1.part")).unwrap();
        write(&folder.path().join("x"), |file| file.write_all(b"whole")).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"dear");
    }

    #[cfg(unix)]
    #[test]
    fn only_regular_files_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("x"), folder.path().join("link"));
        fs::write(&path, "older").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write(&link, |file| file.write_all(b"newer")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newer");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        write(Path::new("/dev/null"), |file| file.write_all(b"gone")).unwrap();
        for impossible in [folder.path(), Path::new("/dev/null"), Path::new("/no/such/x")] {
            assert!(WholeFile::create(impossible).is_err(), "{}", impossible.display());
        }
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let failed = write(&folder.path().join("x"), |file| {
            file.write_all(b"a part")?;
            Err(io::Error::other("no more"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "no more");
        assert_eq!(names(folder.path()).len(), 0);
    }
}
