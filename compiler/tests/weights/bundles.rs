//! All ways to give the same values make the same weights in the bundle, byte for byte.

use std::path::Path;

use kiln_bundle::format::{BundleFile, BundleWriter};
use kiln_bundle::plan::{Manifest, Schedule, Size};
use kiln_compiler::device::DeviceProfile;
use kiln_compiler::plan::Planned;
use kiln_compiler::request::PlanRequest;
use kiln_compiler::storage::Storage;
use kiln_compiler::{Model, emit, plan_model, weights};
use kiln_graphs::config::ModelConfig;
use kiln_ir::Graph;

use crate::{fixtures, layouts};

struct Emoji(&'static ModelConfig);

impl Model for Emoji {
    fn text_encoder(&self, batch: usize) -> anyhow::Result<Graph> {
        Ok(kiln_graphs::text_encoder(self.0, batch)?)
    }
    fn unet(&self, batch: usize) -> anyhow::Result<Graph> {
        Ok(kiln_graphs::unet(self.0, batch)?)
    }
    fn decoder(&self) -> anyhow::Result<Graph> {
        Ok(kiln_graphs::vae_decoder(self.0)?)
    }
    fn manifest(&self) -> Manifest {
        Manifest {
            model: self.0.name.clone(),
            precision: String::new(),
            profile: String::new(),
            adapted: vec![],
            compiler: String::new(),
            image: Size { width_px: 256, height_px: 256 },
            latent: Size { width_px: 32, height_px: 32 },
            latent_channels: self.0.latent_channels as u32,
            context_tokens: self.0.context_tokens as u32,
            context_channels: self.0.text.width as u32,
            schedule: Schedule::default(),
            guidance_branches: 0,
            guidance_batch: 0,
            fast: false,
            guidance_channels: 0,
            condition_channels: 0,
            timestep_rows: 0,
        }
    }
}

fn planned() -> Planned {
    let model = Emoji(kiln_graphs::config::model("emoji-256").unwrap());
    let (name, profile) = DeviceProfile::load("cpu-avx512").unwrap();
    let request = PlanRequest::new(&profile, Storage::FP16, 1 << 30);
    plan_model(&model, &name, "fp16", &request).unwrap()
}

/// The weights section of the bundle made from a checkpoint.
fn weights_of(planned: &Planned, checkpoint: &Path, bundle: &Path) -> Vec<u8> {
    let source = weights::open(checkpoint).unwrap();
    let writer = BundleWriter::create(bundle).unwrap();
    emit::emit(std::slice::from_ref(planned), source.as_ref(), b"merges", writer, &mut |_| {})
        .unwrap();
    let bundle = BundleFile::open(bundle).unwrap();
    let mut bytes = vec![0; bundle.weights_len_bytes() as usize];
    bundle.read_weights(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn all_layouts_make_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let planned = planned();
    let at = |name: &str| folder.path().join(name);
    let expected = weights_of(&planned, &fixtures::emoji_path(), &at("single.kiln"));
    assert!(expected.len() > 10 << 20, "{} bytes", expected.len());

    let other = fixtures::safetensors(&layouts::other_layout());
    fixtures::write(&at("other.safetensors"), &other);
    let found = weights_of(&planned, &at("other.safetensors"), &at("other.kiln"));
    assert!(found == expected, "single file in another layout");

    let listed = fixtures::emoji_diffusers();
    fixtures::write_diffusers(&at("diffusers"), &listed);
    assert!(
        weights_of(&planned, &at("diffusers"), &at("diffusers.kiln")) == expected,
        "diffusers folder"
    );

    fixtures::write_diffusers(&at("sharded"), &listed);
    let (file, stem) = ("unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model");
    std::fs::remove_file(at("sharded").join(file)).unwrap();
    let tensors = fixtures::in_file(&listed, file);
    fixtures::write_sharded(&at("sharded/unet"), stem, &tensors, 3);
    assert!(
        weights_of(&planned, &at("sharded"), &at("sharded.kiln")) == expected,
        "sharded folder"
    );

    for tensor in fixtures::emoji() {
        let descr = if tensor.dtype == "F16" { "<f2" } else { "<f4" };
        let bytes = fixtures::npy(descr, false, &tensor.shape, &tensor.bytes);
        fixtures::write(&at("npy").join(format!("{}.npy", tensor.name)), &bytes);
    }
    assert!(weights_of(&planned, &at("npy"), &at("npy.kiln")) == expected, ".npy folder");
}
