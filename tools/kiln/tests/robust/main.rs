//! What stops a command at a bad moment, or takes its files or its memory away: a clear error or a
//! right picture, and nothing broken left behind.

mod damage;
mod full_disk;
#[path = "../harness/mod.rs"]
mod harness;
mod killed;
mod memory_limit;
mod together;

use harness::{arg, emoji, kiln_ok, scratch};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The budget: little more than the plan needs, so that weights are streamed.
const BUDGET: &str = "400MiB";

/// The small model, compiled.
fn bundle() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let path = scratch("robust").join("emoji.kiln");
        compile(&path);
        path
    })
}

/// The arguments that compile it.
fn compile_args(output: &Path) -> Vec<String> {
    let args = ["compile", "--model", "emoji-256", "--no-prepare", "--budget", BUDGET];
    args.iter().chain(&["-o", arg(output)]).map(|arg| arg.to_string()).collect()
}

fn compile(output: &Path) {
    succeed(command(&compile_args(output)));
}

/// Its kernels, compiled, in a cache of these tests' own.
fn cache() -> &'static Path {
    static CACHE: OnceLock<PathBuf> = OnceLock::new();
    CACHE.get_or_init(|| {
        let path = scratch("robust").join("cache");
        // Of another bundle's programs, which earlier kernels left, no test expects anything.
        let of_bundle = path.with_extension("kiln");
        let read = |path: &Path| fs::read(path).ok();
        if read(&of_bundle) != read(bundle()) {
            let _ = fs::remove_dir_all(&path);
        }
        kiln_ok(&["prepare", arg(bundle()), "--cache", arg(&path)]);
        fs::copy(bundle(), of_bundle).expect("the target folder can be written");
        path
    })
}

/// A copy of [`cache`] without so many of its smallest programs, which compile quickly.
fn cache_without(folder: &Path, missing: usize) -> PathBuf {
    let copy = folder.join("cache");
    fs::create_dir_all(&copy).expect("the target folder can be written");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&copy, private).expect("it is this test's folder");
    }
    let mut programs = files(cache());
    programs.sort_by_key(|path| fs::metadata(path).expect("it is there").len());
    for path in &programs[missing..] {
        fs::copy(path, copy.join(path.file_name().expect("a file"))).expect("it is copied");
    }
    copy
}

/// An empty folder.
fn empty(name: &str) -> PathBuf {
    let folder = scratch("robust").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("the target folder can be written");
    folder
}

/// The files of a folder, hidden ones too.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("it is there");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("it can be read").path()).collect();
    paths.sort();
    paths
}

fn names(folder: &Path) -> Vec<String> {
    let name = |path: PathBuf| path.file_name().map(|n| n.to_string_lossy().into_owned());
    files(folder).into_iter().filter_map(name).collect()
}

/// The arguments of a run of `bundle` into a folder: a picture, `out.png`.
fn run_args(bundle: &Path, cache: &Path, folder: &Path) -> Vec<String> {
    let (latent, picture) = (emoji("0-init.npy"), folder.join("out.png"));
    let args = ["run", arg(bundle), "--cache", arg(cache), "--prompt", "a red heart"];
    let more = ["--latent", arg(&latent), "--steps", "2", "-o", arg(&picture)];
    args.iter().chain(&more).map(|arg| arg.to_string()).collect()
}

/// [`run_args`] with a report and the tensors on the way.
fn run_args_with_files(bundle: &Path, cache: &Path, folder: &Path) -> Vec<String> {
    let mut args = run_args(bundle, cache, folder);
    let (report, dump) = (folder.join("report.json"), folder.join("dump"));
    args.extend(["--report", arg(&report), "--dump", arg(&dump)].map(String::from));
    args
}

/// `kiln`, to be started in the repository's top folder without output.
fn command(args: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(args).current_dir(harness::root());
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Runs `command`, which must succeed; returns what it said.
fn succeed(mut command: Command) -> String {
    let output = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    said
}

/// What was said beside progress, which slow machines print now and then.
fn without_progress(said: &str) -> String {
    let progress = |line: &&str| {
        line.is_empty() || ["compiling kernels", "sampling"].iter().any(|p| line.starts_with(p))
    };
    said.lines().filter(|line| !progress(line)).collect::<Vec<_>>().join("\n")
}

/// Runs `command`, which must fail with `code` and one line beside progress; returns that line.
fn fail(mut command: Command, code: i32) -> String {
    let output = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
    let error = without_progress(&said);
    assert!(error.starts_with("error: ") && error.lines().count() == 1, "{said}");
    error
}

/// The picture that nothing disturbed, and how long it and its process took.
fn undisturbed() -> &'static (Vec<u8>, Duration) {
    static PICTURE: OnceLock<(Vec<u8>, Duration)> = OnceLock::new();
    PICTURE.get_or_init(|| {
        let folder = empty("undisturbed");
        let command = command(&run_args(bundle(), cache(), &folder));
        let started = Instant::now();
        succeed(command);
        (fs::read(folder.join("out.png")).expect("it was written"), started.elapsed())
    })
}

fn expect_right_picture(folder: &Path) {
    let found = fs::read(folder.join("out.png")).expect("it was written");
    assert!(found == undisturbed().0, "{} differs", folder.join("out.png").display());
}
