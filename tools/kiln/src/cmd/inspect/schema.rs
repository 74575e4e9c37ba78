//! The fields of an account, the schema of `--json`. `docs/reference/inspect-json.md` describes
//! them.

use kiln_bundle::plan::{
    BlockId, BlockKind, BufferId, BufferKind, Manifest, MemoryPlan, Requirements, Role, Source,
};
use kiln_bundle::rationale::{Attempt, KernelCode, Rates};
use kiln_compiler::device::Published;
use serde::Serialize;

use super::tensors::TensorAccount;

/// Version of the JSON, see `docs/reference/inspect-json.md`. It rises if a field changes its
/// meaning or is removed, not if one is added.
pub const SCHEMA: u32 = 4;

/// The whole account, and the schema of `--json`.
#[derive(Serialize)]
pub struct Account<'a> {
    pub schema: u32,
    pub model: &'a str,
    pub precision: &'a str,
    pub profile: &'a str,
    pub manifest: &'a Manifest,
    pub memory: Memory<'a>,
    pub requirements: &'a Requirements,
    pub rates: &'a Rates,
    pub predicted: Predicted,
    pub networks: Vec<NetworkAccount<'a>>,
    pub weight_reads: Option<String>,
    pub published: Vec<Published>,
    pub peak: Peak<'a>,
    pub arena: Vec<Region<'a>>,
    pub weights: Weights,
    pub kernels: Vec<KernelAccount<'a>>,
    pub ops: Vec<OpAccount<'a>>,
    pub blocks: Vec<BlockAccount<'a>>,
    pub loads: Vec<LoadAccount>,
    pub start_ns: Vec<u64>,
    pub live_bytes: Vec<u64>,
    pub attempts: &'a [Attempt],
    pub tensors: Vec<TensorAccount<'a>>,
}

/// The budget, its parts and their sum.
#[derive(Serialize)]
pub struct Memory<'a> {
    pub peak_bytes: u64,
    #[serde(flatten)]
    pub plan: &'a MemoryPlan,
}

/// Predicted times of a picture.
#[derive(Serialize)]
pub struct Predicted {
    pub sampler_steps: u64,
    pub picture_ns: u64,
    pub picture_single_issue_ns: u64,
    pub fast_picture_ns: Vec<u64>,
    pub step_ns: u64,
    pub step_stall_ns: u64,
}

/// A network, and the work and memory of one pass.
#[derive(Serialize)]
pub struct NetworkAccount<'a> {
    pub name: &'a str,
    pub role: Role,
    pub runs: &'static str,
    pub passes: u64,
    pub lower: u32,
    pub upper: u32,
    pub launches: usize,
    pub flops: u64,
    pub streamed_bytes: u64,
    pub resident_bytes: u64,
    pub arena_peak_bytes: u64,
    pub resident_ns: u64,
    pub first_ns: u64,
    pub pass_ns: u64,
    pub pass_single_issue_ns: u64,
    pub stall_ns: u64,
    pub measured_ns: Option<u64>,
    pub inputs: Vec<InputAccount<'a>>,
    pub loads: &'a [BlockId],
    pub overwrites: &'a [BlockId],
}

/// An input of a network and where its value comes from.
#[derive(Serialize)]
pub struct InputAccount<'a> {
    pub name: &'a str,
    pub buffer: BufferId,
    pub shape: &'a [u32],
    pub source: Source,
}

/// The step with the most live bytes in the arena.
#[derive(Serialize)]
pub struct Peak<'a> {
    pub step: u32,
    pub network: &'a str,
    pub op: &'a str,
    pub live_bytes: u64,
    pub live: Vec<Region<'a>>,
}

/// A buffer: contents, address and live range.
#[derive(Serialize, Clone, Copy)]
pub struct Region<'a> {
    pub buffer: u32,
    pub name: &'a str,
    pub kind: BufferKind,
    pub offset_bytes: u64,
    pub len_bytes: u64,
    pub lower: u32,
    pub upper: u32,
}

/// Weights by residency.
#[derive(Serialize)]
pub struct Weights {
    pub resident_bytes: u64,
    pub resident_blocks: usize,
    pub streamed_bytes: u64,
    pub streamed_blocks: usize,
    pub streamed_bytes_a_pass: u64,
}

/// A kernel variant, over all its launches.
#[derive(Serialize)]
pub struct KernelAccount<'a> {
    pub op: &'a str,
    pub variant: &'a str,
    pub kernels: usize,
    pub launches: usize,
    pub flops: u64,
    pub bytes: u64,
    pub predicted_ns: u64,
}

/// One launch or gather.
#[derive(Serialize)]
pub struct OpAccount<'a> {
    pub step: u32,
    pub network: usize,
    pub name: &'a str,
    pub op: &'a str,
    pub variant: &'a str,
    pub kernel: Option<u32>,
    pub entry: &'a str,
    pub shape: &'a [u32],
    pub problem: &'a str,
    pub global: [u64; 3],
    pub offset: [u64; 3],
    pub range: [u64; 3],
    pub local: Option<[u64; 3]>,
    pub half_arithmetic: bool,
    pub reads: Vec<u32>,
    pub writes: Vec<u32>,
    pub blocks: Vec<u32>,
    pub flops: u64,
    pub bytes: u64,
    pub predicted_ns: u64,
    pub single_issue_ns: u64,
    pub bound: &'a str,
    pub code: Option<&'a KernelCode>,
    pub measured_ns: Option<u64>,
}

/// A block of weights.
#[derive(Serialize)]
pub struct BlockAccount<'a> {
    pub name: &'a str,
    pub kind: BlockKind,
    pub len_bytes: u64,
    pub resident: bool,
    pub buffer: Option<u32>,
}

/// A streamed block from load to free.
#[derive(Serialize)]
pub struct LoadAccount {
    pub step: u32,
    pub block: u32,
    pub slot: u32,
    pub start_ns: i64,
    pub ns: u64,
    pub stall_ns: u64,
    pub free: u32,
}
