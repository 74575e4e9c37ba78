//! Online softmax for CPUs: registers hold tiles, queries are vector lanes.

use super::Extents;
use crate::elementwise::VECTOR;
use crate::launch::{cpu, floating};
use crate::{Lowering, Problem, Target};
use anyhow::Result;

/// Vectors of queries that are computed together.
const VECTORS: usize = 3;

/// Keys or channels of a register tile: with [`VECTORS`], what the 32 registers of AVX-512 hold, and
/// the 16 of AVX2 and SSE.
const fn rows(v: usize) -> usize {
    if v == 16 { 8 } else { 4 }
}

/// Bytes of queries and outputs that a work-item keeps: a part of a core's second cache.
const TILE_BYTES: usize = 192 << 10;

/// Bytes of a block of keys and values, of which the first cache holds the most, and the fewest and
/// most keys of it.
const BLOCK_BYTES: usize = 16 << 10;
const FEWEST_KEYS: usize = 16;
const MOST_KEYS: usize = 64;

/// Elements between copied rows beyond their length, so that columns of them do not share the sets of a
/// cache.
const PAD: usize = 16;

pub(super) fn applies(problem: &Problem, target: &Target) -> bool {
    floating(problem, target) && cpu(target)
}

/// Queries of a work-item: what fits its cache, but enough work-items for all units.
fn tile(e: &Extents, dp: usize, lanes: usize, units: usize) -> usize {
    let fits = TILE_BYTES / (4 * (e.d + dp));
    let shared = (e.n * e.heads * e.lq).div_ceil(8 * units);
    let most = fits.min(shared).min(e.lq).max(1);
    e.lq.div_ceil(e.lq.div_ceil(most)).next_multiple_of(lanes)
}

pub(super) fn lower(problem: &Problem, target: &Target) -> Result<Lowering> {
    let e = Extents::new(problem)?;
    let v = target.vector_width as usize;
    let (lanes, rows) = (VECTORS * v, rows(v));
    let dp = e.d.next_multiple_of(rows);
    let most = (BLOCK_BYTES / (8 * e.d)).clamp(FEWEST_KEYS, MOST_KEYS);
    let block = e.lk.div_ceil(e.lk.div_ceil(most)).next_multiple_of(rows);
    let tile = tile(&e, dp, lanes, target.compute_units.max(1) as usize);
    let call = e
        .call(problem)
        .flops(2 * e.flops())
        .set("v", &v)
        .set("FV", &format!("float{v}"))
        .set("IV", &format!("int{v}"))
        .set("aligned", &false)
        .set("vectors", &VECTORS)
        .set("lanes", &lanes)
        .set("rows", &rows)
        .set("tile", &tile)
        .set("block", &block)
        .set("dp", &dp)
        .set("pitch", &(dp + PAD));
    let template = [VECTOR, include_str!("flash_cpu.cl.tera")].concat();
    let global = [e.lq.div_ceil(tile), e.heads, e.n];
    let launch = call.launch("attention_flash_cpu", &template, global, Some([1, 1, 1]))?;
    Ok(Lowering { launches: vec![launch], ..Lowering::default() })
}
