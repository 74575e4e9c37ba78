//! A transformer block over the pixels of a feature map, with attention to the prompt.

use super::{Layers, cross_attention, geglu_feed_forward};
use kiln_ir::{IrError, ValueId};

/// Epsilon of the group normalization before the transformer. Other normalizations of the U-Net
/// have 1e-5.
const NORM_EPS: f32 = 1e-6;

/// Form of a spatial transformer.
#[derive(Clone, Copy)]
pub struct TransformerForm {
    /// Attention heads.
    pub heads: usize,
    /// Whether the projections are stored as linear layers instead of 1x1 convolutions.
    pub linear_projection: bool,
    /// Whether the first attention reads the context in place of the feature map.
    pub only_cross_attention: bool,
}

/// `SpatialTransformer` of depth one, residual included.
///
/// Shapes: `x: [N, H, W, C]`, `context: [N, L, D]` -> `[N, H, W, C]`.
pub fn spatial_transformer(
    net: &mut Layers,
    path: &str,
    x: ValueId,
    context: ValueId,
    form: TransformerForm,
) -> Result<ValueId, IrError> {
    let at = |leaf: &str| format!("{path}.{leaf}");
    let c = net.channels(x);
    let projection = if form.linear_projection { Layers::linear } else { Layers::pointwise };
    let h = net.group_norm(&at("norm"), x, NORM_EPS)?;
    let h = projection(net, &at("proj_in"), h, c)?;
    let h = transformer(net, &at("transformer_blocks.0"), h, context, form)?;
    let h = projection(net, &at("proj_out"), h, c)?;
    net.add(&at("add_residual"), h, x)
}

/// Self-attention, attention to the context, feed-forward. Each follows a layer normalization and
/// has a residual (`BasicTransformerBlock`).
fn transformer(
    net: &mut Layers,
    path: &str,
    x: ValueId,
    context: ValueId,
    form: TransformerForm,
) -> Result<ValueId, IrError> {
    let at = |leaf: &str| format!("{path}.{leaf}");
    let h = net.layer_norm(&at("norm1"), x)?;
    let first = if form.only_cross_attention { context } else { h };
    let h = cross_attention(net, &at("attn1"), h, first, form.heads)?;
    let x = net.add(&at("attn1.add_residual"), h, x)?;
    let h = net.layer_norm(&at("norm2"), x)?;
    let h = cross_attention(net, &at("attn2"), h, context, form.heads)?;
    let x = net.add(&at("attn2.add_residual"), h, x)?;
    let h = net.layer_norm(&at("norm3"), x)?;
    let h = geglu_feed_forward(net, &at("ff"), h)?;
    net.add(&at("ff.add_residual"), h, x)
}
