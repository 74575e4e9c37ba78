//! Halving and doubling of a feature map, each with a convolution.

use super::Layers;
use kiln_ir::ops::upsample::Upsample;
use kiln_ir::{IrError, ValueId};

/// Halves width and height by a 3x3 convolution of stride 2.
///
/// Shapes: `x: [N, H, W, C]` -> `[N, H/2, W/2, C]`.
pub fn downsample(net: &mut Layers, path: &str, x: ValueId) -> Result<ValueId, IrError> {
    net.conv3x3(path, x, net.channels(x), 2)
}

/// Doubles width and height by nearest neighbour, then the 3x3 convolution `{path}.conv`.
///
/// Shapes: `x: [N, H, W, C]` -> `[N, 2H, 2W, C]`.
pub fn upsample(net: &mut Layers, path: &str, x: ValueId) -> Result<ValueId, IrError> {
    let doubled = net.graph.push(path, Upsample, &[x])?;
    net.conv3x3(&format!("{path}.conv"), doubled, net.channels(x), 1)
}
