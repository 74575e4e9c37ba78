//! The plan: every decision the runtime would otherwise have to make.
//!
//! Time is one global index. The networks run in the order of [`Plan::networks`]; network `i`
//! occupies the half-open interval [`Plan::span`]`(i)`, one instant for each of its steps. The network of
//! [`Phase::Step`] repeats; a buffer that carries a value from one repetition to the next, or
//! into the loop from outside, is live over the whole interval. All addresses are byte offsets
//! into one arena; streamed weights live in slots beside it.
//!
//! Layout of every tensor: row-major, channels last (`[N, H, W, C]` or `[N, L, C]`).

use serde::{Deserialize, Serialize};

pub use crate::rationale::Rationale;

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

/// Element type of a tensor in device memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16; arithmetic is in binary32 but for kernels with [`Kernel::half_arithmetic`].
    F16,
    /// Two's complement, 8 bits.
    I8,
    /// Two's complement, 32 bits.
    I32,
}

impl DType {
    /// Bytes of one element.
    pub fn size_bytes(self) -> u64 {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::F16 => 2,
            DType::I8 => 1,
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
    /// OpenCL C sources, one program each, without duplicates.
    pub sources: Vec<String>,
    /// Entry points of the sources.
    pub kernels: Vec<Kernel>,
    /// Runs of weight bytes that are loaded together, in execution order.
    pub blocks: Vec<Block>,
    /// Regions of the arena with their lifetimes.
    pub buffers: Vec<Buffer>,
    /// The networks in execution order.
    pub networks: Vec<Network>,
    /// Why it is so.
    pub rationale: Rationale,
}

impl Plan {
    /// Half-open interval of global time that network `index` occupies.
    pub fn span(&self, index: usize) -> (u32, u32) {
        let lower: usize = self.networks[..index].iter().map(|n| n.steps.len()).sum();
        (lower as u32, (lower + self.networks[index].steps.len()) as u32)
    }

    /// The network of that name.
    pub fn network(&self, name: &str) -> Option<&Network> {
        self.networks.iter().find(|n| n.name == name)
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
    /// Version of the compiler.
    pub compiler: String,
    /// Picture width and height in pixels.
    pub image_px: u32,
    /// Latent width and height.
    pub latent_px: u32,
    /// Latent channels.
    pub latent_channels: u32,
    /// Tokens a prompt is padded to.
    pub context_tokens: u32,
    /// Width of a text embedding.
    pub context_channels: u32,
    /// The U-Net predicts velocity rather than noise.
    pub v_prediction: bool,
    /// Rows of the U-Net batch: 2 when both branches of guidance run in one pass, else 1.
    pub guidance_batch: u32,
    /// Timesteps whose projections one run of the `unet_time` network makes.
    pub timestep_rows: u32,
}

/// Limits the kernels and buffers were made for.
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
    /// Longest time that a launch is predicted to take; 0 where the device minds no length.
    pub max_dispatch_ns: u64,
    /// OpenCL extensions the kernels use.
    pub extensions: Vec<String>,
}

/// Where the budget goes. `peak_bytes` is the sum of the parts.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// What the user allowed.
    pub budget_bytes: u64,
    /// One allocation for activations and resident weights.
    pub arena_bytes: u64,
    /// Largest sum of live buffer sizes: no arrangement needs less than this.
    pub arena_lower_bound_bytes: u64,
    /// One allocation for each slot of streamed weights.
    pub slot_bytes: Vec<u64>,
    /// Host memory that uploads pass through; 0 where the device reads host memory.
    pub staging_bytes: u64,
    /// The runtime's own buffers: plan, tokenizer, latents, picture.
    pub host_bytes: u64,
    /// Compiled kernels.
    pub program_bytes: u64,
    /// The process with an OpenCL driver loaded and nothing done.
    pub baseline_bytes: u64,
}

impl MemoryPlan {
    /// What is allocated on the device.
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

/// An entry point of an OpenCL program.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Kernel {
    /// Index into [`Plan::sources`].
    pub source: u32,
    /// Name of the `__kernel` function.
    pub entry: String,
    /// Name of the op, for example `conv2d`.
    pub op: String,
    /// Name of the variant, for example `naive`.
    pub variant: String,
    /// Build options.
    pub options: String,
    /// Most of its arithmetic is in FP16, which needs [`HALF_EXTENSION`].
    pub half_arithmetic: bool,
}

/// Weights that are loaded, used and freed together.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Block {
    /// Name of the op that reads it.
    pub name: String,
    /// Offset in the weights section, a multiple of [`crate::format::PAGE_BYTES`].
    pub offset_bytes: u64,
    /// Length; the next block starts at the next multiple of [`crate::format::PAGE_BYTES`].
    pub len_bytes: u64,
    /// [`crate::hash`] of the bytes.
    pub checksum: u64,
    /// Where it lives while it is used.
    pub residency: Residency,
}

/// Where a block lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Residency {
    /// In the arena, loaded once before the network that first reads it.
    Resident(BufferId),
    /// In a slot, by a [`Step::Load`] before each use.
    Streamed,
}

/// A region of the arena.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Buffer {
    /// Name of the value it holds.
    pub name: String,
    /// Offset in the arena.
    pub offset_bytes: u64,
    /// Length.
    pub len_bytes: u64,
    /// First instant at which it is live.
    pub lower: u32,
    /// First instant at which it is no longer live.
    pub upper: u32,
}

/// When a network runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Phase {
    /// Once for each prompt.
    Prompt,
    /// Once for every [`Manifest::timestep_rows`] timesteps.
    Timesteps,
    /// For each step of the sampler, once or twice by [`Manifest::guidance_batch`].
    Step,
    /// Once for each picture.
    Picture,
}

/// A network: its ports and its steps.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Network {
    /// `text_encoder`, `unet_prompt`, `unet_time`, `unet`, `decoder`.
    pub name: String,
    /// When it runs.
    pub phase: Phase,
    /// What must be written before it runs.
    pub inputs: Vec<Port>,
    /// What it leaves.
    pub outputs: Vec<Port>,
    /// What it does, in order.
    pub steps: Vec<Step>,
}

/// A named tensor at the border of a network. Networks share a value by sharing its buffer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Port {
    /// Name, for example `latent`.
    pub name: String,
    /// Where it is.
    pub buffer: BufferId,
    /// Element type.
    pub dtype: DType,
    /// Shape, channels last.
    pub shape: Vec<u32>,
}

/// What the runtime does at one instant.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Step {
    /// Read a streamed block into a slot. The read may run ahead as soon as the slot is free.
    Load {
        /// What to read.
        block: BlockId,
        /// Where to.
        slot: SlotId,
    },
    /// Copy rows of a table in the weights section, chosen by integers that are in a buffer, into
    /// another buffer: an embedding without the table in memory.
    Gather(Gather),
    /// Run a kernel.
    Dispatch(Dispatch),
    /// The block is not read again in this run of the network; its slot is free.
    Free {
        /// What is freed.
        block: BlockId,
    },
}

/// Bytes behind each row of a table: its hash, little-endian.
pub const ROW_CHECKSUM_BYTES: u64 = 8;

/// A look-up of rows that never leaves the file system for the rows it does not need.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Gather {
    /// The op, for people.
    pub name: String,
    /// Start of the table in the weights section.
    pub table_offset_bytes: u64,
    /// Bytes of a row, already in the output's element type. In the file each row is followed by
    /// its checksum, [`ROW_CHECKSUM_BYTES`] long.
    pub row_bytes: u64,
    /// Rows in the table; another index is an error.
    pub row_count: u32,
    /// Port whose `i32` elements are the indices: an input of the network, written by the host.
    pub indices: BufferId,
    /// How many indices.
    pub index_count: u32,
    /// Where the rows go, one after the other.
    pub output: BufferId,
}

/// One kernel launch.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Dispatch {
    /// The op this launch is part of, for people.
    pub name: String,
    /// What to run.
    pub kernel: KernelId,
    /// Arguments in order.
    pub args: Vec<Arg>,
    /// Global work size.
    pub global: [u64; 3],
    /// First work-item.
    pub offset: [u64; 3],
    /// Work-items of the launch that this one is part of: the steps from the one that begins at
    /// none run them once each, one part after the other along one axis. `global` where the launch is whole.
    pub range: [u64; 3],
    /// Local work size; `None` leaves it to the driver.
    pub local: Option<[u64; 3]>,
    /// Arithmetic, two for each multiply-add.
    pub flops: u64,
    /// What it reads and writes, every argument once; launches that write one buffer together
    /// share its bytes.
    pub bytes: u64,
    /// How long it should take on the device it was compiled for.
    pub predicted_ns: u64,
}

/// How a launch uses a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Access {
    /// Only read.
    Read,
    /// Only written; all of the region, unless an earlier launch wrote the rest.
    Write,
}

/// One kernel argument.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Arg {
    /// A region of a buffer.
    Buffer {
        /// Which buffer.
        buffer: BufferId,
        /// Start of the region in the buffer.
        offset_bytes: u64,
        /// Its length.
        len_bytes: u64,
        /// What the kernel does with it.
        access: Access,
    },
    /// A region of a weight block, read only.
    Weight {
        /// Which block.
        block: BlockId,
        /// Start of the region in the block.
        offset_bytes: u64,
        /// Its length.
        len_bytes: u64,
    },
    /// A 32-bit unsigned scalar.
    U32(u32),
    /// A 32-bit floating-point scalar.
    F32(f32),
}
