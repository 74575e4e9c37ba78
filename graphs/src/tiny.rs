//! The tiny autoencoder (TAESD): convolutions of one width, ReLU, no normalization, no attention.
//!
//! It reads and makes latents as the sampler has them: the scaling factor is not applied. Its own
//! images are 0 to 1. The graphs take and give -1 to 1, as the other autoencoder's do.
//!
//! Constants are named by their keys in diffusers' `AutoencoderTiny`, behind `tiny.`:
//! `tiny.decoder.layers.*`, `tiny.encoder.layers.*`.
//! Source: github.com/madebyollin/taesd.

use crate::ModelConfig;
use crate::blocks::Layers;
use kiln_ir::ops::pointwise::{Relu, Tanh};
use kiln_ir::ops::scale::Scale;
use kiln_ir::ops::upsample::Upsample;
use kiln_ir::{Graph, IrError, Tensor, TensorType, ValueId, WeightExpr};

/// Begins the keys of all constants of a tiny autoencoder.
pub const TINY_PREFIX: &str = "tiny.";
/// Latents are cut off softly at this magnitude.
const MAGNITUDE: f32 = 3.0;

/// Sizes of the encoder or the decoder of a tiny autoencoder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TinyConfig {
    /// Channels of every feature map.
    pub channels: usize,
    /// Residual blocks of each level, in execution order. Between two levels, width and height
    /// double or halve.
    pub blocks: Vec<usize>,
}

impl TinyConfig {
    /// Pixels of the image for each pixel of the latent, along one side.
    pub fn factor(&self) -> usize {
        1 << self.blocks.len().saturating_sub(1)
    }
}

/// The tiny decoder for one image.
///
/// Inputs: `latent: [1, h, w, latent_channels]`, the sampler's result. Output:
/// `image: [1, H, W, image_channels]`, about `[-1, 1]`, not clamped.
/// Errors: none for a configuration whose [`TinyConfig::factor`] is the model's.
pub fn tiny_decoder(config: &ModelConfig, tiny: &TinyConfig) -> Result<Graph, IrError> {
    let ([height, width], channels) = (config.latent_px(), config.latent_channels);
    let mut net = Layers::new("tiny_decoder", "tiny.decoder.");
    let latent = net.input("latent", TensorType::f32(&[1, height, width, channels]));
    let x = net.graph.push("unit", Scale { factor: 1.0 / MAGNITUDE }, &[latent])?;
    let x = net.graph.push("clamp", Tanh, &[x])?;
    let x = net.graph.push("clamped", Scale { factor: MAGNITUDE }, &[x])?;
    let x = net.conv3x3("layers.0", x, tiny.channels, 1)?;
    let mut x = net.graph.push("layers.1", Relu, &[x])?;
    let mut layer = 2;
    for (level, count) in tiny.blocks.iter().enumerate() {
        if level > 0 {
            // The doubling is a layer by itself.
            x = net.graph.push(&format!("layers.{layer}"), Upsample, &[x])?;
            x = net.conv3x3_no_bias(&format!("layers.{}", layer + 1), x, 1)?;
            layer += 2;
        }
        for _ in 0..*count {
            x = block(&mut net, &format!("layers.{layer}"), x)?;
            layer += 1;
        }
    }
    let x = net.conv3x3(&format!("layers.{layer}"), x, config.vae.image_channels, 1)?;
    let x = net.graph.push("range", Scale { factor: 2.0 }, &[x])?;
    let x = shifted(&mut net, x, -1.0)?;
    Ok(net.finish("image", x))
}

/// The tiny encoder for one image.
///
/// Input: `image: [1, H, W, image_channels]`, -1 to 1. Output: `mean: [1, h, w, latent_channels]`,
/// as the sampler has it.
/// Errors: as [`tiny_decoder`].
pub fn tiny_encoder(config: &ModelConfig, tiny: &TinyConfig) -> Result<Graph, IrError> {
    let shape = [1, config.height_px, config.width_px, config.vae.image_channels];
    let mut net = Layers::new("tiny_encoder", "tiny.encoder.");
    let image = net.input("image", TensorType::f32(&shape));
    let x = net.graph.push("range", Scale { factor: 0.5 }, &[image])?;
    let x = shifted(&mut net, x, 0.5)?;
    let mut x = net.conv3x3("layers.0", x, tiny.channels, 1)?;
    let mut layer = 1;
    for (level, count) in tiny.blocks.iter().enumerate() {
        if level > 0 {
            x = net.conv3x3_no_bias(&format!("layers.{layer}"), x, 2)?;
            layer += 1;
        }
        for _ in 0..*count {
            x = block(&mut net, &format!("layers.{layer}"), x)?;
            layer += 1;
        }
    }
    let x = net.conv3x3(&format!("layers.{layer}"), x, config.latent_channels, 1)?;
    Ok(net.finish("mean", x))
}

/// `relu(x + convolutions(x))`, of three convolutions with ReLU between them.
fn block(net: &mut Layers, path: &str, x: ValueId) -> Result<ValueId, IrError> {
    let channels = net.channels(x);
    let mut y = x;
    for (layer, is_last) in [(0, false), (2, false), (4, true)] {
        y = net.conv3x3(&format!("{path}.conv.{layer}"), y, channels, 1)?;
        if !is_last {
            y = net.graph.push(&format!("{path}.conv.{}", layer + 1), Relu, &[y])?;
        }
    }
    let sum = net.add(&format!("{path}.add"), y, x)?;
    net.graph.push(&format!("{path}.fuse"), Relu, &[sum])
}

/// `x + value`.
fn shifted(net: &mut Layers, x: ValueId, value: f32) -> Result<ValueId, IrError> {
    let shape = [net.channels(x)];
    let literal = WeightExpr::Literal(Tensor::new(&shape, vec![value; shape[0]]));
    let value = net.graph.weight("shift", literal, TensorType::f32(&shape));
    net.add("shifted", x, value)
}
