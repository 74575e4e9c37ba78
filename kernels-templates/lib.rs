//! OpenCL kernels: one folder an op, one template a variant, specialized to each shape.
//!
//! [`Variant::lower`] turns an op with its types into launches for a device class. A folder's
//! `mod.rs` lists its variants in `VARIANTS`; [`REGISTRY`] lists the folders. Every folder has the
//! variant `naive`: the obvious loop, one work-item an output element, the oracle on the device.
//! This crate renders text and computes sizes, and never calls OpenCL.
#![forbid(unsafe_code)]

pub mod attention;
pub mod chain;
pub mod concat;
pub mod contraction;
pub mod conv2d;
pub mod elementwise;
pub mod geglu;
pub mod group_affine;
pub mod group_norm;
pub mod launch;
pub mod layer_norm;
pub mod lowering;
pub mod matmul;
pub mod merge;
pub mod packing;
pub mod permute;
pub mod pointwise;
pub mod program;
pub mod quantize;
pub mod reductions;
pub(crate) mod rows;
pub mod scale;
pub mod slice;
pub mod target;
pub mod template;
pub mod timestep_embedding;
pub mod upsample;
pub mod variant;

use kiln_ir::{Op, TensorType};
pub use lowering::{Argument, Launch, Lowering, Slot, SourceText, in_place};
pub use packing::Packing;
pub use target::{DeviceClass, Target, Tiling, Tuning};
pub use variant::{Family, Needs, Rounding, Variant, candidates, families, family};

/// One input of an op.
#[derive(Clone, PartialEq, Debug)]
pub struct Operand {
    /// Type. The element type is the storage type.
    pub ty: TensorType,
    /// Whether the value is known at compile time, so that it may be packed in any order.
    pub constant: bool,
    /// For weights stored as `i8`, the size of a scale group: the number of K indices that share a
    /// scale, in the order `[ky][kx][c]`. A divisor of the channels of every source, or all of K
    /// for one scale an output channel. 0 for other storage types.
    pub scale_group: usize,
}

impl Operand {
    /// A value that is known only at run time.
    pub fn new(ty: TensorType) -> Self {
        Self { ty, constant: false, scale_group: 0 }
    }

    /// A floating-point value that is known at compile time.
    pub fn constant(ty: TensorType) -> Self {
        Self { ty, constant: true, scale_group: 0 }
    }
}

/// An op to lower, with the types around it.
#[derive(Clone, PartialEq, Debug)]
pub struct Problem<'a> {
    /// The op.
    pub op: &'a Op,
    /// Its inputs.
    pub inputs: &'a [Operand],
    /// Type of its output.
    pub output: &'a TensorType,
    /// Largest run of packed weights that one launch may read, in bytes. Larger weights are split
    /// over several launches along output channels, so that each part can be streamed through a
    /// slot.
    pub max_weight_bytes: u64,
    /// Preferred limit of a variant's scratch memory, in bytes.
    pub max_scratch_bytes: u64,
}

impl<'a> Problem<'a> {
    /// A problem without limits on weights and scratch memory.
    pub fn unlimited(op: &'a Op, inputs: &'a [Operand], output: &'a TensorType) -> Self {
        let (max_weight_bytes, max_scratch_bytes) = (u64::MAX, u64::MAX);
        Self { op, inputs, output, max_weight_bytes, max_scratch_bytes }
    }
}

/// The op without names: `f32[2,77,1024] x f16[1024,1024] -> f32[2,77,1024] sources=1`.
impl std::fmt::Display for Problem<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, input) in self.inputs.iter().enumerate() {
            let between = if index == 0 { "" } else { " x " };
            write!(f, "{between}{}", input.ty)?;
        }
        let attributes = self.op.attributes();
        let before = if attributes.is_empty() { "" } else { " " };
        write!(f, " -> {}{before}{}", self.output, attributes.trim_end())
    }
}

/// The families of all folders. To add one: its folder and its line here.
pub const REGISTRY: &[&[Family]] = &[
    attention::FAMILIES,
    chain::FAMILIES,
    concat::FAMILIES,
    conv2d::FAMILIES,
    geglu::FAMILIES,
    group_affine::FAMILIES,
    group_norm::FAMILIES,
    layer_norm::FAMILIES,
    matmul::FAMILIES,
    permute::FAMILIES,
    pointwise::FAMILIES,
    reductions::FAMILIES,
    scale::FAMILIES,
    slice::FAMILIES,
    timestep_embedding::FAMILIES,
    upsample::FAMILIES,
];
