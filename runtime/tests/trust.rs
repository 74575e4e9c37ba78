//! `--trust`, and the same option of the C interface: bundles of other signers are refused before
//! a kernel is compiled.

mod small;

use std::ffi::{CStr, CString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::ptr;

use kiln_bundle::plan::Plan;
use kiln_bundle::sign::SigningKey;
use kiln_bundle::{BundleFile, hash};
use kiln_runtime::ffi::bundle::*;
use kiln_runtime::ffi::session::*;
use kiln_runtime::ffi::{KilnStatus, kiln_last_error};
use small::Small;

fn key(secret: u8) -> SigningKey {
    SigningKey::from_secret([secret; 32]).unwrap()
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// A folder with `small.kiln`, which key 1 has signed.
    fn new() -> Place {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        place.write("small.kiln", Some(1), |_| {});
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, signer: Option<u8>, change: impl FnOnce(&mut Plan)) -> PathBuf {
        let merges = Path::new(env!("CARGO_MANIFEST_DIR")).join("../graphs/assets/clip_merges.txt");
        let path = self.path(name);
        Small::default().write_changed(&path, &fs::read(merges).unwrap(), change);
        if let Some(secret) = signer {
            BundleFile::open(&path).unwrap().write_signed(&path, &key(secret)).unwrap();
        }
        path
    }

    fn run(&self, name: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln-run"));
        command.current_dir(self.folder.path()).env("KILN_CACHE", self.path("cache"));
        command.args([name, "-p", "x", "--steps", "1", "-o", "out.png", "--trust"]);
        command.arg(key(1).public().to_string()).output().unwrap()
    }

    /// Runs a bundle, which must be refused before a kernel is compiled.
    fn refused(&self, name: &str, expected: &str) {
        let output = self.run(name);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.starts_with("error: ") && message.contains(expected), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(!self.path("cache").exists() && !self.path("out.png").exists());
    }
}

#[test]
fn a_signed_bundle_runs_and_its_workers_trust_it_too() {
    let place = Place::new();
    let output = place.run("small.kiln");
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{message}");
    assert!(!message.contains("compiled in this process"), "{message}");
    let prepare = |secret| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln-run"));
        command.arg("--prepare").arg(place.path("small.kiln")).args(["--worker", "--cache"]);
        command.arg(place.path("other")).args(["--trust", &key(secret).public().to_string()]);
        command.output().unwrap().status.code()
    };
    assert_eq!((prepare(1), prepare(2)), (Some(0), Some(1)));
}

#[test]
fn bundles_of_others_are_refused_before_a_kernel_is_compiled() {
    let place = Place::new();
    place.write("unsigned.kiln", None, |_| {});
    place.refused("unsigned.kiln", "is not signed");
    place.write("other.kiln", Some(2), |_| {});
    place.refused("other.kiln", "is signed by");
    // A kernel's text, under the signature of the bundle that it was in.
    let changed = place.write("changed.kiln", None, |plan| plan.sources[0].push(' '));
    let signature = |bytes: &[u8]| {
        let at = |offset: usize| {
            u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap()) as usize
        };
        bytes[at(160)..at(160) + at(168)].to_vec()
    };
    let signature = signature(&fs::read(place.path("small.kiln")).unwrap());
    let mut bytes = [fs::read(&changed).unwrap(), signature.clone()].concat();
    let len_bytes = bytes.len() as u64;
    bytes[16..24].copy_from_slice(&len_bytes.to_le_bytes());
    bytes[168..176].copy_from_slice(&(signature.len() as u64).to_le_bytes());
    bytes[176..184].copy_from_slice(&hash(&signature).to_le_bytes());
    let checksum = hash(&bytes[..4088]);
    bytes[4088..4096].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&changed, bytes).unwrap();
    BundleFile::open(&changed).unwrap().verify_all(|_| {}).unwrap();
    place.refused("changed.kiln", "is not what");
}

#[test]
fn a_weight_that_was_changed_ends_the_run() {
    let place = Place::new();
    let path = place.path("small.kiln");
    let mut bytes = fs::read(&path).unwrap();
    bytes[4096 + 5000] ^= 1;
    fs::write(&path, bytes).unwrap();
    let output = place.run("small.kiln");
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("error: weight block") && message.contains("signed"), "{message}");
    assert!(!place.path("out.png").exists());
}

#[test]
fn the_c_interface_refuses_what_its_key_has_not_signed() {
    let place = Place::new();
    place.write("unsigned.kiln", None, |_| {});
    let text = |text: &str| CString::new(text).unwrap();
    let path = |name: &str| text(place.path(name).to_str().unwrap());
    let (mine, other) = (text(&key(1).public().to_string()), text(&key(2).public().to_string()));
    for (bundle, key, expected) in [
        ("small.kiln", &mine, None),
        ("small.kiln", &other, Some((KilnStatus::Bundle, "is signed by"))),
        ("unsigned.kiln", &mine, Some((KilnStatus::Bundle, "is not signed"))),
        ("small.kiln", &text("1234"), Some((KilnStatus::Input, "64 hexadecimal digits"))),
    ] {
        let (mut opened, mut session) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: all pointers are valid, and each object is closed once.
        unsafe {
            let mut options = std::mem::zeroed();
            kiln_session_options_init(&mut options);
            options.trust_key = key.as_ptr();
            assert_eq!(kiln_bundle_open(path(bundle).as_ptr(), &mut opened), KilnStatus::Ok);
            let status = kiln_session_create(opened, &options, None, ptr::null_mut(), &mut session);
            let error = CStr::from_ptr(kiln_last_error()).to_str().unwrap();
            match expected {
                None => assert_eq!(status, KilnStatus::Ok, "{error}"),
                Some((refused, word)) => {
                    assert!(status == refused && error.contains(word), "{status:?}: {error}");
                    assert!(session.is_null());
                }
            }
            kiln_session_close(session);
            kiln_bundle_close(opened);
        }
    }
}
