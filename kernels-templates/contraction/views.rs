//! What templates see of a contraction.

use serde::Serialize;

/// A source as templates see it.
#[derive(Serialize)]
pub(super) struct SourceView {
    pub(super) name: &'static str,
    pub(super) channels: usize,
    /// Channels of the sources before it.
    pub(super) first: usize,
    pub(super) half: bool,
}

/// The epilogue as templates see it.
#[derive(Serialize)]
pub(super) struct EpilogueView {
    pub(super) bias: bool,
    pub(super) row: bool,
    pub(super) act: &'static str,
    pub(super) residual: bool,
    pub(super) gated: bool,
    /// There is a first row.
    pub(super) part: bool,
}

/// The prologue as templates see it.
#[derive(Serialize)]
pub(super) struct PrologueView {
    pub(super) silu: bool,
}

/// INT8 weights as templates see them.
#[derive(Serialize)]
pub(super) struct Quantization {
    /// Places of the sum that share a scale.
    pub(super) block: usize,
    /// There is one scale an output channel, which can wait for the epilogue.
    pub(super) whole: bool,
    /// Bytes of the scales, in front of a panel's weights.
    pub(super) weights_at: usize,
    /// Bytes of a panel.
    pub(super) panel: usize,
}
