//! The U-Net: one step of denoising.

use crate::blocks::{
    Layers, ResnetKeys, TransformerForm, downsample, resnet, spatial_transformer, upsample,
};
use crate::{ModelConfig, UnetConfig};
use kiln_ir::ops::concat::Concat;
use kiln_ir::ops::embedding::Embedding;
use kiln_ir::ops::timestep_embedding::TimestepEmbedding;
use kiln_ir::{DType, Graph, IrError, TensorType, ValueId};

/// Longest period of the timestep embedding.
const MAX_PERIOD: f32 = 10_000.0;
/// Epsilon of the last group normalization, as in the residual blocks.
const NORM_EPS: f32 = 1e-5;

/// The U-Net over `batch` latents at one timestep.
///
/// Inputs: `latent: [batch, h, w, latent_channels]`, `timestep: [1]`,
/// `context: [batch, context_tokens, D]`. Where the configuration has them, also
/// `condition: [batch, h, w, condition_channels]`, read beside the latent,
/// `guidance_embedding: [1, guidance_width]` and `class: i32 [1, 1]`. Output:
/// `eps: [batch, h, w, latent_channels]`, the predicted noise, or the velocity of a v-predicting
/// model.
/// Source: Rombach et al. 2022 (arXiv:2112.10752), `openaimodel.UNetModel`.
pub fn unet(config: &ModelConfig, batch: usize) -> Result<Graph, IrError> {
    Ok(both(config, batch)?.0)
}

/// The U-Net with a second output `deep: [batch, h, w, C]`, the value that enters the last block
/// of the way up: what the inner levels add to it, without the skip from the first convolution.
pub fn unet_with_deep(config: &ModelConfig, batch: usize) -> Result<Graph, IrError> {
    let (mut graph, deep) = both(config, batch)?;
    graph.output("deep", deep);
    Ok(graph)
}

/// The U-Net, and the value that enters the last block of the way up.
fn both(config: &ModelConfig, batch: usize) -> Result<(Graph, ValueId), IrError> {
    let ([height, width], channels) = (config.latent_px(), config.latent_channels);
    let mut net = Layers::new("unet", "model.diffusion_model.");
    let picture = |channels| TensorType::f32(&[batch, height, width, channels]);
    let mut latent = net.input("latent", picture(channels));
    if config.unet.condition_channels > 0 {
        let condition = net.input("condition", picture(config.unet.condition_channels));
        latent = net.graph.push("with_condition", Concat, &[latent, condition])?;
    }
    let timestep = net.input("timestep", TensorType::f32(&[1]));
    let context = [batch, config.context_tokens, config.unet.context_width];
    let context = net.input("context", TensorType::f32(&context));
    let timestep = time_embed(&mut net, &config.unet, timestep)?;
    let mut levels = Levels { net, config: &config.unet, timestep, context };
    let (x, skips) = levels.down(latent)?;
    let x = if config.unet.middle { levels.middle(x)? } else { x };
    let (x, deep) = levels.up(x, skips)?;
    let mut net = levels.net;
    let x = net.group_norm("out.0", x, NORM_EPS)?;
    let x = net.silu("out.1", x)?;
    let x = net.conv3x3("out.2", x, channels, 1)?;
    Ok((net.finish("eps", x), deep))
}

/// Embeds the timestep as one row of `time_width` columns, with the guidance scale and the class if
/// the model reads them, including the SiLU with which every block begins.
fn time_embed(net: &mut Layers, config: &UnetConfig, t: ValueId) -> Result<ValueId, IrError> {
    let (channels, width) = (config.channels[0], config.time_width());
    let op = TimestepEmbedding { channels, max_period: MAX_PERIOD };
    let mut x = net.graph.push("timestep_embedding", op, &[t])?;
    if let Some(guidance_width) = config.guidance_width {
        let guidance = net.input("guidance_embedding", TensorType::f32(&[1, guidance_width]));
        let guidance = net.linear_no_bias("time_embed.cond_proj", guidance, channels)?;
        x = net.add("time_embed.add_guidance", guidance, x)?;
    }
    let x = net.linear("time_embed.0", x, width)?;
    let x = net.silu("time_embed.1", x)?;
    let mut x = net.linear("time_embed.2", x, width)?;
    if let Some(classes) = config.classes {
        let class = net.input("class", TensorType::new(DType::I32, &[1, 1]));
        let table = net.tensor("label_emb.weight", &[classes, width]);
        let class = net.graph.push("label_emb", Embedding, &[class, table])?;
        x = net.add("label_emb.add_timestep", class, x)?;
    }
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
        let mut x = self.net.conv3x3("input_blocks.0.0", latent, config.channels[0], 1)?;
        let mut skips = vec![x];
        for (level, channels) in config.channels.iter().enumerate() {
            if level > 0 {
                x = downsample(&mut self.net, &format!("input_blocks.{}.0.op", skips.len()), x)?;
                skips.push(x);
            }
            for _ in 0..config.res_blocks {
                let path = format!("input_blocks.{}", skips.len());
                x = self.resnet(&format!("{path}.0"), x, *channels)?;
                if config.down_attention.contains(&level) {
                    x = self.transformer(&format!("{path}.1"), x, level)?;
                }
                skips.push(x);
            }
        }
        Ok((x, skips))
    }

    fn middle(&mut self, x: ValueId) -> Result<ValueId, IrError> {
        let channels = self.net.channels(x);
        let x = self.resnet("middle_block.0", x, channels)?;
        let form = self.form(self.config.channels.len() - 1, false);
        let x = spatial_transformer(&mut self.net, "middle_block.1", x, self.context, form)?;
        self.resnet("middle_block.2", x, channels)
    }

    /// The blocks on the way up, each with the value of its counterpart on the way down. Returns
    /// the output and the input of the last one.
    fn up(&mut self, mut x: ValueId, skips: Vec<ValueId>) -> Result<(ValueId, ValueId), IrError> {
        let config = self.config;
        let (blocks, mut before) = (config.res_blocks + 1, x);
        for (i, skip) in skips.into_iter().rev().enumerate() {
            let level = config.channels.len() - 1 - i / blocks;
            let path = format!("output_blocks.{i}");
            before = x;
            x = self.net.graph.push(&format!("{path}.concat"), Concat, &[x, skip])?;
            x = self.resnet(&format!("{path}.0"), x, config.channels[level])?;
            let attends = config.up_attention.contains(&level);
            if attends {
                x = self.transformer(&format!("{path}.1"), x, level)?;
            }
            if level > 0 && i % blocks == blocks - 1 {
                let place = 1 + usize::from(attends);
                x = upsample(&mut self.net, &format!("{path}.{place}"), x)?;
            }
        }
        Ok((x, before))
    }

    fn resnet(&mut self, path: &str, x: ValueId, out: usize) -> Result<ValueId, IrError> {
        resnet(&mut self.net, path, &ResnetKeys::UNET, x, Some(self.timestep), out)
    }

    fn transformer(&mut self, path: &str, x: ValueId, level: usize) -> Result<ValueId, IrError> {
        let form = self.form(level, self.config.only_cross_attention.contains(&level));
        spatial_transformer(&mut self.net, path, x, self.context, form)
    }

    fn form(&self, level: usize, only_cross_attention: bool) -> TransformerForm {
        TransformerForm {
            heads: self.config.heads[level],
            linear_projection: self.config.linear_projection,
            only_cross_attention,
        }
    }
}
