//! Quantized activations in scratch memory.

use super::Contraction;

/// Largest block of channels that share a scale. A product of a short and a byte is below 2^22, so
/// that fewer than 2^9 of them fit 32 bits.
pub const MOST_BLOCK: usize = 64;
/// Magnitude of an outlier, as a multiple of its block's mean magnitude. Normally distributed values
/// are hardly ever beyond six.
pub const OUTLIER: usize = 12;
/// Vectors of up to this many values divide a block.
const QUANTUM: usize = 16;

/// A pixel (or row) as integers: one for each channel of all sources, then for each block of
/// channels the number with which its sums of products begin, and its scale in `f32`. Bytes are
/// followed by outliers, which would make the scales of their blocks coarse: their number, and up
/// to one a block on average, each a channel and its value in `f32`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// Channels of all sources.
    pub channels: usize,
    /// Channels that share a scale. A divisor of each source's channels.
    pub block: usize,
    /// Bytes of an integer: 1 or 2.
    pub value_bytes: usize,
}

impl Record {
    /// The record for a contraction, with blocks as large as allowed. Blocks lie within the scale
    /// groups of the weights. `None` if no block divides the channels.
    pub fn new(contraction: &Contraction, value_bytes: usize) -> Option<Self> {
        let group = contraction.scale_group();
        let whole = group == contraction.k;
        let fits = |block: &usize| {
            contraction.sources.iter().all(|s| s.channels.is_multiple_of(*block))
                && (whole || group.is_multiple_of(*block))
        };
        let blocks = (QUANTUM..=MOST_BLOCK).rev().step_by(QUANTUM);
        let block = blocks.into_iter().find(fits)?;
        Some(Self { channels: contraction.channels(), block, value_bytes })
    }

    /// Bytes of a record.
    pub fn len_bytes(&self) -> usize {
        let blocks = self.channels / self.block;
        let outliers = if self.value_bytes == 1 { 4 + 8 * blocks } else { 0 };
        self.value_bytes * self.channels + 8 * blocks + outliers
    }
}
