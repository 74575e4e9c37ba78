//! Online softmax for mobile GPUs: keys and values are read in place, outputs are in registers.
//! `flash_mobile_half`: the same with half arithmetic on values stored in FP16.
//!
//! Scores are sums of runs of products in FP16, as in [`crate::contraction::mobile`]. The queries
//! are multiplied by the power of two next to the scale of the scores before, so that a run is no
//! larger than a score. Weights of keys are at most 1; they are rounded to FP16, and runs of their
//! products with values are added in FP16.

use super::Extents;
use crate::contraction::mobile::mean_error;
use crate::contraction::rounding::FP16_ROUNDING;
use crate::launch::{floating, literal};
use crate::{DeviceClass, Lowering, Needs, Problem, Rounding, Target, Variant};
use anyhow::{Context as _, Result};
use kiln_ir::DType;

/// Work-items of a work-group.
const GROUP: usize = 128;

/// Outputs of a work-group that its registers hold beside all else. With the fewest queries, twice
/// as many are allowed.
const MOST_OUTPUTS: usize = 16 * GROUP;

/// Keys of a block, at least.
const KEYS: usize = 32;

/// `flash_mobile`.
pub(super) const VARIANT: Variant = Variant {
    needs: Needs { work_group: GROUP as u32, ..Needs::class(DeviceClass::MobileGpu) },
    ..Variant::new("flash_mobile", computes, |problem, target| lower(problem, target, 0))
};

/// `flash_mobile_half`.
pub(super) const HALF_VARIANT: Variant = Variant {
    needs: Needs { half_arithmetic: true, ..VARIANT.needs },
    rounding: of_half_arithmetic,
    ..Variant::new("flash_mobile_half", in_halves, |problem, target| {
        lower(problem, target, target.half_run)
    })
};

/// Tiling of a head.
struct Tiling {
    queries: usize,
    keys: usize,
    columns: usize,
    parts: usize,
}

impl Tiling {
    /// Few queries where heads have many columns, so that a work-item has few outputs and all fit
    /// into local memory. `value_bytes` is the size of a query's column and of a weight in it.
    fn new(d: usize, value_bytes: usize, target: &Target) -> Option<Self> {
        let tiling = |queries: usize| {
            let columns = (8 * GROUP / queries).max(64);
            let keys = (KEYS * queries / (4 * GROUP)).max(1);
            Self { queries, keys, columns, parts: d.div_ceil(columns) }
        };
        let fits = |tiling: &Self| tiling.local_mem_bytes(d, value_bytes) <= target.local_mem_bytes;
        let outputs = |tiling: &Self| tiling.queries * tiling.columns * tiling.parts;
        let allowed = |t: &Self| outputs(t) <= MOST_OUTPUTS * if t.queries == 8 { 2 } else { 1 };
        [32, 16, 8].map(tiling).into_iter().find(|t| allowed(t) && fits(t))
    }

    /// Work-items over the keys of a block.
    fn across(&self) -> usize {
        4 * GROUP / self.queries
    }

    /// Keys of a block.
    fn block(&self) -> usize {
        self.across() * self.keys
    }

    fn local_mem_bytes(&self, d: usize, value_bytes: usize) -> u64 {
        let values = value_bytes * self.queries * (d + self.block());
        let scores = 3 * 16 * GROUP + 4 * self.queries;
        (values + scores + 4 * self.queries * self.columns * self.parts) as u64
    }
}

fn computes(problem: &Problem, target: &Target) -> bool {
    fits(problem, target, 4)
}

/// Vectors of eight are loaded at multiples of eight elements.
fn fits(problem: &Problem, target: &Target, value_bytes: usize) -> bool {
    let Ok(e) = Extents::new(problem) else {
        return false;
    };
    let eights = [e.q, e.k, e.v]
        .iter()
        .all(|(_, stride, start)| stride.is_multiple_of(8) && start.is_multiple_of(8));
    floating(problem, target)
        && e.d.is_multiple_of(8)
        && eights
        && Tiling::new(e.d, value_bytes, target).is_some()
}

/// Whether queries, keys and values are stored in FP16.
fn in_halves(problem: &Problem, target: &Target) -> bool {
    let halves = problem.inputs.iter().all(|input| input.ty.dtype == DType::F16);
    halves && target.half_run.is_multiple_of(8) && fits(problem, target, 2)
}

/// Scores are `1 / 3` on average for values of up to 1, and their error is a relative error of the
/// weights; weights, whose squares add up to at most 1, are rounded; values are `1 / sqrt(3)`. Six
/// standard deviations.
fn of_half_arithmetic(_: &Problem, target: &Target, largest: f32) -> Rounding {
    let runs = mean_error(target.half_run);
    let weights = runs * largest * largest / 3.0 + FP16_ROUNDING / 3f32.sqrt();
    Rounding { abs: 6.0 * largest / 3f32.sqrt() * (weights + runs), ..Rounding::FP32 }
}

fn lower(problem: &Problem, target: &Target, run: u32) -> Result<Lowering> {
    let e = Extents::new(problem)?;
    let value_bytes = if run > 0 { 2 } else { 4 };
    let tiling = Tiling::new(e.d, value_bytes, target).context("heads too wide")?;
    let q_scale = e.scale.log2().round().exp2();
    let call = e
        .call(problem)
        .set("queries", &tiling.queries)
        .set("keys", &tiling.keys)
        .set("columns", &tiling.columns)
        .set("parts", &tiling.parts)
        .set("run", &run)
        .set("q_scale", &literal(q_scale))
        .set("rest_log2", &literal(e.scale / q_scale * std::f32::consts::LOG2_E))
        .numbers(&[e.d, tiling.across(), tiling.block() / 4])
        .local_mem_bytes(tiling.local_mem_bytes(e.d, value_bytes));
    let template = include_str!("flash_mobile.cl.tera");
    let global = [e.lq.div_ceil(tiling.queries) * GROUP, e.heads, e.n];
    let entry = if run > 0 { "attention_flash_mobile_half" } else { "attention_flash_mobile" };
    let mut launch = call.launch(entry, template, global, Some([GROUP, 1, 1]))?;
    launch.half_arithmetic = run > 0;
    Ok(Lowering::of(launch))
}
