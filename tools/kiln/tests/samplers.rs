//! The samplers on the small model, against latents made by diffusers.

mod harness;

use harness::{arg, emoji, kiln_ok, npy, scratch, shared};
use kiln_testkit::{bounds, relative_l2};
use std::path::PathBuf;
use std::sync::OnceLock;

fn bundle() -> &'static PathBuf {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(shared)
}

/// Twenty steps from the reference's noise, with fresh noise of seed 0 where a sampler wants it.
fn expect_reference(sampler: &str) {
    let folder = scratch(&format!("samplers/{sampler}"));
    let picture = folder.join("out.png");
    let latent = emoji("0-init.npy");
    let fixed = ["run", arg(bundle()), "--prompt", "a red heart", "--seed", "0", "--steps", "20"];
    let files = ["--latent", arg(&latent), "--dump", arg(&folder), "-o", arg(&picture)];
    kiln_ok(&[&fixed[..], &["--sampler", sampler], &files[..]].concat());
    let found = npy(&folder.join("latent_020.npy"));
    let expected = npy(&emoji(&format!("0-{sampler}-latents-20.npy")));
    let error = relative_l2(&found, &expected);
    println!("{sampler}: relative L2 {error:.2e}");
    assert!(error <= bounds::RUN_FP32, "{sampler}: relative L2 {error:e} over the bound");
}

#[test]
fn euler_equals_diffusers() {
    expect_reference("euler");
}

#[test]
fn euler_ancestral_equals_diffusers() {
    expect_reference("euler-a");
}

#[test]
fn dpm_solver_equals_diffusers() {
    expect_reference("dpm++2m");
}
