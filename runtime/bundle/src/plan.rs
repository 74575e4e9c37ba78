//! The plan: every decision the runtime would otherwise have to make.
//!
//! Time is one global index. The networks stand in [`Plan::networks`] in the order in which they
//! first run. Network `i` occupies the half-open interval [`Plan::span`]`(i)`: one instant for each
//! of its steps. The [`Role::Denoiser`] and its variants run in a loop, in any order after the
//! first run of the denoiser, and the [`Role::TimestepProjection`] may run again in the middle of
//! that loop. A value that enters the loop is therefore live to the loop's end, and a value that is
//! carried from one run to another over all of the loop. All addresses are byte offsets into one arena. Streamed weights live in slots beside
//! it.
//!
//! A value crosses from one network to another only by an [`Input`] whose [`Source`] says so.
//!
//! Layout of every tensor: row-major, channels last (`[N, H, W, C]` or `[N, L, C]`).

use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::str::FromStr;

mod lora;
mod network;
mod schedule;
mod step;

pub use crate::rationale::Rationale;
pub use lora::{DownOrder, Layer, LoraRoom};
pub use network::{Feed, Input, Network, Port, Role, Slice, Source};
pub use schedule::{BetaCurve, Prediction, Schedule, Spacing};
pub use step::{Access, Arg, Dispatch, Gather, ROW_CHECKSUM_BYTES, Step};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        pub struct $name(pub u32);
        impl $name {
            /// The position in the vector that this id indexes.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}
id!(
    /// Index into [`Plan::kernels`].
    KernelId
);
id!(
    /// Index into [`Plan::blocks`].
    BlockId
);
id!(
    /// Index into [`MemoryPlan::slot_bytes`].
    SlotId
);
id!(
    /// Index into [`Plan::buffers`].
    BufferId
);
id!(
    /// Index into [`Plan::networks`].
    NetworkId
);

/// Element type of a tensor in device memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum ElementType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16; arithmetic is in binary32 but for kernels with
    /// [`Kernel::half_arithmetic`].
    F16,
    /// Two's complement, 8 bits.
    I8,
    /// Two's complement, 32 bits.
    I32,
}

impl ElementType {
    /// Bytes of one element.
    pub fn size_bytes(self) -> u64 {
        match self {
            ElementType::F32 | ElementType::I32 => 4,
            ElementType::F16 => 2,
            ElementType::I8 => 1,
        }
    }
}

/// A compiled model.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// What the bundle was made from and what the pipeline around the networks needs.
    pub manifest: Manifest,
    /// What a device must offer.
    pub requirements: Requirements,
    /// The memory promise.
    pub memory: MemoryPlan,
    /// OpenCL C sources, without duplicates. Those of one program can stand behind one another.
    pub sources: Vec<String>,
    /// Entry points of the sources, by order of their first launches.
    pub kernels: Vec<Kernel>,
    /// Runs of weight bytes that are loaded together, in execution order.
    pub blocks: Vec<Block>,
    /// Regions of the arena with their lifetimes.
    pub buffers: Vec<Buffer>,
    /// The networks in execution order, which is the order of their roles.
    pub networks: Vec<Network>,
    /// Room for LoRAs at run time.
    pub lora: LoraRoom,
    /// The reasons for the decisions.
    pub rationale: Rationale,
}

impl Plan {
    /// Half-open interval of global time that network `index` occupies.
    pub fn span(&self, index: usize) -> (u32, u32) {
        let lower: usize = self.networks[..index].iter().map(|n| n.steps.len()).sum();
        (lower as u32, (lower + self.networks[index].steps.len()) as u32)
    }

    /// Half-open range of the networks that may run again within the sampler's loop.
    pub fn looped(&self) -> Range<usize> {
        let is_looped = |network: &Network| network.role.is_looped();
        let first = self.networks.iter().position(is_looped).unwrap_or(0);
        let last = self.networks.iter().rposition(is_looped);
        first..last.map_or(first, |last| last + 1)
    }

    /// Index of the network with a role.
    pub fn with_role(&self, role: Role) -> Option<usize> {
        self.networks.iter().position(|network| network.role == role)
    }
}

/// Names and numbers of the model.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Configuration name, for example `sd21-base`.
    pub model: String,
    /// Weight storage, for example `fp16`.
    pub precision: String,
    /// Device profile the kernels were chosen for.
    pub profile: String,
    /// Fields of the profile that the compiler took from the device instead, each as
    /// `name = value`.
    pub adapted: Vec<String>,
    /// Version of the compiler.
    pub compiler: String,
    /// Size of the image.
    pub image: Size,
    /// Size of the latent.
    pub latent: Size,
    /// Latent channels.
    pub latent_channels: u32,
    /// Tokens a prompt is padded to.
    pub context_tokens: u32,
    /// Width of a text embedding.
    pub context_channels: u32,
    /// Noise schedule of the training, and defaults of the sampler.
    pub schedule: Schedule,
    /// Branches of guidance: [`GUIDANCE_BRANCHES`], or 1 for the conditional one alone. A bundle
    /// with one branch has no classifier-free guidance: its scale is 1.
    pub guidance_branches: u32,
    /// Batch rows of the denoiser: all branches of guidance in one pass, or 1 if each branch has a
    /// pass of its own. [`Manifest::batch_of`] has the rows of its variants.
    pub guidance_batch: u32,
    /// Whether there are variants of the denoiser for steps that cost less: shallow ones, and with
    /// two branches of guidance also those of the conditional branch.
    pub fast: bool,
    /// Channels of [`Feed::Guidance`]; 0 if the denoiser has no such input.
    pub guidance_channels: u32,
    /// Channels of the picture that the denoiser reads beside the latent; 0: none.
    pub condition_channels: u32,
    /// Timesteps in one run of [`Role::TimestepProjection`].
    pub timestep_rows: u32,
}

impl Manifest {
    /// Batch rows of a denoiser of a role.
    pub fn batch_of(&self, denoiser: Role) -> u32 {
        if denoiser.is_conditional() { 1 } else { self.guidance_batch }
    }
}

/// Width and height.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Size {
    /// Width in pixels.
    pub width_px: u32,
    /// Height in pixels.
    pub height_px: u32,
}

impl Size {
    /// Number of pixels.
    pub fn pixels(self) -> u64 {
        u64::from(self.width_px) * u64::from(self.height_px)
    }

    /// Height and width, the order of a tensor's axes.
    pub fn axes(self) -> [usize; 2] {
        [self.height_px as usize, self.width_px as usize]
    }
}

impl FromStr for Size {
    type Err = &'static str;

    /// Reads `512x768`, width x height.
    fn from_str(text: &str) -> Result<Size, Self::Err> {
        let number = |text: &str| text.parse().ok().filter(|&px| px > 0);
        let size = text.split_once('x').and_then(|(w, h)| Some((number(w)?, number(h)?)));
        let (width_px, height_px) = size.ok_or("write WIDTHxHEIGHT, as in 512x768")?;
        Ok(Size { width_px, height_px })
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.width_px, self.height_px)
    }
}

/// Branches of classifier-free guidance at most: unconditional and conditional, in this order.
pub const GUIDANCE_BRANCHES: u32 = 2;

/// What a device must offer to run the kernels and hold the buffers.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Requirements {
    /// Largest single device allocation.
    pub max_alloc_bytes: u64,
    /// Largest local memory of a work-group.
    pub local_mem_bytes: u64,
    /// Largest work-group.
    pub work_group_size: u64,
    /// Every buffer offset is a multiple of this.
    pub base_align_bytes: u64,
    /// Longest predicted time of a launch; 0 if the device has no limit.
    pub max_dispatch_ns: u64,
    /// OpenCL extensions the kernels use.
    pub extensions: Vec<String>,
}

/// Where the budget goes. The planned peak is the sum of the parts.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// Most bytes of the process that the user allows.
    pub budget_bytes: u64,
    /// Length of the arena, which holds activations and resident weights.
    pub arena_bytes: u64,
    /// Length of the arena's allocations. They follow one another; the last one has the rest of the
    /// arena. No buffer is in two of them. An arena that is no longer is one allocation.
    pub arena_part_bytes: u64,
    /// Largest sum of live buffer sizes. No placement needs less.
    pub arena_lower_bound_bytes: u64,
    /// One allocation for each slot of streamed weights.
    pub slot_bytes: Vec<u64>,
    /// Host memory that uploads pass through; 0 if the device reads host memory.
    pub staging_bytes: u64,
    /// The runtime's own buffers: plan, tokenizer, latents, preview, image.
    pub host_bytes: u64,
    /// Compiled kernels.
    pub program_bytes: u64,
    /// The process with an OpenCL driver loaded and nothing done.
    pub baseline_bytes: u64,
}

impl MemoryPlan {
    /// Lengths of the arena's allocations, in bytes.
    pub fn arena_parts(&self) -> impl Iterator<Item = u64> + '_ {
        let part_bytes = self.arena_part_bytes.max(1);
        let starts = (0..self.arena_bytes.div_ceil(part_bytes)).map(move |i| i * part_bytes);
        starts.map(move |start_bytes| part_bytes.min(self.arena_bytes - start_bytes))
    }

    /// Bytes that are allocated on the device.
    pub fn device_bytes(&self) -> u64 {
        let allocated = self.slot_bytes.iter().chain([&self.arena_bytes, &self.staging_bytes]);
        allocated.fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// Planned peak of the whole process.
    pub fn peak_bytes(&self) -> u64 {
        self.arena_bytes
            + self.slot_bytes.iter().sum::<u64>()
            + self.staging_bytes
            + self.host_bytes
            + self.program_bytes
            + self.baseline_bytes
    }
}

/// The OpenCL extension that kernels with half arithmetic need.
pub const HALF_EXTENSION: &str = "cl_khr_fp16";
/// Name among [`Requirements::extensions`] of the processor's AVX512_VNNI instructions.
pub const AVX512_VNNI: &str = "x86_avx512_vnni";
/// Name among [`Requirements::extensions`] of the processor's AVX_VNNI instructions.
pub const AVX_VNNI: &str = "x86_avx_vnni";

/// An entry point of an OpenCL program.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Kernel {
    /// The program that it is built with. A program is the sources of its kernels, in order.
    pub program: u32,
    /// Index into [`Plan::sources`].
    pub source: u32,
    /// Name of the `__kernel` function, unique in its program.
    pub entry: String,
    /// Name of the op, for example `conv2d`.
    pub op: String,
    /// Name of the variant, for example `naive`.
    pub variant: String,
    /// Build options, the same for all kernels of a program.
    pub options: String,
    /// Most of the arithmetic is in FP16, which needs [`HALF_EXTENSION`].
    pub half_arithmetic: bool,
    /// Instructions of the processor that it needs, [`AVX512_VNNI`] or [`AVX_VNNI`].
    pub instructions: Option<String>,
}

/// Weights that are loaded, used and freed together.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Block {
    /// Name of the op that reads it, or of the network for [`BlockKind::Constants`].
    pub name: String,
    /// What the block holds.
    pub kind: BlockKind,
    /// Offset in the weights section, a multiple of [`crate::format::PAGE_BYTES`].
    pub offset_bytes: u64,
    /// Length; the next block starts at the next multiple of [`crate::format::PAGE_BYTES`].
    pub len_bytes: u64,
    /// [`crate::hash`] of the bytes.
    pub checksum: u64,
    /// Where it lives while it is used.
    pub residency: Residency,
}

/// What a block holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    /// Large constants of one op, resident or streamed.
    Weights,
    /// Small constants of a whole network (biases, norms), always resident.
    Constants,
}

/// Where a block lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Residency {
    /// In the arena, by [`Network::loads`].
    Resident(BufferId),
    /// In a slot, by a [`Step::Load`] before each use.
    Streamed,
}

/// A region of the arena.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Buffer {
    /// Name of the value it holds.
    pub name: String,
    /// What the buffer holds.
    pub kind: BufferKind,
    /// Offset in the arena.
    pub offset_bytes: u64,
    /// Length.
    pub len_bytes: u64,
    /// First instant at which it is live.
    pub lower: u32,
    /// First instant at which it is no longer live.
    pub upper: u32,
}

/// What a buffer holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BufferKind {
    /// A value between ops of one network.
    Activation,
    /// Scratch memory of one op.
    Scratch,
    /// An input or an output of a network.
    Port,
    /// A resident block of [`BlockKind::Weights`].
    Weights,
    /// A resident block of [`BlockKind::Constants`].
    Constants,
    /// The factors of [`LoraRoom`].
    Factors,
}

impl BufferKind {
    /// Whether the buffer holds a resident block.
    pub fn is_resident(self) -> bool {
        matches!(self, BufferKind::Weights | BufferKind::Constants)
    }
}
