//! Pictures made from pictures, against the encoder and the sampler of diffusers.

mod harness;

use harness::{arg, compiled, emoji, kiln_err, kiln_ok, npy, scratch, shared};
use kiln_testkit::{bounds, every, native, relative_l2};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

fn bundle() -> &'static PathBuf {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(shared)
}

fn expect_close(found: &Path, expected: &str, limit: f64) {
    let error = relative_l2(&npy(found), &npy(&emoji(expected)));
    println!("{expected}: relative L2 {error:.2e}");
    assert!(error <= limit, "{expected}: relative L2 {error:e} over {limit:e}");
}

fn encode(bundle: &Path, name: &str) -> PathBuf {
    let mean = scratch("init_image").join(name);
    let image = format!("image={}", arg(&emoji("1-image.npy")));
    let fixed = ["eval", arg(bundle), "--network", "encoder", "--input", &image];
    kiln_ok(&[&fixed[..], &["--output", arg(&mean)]].concat());
    mean
}

#[test]
fn the_encoder_agrees() {
    expect_close(&encode(bundle(), "mean.npy"), "1-mean.npy", bounds::NETWORK_FP32);
    // Only in `make test-full`: a driver compiles all kernels once more for FP16.
    if every(2) == 1 {
        let fp16 = compiled(&["--with-encoder", "--precision", "fp16"]);
        expect_close(&encode(&fp16, "mean-fp16.npy"), "1-mean.npy", bounds::NETWORK_FP16);
    }
}

#[test]
fn the_last_steps_of_a_run_agree() {
    let folder = scratch("init_image/run");
    let picture = folder.join("out.png");
    let init = emoji("1.png");
    let fixed = ["run", arg(bundle()), "--prompt", "a red heart", "--init-image", arg(&init)];
    let files = ["--strength", "0.75", "--dump", arg(&folder), "-o", arg(&picture)];
    kiln_ok(&[&fixed[..], &files[..]].concat());
    expect_close(&folder.join("latent_015.npy"), "0-img2img-latents-15.npy", bounds::RUN_FP32);
    assert!(!folder.join("latent_016.npy").exists());
    let text = kiln_ok(&["show", arg(&picture), "--json"]);
    let text: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(text["text"]["strength"], "0.75");
    // A bundle with an encoder still makes pictures from noise alone.
    let plain = ["run", arg(bundle()), "--prompt", "a red heart", "--steps", "1"];
    kiln_ok(&[&plain[..], &["-o", arg(&picture)]].concat());
}

#[test]
fn c_and_java_repaint_the_same_picture() {
    let folder = scratch("init_image");
    let at = |name: &str| folder.join(name);
    let init = emoji("1.png");
    let request = ["a red heart", "4", "3"];
    let run = ["run", arg(bundle()), "-p", request[0], "--steps", request[1], "--seed", request[2]];
    let mask = emoji("1-mask.png");
    let from = ["--init-image", arg(&init), "--strength", "0.5", "--mask", arg(&mask), "-o"];
    let picture = at("run.png");
    kiln_ok(&[&run[..], &from[..], &[arg(&picture)]].concat());
    let expected = native::rgba(&picture);
    std::fs::write(at("from.rgba"), native::rgba(&init)).expect("the folder can be written");
    let shares: Vec<u8> = native::rgba(&mask).chunks(4).map(|pixel| pixel[0]).collect();
    std::fs::write(at("mask.bytes"), shares).expect("the folder can be written");
    let (from, mask) = (at("from.rgba"), at("mask.bytes"));
    let image = [arg(&from), "256", "256", "0.5", arg(&mask)];

    let program = native::c_program(&folder, "generate", true);
    let mut c = Command::new(program);
    let said = native::output(c.args([bundle(), &at("c")]).args(request).arg("auto").args(image));
    assert!(said.contains("step 2 of 2"), "{said}");
    assert!(std::fs::read(at("c")).expect("pixels") == expected, "C makes another picture");

    let mut java = native::java_program(&folder);
    native::output(java.args([bundle(), &at("java")]).args(request).args(image));
    assert!(std::fs::read(at("java")).expect("pixels") == expected, "Java makes another picture");
}

#[test]
fn what_is_missing_is_said() {
    let image = emoji("1.png");
    let plain = compiled(&[]);
    let asked = ["run", arg(&plain), "--prompt", "x", "-o", "/dev/null"];
    let line = kiln_err(&[&asked[..], &["--init-image", arg(&image)]].concat(), 2);
    assert!(line.contains("--with-encoder"), "{line}");
    let asked = ["run", arg(bundle()), "--prompt", "x", "-o", "/dev/null"];
    let strength = ["--init-image", arg(&image), "--strength", "1.5"];
    assert!(kiln_err(&[&asked[..], &strength[..]].concat(), 2).contains("strength is 1.5"));
    let no_picture = ["--init-image", arg(&plain)];
    assert!(
        kiln_err(&[&asked[..], &no_picture[..]].concat(), 2)
            .contains("not a PNG, JPEG or WebP file")
    );
    let out = scratch("init_image").join("no.kiln");
    let encoder = ["compile", "--model", "emoji-256", "--with-encoder", "-o", arg(&out)];
    let wrong = ["--encoder-weights", "models/emoji-256.safetensors.zst"];
    let output = harness::kiln(&[&encoder[..], &wrong[..]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("first_stage_model.encoder.conv_in.weight: missing"), "{stderr}");
}
