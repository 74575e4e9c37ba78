//! A full-size Stable Diffusion v2.1-base checkpoint with synthetic values, as a file or on demand.
//!
//! Every tensor name and shape is that of `v2-1_512-ema-pruned.safetensors`, so that programs for
//! the real checkpoint also read this one. [`values`] defines the values. [`Checkpoint`] lists the
//! tensors and writes them.

#![forbid(unsafe_code)]

mod file;
pub mod values;

use clap::ValueEnum;

pub use file::{Checkpoint, Tensor};

/// Storage type of the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// 4 bytes a value.
    Fp32,
    /// 2 bytes a value.
    Fp16,
}

impl Precision {
    fn size_bytes(self) -> usize {
        match self {
            Self::Fp32 => 4,
            Self::Fp16 => 2,
        }
    }

    /// The type's name in safetensors.
    fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "F32",
            Self::Fp16 => "F16",
        }
    }
}
