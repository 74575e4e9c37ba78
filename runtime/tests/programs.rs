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

/// Programs of the small model: the decoder's, and one for all other networks.
const PROGRAMS: usize = 2;

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

    fn open(&self) -> kiln_bundle::BundleFile {
        kiln_bundle::BundleFile::open(&self.bundle()).unwrap()
    }

    fn cache(&self) -> ProgramCache {
        ProgramCache::new(self.folder.path().join("cache"))
    }

    fn session(&self, cache: Option<ProgramCache>, prepare: Option<PrepareCommand>) -> Session {
        let programs = ProgramOptions { cache, prepare };
        let executor = ExecutorOptions { programs, ..ExecutorOptions::default() };
        let options = SessionOptions { executor, ..SessionOptions::default() };
        Session::open(&self.bundle(), &options).unwrap()
    }

    /// Where the programs came from, if they are right: evaluates a network.
    fn origin(&self, prepare: Option<PrepareCommand>) -> ProgramOrigin {
        origin(&mut self.session(Some(self.cache()), prepare))
    }

    /// Where the programs came from without a cache.
    fn origin_without_cache(&self) -> ProgramOrigin {
        origin(&mut self.session(None, None))
    }

    fn prepare(&self) {
        prepare::prepare(&self.open(), "auto", &self.cache(), None, &mut |_, _| {}).unwrap();
    }

    /// Writes the compiled programs into the bundle.
    fn prepare_into_bundle(&self) {
        self.prepare();
        prepare::write_into(&self.open(), "auto", &self.cache(), &self.bundle()).unwrap();
    }

    /// The compiled programs in the cache.
    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.cache().folder()).into_iter().flatten();
        let files = entries.map(|entry| entry.unwrap().path());
        files.filter(|file| file.extension() == Some("program".as_ref())).collect()
    }
}

/// Where the programs came from, if all are right: evaluates a network of each.
fn origin(session: &mut Session) -> ProgramOrigin {
    encode(session);
    decode(session);
    session.programs()
}

fn encode(session: &mut Session) {
    let tokens: Vec<i32> = (0..154).collect();
    let tensor = kiln_runtime::Tensor {
        shape: vec![2, 77],
        values: kiln_runtime::Values::I32(tokens.clone()),
    };
    let found = session.eval("text_encoder", &[("tokens", &tensor)]).unwrap();
    assert_close(&found, &small::embedding(&tokens));
}

fn decode(session: &mut Session) {
    let planes = [0.25, -0.5, 0.75, 1.0];
    let latent: Vec<f32> = planes.iter().flat_map(|&value| [value; 16]).collect();
    let tensor = kiln_runtime::Tensor::f32(&[1, 4, 4, 4], latent);
    let found = session.eval("decoder", &[("latent", &tensor)]).unwrap();
    let channels_last = small::decode(&planes.repeat(16));
    let plane = |channel| channels_last.iter().copied().skip(channel).step_by(3);
    assert_close(&found, &[0, 1, 2].into_iter().flat_map(plane).collect::<Vec<f32>>());
}

fn assert_close(found: &kiln_runtime::Tensor, expected: &[f32]) {
    let found = found.as_f32().unwrap();
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5));
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
    assert_eq!(place.files().len(), PROGRAMS);
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
    assert_eq!(place.files().len(), PROGRAMS);
    assert_eq!(place.origin(None), ProgramOrigin::Cached);
}

#[test]
fn a_cache_that_cannot_be_written_is_an_error_only_when_asked_for() {
    let place = Place::new();
    fs::write(place.folder.path().join("cache"), "a file").unwrap();
    let asked = prepare::prepare(&place.open(), "auto", &place.cache(), None, &mut |_, _| {});
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
    assert_eq!(place.files().len(), PROGRAMS);
}

#[test]
fn a_bundle_carries_its_programs() {
    let place = Place::new();
    assert_eq!(place.origin_without_cache(), ProgramOrigin::Built);
    place.prepare_into_bundle();
    let carried = |place: &Place| {
        let bundle = kiln_bundle::BundleFile::open(&place.bundle()).unwrap();
        bundle.verify_all(|_| {}).unwrap();
        bundle.program_names().count()
    };
    assert_eq!(carried(&place), PROGRAMS);
    assert_eq!(place.origin_without_cache(), ProgramOrigin::Cached);
    // Once more changes nothing.
    let whole = fs::read(place.bundle()).unwrap();
    place.prepare_into_bundle();
    assert_eq!(fs::read(place.bundle()).unwrap(), whole);
    // Those of another device stay, and nobody takes them.
    let bundle = kiln_bundle::BundleFile::open(&place.bundle()).unwrap();
    bundle.write_with_programs(&place.bundle(), &[(7, b"of another device".to_vec())]).unwrap();
    assert_eq!(place.origin_without_cache(), ProgramOrigin::Built);
    place.prepare_into_bundle();
    assert_eq!(
        (carried(&place), place.origin_without_cache()),
        (PROGRAMS + 1, ProgramOrigin::Cached)
    );
}

#[test]
fn a_damaged_program_in_a_bundle_is_not_taken() {
    let place = Place::new();
    place.prepare_into_bundle();
    let whole = fs::read(place.bundle()).unwrap();
    let at = whole.len() - 100;
    fs::write(place.bundle(), [&whole[..at], &[whole[at] ^ 1], &whole[at + 1..]].concat()).unwrap();
    assert_eq!(place.origin_without_cache(), ProgramOrigin::Built);
    let bundle = kiln_bundle::BundleFile::open(&place.bundle()).unwrap();
    assert!(bundle.verify_all(|_| {}).is_err());
}

/// Runs workers that compile the decoder's program only when a file is there.
#[cfg(unix)]
fn gated(place: &Place) -> (PrepareCommand, PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let (script, gate) = (place.folder.path().join("gated"), place.folder.path().join("gate"));
    let text = format!(
        "#!/bin/sh\nwhile read -r program; do\n  [ \"$program\" = 0 ] || until [ -e {} ]; do sleep \
         0.02; done\n  echo \"$program\"\ndone | {} \"$@\"\n",
        gate.display(),
        env!("CARGO_BIN_EXE_kiln-run")
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    (command(script.to_str().unwrap()).unwrap(), gate)
}

#[cfg(unix)]
#[test]
fn a_picture_begins_while_the_decoder_is_compiled() {
    let place = Place::new();
    let (command, gate) = gated(&place);
    let mut session = place.session(Some(place.cache()), Some(command));
    // The prompt is encoded before the decoder's program is there.
    encode(&mut session);
    assert_eq!(place.files().len(), 1);
    fs::write(gate, "").unwrap();
    decode(&mut session);
    assert_eq!((place.files().len(), session.programs()), (PROGRAMS, ProgramOrigin::Prepared));
}
