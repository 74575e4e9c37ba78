//! Online softmax for GPUs: tiles in local memory, outputs in registers.

use super::Extents;
use crate::launch::floating;
use crate::{Lowering, Problem, Target};
use anyhow::Result;

/// Work-items of a work-group.
const GROUP: usize = 128;

/// Keys of a tile.
const KEYS: usize = 32;

/// Outputs that a work-item keeps in registers.
const OUTPUTS: usize = 64;

/// Tiling of a head.
struct Tiling {
    queries: usize,
    slice: usize,
    slices: usize,
}

impl Tiling {
    /// As many queries as registers and local memory allow, or the smallest number if they allow
    /// none.
    fn new(d: usize, target: &Target) -> Self {
        let slices = d.div_ceil(64);
        let slice = d.div_ceil(slices).next_multiple_of(16);
        let fits = OUTPUTS * GROUP / (slice * slices);
        let most = if slices == 1 { fits } else { fits.min(32) };
        let tiling = |queries| Self { queries, slice, slices };
        [64, 32, 16]
            .into_iter()
            .filter(|queries| *queries <= most)
            .map(tiling)
            .find(|tiling| tiling.local_mem_bytes() <= target.local_mem_bytes)
            .unwrap_or(tiling(8))
    }

    fn local_mem_bytes(&self) -> u64 {
        let (q, s) = (self.queries, self.slice);
        4 * ((q + KEYS) * (s + 1) + q * (KEYS + 4) + 2 * GROUP) as u64
    }
}

pub(super) fn computes(problem: &Problem, target: &Target) -> bool {
    let Ok(e) = Extents::new(problem) else {
        return false;
    };
    floating(problem, target)
        && e.d <= 1024
        && target.max_work_group as usize >= GROUP
        && Tiling::new(e.d, target).local_mem_bytes() <= target.local_mem_bytes
}

pub(super) fn lower(problem: &Problem, target: &Target) -> Result<Lowering> {
    let e = Extents::new(problem)?;
    let tiling = Tiling::new(e.d, target);
    let call = e
        .call(problem)
        .set("queries", &tiling.queries)
        .set("keys", &KEYS)
        .set("slice", &tiling.slice)
        .set("slices", &tiling.slices)
        .local_mem_bytes(tiling.local_mem_bytes());
    let global = [e.lq.div_ceil(tiling.queries) * GROUP, e.heads, e.n];
    let template = include_str!("flash.cl.tera");
    let launch = call.launch("attention_flash", template, global, Some([GROUP, 1, 1]))?;
    Ok(Lowering::of(launch))
}
