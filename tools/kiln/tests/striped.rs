//! A decoder that computes its largest feature maps by stripes makes the same picture as one that
//! holds them.

mod harness;

use harness::{arg, compiled, emoji, kiln_err, kiln_ok, npy, scratch, shared};
use kiln_testkit::{bounds, relative_l2};
use std::path::{Path, PathBuf};

const FOLDER: &str = "striped";

/// The smallest budget in bytes, rounded up to MiB, from the refusal of a smaller one.
fn smallest_mib() -> u64 {
    let path = scratch(FOLDER).join("none.kiln");
    let refused =
        kiln_err(&["compile", "--model", "emoji-256", "--budget", "64MiB", "-o", arg(&path)], 1);
    let (_, rest) = refused.split_once("smallest feasible budget is ").expect("it is named");
    let mib: f64 = rest.split(' ').next().and_then(|n| n.parse().ok()).expect("a number of MiB");
    mib.ceil() as u64
}

fn decoded(bundle: PathBuf, name: &str) -> (PathBuf, Vec<f32>) {
    let picture = scratch(FOLDER).join(name);
    let latent = format!("latent={}", arg(&emoji("1-latents-20.npy")));
    let output = arg(&picture);
    kiln_ok(&[
        "eval",
        arg(&bundle),
        "--network",
        "decoder",
        "--input",
        &latent,
        "--output",
        output,
    ]);
    let values = npy(&picture);
    (bundle, values)
}

fn strategy(bundle: &Path) -> String {
    let plan = kiln_ok(&["inspect", arg(bundle), "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&plan).expect("it is JSON");
    let taken = plan["attempts"].as_array().and_then(|a| a.last()).expect("a strategy was taken");
    taken["strategy"].as_str().expect("it has a name").to_string()
}

/// Kernels of one device class add in one order, but Winograd's transforms differ from the
/// definition: by 1e-5 of the picture at most, over about thirty layers.
#[test]
fn stripes_have_no_seams() {
    let budget = format!("{}MiB", smallest_mib());
    let (small, striped) = decoded(compiled(&["--budget", &budget]), "striped.npy");
    let (large, whole) = decoded(shared(), "whole.npy");
    assert!(strategy(&small).contains("recomputed by stripes"), "{}", strategy(&small));
    assert!(!strategy(&large).contains("recomputed by stripes"), "{}", strategy(&large));
    let error = relative_l2(&striped, &whole);
    assert!(error <= 1e-5, "relative L2 {error:e}");
    let error = relative_l2(&striped, &npy(&emoji("1-image.npy")));
    assert!(error <= bounds::NETWORK_FP32, "relative L2 {error:e} to diffusers'");
    // A seam would be a few lines with more error than the others.
    let lines = striped.chunks(256).zip(whole.chunks(256)).map(|(s, w)| relative_l2(s, w));
    let worst = lines.fold(0.0, f64::max);
    assert!(worst <= bounds::NETWORK_FP32, "relative L2 of a line {worst:e}");
}
