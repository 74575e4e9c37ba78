//! Stable Diffusion 2.1-base at full size, with synthetic values, inside 1 GiB.

mod harness;

use harness::{arg, kiln_ok, npy, relative_l2, scratch, sd21};
use std::process::Command;

/// Weights are streamed from a bundle of 5 GB, so the disk needs room for two of them.
#[test]
fn a_unet_pass_agrees_under_a_budget_of_1_gib() {
    let folder = scratch("full_size");
    let (weights, bundle) = (folder.join("sd21.safetensors"), folder.join("sd21.kiln"));
    let synth = Command::new(env!("CARGO"))
        .args(["run", "--release", "--quiet", "-p", "kiln-synth", "--", arg(&weights)])
        .status()
        .expect("cargo runs");
    assert!(synth.success(), "writing the synthetic checkpoint");
    kiln_ok(&[
        "compile",
        "--model",
        "sd21-base",
        "--weights",
        arg(&weights),
        "--budget",
        "1GiB",
        "-o",
        arg(&bundle),
    ]);
    std::fs::remove_file(&weights).expect("the checkpoint was written here");
    let timestep = folder.join("t981.npy");
    harness::write_npy(&timestep, &[981.0]);
    let out = folder.join("eps.npy");
    let latent = sd21("latent_initial.npy");
    harness::eval_unet(&bundle, &latent, &timestep, &sd21("text_embedding.npy"), &out);
    let error = relative_l2(&npy(&out), &npy(&sd21("unet_t981.npy")));
    std::fs::remove_file(&bundle).expect("the bundle was written here");
    assert!(error <= 1e-4, "relative L2 {error:e}");
}
