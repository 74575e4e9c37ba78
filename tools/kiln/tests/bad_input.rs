//! What goes wrong gets one clear line and an exit code, and leaves nothing half-written.

mod harness;

use harness::{arg, emoji, kiln_err, scratch, shared};
use kiln_compiler::device::DeviceProfile;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const MODEL: &str = "models/emoji-256.safetensors.zst";

fn bundle() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(shared)
}

/// Compiles the small model from `weights`, which must fail; nothing may be written.
fn compile_err(weights: &Path, extra: &[&str], code: i32) -> String {
    let output = scratch("bad_input").join("never.kiln");
    let fixed = ["compile", "--model", "emoji-256", "--weights", arg(weights), "-o", arg(&output)];
    let error = kiln_err(&[&fixed[..], extra].concat(), code);
    assert!(!output.exists());
    error
}

#[test]
fn a_missing_file_is_named() {
    let error = compile_err(Path::new("no/such.safetensors"), &[], 2);
    assert!(error.contains("no/such.safetensors"), "{error}");
    assert!(error.contains("--weights: ") && error.contains("check the path"), "{error}");
    let error = kiln_err(&["run", "no/such.kiln", "--prompt", "x", "-o", "target/x.png"], 2);
    assert!(error.contains("no/such.kiln"), "{error}");
}

#[test]
fn a_truncated_checkpoint_is_named() {
    let whole = std::fs::read(harness::root().join(MODEL)).expect("it ships");
    let path = scratch("bad_input").join("short.safetensors.zst");
    std::fs::write(&path, &whole[..whole.len() / 2]).expect("the target folder can be written");
    let error = compile_err(&path, &[], 2);
    assert!(error.contains("short.safetensors.zst"), "{error}");
}

#[test]
fn every_missing_tensor_is_listed() {
    // A checkpoint with one tensor, of another shape than the model's.
    let header = r#"{"first_stage_model.decoder.conv_in.bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let path = scratch("bad_input").join("one.safetensors");
    let mut file = std::fs::File::create(&path).expect("the target folder can be written");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("written");
    file.write_all(header.as_bytes()).expect("written");
    file.write_all(&[0; 8]).expect("written");
    drop(file);
    let output = harness::kiln(&[
        "compile",
        "--model",
        "emoji-256",
        "--weights",
        arg(&path),
        "-o",
        "target/never.kiln",
        "--verbose",
    ]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    for name in [
        "first_stage_model.decoder.conv_in.bias",
        "cond_stage_model.model.ln_final.weight",
        "model.diffusion_model.out.2.bias",
    ] {
        assert!(error.contains(name), "{name} is not in {error}");
    }
}

#[test]
fn a_checkpoint_of_another_form_is_told_in_words() {
    let folder = scratch("bad_input");
    for (name, expected) in [
        ("notes.safetensors", "not a safetensors file but a text file"),
        ("notes.safetensors.zst", "not a Zstandard file, though its name ends in .zst"),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, "These are notes.\n").expect("the target folder can be written");
        let error = compile_err(&path, &[], 2);
        assert!(error.contains(name) && error.contains(expected), "{error}");
    }
}

#[test]
fn a_library_that_is_named_and_not_there_is_told() {
    let named = ["--opencl", "/no/such.so"];
    let run = ["run", arg(bundle()), "-p", "x", "-o", "target/never.png"];
    let error = kiln_err(&[&run[..], &named].concat(), 3);
    assert!(error.contains("cannot open the OpenCL library /no/such.so"), "{error}");
}

#[test]
fn a_seed_below_minus_one_is_told_the_range() {
    let output = harness::kiln(&["run", "x.kiln", "-p", "x", "-o", "x.png", "--seed", "-2"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("from 0 to 18446744073709551615, or -1 for any"), "{error}");
}

#[test]
fn a_profile_with_a_fault_is_told_with_its_place() {
    let (_, text) = DeviceProfile::text("cpu-avx2").expect("it ships");
    let path = scratch("bad_input").join("mine.toml");
    let said = |from: &str, to: &str| {
        std::fs::write(&path, text.replacen(from, to, 1)).expect("the target folder is writable");
        compile_err(Path::new(MODEL), &["--device", arg(&path)], 2)
    };
    let error = said("base_align_bytes = 256", "base_align_bytes = 0");
    let expected = "mine.toml: memory.base_align_bytes is 0, it must be a power of two, 1 to 65536";
    assert!(error.contains(expected), "{error}");
    let error = said("tile_rows = 6", "tile_rows = six");
    assert!(error.contains("mine.toml:6:13: "), "{error}");
    let error = compile_err(Path::new(MODEL), &["--device", "no/such.toml"], 2);
    assert!(error.contains("no/such.toml") && error.contains("check the path"), "{error}");
}

#[test]
fn a_budget_of_10_mib_is_refused_with_the_smallest_that_would_do() {
    let error = compile_err(Path::new(MODEL), &["--budget", "10MiB"], 1);
    let (_, advice) = error.split_once("smallest feasible budget is ").expect("it is named");
    assert!(advice.contains("raise --budget, or try --precision fp16 or int8; "), "{error}");
    assert!(error.contains("live at the peak"), "{error}");
}

#[test]
fn no_opencl_platform_says_what_to_install() {
    let empty = scratch("bad_input").join("no-drivers");
    std::fs::create_dir_all(&empty).expect("the target folder can be written");
    let run = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["run", arg(bundle()), "--prompt", "x", "-o", "target/never.png"])
        .current_dir(harness::root())
        .env("OCL_ICD_VENDORS", &empty)
        .output()
        .expect("kiln starts");
    let error = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(3), "{error}");
    assert!(error.contains("pocl-opencl-icd") && error.trim_end().lines().count() == 1, "{error}");
}

#[test]
fn a_prompt_of_10_000_characters_is_cut_with_a_warning() {
    let folder = scratch("bad_input");
    let picture = folder.join("long.png");
    let prompt = "a red heart ".repeat(834);
    let latent = emoji("0-init.npy");
    let output = harness::kiln(&[
        "run",
        arg(bundle()),
        "--prompt",
        &prompt,
        "--steps",
        "1",
        "--latent",
        arg(&latent),
        "-o",
        arg(&picture),
    ]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("warning: ") && said.contains("77"), "{said}");
    assert!(picture.exists());
}

#[test]
fn an_empty_prompt_draws_with_a_warning() {
    let picture = scratch("bad_input").join("empty.png");
    let run = ["run", arg(bundle()), "-p", " ", "--steps", "1", "-o", arg(&picture)];
    let output = harness::kiln(&run);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && picture.exists(), "{said}");
    assert!(said.contains("warning: the prompt is empty"), "{said}");
}

#[test]
fn a_prompt_that_is_not_utf8_is_refused() {
    let run = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["run", arg(bundle()), "-o", "target/never.png", "--prompt"])
        .arg(std::ffi::OsStr::from_bytes(b"caf\xe9"))
        .current_dir(harness::root())
        .output()
        .expect("kiln starts");
    let error = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(2), "{error}");
    assert!(error.contains("UTF-8") && error.trim_end().lines().count() == 1, "{error}");
}

#[test]
fn a_damaged_bundle_is_refused() {
    let mut bytes = std::fs::read(bundle()).expect("just compiled");
    let folder = scratch("bad_input");
    let run = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).expect("the target folder can be written");
        // Every network runs, and reads its weights.
        let image = emoji("1.png");
        let args =
            ["run", arg(&path), "--prompt", "x", "--steps", "1", "--init-image", arg(&image)];
        let output = harness::kiln(&[&args[..], &["-o", "target/never.png"]].concat());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && !error.contains("panicked"), "{name}: {error}");
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
        std::fs::remove_file(&path).expect("the target folder can be written");
    };
    run("short.kiln", &bytes[..bytes.len() / 2]);
    run("empty.kiln", &[]);
    run("picture.kiln", &std::fs::read(emoji("0-init.npy")).expect("it ships"));
    let middle = 4096 + 64;
    bytes[middle] ^= 1;
    run("flipped-weights.kiln", &bytes);
}
