//! Many more weights than memory: what streaming costs in bytes and in time.
//!
//! One test in a process of its own, because it measures the process. `KILN_STREAM_MIB` sets how
//! many weights a pass reads; the default is small.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kiln_bundle::plan::*;
use kiln_bundle::{BundleFile, BundleWriter};
use kiln_runtime::device;
use kiln_runtime::executor::{Executor, ExecutorOptions};
use kiln_runtime::report::MeasuredMemory;
use kiln_runtime::stream::{Run, StreamStats};

const BLOCK_BYTES: u64 = 4 << 20;
const SLOTS: u32 = 3;
/// Index of the network that streams.
const UNET: usize = 1;
/// Work-items of a launch, each of which reads a share of the block.
const ITEMS: u64 = 512;

const SOURCE: &str = "
__kernel void end(__global const uint *x, __global uint *y) { y[get_global_id(0)] = x[0]; }
__kernel void add_up(__global const uint *w, __global const uint *x, __global uint *y,
                     uint count, uint rounds) {
    size_t i = get_global_id(0), items = get_global_size(0);
    uint sum = x[i];
    for (uint round = 0; round < rounds; round++)
        for (uint k = 0; k < count; k++) sum = sum * 3 + w[k * items + i];
    y[i] = sum;
}";

fn word(block: u64, index: u64) -> u32 {
    (block * 7919 + index).wrapping_mul(2654435761) as u32
}

fn write(path: &Path, blocks: u64, rounds: u32) {
    let mut writer = BundleWriter::create(path).unwrap();
    let mut entries = Vec::new();
    for block in 0..blocks {
        let words = 0..BLOCK_BYTES / 4;
        let bytes: Vec<u8> = words.flat_map(|index| word(block, index).to_le_bytes()).collect();
        let (offset_bytes, len_bytes, checksum) = writer.write_block(&bytes).unwrap();
        let name = format!("block {block}");
        let (kind, residency) = (BlockKind::Weights, Residency::Streamed);
        entries.push(Block { name, kind, offset_bytes, len_bytes, checksum, residency });
    }
    let mut plan = kiln_bundle::testing::plan();
    // The launches of the text encoder and the decoder stand before and after.
    let last = 3 * blocks as u32 + 1;
    let output = written_by(blocks as u32 - 1);
    let buffer = |id: u32| Buffer {
        name: format!("value {id}"),
        kind: if [0, output].contains(&id) { BufferKind::Port } else { BufferKind::Activation },
        offset_bytes: u64::from(id) * 4096,
        len_bytes: ITEMS * 4,
        lower: id.min(1),
        upper: last,
    };
    let port = |name: &str, buffer| Port {
        name: name.into(),
        buffer: BufferId(buffer),
        // The kernels take the bits for integers.
        dtype: ElementType::F32,
        shape: vec![ITEMS as u32],
    };
    plan.manifest.latent_channels = ITEMS as u32 / plan.manifest.latent.pixels() as u32;
    plan.manifest.context_channels = ITEMS as u32 / (2 * plan.manifest.context_tokens);
    let ends = kiln_bundle::testing::ends(&plan.manifest, port("x", 0), 3, last, 4096);
    plan.buffers = (0..3).map(buffer).chain(ends.buffers).collect();
    plan.blocks = entries;
    plan.sources = vec![SOURCE.into()];
    for (kernel, entry) in plan.kernels.iter_mut().zip(["end", "add_up"]) {
        (kernel.program, kernel.source, kernel.entry) = (0, 0, entry.into());
    }
    plan.requirements.base_align_bytes = 4096;
    plan.requirements.max_alloc_bytes = BLOCK_BYTES;
    plan.memory.arena_bytes = 4 * 4096;
    plan.memory.arena_part_bytes = 4 * 4096;
    plan.memory.arena_lower_bound_bytes = 3 * ITEMS * 4;
    plan.memory.slot_bytes = vec![BLOCK_BYTES; SLOTS as usize];
    plan.memory.staging_bytes = 0;
    plan.memory.budget_bytes = 1 << 30;
    let (network, output_index, slice) = (NetworkId(0), 0, Slice::InPlace);
    let source = Source::Output { network, output: output_index, slice };
    let unet = Network {
        name: "unet".into(),
        role: Role::Denoiser,
        inputs: vec![Input { port: port("x", 0), source }],
        outputs: vec![port("y", output)],
        loads: vec![],
        overwrites: vec![],
        steps: (0..blocks as u32).flat_map(|block| steps(block, rounds)).collect(),
    };
    plan.networks = vec![ends.text_encoder, unet, ends.decoder];
    writer.finish(&plan, b"").unwrap();
}

/// Buffer of a launch's result: 1 or 2, in turn.
fn written_by(block: u32) -> u32 {
    1 + block % 2
}

fn steps(block: u32, rounds: u32) -> [Step; 3] {
    let region = |buffer, access| Arg::Buffer {
        buffer: BufferId(buffer),
        offset_bytes: 0,
        len_bytes: ITEMS * 4,
        access,
    };
    let id = BlockId(block);
    let dispatch = Dispatch {
        name: format!("add {block}"),
        kernel: KernelId(1),
        args: vec![
            Arg::Weight { block: id, offset_bytes: 0, len_bytes: BLOCK_BYTES },
            region(block.checked_sub(1).map_or(0, written_by), Access::Read),
            region(written_by(block), Access::Write),
            Arg::U32((BLOCK_BYTES / 4 / ITEMS) as u32),
            Arg::U32(rounds),
        ],
        global: [ITEMS, 1, 1],
        offset: [0; 3],
        range: [ITEMS, 1, 1],
        local: Some([64, 1, 1]),
        flops: 0,
        bytes: 0,
        predicted_ns: 0,
    };
    [
        Step::Load { block: id, slot: SlotId(block % SLOTS) },
        Step::Dispatch(dispatch),
        Step::Free { block: id },
    ]
}

fn expected(blocks: u64, rounds: u32, passes: u32) -> u32 {
    // Item 0 alone: every pass begins with the input 1.
    assert!(passes > 0);
    (0..blocks).fold(1, |x, block| {
        let words = || (0..BLOCK_BYTES / 4 / ITEMS).map(|k| word(block, k * ITEMS));
        (0..rounds).flat_map(|_| words()).fold(x, |sum: u32, w| sum.wrapping_mul(3).wrapping_add(w))
    })
}

fn run(executor: &mut Executor, passes: usize) -> (u32, StreamStats) {
    let ports = executor.plan().networks[UNET].clone();
    let runs = vec![Run { network: UNET, residents: vec![] }; passes];
    let mut stream = executor.start_stream(runs).unwrap();
    let mut out = vec![0; ITEMS as usize * 4];
    for _ in 0..passes {
        executor
            .write_port(&ports.inputs[0].port, &1u32.to_le_bytes().repeat(ITEMS as usize))
            .unwrap();
        executor.run(UNET, &mut stream).unwrap();
        executor.read_port(&ports.outputs[0], &mut out).unwrap();
    }
    let first = u32::from_le_bytes([out[0], out[1], out[2], out[3]]);
    (first, stream.finish().unwrap())
}

#[test]
fn weights_far_larger_than_memory_pass_through_the_slots() {
    let mib: u64 = std::env::var("KILN_STREAM_MIB").map_or(128, |text| text.parse().unwrap());
    let rounds = std::env::var("KILN_STREAM_ROUNDS").map_or(1, |text| text.parse().unwrap());
    let (blocks, passes) = ((mib << 20) / BLOCK_BYTES, 3);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("stream.kiln");
    write(&path, blocks, rounds);
    let bundle = Arc::new(BundleFile::open(&path).unwrap());
    let device = device::select("auto").unwrap();
    let mut executor =
        Executor::load(bundle, &device, &ExecutorOptions::default(), &mut |_, _| {}).unwrap();
    // The first pass lets the driver compile, and touches every page of the slots.
    run(&mut executor, 1);
    let before = MeasuredMemory::now(executor.allocations());
    let started = Instant::now();
    let (found, stats) = run(&mut executor, passes);
    let seconds = started.elapsed().as_secs_f64();
    let after = MeasuredMemory::now(executor.allocations());
    assert_eq!(found, expected(blocks, rounds, passes as u32));
    assert_eq!(stats.streamed_bytes, passes as u64 * blocks * BLOCK_BYTES);
    println!("{seconds:.3} s, {stats:?}\n{before:?}\n{after:?}");
    if let (Some(before), Some(after)) = (before.process_peak_bytes, after.process_peak_bytes) {
        let allowed_bytes = before + (8 << 20);
        assert!(after <= allowed_bytes, "{before} bytes grew to {after}");
    }
}
