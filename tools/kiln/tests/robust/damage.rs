//! A bundle that is deleted, replaced or cut while it runs.

use super::harness::arg;
use super::{bundle, cache, command, empty, expect_right_picture, run_args};
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Runs a copy of the bundle, does `harm` to it after the first step, and returns the exit code
/// and what the run said.
fn harmed(folder: &Path, harm: impl FnOnce(&Path)) -> (Option<i32>, String) {
    let copy = folder.join("emoji.kiln");
    fs::copy(bundle(), &copy).expect("the target folder can be written");
    let mut args = run_args(&copy, cache(), folder);
    args.extend(["--preview-every", "1"].map(String::from));
    let mut child = command(&args).spawn().expect("it starts");
    let preview = folder.join("out.preview.png");
    while !preview.exists() {
        assert!(child.try_wait().expect("it is this test's child").is_none(), "it ended early");
        thread::sleep(Duration::from_millis(1));
    }
    harm(&copy);
    let output = child.wait_with_output().expect("it is this test's child");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_bundle_that_is_deleted_is_still_read() {
    let folder = empty("deleted");
    let (code, said) = harmed(&folder, |path| fs::remove_file(path).expect("it is there"));
    assert_eq!(code, Some(0), "{said}");
    expect_right_picture(&folder);
}

#[test]
fn a_bundle_that_is_replaced_is_still_read() {
    let folder = empty("replaced");
    let other = folder.join("other.kiln");
    fs::write(&other, "another bundle").expect("the target folder can be written");
    let (code, said) = harmed(&folder, |path| fs::rename(&other, path).expect("it is there"));
    assert_eq!(code, Some(0), "{said}");
    expect_right_picture(&folder);
}

#[test]
fn a_bundle_that_is_cut_is_one_clear_error() {
    let folder = empty("cut");
    let (code, said) = harmed(&folder, |path| {
        let file = OpenOptions::new().write(true).open(path).expect("it is there");
        file.set_len(1 << 20).expect("it can be cut");
    });
    assert_eq!(code, Some(1), "{said}");
    assert!(said.starts_with("error: ") && said.trim_end().lines().count() == 1, "{said}");
    assert!(said.contains("was truncated while running") && said.contains(arg(&folder)), "{said}");
    assert!(!folder.join("out.png").exists());
}
