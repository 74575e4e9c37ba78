//! Stable Diffusion 2.1-base at full size, with synthetic values, inside 1 GiB.

mod harness;

use harness::{arg, kiln_ok, npy, relative_l2, scratch, sd21};
use std::path::Path;
use std::process::Command;

/// FP32 weights are streamed from a bundle of 5 GB, so the disk needs room for two of them; INT8
/// weights nearly all stay, and the network's depth is where their errors would add up.
#[test]
fn unet_passes_agree_under_a_budget_of_1_gib() {
    let folder = scratch("full_size");
    let weights = folder.join("sd21.safetensors");
    let synth = Command::new(env!("CARGO"))
        .args(["run", "--release", "--quiet", "-p", "kiln-synth", "--", arg(&weights)])
        .status()
        .expect("cargo runs");
    assert!(synth.success(), "writing the synthetic checkpoint");
    let fp32 = unet_error(&weights, "fp32");
    let int8 = unet_error(&weights, "int8");
    std::fs::remove_file(&weights).expect("the checkpoint was written here");
    assert!(fp32 <= 1e-4, "FP32: relative L2 {fp32:e}");
    assert!(int8 <= 5e-2, "INT8: relative L2 {int8:e}");
}

/// Relative L2 error of the pass at timestep 981 of a bundle that is compiled for it.
fn unet_error(weights: &Path, precision: &str) -> f64 {
    let folder = scratch("full_size");
    let bundle = folder.join(format!("sd21-{precision}.kiln"));
    kiln_ok(&[
        "compile",
        "--model",
        "sd21-base",
        "--weights",
        arg(weights),
        "--precision",
        precision,
        "--budget",
        "1GiB",
        "-o",
        arg(&bundle),
    ]);
    let timestep = folder.join("t981.npy");
    harness::write_npy(&timestep, &[981.0]);
    let out = folder.join(format!("eps-{precision}.npy"));
    let latent = sd21("latent_initial.npy");
    harness::eval_unet(&bundle, &latent, &timestep, &sd21("text_embedding.npy"), &out);
    std::fs::remove_file(&bundle).expect("the bundle was written here");
    relative_l2(&npy(&out), &npy(&sd21("unet_t981.npy")))
}
