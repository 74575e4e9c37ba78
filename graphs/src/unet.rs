//! The U-Net: one step of denoising.

use crate::blocks::{Layers, ResnetKeys, downsample, resnet, spatial_transformer, upsample};
use crate::{ModelConfig, UnetConfig};
use kiln_ir::ops::concat::Concat;
use kiln_ir::ops::timestep_embedding::TimestepEmbedding;
use kiln_ir::{Graph, IrError, TensorType, ValueId};

/// Longest period of the timestep embedding.
const MAX_PERIOD: f32 = 10_000.0;
/// Epsilon of the last group normalization, as in the residual blocks.
const NORM_EPS: f32 = 1e-5;

/// The U-Net over `batch` latents at one timestep.
///
/// Inputs: `latent: [batch, h, w, latent_channels]`, `timestep: [1]`,
/// `context: [batch, context_tokens, D]`. Output: `eps: [batch, h, w, latent_channels]`, the
/// predicted noise, or the velocity of a v-predicting model.
/// Source: Rombach et al. 2022 (arXiv:2112.10752), `openaimodel.UNetModel`.
pub fn unet(config: &ModelConfig, batch: usize) -> Result<Graph, IrError> {
    let (px, channels) = (config.latent_px, config.latent_channels);
    let mut net = Layers::new("unet", "model.diffusion_model.");
    let latent = net.input("latent", TensorType::f32(&[batch, px, px, channels]));
    let timestep = net.input("timestep", TensorType::f32(&[1]));
    let context = [batch, config.context_tokens, config.unet.context_width];
    let context = net.input("context", TensorType::f32(&context));
    let timestep = time_embed(&mut net, &config.unet, timestep)?;
    let mut levels = Levels { net, config: &config.unet, timestep, context };
    let (x, skips) = levels.down(latent)?;
    let x = levels.middle(x)?;
    let x = levels.up(x, skips)?;
    let mut net = levels.net;
    let x = net.group_norm("out.0", x, NORM_EPS)?;
    let x = net.silu("out.1", x)?;
    let x = net.conv3x3("out.2", x, channels, 1)?;
    Ok(net.finish("eps", x))
}

/// Embeds the timestep as `[1, time_width]`, including the SiLU with which every block begins.
fn time_embed(net: &mut Layers, config: &UnetConfig, t: ValueId) -> Result<ValueId, IrError> {
    let op = TimestepEmbedding { channels: config.channels, max_period: MAX_PERIOD };
    let x = net.graph.push("timestep_embedding", op, &[t])?;
    let x = net.linear("time_embed.0", x, config.time_width())?;
    let x = net.silu("time_embed.1", x)?;
    let x = net.linear("time_embed.2", x, config.time_width())?;
    net.silu("emb_layers.0", x)
}

/// The path through the levels, with the common inputs of its blocks.
struct Levels<'a> {
    net: Layers,
    config: &'a UnetConfig,
    timestep: ValueId,
    context: ValueId,
}

impl Levels<'_> {
    /// The blocks on the way down. Returns the value of each for the way up.
    fn down(&mut self, latent: ValueId) -> Result<(ValueId, Vec<ValueId>), IrError> {
        let config = self.config;
        let mut x = self.net.conv3x3("input_blocks.0.0", latent, config.channels, 1)?;
        let mut skips = vec![x];
        for (level, multiplier) in config.multipliers.iter().enumerate() {
            if level > 0 {
                x = downsample(&mut self.net, &format!("input_blocks.{}.0.op", skips.len()), x)?;
                skips.push(x);
            }
            for _ in 0..config.res_blocks {
                let path = format!("input_blocks.{}", skips.len());
                x = self.resnet(&format!("{path}.0"), x, config.channels * multiplier)?;
                if config.attention_levels.contains(&level) {
                    x = self.transformer(&format!("{path}.1"), x)?;
                }
                skips.push(x);
            }
        }
        Ok((x, skips))
    }

    fn middle(&mut self, x: ValueId) -> Result<ValueId, IrError> {
        let channels = self.net.channels(x);
        let x = self.resnet("middle_block.0", x, channels)?;
        let x = self.transformer("middle_block.1", x)?;
        self.resnet("middle_block.2", x, channels)
    }

    /// The blocks on the way up, each with the value of its counterpart on the way down.
    fn up(&mut self, mut x: ValueId, skips: Vec<ValueId>) -> Result<ValueId, IrError> {
        let config = self.config;
        let blocks = config.res_blocks + 1;
        for (i, skip) in skips.into_iter().rev().enumerate() {
            let level = config.multipliers.len() - 1 - i / blocks;
            let path = format!("output_blocks.{i}");
            x = self.net.graph.push(&format!("{path}.concat"), Concat, &[x, skip])?;
            x =
                self.resnet(&format!("{path}.0"), x, config.channels * config.multipliers[level])?;
            let attends = config.attention_levels.contains(&level);
            if attends {
                x = self.transformer(&format!("{path}.1"), x)?;
            }
            if level > 0 && i % blocks == blocks - 1 {
                let place = 1 + usize::from(attends);
                x = upsample(&mut self.net, &format!("{path}.{place}"), x)?;
            }
        }
        Ok(x)
    }

    fn resnet(&mut self, path: &str, x: ValueId, out: usize) -> Result<ValueId, IrError> {
        resnet(&mut self.net, path, &ResnetKeys::UNET, x, Some(self.timestep), out)
    }

    fn transformer(&mut self, path: &str, x: ValueId) -> Result<ValueId, IrError> {
        spatial_transformer(&mut self.net, path, x, self.context, self.config.head_channels)
    }
}
