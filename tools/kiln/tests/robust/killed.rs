//! SIGKILL at random moments.

use super::harness::{arg, npy};
use super::{
    bundle, cache, cache_without, command, compile, compile_args, empty, expect_right_picture,
    files,
};
use super::{names, run_args, run_args_with_files, succeed, undisturbed};
use kiln_bundle::BundleFile;
use kiln_testkit::sampled;
use std::fs;
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

/// Moments at which each command is killed; all of them in `make test-full`.
const KILLS: usize = 8;

/// Kills the process alone, as the system does when memory runs out.
fn kill(mut child: Child, after: Duration) {
    thread::sleep(after);
    child.kill().expect("it is this test's child");
    child.wait().expect("it is this test's child");
}

/// Moments up to `longest`, one at random in each of [`KILLS`] equal parts. Printed, so that a
/// failure can be met again.
fn moments(longest: Duration) -> Vec<Duration> {
    let part = |k: usize| longest.mul_f64((k as f64 + fastrand::f64()) / KILLS as f64);
    let moments: Vec<_> = sampled(&Vec::from_iter(0..KILLS), 2).copied().map(part).collect();
    println!("killed after {moments:?} of {longest:?}");
    moments
}

/// Every file that has its final name is whole.
fn expect_whole(folder: &Path) {
    for path in files(folder).into_iter().filter(|path| path.is_file()) {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        let bytes = fs::read(&path).expect("it is there");
        match path.extension().and_then(|e| e.to_str()) {
            _ if name.starts_with('.') => {}
            Some("png") => assert!(bytes == undisturbed().0, "{name} differs"),
            Some("json") => {
                serde_json::from_slice::<serde_json::Value>(&bytes).expect("a whole report");
            }
            Some("npy") if name.starts_with("tokens") => assert!(bytes.len() > 128, "{name}"),
            Some("npy") => assert!(!npy(&path).is_empty(), "{name}"),
            _ => panic!("{name} is no file of a run"),
        }
    }
}

#[test]
fn a_killed_run_leaves_whole_files_and_the_next_is_right() {
    let folder = empty("killed-run");
    fs::create_dir(folder.join("dump")).expect("the target folder can be written");
    let args = run_args_with_files(bundle(), cache(), &folder);
    for moment in moments(undisturbed().1) {
        kill(command(&args).spawn().expect("it starts"), moment);
        expect_whole(&folder);
        expect_whole(&folder.join("dump"));
    }
    succeed(command(&args));
    expect_right_picture(&folder);
    expect_whole(&folder.join("dump"));
    // What was left under hidden names has been used up.
    assert_eq!(names(&folder), ["dump", "out.png", "report.json"]);
    assert!(names(&folder.join("dump")).iter().all(|name| !name.starts_with('.')));
}

#[test]
fn a_killed_compilation_of_kernels_leaves_a_cache_that_works() {
    let folder = empty("killed-prepare");
    let cache = cache_without(&folder, 5);
    let prepare = ["prepare", arg(bundle()), "--cache", arg(&cache)].map(String::from);
    for moment in moments(Duration::from_secs(1)) {
        kill(command(&prepare).spawn().expect("it starts"), moment);
    }
    // The run is killed, and what compiles for it goes on beside the next run.
    kill(
        command(&run_args(bundle(), &cache, &folder)).spawn().expect("it starts"),
        Duration::from_millis(700),
    );
    let said = succeed(command(&run_args(bundle(), &cache, &folder)));
    assert!(!said.contains("in this process"), "{said}");
    expect_right_picture(&folder);
    for path in files(super::cache()) {
        let name = path.file_name().expect("a file");
        assert!(cache.join(name).is_file(), "{} is missing", name.display());
    }
}

#[test]
fn a_killed_compile_leaves_no_bundle_or_a_whole_one() {
    let folder = empty("killed-compile");
    let output = folder.join("emoji.kiln");
    let started = Instant::now();
    compile(&output);
    let longest = started.elapsed();
    let whole = fs::read(&output).expect("just compiled");
    // Over an older bundle, and where there is none.
    let moments = moments(longest);
    let middle = moments.len() / 2;
    for (index, moment) in moments.into_iter().enumerate() {
        if index == middle {
            fs::remove_file(&output).expect("it is there");
        }
        kill(command(&compile_args(&output)).spawn().expect("it starts"), moment);
        if output.exists() || index < middle {
            BundleFile::open(&output).expect("a whole bundle").verify_all(|_| {}).expect("whole");
        }
    }
    compile(&output);
    assert!(fs::read(&output).expect("just compiled") == whole, "the bundle differs");
    assert_eq!(names(&folder), ["emoji.kiln"]);
}
