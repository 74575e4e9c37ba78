//! Online softmax for CPUs: registers hold tiles, keys and channels are vector lanes.

use super::Extents;
use crate::elementwise::VECTOR;
use crate::launch::{Call, cpu, floating};
use crate::{Lowering, Problem, Target};
use anyhow::Result;
use kiln_ir::DType;
use serde::Serialize;

/// Queries whose scores share a register tile.
const SUB: usize = 6;

/// Vectors of a register tile beside the queries.
const VECTORS: usize = 4;

/// Bytes of queries and outputs that a work-item keeps, so that they stay in its cache.
const TILE_BYTES: usize = 48 << 10;

/// Bytes of a block of keys or values, and its most keys.
const BLOCK_BYTES: usize = 128 << 10;
const MOST_KEYS: usize = 128;

/// Vectors that are accumulated in registers together; `start` in elements.
#[derive(Serialize)]
struct Group {
    start: usize,
    vectors: usize,
}

/// Cuts `vectors` vectors of `v` elements into groups of [`VECTORS`] at most, evenly.
fn groups(vectors: usize, v: usize) -> Vec<Group> {
    let count = vectors.div_ceil(VECTORS);
    let first = |i: usize| i * vectors / count;
    (0..count).map(|i| Group { start: first(i) * v, vectors: first(i + 1) - first(i) }).collect()
}

pub(super) fn applies(problem: &Problem, target: &Target) -> bool {
    floating(problem, target) && cpu(target)
}

/// Queries of a work-item: what fits its cache, but enough work-items for all units.
fn tile(e: &Extents, dp: usize, units: usize) -> usize {
    let fits = TILE_BYTES / (4 * (e.d + dp));
    let shared = (e.n * e.heads * e.lq).div_ceil(8 * units);
    fits.min(shared).min(e.lq).next_multiple_of(SUB)
}

pub(super) fn lower(problem: &Problem, target: &Target) -> Result<Lowering> {
    let e = Extents::new(problem)?;
    let v = target.vector_width as usize;
    let dp = e.d.next_multiple_of(v);
    let most = (BLOCK_BYTES / (4 * e.d)).clamp(v, MOST_KEYS);
    let block = e.lk.div_ceil(e.lk.div_ceil(most)).next_multiple_of(v);
    let blocks = e.lk.div_ceil(block);
    let tile = tile(&e, dp, target.compute_units.max(1) as usize);
    let in_place = problem.inputs[e.v.0].ty.dtype == DType::F32 && dp == e.d;
    let call = || {
        e.set(Call::new(problem))
            .set("v", &v)
            .set("FV", &format!("float{v}"))
            .set("IV", &format!("int{v}"))
            .set("aligned", &false)
            .set("dp", &dp)
            .set("block", &block)
            .set("blocks", &blocks)
            .set("pack_values", &!in_place)
    };
    let pack = call().flops(0).input("K", e.k.0);
    let pack = if in_place { pack } else { pack.input("V", e.v.0) };
    let pack = pack.scratch("KEYS", 0, true);
    let pack = if in_place { pack } else { pack.scratch("VALUES", 1, true) };
    let pack = pack.launch(
        "attention_pack",
        &[VECTOR, include_str!("flash_cpu_pack.cl.tera")].concat(),
        [blocks, e.heads, e.n],
        Some([1, 1, 1]),
    )?;
    let main = call().flops(2 * e.flops()).input("Q", e.q.0).scratch("KEYS", 0, false);
    let main =
        if in_place { main.input("VALUES", e.v.0) } else { main.scratch("VALUES", 1, false) };
    let main = main
        .output("OUT")
        .set("tile", &tile)
        .set("sub", &SUB)
        .set("key_groups", &groups(block / v, v))
        .set("channel_groups", &groups(dp / v, v))
        .set("value_stride", &if in_place { e.v.1 } else { dp });
    let template = [VECTOR, include_str!("flash_cpu.cl.tera")].concat();
    let global = [e.lq.div_ceil(tile), e.heads, e.n];
    let main = main.launch("attention_flash_cpu", &template, global, Some([1, 1, 1]))?;
    let keys = 4 * (e.n * e.heads * blocks * block * e.d) as u64;
    let values = 4 * (e.n * e.heads * e.lk * dp) as u64;
    Ok(Lowering {
        launches: vec![pack, main],
        scratch_bytes: if in_place { vec![keys] } else { vec![keys, values] },
        ..Lowering::default()
    })
}
