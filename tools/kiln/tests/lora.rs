//! The small model merged with the LoRAs that ship beside it, against diffusers
//! (`models/make_turbo.py`, `models/make_sketch.py`).

mod harness;

use harness::{
    arg, compiled, emoji, eval_unet, kiln_err, kiln_ok, npy, psnr, root, scratch, write_npy,
};
use kiln_testkit::{bounds, native, relative_l2};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A bundle with a LoRA. Its kernels are those of `shared`, which a driver has compiled.
fn with(lora: &str) -> PathBuf {
    let tiny = "models/emoji-256-tiny.safetensors";
    compiled(&["--with-encoder", "--tiny-decoder", tiny, "--lora", lora])
}

/// The bundle in few steps.
fn bundle() -> &'static PathBuf {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| with("models/emoji-256-turbo.safetensors"))
}

fn expect_unet(name: &str, bundle: &Path) {
    let folder = scratch(&format!("lora/{name}"));
    let (timestep, output) = (folder.join("timestep.npy"), folder.join("eps.npy"));
    write_npy(&timestep, &[999.0]);
    eval_unet(bundle, &emoji("0-init.npy"), &timestep, &emoji("0-text.npy"), &output);
    let error = relative_l2(&npy(&output), &npy(&emoji(&format!("0-{name}-eps.npy"))));
    println!("U-Net with {name}: relative L2 {error:.2e}");
    assert!(error <= bounds::NETWORK_FP32, "{name}: relative L2 {error:e}");
}

#[test]
fn the_unet_of_few_steps_agrees() {
    expect_unet("turbo", bundle());
}

/// The names are Kohya's, and the strength is not 1.
#[test]
fn the_unet_of_a_style_agrees() {
    expect_unet("sketch", &with("models/emoji-256-sketch.safetensors:0.8"));
}

#[test]
fn a_file_that_is_no_lora_is_refused() {
    let out = scratch("lora").join("refused.kiln");
    let tiny = root().join("models/emoji-256-tiny.safetensors");
    let line =
        kiln_err(&["compile", "--model", "emoji-256", "--lora", arg(&tiny), "-o", arg(&out)], 2);
    assert!(line.contains("has none of its layers"), "{line}");
    let weights = root().join("models/emoji-256.safetensors.zst");
    let sweep = ["compile", "--weights", arg(&weights), "--lora", arg(&tiny), "--budget-sweep"];
    let line = kiln_err(&[&sweep[..], &["1GiB..1GiB"]].concat(), 2);
    assert!(line.contains("has none of its layers"), "{line}");
}

/// LCM's way, as the LoRA was trained: each step predicts the picture and adds noise for the next.
#[test]
fn pictures_in_few_steps_agree() {
    let folder = scratch("lora/run");
    let (init, picture) = (emoji("0-init.npy"), folder.join("out.png"));
    for steps in ["1", "2", "4"] {
        let run = ["run", arg(bundle()), "-p", "a red heart", "--latent", arg(&init), "--steps"];
        let how = [steps, "--sampler", "lcm", "--spacing", "trailing", "--guidance", "1"];
        let files = ["--dump", arg(&folder), "-o", arg(&picture)];
        kiln_ok(&[&run[..], &how, &files].concat());
        let found = npy(&folder.join(format!("latent_00{steps}.npy")));
        let error = relative_l2(&found, &npy(&emoji(&format!("0-turbo-latents-{steps}.npy"))));
        println!("latents after {steps} steps: relative L2 {error:.2e}");
        assert!(error <= bounds::RUN_FP32, "{steps} steps: relative L2 {error:e}");
    }
    let rgb = |path: &Path| -> Vec<f32> {
        let rgba = native::rgba(path);
        let rgb = rgba.chunks_exact(4).flat_map(|pixel| &pixel[..3]);
        rgb.map(|byte| f32::from(*byte) / 127.5 - 1.0).collect()
    };
    let db = psnr(&rgb(&picture), &rgb(&emoji("0-turbo.png")));
    println!("picture of 4 steps: {db:.1} dB");
    assert!(db >= 40.0, "picture of 4 steps: {db:.1} dB");
}
