//! Valid plans for tests: a small one that uses every feature, and chains of any length.

mod chain;

use std::ops::Range;
use std::path::Path;

use crate::error::BundleError;
use crate::format::{BundleWriter, hash};
use crate::plan::{
    Access, Arg, Block, BlockId, BlockKind, Buffer, BufferId, BufferKind, Dispatch, ElementType,
    Feed, Gather, Input, Kernel, KernelId, Manifest, MemoryPlan, Network, NetworkId, Plan, Port,
    ROW_CHECKSUM_BYTES, Requirements, Residency, Role, Schedule, Size, Slice, SlotId, Source, Step,
};
use crate::rationale::{
    Alternative, Attempt, Choice, Cost, OpChoice, Rates, Rationale, StoredWeight, Verdict,
};

pub use chain::{CHAIN_END_BUFFERS, Ends, chain, ends, weights_len_bytes};

/// What stands in for a tokenizer.
pub const TOKENIZER: &[u8] = b"a tokenizer";

const BLOCK_LENS: [u64; 3] = [4096, 5000, 4096];
const BLOCK_OFFSETS: [u64; 3] = [0, 4096, 12288];
const TABLE_OFFSET: u64 = 16384;
const TABLE_LEN: u64 = 64 * (16 + ROW_CHECKSUM_BYTES);

fn weight_byte(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn weight_bytes(offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len).map(weight_byte).collect()
}

/// The weights section of [`plan`], short of its last padding.
pub fn weights() -> Vec<u8> {
    let mut bytes = vec![0; (TABLE_OFFSET + TABLE_LEN) as usize];
    let ranges = BLOCK_OFFSETS.into_iter().zip(BLOCK_LENS).chain([(TABLE_OFFSET, TABLE_LEN)]);
    for (offset, len) in ranges {
        bytes[offset as usize..(offset + len) as usize].copy_from_slice(&weight_bytes(offset, len));
    }
    bytes
}

/// Writes a bundle of [`plan`] and returns its length.
pub fn write(path: &Path) -> Result<u64, BundleError> {
    let mut writer = BundleWriter::create(path)?;
    for (offset, len) in BLOCK_OFFSETS.into_iter().zip(BLOCK_LENS) {
        let bytes = weight_bytes(offset, len);
        assert_eq!(writer.write_block(&bytes)?, (offset, len, hash(&bytes)));
    }
    let table = weight_bytes(TABLE_OFFSET, TABLE_LEN);
    let offset = writer.write_stream(table.chunks(100).map(Ok::<_, BundleError>))?;
    assert_eq!(offset, TABLE_OFFSET);
    writer.finish(&plan(), TOKENIZER)
}

/// A valid plan with four networks, a table, streamed and resident blocks, a value written in two
/// parts, and two values that enter the sampler's loop: one in place and one row by row.
pub fn plan() -> Plan {
    Plan {
        manifest: manifest(),
        requirements: requirements(),
        memory: MemoryPlan {
            budget_bytes: 1 << 20,
            arena_bytes: 5520,
            arena_part_bytes: 1 << 16,
            arena_lower_bound_bytes: 256 + 64 + 256 + 512 + 256 + 4096 + 16,
            slot_bytes: vec![8192, 4096],
            staging_bytes: 4096,
            host_bytes: 8192,
            program_bytes: 1024,
            baseline_bytes: 65536,
        },
        sources: vec!["__kernel void first() {}".into(), "__kernel void second() {}".into()],
        kernels: vec![kernel(0, "first"), kernel(1, "second")],
        blocks: vec![
            block("encode", 0, Residency::Streamed),
            block("conv_in", 1, Residency::Streamed),
            block("attention", 2, Residency::Resident(BufferId(8))),
        ],
        buffers: vec![
            buffer("tokens", BufferKind::Port, 512..544, 0..4),
            buffer("embedding", BufferKind::Activation, 640..768, 0..3),
            buffer("context", BufferKind::Port, 0..256, 2..10),
            buffer("timesteps", BufferKind::Port, 384..400, 4..5),
            buffer("time", BufferKind::Port, 256..320, 4..10),
            buffer("latent", BufferKind::Port, 384..640, 5..10),
            buffer("hidden", BufferKind::Activation, 640..1152, 6..9),
            buffer("noise", BufferKind::Port, 1152..1408, 8..10),
            buffer("attention.weights", BufferKind::Weights, 1408..5504, 5..10),
            buffer("decoder.latent", BufferKind::Port, 0..128, 10..12),
            buffer("image", BufferKind::Port, 256..1024, 11..13),
            buffer("time.row", BufferKind::Port, 5504..5520, 5..10),
        ],
        networks: vec![text_encoder(), unet_time(), unet(), decoder()],
        lora: Default::default(),
        rationale: rationale(),
    }
}

fn rationale() -> Rationale {
    let cost = Cost { launches: 1, scratch_bytes: 0, flops: 1000, bytes: 4480, predicted_ns: 448 };
    let alternative = |variant: &str, verdict| Alternative { variant: variant.into(), verdict };
    Rationale {
        rates: Rates {
            flops_per_s: 1 << 40,
            half_flops_per_s: 1 << 41,
            memory_bytes_per_s: 10_000_000_000,
            io_bytes_per_s: 1 << 30,
            launch_ns: 1000,
        },
        attempts: vec![Attempt { strategy: "the only one".into(), needs_bytes: None }],
        choices: vec![Choice {
            problem: "f32[8,4] x f16[8,4] -> f32[8,8]".into(),
            shape: vec![8, 8],
            alternatives: vec![
                alternative("tiled", Verdict::DoesNotApply),
                alternative("naive", Verdict::Chosen(cost)),
            ],
        }],
        ops: vec![OpChoice { instant: 2, choice: 0 }],
        weights: vec![StoredWeight {
            name: "a.weight".into(),
            shape: vec![8, 4],
            dtype: ElementType::I8,
            block: Some(4),
            relative_error: Some(0.5),
        }],
        code: vec![None],
    }
}

fn manifest() -> Manifest {
    Manifest {
        model: "tiny".into(),
        precision: "fp16".into(),
        profile: "cpu".into(),
        adapted: vec![],
        compiler: "0.1.0".into(),
        image: Size { width_px: 8, height_px: 8 },
        latent: Size { width_px: 4, height_px: 4 },
        latent_channels: 4,
        context_tokens: 4,
        context_channels: 8,
        schedule: Schedule::default(),
        guidance_branches: 2,
        guidance_batch: 1,
        fast: false,
        guidance_channels: 0,
        condition_channels: 0,
        timestep_rows: 4,
    }
}

fn requirements() -> Requirements {
    Requirements {
        max_alloc_bytes: 1 << 16,
        local_mem_bytes: 0,
        work_group_size: 64,
        base_align_bytes: 128,
        max_dispatch_ns: 0,
        extensions: vec![],
    }
}

fn text_encoder() -> Network {
    let gather = Gather {
        name: "embed".into(),
        table_offset_bytes: TABLE_OFFSET,
        row_bytes: 16,
        row_count: 64,
        indices: BufferId(0),
        index_count: 8,
        output: BufferId(1),
    };
    let args = vec![read(1, 0, 128), weight(0, 0, 4096), write_to(2, 0, 256)];
    Network {
        name: "text_encoder".into(),
        role: Role::TextEncoder,
        inputs: vec![host(Feed::Tokens, port("tokens", 0, ElementType::I32, &[2, 4]))],
        outputs: vec![port("context", 2, ElementType::F32, &[8, 8])],
        loads: vec![],
        overwrites: vec![],
        steps: vec![Step::Gather(gather), load(0, 0), dispatch("encode", 0, args), free(0)],
    }
}

fn unet_time() -> Network {
    let args = vec![read(3, 0, 16), write_to(4, 0, 64), Arg::U32(4), Arg::F32(0.5)];
    Network {
        name: "unet_time".into(),
        role: Role::TimestepProjection,
        inputs: vec![host(Feed::Timestep, port("timesteps", 3, ElementType::F32, &[4]))],
        outputs: vec![port("time", 4, ElementType::F32, &[4, 4])],
        loads: vec![],
        overwrites: vec![],
        steps: vec![dispatch("time", 1, args)],
    }
}

fn unet() -> Network {
    let latent = || read(5, 0, 256);
    let row = Slice::TimestepRow { row_bytes: 16, copies: 1 };
    let attention =
        vec![read(6, 0, 512), read(2, 0, 256), read(11, 0, 16), weight(2, 64, 4032), noise()];
    Network {
        name: "unet".into(),
        role: Role::Denoiser,
        inputs: vec![
            host(Feed::Latent, port("latent", 5, ElementType::F32, &[1, 4, 4, 4])),
            output_of(0, Slice::InPlace, port("context", 2, ElementType::F32, &[8, 8])),
            output_of(1, row, port("time", 11, ElementType::F32, &[1, 4])),
        ],
        outputs: vec![port("noise", 7, ElementType::F32, &[1, 4, 4, 4])],
        loads: vec![BlockId(2)],
        overwrites: vec![],
        steps: vec![
            load(1, 0),
            dispatch("conv_in.top", 0, vec![latent(), weight(1, 0, 5000), write_to(6, 0, 300)]),
            dispatch("conv_in.bottom", 0, vec![latent(), write_to(6, 300, 212)]),
            dispatch("attention", 1, attention),
            free(1),
        ],
    }
}

fn noise() -> Arg {
    write_to(7, 0, 256)
}

fn decoder() -> Network {
    let args = vec![read(9, 0, 128), weight(0, 0, 4096), write_to(10, 0, 768)];
    Network {
        name: "decoder".into(),
        role: Role::Decoder,
        inputs: vec![host(Feed::Latent, port("latent", 9, ElementType::F16, &[1, 4, 4, 4]))],
        outputs: vec![port("image", 10, ElementType::F32, &[1, 8, 8, 3])],
        loads: vec![],
        overwrites: vec![],
        steps: vec![load(0, 1), dispatch("decode", 0, args), free(0)],
    }
}

fn kernel(source: u32, entry: &str) -> Kernel {
    Kernel {
        program: source,
        source,
        entry: entry.into(),
        op: "matmul".into(),
        variant: "naive".into(),
        options: "-cl-std=CL1.2".into(),
        half_arithmetic: false,
        instructions: None,
    }
}

fn block(name: &str, index: usize, residency: Residency) -> Block {
    let (offset_bytes, len_bytes) = (BLOCK_OFFSETS[index], BLOCK_LENS[index]);
    let checksum = hash(&weight_bytes(offset_bytes, len_bytes));
    let kind = BlockKind::Weights;
    Block { name: name.into(), kind, offset_bytes, len_bytes, checksum, residency }
}

fn buffer(name: &str, kind: BufferKind, bytes: Range<u64>, life: Range<u32>) -> Buffer {
    let (offset_bytes, len_bytes) = (bytes.start, bytes.end - bytes.start);
    let (lower, upper) = (life.start, life.end);
    Buffer { name: name.into(), kind, offset_bytes, len_bytes, lower, upper }
}

fn host(feed: Feed, port: Port) -> Input {
    Input { port, source: Source::Host(feed) }
}

/// The first output of a network.
fn output_of(network: u32, slice: Slice, port: Port) -> Input {
    Input { port, source: Source::Output { network: NetworkId(network), output: 0, slice } }
}

fn port(name: &str, buffer: u32, dtype: ElementType, shape: &[u32]) -> Port {
    Port { name: name.into(), buffer: BufferId(buffer), dtype, shape: shape.to_vec() }
}

fn read(buffer: u32, offset_bytes: u64, len_bytes: u64) -> Arg {
    Arg::Buffer { buffer: BufferId(buffer), offset_bytes, len_bytes, access: Access::Read }
}

fn write_to(buffer: u32, offset_bytes: u64, len_bytes: u64) -> Arg {
    Arg::Buffer { buffer: BufferId(buffer), offset_bytes, len_bytes, access: Access::Write }
}

fn weight(block: u32, offset_bytes: u64, len_bytes: u64) -> Arg {
    Arg::Weight { block: BlockId(block), offset_bytes, len_bytes }
}

fn load(block: u32, slot: u32) -> Step {
    Step::Load { block: BlockId(block), slot: SlotId(slot) }
}

fn free(block: u32) -> Step {
    Step::Free { block: BlockId(block) }
}

fn dispatch(name: &str, kernel: u32, args: Vec<Arg>) -> Step {
    Step::Dispatch(Dispatch {
        name: name.into(),
        kernel: KernelId(kernel),
        args,
        global: [64, 4, 1],
        offset: [0; 3],
        range: [64, 4, 1],
        local: Some([16, 2, 1]),
        flops: 1000,
        bytes: 512,
        predicted_ns: 2000,
    })
}

/// Small buffers anywhere, so that many of them meet in time and address.
#[cfg(test)]
pub(crate) fn random_buffers(
    u: &mut arbtest::arbitrary::Unstructured<'_>,
    count: std::ops::RangeInclusive<usize>,
) -> arbtest::arbitrary::Result<Vec<Buffer>> {
    let count = u.int_in_range(count)?;
    let buffer = |_| {
        let lower = u.int_in_range(0..=9)?;
        Ok(Buffer {
            name: String::new(),
            kind: BufferKind::Activation,
            offset_bytes: u.int_in_range(0..=40)?,
            len_bytes: u.int_in_range(1..=12)?,
            lower,
            upper: u.int_in_range(lower + 1..=10)?,
        })
    };
    (0..count).map(buffer).collect()
}
