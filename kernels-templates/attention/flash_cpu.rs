//! Online softmax for CPUs: registers hold tiles, queries are vector lanes.

use super::Extents;
use crate::launch::floating;
use crate::{DeviceClass, Lowering, Needs, Problem, Target, Variant};
use anyhow::Result;

/// Sizes of the register tiles, and of the operands that the caches hold.
struct Tiling {
    /// Vectors of queries in a tile.
    vectors: usize,
    /// Keys of a tile of scores, and channels of a tile of outputs.
    rows: usize,
    channels: usize,
    /// Bytes of a block of keys and values, and the largest number of its keys. Longer loops over
    /// keys compete with a first-level cache that holds most of the block.
    block_bytes: usize,
    most_keys: usize,
    /// Bytes of queries and outputs of a work-item: a part of a core's second-level cache.
    tile_bytes: usize,
}

impl Tiling {
    /// Sizes for the 32 registers of AVX-512, and for the 16 of AVX2 and SSE.
    fn of(v: usize) -> Self {
        match v {
            16 => Self {
                vectors: 4,
                rows: 6,
                channels: 4,
                block_bytes: 48 << 10,
                most_keys: 96,
                tile_bytes: 128 << 10,
            },
            _ => Self {
                vectors: 3,
                rows: 4,
                channels: 4,
                block_bytes: 16 << 10,
                most_keys: 64,
                tile_bytes: 192 << 10,
            },
        }
    }
}

/// Smallest number of keys of a block.
const FEWEST_KEYS: usize = 16;

/// Padding of copied rows in elements, so that the elements of a column fall into different sets of
/// a cache.
const PAD: usize = 16;

/// `flash_cpu`.
pub(super) const VARIANT: Variant =
    Variant { needs: Needs::class(DeviceClass::Cpu), ..Variant::new("flash_cpu", floating, lower) };

/// Queries of a work-item: as many as its cache holds, but few enough to give all units work-items.
fn tile(e: &Extents, dp: usize, lanes: usize, tile_bytes: usize, units: usize) -> usize {
    let fits = tile_bytes / (4 * (e.d + dp));
    let shared = (e.n * e.heads * e.lq).div_ceil(8 * units);
    let most = fits.min(shared).min(e.lq).max(1);
    e.lq.div_ceil(e.lq.div_ceil(most)).next_multiple_of(lanes)
}

fn lower(problem: &Problem, target: &Target) -> Result<Lowering> {
    let e = Extents::new(problem)?;
    let v = target.vector_width as usize;
    let Tiling { vectors, rows, channels, block_bytes, most_keys, tile_bytes } = Tiling::of(v);
    let lanes = vectors * v;
    let dp = e.d.next_multiple_of(channels);
    let most = (block_bytes / (8 * e.d)).clamp(FEWEST_KEYS, most_keys);
    let block = e.lk.div_ceil(e.lk.div_ceil(most)).next_multiple_of(rows);
    let tile = tile(&e, dp, lanes, tile_bytes, target.compute_units.max(1) as usize);
    let call = e
        .call(problem)
        .flops(2 * e.flops())
        .set("v", &v)
        .set("FV", &format!("float{v}"))
        .set("IV", &format!("int{v}"))
        .set("aligned", &false)
        .set("vectors", &vectors)
        .set("lanes", &lanes)
        .set("rows", &rows)
        .set("tile_channels", &channels)
        .set("tile", &tile)
        .set("block", &block)
        .set("dp", &dp)
        .set("pitch", &(dp + PAD));
    let template = include_str!("flash_cpu.cl.tera");
    let global = [e.lq.div_ceil(tile), e.heads, e.n];
    let launch = call.launch("attention_flash_cpu", template, global, Some([1, 1, 1]))?;
    Ok(Lowering::of(launch))
}
