//! Online softmax on the tensor cores of NVIDIA GPUs, through inline PTX.

use super::Extents;
use crate::contraction::rounding::FP16_ROUNDING;
use crate::launch::floating;
use crate::{Lowering, Needs, Problem, Rounding, Target, Variant};
use anyhow::Result;
use kiln_ir::DType;

/// Largest number of warps of a work-group in FP16, so that registers suffice for a second
/// work-group.
const MOST_WARPS: usize = 12;
/// Columns of a head.
const HEAD: usize = 64;
/// Bytes of a tile of keys or values.
const TILE_BYTES: usize = 8 << 10;
/// Tiles of FP16 keys, and of values, that are loading or in use.
const HALF_STAGES: usize = 3;

/// `flash_mma`.
pub(super) const VARIANT: Variant =
    Variant { needs: Needs::TENSOR_CORES, rounding, ..Variant::new("flash_mma", computes, lower) };

/// The weights of attention are rounded to FP16, by at most 2^-11 of themselves. They add up to 1.
fn rounding(problem: &Problem, _: &Target, largest: f32) -> Rounding {
    let half = problem.output.dtype == DType::F16;
    Rounding { abs: if half { largest * FP16_ROUNDING } else { 0.0 }, ..Rounding::FP32 }
}

/// The extents of a problem for tensor cores: one storage type, rows in multiples of 16 bytes.
pub(super) fn extents(problem: &Problem, target: &Target) -> Option<Extents> {
    let e = Extents::new(problem).ok()?;
    let dtype = problem.inputs[e.q.0].ty.dtype;
    let part = 16 / dtype.size_bytes() as usize;
    let whole = |(input, stride, start): (usize, usize, usize)| {
        problem.inputs[input].ty.dtype == dtype
            && stride.is_multiple_of(part)
            && start.is_multiple_of(part)
    };
    let all = floating(problem, target) && [e.q, e.k, e.v].into_iter().all(whole);
    all.then_some(e)
}

/// Whether `flash_mma` can compute a problem: heads of 64 columns.
fn computes(problem: &Problem, target: &Target) -> bool {
    extents(problem, target).is_some_and(|e| e.d == HEAD)
}

fn lower(problem: &Problem, target: &Target) -> Result<Lowering> {
    let e = Extents::new(problem)?;
    let half = problem.inputs[e.q.0].ty.dtype == DType::F16;
    let warps = if half { warps(&e, target) } else { 4 };
    let memory_bytes = if half { HALF_STAGES * 2 * TILE_BYTES } else { 4 * TILE_BYTES };
    let call = e
        .call(problem)
        .set("out_half", &(problem.output.dtype == DType::F16))
        .local_mem_bytes(memory_bytes as u64);
    let global = [e.lq.div_ceil(16 * warps) * 32 * warps, e.heads, e.n];
    let (call, template) = match half {
        true => (call.set("warps", &warps), include_str!("flash_mma_half.cl.tera")),
        false => (call, include_str!("flash_mma.cl.tera")),
    };
    let local = [32 * warps, 1, 1];
    let launch = call.launch("attention_flash_mma", template, global, Some(local))?;
    Ok(Lowering::of(launch))
}

/// Warps a work-group (16 queries each). Minimizes the number of queries on the busiest compute
/// unit. Ties go to more warps, since each work-group reads all keys once.
fn warps(e: &Extents, target: &Target) -> usize {
    let busiest = |warps: usize| {
        let groups = e.lq.div_ceil(16 * warps) * e.heads * e.n;
        groups.div_ceil(target.compute_units.max(1) as usize) * warps
    };
    let most = (target.max_work_group as usize / 32).clamp(1, MOST_WARPS);
    (1..=most).min_by_key(|warps| (busiest(*warps), most - warps)).unwrap_or(1)
}
