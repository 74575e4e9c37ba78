//! Residual block of two convolutions, for the U-Net and the autoencoder.

use super::Layers;
use kiln_ir::{IrError, ValueId};

/// Names of the block's layers in the checkpoint, and the epsilon of its normalizations.
pub struct ResnetKeys {
    norm1: &'static str,
    silu1: &'static str,
    conv1: &'static str,
    timestep: &'static str,
    norm2: &'static str,
    silu2: &'static str,
    conv2: &'static str,
    shortcut: &'static str,
    eps: f32,
}

impl ResnetKeys {
    /// `ResBlock` of the U-Net.
    pub const UNET: Self = Self {
        norm1: "in_layers.0",
        silu1: "in_layers.1",
        conv1: "in_layers.2",
        timestep: "emb_layers.1",
        norm2: "out_layers.0",
        silu2: "out_layers.1",
        conv2: "out_layers.3",
        shortcut: "skip_connection",
        eps: 1e-5,
    };
    /// `ResnetBlock` of the autoencoder.
    pub const VAE: Self = Self {
        norm1: "norm1",
        silu1: "norm1.silu",
        conv1: "conv1",
        timestep: "temb_proj",
        norm2: "norm2",
        silu2: "norm2.silu",
        conv2: "conv2",
        shortcut: "nin_shortcut",
        eps: 1e-6,
    };
}

/// `shortcut(x) + conv(silu(norm(conv(silu(norm(x))) + linear(timestep))))`.
///
/// Shapes: `x: [N, H, W, C]`, `timestep: [1, T]` after SiLU, or none -> `[N, H, W, out]`. The
/// shortcut is a 1x1 convolution if `C != out`, otherwise `x` itself.
pub fn resnet(
    net: &mut Layers,
    path: &str,
    keys: &ResnetKeys,
    x: ValueId,
    timestep: Option<ValueId>,
    out: usize,
) -> Result<ValueId, IrError> {
    let at = |leaf: &str| format!("{path}.{leaf}");
    let h = net.group_norm(&at(keys.norm1), x, keys.eps)?;
    let h = net.silu(&at(keys.silu1), h)?;
    let mut h = net.conv3x3(&at(keys.conv1), h, out, 1)?;
    if let Some(timestep) = timestep {
        let row = net.linear(&at(keys.timestep), timestep, out)?;
        h = net.add(&at("add_timestep"), h, row)?;
    }
    let h = net.group_norm(&at(keys.norm2), h, keys.eps)?;
    let h = net.silu(&at(keys.silu2), h)?;
    let h = net.conv3x3(&at(keys.conv2), h, out, 1)?;
    let shortcut =
        if net.channels(x) == out { x } else { net.pointwise(&at(keys.shortcut), x, out)? };
    net.add(&at("add_residual"), h, shortcut)
}
