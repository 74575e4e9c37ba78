//! The encoder and the decoders of a bundle: the model's own, those of a tiny autoencoder, or both.

use anyhow::{Context, Result, bail};
use kiln_compiler::weights::joined::Joined;
use kiln_compiler::weights::tiny::{Half, TinyWeights};
use kiln_compiler::weights::{self, TensorSource};
use kiln_graphs::TinyConfig;
use kiln_graphs::config::ModelConfig;
use std::path::{Path, PathBuf};

use super::super::files;
use crate::model::{self, Autoencoder, Decoders, Encoder};

/// Networks between images and latents.
#[derive(clap::Args)]
#[group(skip)]
pub struct Args {
    /// Add the autoencoder's encoder to the bundle, for kiln run --init-image and --mask. Models for
    /// inpainting have it in any case
    #[arg(long)]
    pub with_encoder: bool,
    /// Checkpoint with the encoder, in any form of --weights, or a tiny autoencoder. Needed if
    /// neither --weights nor --decoder has one [default: the model's file in models/]
    #[arg(long, value_name = "PATH", requires = "with_encoder")]
    pub encoder_weights: Option<PathBuf>,
    /// Tiny autoencoder (TAESD) whose decoder, and with --with-encoder whose encoder, replaces the
    /// model's: a file in TAESD's own or in diffusers' names, or a diffusers folder
    #[arg(long, value_name = "PATH", conflicts_with = "tiny_decoder")]
    pub decoder: Option<PathBuf>,
    /// Tiny autoencoder whose decoder is added to the model's, for kiln run --decoder tiny
    #[arg(long, value_name = "PATH")]
    pub tiny_decoder: Option<PathBuf>,
}

impl Args {
    /// The files that are read, with their options.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        let options = [
            ("--encoder-weights", &self.encoder_weights),
            ("--decoder", &self.decoder),
            ("--tiny-decoder", &self.tiny_decoder),
        ];
        let of = |(name, path): (&'static str, &Option<PathBuf>)| {
            let files = path.iter().flat_map(|path| files::all(path)).collect::<Vec<_>>();
            files.into_iter().map(move |file| (name, file))
        };
        options.into_iter().flat_map(of)
    }

    /// The networks that are asked for, and the tiny autoencoders among them. A checkpoint whose
    /// own autoencoder is tiny stands for `--decoder`.
    ///
    /// Errors: a tiny autoencoder cannot be read, has not the half that is asked for, or is for
    /// other latents or images.
    pub fn choose(
        &self,
        config: &ModelConfig,
        checkpoint: Option<&dyn TensorSource>,
    ) -> Result<(Autoencoder, Vec<TinyWeights>)> {
        let own = checkpoint.filter(|source| has_tiny_alone(*source)).map(TensorSource::path);
        let replacing = self.decoder.as_deref().or(own);
        let (decoders, tiny) = match (replacing, &self.tiny_decoder) {
            (Some(_), Some(tiny)) => bail!(
                "--tiny-decoder {}: the checkpoint's own autoencoder is tiny; leave the option out",
                tiny.display()
            ),
            (Some(path), None) => {
                let tiny = open(path).context("--decoder")?;
                (Decoders::Tiny(decoder(&tiny, config).context("--decoder")?), Some(tiny))
            }
            (None, Some(path)) => {
                let tiny = open(path).context("--tiny-decoder")?;
                (Decoders::Both(decoder(&tiny, config).context("--tiny-decoder")?), Some(tiny))
            }
            (None, None) => (Decoders::Own, None),
        };
        let mut tiny = Vec::from_iter(tiny);
        // The mask and the latent of the masked picture.
        let is_for_inpainting = config.unet.condition_channels == config.latent_channels + 1;
        let encoder = match &self.encoder_weights {
            _ if !(self.with_encoder || is_for_inpainting) => Encoder::None,
            None if replacing.is_some() => {
                let own = tiny.first().map(|tiny| config_of(tiny, Half::Encoder, config));
                own.transpose().context("--decoder")?.flatten().map_or(Encoder::Own, Encoder::Tiny)
            }
            None => Encoder::Own,
            Some(path) => match TinyWeights::open(path).context("--encoder-weights")? {
                None => Encoder::Own,
                Some(found) => {
                    let encoder = config_of(&found, Half::Encoder, config);
                    let encoder = encoder.context("--encoder-weights")?;
                    let what = || format!("{}: it has no tiny encoder", found.path().display());
                    let encoder = Encoder::Tiny(encoder.with_context(what)?);
                    tiny.push(found);
                    encoder
                }
            },
        };
        Ok((Autoencoder { encoder, decoders }, tiny))
    }

    /// The checkpoint with the tensors of the other files.
    ///
    /// Errors: the model's own encoder is asked for, and no file has it.
    pub fn join(
        &self,
        source: Box<dyn TensorSource>,
        config: &ModelConfig,
        chosen: &Autoencoder,
        tiny: Vec<TinyWeights>,
    ) -> Result<Box<dyn TensorSource>> {
        /// A tensor that every encoder has.
        const ENCODER: &str = "first_stage_model.quant_conv.weight";
        let mut source = source;
        if matches!(chosen.encoder, Encoder::Own) && source.info(ENCODER).is_none() {
            let known = || model::default_encoder(config);
            let Some(path) = self.encoder_weights.clone().or_else(known) else {
                bail!(
                    "{} has no encoder (first_stage_model.encoder.*, \
                     first_stage_model.quant_conv.*); pass --encoder-weights PATH",
                    source.path().display()
                )
            };
            let encoder = weights::open(&path).context("--encoder-weights")?;
            source = Box::new(Joined::new(source, encoder));
        }
        for tiny in tiny {
            source = Box::new(Joined::new(source, Box::new(tiny)));
        }
        Ok(source)
    }
}

/// Whether a checkpoint has a tiny decoder and no other.
fn has_tiny_alone(source: &dyn TensorSource) -> bool {
    let has = |name: &str| source.info(name).is_some();
    has("tiny.decoder.layers.0.weight") && !has("first_stage_model.decoder.conv_in.weight")
}

fn open(path: &Path) -> Result<TinyWeights> {
    TinyWeights::open(path)?.with_context(|| {
        format!(
            "{}: no tiny autoencoder; it has tensors decoder.layers.* or, in TAESD's own names, \
             1.weight, 3.conv.0.weight and so on",
            path.display()
        )
    })
}

fn decoder(tiny: &TinyWeights, config: &ModelConfig) -> Result<TinyConfig> {
    let what = || format!("{}: it has no decoder, only an encoder", tiny.path().display());
    config_of(tiny, Half::Decoder, config)?.with_context(what)
}

/// The sizes of half a tiny autoencoder, if it has this half and fits the model.
fn config_of(tiny: &TinyWeights, half: Half, config: &ModelConfig) -> Result<Option<TinyConfig>> {
    let Some(shape) = tiny.shape(half)? else { return Ok(None) };
    let found = TinyConfig { channels: shape.channels, blocks: shape.blocks };
    let (latent, image) = match half {
        Half::Decoder => (shape.in_channels, shape.out_channels),
        Half::Encoder => (shape.out_channels, shape.in_channels),
    };
    let own = (config.latent_channels, config.vae.image_channels, config.vae.factor());
    if (latent, image, found.factor()) != own {
        bail!(
            "{}: a tiny autoencoder of another model: its latents have {latent} channels and are \
             {} times smaller than images; {} has {} channels and {} times",
            tiny.path().display(),
            found.factor(),
            config.name,
            own.0,
            own.2
        );
    }
    Ok(Some(found))
}
