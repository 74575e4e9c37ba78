//! Steps that cost less: the variants of the U-Net in one plan, against diffusers.

mod harness;

use harness::{arg, emoji, kiln, kiln_ok, npy, scratch};
use kiln_bundle::BundleFile;
use kiln_bundle::plan::{BlockKind, Plan, Role};
use kiln_testkit::{bounds, relative_l2};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The small model with its variants.
fn bundle() -> &'static PathBuf {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| compile("fast", &["--fast"]))
}

fn compile(name: &str, more: &[&str]) -> PathBuf {
    let path = scratch("fast").join(format!("{name}.kiln"));
    let fixed = ["compile", "--model", "emoji-256", "--no-prepare", "-o", arg(&path)];
    kiln_ok(&[&fixed[..], more].concat());
    path
}

fn plan(path: &Path) -> Plan {
    BundleFile::open(path).expect("it was compiled").plan().clone()
}

/// Twenty steps of DDIM from the reference's noise.
fn expect_reference(name: &str, cheaper: &[&str]) {
    let folder = scratch(&format!("fast/{name}"));
    let (picture, latent) = (folder.join("out.png"), emoji("0-init.npy"));
    let fixed = ["run", arg(bundle()), "--prompt", "a red heart", "--steps", "20"];
    let files = ["--latent", arg(&latent), "--dump", arg(&folder), "-o", arg(&picture)];
    kiln_ok(&[&fixed[..], cheaper, &files[..]].concat());
    let found = npy(&folder.join("latent_020.npy"));
    let expected = npy(&emoji(&format!("0-{name}-latents-20.npy")));
    let error = relative_l2(&found, &expected);
    println!("{name}: relative L2 {error:.2e}");
    assert!(error <= bounds::RUN_FP32, "{name}: relative L2 {error:e} over the bound");
}

#[test]
fn guidance_in_an_interval_equals_diffusers() {
    expect_reference("interval", &["--guidance-interval", "0:0.5"]);
}

#[test]
fn a_value_of_the_inner_levels_for_three_steps_equals_diffusers() {
    expect_reference("cached", &["--guidance-interval", "0:0.5", "--cache-interval", "3"]);
}

/// GPUs choose tiles by the number of rows; variants of one branch take those of the packed weights.
#[test]
fn variants_of_gpus_read_the_same_weights() {
    for device in ["gpu", "nvidia"] {
        let budget = ["compile", "--model", "emoji-256", "--budget-sweep", "1GiB..1GiB"];
        let told = kiln_ok(&[&budget[..], &["--fast", "--device", device]].concat());
        assert!(told.contains("--fast 3"), "{device}: {told}");
    }
}

#[test]
fn whole_steps_are_those_of_a_bundle_without_variants() {
    let picture = |bundle: &Path, name: &str| {
        let out = scratch("fast").join(name);
        let fixed = ["run", arg(bundle), "--prompt", "a rocket", "--steps", "2"];
        kiln_ok(&[&fixed[..], &["-o", arg(&out)]].concat());
        std::fs::read(out).expect("it was written")
    };
    let plain = compile("plain", &[]);
    assert_eq!(picture(bundle(), "with.png"), picture(&plain, "without.png"));
    let out = scratch("fast").join("refused.png");
    let refused = kiln(&["run", arg(&plain), "-p", "a", "--fast", "1", "-o", arg(&out)]);
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(message.contains("compile it with --fast"), "{message}");

    // No weight is stored or resident twice.
    let (with, without) = (plan(bundle()), plan(&plain));
    let bytes = |plan: &Plan, kind: BlockKind| -> u64 {
        plan.blocks.iter().filter(|b| b.kind == kind).map(|b| b.len_bytes).sum()
    };
    for kind in [BlockKind::Weights, BlockKind::Constants] {
        assert_eq!(bytes(&with, kind), bytes(&without, kind), "{kind:?}");
    }
    let launches = |role| {
        let network = with.with_role(role).expect("it is compiled with --fast");
        with.networks[network].steps.len()
    };
    assert!(launches(Role::ShallowDenoiser) * 10 < launches(Role::Denoiser));
    assert_eq!(launches(Role::ShallowConditionalDenoiser), launches(Role::ShallowDenoiser));
}
