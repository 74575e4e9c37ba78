//! A folder of compiled programs, so that a driver compiles each program once on a machine.
//!
//! Each program has one file, named by the hash of its [`Key`]. Bundles share equal programs. A
//! file is complete or absent: it is written under another name and renamed. It ends with a MAC by
//! the user's key, see [`private`](super::private). A file that is damaged or not the user's counts
//! as absent. This module knows bytes, not programs.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use kiln_bundle::format::ProgramName;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::private::{UserKey, check_folder, create_folder};
use crate::device::DeviceFacts;

/// Format of the files. The last digit is the version.
const MAGIC: [u8; 8] = *b"KILNPRG3";
/// Magic, length of the key, checksum.
const HEADER_BYTES: usize = 8 + 4 + 8;
/// Default limit of a cache.
const LIMIT_BYTES: u64 = 512 << 20;
/// Age after which an unfinished file is abandoned.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Everything that a compiled program depends on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    text: String,
}

impl Key {
    /// The key of a program on a device: its sources, its build options, and the launches that a
    /// lazy compiler compiled it for.
    pub fn new(device: &DeviceFacts, sources: &[&str], options: &str, launches: &[String]) -> Key {
        let DeviceFacts { platform, platform_version, name, vendor, driver, version, .. } = device;
        let mut hash = Xxh3::new();
        sources.iter().for_each(|source| hash.update(source.as_bytes()));
        let (hash, len_bytes) = (hash.digest128(), sources.iter().map(|s| s.len()).sum::<usize>());
        let launches = xxh3_128(launches.join("\n").as_bytes());
        let text = format!(
            "platform {platform}\nplatform version {platform_version}\ndevice {name}\n\
             vendor {vendor}\ndriver {driver}\nversion {version}\noptions {options}\n\
             source {hash:032x} {len_bytes}\nlaunches {launches:032x}\n"
        );
        Key { text }
    }

    /// The hash of the key and of the format.
    pub fn name(&self) -> ProgramName {
        let mut hash = Xxh3::new();
        hash.update(&MAGIC);
        hash.update(self.text.as_bytes());
        hash.digest128()
    }

    fn file_name(&self) -> String {
        format!("{:032x}.program", self.name())
    }

    /// The driver's binary in the bytes of a file; `None` if they are damaged or of another key.
    pub fn binary_of(&self, mut file: Vec<u8>) -> Option<Vec<u8>> {
        let front_bytes = HEADER_BYTES + self.text.len();
        if file.len() < front_bytes {
            return None;
        }
        let binary = file.split_off(front_bytes);
        (file == front(self, &binary)).then_some(binary)
    }

    fn checksum(&self, binary: &[u8]) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(self.text.as_bytes());
        hash.update(binary);
        hash.digest()
    }
}

/// A folder of compiled programs. Any number of threads and processes may use one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProgramCache {
    folder: PathBuf,
    limit_bytes: u64,
}

impl ProgramCache {
    /// The cache in a folder. The first write creates the folder.
    pub fn new(folder: impl Into<PathBuf>) -> ProgramCache {
        ProgramCache { folder: folder.into(), limit_bytes: LIMIT_BYTES }
    }

    /// The same cache with another limit.
    pub fn with_limit(self, limit_bytes: u64) -> ProgramCache {
        ProgramCache { limit_bytes, ..self }
    }

    /// The user's cache: `$KILN_CACHE`, else `kiln/programs` in the XDG cache folder. `None` if
    /// there is neither.
    pub fn of_user() -> Option<ProgramCache> {
        let folder = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        if let Some(folder) = folder("KILN_CACHE") {
            return Some(ProgramCache::new(folder));
        }
        let xdg = folder("XDG_CACHE_HOME").filter(|path| path.is_absolute());
        let home = || folder("HOME").map(|home| home.join(".cache"));
        Some(ProgramCache::new(xdg.or_else(home)?.join("kiln/programs")))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether a program has a file. The file may be damaged.
    pub fn contains(&self, key: &Key) -> bool {
        self.path(key).is_file()
    }

    /// Checks that nobody else can write the folder. One that is not there is private.
    ///
    /// Errors: `PermissionDenied` with what to do; those of the file system.
    pub fn check_private(&self) -> io::Result<()> {
        check_folder(&self.folder)
    }

    fn user_key(&self) -> io::Result<UserKey> {
        self.check_private()?;
        UserKey::for_cache(&self.folder)
    }

    /// The driver's binary of a program. A file that is damaged or not the user's is removed.
    pub fn read(&self, key: &Key) -> Option<Vec<u8>> {
        let user = self.user_key().ok()?;
        let mut file = File::open(self.path(key)).ok()?;
        let bytes = self.read_whole(&mut file).ok().flatten();
        let binary = bytes.and_then(|bytes| key.binary_of(user.open(bytes)?));
        match &binary {
            // The age decides about eviction. In a read-only folder it does not matter.
            Some(_) => drop(file.set_modified(SystemTime::now())),
            None => self.remove(key),
        }
        binary
    }

    /// The bytes of a program's file before the MAC, for [`Key::binary_of`]; `None` if there is none
    /// of the user's.
    pub fn read_file(&self, key: &Key) -> Option<Vec<u8>> {
        let user = self.user_key().ok()?;
        user.open(self.read_whole(&mut File::open(self.path(key)).ok()?).ok()??)
    }

    fn read_whole(&self, file: &mut File) -> io::Result<Option<Vec<u8>>> {
        if file.metadata()?.len() > self.limit_bytes {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Writes a program.
    ///
    /// Errors: those of the file system. An older file then stays.
    pub fn write(&self, key: &Key, binary: &[u8]) -> io::Result<()> {
        create_folder(&self.folder)?;
        let user = self.user_key()?;
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("{}-{count}.tmp", process::id()));
        let write = || {
            let mut file = File::create(&path)?;
            let front = front(key, binary);
            for part in [&front, binary, &user.mac(&[&front, binary])] {
                file.write_all(part)?;
            }
            drop(file);
            fs::rename(&path, self.path(key))
        };
        write().inspect_err(|_| drop(fs::remove_file(&path)))
    }

    /// Creates an empty folder for the driver's own files, to be removed by the caller. If it is
    /// not, [`ProgramCache::evict`] does so later.
    ///
    /// Errors: those of the file system.
    pub fn create_temporary_folder(&self) -> io::Result<PathBuf> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("{}-driver-{count}.tmp", process::id()));
        create_folder(&path)?;
        Ok(path)
    }

    /// Checks that the folder can be written, and by nobody else.
    ///
    /// Errors: those of [`check_private`](Self::check_private) and of the file system.
    pub fn check(&self) -> io::Result<()> {
        self.check_private()?;
        fs::remove_dir(self.create_temporary_folder()?)
    }

    /// Removes a program.
    pub fn remove(&self, key: &Key) {
        // A file that cannot be removed is refused at the next read again.
        let _ = fs::remove_file(self.path(key));
    }

    /// Removes the least recently used programs until the rest is within the limit.
    ///
    /// Errors: the folder cannot be listed.
    pub fn evict(&self) -> io::Result<()> {
        let now = SystemTime::now();
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            // Another process may have removed it.
            let Ok(metadata) = path.metadata() else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("program") => files.push((used, metadata.len(), path)),
                Some("tmp") if now.duration_since(used).is_ok_and(|age| age > ABANDONED) => {
                    let _ = if path.is_dir() {
                        fs::remove_dir_all(path)
                    } else {
                        fs::remove_file(path)
                    };
                }
                _ => {}
            }
        }
        files.sort();
        let mut total_bytes: u64 = files.iter().map(|(_, len_bytes, _)| len_bytes).sum();
        for (_, len_bytes, path) in files {
            if total_bytes <= self.limit_bytes {
                break;
            }
            total_bytes -= len_bytes;
            let _ = fs::remove_file(path);
        }
        Ok(())
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(key.file_name())
    }
}

/// The bytes before the binary in its file.
fn front(key: &Key, binary: &[u8]) -> Vec<u8> {
    let mut front = Vec::with_capacity(HEADER_BYTES + key.text.len());
    front.extend(MAGIC);
    front.extend((key.text.len() as u32).to_le_bytes());
    front.extend(key.checksum(binary).to_le_bytes());
    front.extend(key.text.as_bytes());
    front
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(options: &str) -> Key {
        Key::new(&crate::device::select("auto").unwrap(), &["kernel"], options, &[])
    }

    fn cache() -> (tempfile::TempDir, ProgramCache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = ProgramCache::new(folder.path().join("a/b"));
        (folder, cache)
    }

    #[test]
    fn what_is_written_is_read() {
        let (_folder, cache) = cache();
        let key = key("-O");
        assert_eq!((cache.read(&key), cache.contains(&key)), (None, false));
        cache.check().unwrap();
        for binary in [&b"binary"[..], b"", b"another"] {
            cache.write(&key, binary).unwrap();
            assert_eq!((cache.read(&key).as_deref(), cache.contains(&key)), (Some(binary), true));
        }
        cache.remove(&key);
        assert!(!cache.contains(&key));
        assert_eq!(fs::read_dir(cache.folder()).unwrap().count(), 0);
    }

    #[test]
    fn a_key_changes_with_everything_a_program_depends_on() {
        let device = crate::device::select("auto").unwrap();
        let first = Key::new(&device, &["kernel"], "-O", &[]);
        assert_eq!(first, Key::new(&device, &["kernel"], "-O", &[]));
        let mut keys = vec![
            Key::new(&device, &["kernel2"], "-O", &[]),
            Key::new(&device, &["kernel"], "-O2", &[]),
            Key::new(&device, &["kernel"], "-O", &["a wide grid".into()]),
        ];
        for change in 0..6 {
            let mut device = device.clone();
            let DeviceFacts { platform, platform_version, name, vendor, driver, version, .. } =
                &mut device;
            [platform, platform_version, name, vendor, driver, version][change].push('x');
            keys.push(Key::new(&device, &["kernel"], "-O", &[]));
        }
        for key in keys {
            assert!(key != first && key.file_name() != first.file_name(), "{key:?}");
        }
    }

    #[test]
    fn a_file_that_was_changed_is_absent_and_goes() {
        let (_folder, cache) = cache();
        let key = key("-O");
        cache.write(&key, b"binary").unwrap();
        let bytes = fs::read(cache.path(&key)).unwrap();
        let mut wrong: Vec<Vec<u8>> = (0..bytes.len()).map(|len| bytes[..len].to_vec()).collect();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 4;
            wrong.push(flipped);
        }
        wrong.push([&bytes[..], b"x"].concat());
        for wrong in wrong {
            fs::write(cache.path(&key), wrong).unwrap();
            assert_eq!((cache.read(&key), cache.contains(&key)), (None, false));
        }
        // A whole file under another's name.
        fs::write(cache.path(&key), bytes).unwrap();
        let other = self::key("-O2");
        fs::rename(cache.path(&key), cache.path(&other)).unwrap();
        assert_eq!(cache.read(&other), None);
    }

    #[test]
    fn the_least_recently_used_go_first() {
        let (_folder, cache) = cache();
        let keys: Vec<Key> = (0..4).map(|n| key(&format!("-D N={n}"))).collect();
        for (age, key) in keys.iter().enumerate() {
            cache.write(key, &[0; 1000]).unwrap();
            let used = SystemTime::now() - Duration::from_secs(1000 - age as u64);
            File::open(cache.path(key)).unwrap().set_modified(used).unwrap();
        }
        let abandoned = cache.folder().join("1-1.tmp");
        let old = SystemTime::now() - 2 * ABANDONED;
        File::create(&abandoned).unwrap().set_modified(old).unwrap();
        let running = cache.folder().join("1-2.tmp");
        File::create(&running).unwrap();
        cache.evict().unwrap();
        assert!(keys.iter().all(|key| cache.contains(key)));
        assert!(!abandoned.exists() && running.exists());
        assert!(cache.read(&keys[0]).is_some());
        cache.clone().with_limit(3000).evict().unwrap();
        let left: Vec<bool> = keys.iter().map(|key| cache.contains(key)).collect();
        assert_eq!(left, [true, false, false, true]);
    }

    #[test]
    fn threads_read_whole_files_while_others_write() {
        let (_folder, cache) = cache();
        let key = key("-O");
        std::thread::scope(|scope| {
            for writer in 1..=2u8 {
                let (cache, key) = (&cache, &key);
                scope.spawn(move || {
                    for _ in 0..100 {
                        cache.write(key, &[writer; 100_000]).unwrap();
                        let binary = cache.read(key).unwrap();
                        assert_eq!(binary, [binary[0]; 100_000]);
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(cache.folder()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_and_a_miss() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let (cache, key) = (ProgramCache::new(file), key("-O"));
        assert!(cache.check().is_err() && cache.write(&key, b"binary").is_err());
        assert!(cache.evict().is_err());
        assert_eq!(cache.read(&key), None);
    }
}
