//! A transformer block over the pixels of a feature map, with attention to the prompt.

use super::{Layers, cross_attention, geglu_feed_forward};
use kiln_ir::{IrError, ValueId};

/// Epsilon of the group normalization before the transformer. Other normalizations of the U-Net
/// have 1e-5.
const NORM_EPS: f32 = 1e-6;

/// `SpatialTransformer` of depth one with linear projections, residual included.
///
/// Shapes: `x: [N, H, W, C]`, `context: [N, L, D]` -> `[N, H, W, C]`. A head has `head_channels`
/// columns.
pub fn spatial_transformer(
    net: &mut Layers,
    path: &str,
    x: ValueId,
    context: ValueId,
    head_channels: usize,
) -> Result<ValueId, IrError> {
    let at = |leaf: &str| format!("{path}.{leaf}");
    let c = net.channels(x);
    let h = net.group_norm(&at("norm"), x, NORM_EPS)?;
    let h = net.linear(&at("proj_in"), h, c)?;
    let h = transformer(net, &at("transformer_blocks.0"), h, context, head_channels)?;
    let h = net.linear(&at("proj_out"), h, c)?;
    net.add(&at("add_residual"), h, x)
}

/// Self-attention, attention to the context, feed-forward. Each follows a layer normalization and
/// has a residual (`BasicTransformerBlock`).
fn transformer(
    net: &mut Layers,
    path: &str,
    x: ValueId,
    context: ValueId,
    head_channels: usize,
) -> Result<ValueId, IrError> {
    let at = |leaf: &str| format!("{path}.{leaf}");
    let h = net.layer_norm(&at("norm1"), x)?;
    let h = cross_attention(net, &at("attn1"), h, h, head_channels)?;
    let x = net.add(&at("attn1.add_residual"), h, x)?;
    let h = net.layer_norm(&at("norm2"), x)?;
    let h = cross_attention(net, &at("attn2"), h, context, head_channels)?;
    let x = net.add(&at("attn2.add_residual"), h, x)?;
    let h = net.layer_norm(&at("norm3"), x)?;
    let h = geglu_feed_forward(net, &at("ff"), h)?;
    net.add(&at("ff.add_residual"), h, x)
}
