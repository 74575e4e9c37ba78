//! Online softmax on the tensor cores of NVIDIA GPUs for wide heads. Warps divide the columns of a
//! head.

use super::Extents;
use super::flash_mma::{self, extents};
use crate::{Lowering, Problem, Target, Variant};
use anyhow::Result;
use kiln_ir::DType;

/// Work-items of a work-group: two groups of four warps.
const GROUP: usize = 256;
/// Queries of a work-group.
const QUERIES: usize = 32;
/// Largest number of columns of a head. A quarter of them are sums in the registers of a warp.
const MOST_COLUMNS: usize = 512;

/// `flash_mma_wide`.
pub(super) const VARIANT: Variant =
    Variant { name: "flash_mma_wide", computes, launches: lower, ..flash_mma::VARIANT };

/// Whether `flash_mma_wide` can compute a problem: wide heads in multiples of 256 columns, no
/// causal mask.
fn computes(problem: &Problem, target: &Target) -> bool {
    let wide = |e: Extents| !e.causal && e.d.is_multiple_of(256) && e.d <= MOST_COLUMNS;
    extents(problem, target).is_some_and(wide)
}

fn lower(problem: &Problem, _: &Target) -> Result<Lowering> {
    let e = Extents::new(problem)?;
    let half = problem.inputs[e.q.0].ty.dtype == DType::F16;
    let key_tiles = if half { 4 } else { 2 };
    let call = e
        .call(problem)
        .set("half", &half)
        .set("out_half", &(problem.output.dtype == DType::F16))
        .set("key_tiles", &key_tiles)
        .local_mem_bytes((2 * GROUP * key_tiles * 16) as u64);
    let global = [e.lq.div_ceil(QUERIES) * GROUP, e.heads, e.n];
    let template = include_str!("flash_mma_wide.cl.tera");
    let launch = call.launch("attention_flash_mma_wide", template, global, Some([GROUP, 1, 1]))?;
    Ok(Lowering::of(launch))
}
