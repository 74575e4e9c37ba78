//! `kiln-run` as a user meets it: files, messages and exit codes.

mod small;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};

use kiln_runtime::npy;
use kiln_runtime::pipeline::png::read_described;
use small::Small;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place::of(Small::default())
    }

    fn of(small: Small) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let merges = Path::new(env!("CARGO_MANIFEST_DIR")).join("../graphs/assets/clip_merges.txt");
        let merges = fs::read(merges).unwrap();
        small.write(&folder.path().join("small.kiln"), &merges);
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
fn a_picture_goes_to_standard_output_alone() {
    let place = Place::new();
    let args = ["small.kiln", "--prompt", "a red house", "--steps", "2", "-o"];
    assert_eq!(place.run(&[&args[..], &["out.png"]].concat()).status.code(), Some(0));
    let output = place.run(&[&args[..], &["-"]].concat());
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{message}");
    assert!(message.contains("wrote the picture in "), "{message}");
    let file = place.folder.path().join("out.png");
    assert!(output.stdout == fs::read(&file).unwrap());
    fs::remove_file(file).unwrap();
    assert!(!place.folder.path().join("-").exists());
    for more in [&["--count", "2"][..], &["--preview-every", "1"]] {
        place.fails(2, &[&args[..], &["-"], more].concat(), "-o - is for one picture");
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
fn the_first_run_says_at_once_that_it_compiles() {
    let place = Place::new();
    let args = ["small.kiln", "-p", "x", "--steps", "1", "-o", "out.png"];
    let said = |output: Output| String::from_utf8(output.stderr).unwrap();
    let first = said(place.run(&args));
    assert!(first.starts_with("compiling kernels 0/") && !first.contains('\r'), "{first}");
    let second = said(place.run(&args));
    assert!(second.starts_with("wrote out.png"), "{second}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_cache_folder_that_pocl_cannot_write_is_named() {
    let place = Place::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln-run"));
    command.current_dir(place.folder.path()).env("POCL_CACHE_DIR", "/proc/none");
    let output = command.args(["small.kiln", "-p", "x", "-o", "out.png"]).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{message}");
    let expected = "error: PoCL cannot write its cache folder /proc/none: ";
    assert!(message.starts_with(expected) && message.contains("POCL_CACHE_DIR"), "{message}");
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
fn sampler_options_are_recorded_and_wrong_ones_refused() {
    let place = Place::new();
    let with =
        |more: &[&'static str]| [&["small.kiln", "--prompt", "x", "-o", "out.png"], more].concat();
    place.fails(2, &with(&["--spacing", "even"]), "leading, trailing, linspace");
    place.fails(2, &with(&["--sampler", "tcd", "--spacing", "trailing"]), "its own");
    place.fails(2, &with(&["--sampler", "tcd", "--steps", "51"]), "1 to 50 are possible");
    place.fails(2, &with(&["--guidance-rescale", "1.5"]), "guidance rescale is 1.5");
    let options = ["--sampler", "heun", "--spacing", "karras", "--steps", "3"];
    let output = place.run(&with(&[&options[..], &["--report", "report.json"]].concat()));
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report = fs::read_to_string(place.folder.path().join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let settings = &report["settings"];
    assert_eq!((&settings["sampler"], &settings["spacing"]), (&"heun".into(), &"karras".into()));
    assert_eq!((&settings["guidance"], &settings["steps"]), (&7.5.into(), &3.into()));
    assert_eq!(report["times"]["step_seconds"].as_array().unwrap().len(), 3);
}

#[test]
fn guidance_that_a_bundle_lacks_is_refused_before_the_work() {
    let place = Place::of(Small { branches: 1, batch: 1, ..Small::default() });
    let args = ["small.kiln", "--prompt", "x", "--steps", "1", "-o", "out.png"];
    let guided = [&args[..], &["--guidance", "7.5"]].concat();
    place.fails(2, &guided, "guidance is 7.5, and the bundle is for guidance 1 alone");
    let output = place.run(&args);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn seeds_make_pictures_of_their_own() {
    let place = Place::new();
    let args = ["small.kiln", "-p", "x", "--steps", "2", "--sampler", "euler-a"];
    let output = place.run(&[&args[..], &["-o", "a.png", "--count", "2", "--seed", "8"]].concat());
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{message}");
    assert_eq!(message.matches("wrote a-000").count(), 2, "{message}");
    let output = place.run(&[&args[..], &["-o", "s{seed}.png", "--seed", "9"]].concat());
    assert_eq!(output.status.code(), Some(0));
    let file = |name: &str| fs::read(place.folder.path().join(name)).unwrap();
    // What went before in the same process changes nothing.
    assert!(file("a-0002.png") == file("s9.png") && file("a-0001.png") != file("s9.png"));
}

#[test]
fn a_batch_goes_on_where_it_was_stopped() {
    let place = Place::new();
    let lines = "{\"prompt\": \"one\"}\n{\"prompt\": \"two\", \"sampler\": \"dpm++2m\"}\n";
    fs::write(place.folder.path().join("p.jsonl"), lines).unwrap();
    let run = || {
        let args = ["small.kiln", "--prompts", "p.jsonl", "--steps", "2", "-o", "o.png"];
        let output = place.run(&args);
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stderr).unwrap()
    };
    let message = run();
    assert!(message.contains("o-0001.png") && message.contains("o-0002.png"), "{message}");
    let second = place.folder.path().join("o-0002.png");
    let before = fs::read(&second).unwrap();
    fs::remove_file(&second).unwrap();
    let message = run();
    assert!(message.contains("1 of 2 pictures are there already"), "{message}");
    assert!(!message.contains("wrote o-0001.png"), "{message}");
    assert!(fs::read(&second).unwrap() == before);
    assert!(run().contains("2 of 2"));
}

#[test]
fn previews_lie_beside_the_picture() {
    let place = Place::new();
    let args = ["small.kiln", "-p", "x", "--steps", "4", "-o", "out.png", "--preview-every", "2"];
    let output = place.run(&args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{message}");
    let preview = read_described(&place.folder.path().join("out.preview.png")).unwrap();
    assert_eq!((preview.width, preview.height), (128, 128));
    // Only terminals are sent pictures.
    assert!(!message.contains('\u{1b}'), "{message:?}");
    let missing = ["--preview-every", "1", "--steps", "1", "-o", "no/such/out.png"];
    let output = place.run(&[&["small.kiln", "-p", "x"], &missing[..]].concat());
    assert_eq!(output.status.code(), Some(2));
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_no_broken_file() {
    let place = Place::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln-run"));
    command.current_dir(place.folder.path()).stderr(std::process::Stdio::piped());
    let args = ["small.kiln", "-p", "x", "--steps", "1000", "-o", "out.png", "--dump", "d"];
    let child = command.args(args).args(["--preview-every", "1"]).spawn().unwrap();
    let preview = place.folder.path().join("out.preview.png");
    while !preview.exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "error: cancelled\n");
    let entries = fs::read_dir(place.folder.path()).unwrap().map(|e| e.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["d", "out.preview.png", "small.kiln"]);
    assert!(read_described(&preview).is_ok());
    for entry in fs::read_dir(place.folder.path().join("d")).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().contains("latent_") {
            assert_eq!(npy::read::<f32>(File::open(path).unwrap()).unwrap().shape, [1, 4, 4, 4]);
        }
    }
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
fn help_needs_no_reader_but_room() {
    let help = |output: std::process::Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln-run"));
        let child = command.arg("--help").stdout(output).stderr(std::process::Stdio::piped());
        let output = child.spawn().unwrap().wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (code, message) = help(full.into());
    assert_eq!(code, Some(2));
    assert!(message.starts_with("error: cannot write to standard output: No space"), "{message}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(help(writer.into()), (Some(0), String::new()));
}

#[test]
fn no_file_of_a_run_is_another_one() {
    let place = Place::new();
    let before = fs::read(place.folder.path().join("small.kiln")).unwrap();
    fs::hard_link(place.folder.path().join("small.kiln"), place.folder.path().join("b")).unwrap();
    let run = ["small.kiln", "-p", "x", "--steps", "1"];
    for outputs in [
        &["-o", "small.kiln"][..],
        &["-o", "./b"],
        &["-o", "out.png", "--report", "b"],
        &["-o", "out.png", "--report", "./out.png"],
        &["-o", "out.png", "--profile", "p.json", "--report", "../{}/p.json"],
    ] {
        let name = place.folder.path().file_name().unwrap().to_str().unwrap();
        let outputs: Vec<String> = outputs.iter().map(|o| o.replace("{}", name)).collect();
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        place.fails(2, &[&run[..], &outputs].concat(), "is the same file as");
    }
    assert!(fs::read(place.folder.path().join("small.kiln")).unwrap() == before);
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
