//! Programs at the same time.

use super::harness::{arg, kiln_ok};
use super::{bundle, cache, cache_without, command, empty, expect_right_picture, files};
use super::{names, run_args};
use kiln_testkit::every;
use std::fs;
use std::path::{Path, PathBuf};

/// A cache without any program in `make test-full`, without some otherwise.
fn shared_cache(folder: &Path) -> PathBuf {
    match every(2) {
        1 => folder.join("cache"),
        _ => cache_without(folder, 2),
    }
}

/// A run finds all programs in the cache.
fn expect_cached(cache: &Path, folder: &Path) {
    let report = folder.join("report.json");
    let mut args = run_args(bundle(), cache, folder);
    args.extend(["--report", arg(&report)].map(String::from));
    kiln_ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let report = fs::read_to_string(report).expect("it was written");
    assert!(report.contains("\"programs\": \"cached\""), "{report}");
}

#[test]
fn two_runs_on_one_cache_without_all_programs_are_both_right() {
    // The driver has compiled the kernels before, into a cache of its own.
    let count = files(cache()).len();
    let folders = [empty("together-a"), empty("together-b")];
    let shared = shared_cache(&empty("together-cache"));
    let run = |folder| command(&run_args(bundle(), &shared, folder)).spawn().expect("it starts");
    let children = [run(&folders[0]), run(&folders[1])];
    for (child, folder) in children.into_iter().zip(&folders) {
        let output = child.wait_with_output().expect("it is this test's child");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(!said.contains("in this process"), "{said}");
        expect_right_picture(folder);
    }
    assert_eq!(files(&shared).len(), count);
    expect_cached(&shared, &folders[0]);
}

#[test]
fn four_preparations_of_one_cache_leave_its_programs_and_nothing_else() {
    let whole = names(cache());
    let folder = empty("together-prepare");
    let shared = shared_cache(&folder);
    let args = ["prepare", arg(bundle()), "--cache", arg(&shared)].map(String::from);
    let children = [0; 4].map(|_| command(&args).spawn().expect("it starts"));
    for child in children {
        let output = child.wait_with_output().expect("it is this test's child");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(names(&shared), whole);
    expect_cached(&shared, &folder);
    expect_right_picture(&folder);
}

#[test]
fn two_runs_into_one_file_leave_a_whole_one() {
    let folder = empty("together-file");
    let args = run_args(bundle(), cache(), &folder);
    let children = [0, 1].map(|_| command(&args).spawn().expect("it starts"));
    for child in children {
        let output = child.wait_with_output().expect("it is this test's child");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    expect_right_picture(&folder);
    assert_eq!(names(&folder), ["out.png"]);
}
