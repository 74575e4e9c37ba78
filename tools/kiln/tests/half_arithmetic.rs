//! The shipped model with Mali's half arithmetic, against tensors made by diffusers.
//!
//! A device that has no half arithmetic refuses the bundle. There, the same bundle is run with what
//! the tests of the kernels put in place of half arithmetic, which rounds as it does.

mod harness;

use harness::{arg, emoji, kiln, kiln_ok, npy, scratch};
use kiln_bundle::BundleWriter;
use kiln_bundle::plan::HALF_EXTENSION;
use kiln_compiler::device::DeviceProfile;
use kiln_compiler::plan::Planned;
use kiln_compiler::request::PlanRequest;
use kiln_compiler::storage::Storage;
use kiln_compiler::{emit, plan_model, weights};
use kiln_testkit::half::Way;
use kiln_testkit::{Runner, bounds, every, relative_l2};
use std::path::{Path, PathBuf};

/// The plan of emoji-256 for Mali, everything in FP16.
fn planned() -> Planned {
    let (name, profile) = DeviceProfile::load("mali-g78").expect("it ships");
    let request = PlanRequest::new(&profile, Storage::FP16, 1 << 30);
    let model = kiln_models::find("emoji-256").expect("it ships");
    plan_model(&model, &name, "fp16", &request).expect("it fits")
}

fn write(planned: &Planned, name: &str) -> PathBuf {
    let path = scratch("half").join(name);
    let source = weights::open(&harness::root().join("models/emoji-256.safetensors.zst"));
    let source = source.expect("it ships");
    emit::emit(
        std::slice::from_ref(planned),
        source.as_ref(),
        kiln_models::MERGES,
        BundleWriter::create(&path).expect("it can be written"),
        &mut |_| {},
    )
    .expect("it is written");
    path
}

/// The same plan for a device that builds half arithmetic in that way.
fn built(mut planned: Planned, way: Way) -> Planned {
    let plan = &mut planned.plan;
    plan.sources.iter_mut().for_each(|source| *source = way.source(source));
    plan.kernels.iter_mut().for_each(|kernel| kernel.half_arithmetic = false);
    plan.requirements.extensions.clear();
    planned
}

fn expect_close(found: &Path, expected: &Path) {
    let error = relative_l2(&npy(found), &npy(expected));
    println!("{}: relative L2 {error:.1e}", found.display());
    assert!(error <= bounds::NETWORK_FP16, "{}: relative L2 {error:e}", found.display());
}

#[test]
fn networks_in_half_arithmetic_agree() {
    let way = Runner::shared().half();
    let planned = planned();
    let in_halves = planned.plan.kernels.iter().filter(|kernel| kernel.half_arithmetic).count();
    assert!(in_halves > 30, "{in_halves} kernels");
    assert_eq!(planned.plan.requirements.extensions, [HALF_EXTENSION]);
    let folder = scratch("half");
    let whole = write(&planned, "mali.kiln");
    let run = kiln(&["run", arg(&whole), "-p", "a", "--steps", "1", "-o", "target/never.png"]);
    if way == Way::Declared {
        assert!(run.status.success());
    } else {
        let message = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(3), "{message}");
        let lack = format!("lacks the OpenCL extension {HALF_EXTENSION}, which the bundle needs");
        assert!(message.contains(&lack), "{message}");
    }

    let bundle = write(&built(planned, way), "built.kiln");
    let text = folder.join("text.npy");
    let tokens = format!("tokens={}", arg(&emoji("1-ids.npy")));
    let eval = |network, input: &str, output: &Path| {
        let fixed = ["eval", arg(&bundle), "--network", network];
        kiln_ok(&[&fixed[..], &["--input", input, "--output", arg(output)]].concat());
    };
    eval("text_encoder", &tokens, &text);
    expect_close(&text, &emoji("1-text.npy"));

    let (timestep, eps) = (folder.join("t951.npy"), folder.join("eps.npy"));
    harness::write_npy(&timestep, &[951.0]);
    harness::eval_unet(&bundle, &emoji("1-init.npy"), &timestep, &emoji("1-text.npy"), &eps);
    expect_close(&eps, &emoji("1-eps-cond.npy"));

    // Where half arithmetic is emulated, the decoder takes as long as all of the above, thrice.
    if way == Way::Emulated && every(2) > 1 {
        return;
    }
    let image = folder.join("image.npy");
    eval("decoder", &format!("latent={}", arg(&emoji("1-latents-20.npy"))), &image);
    expect_close(&image, &emoji("1-image.npy"));
}
