//! `kiln-run` as a user meets it: files, messages and exit codes.

mod small;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};

use kiln_runtime::npy;
use small::Small;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let merges = Path::new(env!("CARGO_MANIFEST_DIR")).join("../graphs/assets/clip_merges.txt");
        let merges = fs::read(merges).unwrap();
        Small::default().write(&folder.path().join("small.kiln"), &merges);
        Place { folder }
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln-run"));
        command.env("KILN_CACHE", self.folder.path().join("cache"));
        command.current_dir(self.folder.path()).args(args).output().unwrap()
    }

    fn fails(&self, code: i32, args: &[&str], expected: &str) {
        let output = self.run(args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
        assert!(message.contains(expected), "{args:?}: {message}");
        assert!(!self.folder.path().join("out.png").exists());
    }

    fn read(&self, name: &str) -> npy::NpyArray<f32> {
        npy::read(File::open(self.folder.path().join(name)).unwrap()).unwrap()
    }
}

#[test]
fn a_picture_its_tensors_and_its_report_are_written() {
    let place = Place::new();
    let args = ["small.kiln", "--prompt", "a red house", "--steps", "3", "-o", "out.png"];
    let more = ["--dump", "a/b", "--report", "report.json", "--guidance", "2"];
    let output = place.run(&[&args[..], &more[..]].concat());
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{message}");
    assert!(message.contains("planned") && message.contains("budget 1024 MiB"), "{message}");
    assert!(!message.contains("warning") && !message.contains('\r'), "{message}");

    let png = fs::read(place.folder.path().join("out.png")).unwrap();
    let text = String::from_utf8_lossy(&png);
    assert!(text.contains("a red house") && text.contains("IEND"));
    assert_eq!(place.read("a/b/latent_003.npy").shape, [1, 4, 4, 4]);
    assert_eq!(place.read("a/b/decoded.npy").shape, [1, 3, 16, 16]);
    assert_eq!(place.read("a/b/embedding.npy").shape, [2, 77, 8]);
    let tokens = File::open(place.folder.path().join("a/b/tokens.npy")).unwrap();
    assert_eq!(npy::read::<i32>(tokens).unwrap().shape, [2, 77]);
    let report = fs::read(place.folder.path().join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["times"]["step_seconds"].as_array().unwrap().len(), 3);
    assert_eq!(report["measured"]["arena_bytes"], report["planned"]["arena_bytes"]);

    // The noise as a file gives the same picture.
    let latent = ["--latent", "a/b/latent_000.npy", "--seed", "9", "--dump", "c"];
    let output = place.run(&[&args[..], &["--guidance", "2"], &latent[..]].concat());
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(place.read("c/decoded.npy"), place.read("a/b/decoded.npy"));
}

#[test]
fn exit_codes_and_messages_have_meaning() {
    let place = Place::new();
    let with =
        |more: &[&'static str]| [&["small.kiln", "--prompt", "x", "-o", "out.png"], more].concat();
    place.fails(2, &["small.kiln"], "--prompt");
    place.fails(2, &["none.kiln", "--prompt", "x", "-o", "out.png"], "none.kiln");
    place.fails(2, &with(&["--steps", "0"]), "steps");
    place.fails(2, &with(&["--sampler", "ddmi"]), "ddim");
    place.fails(2, &with(&["--latent", "none.npy"]), "none.npy");
    place.fails(2, &with(&["--latent", "small.kiln"]), "small.kiln");
    place.fails(3, &with(&["--device", "abacus"]), "abacus");
    let bundle = place.folder.path().join("small.kiln");
    fs::write(place.folder.path().join("text.kiln"), "not a bundle").unwrap();
    place.fails(2, &["text.kiln", "--prompt", "x", "-o", "out.png"], "kiln compile");
    let mut bytes = fs::read(&bundle).unwrap();
    bytes[4096 + 5000] ^= 1;
    fs::write(&bundle, bytes).unwrap();
    place.fails(1, &with(&[]), "block 0");
}

#[test]
fn a_long_prompt_is_a_warning() {
    let place = Place::new();
    let prompt = "very ".repeat(100) + "long";
    let output = place.run(&["small.kiln", "--prompt", &prompt, "--steps", "1", "-o", "out.png"]);
    assert_eq!(output.status.code(), Some(0));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("warning: the prompt is longer than 77 tokens"), "{message}");
}

#[cfg(unix)]
#[test]
fn a_prompt_that_is_not_text_is_one_line() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln-run"));
    command.current_dir(place.folder.path()).args(["small.kiln", "-o", "out.png", "--prompt"]);
    let output = command.arg(std::ffi::OsStr::from_bytes(b"caf\xe9")).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(message, "error: the prompt is not UTF-8 text\n");
}

#[cfg(target_os = "linux")]
#[test]
fn a_machine_without_a_driver_is_told_what_to_install() {
    let place = Place::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln-run"));
    command.current_dir(place.folder.path()).env("OCL_ICD_VENDORS", "/nowhere");
    let output = command.args(["small.kiln", "-p", "x", "-o", "out.png"]).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("pocl-opencl-icd"), "{message}");
}
