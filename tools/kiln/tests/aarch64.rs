//! `kiln-run` on aarch64, by emulation: run by `tools/aarch64.sh` alone, which builds it and its
//! root folder.
//!
//! Drivers under emulation compile some ten times slower, so that `a_small_model_agrees` has the
//! shipped model's text encoder with a U-Net and a decoder of few kernels, and
//! `an_emoji_agrees` is the shipped model whole.

mod harness;

use harness::{arg, emoji, kiln_ok, npy, psnr, scratch};
use kiln_bundle::BundleWriter;
use kiln_compiler::device::DeviceProfile;
use kiln_compiler::request::PlanRequest;
use kiln_compiler::storage::Storage;
use kiln_compiler::weights::{self, StoredType, TensorInfo, TensorSource};
use kiln_compiler::{Model, emit, plan_model};
use kiln_graphs::config;
use kiln_ir::NodeKind;
use kiln_models::{ConfiguredModel, MERGES};
use kiln_testkit::{bounds, relative_l2};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The most that `kiln-run` may take, stripped.
const MAX_PROGRAM_BYTES: usize = 3 << 20;

/// ELF's number of the architecture.
const EM_AARCH64: [u8; 2] = [0xb7, 0];

/// The arm64 root folder.
fn root() -> PathBuf {
    let root = std::env::var_os("KILN_AARCH64_ROOT");
    PathBuf::from(root.expect("no KILN_AARCH64_ROOT: make test-aarch64 runs this test"))
}

/// Runs `kiln-run` of the root in a folder there with these files; returns that folder.
fn run_aarch64(name: &str, files: &[&Path], args: &[&str]) -> PathBuf {
    let root = root();
    let program = std::fs::read(root.join("usr/bin/kiln-run")).expect("it was built");
    assert_eq!(program[18..20], EM_AARCH64, "kiln-run is for another architecture");
    assert!(program.len() <= MAX_PROGRAM_BYTES, "kiln-run takes {} bytes", program.len());
    let folder = root.join("tmp").join(name);
    std::fs::create_dir_all(&folder).expect("the root can be written");
    for file in files {
        let to = folder.join(file.file_name().expect("a file"));
        std::fs::copy(file, to).expect("the root can be written");
    }
    let mut command = Command::new("chroot");
    command.arg(&root).args(["env", "-C"]).arg(format!("/tmp/{name}"));
    command.args(["HOME=/root", "kiln-run"]).args(args);
    let output = command.output().expect("chroot starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kiln-run {args:?}: {}\n{stderr}", output.status);
    folder
}

/// The shipped model's text encoder and sizes, with one level of a U-Net and of a decoder.
fn small_model() -> ConfiguredModel {
    let mut config = config::model("emoji-256").expect("it ships").clone();
    config.name = "small".into();
    (config.width_px, config.height_px) = (32, 32);
    let unet = &mut config.unet;
    (unet.channels, unet.heads, unet.res_blocks) = (vec![64], vec![1], 1);
    (unet.down_attention, unet.up_attention) = (vec![0], vec![0]);
    config.vae.channels = vec![32, 32];
    config.vae.res_blocks = 1;
    ConfiguredModel(config)
}

/// The shipped model's text encoder; every other weight is a pseudo-random number of the size that
/// keeps activations at theirs.
#[derive(Debug)]
struct SmallWeights {
    emoji: Box<dyn TensorSource>,
    tensors: Vec<TensorInfo>,
}

impl SmallWeights {
    fn new(model: &ConfiguredModel) -> Self {
        let graphs = [model.text_encoder(1), model.unet(1), model.decoder()];
        let mut shapes = BTreeMap::new();
        for graph in graphs.map(|graph| graph.expect("the sizes agree")) {
            for id in graph.ids() {
                let NodeKind::Weight(expr) = &graph.node(id).kind else { continue };
                let tensors = expr.tensors();
                shapes.extend(tensors.into_iter().map(|(key, s)| (key.to_string(), s.to_vec())));
            }
        }
        let info = |(name, shape)| TensorInfo { name, dtype: StoredType::F32, shape };
        let path = harness::root().join("models/emoji-256.safetensors.zst");
        SmallWeights {
            emoji: weights::open(&path).expect("it ships"),
            tensors: shapes.into_iter().map(info).collect(),
        }
    }
}

impl TensorSource for SmallWeights {
    fn path(&self) -> &Path {
        Path::new("small")
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_index(&self, index: usize, start: usize, out: &mut [f32]) -> anyhow::Result<()> {
        let TensorInfo { name, shape, .. } = &self.tensors[index];
        if name.starts_with("cond_stage_model.") {
            return self.emoji.read_f32_into(name, start, out);
        }
        // A norm's weights are about 1; a sum of `fan_in` products keeps its variance.
        let (mean, spread) = match (&shape[..], name.ends_with(".bias")) {
            (_, true) => (0.0, 0.1),
            ([_], false) => (1.0, 0.1),
            (shape, false) => (0.0, (3.0 / shape[1..].iter().product::<usize>() as f32).sqrt()),
        };
        let seed = name.bytes().fold(1u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
        for (index, value) in (start as u64..).zip(out) {
            let mut z = seed.wrapping_add(index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            *value = mean + spread * ((z >> 40) as f32 / (1u64 << 23) as f32 - 1.0);
        }
        Ok(())
    }
}

/// Compiles the small model, on this machine, for the CPUs of phones.
fn small_bundle() -> PathBuf {
    let path = scratch("aarch64").join("small.kiln");
    let model = small_model();
    let (name, profile) = DeviceProfile::load("cpu-128").expect("it ships");
    let request = PlanRequest::new(&profile, Storage::FP32, 1 << 30);
    let planned = plan_model(&model, &name, "fp32", &request).expect("it fits");
    let weights = SmallWeights::new(&model);
    let writer = BundleWriter::create(&path).expect("it can be written");
    emit::emit(&[planned], &weights, MERGES, writer, &mut |_| {}).expect("it is written");
    path
}

fn expect_close(found: &Path, expected: &Path, limit: f64) {
    let error = relative_l2(&npy(found), &npy(expected));
    assert!(error <= limit, "{}: relative L2 {error:e} over {limit:e}", found.display());
}

/// Both prompts' embeddings, the negative one first, against those of the reference.
fn expect_embeddings(folder: &Path) {
    let found = npy(&folder.join("embedding.npy"));
    let (negative, positive) = found.split_at(found.len() / 2);
    for (found, name) in [(negative, "uncond-text.npy"), (positive, "0-text.npy")] {
        let error = relative_l2(found, &npy(&emoji(name)));
        assert!(error <= bounds::NETWORK_FP32, "{name}: relative L2 {error:e}");
    }
}

#[test]
fn a_small_model_agrees() {
    let bundle = small_bundle();
    let args = ["small.kiln", "-p", "a red heart", "--steps", "2", "--dump", ".", "-o", "out.png"];
    let found = run_aarch64("small", &[&bundle], &args);
    expect_embeddings(&found);

    let here = scratch("aarch64/here");
    let picture = here.join("out.png");
    let run = ["run", arg(&bundle), "-p", "a red heart", "--steps", "2", "--dump", arg(&here)];
    kiln_ok(&[&run[..], &["-o", arg(&picture)]].concat());
    // Two results, each within the bound of a run.
    for name in ["latent_001.npy", "latent_002.npy", "decoded.npy"] {
        expect_close(&found.join(name), &here.join(name), 2.0 * bounds::RUN_FP32);
    }
}

#[test]
fn an_emoji_agrees() {
    let bundle = scratch("aarch64").join("emoji.kiln");
    kiln_ok(&["compile", "--model", "emoji-256", "--device", "cpu-128", "-o", arg(&bundle)]);
    let latent = emoji("0-init.npy");
    let args = ["emoji.kiln", "-p", "a red heart", "--latent", "0-init.npy", "--dump", "."];
    let found =
        run_aarch64("emoji", &[&bundle, &latent], &[&args[..], &["-o", "out.png"]].concat());
    expect_embeddings(&found);
    for (step, limit) in bounds::LATENTS_FP32 {
        let name = format!("latent_{step:03}.npy");
        expect_close(&found.join(name), &emoji(&format!("0-latents-{step:02}.npy")), limit);
    }
    let db = psnr(&npy(&found.join("decoded.npy")), &npy(&emoji("0-image.npy")));
    assert!(db >= 40.0, "{db:.1} dB");
}
