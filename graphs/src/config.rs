//! Sizes of the models of the family. The registry of known models is in [`registry`].

use crate::schedule::Schedule;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use toml::{Table, Value};

mod check;
pub mod diffusers;
mod registry;

pub use registry::{ConfigError, model, models, parse};

/// A text-to-image model: its networks, and the facts that its sampler needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Name in the registry and on the command line.
    #[serde(skip)]
    pub name: String,
    /// File name of the published checkpoint.
    pub weights_file: String,
    /// Name of the file with the autoencoder's encoder, if the checkpoint lacks it.
    pub encoder_file: Option<String>,
    /// Width of the image in pixels.
    pub width_px: usize,
    /// Height of the image in pixels.
    pub height_px: usize,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Tokens of a prompt, padding included.
    pub context_tokens: usize,
    /// Noise schedule of the training, and defaults of the sampler.
    pub schedule: Schedule,
    /// Factor that brings the standard deviation of latents to 1. The decoder divides by it.
    pub scaling_factor: f32,
    /// The text encoder.
    pub text: TextConfig,
    /// The U-Net.
    pub unet: UnetConfig,
    /// The autoencoder.
    pub vae: VaeConfig,
}

/// Text encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// Structure, activation and names of tensors.
    pub tower: TextTower,
    /// Channels of a token.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Number of blocks that run before the final norm. A checkpoint may store more.
    pub layers: usize,
    /// Rows of the token table.
    pub vocab: usize,
}

/// Kinds of text encoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextTower {
    /// OpenCLIP's, with GELU. Stability's files store one block more than runs, because the
    /// penultimate block's output is used.
    OpenClip,
    /// CLIP's in the form of transformers, with the fast approximation of GELU.
    Clip,
}

/// U-Net with spatial transformers (`openaimodel.UNetModel`). A level is a resolution; level 0 is
/// the largest feature map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnetConfig {
    /// Channels of each level. Each level halves width and height.
    pub channels: Vec<usize>,
    /// Residual blocks of a level on the way down. The way up has one more.
    pub res_blocks: usize,
    /// Attention heads of each level. The middle has those of the last level.
    pub heads: Vec<usize>,
    /// Whether the projections of spatial transformers are stored as linear layers instead of 1x1
    /// convolutions.
    pub linear_projection: bool,
    /// Levels with a spatial transformer after each residual block on the way down.
    pub down_attention: Vec<usize>,
    /// Whether there are blocks between the way down and the way up, with a spatial transformer.
    pub middle: bool,
    /// Levels with a spatial transformer after each residual block on the way up.
    pub up_attention: Vec<usize>,
    /// Levels whose spatial transformers attend to the context in place of self-attention.
    #[serde(default)]
    pub only_cross_attention: Vec<usize>,
    /// Channels of a context token.
    pub context_width: usize,
    /// Channels of a picture that is read beside the latent, 0 if there is none.
    #[serde(default)]
    pub condition_channels: usize,
    /// Width of the embedding of the guidance scale (`time_cond_proj_dim`), if it is an input.
    pub guidance_width: Option<usize>,
    /// Number of classes, if a class is an input.
    pub classes: Option<usize>,
}

/// Encoder and decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeConfig {
    /// Channels of each level, the largest feature map first.
    pub channels: Vec<usize>,
    /// Residual blocks of a level in the encoder. The decoder has one more.
    pub res_blocks: usize,
    /// Channels of the image.
    pub image_channels: usize,
}

impl ModelConfig {
    /// Height and width of the latent in pixels.
    pub fn latent_px(&self) -> [usize; 2] {
        [self.height_px, self.width_px].map(|px| px / self.vae.factor())
    }

    /// The first field in which another model differs in its networks or its training, with this
    /// model's value and the other's. Names of files, sizes of images and defaults of the sampler
    /// are no difference.
    pub fn difference(&self, other: &ModelConfig) -> Option<(String, String, String)> {
        let facts = |model: &ModelConfig| {
            let (width_px, height_px) = (self.width_px, self.height_px);
            let schedule = model.schedule.with_defaults_of(&self.schedule);
            let facts = ModelConfig { width_px, height_px, schedule, ..model.clone() };
            let facts = ModelConfig { encoder_file: None, ..facts };
            let facts = ModelConfig { weights_file: String::new(), ..facts };
            let facts = toml::Table::try_from(facts);
            facts.expect("every field of a description is one of TOML")
        };
        difference("", &facts(self), &facts(other))
    }
}

/// The first entry in which two tables differ: its path, and both values.
fn difference(path: &str, a: &Table, b: &Table) -> Option<(String, String, String)> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    names.into_iter().find_map(|name| match (a.get(name), b.get(name)) {
        (Some(Value::Table(a)), Some(Value::Table(b))) => {
            difference(&format!("{path}{name}."), a, b)
        }
        (a, b) if a == b => None,
        (a, b) => {
            let text = |value: Option<&Value>| value.map_or("none".into(), Value::to_string);
            Some((format!("{path}{name}"), text(a), text(b)))
        }
    })
}

impl UnetConfig {
    /// Width of the timestep embedding.
    pub fn time_width(&self) -> usize {
        4 * self.channels[0]
    }
}

impl VaeConfig {
    /// Pixels of the image for each pixel of the latent, along one side.
    pub fn factor(&self) -> usize {
        1 << (self.channels.len() - 1)
    }
}
