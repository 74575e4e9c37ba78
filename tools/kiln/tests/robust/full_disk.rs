//! A disk that is full: a limit on the size of files, which holds for root too, and `/dev/full`.

use super::harness::{self, arg};
use super::{
    bundle, cache, cache_without, command, compile_args, empty, expect_right_picture, fail, files,
};
use super::{names, run_args, run_args_with_files, succeed, without_progress};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

/// `kiln`, of which no file gets longer than so many KiB.
fn limited(kib: u64, args: &[String]) -> Command {
    let mut command = Command::new("bash");
    let script = format!("ulimit -f {kib}; trap '' XFSZ; exec \"$@\"");
    command.args(["-c", &script, "bash", env!("CARGO_BIN_EXE_kiln")]).args(args);
    command.current_dir(harness::root()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[test]
fn for_the_bundle() {
    let folder = empty("full-bundle");
    let output = folder.join("emoji.kiln");
    let args = compile_args(&output);
    // The last of the bundle does not fit.
    let whole_bytes = fs::metadata(bundle()).expect("just compiled").len();
    let error = fail(limited((whole_bytes - 1) / 1024, &args), 2);
    assert!(error.contains(arg(&output)) && error.contains("no space left"), "{error}");
    assert!(files(&folder).is_empty(), "{:?}", names(&folder));
    // Not even the checkpoint has room when it is decompressed.
    let error = fail(limited(2000, &args), 2);
    assert!(error.contains("emoji-256.safetensors.zst"), "{error}");
    assert!(files(&folder).is_empty(), "{:?}", names(&folder));
}

#[test]
fn for_the_picture() {
    let folder = empty("full-picture");
    let error = fail(limited(16, &run_args(bundle(), cache(), &folder)), 2);
    assert!(error.contains("out.png"), "{error}");
    assert!(files(&folder).is_empty(), "{:?}", names(&folder));
    let mut args = run_args(bundle(), cache(), &folder);
    *args.last_mut().expect("the picture") = "/dev/full".into();
    let error = fail(command(&args), 2);
    assert!(error.contains("/dev/full") && error.contains("No space left"), "{error}");
}

#[test]
fn for_the_report() {
    let folder = empty("full-report");
    let mut args = run_args(bundle(), cache(), &folder);
    args.extend(["--report", "/dev/full"].map(String::from));
    let error = fail(command(&args), 2);
    assert!(error.contains("/dev/full") && error.contains("No space left"), "{error}");
    expect_right_picture(&folder);
}

#[test]
fn for_the_tensors() {
    let folder = empty("full-tensors");
    // Room for the picture, but not for the embedding.
    let error = fail(limited(400, &run_args_with_files(bundle(), cache(), &folder)), 2);
    assert!(error.contains("dump") && error.contains(".npy"), "{error}");
    assert_eq!(names(&folder), ["dump"]);
    let left = names(&folder.join("dump"));
    assert!(left.iter().all(|name| !name.starts_with('.')), "{left:?}");
}

/// Runs `kiln` on a cache in which nothing can be written: the names under which this process and
/// its children would begin a program lead to `/dev/full`. So many processes must try.
fn on_a_full_cache(cache: &Path, args: &[String], tries: usize) -> (Option<i32>, String) {
    let mut command = Command::new("bash");
    command.args(["-c", "read -r && exec \"$@\"", "bash", env!("CARGO_BIN_EXE_kiln")]).args(args);
    command.current_dir(harness::root()).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).spawn().expect("bash starts");
    let names: Vec<_> =
        (0..2000).map(|k| cache.join(format!("{}-0.tmp", child.id() + k))).collect();
    names.iter().for_each(|name| symlink("/dev/full", name).expect("the target folder is ours"));
    child.stdin.take().expect("a pipe").write_all(b"\n").expect("bash listens");
    let output = child.wait_with_output().expect("it is this test's child");
    // Whoever met one has removed it.
    let left = names.iter().filter(|name| fs::remove_file(name).is_ok()).count();
    assert_eq!(left, names.len() - tries, "programs were written under other names");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A cache is a convenience: without room for it the picture is made all the same.
#[test]
fn for_the_cache() {
    let folder = empty("full-cache");
    let cache = cache_without(&folder, 1);
    let whole = names(&cache);
    let prepare = ["prepare", arg(bundle()), "--cache", arg(&cache)].map(String::from);
    // A worker tries, then the process that started it, which has the error to tell.
    let (code, said) = on_a_full_cache(&cache, &prepare, 2);
    assert_eq!(code, Some(2), "{said}");
    let error = without_progress(&said);
    assert!(error.starts_with("error: ") && error.lines().count() == 1, "{said}");
    assert!(said.contains(arg(&cache)) && said.contains("No space left"), "{said}");
    assert_eq!(names(&cache), whole);
    // A worker tries; the run builds what is missing, and keeps nothing.
    let (code, said) = on_a_full_cache(&cache, &run_args(bundle(), &cache, &folder), 1);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("kernels were compiled in this process"), "{said}");
    expect_right_picture(&folder);
    assert_eq!(names(&cache), whole);
}

/// `kiln` as a user who may not write `cache`. Root may, unless it gives up the right to.
fn without_right_to_write(cache: &Path, args: &[String]) -> Command {
    let mut command = Command::new("sh");
    let script =
        "[ ! -w \"$0\" ] || set -- setpriv --bounding-set -dac_override \"$@\"; exec \"$@\"";
    command.args(["-c", script, arg(cache), env!("CARGO_BIN_EXE_kiln")]).args(args);
    command.current_dir(harness::root()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[test]
fn a_cache_that_may_not_be_written_gives_a_picture_and_a_warning() {
    let folder = empty("read-only-cache");
    let cache = cache_without(&folder, 1);
    let whole = names(&cache);
    let allow = |mode| {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(&cache, mode).expect("the target folder is ours");
    };
    allow(0o555);
    let said = succeed(without_right_to_write(&cache, &run_args(bundle(), &cache, &folder)));
    let prepare = ["prepare", arg(bundle()), "--cache", arg(&cache)].map(String::from);
    let error = fail(without_right_to_write(&cache, &prepare), 2);
    allow(0o755);
    assert!(
        said.contains(&format!("warning: compiled kernels are not kept: {}", cache.display())),
        "{said}"
    );
    expect_right_picture(&folder);
    assert!(error.contains(arg(&cache)) && error.contains("Permission denied"), "{error}");
    assert_eq!(names(&cache), whole);
}
