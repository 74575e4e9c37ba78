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
/// Bytes of a tile of keys or values.
const TILE_BYTES: usize = 8 << 10;
/// Tiles of FP16 keys, and of values, on their way or in use.
const HALF_STAGES: usize = 3;

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
    let (tiles, splits) = if half { shape(&e, target) } else { (1, 1) };
    let queries = 16 * tiles * 4 / splits;
    let memory_bytes = if half { HALF_STAGES * 2 * TILE_BYTES } else { 4 * TILE_BYTES };
    let call = e
        .call(problem)
        .set("out_half", &(problem.output.dtype == DType::F16))
        .set("tiles", &tiles)
        .set("splits", &splits)
        .set("keys", &(TILE_BYTES / HEAD / dtype.size_bytes() as usize))
        .local_mem_bytes(memory_bytes as u64);
    let global = [e.lq.div_ceil(queries) * GROUP, e.heads, e.n];
    let template = match half {
        true => concat!(include_str!("../ptx.cl.tera"), include_str!("flash_mma_half.cl.tera")),
        false => concat!(include_str!("../ptx.cl.tera"), include_str!("flash_mma.cl.tera")),
    };
    let launch = call.launch("attention_flash_mma", template, global, Some([GROUP, 1, 1]))?;
    Ok(Lowering { launches: vec![launch], ..Lowering::default() })
}

/// Tiles of 16 queries of a warp, and parts of the keys that warps share out: two tiles if enough
/// work-groups of 64 queries remain, so that keys are read half as often.
fn shape(e: &Extents, target: &Target) -> (usize, usize) {
    let groups = e.lq.div_ceil(64) * e.heads * e.n;
    if groups >= 2 * target.compute_units as usize { (2, 2) } else { (1, 2) }
}
