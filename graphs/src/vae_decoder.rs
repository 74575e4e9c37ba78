//! Decoder of the autoencoder: from a latent to an image.

use crate::ModelConfig;
use crate::blocks::{Layers, ResnetKeys, pixel_attention, resnet, upsample};
use kiln_ir::ops::scale::Scale;
use kiln_ir::{Graph, IrError, TensorType, ValueId};

/// Epsilon of every group normalization in the autoencoder.
const NORM_EPS: f32 = 1e-6;

/// The decoder for one image.
///
/// Inputs: `latent: [1, h, w, latent_channels]`, the sampler's result. The graph includes the
/// division by the scaling factor. Output: `image: [1, H, W, image_channels]`, about `[-1, 1]`, not
/// clamped.
/// Source: Rombach et al. 2022 (arXiv:2112.10752), `AutoencoderKL.decode`.
pub fn vae_decoder(config: &ModelConfig) -> Result<Graph, IrError> {
    let ([height, width], channels) = (config.latent_px(), config.latent_channels);
    let mut net = Layers::new("vae_decoder", "first_stage_model.");
    let latent = net.input("latent", TensorType::f32(&[1, height, width, channels]));
    let factor = 1.0 / config.scaling_factor;
    let x = net.graph.push("unscale", Scale { factor }, &[latent])?;
    let x = net.pointwise("post_quant_conv", x, channels)?;
    let x = decoder(&mut net, config, x)?;
    Ok(net.finish("image", x))
}

/// `Decoder`.
fn decoder(net: &mut Layers, config: &ModelConfig, x: ValueId) -> Result<ValueId, IrError> {
    let vae = &config.vae;
    let levels = || vae.channels.iter().copied().enumerate().rev();
    let deepest = levels().next().map_or(0, |(_, c)| c);
    let keys = &ResnetKeys::VAE;
    let x = net.conv3x3("decoder.conv_in", x, deepest, 1)?;
    let x = resnet(net, "decoder.mid.block_1", keys, x, None, deepest)?;
    let x = pixel_attention(net, "decoder.mid.attn_1", x, NORM_EPS)?;
    let mut x = resnet(net, "decoder.mid.block_2", keys, x, None, deepest)?;
    for (level, channels) in levels() {
        let path = format!("decoder.up.{level}");
        for i in 0..=vae.res_blocks {
            x = resnet(net, &format!("{path}.block.{i}"), keys, x, None, channels)?;
        }
        if level > 0 {
            x = upsample(net, &format!("{path}.upsample"), x)?;
        }
    }
    let x = net.group_norm("decoder.norm_out", x, NORM_EPS)?;
    let x = net.silu("decoder.norm_out.silu", x)?;
    net.conv3x3("decoder.conv_out", x, vae.image_channels, 1)
}
