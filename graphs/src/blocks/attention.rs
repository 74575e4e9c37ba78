//! Attention with its projections.

use super::Layers;
use kiln_ir::ops::attention::{Attention, Columns};
use kiln_ir::{IrError, ValueId};

/// Attention of `x` over `context` with its output projection (`CrossAttention`). It is
/// self-attention if both are the same value.
///
/// Shapes: `x: [N, L.., C]`, `context: [N, M.., D]` -> `[N, L.., C]`. Only the output
/// projection has a bias.
pub fn cross_attention(
    net: &mut Layers,
    path: &str,
    x: ValueId,
    context: ValueId,
    heads: usize,
) -> Result<ValueId, IrError> {
    let c = net.channels(x);
    let q = net.linear_no_bias(&format!("{path}.to_q"), x, c)?;
    let k = net.linear_no_bias(&format!("{path}.to_k"), context, c)?;
    let v = net.linear_no_bias(&format!("{path}.to_v"), context, c)?;
    let op = Attention::separate(c, heads, false);
    let y = net.graph.push(path, op, &[q, k, v])?;
    net.linear(&format!("{path}.to_out.0"), y, c)
}

/// Causal self-attention with three projections (`CLIPAttention`), and its output projection.
///
/// Shapes: `x: [N, L, C]` -> `[N, L, C]`.
pub fn causal_attention(
    net: &mut Layers,
    path: &str,
    x: ValueId,
    heads: usize,
) -> Result<ValueId, IrError> {
    let at = |leaf: &str| format!("{path}.{leaf}");
    let c = net.channels(x);
    let q = net.linear(&at("q_proj"), x, c)?;
    let k = net.linear(&at("k_proj"), x, c)?;
    let v = net.linear(&at("v_proj"), x, c)?;
    let y = net.graph.push(path, Attention::separate(c, heads, true), &[q, k, v])?;
    net.linear(&at("out_proj"), y, c)
}

/// Causal self-attention with one stored projection to `[q | k | v]` (`nn.MultiheadAttention`), and
/// its output projection.
///
/// Shapes: `x: [N, L, C]` -> `[N, L, C]`.
pub fn merged_causal_attention(
    net: &mut Layers,
    path: &str,
    x: ValueId,
    heads: usize,
) -> Result<ValueId, IrError> {
    let channels = net.channels(x);
    let name = format!("{path}.in_proj");
    let weight = net.tensor(&format!("{name}_weight"), &[3 * channels, channels]);
    let qkv = net.matmul(&name, x, weight)?;
    let qkv = net.add_bias(&name, &format!("{name}_bias"), qkv)?;
    let [q, k, v] = [0, 1, 2].map(|i| Columns { input: 0, start: i * channels });
    let op = Attention { channels, heads, causal: true, q, k, v };
    let y = net.graph.push(path, op, &[qkv])?;
    net.linear(&format!("{path}.out_proj"), y, channels)
}

/// Self-attention of a feature map's pixels with one head over all channels, with its normalization
/// and residual (`AttnBlock` of the autoencoder).
///
/// Shapes: `x: [N, H, W, C]` -> `[N, H, W, C]`.
pub fn pixel_attention(
    net: &mut Layers,
    path: &str,
    x: ValueId,
    eps: f32,
) -> Result<ValueId, IrError> {
    let at = |leaf: &str| format!("{path}.{leaf}");
    let c = net.channels(x);
    let h = net.group_norm(&at("norm"), x, eps)?;
    let q = net.pointwise(&at("q"), h, c)?;
    let k = net.pointwise(&at("k"), h, c)?;
    let v = net.pointwise(&at("v"), h, c)?;
    let y = net.graph.push(path, Attention::separate(c, 1, false), &[q, k, v])?;
    let y = net.pointwise(&at("proj_out"), y, c)?;
    net.add(&at("add_residual"), y, x)
}
