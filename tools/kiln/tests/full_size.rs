//! Stable Diffusion 2.1-base at full size inside 1 GiB, against Stability's own implementation.
//!
//! The checkpoint's values are made as the compiler asks for them, so that the disk needs room for
//! one bundle only, 6 GB. FP32 streams nearly all of its weights. `KILN_EVERY=1` (make test-full)
//! adds the other precisions, all timesteps, a picture of four steps, and all of it again in about
//! the least memory, where the decoder is computed by stripes.

mod harness;
#[allow(dead_code, reason = "the command's")]
use harness::{arg, kiln_ok, npy, scratch, sd21};
use kiln_bundle::BundleWriter;
use kiln_compiler::device::DeviceProfile;
use kiln_compiler::quantize::{self, Choices};
use kiln_compiler::request::PlanRequest;
use kiln_compiler::storage::Storage;
use kiln_compiler::weights::{StoredType, TensorInfo, TensorSource};
use kiln_compiler::{emit, plan_model};
use kiln_synth::values::Values;
use kiln_testkit::{bounds, relative_l2};
use std::fs;
use std::path::{Path, PathBuf};

/// Precision, budget in MiB, most relative L2 error of a network.
const CASES: [(&str, u64, f64); 6] = [
    ("fp32", 1024, bounds::NETWORK_FP32),
    ("fp16", 1024, bounds::NETWORK_FP16),
    ("int8", 1024, bounds::NETWORK_INT8),
    ("fp32", 470, bounds::NETWORK_FP32),
    ("fp16", 330, bounds::NETWORK_FP16),
    ("int8", 290, bounds::NETWORK_INT8),
];

/// Values that a thread makes at a time.
const PIECE_ELEMS: usize = 1 << 18;

/// The synthetic checkpoint, of which nothing is stored.
#[derive(Debug)]
struct Synthetic {
    tensors: Vec<TensorInfo>,
    values: Vec<Values>,
}

impl Synthetic {
    fn new() -> Self {
        let checkpoint = kiln_synth::Checkpoint::plan(&[], kiln_synth::Precision::Fp32);
        let checkpoint = checkpoint.expect("the listing is in the program");
        let info = |t: &kiln_synth::Tensor| TensorInfo {
            name: t.name.clone(),
            dtype: StoredType::F32,
            shape: t.shape.clone(),
        };
        let values = |t: &kiln_synth::Tensor| Values::of(&t.name, &t.shape, 0);
        Synthetic {
            tensors: checkpoint.tensors().iter().map(info).collect(),
            values: checkpoint.tensors().iter().map(values).collect(),
        }
    }
}

impl TensorSource for Synthetic {
    fn path(&self) -> &Path {
        Path::new("synthetic")
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_index(&self, index: usize, start: usize, out: &mut [f32]) -> anyhow::Result<()> {
        let values = &self.values[index];
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = out.len().div_ceil(threads).max(PIECE_ELEMS);
        std::thread::scope(|scope| {
            for (index, part) in out.chunks_mut(share).enumerate() {
                scope.spawn(move || {
                    let (from, len) = (start + index * share, part.len());
                    let mut places = part.iter_mut();
                    values.generate(from, len, |v| {
                        if let Some(place) = places.next() {
                            *place = v;
                        }
                    });
                });
            }
        });
        Ok(())
    }
}

/// What `kiln compile --precision` makes of the checkpoint for this machine.
fn compile(weights: &Synthetic, precision: &str, budget_bytes: u64) -> PathBuf {
    let model = kiln_models::find("sd21-base").expect("it is known");
    let devices: serde_json::Value =
        serde_json::from_str(&kiln_ok(&["devices", "--json"])).expect("JSON");
    let profile = devices[0]["profile"].as_str().expect("a device with a profile");
    let (name, profile) = DeviceProfile::load(profile).expect("it ships");
    let measure = || {
        let graphs = quantize::weight_graphs(&model).expect("the sizes agree");
        quantize::measure(&graphs, weights, &mut |_| {}).expect("every tensor is there")
    };
    let choices = if precision == "int8" { measure() } else { Choices::default() };
    let storage = match precision {
        "fp32" => Storage::FP32,
        "fp16" => Storage::FP16,
        _ => Storage::int8(&choices),
    };
    let request = PlanRequest::new(&profile, storage, budget_bytes);
    let planned = plan_model(&model, &name, precision, &request).expect("it fits");
    let path = scratch("full_size").join(format!("sd21-{precision}.kiln"));
    let writer = BundleWriter::create(&path).expect("it can be written");
    emit::emit(&[planned], weights, kiln_models::MERGES, writer, &mut |_| {}).expect("written");
    path
}

/// Relative L2 error of a network's answer.
fn eval_error(bundle: &Path, network: &str, inputs: &[(&str, &Path)], expected: &str) -> f64 {
    let out = scratch("full_size").join(expected);
    let inputs: Vec<String> = inputs.iter().map(|(n, p)| format!("{n}={}", arg(p))).collect();
    let mut args = vec!["eval", arg(bundle), "--network", network, "--output", arg(&out)];
    args.extend(inputs.iter().flat_map(|input| ["--input", input]));
    kiln_ok(&args);
    relative_l2(&npy(&out), &npy(&sd21(expected)))
}

/// Relative L2 error of the latents of the reference's picture, made inside the budget.
fn picture_error(bundle: &Path, budget_bytes: u64) -> f64 {
    let folder = scratch("full_size");
    let settings = fs::read_to_string(sd21("golden.json")).expect("it is in the repository");
    let settings: serde_json::Value = serde_json::from_str(&settings).expect("JSON");
    let (latent, picture) = (sd21("latent_initial.npy"), folder.join("out.png"));
    let report = folder.join("report.json");
    let prompt = settings["prompt"].as_str().expect("text");
    let args = ["run", arg(bundle), "--prompt", prompt, "--latent", arg(&latent), "--steps", "4"];
    let more = ["--dump", arg(&folder), "--report", arg(&report), "-o", arg(&picture)];
    kiln_ok(&[&args[..], &more].concat());
    let report = fs::read_to_string(report).expect("it was written");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let peak_bytes = report["measured"]["process_peak_bytes"].as_u64().expect("Linux tells");
    println!("the process took {} of {} MiB", peak_bytes >> 20, budget_bytes >> 20);
    assert!(peak_bytes <= budget_bytes, "the process took {peak_bytes} bytes");
    relative_l2(&npy(&folder.join("latent_004.npy")), &npy(&sd21("ddim_latent_step4.npy")))
}

/// The most memory that this process ever took, in bytes.
fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}

#[test]
fn networks_agree_inside_their_budgets() {
    let every = std::env::var_os("KILN_EVERY").is_some();
    let timesteps = if every { &[981, 501, 1][..] } else { &[981] };
    let weights = Synthetic::new();
    let (tokens, text) = (sd21("tokens.npy"), sd21("text_embedding.npy"));
    let (latent, decoder_input) = (sd21("latent_initial.npy"), sd21("decoder_input.npy"));
    let mut wrong = Vec::new();
    for (precision, budget_mib, limit) in &CASES[..if every { CASES.len() } else { 1 }] {
        let budget_bytes = budget_mib << 20;
        let bundle = compile(&weights, precision, budget_bytes);
        let mut check = |what: &str, error: f64, limit: f64| {
            println!(
                "{precision}, {budget_mib} MiB, {what}: relative L2 {error:.1e} of {limit:.0e}"
            );
            if error.is_nan() || error > limit {
                wrong.push(format!("{precision}, {budget_mib} MiB, {what}"));
            }
        };
        let inputs = [("tokens", tokens.as_path())];
        let error = eval_error(&bundle, "text_encoder", &inputs, "text_embedding.npy");
        check("text embedding", error, *limit);
        for t in timesteps {
            let timestep = scratch("full_size").join("timestep.npy");
            harness::write_npy(&timestep, &[*t as f32]);
            let inputs =
                [("latent", latent.as_path()), ("timestep", &timestep), ("context", &text)];
            let error = eval_error(&bundle, "unet", &inputs, &format!("unet_t{t}.npy"));
            check(&format!("U-Net at {t}"), error, *limit);
        }
        let inputs = [("latent", decoder_input.as_path())];
        check("decoder", eval_error(&bundle, "decoder", &inputs, "decoder_output.npy"), *limit);
        if every && *precision == "fp32" {
            check("latents after 4 steps", picture_error(&bundle, budget_bytes), bounds::RUN_FP32);
        }
        fs::remove_file(&bundle).expect("the bundle was written here");
    }
    assert!(wrong.is_empty(), "too far from the reference: {}", wrong.join(", "));
    // This process has compiled, and started others for all else.
    let peak_bytes = peak_bytes();
    println!("the compiler took {} MiB", peak_bytes >> 20);
    assert!(peak_bytes <= 1 << 30, "the compiler took {peak_bytes} bytes");
}
