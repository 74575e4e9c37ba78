//! Model configurations in the form that the compiler takes.

use anyhow::{Context, Result, anyhow, bail};
use kiln_bundle::plan::{self, Manifest, Role, Size};
use kiln_compiler::Model;
use kiln_graphs::TinyConfig;
use kiln_graphs::config::{self, ModelConfig};
use kiln_graphs::schedule::{self, BetaCurve, Prediction, Spacing};
use kiln_ir::Graph;
use std::path::{Path, PathBuf};

/// CLIP's merges, the same for every model.
pub const MERGES: &[u8] = include_bytes!("../../../graphs/assets/clip_merges.txt");

/// A configuration with its builders.
#[derive(Clone)]
pub struct ConfiguredModel(pub ModelConfig);

impl Model for ConfiguredModel {
    fn text_encoder(&self, batch: usize) -> Result<Graph> {
        Ok(kiln_graphs::text_encoder(&self.0, batch)?)
    }

    fn unet(&self, batch: usize) -> Result<Graph> {
        Ok(kiln_graphs::unet(&self.0, batch)?)
    }

    fn unet_with_deep(&self, batch: usize) -> Result<Graph> {
        Ok(kiln_graphs::unet_with_deep(&self.0, batch)?)
    }

    fn decoder(&self) -> Result<Graph> {
        Ok(kiln_graphs::vae_decoder(&self.0)?)
    }

    fn manifest(&self) -> Manifest {
        let c = &self.0;
        Manifest {
            model: c.name.clone(),
            precision: String::new(),
            profile: String::new(),
            adapted: vec![],
            compiler: String::new(),
            image: size([c.height_px, c.width_px]),
            latent: size(c.latent_px()),
            latent_channels: c.latent_channels as u32,
            context_tokens: c.context_tokens as u32,
            context_channels: c.text.width as u32,
            schedule: schedule(&c.schedule),
            guidance_branches: 0,
            guidance_batch: 0,
            fast: false,
            guidance_channels: c.unet.guidance_width.unwrap_or(0) as u32,
            condition_channels: c.unet.condition_channels as u32,
            timestep_rows: 0,
        }
    }
}

fn size([height, width]: [usize; 2]) -> Size {
    Size { width_px: width as u32, height_px: height as u32 }
}

/// The image encoder of a bundle.
#[derive(Clone)]
pub enum Encoder {
    /// None: the bundle makes images from noise alone.
    None,
    /// The model's own.
    Own,
    /// That of a tiny autoencoder.
    Tiny(TinyConfig),
}

/// The decoders of a bundle.
#[derive(Clone)]
pub enum Decoders {
    /// The model's own.
    Own,
    /// That of a tiny autoencoder.
    Tiny(TinyConfig),
    /// The model's own, and that of a tiny autoencoder.
    Both(TinyConfig),
}

/// The networks between images and latents that a bundle has.
#[derive(Clone)]
pub struct Autoencoder {
    /// The image encoder.
    pub encoder: Encoder,
    /// The decoders.
    pub decoders: Decoders,
}

/// A model with the networks between images and latents that a bundle has.
pub struct Assembled {
    /// The model.
    pub model: ConfiguredModel,
    /// The networks around its latents.
    pub around: Autoencoder,
}

impl Model for Assembled {
    fn text_encoder(&self, batch: usize) -> Result<Graph> {
        self.model.text_encoder(batch)
    }

    fn unet(&self, batch: usize) -> Result<Graph> {
        self.model.unet(batch)
    }

    fn unet_with_deep(&self, batch: usize) -> Result<Graph> {
        self.model.unet_with_deep(batch)
    }

    fn decoder(&self) -> Result<Graph> {
        self.model.decoder()
    }

    fn decoders(&self) -> Result<Vec<(Role, Graph)>> {
        let tiny = |sizes| kiln_graphs::tiny_decoder(&self.model.0, sizes);
        Ok(match &self.around.decoders {
            Decoders::Own => self.model.decoders()?,
            Decoders::Tiny(sizes) => vec![(Role::TinyDecoder, tiny(sizes)?)],
            Decoders::Both(sizes) => {
                let mut decoders = self.model.decoders()?;
                decoders.push((Role::TinyDecoder, tiny(sizes)?));
                decoders
            }
        })
    }

    fn encoder(&self) -> Result<Option<Graph>> {
        Ok(match &self.around.encoder {
            Encoder::None => None,
            Encoder::Own => Some(kiln_graphs::vae_encoder(&self.model.0)?),
            Encoder::Tiny(sizes) => Some(kiln_graphs::tiny_encoder(&self.model.0, sizes)?),
        })
    }

    fn manifest(&self) -> Manifest {
        self.model.manifest()
    }
}

/// A schedule as the manifest has it.
fn schedule(schedule: &schedule::Schedule) -> plan::Schedule {
    plan::Schedule {
        beta_start: schedule.beta_start,
        beta_end: schedule.beta_end,
        curve: match schedule.curve {
            BetaCurve::Linear => plan::BetaCurve::Linear,
            BetaCurve::ScaledLinear => plan::BetaCurve::ScaledLinear,
        },
        train_steps: schedule.train_steps as u32,
        zero_snr: schedule.zero_snr,
        prediction: match schedule.prediction {
            Prediction::Epsilon => plan::Prediction::Epsilon,
            Prediction::V => plan::Prediction::V,
            Prediction::Sample => plan::Prediction::Sample,
        },
        sampler: schedule.sampler.clone(),
        steps: schedule.steps as u32,
        guidance: schedule.guidance,
        spacing: match schedule.spacing {
            Spacing::Leading => plan::Spacing::Leading,
            Spacing::Trailing => plan::Spacing::Trailing,
            Spacing::Linspace => plan::Spacing::Linspace,
            Spacing::Karras => plan::Spacing::Karras,
        },
    }
}

/// The model with a name, or of a description, a file NAME.toml.
pub fn find(name: &str) -> Result<ConfiguredModel> {
    if let Some(stem) = name.strip_suffix(".toml") {
        let text = std::fs::read_to_string(name).with_context(|| format!("reading {name}"))?;
        let stem = Path::new(stem).file_name().unwrap_or_default().to_string_lossy();
        let config = config::parse(&stem, &text).map_err(|e| anyhow!("{name}: {}", e.what))?;
        return Ok(ConfiguredModel(config));
    }
    let known = || config::models().iter().map(|m| &*m.name).collect::<Vec<_>>().join(", ");
    let found = config::model(name);
    let found = found.with_context(|| {
        format!("no model '{name}': use one of {}, or a description NAME.toml", known())
    })?;
    Ok(ConfiguredModel(found.clone()))
}

/// The default weights of a model: its file in `models/`, see [`in_models`].
pub fn default_weights(config: &ModelConfig) -> Result<PathBuf> {
    match in_models(&config.weights_file) {
        Some(path) => Ok(path),
        None => bail!(
            "no weights for {}: models/{} is not there; pass --weights PATH \
             (a .safetensors or .safetensors.zst file, a diffusers folder, or a folder of .npy files)",
            config.name,
            config.weights_file
        ),
    }
}

/// The file with the encoder of a model whose checkpoint lacks it, if it is known.
pub fn default_encoder(config: &ModelConfig) -> Option<PathBuf> {
    config.encoder_file.as_deref().and_then(in_models)
}

/// A file in `models/`. The folder is searched in the working directory, above the program, and in
/// the checkout from which the program was built (for `cargo install`).
fn in_models(name: &str) -> Option<PathBuf> {
    let program = std::env::current_exe().unwrap_or_default();
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let above_program = program.ancestors().skip(1);
    let folders = [Path::new("")].into_iter().chain(above_program).chain([checkout.as_path()]);
    folders.map(|folder| folder.join("models").join(name)).find(|path| path.exists())
}
