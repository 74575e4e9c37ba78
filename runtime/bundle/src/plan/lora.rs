//! Room for LoRAs that a run switches on: memory for their factors, and the weights that they change.

use serde::{Deserialize, Serialize};

use super::{BlockId, BufferId, KernelId};

/// What a plan has for LoRAs at run time.
///
/// A LoRA changes a weight by `strength * up * down`, two factors of few ranks. The host writes the
/// factors of all weights into one buffer. After each load of a block, a launch of
/// [`Layer::kernel`] adds the product to each weight in it, in place.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct LoraRoom {
    /// The buffer of the factors, live all the time; none if there is no room.
    pub factors: Option<BufferId>,
    /// The weights that can be changed.
    pub layers: Vec<Layer>,
}

/// A weight that LoRAs can change: some or all panels of a packed constant.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Layer {
    /// The block with the weight.
    pub block: BlockId,
    /// Start of the weight in the block.
    pub offset_bytes: u64,
    /// Length.
    pub len_bytes: u64,
    /// The kernel, with the arguments weight, factors, start of `up` and of `down` in them, `k`,
    /// rank and strength.
    pub kernel: KernelId,
    /// Global work size of the kernel.
    pub global: [u64; 3],
    /// Numbers of `down` a rank.
    pub k: u32,
    /// First panel and number of panels.
    pub panels: (u32, u32),
    /// Output columns of a panel: `up` has `panels.1 * width` numbers a rank.
    pub width: u32,
    /// Whether panels hold value columns and their gate columns, as GEGLU reads them.
    pub gated: bool,
    /// Order of `down`.
    pub order: DownOrder,
    /// Shape of the constant: `[N, K]` or `[N, C, k, k]`.
    pub shape: Vec<u32>,
    /// Tensors of the checkpoint that the constant has one below the other, and their shapes.
    pub tensors: Vec<(String, Vec<u32>)>,
}

impl Layer {
    /// Numbers of `up` and of `down` for a rank.
    pub fn factor_elems(&self, rank: u64) -> [u64; 2] {
        let up = u64::from(self.panels.1).saturating_mul(self.width.into());
        [up.saturating_mul(rank), u64::from(self.k).saturating_mul(rank)]
    }
}

/// Order of the numbers of `down` a rank.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DownOrder {
    /// That of the checkpoint.
    Rows,
    /// `[ky][kx][c]`.
    Taps,
    /// Windows transformed for tiles of so many output pixels: `[position in the patch][c]`.
    Winograd(u8),
}
