//! The cache of compiled kernels is the user's alone: folders that others can write are not used,
//! and files that another key sealed are ignored.
#![cfg(unix)]

mod small;

use std::ffi::{CStr, CString};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::ptr;

use kiln_runtime::ffi::bundle::*;
use kiln_runtime::ffi::session::*;
use kiln_runtime::ffi::{KilnStatus, kiln_last_error};
use small::Small;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let merges = Path::new(env!("CARGO_MANIFEST_DIR")).join("../graphs/assets/clip_merges.txt");
        Small::default().write(&folder.path().join("small.kiln"), &fs::read(merges).unwrap());
        Place { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A folder for the cache with these rights.
    fn cache(&self, mode: u32) {
        fs::create_dir(self.path("cache")).unwrap();
        fs::set_permissions(self.path("cache"), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// `kiln-run` for a user whose configurations are in a folder.
    fn command(&self, user: &str, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln-run"));
        command.env("KILN_CACHE", self.path("cache")).env("XDG_CONFIG_HOME", self.path(user));
        command.current_dir(self.folder.path()).args(args).output().unwrap()
    }

    /// Makes a picture. Returns where the kernels came from, and what was said.
    fn origin(&self, user: &str) -> (String, String) {
        let picture = ["small.kiln", "-p", "x", "--steps", "1", "-o", "out.png", "--report", "r"];
        let output = self.command(user, &picture);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        let report: serde_json::Value =
            serde_json::from_slice(&fs::read(self.path("r")).unwrap()).unwrap();
        (report["programs"].as_str().unwrap().to_owned(), said)
    }

    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let paths = fs::read_dir(self.path("cache")).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
        files.sort();
        files
    }
}

#[test]
fn what_another_key_sealed_is_ignored_and_replaced() {
    let place = Place::new();
    assert_eq!(place.origin("stranger").0, "prepared");
    assert_eq!(place.origin("stranger").0, "cached");
    let strangers = place.files();
    assert_eq!(place.origin("user").0, "prepared");
    assert_eq!(place.origin("user").0, "cached");
    let own = place.files();
    assert_eq!(own.len(), strangers.len());
    assert!(own.iter().zip(&strangers).all(|(own, theirs)| own.0 == theirs.0 && own.1 != theirs.1));
    // One file of the stranger's, put in the place of the user's.
    fs::write(&strangers[0].0, &strangers[0].1).unwrap();
    assert_eq!(place.origin("user").0, "prepared");
    assert!(fs::read(&own[0].0).unwrap() != strangers[0].1);
    let key = fs::metadata(place.path("user/kiln/cache.key")).unwrap();
    assert_eq!((key.permissions().mode() & 0o777, key.len()), (0o600, 32));
}

#[test]
fn without_a_folder_of_configurations_the_key_is_in_the_cache() {
    let place = Place::new();
    fs::write(place.path("user"), "a file").unwrap();
    assert_eq!(place.origin("user").0, "prepared");
    assert_eq!(place.origin("user").0, "cached");
    assert!(place.path("cache/cache.key").is_file());
}

#[test]
fn a_folder_that_others_can_write_is_not_used() {
    for mode in [0o777, 0o770, 0o1777] {
        let place = Place::new();
        place.cache(mode);
        let (origin, said) = place.origin("user");
        assert_eq!(origin, "built in process", "{mode:o}: {said}");
        let warnings: Vec<_> = said.lines().filter(|line| line.contains("warning")).collect();
        assert_eq!(warnings.len(), 1, "{said}");
        assert!(warnings[0].contains("other users can write it"), "{said}");
        let output = place.command("user", &["--prepare", "small.kiln"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{said}");
        assert!(
            said.contains("cache: other users can write it") && said.contains("chmod"),
            "{said}"
        );
        assert!(place.files().is_empty());
    }
    let place = Place::new();
    place.cache(0o755);
    assert_eq!(place.origin("user").0, "prepared");
}

#[test]
fn the_c_interface_refuses_a_folder_that_others_can_write() {
    let place = Place::new();
    place.cache(0o777);
    let text = |name: &str| CString::new(place.path(name).to_str().unwrap()).unwrap();
    let (path, cache) = (text("small.kiln"), text("cache"));
    let (mut bundle, mut session) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: all pointers are valid, and the bundle is closed once.
    unsafe {
        let mut options = std::mem::zeroed();
        kiln_session_options_init(&mut options);
        options.cache_folder = cache.as_ptr();
        assert_eq!(kiln_bundle_open(path.as_ptr(), &mut bundle), KilnStatus::Ok);
        let status = kiln_session_create(bundle, &options, None, ptr::null_mut(), &mut session);
        let error = CStr::from_ptr(kiln_last_error()).to_str().unwrap();
        assert!(status == KilnStatus::Input && error.contains("other users"), "{error}");
        kiln_bundle_close(bundle);
    }
}
