//! OpenCL kernels: one folder an op, one template a variant, specialized to each shape.
//!
//! [`Variant::lower`] turns an op with its types into launches for a device class. A folder's `mod.rs`
//! lists its variants in `VARIANTS`; [`REGISTRY`] lists the folders. `naive` exists in every
//! folder: one work-item an output element, the obvious loop, the oracle on the device.
//! This crate renders text and computes sizes; it never talks to OpenCL.
#![forbid(unsafe_code)]

pub mod add;
pub mod attention;
pub mod chain;
pub mod concat;
pub mod contraction;
pub mod conv2d;
pub mod elementwise;
pub mod geglu;
pub mod gelu;
pub mod group_affine;
pub mod group_norm;
pub mod launch;
pub mod layer_norm;
pub mod matmul;
pub mod mean;
pub mod mul;
pub mod packing;
pub mod permute;
pub mod quantize;
pub(crate) mod rows;
pub mod scale;
pub mod silu;
pub mod slice;
pub mod softmax;
pub mod target;
pub mod template;
pub mod timestep_embedding;
pub mod upsample;
pub mod variance;

use kiln_ir::{Op, TensorType};
pub use packing::Packing;
use std::sync::Arc;
pub use target::{DeviceClass, Target, Tuning};

/// One input of an op.
#[derive(Clone, PartialEq, Debug)]
pub struct Operand {
    /// Its type; the element type is the storage type.
    pub ty: TensorType,
    /// Known at compile time, so that it may be packed into any order.
    pub constant: bool,
    /// Weights stored as `i8`: how many places of the sum share a scale, in the order
    /// `[ky][kx][c]`. A divisor of the channels of every source, or the length of the whole sum
    /// for one scale an output channel. 0 for other storage types.
    pub block: usize,
}

impl Operand {
    /// A value that is only known when the program runs.
    pub fn new(ty: TensorType) -> Self {
        Self { ty, constant: false, block: 0 }
    }

    /// A value that is known at compile time, stored as floating point.
    pub fn constant(ty: TensorType) -> Self {
        Self { ty, constant: true, block: 0 }
    }
}

/// An op to be lowered: what it is and the types around it.
#[derive(Clone, PartialEq, Debug)]
pub struct Problem<'a> {
    /// The op.
    pub op: &'a Op,
    /// Its inputs.
    pub inputs: &'a [Operand],
    /// Type of its output.
    pub output: &'a TensorType,
    /// Largest run of packed weights that one launch may read; larger ones are split over several
    /// launches along output channels, so that each can be streamed through a slot.
    pub max_weight_bytes: u64,
    /// Scratch memory that a variant should keep within where it has the choice.
    pub max_scratch_bytes: u64,
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

/// A kernel argument before anything has an address.
#[derive(Clone, PartialEq, Debug)]
pub enum Argument {
    /// A region of an input. For a constant, of its packed form.
    Input {
        /// Which input.
        index: usize,
        /// Start of the region.
        offset_bytes: u64,
        /// Its length.
        len_bytes: u64,
    },
    /// The whole output.
    Output,
    /// Scratch memory, by index into [`Lowering::scratch_bytes`].
    Scratch {
        /// Which.
        index: usize,
        /// The launch writes it (all of it, over the launches up to the first that reads it).
        written: bool,
    },
    /// A 32-bit unsigned scalar.
    U32(u32),
    /// A 32-bit floating-point scalar.
    F32(f32),
}

/// The OpenCL extension that kernels with half arithmetic need.
pub const HALF_EXTENSION: &str = "cl_khr_fp16";

/// One kernel launch.
#[derive(Clone, PartialEq, Debug)]
pub struct Launch {
    /// OpenCL C, complete.
    pub source: Arc<str>,
    /// Name of the kernel function.
    pub entry: &'static str,
    /// Arguments in order.
    pub args: Vec<Argument>,
    /// Global work size.
    pub global: [u64; 3],
    /// Local work size; `None` leaves it to the driver.
    pub local: Option<[u64; 3]>,
    /// Local memory that the kernel declares.
    pub local_mem_bytes: u64,
    /// Arithmetic of this launch.
    pub flops: u64,
    /// Most of it is in FP16: at another rate, and only where there is [`HALF_EXTENSION`].
    pub half_arithmetic: bool,
    /// What it reads and writes, if that is not all of its arguments.
    pub bytes: Option<u64>,
}

/// An op as launches.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Lowering {
    /// In order.
    pub launches: Vec<Launch>,
    /// Temporary buffers, live over the launches of this op.
    pub scratch_bytes: Vec<u64>,
    /// How each constant input is packed, by input index. Constants without an entry are
    /// [`Packing::RowMajor`].
    pub packings: Vec<(usize, Packing)>,
    /// Inputs whose memory the output may take, beside the residual: each byte of them is written after
    /// the last launch or work-item that reads it.
    pub in_place: Vec<usize>,
}

/// The inputs whose memory the output of a lowering may take: those it names, and the residual of a
/// contraction, each element of which is read where it is added and stored.
pub fn in_place(problem: &Problem, lowering: &Lowering) -> Vec<usize> {
    let same = |index: &usize| problem.inputs[*index].ty == *problem.output;
    lowering.in_place.iter().copied().chain(problem.op.residual()).filter(same).collect()
}

/// One way to compute an op.
pub struct Variant {
    /// Name, also that of its template.
    pub name: &'static str,
    /// Whether it can compute this problem on this target (correctness and limits, not speed).
    pub applies: fn(&Problem, &Target) -> bool,
    /// The launches. Called only if `applies`.
    pub lower: fn(&Problem, &Target) -> anyhow::Result<Lowering>,
}

/// The variants of an op.
pub struct Family {
    /// [`Op::name`].
    pub op: &'static str,
    /// Best first; `naive` last.
    pub variants: &'static [Variant],
}

/// All families. To add one: its folder and its line here.
pub const REGISTRY: &[&Family] = &[
    &add::FAMILY,
    &attention::FAMILY,
    &chain::FAMILY,
    &concat::FAMILY,
    &conv2d::FAMILY,
    &geglu::FAMILY,
    &gelu::FAMILY,
    &group_affine::FAMILY,
    &group_norm::FAMILY,
    &layer_norm::FAMILY,
    &matmul::FAMILY,
    &mean::FAMILY,
    &mul::FAMILY,
    &permute::FAMILY,
    &scale::FAMILY,
    &silu::FAMILY,
    &slice::FAMILY,
    &softmax::FAMILY,
    &timestep_embedding::FAMILY,
    &upsample::FAMILY,
    &variance::FAMILY,
];

/// The family of an op.
pub fn family(op: &str) -> Option<&'static Family> {
    REGISTRY.iter().copied().find(|f| f.op == op)
}

/// The variants that can compute a problem, best first: those the target prefers by name, then
/// the family's own order.
pub fn candidates(problem: &Problem, target: &Target) -> Vec<&'static Variant> {
    let op = problem.op.name();
    let Some(family) = family(op) else {
        return vec![];
    };
    let mut list: Vec<_> =
        family.variants.iter().filter(|v| (v.applies)(problem, target)).collect();
    if let Some(preferred) = target.prefer.get(op) {
        let rank =
            |v: &Variant| preferred.iter().position(|p| p == v.name).unwrap_or(preferred.len());
        list.sort_by_key(|v| rank(v));
    }
    list
}
