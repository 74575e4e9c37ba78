//! The small model from checkpoint to picture, against tensors made by diffusers. FP16 storage by
//! itself is in `make test-full` only.

mod harness;

use harness::{arg, compiled, emoji, kiln_ok, npy, psnr, scratch, shared};
use kiln_testkit::{bounds, relative_l2, sampled};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The prompts of the references, by number.
const PROMPTS: [&str; 3] =
    ["a red heart", "a slice of pizza on a blue background", "a grinning face, flat style"];

fn bundle(precision: &str, extra: &[&str]) -> PathBuf {
    compiled(&[&["--precision", precision][..], extra].concat())
}

fn fp32() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(shared)
}

fn fp16() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| bundle("fp16", &[]))
}

/// A storage type with the error that it may cause.
struct Precision {
    precision: &'static str,
    bundle: fn() -> &'static Path,
    /// Largest relative L2 error of a network.
    limit: f64,
    /// Least PSNR of a picture.
    picture_db: f64,
}

/// FP32, and in `make test-full` FP16, whose kernels take a driver minutes to compile.
fn precisions() -> impl Iterator<Item = &'static Precision> {
    const ALL: [Precision; 2] = [
        Precision {
            precision: "fp32",
            bundle: fp32,
            limit: bounds::NETWORK_FP32,
            picture_db: 40.0,
        },
        Precision {
            precision: "fp16",
            bundle: fp16,
            limit: bounds::NETWORK_FP16,
            picture_db: 30.0,
        },
    ];
    sampled(&ALL, ALL.len())
}

fn int8() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| bundle("int8", &[]))
}

/// Runs prompt `k` from the reference's initial latent; returns the folder of the dump.
fn run(bundle: &Path, k: usize, name: &str) -> PathBuf {
    let folder = scratch(&format!("emoji/{name}-{k}"));
    let latent = emoji(&format!("{k}-init.npy"));
    let picture = folder.join("out.png");
    let report = folder.join("report.json");
    kiln_ok(&[
        "run",
        arg(bundle),
        "--prompt",
        PROMPTS[k],
        "--latent",
        arg(&latent),
        "--steps",
        "20",
        "--guidance",
        "7.5",
        "--dump",
        arg(&folder),
        "--report",
        arg(&report),
        "-o",
        arg(&picture),
    ]);
    folder
}

fn expect_close(found: &Path, expected: &Path, limit: f64) {
    let error = relative_l2(&npy(found), &npy(expected));
    assert!(error <= limit, "{}: relative L2 {error:e} over {limit:e}", found.display());
}

#[test]
fn text_embeddings_agree() {
    for &Precision { precision, bundle, limit, .. } in precisions() {
        let bundle = bundle();
        for k in 0..PROMPTS.len() {
            let out = scratch("emoji").join(format!("text-{precision}-{k}.npy"));
            let tokens = format!("tokens={}", arg(&emoji(&format!("{k}-ids.npy"))));
            kiln_ok(&[
                "eval",
                arg(bundle),
                "--network",
                "text_encoder",
                "--input",
                &tokens,
                "--output",
                arg(&out),
            ]);
            expect_close(&out, &emoji(&format!("{k}-text.npy")), limit);
        }
    }
}

#[test]
fn unet_passes_agree() {
    let timestep = scratch("emoji").join("t951.npy");
    harness::write_npy(&timestep, &[951.0]);
    for &Precision { precision, bundle, limit, .. } in precisions() {
        let bundle = bundle();
        for k in 0..PROMPTS.len() {
            let contexts =
                [(format!("{k}-text.npy"), "cond"), ("uncond-text.npy".into(), "uncond")];
            for (context, branch) in contexts {
                let out = scratch("emoji").join(format!("eps-{precision}-{k}-{branch}.npy"));
                let latent = emoji(&format!("{k}-init.npy"));
                harness::eval_unet(bundle, &latent, &timestep, &emoji(&context), &out);
                expect_close(&out, &emoji(&format!("{k}-eps-{branch}.npy")), limit);
            }
        }
    }
}

#[test]
fn the_decoder_agrees() {
    for &Precision { precision, bundle, limit, .. } in precisions() {
        let bundle = bundle();
        let out = scratch("emoji").join(format!("image-{precision}.npy"));
        let latent = format!("latent={}", arg(&emoji("1-latents-20.npy")));
        kiln_ok(&[
            "eval",
            arg(bundle),
            "--network",
            "decoder",
            "--input",
            &latent,
            "--output",
            arg(&out),
        ]);
        expect_close(&out, &emoji("1-image.npy"), limit);
    }
}

#[test]
fn pictures_agree() {
    for &Precision { precision, bundle, limit, picture_db } in precisions() {
        for k in 0..PROMPTS.len() {
            let folder = run(bundle(), k, precision);
            // The dump holds both prompts, the negative one first.
            let embeddings = npy(&folder.join("embedding.npy"));
            let (negative, positive) = embeddings.split_at(embeddings.len() / 2);
            let expected = [emoji("uncond-text.npy"), emoji(&format!("{k}-text.npy"))];
            assert!(relative_l2(negative, &npy(&expected[0])) <= limit);
            assert!(relative_l2(positive, &npy(&expected[1])) <= limit);
            let db =
                psnr(&npy(&folder.join("decoded.npy")), &npy(&emoji(&format!("{k}-image.npy"))));
            assert!(db >= picture_db, "{precision}, prompt {k}: {db:.1} dB");
            if precision != "fp32" {
                continue;
            }
            for (step, limit) in bounds::LATENTS_FP32 {
                let found = folder.join(format!("latent_{step:03}.npy"));
                expect_close(&found, &emoji(&format!("{k}-latents-{step:02}.npy")), limit);
            }
        }
    }
}

/// Weights off by up to 1 % each, independently of one another, move a network's output by less
/// than that where outputs add up from many of them; a wrong scale moves it by its whole size.
#[test]
fn networks_and_pictures_agree_with_int8_weights() {
    const K: usize = 1;
    let folder = run(int8(), K, "int8");
    let embeddings = npy(&folder.join("embedding.npy"));
    let positive = &embeddings[embeddings.len() / 2..];
    assert!(relative_l2(positive, &npy(&emoji(&format!("{K}-text.npy")))) <= 1e-2);
    expect_close(&folder.join("latent_001.npy"), &emoji("1-latents-01.npy"), 1e-2);
    let db = psnr(&npy(&folder.join("decoded.npy")), &npy(&emoji("1-image.npy")));
    assert!(db >= 30.0, "{db:.1} dB");

    let account = inspect(int8());
    let tensors = account["tensors"].as_array().expect("a list");
    let storages: Vec<_> = tensors.iter().filter_map(|t| t["storage"].as_str()).collect();
    let narrow = storages.iter().filter(|s| **s == "i8").count();
    assert!(narrow > 250 && storages.len() == tensors.len(), "{narrow} of {}", tensors.len());
    for tensor in tensors {
        let error = tensor["relative_error"].as_f64().expect("it was measured");
        assert!(error <= 1e-2, "{tensor}");
    }
    let bytes = |bundle| inspect(bundle)["weights"]["resident_bytes"].as_u64().expect("bytes");
    assert!(bytes(int8()) * 10 < bytes(fp32()) * 3);
}

#[test]
fn streamed_weights_halved_values_and_two_passes_give_the_same_picture() {
    // Enough for the process and its kernels, too little to keep the U-Net's weights.
    let refusal = harness::kiln_err(
        &[
            "compile",
            "--model",
            "emoji-256",
            "--precision",
            "fp16",
            "--guidance-batch",
            "1",
            "--budget",
            "10MiB",
            "-o",
            "target/never.kiln",
        ],
        1,
    );
    let smallest = refusal.split("smallest feasible budget is ").nth(1).expect("it names one");
    let mib: f64 = smallest.split(' ').next().and_then(|n| n.parse().ok()).expect("in MiB");
    let budget = format!("{}", ((mib + 0.1) * 1048576.0) as u64);
    let small = bundle("fp16", &["--guidance-batch", "1", "--budget", &budget]);
    let plan = inspect(&small);
    let taken = plan["attempts"].as_array().and_then(|a| a.last()).expect("a strategy was taken");
    assert!(taken["strategy"].as_str().expect("text").ends_with("activations in FP16"), "{taken}");
    assert_eq!(plan["manifest"]["guidance_batch"], 1);
    assert!(plan["weights"]["streamed_bytes_a_pass"].as_u64().expect("bytes") > 0);
    let folder = run(&small, 0, "small");
    let db = psnr(&npy(&folder.join("decoded.npy")), &npy(&emoji("0-image.npy")));
    assert!(db >= 40.0, "{db:.1} dB");
}

#[test]
fn a_run_keeps_its_plan() {
    let folder = run(fp32(), 1, "report");
    let text = std::fs::read_to_string(folder.join("report.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let plan = inspect(fp32());
    assert_eq!(report["measured"]["arena_bytes"], plan["memory"]["arena_bytes"]);
    let slots = plan["memory"]["slot_bytes"].as_array().expect("a list");
    let slot_bytes: u64 = slots.iter().filter_map(|s| s.as_u64()).sum();
    assert_eq!(report["measured"]["slot_bytes"], slot_bytes);
    let (peak, budget) =
        (&report["measured"]["process_peak_bytes"], &report["planned"]["budget_bytes"]);
    assert!(peak.as_u64().expect("Linux tells") <= budget.as_u64().expect("bytes"), "{report}");
}

fn inspect(bundle: &Path) -> serde_json::Value {
    serde_json::from_str(&kiln_ok(&["inspect", arg(bundle), "--json"])).expect("JSON")
}
