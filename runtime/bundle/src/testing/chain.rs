//! A chain of launches with one weight block each, as long as a test wants.

use std::ops::Range;

use super::{
    buffer, dispatch, free, host, kernel, load, manifest, output_of, port, read, requirements,
    weight, write_to,
};
use crate::format::PAGE_BYTES;
use crate::plan::{
    Block, BlockKind, Buffer, BufferKind, ElementType, Feed, Manifest, MemoryPlan, Network, Plan,
    Port, Residency, Role, Size, Slice, Step,
};

const ALIGN_BYTES: u64 = 128;

/// Buffers of [`Ends`]. They are the last ones of a [`chain`].
pub const CHAIN_END_BUFFERS: usize = 3;

/// A valid plan whose denoiser, network 1, is a chain. Launch `i` writes a value of `sizes[i]`
/// bytes. It reads up to two values before it and a weight block of the same size, which is loaded
/// just before it and freed just after.
///
/// Value 0 is the text encoder's output, in place. The last value is the denoiser's output. Both
/// are rounded up to whole elements, and the manifest has their shapes. Buffers, blocks and
/// launches have the same numbers: launch `i` is step `3 * i + 1` of the network. Text encoder and
/// decoder are one launch each.
///
/// Requires: at least two sizes, none zero, each below 2^31.
pub fn chain(sizes: &[u64]) -> Plan {
    let count = sizes.len();
    let mut sizes = sizes.to_vec();
    // In FP16, the text encoder's output has 8 rows, the denoiser's is one pixel.
    let context_channels = sizes[0].div_ceil(16) as u32;
    let latent_channels = sizes[count - 1].div_ceil(2) as u32;
    sizes[0] = 16 * u64::from(context_channels);
    sizes[count - 1] = 2 * u64::from(latent_channels);
    let latent = Size { width_px: 1, height_px: 1 };
    let manifest = Manifest { latent, latent_channels, context_channels, ..manifest() };
    let instant_count = 3 * count as u32 + 2;
    let mut buffers: Vec<Buffer> = Vec::with_capacity(count);
    let mut blocks = Vec::with_capacity(count);
    let mut steps = Vec::with_capacity(3 * count);
    let mut weights_len_bytes = 0u64;
    for (index, &len_bytes) in sizes.iter().enumerate() {
        let life = life(index, count);
        let name = format!("value{index}");
        let offset_bytes = first_fit(&buffers, &life, len_bytes);
        let is_port = index == 0 || index == count - 1;
        let kind = if is_port { BufferKind::Port } else { BufferKind::Activation };
        buffers.push(buffer(&name, kind, offset_bytes..offset_bytes + len_bytes, life));
        blocks.push(Block {
            name: format!("block{index}"),
            kind: BlockKind::Weights,
            offset_bytes: weights_len_bytes,
            len_bytes,
            checksum: 0,
            residency: Residency::Streamed,
        });
        weights_len_bytes = (weights_len_bytes + len_bytes).next_multiple_of(PAGE_BYTES);
        steps.extend(steps_of(index as u32, &sizes));
    }
    let first = port("first", 0, ElementType::F16, &[2, 4, context_channels]);
    let last = port("last", count as u32 - 1, ElementType::F16, &[1, 1, 1, latent_channels]);
    let ends = ends(&manifest, first.clone(), count as u32, instant_count - 1, ALIGN_BYTES);
    buffers.extend(ends.buffers);
    let arena_bytes = buffers.iter().map(|b| b.offset_bytes + b.len_bytes).max().unwrap_or(0);
    let slot_bytes = sizes.iter().copied().max().unwrap_or(0);
    let memory = MemoryPlan {
        budget_bytes: arena_bytes + 2 * slot_bytes,
        arena_bytes,
        arena_part_bytes: arena_bytes,
        arena_lower_bound_bytes: largest_sum(&buffers, instant_count),
        slot_bytes: vec![slot_bytes; 2],
        ..MemoryPlan::default()
    };
    let links = Network {
        name: "chain".into(),
        role: Role::Denoiser,
        inputs: vec![output_of(0, Slice::InPlace, first)],
        outputs: vec![last],
        loads: vec![],
        overwrites: vec![],
        steps,
    };
    Plan {
        manifest,
        requirements: crate::plan::Requirements { max_alloc_bytes: 0, ..requirements() },
        memory,
        sources: vec!["__kernel void link() {}".into()],
        kernels: vec![kernel(0, "link")],
        blocks,
        buffers,
        networks: vec![ends.text_encoder, links, ends.decoder],
        lora: Default::default(),
        rationale: Default::default(),
    }
}

/// A text encoder and a decoder of one launch each, without which no plan is sound.
pub struct Ends {
    /// The first network.
    pub text_encoder: Network,
    /// The last network.
    pub decoder: Network,
    /// Buffers that both need, in the order of their ids.
    pub buffers: [Buffer; CHAIN_END_BUFFERS],
}

/// Ends of a plan whose manifest has the tokens and the image of [`plan`](super::plan)'s.
///
/// The text encoder writes `output`, a buffer at the start of the arena. Its tokens are behind that
/// buffer. The decoder runs at the instant `last`. `first_buffer` is the id of the first buffer.
pub fn ends(
    manifest: &Manifest,
    output: Port,
    first_buffer: u32,
    last: u32,
    align_bytes: u64,
) -> Ends {
    let (tokens, latent, image) = (first_buffer, first_buffer + 1, first_buffer + 2);
    let elem_count: u32 = output.shape.iter().product();
    let len_bytes = u64::from(elem_count) * output.dtype.size_bytes();
    let Size { width_px, height_px } = manifest.latent;
    let latent_shape = [1, height_px, width_px, manifest.latent_channels];
    let latent_bytes = latent_shape.map(u64::from).iter().product::<u64>() * 4;
    let tokens_at = len_bytes.next_multiple_of(align_bytes);
    let image_at = latent_bytes.next_multiple_of(align_bytes);
    let network = |name: &str, role, input, outputs, args| Network {
        name: name.into(),
        role,
        inputs: vec![input],
        outputs,
        loads: vec![],
        overwrites: vec![],
        steps: vec![dispatch(name, 0, args)],
    };
    let encode = vec![read(tokens, 0, 32), write_to(output.buffer.0, 0, len_bytes)];
    let decode = vec![read(latent, 0, latent_bytes), write_to(image, 0, 768)];
    let tokens = host(Feed::Tokens, port("tokens", tokens, ElementType::I32, &[2, 4]));
    let latent = host(Feed::Latent, port("latent", latent, ElementType::F32, &latent_shape));
    let image = port("image", image, ElementType::F32, &[1, 8, 8, 3]);
    Ends {
        text_encoder: network("text_encoder", Role::TextEncoder, tokens, vec![output], encode),
        decoder: network("decoder", Role::Decoder, latent, vec![image], decode),
        buffers: [
            buffer("tokens", BufferKind::Port, tokens_at..tokens_at + 32, 0..1),
            buffer("latent", BufferKind::Port, 0..latent_bytes, last..last + 1),
            buffer("image", BufferKind::Port, image_at..image_at + 768, last..last + 1),
        ],
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
    let instant = |index: usize| 3 * index as u32 + 2;
    let end = 3 * count as u32 + 1;
    match index {
        0 => 0..end,
        _ if index == count - 1 => instant(index)..end,
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
