//! Every part of the budget except the arena.

use kiln_bundle::plan::{BlockKind, Manifest, MemoryPlan, Role};
use std::collections::HashSet;

use super::blocks::Blocks;
use super::lower::{LoweredNetwork, LoweredOp, Work};
use crate::request::PlanRequest;
use crate::size::MIB;

/// Host memory in bytes of the tokenizer (vocabulary and merge ranks as hash maps), of the buffers
/// for direct reads (2 MiB), of a file of prompts (at most 4 MiB) and of the program.
const HOST_FIXED_BYTES: u64 = 16 * MIB;

/// Host memory of the decoded image in bytes a pixel, three channels: twice in `f32` while its
/// layout changes, and as bytes, plain and compressed.
const HOST_BYTES_PER_PIXEL: u64 = 3 * (4 + 4 + 1 + 1);

/// Host memory of a picture to begin with and of its mask in bytes a pixel: both as the command and
/// the request have them, and the mask as shares. The encoder's input is gone before the decoder's
/// output is there.
const HOST_BYTES_PER_INITIAL_PIXEL: u64 = 2 * (3 + 3) + 1;

/// Estimated host memory of a launch in bytes: its step in the plan, its kernel object and
/// arguments.
const HOST_BYTES_PER_LAUNCH: u64 = 2048;

/// The memory plan without an arena.
///
/// Slots are sized by the largest block that may be streamed. A block of the denoiser may become
/// resident later, so its slot may be larger than needed, but never smaller.
pub fn beside_arena(
    networks: &[LoweredNetwork],
    blocks: &Blocks,
    manifest: &Manifest,
    request: &PlanRequest,
) -> MemoryPlan {
    let PlanRequest { profile, budget_bytes, lora_bytes, .. } = *request;
    let streamed: Vec<u64> = blocks
        .drafts
        .iter()
        .filter(|b| b.kind == BlockKind::Weights)
        .map(|b| b.len_bytes)
        .collect();
    let slot_bytes = streamed.iter().copied().max().unwrap_or(0);
    let slot_count = (profile.memory.slot_count as usize).min(streamed.len());
    let pixels = manifest.image.pixels();
    let has_encoder = networks.iter().any(|n| n.source.role == Role::ImageEncoder);
    let initial = if has_encoder { initial_bytes(manifest) } else { 0 };
    let launches: usize = networks.iter().flat_map(|n| &n.ops).map(LoweredOp::launch_count).sum();
    MemoryPlan {
        budget_bytes,
        slot_bytes: vec![slot_bytes; slot_count],
        staging_bytes: if profile.memory.unified { 0 } else { slot_bytes },
        host_bytes: HOST_FIXED_BYTES
            + pixels * HOST_BYTES_PER_PIXEL
            + initial
            // Factors are read from their files before they are in the arena.
            + lora_bytes
            + launches as u64 * HOST_BYTES_PER_LAUNCH,
        program_bytes: profile.memory.compiler_bytes
            + profile.memory.kernel_bytes * kernel_count(networks),
        baseline_bytes: profile.memory.process_baseline_bytes,
        ..MemoryPlan::default()
    }
}

/// Host memory of a picture to begin with, its mask, and what both give to the steps: the latent, its
/// noise and the mask of blending, or what the U-Net reads beside the latent.
fn initial_bytes(manifest: &Manifest) -> u64 {
    let channels = 2 * manifest.latent_channels + 1 + manifest.condition_channels;
    manifest.image.pixels() * HOST_BYTES_PER_INITIAL_PIXEL
        + manifest.latent.pixels() * u64::from(channels) * size_of::<f32>() as u64
}

fn kernel_count(networks: &[LoweredNetwork]) -> u64 {
    let mut kernels = HashSet::new();
    for op in networks.iter().flat_map(|n| &n.ops) {
        if let Work::Kernels { lowering, .. } = &op.work {
            kernels.extend(lowering.launches.iter().map(|l| (&l.source, l.entry)));
        }
    }
    kernels.len() as u64
}
