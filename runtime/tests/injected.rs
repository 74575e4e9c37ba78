//! Faults injected into every call of OpenCL and every read of a run: one clear line and an exit
//! code, or the right picture; nothing half written; the next run is right.
//!
//! With `--nocapture`, the test prints the rows of `docs/benchmarks/reliability.md`.
#![cfg(target_os = "linux")]

mod small;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kiln_testkit::{native, sampled};
use small::Small;

/// In `make test`, one of so many places of a fault is tried: calls of OpenCL with compiled kernels,
/// while they are compiled, and reads.
const EVERY: [usize; 3] = [25, 150, 150];
/// A run that takes longer hangs.
const HANGS: Duration = Duration::from_secs(600);

struct Place {
    folder: tempfile::TempDir,
    opencl: PathBuf,
    reads: PathBuf,
    /// The picture of a run without a fault.
    expected: Vec<u8>,
}

/// How a run ended, and what it said on standard error.
struct Ended {
    status: ExitStatus,
    said: String,
}

/// The kinds of ends of runs, and how many there were.
#[derive(Default)]
struct Ends(BTreeMap<String, usize>);

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let merges = Path::new(env!("CARGO_MANIFEST_DIR")).join("../graphs/assets/clip_merges.txt");
        Small::default().write(&folder.path().join("small.kiln"), &fs::read(merges).unwrap());
        let opencl = native::faulty_library(folder.path(), "faulty_opencl");
        let reads = native::faulty_library(folder.path(), "faulty_reads");
        let mut place = Place { folder, opencl, reads, expected: Vec::new() };
        succeeds(&place.run(&[]));
        place.expected = fs::read(place.path("out.png")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, variables: &[(&str, &str)]) -> Ended {
        let _ = fs::remove_file(self.path("out.png"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln-run"));
        command.current_dir(self.folder.path()).env("KILN_CACHE", self.path("cache"));
        command.args(["small.kiln", "-p", "a red house", "--steps", "2", "-o", "out.png"]);
        let said = self.path("said");
        command.envs(variables.iter().copied()).stderr(File::create(&said).unwrap());
        let (mut child, started) = (command.stdout(Stdio::null()).spawn().unwrap(), Instant::now());
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return Ended { status, said: fs::read_to_string(&said).unwrap() };
            }
            if started.elapsed() > HANGS {
                child.kill().unwrap();
                panic!("{variables:?}: the run hangs");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The calls that a run makes: a name for each.
    fn calls(&self, variables: &[(&str, &str)]) -> Vec<String> {
        let log = self.path("calls");
        let _ = fs::remove_file(&log);
        let with_log = [variables, &[("KILN_FAULT_LOG", log.to_str().unwrap())]].concat();
        succeeds(&self.run(&with_log));
        let calls = fs::read_to_string(&log).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    /// Checks how a run with a fault ended, and that the next one is right.
    fn check(&self, ended: &Ended, fault: &str, ends: &mut Ends) {
        let Ended { status, said } = ended;
        assert_eq!(status.signal(), None, "{fault}: {said}");
        assert!(!said.contains("panicked"), "{fault}: {said}");
        let picture = fs::read(self.path("out.png")).ok();
        let end = match status.code().unwrap_or(-1) {
            0 => {
                assert!(picture.as_ref() == Some(&self.expected), "{fault}: another picture");
                "the right picture".to_owned()
            }
            code => {
                assert!((1..=3).contains(&code), "{fault}: exit code {code}");
                assert_eq!(picture, None, "{fault}: {said}");
                let last = said.lines().last().unwrap_or_default();
                let errors = said.lines().filter(|line| line.starts_with("error: ")).count();
                assert!(last.starts_with("error: ") && errors == 1, "{fault}: {said}");
                format!("one line, exit code {code}")
            }
        };
        *ends.0.entry(end).or_default() += 1;
        let mut names: Vec<_> = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| name.ends_with(".part") || name.ends_with(".tmp"));
        assert!(names.is_empty(), "{fault}: {names:?}");
        succeeds(&self.run(&[]));
        assert!(fs::read(self.path("out.png")).unwrap() == self.expected, "after {fault}");
    }
}

fn succeeds(ended: &Ended) {
    assert!(ended.status.success(), "{}", ended.said);
}

/// Prints a row of the table.
fn row(what: &str, calls: usize, faults: usize, ends: &Ends) {
    let ends: Vec<_> = ends.0.iter().map(|(end, count)| format!("{count} {end}")).collect();
    println!("| {what} | {calls} | {faults} | {} |", ends.join("; "));
}

/// Fails calls of OpenCL in runs, whose programs `prepared` puts into the cache or not.
fn fail_opencl(place: &Place, what: &str, cold: bool) {
    let library = place.opencl.to_str().unwrap();
    let opencl = ("OPENCL_DYLIB_PATH", library);
    let cool = || {
        if cold {
            fs::remove_dir_all(place.path("cache")).unwrap();
        }
    };
    cool();
    let calls = place.calls(&[opencl]);
    assert!(calls.len() > 50, "{calls:?}");
    for how in ["KILN_FAULT_AT", "KILN_FAULT_FROM"] {
        let (mut ends, mut faults) = (Ends::default(), 0);
        let places: Vec<usize> = (0..calls.len()).collect();
        for &index in sampled(&places, EVERY[usize::from(cold)]) {
            cool();
            let number = (index + 1).to_string();
            let ended = place.run(&[opencl, (how, &number)]);
            place.check(&ended, &format!("{what}, {how}={number}, {}", calls[index]), &mut ends);
            faults += 1;
        }
        let name = if how.ends_with("AT") { "one call" } else { "a call and all later ones" };
        row(&format!("{what}: {name} of OpenCL fails"), calls.len(), faults, &ends);
    }
}

#[test]
fn every_call_of_opencl_may_fail_with_compiled_kernels() {
    fail_opencl(&Place::new(), "kernels in the cache", false);
}

#[test]
fn every_call_of_opencl_may_fail_while_kernels_are_compiled() {
    fail_opencl(&Place::new(), "kernels to compile", true);
}

#[test]
fn every_read_of_a_file_may_go_wrong() {
    let place = Place::new();
    let preload = ("LD_PRELOAD", place.reads.to_str().unwrap());
    for (file, name) in [(".kiln", "the bundle"), (".program", "the cache")] {
        let counted = [preload, ("KILN_FAULT_FILE", file)];
        let calls = place.calls(&counted).len();
        assert!(calls > 1, "{calls} reads of {name}");
        for how in ["error", "short", "end", "interrupted", "late"] {
            for from in ["KILN_FAULT_AT", "KILN_FAULT_FROM"] {
                // A read that is interrupted for ever is never done, and all of them late are slow.
                if from == "KILN_FAULT_FROM" && ["interrupted", "late"].contains(&how) {
                    continue;
                }
                let (mut ends, mut faults) = (Ends::default(), 0);
                let places: Vec<usize> = (1..=calls).collect();
                for &number in sampled(&places, EVERY[2].min(calls.div_ceil(4))) {
                    let number = number.to_string();
                    let fault = [&counted[..], &[("KILN_FAULT_HOW", how), (from, &number)]];
                    let ended = place.run(&fault.concat());
                    place.check(&ended, &format!("{name}, {how}, {from}={number}"), &mut ends);
                    faults += 1;
                }
                let which = if from.ends_with("AT") { "one read" } else { "a read and all later" };
                row(&format!("{name}: {which}, {how}"), calls, faults, &ends);
            }
        }
    }
}
