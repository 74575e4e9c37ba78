//! A model small enough to compute by hand, with every feature of a plan: a gather, streamed
//! blocks through two slots, a resident block in space that the text encoder uses before it,
//! hoisted values that are shared, halved or taken row by row.
// Each test program uses a part of this module.
#![allow(dead_code, unused_imports)]

mod numbers;

use std::path::Path;

use kiln_bundle::BundleWriter;
use kiln_bundle::format::sealed_row;
use kiln_bundle::plan::*;

pub use numbers::{decode, embedding, table, unet, unet_of, used_weight, weight};

/// Tokens of a prompt.
pub const TOKENS: usize = 77;
/// Width of an embedding.
pub const WIDTH: usize = 8;
/// Latent elements of one batch row: 4 x 4 x 4.
pub const LATENT: usize = 64;
/// Layers of the U-Net that stream a block each.
pub const LAYERS: usize = 5;
/// Rows of the embedding table.
pub const VOCABULARY: usize = 49408;
/// Bytes of a block.
pub const BLOCK_BYTES: u64 = 12288;

const SOURCE: &str = "
__kernel void scale(__global const float *x, __global const float *w, __global float *y, uint n) {
    size_t i = get_global_id(0);
    y[i] = x[i] * w[i % n];
}
__kernel void outer(__global const float *t, __global const float *w, __global float *y, uint n) {
    size_t i = get_global_id(0);
    y[i] = t[i / n] * w[i % n];
}
__kernel void blend(__global const float *h, __global const float *kv, __global const float *time,
                  __global const float *w, __global float *y, uint per_row, float factor) {
    size_t i = get_global_id(0);
    size_t row = i / 64;
    float sum = 0;
    for (uint k = 0; k < per_row; k++) sum += kv[row * per_row + k];
    y[i] = h[i] + factor * sum / per_row + time[i % 8] * w[i % 4];
}
__kernel void grow(__global const float *x, __global const float *w, __global float *y) {
    size_t i = get_global_id(0);
    size_t c = i % 3, px = i / 3 % 16, py = i / 48;
    y[i] = x[(py / 4 * 4 + px / 4) * 4 + c] * w[c];
}";

/// What varies.
#[derive(Clone, Copy)]
pub struct Small {
    /// Branches of guidance.
    pub branches: usize,
    /// Guidance branches in a pass.
    pub batch: usize,
    /// Timesteps of one run of `unet_time`.
    pub rows: usize,
    /// Whether the U-Net takes the embedding of the guidance in place of the timestep's.
    pub guided: bool,
    /// Staging memory; 0 maps.
    pub staging_bytes: u64,
}

impl Default for Small {
    fn default() -> Self {
        Small { branches: 2, batch: 2, rows: 4, guided: false, staging_bytes: 0 }
    }
}

const TEXT: u32 = 0;
const PROMPT: u32 = 1;
const TIME: u32 = 2;
const LAYER: u32 = 3;
const RESIDENT: u32 = LAYER + LAYERS as u32;
const DECODE: u32 = RESIDENT + 1;

/// Index of the resident block.
pub const RESIDENT_BLOCK: usize = RESIDENT as usize;

/// Elements of the embedding of a prompt.
const CONTEXT: usize = TOKENS * WIDTH;
/// The instant after the U-Net, which begins at 10.
const UNET_END: u32 = 10 + 3 * LAYERS as u32 + 2;

struct Ids {
    /// Branches of guidance.
    branches: usize,
    tokens: BufferId,
    rows: BufferId,
    embedding: BufferId,
    kv: BufferId,
    times: BufferId,
    time_table: BufferId,
    latent: BufferId,
    hidden: [BufferId; 2],
    eps: BufferId,
    time_row: BufferId,
    kv_in: BufferId,
    resident: BufferId,
    picture: BufferId,
    image: BufferId,
}

#[derive(Default)]
struct Arena {
    buffers: Vec<Buffer>,
    top_bytes: u64,
}

impl Arena {
    fn add(
        &mut self,
        kind: BufferKind,
        name: &str,
        elems: usize,
        lower: u32,
        upper: u32,
    ) -> BufferId {
        let (offset_bytes, len_bytes) = (self.top_bytes, elems as u64 * 4);
        self.top_bytes += len_bytes.next_multiple_of(4096);
        self.place(Buffer { name: name.into(), kind, offset_bytes, len_bytes, lower, upper })
    }

    fn place(&mut self, buffer: Buffer) -> BufferId {
        self.buffers.push(buffer);
        BufferId(self.buffers.len() as u32 - 1)
    }
}

impl Small {
    /// Writes the bundle.
    pub fn write(&self, path: &Path, tokenizer: &[u8]) -> Plan {
        self.write_changed(path, tokenizer, |_| {})
    }

    /// Writes the bundle with another plan.
    pub fn write_changed(
        &self,
        path: &Path,
        tokenizer: &[u8],
        change: impl FnOnce(&mut Plan),
    ) -> Plan {
        let mut writer = BundleWriter::create(path).unwrap();
        let mut blocks = Vec::new();
        for block in 0..=DECODE {
            let floats = 0..BLOCK_BYTES as usize / 4;
            let bytes: Vec<u8> =
                floats.flat_map(|index| weight(block as usize, index).to_le_bytes()).collect();
            let (offset_bytes, len_bytes, checksum) = writer.write_block(&bytes).unwrap();
            let (kind, residency) = (BlockKind::Weights, Residency::Streamed);
            let name = format!("block {block}");
            blocks.push(Block { name, kind, offset_bytes, len_bytes, checksum, residency });
        }
        let rows = (0..VOCABULARY).map(|row| {
            let bytes = (0..WIDTH).flat_map(|column| table(row, column).to_le_bytes());
            Ok::<_, kiln_bundle::BundleError>(sealed_row(&bytes.collect::<Vec<u8>>()))
        });
        let table_at = writer.write_stream(rows).unwrap();
        let mut plan = self.plan(blocks, table_at);
        change(&mut plan);
        writer.finish(&plan, tokenizer).unwrap();
        plan
    }

    fn plan(&self, mut blocks: Vec<Block>, table_at: u64) -> Plan {
        let (arena, ids) = self.buffers();
        blocks[RESIDENT as usize].residency = Residency::Resident(ids.resident);
        Plan {
            manifest: self.manifest(),
            requirements: Requirements {
                max_alloc_bytes: 1 << 20,
                base_align_bytes: 4096,
                ..Requirements::default()
            },
            memory: self.memory(&arena, UNET_END + 3),
            sources: vec![SOURCE.into()],
            kernels: ["scale", "outer", "blend", "grow"].map(kernel).to_vec(),
            blocks,
            buffers: arena.buffers,
            networks: vec![
                text_encoder(&ids, table_at),
                unet_prompt(&ids),
                self.unet_time(&ids),
                self.unet(&ids),
                decoder(&ids),
            ],
            lora: Default::default(),
            rationale: Default::default(),
        }
    }

    fn buffers(&self) -> (Arena, Ids) {
        let Small { branches, batch, rows, .. } = *self;
        let mut arena = Arena::default();
        let mut add = |name: &str, elems, lower, upper| {
            let inner = ["rows", "even", "odd"].contains(&name);
            let kind = if inner { BufferKind::Activation } else { BufferKind::Port };
            arena.add(kind, name, elems, lower, upper)
        };
        let kv = add("kv", branches * CONTEXT, 5, UNET_END);
        let ids = Ids {
            branches,
            tokens: add("tokens", branches * TOKENS, 0, 1),
            rows: add("rows", 4096, 0, 3),
            embedding: add("embedding", branches * CONTEXT, 2, 7),
            kv,
            times: add("times", rows, 7, 9),
            time_table: add("time", rows * WIDTH, 8, UNET_END),
            latent: add("latent", batch * LATENT, 10, UNET_END),
            hidden: ["even", "odd"].map(|name| add(name, batch * LATENT, 10, UNET_END)),
            eps: add("eps", batch * LATENT, 10, UNET_END),
            time_row: add("time row", WIDTH, 10, UNET_END),
            kv_in: match batch == branches {
                true => kv,
                false => add("kv branch", CONTEXT, 10, UNET_END),
            },
            picture: add("picture latent", LATENT, UNET_END, UNET_END + 3),
            image: add("image", 16 * 16 * 3, UNET_END, UNET_END + 3),
            resident: BufferId(0),
        };
        let over = arena.buffers[ids.rows.index()].offset_bytes;
        let resident = arena.place(Buffer {
            name: "resident".into(),
            kind: BufferKind::Weights,
            offset_bytes: over,
            len_bytes: BLOCK_BYTES,
            lower: 10,
            upper: UNET_END,
        });
        (arena, Ids { resident, ..ids })
    }

    fn unet_time(&self, ids: &Ids) -> Network {
        let rows = self.rows;
        let steps = streamed(TIME, 0, |w| {
            let args = vec![read(ids.times, rows), w, written(ids.time_table, rows * WIDTH)];
            dispatch("outer", 1, [args, vec![n(WIDTH)]].concat(), rows * WIDTH)
        });
        Network {
            name: "unet_time".into(),
            role: Role::TimestepProjection,
            inputs: vec![host(
                Feed::Timestep,
                port("timestep", ids.times, ElementType::F32, &[rows]),
            )],
            outputs: vec![port("time", ids.time_table, ElementType::F32, &[rows, WIDTH])],
            loads: vec![],
            overwrites: vec![],
            steps,
        }
    }

    fn unet(&self, ids: &Ids) -> Network {
        let batch = self.batch;
        let elems = batch * LATENT;
        let kv = if batch == self.branches { Slice::InPlace } else { Slice::GuidanceBranch };
        let row = Slice::TimestepRow { row_bytes: WIDTH as u64 * 4, copies: 1 };
        let mut steps = Vec::new();
        let mut from = ids.latent;
        for layer in 0..LAYERS {
            let to = ids.hidden[layer % 2];
            let block = LAYER + layer as u32;
            steps.extend(streamed(block, layer as u32 % 2, |w| scale(from, w, to, elems, 4)));
            from = to;
        }
        // The second is of no use, but launched with the first: of the same kernel, with other
        // arguments.
        for (to, share) in [(ids.eps, 0.25), (ids.hidden[LAYERS % 2], 7.0)] {
            let args = vec![
                read(from, elems),
                read(ids.kv_in, batch * TOKENS * WIDTH),
                read(ids.time_row, WIDTH),
                weights(RESIDENT),
                written(to, elems),
                n(TOKENS * WIDTH),
                Arg::F32(share),
            ];
            steps.push(dispatch("blend", 2, args, elems));
        }
        let time = port("time", ids.time_row, ElementType::F32, &[1, WIDTH]);
        Network {
            name: "unet".into(),
            role: Role::Denoiser,
            inputs: vec![
                host(Feed::Latent, port("latent", ids.latent, ElementType::F32, &[batch, 4, 4, 4])),
                output_of(1, kv, port("kv", ids.kv_in, ElementType::F32, &[batch, TOKENS, WIDTH])),
                match self.guided {
                    true => host(Feed::Guidance, time),
                    false => output_of(2, row, time),
                },
            ],
            outputs: vec![port("eps", ids.eps, ElementType::F32, &[batch, 4, 4, 4])],
            loads: vec![BlockId(RESIDENT)],
            overwrites: vec![],
            steps,
        }
    }

    fn memory(&self, arena: &Arena, instants: u32) -> MemoryPlan {
        let live_bytes = |instant| {
            let live = |buffer: &&Buffer| (buffer.lower..buffer.upper).contains(&instant);
            arena.buffers.iter().filter(live).map(|buffer| buffer.len_bytes).sum()
        };
        MemoryPlan {
            budget_bytes: 1 << 30,
            arena_bytes: arena.top_bytes,
            arena_part_bytes: arena.top_bytes,
            arena_lower_bound_bytes: (0..instants).map(live_bytes).max().unwrap(),
            slot_bytes: vec![BLOCK_BYTES, BLOCK_BYTES + 4096],
            staging_bytes: self.staging_bytes,
            host_bytes: 1 << 20,
            program_bytes: 1 << 20,
            baseline_bytes: 1 << 20,
        }
    }

    fn manifest(&self) -> Manifest {
        Manifest {
            model: "small".into(),
            precision: "fp32".into(),
            profile: "test".into(),
            adapted: vec![],
            compiler: "0".into(),
            image: Size { width_px: 16, height_px: 16 },
            latent: Size { width_px: 4, height_px: 4 },
            latent_channels: 4,
            context_tokens: TOKENS as u32,
            context_channels: WIDTH as u32,
            schedule: Schedule {
                guidance: if self.branches == 1 { 1.0 } else { 7.5 },
                ..Schedule::default()
            },
            guidance_branches: self.branches as u32,
            guidance_batch: self.batch as u32,
            fast: false,
            guidance_channels: if self.guided { WIDTH as u32 } else { 0 },
            condition_channels: 0,
            timestep_rows: self.rows as u32,
        }
    }
}

fn text_encoder(ids: &Ids, table_at: u64) -> Network {
    let gather = Gather {
        name: "embed".into(),
        table_offset_bytes: table_at,
        row_bytes: WIDTH as u64 * 4,
        row_count: VOCABULARY as u32,
        indices: ids.tokens,
        index_count: (ids.branches * TOKENS) as u32,
        output: ids.rows,
    };
    let mut steps = vec![Step::Gather(gather)];
    steps.extend(streamed(TEXT, 0, |w| {
        scale(ids.rows, w, ids.embedding, ids.branches * CONTEXT, WIDTH)
    }));
    Network {
        name: "text_encoder".into(),
        role: Role::TextEncoder,
        inputs: vec![host(
            Feed::Tokens,
            port("tokens", ids.tokens, ElementType::I32, &[ids.branches, TOKENS]),
        )],
        outputs: vec![port(
            "embedding",
            ids.embedding,
            ElementType::F32,
            &[ids.branches, TOKENS, WIDTH],
        )],
        loads: vec![],
        // What the embedding is made from is in the same place.
        overwrites: vec![BlockId(RESIDENT)],
        steps,
    }
}

fn unet_prompt(ids: &Ids) -> Network {
    let context = port("context", ids.embedding, ElementType::F32, &[ids.branches, TOKENS, WIDTH]);
    Network {
        name: "unet_prompt".into(),
        role: Role::PromptProjection,
        inputs: vec![output_of(0, Slice::InPlace, context)],
        outputs: vec![port("kv", ids.kv, ElementType::F32, &[ids.branches, TOKENS, WIDTH])],
        loads: vec![],
        overwrites: vec![],
        steps: streamed(PROMPT, 1, |w| {
            scale(ids.embedding, w, ids.kv, ids.branches * CONTEXT, WIDTH)
        }),
    }
}

fn decoder(ids: &Ids) -> Network {
    let steps = streamed(DECODE, 1, |w| {
        let args = vec![read(ids.picture, LATENT), w, written(ids.image, 768)];
        dispatch("grow", 3, args, 768)
    });
    Network {
        name: "decoder".into(),
        role: Role::Decoder,
        inputs: vec![host(
            Feed::Latent,
            port("latent", ids.picture, ElementType::F32, &[1, 4, 4, 4]),
        )],
        outputs: vec![port("image", ids.image, ElementType::F32, &[1, 16, 16, 3])],
        loads: vec![],
        overwrites: vec![],
        steps,
    }
}

fn kernel(entry: &str) -> Kernel {
    let text = || entry.to_owned();
    let options = "-cl-std=CL1.2".to_owned();
    let variant = "naive".to_owned();
    let (op, half_arithmetic, instructions) = (text(), false, None);
    // The decoder's kernel is a program of its own, as later networks' are in a large plan.
    let program = u32::from(entry == "grow");
    let (source, entry) = (0, text());
    Kernel { program, source, entry, op, variant, options, half_arithmetic, instructions }
}

fn port(name: &str, buffer: BufferId, dtype: ElementType, shape: &[usize]) -> Port {
    let shape = shape.iter().map(|&axis| axis as u32).collect();
    Port { name: name.into(), buffer, dtype, shape }
}

fn host(feed: Feed, port: Port) -> Input {
    Input { port, source: Source::Host(feed) }
}

/// The first output of a network.
fn output_of(network: u32, slice: Slice, port: Port) -> Input {
    Input { port, source: Source::Output { network: NetworkId(network), output: 0, slice } }
}

fn n(value: usize) -> Arg {
    Arg::U32(value as u32)
}

fn read(buffer: BufferId, elems: usize) -> Arg {
    Arg::Buffer { buffer, offset_bytes: 0, len_bytes: elems as u64 * 4, access: Access::Read }
}

fn written(buffer: BufferId, elems: usize) -> Arg {
    Arg::Buffer { buffer, offset_bytes: 0, len_bytes: elems as u64 * 4, access: Access::Write }
}

/// A block from its second page on.
fn weights(block: u32) -> Arg {
    Arg::Weight { block: BlockId(block), offset_bytes: 4096, len_bytes: BLOCK_BYTES - 4096 }
}

fn scale(from: BufferId, w: Arg, to: BufferId, elems: usize, period: usize) -> Step {
    dispatch("scale", 0, vec![read(from, elems), w, written(to, elems), n(period)], elems)
}

fn dispatch(name: &str, kernel: u32, args: Vec<Arg>, items: usize) -> Step {
    Step::Dispatch(Dispatch {
        name: name.into(),
        kernel: KernelId(kernel),
        args,
        global: [items as u64, 1, 1],
        offset: [0; 3],
        range: [items as u64, 1, 1],
        local: None,
        flops: 0,
        bytes: 0,
        predicted_ns: 0,
    })
}

fn streamed(block: u32, slot: u32, launch: impl FnOnce(Arg) -> Step) -> Vec<Step> {
    let block = BlockId(block);
    let load = Step::Load { block, slot: SlotId(slot) };
    vec![load, launch(weights(block.0)), Step::Free { block }]
}
