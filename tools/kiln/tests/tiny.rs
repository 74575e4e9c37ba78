//! A tiny decoder beside the full one and in its place, against diffusers' `AutoencoderTiny`
//! (`models/make_tiny.py`).

mod harness;

use harness::{arg, emoji, kiln, kiln_err, kiln_ok, npy, psnr, root, scratch, shared};
use kiln_testkit::native;
use std::path::{Path, PathBuf};

/// Least PSNR of an FP32 picture.
const PICTURE_DB: f64 = 40.0;
/// Least PSNR of the last preview.
const PREVIEW_DB: f64 = 20.0;

fn tiny() -> PathBuf {
    root().join("models/emoji-256-tiny.safetensors")
}

/// A picture as the decoder gives it, `[C, H, W]`, -1 to 1.
fn pixels(path: &Path) -> Vec<f32> {
    let rgba = native::rgba(path);
    let of_channel = |c: usize| rgba.iter().skip(c).step_by(4);
    (0..3).flat_map(of_channel).map(|byte| f32::from(*byte) / 127.5 - 1.0).collect()
}

fn expect_close(what: &str, found: &[f32], expected: &str, least_db: f64) {
    let db = psnr(found, &pixels(&emoji(expected)));
    println!("{what}: {db:.1} dB");
    assert!(db >= least_db, "{what}: {db:.1} dB");
}

#[test]
fn both_decoders_of_a_bundle_agree() {
    let (bundle, folder) = (shared(), scratch("tiny"));
    let output = folder.join("decoded.npy");
    let latent = format!("latent={}", arg(&emoji("0-latents-20.npy")));
    let eval = ["eval", arg(&bundle), "--network", "tiny_decoder", "--input", &latent, "--output"];
    kiln_ok(&[&eval[..], &[arg(&output)]].concat());
    expect_close("tiny decoder", &npy(&output), "0-tiny.png", PICTURE_DB);

    let init = emoji("0-init.npy");
    let run = ["run", arg(&bundle), "-p", "a red heart", "--latent", arg(&init), "-o"];
    let picture = |name: &str, options: &[&str]| {
        let path = folder.join(name);
        kiln_ok(&[&run[..], &[arg(&path)], options].concat());
        pixels(&path)
    };
    let found = picture("tiny.png", &["--decoder", "tiny"]);
    expect_close("run with the tiny decoder", &found, "0-tiny.png", PICTURE_DB);
    // Previews by the tiny decoder change nothing that later steps read. The last preview has no
    // noise, and so is not quite the picture.
    let options = ["--decoder", "full", "--preview-every", "5"];
    let full = psnr(&picture("full.png", &options), &npy(&emoji("0-image.npy")));
    assert!(full >= PICTURE_DB, "run with the full decoder: {full:.1} dB");
    expect_close("preview", &pixels(&folder.join("full.preview.png")), "0-tiny.png", PREVIEW_DB);
    let refused = kiln(&[&run[..], &["x.png", "--decoder", "none"]].concat());
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && message.contains("full and tiny"), "{message}");
}

#[test]
fn a_bundle_may_have_one_decoder() {
    let folder = scratch("tiny");
    let (bundle, out) = (folder.join("alone.kiln"), folder.join("none.png"));
    let compile = ["compile", "--model", "emoji-256", "--no-prepare", "-o", arg(&bundle)];
    kiln_ok(&[&compile[..], &["--decoder", arg(&tiny())]].concat());
    let networks = kiln_ok(&["inspect", arg(&bundle), "--json"]);
    assert!(networks.contains("\"tiny_decoder\"") && !networks.contains("\"decoder\""));
    let run = ["run", arg(&bundle), "-p", "x", "--decoder", "full", "-o", arg(&out)];
    let line = kiln_err(&run, 2);
    assert!(line.contains("only a tiny decoder"), "{line}");

    kiln_ok(&compile);
    let run = ["run", arg(&bundle), "-p", "x", "--decoder", "tiny", "-o", arg(&out)];
    let line = kiln_err(&run, 2);
    assert!(line.contains("--tiny-decoder"), "{line}");
}

#[test]
fn other_files_are_refused() {
    let out = scratch("tiny").join("refused.kiln");
    let refused = |options: &[&str]| {
        let compile = ["compile", "--model", "emoji-256", "-o", arg(&out)];
        kiln_err(&[&compile[..], options].concat(), 2)
    };
    let encoder = root().join("models/emoji-256-encoder.safetensors");
    let line = refused(&["--decoder", arg(&encoder)]);
    assert!(line.contains("no tiny autoencoder"), "{line}");
    let line = refused(&["--with-encoder", "--encoder-weights", arg(&tiny())]);
    assert!(line.contains("no tiny encoder"), "{line}");
    assert!(!out.exists());
}
