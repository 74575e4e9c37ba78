//! Sizes of the models of the family, and the registry of known models.

use crate::schedule::{Prediction, Schedule};

/// A text-to-image model: its networks, and the facts that its sampler needs.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Name in the registry and on the command line.
    pub name: &'static str,
    /// Width and height of the image in pixels.
    pub image_px: usize,
    /// Width and height of the latent: `image_px` over [`VaeConfig::factor`].
    pub latent_px: usize,
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
    /// File name of the published checkpoint.
    pub weights_file: &'static str,
    /// Name of the file with the autoencoder's encoder, if the checkpoint lacks it.
    pub encoder_file: Option<&'static str>,
}

/// Text tower of OpenCLIP.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Channels of a token.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Number of blocks that run. The checkpoint stores one more, because the penultimate block's
    /// output is used.
    pub layers: usize,
    /// Rows of the token table.
    pub vocab: usize,
}

/// U-Net with spatial transformers (`openaimodel.UNetModel`).
#[derive(Clone, Debug, PartialEq)]
pub struct UnetConfig {
    /// Channels of the first level.
    pub channels: usize,
    /// Channels of each level, as multiples of the first level's. Each level halves width and
    /// height.
    pub multipliers: &'static [usize],
    /// Residual blocks of a level on the way down. The way up has one more.
    pub res_blocks: usize,
    /// Number of columns of an attention head.
    pub head_channels: usize,
    /// Levels with a spatial transformer after each residual block. The middle always has one.
    pub attention_levels: &'static [usize],
    /// Channels of a context token.
    pub context_width: usize,
}

/// Encoder and decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    /// Channels of the largest level: the encoder's first, the decoder's last.
    pub channels: usize,
    /// Channels of each level, as multiples of `channels`, the largest feature map first.
    pub multipliers: &'static [usize],
    /// Residual blocks of a level in the encoder. The decoder has one more.
    pub res_blocks: usize,
    /// Channels of the image.
    pub image_channels: usize,
}

impl UnetConfig {
    /// Width of the timestep embedding.
    pub fn time_width(&self) -> usize {
        4 * self.channels
    }
}

impl VaeConfig {
    /// Pixels of the image for each pixel of the latent, along one side.
    pub fn factor(&self) -> usize {
        1 << (self.multipliers.len() - 1)
    }
}

const SD21_BASE: ModelConfig = ModelConfig {
    name: "sd21-base",
    image_px: 512,
    latent_px: 64,
    latent_channels: 4,
    context_tokens: 77,
    schedule: Schedule::SD21_BASE,
    scaling_factor: 0.18215,
    text: TextConfig { width: 1024, heads: 16, layers: 23, vocab: 49408 },
    unet: UnetConfig {
        channels: 320,
        multipliers: &[1, 2, 4, 4],
        res_blocks: 2,
        head_channels: 64,
        attention_levels: &[0, 1, 2],
        context_width: 1024,
    },
    vae: VaeConfig { channels: 128, multipliers: &[1, 2, 4, 4], res_blocks: 2, image_channels: 3 },
    weights_file: "v2-1_512-ema-pruned.safetensors",
    encoder_file: None,
};

static MODELS: [ModelConfig; 3] = [
    SD21_BASE,
    ModelConfig {
        name: "sd21",
        image_px: 768,
        latent_px: 96,
        schedule: Schedule { prediction: Prediction::V, ..Schedule::SD21_BASE },
        weights_file: "v2-1_768-ema-pruned.safetensors",
        ..SD21_BASE
    },
    ModelConfig {
        name: "emoji-256",
        image_px: 256,
        latent_px: 32,
        text: TextConfig { width: 192, heads: 3, layers: 5, vocab: 49408 },
        unet: UnetConfig {
            channels: 64,
            multipliers: &[1, 2, 3, 3],
            context_width: 192,
            ..SD21_BASE.unet
        },
        vae: VaeConfig { channels: 32, ..SD21_BASE.vae },
        weights_file: "emoji-256.safetensors.zst",
        encoder_file: Some("emoji-256-encoder.safetensors"),
        ..SD21_BASE
    },
];

/// Every known model.
pub fn models() -> &'static [ModelConfig] {
    &MODELS
}

/// The model with a name.
pub fn model(name: &str) -> Option<&'static ModelConfig> {
    MODELS.iter().find(|m| m.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_find_their_models() {
        for m in models() {
            assert_eq!(model(m.name), Some(m));
        }
        assert_eq!(model("sd15"), None);
    }

    #[test]
    fn sizes_agree_within_a_model() {
        for m in models() {
            assert_eq!(m.latent_px * m.vae.factor(), m.image_px, "{}", m.name);
            assert_eq!(m.unet.context_width, m.text.width, "{}", m.name);
            assert_eq!(m.text.width % m.text.heads, 0, "{}", m.name);
            let halvings = m.unet.multipliers.len() - 1;
            assert_eq!(m.latent_px % (1 << halvings), 0, "{}", m.name);
            for level in m.unet.attention_levels {
                let channels = m.unet.channels * m.unet.multipliers[*level];
                assert_eq!(channels % m.unet.head_channels, 0, "{}", m.name);
            }
        }
    }
}
