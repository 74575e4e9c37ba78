//! A chain of launches with one weight block each, as long as a test wants.

use std::ops::Range;

use super::{dispatch, free, kernel, load, manifest, port, read, requirements, weight, write_to};
use crate::format::PAGE_BYTES;
use crate::plan::{Block, Buffer, DType, MemoryPlan, Network, Phase, Plan, Residency, Step};

const ALIGN_BYTES: u64 = 128;

/// A valid plan of one looping network, in which launch `i` writes a value of `sizes[i]` bytes,
/// reads up to two values before it and a weight block of the same size that is
/// loaded just before it and freed just after. Value 0 is the network's input, the last one its
/// output. Buffers, blocks and launches have the same numbers: launch `i` is step `3 * i + 1`.
///
/// Requires: at least two sizes, none zero, each below 2^32.
pub fn chain(sizes: &[u64]) -> Plan {
    let count = sizes.len();
    let instant_count = 3 * count as u32;
    let mut buffers: Vec<Buffer> = Vec::with_capacity(count);
    let mut blocks = Vec::with_capacity(count);
    let mut steps = Vec::with_capacity(3 * count);
    let mut weights_len_bytes = 0u64;
    for (index, &len_bytes) in sizes.iter().enumerate() {
        let life = life(index, count);
        let name = format!("value{index}");
        let offset_bytes = first_fit(&buffers, &life, len_bytes);
        let (lower, upper) = (life.start, life.end);
        buffers.push(Buffer { name, offset_bytes, len_bytes, lower, upper });
        blocks.push(Block {
            name: format!("block{index}"),
            offset_bytes: weights_len_bytes,
            len_bytes,
            checksum: 0,
            residency: Residency::Streamed,
        });
        weights_len_bytes = (weights_len_bytes + len_bytes).next_multiple_of(PAGE_BYTES);
        steps.extend(steps_of(index as u32, sizes));
    }
    let arena_bytes = buffers.iter().map(|b| b.offset_bytes + b.len_bytes).max().unwrap_or(0);
    let slot_bytes = sizes.iter().copied().max().unwrap_or(0);
    let memory = MemoryPlan {
        budget_bytes: arena_bytes + 2 * slot_bytes,
        arena_bytes,
        arena_lower_bound_bytes: largest_sum(&buffers, instant_count),
        slot_bytes: vec![slot_bytes; 2],
        ..MemoryPlan::default()
    };
    let shape = |len_bytes: u64| [len_bytes as u32];
    let network = Network {
        name: "chain".into(),
        phase: Phase::Step,
        inputs: vec![port("latent", 0, DType::I8, &shape(sizes[0]))],
        outputs: vec![port("noise", count as u32 - 1, DType::I8, &shape(sizes[count - 1]))],
        steps,
    };
    Plan {
        manifest: manifest(),
        requirements: crate::plan::Requirements { max_alloc_bytes: 0, ..requirements() },
        memory,
        sources: vec!["__kernel void link() {}".into()],
        kernels: vec![kernel(0, "link")],
        blocks,
        buffers,
        networks: vec![network],
        rationale: Default::default(),
    }
}

/// Length of the weights section that a plan's blocks need.
pub fn weights_len_bytes(plan: &Plan) -> u64 {
    let end_bytes = plan.blocks.iter().map(|block| block.offset_bytes + block.len_bytes).max();
    end_bytes.unwrap_or(0).next_multiple_of(PAGE_BYTES)
}

fn steps_of(index: u32, sizes: &[u64]) -> [Step; 3] {
    let whole = |value: u32| read(value, 0, sizes[value as usize]);
    let len_bytes = sizes[index as usize];
    let mut args = vec![weight(index, 0, len_bytes)];
    args.extend((index.saturating_sub(2)..index).map(whole));
    // The input is there already.
    args.extend((index > 0).then(|| write_to(index, 0, len_bytes)));
    [load(index, index % 2), dispatch(&format!("op{index}"), 0, args), free(index)]
}

fn life(index: usize, count: usize) -> Range<u32> {
    let instant = |index: usize| 3 * index as u32 + 1;
    match index {
        0 => 0..3 * count as u32,
        _ if index == count - 1 => instant(index)..3 * count as u32,
        _ => instant(index)..instant((index + 2).min(count - 1)) + 1,
    }
}

/// The lowest address at which nothing that was placed before is in the way.
fn first_fit(placed: &[Buffer], life: &Range<u32>, len_bytes: u64) -> u64 {
    // Only the input and the last few values live long enough to matter.
    let recent = placed.iter().skip(1.max(placed.len().saturating_sub(4)));
    let mut live: Vec<&Buffer> =
        placed.first().into_iter().chain(recent).filter(|b| b.upper > life.start).collect();
    live.sort_by_key(|b| b.offset_bytes);
    let mut offset_bytes = 0;
    for buffer in live {
        if buffer.offset_bytes >= offset_bytes + len_bytes {
            break;
        }
        let end_bytes = buffer.offset_bytes + buffer.len_bytes;
        offset_bytes = offset_bytes.max(end_bytes.next_multiple_of(ALIGN_BYTES));
    }
    offset_bytes
}

fn largest_sum(buffers: &[Buffer], instant_count: u32) -> u64 {
    let mut live_bytes = vec![0; instant_count as usize];
    for buffer in buffers {
        (buffer.lower..buffer.upper).for_each(|at| live_bytes[at as usize] += buffer.len_bytes);
    }
    live_bytes.into_iter().max().unwrap_or(0)
}
