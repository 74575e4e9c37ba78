//! Encoder of the autoencoder: from an image to a latent.

use crate::ModelConfig;
use crate::blocks::{Layers, ResnetKeys, pixel_attention, resnet};
use kiln_ir::ops::scale::Scale;
use kiln_ir::ops::slice::Slice;
use kiln_ir::{Graph, IrError, TensorType, ValueId};

/// Epsilon of every group normalization in the autoencoder.
const NORM_EPS: f32 = 1e-6;

/// The encoder for one image.
///
/// Input: `image: [1, H, W, image_channels]`, -1 to 1. Output: `mean: [1, h, w, latent_channels]`,
/// the mean of the encoder's distribution times the scaling factor, so that the sampler can start
/// from it. The variance, from which training samples, is omitted: it is tiny, and one image should
/// give one latent.
/// Source: Rombach et al. 2022 (arXiv:2112.10752), `AutoencoderKL.encode(x).mode()`.
pub fn vae_encoder(config: &ModelConfig) -> Result<Graph, IrError> {
    let channels = config.latent_channels;
    let shape = [1, config.height_px, config.width_px, config.vae.image_channels];
    let mut net = Layers::new("vae_encoder", "first_stage_model.");
    let image = net.input("image", TensorType::f32(&shape));
    let x = encoder(&mut net, config, image)?;
    let x = net.pointwise("quant_conv", x, 2 * channels)?;
    let mean = net.graph.push("mean", Slice { start: 0, len: channels }, &[x])?;
    let x = net.graph.push("scale", Scale { factor: config.scaling_factor }, &[mean])?;
    Ok(net.finish("mean", x))
}

/// `Encoder`.
fn encoder(net: &mut Layers, config: &ModelConfig, image: ValueId) -> Result<ValueId, IrError> {
    let (vae, keys) = (&config.vae, &ResnetKeys::VAE);
    let mut x = net.conv3x3("encoder.conv_in", image, vae.channels[0], 1)?;
    for (level, channels) in vae.channels.iter().enumerate() {
        let path = format!("encoder.down.{level}");
        for i in 0..vae.res_blocks {
            let block = format!("{path}.block.{i}");
            x = resnet(net, &block, keys, x, None, *channels)?;
        }
        if level + 1 < vae.channels.len() {
            x = net.conv3x3_to_end(&format!("{path}.downsample.conv"), x)?;
        }
    }
    let deepest = net.channels(x);
    let x = resnet(net, "encoder.mid.block_1", keys, x, None, deepest)?;
    let x = pixel_attention(net, "encoder.mid.attn_1", x, NORM_EPS)?;
    let x = resnet(net, "encoder.mid.block_2", keys, x, None, deepest)?;
    let x = net.group_norm("encoder.norm_out", x, NORM_EPS)?;
    let x = net.silu("encoder.norm_out.silu", x)?;
    net.conv3x3("encoder.conv_out", x, 2 * config.latent_channels, 1)
}
