//! Kernels that are compiled ahead: by `kiln compile`, and into a bundle.

mod harness;

use harness::{arg, kiln_err, kiln_ok, scratch, shared};
use std::fs;
use std::path::{Path, PathBuf};

/// An empty folder.
fn empty(name: &str) -> PathBuf {
    let folder = scratch("prepare").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("the target folder can be written");
    folder
}

/// Where a run of one step had its kernels from, as its report says. `more`: more arguments.
fn origin(bundle: &Path, folder: &Path, more: &[&str]) -> String {
    let (picture, report) = (folder.join("out.png"), folder.join("report.json"));
    let run = ["run", arg(bundle), "-p", "a red heart", "--steps", "1", "-o", arg(&picture)];
    kiln_ok(&[&run[..], &["--report", arg(&report)], more].concat());
    let text = fs::read_to_string(&report).expect("it was written");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    report["programs"].as_str().expect("a text").to_owned()
}

#[test]
fn compile_leaves_kernels_for_the_first_run_unless_told_otherwise() {
    let folder = empty("compile");
    let (bundle, cache) = (folder.join("emoji.kiln"), folder.join("cache"));
    let compile = ["compile", "--model", "emoji-256", "--with-encoder", "-o", arg(&bundle)];
    // In the user's cache, where other tests leave the same kernels.
    kiln_ok(&compile);
    assert_eq!(origin(&bundle, &folder, &[]), "cached");
    for more in [&["--no-prepare"][..], &["--device", "mali-g78"]] {
        kiln_ok(&[&compile[..], &["--cache", arg(&cache)], more].concat());
        assert!(!cache.exists(), "{more:?}");
    }
}

#[test]
fn a_bundle_with_kernels_needs_no_cache() {
    let folder = empty("into");
    let (copy, cache) = (folder.join("with.kiln"), folder.join("cache"));
    let bundle = shared();
    let said = kiln_ok(&["prepare", arg(&bundle), "--into", arg(&copy)]);
    assert!(said.contains(&format!("wrote {} with them", arg(&copy))), "{said}");
    assert_eq!(origin(&copy, &folder, &["--cache", arg(&cache)]), "cached");
    assert!(!cache.exists());
    // Once more, into itself.
    let whole = fs::read(&copy).expect("it was written");
    kiln_ok(&["prepare", arg(&copy), "--into", arg(&copy)]);
    assert!(fs::read(&copy).expect("it is there") == whole);
    let nowhere = folder.join("no/such.kiln");
    let line = kiln_err(&["prepare", arg(&bundle), "--into", arg(&nowhere)], 2);
    assert!(line.contains(arg(&nowhere)) && line.contains("is not there"), "{line}");
}
