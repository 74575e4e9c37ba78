//! LoRAs that a run switches on, against diffusers (`models/make_turbo.py`, `models/make_sketch.py`)
//! and against the same LoRAs merged before weights are packed.

mod harness;

use harness::{arg, compiled, emoji, kiln_err, kiln_ok, npy, psnr, root, scratch, write_npy};
use kiln_testkit::{bounds, native, relative_l2};
use std::path::{Path, PathBuf};

const TURBO: &str = "models/emoji-256-turbo.safetensors";
const SKETCH: &str = "models/emoji-256-sketch.safetensors";

/// A bundle in the least memory, whose weights are streamed.
fn streamed(options: &[&str]) -> PathBuf {
    let out = scratch("switch").join("never.kiln");
    let small = ["compile", "--model", "emoji-256", "--budget", "1MiB", "-o", arg(&out)];
    let line = kiln_err(&[&small[..], options].concat(), 1);
    let least = line.split("budget is ").nth(1).and_then(|rest| rest.split(' ').next());
    let least: f64 = least.and_then(|mib| mib.parse().ok()).expect("the least budget");
    compiled(&[options, &["--budget", &format!("{}MiB", least.ceil() + 1.0)]].concat())
}

/// The LoRA of a file for a bundle, and what is said of it.
fn lora(name: &str, file: &str, bundle: &Path) -> (PathBuf, String) {
    let path = scratch("switch").join(format!("{name}.kiln-lora"));
    let said = kiln_ok(&["lora", file, "--for", arg(bundle), "-o", arg(&path)]);
    (path, said)
}

/// The U-Net's output with options.
fn unet(name: &str, bundle: &Path, options: &[&str]) -> Vec<f32> {
    let folder = scratch(&format!("switch/{name}"));
    let (timestep, output) = (folder.join("timestep.npy"), folder.join("eps.npy"));
    write_npy(&timestep, &[999.0]);
    let inputs =
        [("latent", emoji("0-init.npy")), ("timestep", timestep), ("context", emoji("0-text.npy"))];
    let inputs = inputs.map(|(name, path)| format!("{name}={}", arg(&path)));
    let inputs = inputs.iter().flat_map(|input| ["--input", input]);
    let fixed = ["eval", arg(bundle), "--network", "unet", "--output", arg(&output)];
    kiln_ok(&fixed.into_iter().chain(inputs).chain(options.iter().copied()).collect::<Vec<_>>());
    npy(&output)
}

fn expect(name: &str, found: &[f32], expected: &[f32], limit: f64) {
    let error = relative_l2(found, expected);
    println!("{name}: relative L2 {error:.2e}");
    assert!(error <= limit, "{name}: relative L2 {error:e} over {limit:e}");
}

/// All in FP32: what was switched equals what diffusers merged, at any strength.
#[test]
fn switched_weights_agree() {
    let bundle = compiled(&["--lora-memory", "32MiB"]);
    let (sketch, said) = lora("sketch", SKETCH, &bundle);
    assert!(said.contains("a step costs nothing more"), "{said}");
    let sketch = |strength: &str| format!("{}:{strength}", arg(&sketch));
    let found = unet("sketch", &bundle, &["--lora", &sketch("0.8")]);
    expect("sketch", &found, &npy(&emoji("0-sketch-eps.npy")), bounds::NETWORK_FP32);
    // Without it, the weights are the bundle's; at half the strength, those of half a merge.
    let plain = unet("plain", &bundle, &[]);
    expect("off", &unet("off", &bundle, &["--lora", &sketch("0")]), &plain, 1e-9);
    let merged = compiled(&["--lora", &format!("{SKETCH}:0.5")]);
    let found = unet("half", &bundle, &["--lora", &sketch("0.5")]);
    expect("half", &found, &unet("merged", &merged, &[]), bounds::NETWORK_FP32);
    let turbo = lora("turbo", TURBO, &bundle).0;
    let found = unet("turbo", &bundle, &["--lora", arg(&turbo)]);
    expect("turbo", &found, &npy(&emoji("0-turbo-eps.npy")), bounds::NETWORK_FP32);
    // Two at once are the sum of both.
    let both = compiled(&["--lora", TURBO, "--lora", &format!("{SKETCH}:0.5")]);
    let found = unet("both", &bundle, &["--lora", arg(&turbo), "--lora", &sketch("0.5")]);
    expect("both", &found, &unet("both merged", &both, &[]), bounds::NETWORK_FP32);
}

/// LCM's way in a bundle whose weights are streamed, so that each read changes them anew.
#[test]
fn pictures_of_streamed_weights_agree() {
    let bundle = streamed(&["--lora-memory", "24MiB", "--guidance-branches", "1"]);
    let (turbo, said) = lora("streamed", TURBO, &bundle);
    assert!(said.contains("of streamed weights"), "{said}");
    let folder = scratch("switch/run");
    let picture = folder.join("out.png");
    let init = emoji("0-init.npy");
    let run = ["run", arg(&bundle), "-p", "a red heart", "--latent", arg(&init), "--steps", "4"];
    let how =
        ["--sampler", "lcm", "--spacing", "trailing", "--guidance", "1", "--lora", arg(&turbo)];
    let report = folder.join("report.json");
    let files = ["--dump", arg(&folder), "--report", arg(&report), "-o", arg(&picture)];
    kiln_ok(&[&run[..], &how, &files].concat());
    let found = npy(&folder.join("latent_004.npy"));
    expect("latents", &found, &npy(&emoji("0-turbo-latents-4.npy")), bounds::RUN_FP32);
    let rgb = |path: &Path| -> Vec<f32> {
        let rgba = native::rgba(path);
        let rgb = rgba.chunks_exact(4).flat_map(|pixel| &pixel[..3]);
        rgb.map(|byte| f32::from(*byte) / 127.5 - 1.0).collect()
    };
    let db = psnr(&rgb(&picture), &rgb(&emoji("0-turbo.png")));
    println!("picture: {db:.1} dB");
    assert!(db >= 40.0, "picture: {db:.1} dB");
    let text = kiln_ok(&["show", arg(&picture), "--json"]);
    let text: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(text["text"]["lora"], "emoji-256-turbo:1");
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(report).expect("a report")).expect("JSON");
    let (planned, measured) = (&report["planned"], &report["measured"]);
    let bytes = |of: &serde_json::Value, field: &str| of[field].as_u64().expect("a number");
    assert_eq!(bytes(planned, "arena_bytes"), bytes(measured, "arena_bytes"));
    assert!(bytes(measured, "process_peak_bytes") <= bytes(planned, "peak_bytes"));
}

/// INT8 weights are quantized anew, beside the error that they have already.
#[test]
fn streamed_int8_weights_are_changed() {
    let options = ["--precision", "int8", "--guidance-branches", "1", "--lora-memory", "24MiB"];
    let bundle = streamed(&options);
    let (turbo, said) = lora("int8", TURBO, &bundle);
    assert!(said.contains("of streamed weights"), "{said}");
    let found = unet("int8", &bundle, &["--lora", arg(&turbo)]);
    expect("turbo in INT8", &found, &npy(&emoji("0-turbo-eps.npy")), 0.01);
    let plain = relative_l2(&unet("int8 plain", &bundle, &[]), &npy(&emoji("0-turbo-eps.npy")));
    assert!(plain > 0.03, "{plain}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let (plain, bundle) = (compiled(&[]), compiled(&["--lora-memory", "32MiB"]));
    let (sketch, _) = lora("refused", SKETCH, &bundle);
    let out = scratch("switch").join("never.kiln-lora");
    let line = kiln_err(&["lora", SKETCH, "--for", arg(&plain), "-o", arg(&out)], 2);
    assert!(line.contains("compile it with --lora-memory"), "{line}");
    let small = compiled(&["--lora-memory", "64KiB"]);
    let line = kiln_err(&["lora", SKETCH, "--for", arg(&small), "-o", arg(&out)], 2);
    assert!(line.contains("has room for 65536; compile it with --lora-memory"), "{line}");
    let tiny = root().join("models/emoji-256-tiny.safetensors");
    let line = kiln_err(&["lora", arg(&tiny), "--for", arg(&bundle), "-o", arg(&out)], 2);
    assert!(line.contains("has none of its layers"), "{line}");
    assert!(!out.exists());
    let run = |bundle: &Path, lora: &str| {
        kiln_err(&["run", arg(bundle), "-p", "x", "-o", "/dev/null", "--lora", lora], 2)
    };
    assert!(run(&bundle, SKETCH).contains("kiln lora makes one"));
    assert!(run(&plain, arg(&sketch)).contains("compile it with --lora-memory"));
    let other = compiled(&["--lora-memory", "32MiB", "--precision", "int8"]);
    assert!(run(&other, arg(&sketch)).contains("made for another bundle"));
}
