//! What is not finite is told: in a checkpoint, in FP16, and in a run.

use super::harness::{
    arg, emoji, eval_unet, kiln_err, kiln_ok, npy, root, write_npy, write_shaped_npy,
};
use super::{bundle, empty};
use half::f16;
use kiln_compiler::weights;
use kiln_testkit::{bounds, every, relative_l2};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A convolution of the U-Net's middle.
const CONV: &str = "model.diffusion_model.middle_block.0.in_layers.2.weight";
/// A linear layer whose input is a few sines and cosines.
const LINEAR: &str = "model.diffusion_model.time_embed.0.weight";

/// Writes the small model's checkpoint in FP16, with value 7 of one tensor in FP32 replaced.
fn checkpoint(path: &Path, changed: &str, value: f32) {
    let source = weights::open(&root().join("models/emoji-256.safetensors.zst")).expect("it ships");
    let (mut header, mut data) = (Map::new(), Vec::<u8>::new());
    for info in source.tensors() {
        let mut values = source.read_f32(&info.name).expect("it ships");
        let start = data.len();
        let dtype = if info.name == changed {
            values[7] = value;
            data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            "F32"
        } else {
            data.extend(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()));
            "F16"
        };
        let offsets = [start, data.len()];
        let entry = json!({ "dtype": dtype, "shape": info.shape, "data_offsets": offsets });
        header.insert(info.name.clone(), entry);
    }
    let header = Value::from(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    fs::write(path, file).expect("the target folder can be written");
}

#[test]
fn a_checkpoint_with_a_value_that_is_not_finite_is_refused_with_the_tensors_name() {
    let folder = empty("not-finite");
    let (weights, output) = (folder.join("w.safetensors"), folder.join("x.kiln"));
    let compile = ["compile", "--model", "emoji-256", "--weights", arg(&weights)];
    for (value, precision) in [(f32::NAN, "fp32"), (f32::NEG_INFINITY, "int8")] {
        checkpoint(&weights, CONV, value);
        let line =
            kiln_err(&[&compile[..], &["--precision", precision, "-o", arg(&output)]].concat(), 2);
        assert!(line.contains(&format!("value 7 of `{CONV}` is {value}")), "{line}");
        assert_eq!(fs::read_dir(&folder).expect("it is there").count(), 1);
    }
}

/// The output of the U-Net.
fn eps(bundle: &Path, name: &str) -> PathBuf {
    let (output, timestep) = (bundle.with_file_name(name), bundle.with_file_name("t.npy"));
    write_npy(&timestep, &[951.0]);
    eval_unet(bundle, &emoji("0-init.npy"), &timestep, &emoji("0-text.npy"), &output);
    output
}

#[test]
fn what_fp16_cannot_hold_is_stored_in_fp32() {
    let folder = empty("overflow");
    let at = |name: &str| folder.join(name);
    checkpoint(&at("w.safetensors"), LINEAR, 1e5);
    let weights = at("w.safetensors");
    let compile = |precision: &str, name: &str| {
        let fixed = ["compile", "--model", "emoji-256", "--with-encoder", "--no-prepare"];
        let output = at(name);
        let more = ["--weights", arg(&weights), "--precision", precision, "-o", arg(&output)];
        (kiln_ok(&[&fixed[..], &more].concat()), output)
    };
    let (said, half) = compile("fp16", "fp16.kiln");
    let expected = format!("stored in FP32, as FP16 cannot hold its values: {LINEAR}\n");
    assert!(said.contains(&expected), "{said}");
    let (said, whole) = compile("fp32", "fp32.kiln");
    assert!(!said.contains("stored in FP32"), "{said}");
    // Only in `make test-full`: a driver compiles all kernels once more for FP16.
    if every(2) > 1 {
        return;
    }
    let (half, whole) = (npy(&eps(&half, "fp16.npy")), npy(&eps(&whole, "fp32.npy")));
    let error = relative_l2(&half, &whole);
    println!("relative L2 {error:.2e}");
    assert!(error <= bounds::NETWORK_FP16, "{error:e}");
}

#[test]
fn doctor_finds_the_op_that_leaves_the_finite_range() {
    let folder = empty("doctor");
    let (weights, sick) = (folder.join("w.safetensors"), folder.join("x.kiln"));
    checkpoint(&weights, CONV, f32::MAX);
    let compile = ["compile", "--model", "emoji-256", "--with-encoder", "--weights", arg(&weights)];
    kiln_ok(&[&compile[..], &["-o", arg(&sick)]].concat());
    let line = kiln_err(&["doctor", arg(&sick)], 1);
    assert!(line.contains("middle_block.0") && line.contains(" of unet is the first op"), "{line}");
    let picture = folder.join("o.png");
    let line = kiln_err(&["run", arg(&sick), "-p", "a", "-o", arg(&picture)], 1);
    assert!(line.contains("unet gives numbers that are not finite at step 1"), "{line}");
    assert!(kiln_ok(&["doctor", arg(bundle())]).contains("all ops of 7 networks are finite"));
}

#[test]
fn a_run_that_leaves_the_finite_range_stops_at_its_step() {
    let folder = empty("run");
    let (latent, picture) = (folder.join("x.npy"), folder.join("out.png"));
    write_shaped_npy(&latent, &[1, 4, 32, 32], 1e38);
    let run = ["run", arg(bundle()), "-p", "a", "--steps", "4", "--sampler", "euler"];
    let line = kiln_err(&[&run[..], &["--latent", arg(&latent), "-o", arg(&picture)]].concat(), 1);
    assert!(line.contains("unet gives numbers that are not finite at step 1"), "{line}");
    assert!(!picture.exists());
    for guidance in ["1e30", "inf", "NaN", "-1001"] {
        let guidance = format!("--guidance={guidance}");
        let line = kiln_err(&[&run[..], &[&guidance, "-o", arg(&picture)]].concat(), 2);
        assert!(line.contains("it must be from -1000 to 1000"), "{line}");
    }
}
