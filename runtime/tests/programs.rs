//! Compiled programs from the cache, from a child, and from neither.

mod small;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kiln_runtime::program::cache::ProgramCache;
use kiln_runtime::program::prepare::{self, PrepareCommand};
use kiln_runtime::program::{ProgramOptions, ProgramOrigin};
use kiln_runtime::{ExecutorOptions, RuntimeError, Session, SessionOptions};
use small::Small;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        Small::default().write(&folder.path().join("small.kiln"), b"");
        Place { folder }
    }

    fn bundle(&self) -> PathBuf {
        self.folder.path().join("small.kiln")
    }

    fn cache(&self) -> ProgramCache {
        ProgramCache::new(self.folder.path().join("cache"))
    }

    /// Opens the bundle, and evaluates a network if the programs are right.
    fn origin(&self, prepare: Option<PrepareCommand>) -> ProgramOrigin {
        let programs = ProgramOptions { cache: Some(self.cache()), prepare };
        let executor = ExecutorOptions { programs, ..ExecutorOptions::default() };
        let options = SessionOptions { executor, ..SessionOptions::default() };
        let mut session = Session::open(&self.bundle(), &options).unwrap();
        let tokens: Vec<i32> = (0..154).collect();
        let tensor = kiln_runtime::Tensor {
            shape: vec![2, 77],
            values: kiln_runtime::Values::I32(tokens.clone()),
        };
        let found = session.eval("text_encoder", &[("tokens", &tensor)]).unwrap();
        let expected = small::embedding(&tokens);
        let close = found.as_f32().unwrap().iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close);
        session.programs()
    }

    fn prepare(&self) {
        prepare::prepare(&self.bundle(), "auto", &self.cache(), None, &mut |_, _| {}).unwrap();
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.cache().folder()).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

fn kiln_run() -> Option<PrepareCommand> {
    command(env!("CARGO_BIN_EXE_kiln-run"))
}

fn command(program: &str) -> Option<PrepareCommand> {
    Some(PrepareCommand { program: program.into(), args: vec!["--prepare".into()] })
}

#[test]
fn a_child_fills_the_cache_once() {
    let place = Place::new();
    assert_eq!(place.origin(kiln_run()), ProgramOrigin::Prepared);
    assert_eq!(place.files().len(), 1);
    // Nothing is run when all is there.
    assert_eq!(place.origin(command("/no/such/program")), ProgramOrigin::Cached);
    assert_eq!(place.origin(None), ProgramOrigin::Cached);
}

#[test]
fn without_a_child_programs_are_built_here() {
    let place = Place::new();
    for prepare in [None, command("/no/such/program"), command("/bin/false")] {
        assert_eq!(place.origin(prepare), ProgramOrigin::Built);
        place.files().iter().for_each(|file| fs::remove_file(file).unwrap());
    }
}

#[test]
fn a_damaged_file_is_made_again() {
    let place = Place::new();
    place.prepare();
    let file = place.files().remove(0);
    let whole = fs::read(&file).unwrap();
    for len in [0, 10, whole.len() / 2, whole.len() - 1] {
        fs::write(&file, &whole[..len]).unwrap();
        assert_eq!(place.origin(kiln_run()), ProgramOrigin::Prepared);
        assert_eq!(place.origin(None), ProgramOrigin::Cached);
    }
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    fs::write(&file, &flipped).unwrap();
    assert_eq!(place.origin(None), ProgramOrigin::Built);
}

#[test]
fn a_binary_that_the_driver_refuses_is_made_again() {
    let place = Place::new();
    let device = kiln_runtime::device::select("auto").unwrap();
    let bundle = kiln_bundle::BundleFile::open(&place.bundle()).unwrap();
    let (plan, options) = (bundle.plan(), &bundle.plan().kernels[0].options);
    let key = kiln_runtime::program::cache::Key::new(&device, &[&plan.sources[0]], options, &[]);
    place.cache().write(&key, b"from another driver").unwrap();
    assert_eq!(place.origin(kiln_run()), ProgramOrigin::Prepared);
    assert_eq!(place.origin(None), ProgramOrigin::Cached);
}

#[test]
fn processes_prepare_at_the_same_time() {
    let place = Place::new();
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln-run"));
        command.arg("--prepare").arg(place.bundle()).arg("--cache").arg(place.cache().folder());
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<_> = (0..2).map(|_| start()).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
    }
    assert_eq!(place.files().len(), 1);
    assert_eq!(place.origin(None), ProgramOrigin::Cached);
}

#[test]
fn a_cache_that_cannot_be_written_is_an_error_only_when_asked_for() {
    let place = Place::new();
    fs::write(place.folder.path().join("cache"), "a file").unwrap();
    let asked = prepare::prepare(&place.bundle(), "auto", &place.cache(), None, &mut |_, _| {});
    assert!(matches!(asked, Err(RuntimeError::Io { .. })), "{asked:?}");
    assert_eq!(place.origin(kiln_run()), ProgramOrigin::Built);
}

#[test]
fn the_command_finds_its_cache_and_tells_where_programs_came_from() {
    let place = Place::new();
    let merges = Path::new(env!("CARGO_MANIFEST_DIR")).join("../graphs/assets/clip_merges.txt");
    Small::default().write(&place.bundle(), &fs::read(merges).unwrap());
    let run = |origin: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln-run"));
        command.current_dir(place.folder.path()).env("KILN_CACHE", place.cache().folder());
        command.args(["small.kiln", "-p", "x", "--steps", "1", "-o", "o.png", "--report", "r"]);
        let output = command.output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{message}");
        let report = fs::read_to_string(place.folder.path().join("r")).unwrap();
        assert!(report.contains(&format!("\"programs\": \"{origin}\"")), "{report}");
    };
    run("prepared");
    run("cached");
    assert_eq!(place.files().len(), 1);
}
