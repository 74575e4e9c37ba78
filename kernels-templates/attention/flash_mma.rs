//! Online softmax on the tensor cores of NVIDIA GPUs, through inline PTX.

use super::Extents;
use crate::launch::floating;
use crate::{DeviceClass, Lowering, Problem, Target};
use anyhow::Result;
use kiln_ir::DType;

/// Work-items of a work-group: four warps, each with its own queries.
const GROUP: usize = 128;
/// Width of a head.
const HEAD: usize = 64;
/// Bytes of a tile of keys or values; there are two of each.
const TILE_BYTES: usize = 8 << 10;

/// The extents of a problem for tensor cores: an NVIDIA GPU, one storage type, rows of whole 16-byte
/// parts.
pub(super) fn extents(problem: &Problem, target: &Target) -> Option<Extents> {
    let e = Extents::new(problem).ok()?;
    let dtype = problem.inputs[e.q.0].ty.dtype;
    let part = 16 / dtype.size_bytes() as usize;
    let whole = |(input, stride, start): (usize, usize, usize)| {
        problem.inputs[input].ty.dtype == dtype
            && stride.is_multiple_of(part)
            && start.is_multiple_of(part)
    };
    let all = floating(problem, target)
        && target.class == DeviceClass::Gpu
        && target.ptx_mma
        && [e.q, e.k, e.v].into_iter().all(whole);
    all.then_some(e)
}

/// Whether `flash_mma` can compute a problem: heads of 64 columns.
pub(super) fn applies(problem: &Problem, target: &Target) -> bool {
    extents(problem, target).is_some_and(|e| e.d == HEAD)
}

pub(super) fn lower(problem: &Problem, target: &Target) -> Result<Lowering> {
    let e = Extents::new(problem)?;
    let dtype = problem.inputs[e.q.0].ty.dtype;
    let half = dtype == DType::F16;
    // Two tiles of queries a warp read keys half as often, if enough work-groups remain.
    let groups = |tiles: usize| e.lq.div_ceil(64 * tiles) * e.heads * e.n;
    let tiles = if half && groups(2) >= 2 * target.compute_units as usize { 2 } else { 1 };
    let call = e
        .call(problem)
        .set("half", &half)
        .set("out_half", &(problem.output.dtype == DType::F16))
        .set("tiles", &tiles)
        .set("keys", &(TILE_BYTES / HEAD / dtype.size_bytes() as usize))
        .local_mem_bytes(4 * TILE_BYTES as u64);
    let global = [e.lq.div_ceil(64 * tiles) * GROUP, e.heads, e.n];
    let template = concat!(include_str!("../ptx.cl.tera"), include_str!("flash_mma.cl.tera"));
    let launch = call.launch("attention_flash_mma", template, global, Some([GROUP, 1, 1]))?;
    Ok(Lowering { launches: vec![launch], ..Lowering::default() })
}
