//! Keeps others out of a cache: its folder is the user's alone, and every file in it carries a MAC
//! by a key of the user, so that a file that came there in another way counts as absent.

use std::env;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Bytes of a MAC.
pub const MAC_BYTES: usize = 32;
const KEY_BYTES: usize = 32;
/// Bytes of SHA-256's block.
const BLOCK_BYTES: usize = 64;
/// Name of the file with the key.
const KEY_NAME: &str = "cache.key";

/// Bits of a folder's mode that let others write it. On Android, the group of an application's
/// cache folder is the system's.
#[cfg(unix)]
const OTHERS_WRITE: u32 = if cfg!(target_os = "android") { 0o002 } else { 0o022 };

/// Creates a folder with access for its owner alone, because a driver runs the files.
pub fn create_folder(folder: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// Checks that nobody else can write a folder. One that is not there is private.
///
/// Errors: `PermissionDenied` with what to do; those of the file system.
pub fn check_folder(folder: &Path) -> io::Result<()> {
    match fs::metadata(folder) {
        Ok(found) => check_owner(&found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(unix)]
fn check_owner(found: &Metadata) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let denied = |text: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    if ![0, crate::os::user::id()].contains(&found.uid()) {
        return denied("it belongs to another user; name a folder of yours");
    }
    if found.mode() & OTHERS_WRITE != 0 {
        return denied("other users can write it; take that right away (chmod go-w)");
    }
    Ok(())
}

/// Checks that nobody else can read a file.
#[cfg(unix)]
fn check_secret(found: &Metadata) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    match found.uid() == crate::os::user::id() && found.mode() & 0o077 == 0 {
        true => Ok(()),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

#[cfg(not(unix))]
fn check_secret(_: &Metadata) -> io::Result<()> {
    Ok(())
}

#[cfg(not(unix))]
fn check_owner(_: &Metadata) -> io::Result<()> {
    Ok(())
}

/// The user's key, by which files of caches are told from those of others.
pub struct UserKey([u8; KEY_BYTES]);

impl UserKey {
    /// The key in the user's folder of configurations, or where it cannot be there, in `cache`. It
    /// is made if there is none.
    ///
    /// Errors: those of the file system.
    pub fn for_cache(cache: &Path) -> io::Result<UserKey> {
        let folder = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let xdg = folder("XDG_CONFIG_HOME").filter(|path| path.is_absolute());
        let configurations = xdg.or_else(|| Some(folder("HOME")?.join(".config")));
        let of_user = configurations.map(|folder| UserKey::in_folder(&folder.join("kiln")));
        match of_user {
            Some(Ok(key)) => Ok(key),
            _ => UserKey::in_folder(cache),
        }
    }

    fn in_folder(folder: &Path) -> io::Result<UserKey> {
        let path = folder.join(KEY_NAME);
        match UserKey::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create_folder(folder)?;
                UserKey::make(&path)?;
                UserKey::read(&path)
            }
            found => found,
        }
    }

    fn read(path: &Path) -> io::Result<UserKey> {
        let mut file = File::open(path)?;
        check_secret(&file.metadata()?)?;
        let mut key = [0; KEY_BYTES];
        file.read_exact(&mut key)?;
        Ok(UserKey(key))
    }

    /// Makes the key, unless another process has just made it.
    fn make(path: &Path) -> io::Result<()> {
        let mut key = [0; KEY_BYTES];
        getrandom::fill(&mut key).map_err(io::Error::other)?;
        let hidden = path.with_extension(format!("{}.tmp", process::id()));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let write = || {
            options.open(&hidden)?.write_all(&key)?;
            match fs::hard_link(&hidden, path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                // A file system without links.
                Err(_) => fs::rename(&hidden, path),
                Ok(()) => Ok(()),
            }
        };
        let written = write();
        let _ = fs::remove_file(&hidden);
        written
    }

    fn hmac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        // A key shorter than SHA-256's block is followed by zeros.
        let mut block = [0; BLOCK_BYTES];
        block.iter_mut().zip(self.0).for_each(|(to, from)| *to = from);
        let mut hmac = Hmac::new(&block.into());
        parts.iter().for_each(|part| hmac.update(part));
        hmac
    }

    /// HMAC-SHA-256 of the parts, one after the other.
    pub fn mac(&self, parts: &[&[u8]]) -> [u8; MAC_BYTES] {
        self.hmac(parts).finalize().into_bytes().into()
    }

    /// The bytes before the MAC at their end, if it is right.
    pub fn open(&self, mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        let mac = sealed.split_off(sealed.len().checked_sub(MAC_BYTES)?);
        self.hmac(&[&sealed]).verify_slice(&mac).ok()?;
        Some(sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_those_of_rfc_4231() {
        // Test case 1. Zeros at a key's end change nothing.
        let mut key = [0; KEY_BYTES];
        key[..20].fill(0x0b);
        let mac = UserKey(key).mac(&[b"Hi ", b"There"]);
        let text: String = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    }

    #[test]
    fn a_key_is_made_once_and_opens_what_it_sealed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let key = UserKey::in_folder(&path).unwrap();
        assert_eq!(UserKey::in_folder(&path).unwrap().0, key.0);
        UserKey::make(&path.join(KEY_NAME)).unwrap();
        assert_eq!(UserKey::in_folder(&path).unwrap().0, key.0);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
        let other = UserKey::in_folder(&folder.path().join("b")).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let read_by_all = fs::Permissions::from_mode(0o644);
            fs::set_permissions(path.join(KEY_NAME), read_by_all).unwrap();
            assert!(UserKey::in_folder(&path).is_err());
        }
        let sealed = [&b"text"[..], &key.mac(&[b"text"])].concat();
        assert_eq!(key.open(sealed.clone()).as_deref(), Some(&b"text"[..]));
        assert_eq!(other.open(sealed.clone()), None);
        assert_eq!(key.open(sealed[1..].to_vec()), None);
        assert_eq!(key.open(vec![0; 31]), None);
    }

    #[cfg(unix)]
    #[test]
    fn folders_that_others_can_write_are_not_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        check_folder(&path).unwrap();
        create_folder(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        for (mode, is_private) in [(0o755, true), (0o1777, false), (0o775, false), (0o702, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(check_folder(&path).is_ok(), is_private, "{mode:o}");
        }
    }
}
