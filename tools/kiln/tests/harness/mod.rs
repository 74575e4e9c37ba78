//! Runs the built `kiln` and compares its tensors with references.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The top of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A reference tensor of the small model.
pub fn emoji(name: &str) -> PathBuf {
    root().join("models/emoji-256-golden").join(name)
}

/// A reference tensor of the full-size synthetic checkpoint.
pub fn sd21(name: &str) -> PathBuf {
    root().join("models/sd21-synth-golden").join(name)
}

/// A folder of this test binary's own.
pub fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    folder
}

/// Runs `kiln` in the repository's top folder.
pub fn kiln(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(args)
        .current_dir(root())
        .output()
        .expect("kiln starts")
}

/// Runs `kiln`, which must succeed; returns what it printed.
pub fn kiln_ok(args: &[&str]) -> String {
    let output = kiln(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kiln {args:?}: {stderr}");
    String::from_utf8(output.stdout).expect("kiln prints UTF-8")
}

/// Runs `kiln` with `input` on its standard input; it must succeed. Returns what it printed.
pub fn kiln_answers(args: &[&str], input: &str) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(args)
        .current_dir(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kiln starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes()).expect("kiln reads");
    drop(stdin);
    let output = child.wait_with_output().expect("kiln ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kiln {args:?}: {stderr}");
    String::from_utf8(output.stdout).expect("kiln prints UTF-8")
}

/// The small model's bundle, compiled with options. Test programs share it: it is compiled anew
/// only if `kiln` is newer.
pub fn compiled(options: &[&str]) -> PathBuf {
    let path = scratch("bundles").join(format!("emoji{}.kiln", options.join("").replace('/', "-")));
    let written = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    if written(&path) < written(Path::new(env!("CARGO_BIN_EXE_kiln"))) {
        let fixed = ["compile", "--model", "emoji-256", "--no-prepare", "-o", arg(&path)];
        kiln_ok(&[&fixed[..], options].concat());
    }
    path
}

/// The small model's bundle in FP32 with its image encoder and a tiny decoder, and its kernels in
/// the user's cache. Tests that run a bundle take this one if they can, so that a driver compiles its kernels once.
/// An error of a run is then one line: there is nothing to say of kernels before.
pub fn shared() -> PathBuf {
    let tiny = ["--tiny-decoder", "models/emoji-256-tiny.safetensors"];
    let path = compiled(&["--with-encoder", tiny[0], tiny[1]]);
    kiln_ok(&["prepare", arg(&path)]);
    path
}

/// Runs `kiln`, which must fail with `code` and one line on stderr; returns that line.
pub fn kiln_err(args: &[&str], code: i32) -> String {
    let output = kiln(args);
    let stderr = String::from_utf8(output.stderr).expect("kiln prints UTF-8");
    assert_eq!(output.status.code(), Some(code), "kiln {args:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "one line: {stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    stderr
}

/// Path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// Elements of a float .npy file, whatever its shape.
pub fn npy(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = npyz::NpyFile::new(&bytes[..]).expect("a .npy file");
    file.into_vec::<f32>().expect("FP32 elements")
}

/// Peak signal-to-noise ratio of pictures in [-1, 1], in dB, after clamping as a PNG does.
pub fn psnr(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "element count");
    let clamp = |v: &f32| f64::from(v.clamp(-1.0, 1.0));
    let square: f64 = found.iter().zip(expected).map(|(a, b)| (clamp(a) - clamp(b)).powi(2)).sum();
    10.0 * (4.0 * found.len() as f64 / square).log10()
}

/// Writes a one-dimensional FP32 .npy file.
pub fn write_npy(path: &Path, values: &[f32]) {
    write_npy_values(path, &[values.len() as u64], values);
}

/// Writes an FP32 .npy file in which all values are the same.
pub fn write_shaped_npy(path: &Path, shape: &[u64], value: f32) {
    let count = shape.iter().product::<u64>() as usize;
    write_npy_values(path, shape, &vec![value; count]);
}

fn write_npy_values(path: &Path, shape: &[u64], values: &[f32]) {
    use npyz::WriterBuilder;
    let file = std::fs::File::create(path).expect("the target folder can be written");
    let mut writer = npyz::WriteOptions::new()
        .default_dtype()
        .shape(shape)
        .writer(file)
        .begin_nd()
        .expect("a header");
    writer.extend(values.iter().copied()).expect("elements");
    writer.finish().expect("the end");
}

/// One U-Net pass through `kiln eval`: latent, timestep and context from files.
pub fn eval_unet(bundle: &Path, latent: &Path, timestep: &Path, context: &Path, output: &Path) {
    let latent = format!("latent={}", arg(latent));
    let timestep = format!("timestep={}", arg(timestep));
    let context = format!("context={}", arg(context));
    kiln_ok(&[
        "eval",
        arg(bundle),
        "--network",
        "unet",
        "--input",
        &latent,
        "--input",
        &timestep,
        "--input",
        &context,
        "--output",
        arg(output),
    ]);
}
