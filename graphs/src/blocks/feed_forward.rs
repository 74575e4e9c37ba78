//! The two linear layers of a transformer block, with the activation between them.

use super::Layers;
use kiln_ir::ops::geglu::Geglu;
use kiln_ir::{IrError, Op, ValueId};

/// Ratio of the width between the two layers to the width of the block.
const EXPANSION: usize = 4;

/// Feed-forward with a gated GELU (`FeedForward(glu=True)`). The first layer makes
/// `[value | gate]`.
///
/// Shapes: `x: [N, L.., C]` -> `[N, L.., C]`.
pub fn geglu_feed_forward(net: &mut Layers, path: &str, x: ValueId) -> Result<ValueId, IrError> {
    let c = net.channels(x);
    let h = net.linear(&format!("{path}.net.0.proj"), x, 2 * EXPANSION * c)?;
    let h = net.graph.push(&format!("{path}.net.0"), Geglu, &[h])?;
    net.linear(&format!("{path}.net.2"), h, c)
}

/// Feed-forward of a text encoder. `layers` are the names of the two layers.
///
/// Shapes: `x: [N, L, C]` -> `[N, L, C]`.
pub fn feed_forward(
    net: &mut Layers,
    path: &str,
    layers: [&str; 2],
    activation: impl Into<Op>,
    x: ValueId,
) -> Result<ValueId, IrError> {
    let c = net.channels(x);
    let h = net.linear(&format!("{path}.{}", layers[0]), x, EXPANSION * c)?;
    let h = net.graph.push(&format!("{path}.gelu"), activation, &[h])?;
    net.linear(&format!("{path}.{}", layers[1]), h, c)
}
