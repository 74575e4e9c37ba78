//! `tiled_mobile`: register tiles with 4-wide loads, for GPUs whose local memory is no faster; and
//! `tiled_mobile_half`, the same with half arithmetic on values stored in FP16.
//!
//! Such GPUs multiply halves at twice their FP32 rate, but a half has 11 bits: sums of thousands of
//! products would keep none of the small ones. So only [`Target::half_run`] products are added as
//! halves, and their sum is added to one in FP32. Each of the `n` roundings of a run is at most
//! 2^-11 of the partial sum, so that a run is off by
//!
//! - at most `n * 2^-11` of the sum of its products' magnitudes;
//! - in the mean, where signs are random, by at most `sqrt(n / 6) * 2^-11` of the sum's size: roundings are
//!   spread evenly, that is by 1 / sqrt(3) of their largest, over partial sums that grow with the
//!   root of their length. Runs err independently, so that the whole sum is off by that, too.
//!
//! For the 16 of a Mali that is 8e-4, next to the 2e-4 of storing the result, and adding runs takes
//! an eighth of the instructions of multiplying. A run overflows where the products of `n` values
//! exceed 65504; INT8 weights, which wait for their scales with values of up to 127, are multiplied
//! in FP32.

use super::{Contraction, stripe};
use crate::{DeviceClass, Lowering, Problem, Target};
use anyhow::{Context as _, Result};
use kiln_ir::DType;

const TEMPLATE: &str =
    concat!(include_str!("vector.cl.tera"), include_str!("tiled_mobile.cl.tera"));
const HALF_TEMPLATE: &str = concat!(
    include_str!("../half.cl.tera"),
    include_str!("vector.cl.tera"),
    include_str!("tiled_mobile.cl.tera")
);

/// Bound of the error in the mean of sums of products of random signs in runs of that many halves, as
/// a part of their size in the mean.
pub fn mean_error(run: u32) -> f32 {
    (run as f32 / 6.0).sqrt() * 2f32.powi(-11)
}

/// Whether `tiled_mobile` can compute a problem.
pub fn applies(problem: &Problem, target: &Target) -> bool {
    target.class == DeviceClass::MobileGpu && Contraction::new(problem).is_some_and(|c| c.panels())
}

/// Whether `tiled_mobile_half` can: the target has half arithmetic, and what is multiplied is stored
/// in FP16.
pub fn half_applies(problem: &Problem, target: &Target) -> bool {
    let halves = |c: Contraction| {
        c.weight_dtype == DType::F16 && c.sources.iter().all(|s| s.dtype == DType::F16)
    };
    applies(problem, target)
        && target.half_run > 0
        && target.half_run.is_multiple_of(4)
        && Contraction::new(problem).is_some_and(halves)
}

/// The launches of `tiled_mobile`.
pub fn lower(problem: &Problem, target: &Target) -> Result<Lowering> {
    let contraction = Contraction::new(problem).context("tiled_mobile over another op")?;
    lower_contraction(&contraction, target)
}

/// The launches of `tiled_mobile_half`, over stripes where the input is normalized.
pub fn lower_half(problem: &Problem, target: &Target) -> Result<Lowering> {
    let contraction = Contraction::new(problem).context("tiled_mobile_half over another op")?;
    let plain = |c: &Contraction, t: &Target| lower_in_runs(c, t, t.half_run);
    match contraction.prologue {
        Some(_) => stripe::lower(&contraction, target, plain),
        None => plain(&contraction, target),
    }
}

/// [`lower`] for a contraction whose sources need not be the op's own.
pub fn lower_contraction(contraction: &Contraction, target: &Target) -> Result<Lowering> {
    lower_in_runs(contraction, target, 0)
}

/// Runs of `run` products are added as halves, none if that is 0.
fn lower_in_runs(contraction: &Contraction, target: &Target, run: u32) -> Result<Lowering> {
    let quantum = if contraction.gated() { 8 } else { 4 };
    let width = (target.tile_columns as usize).next_multiple_of(quantum);
    let rows = (target.tile_rows as usize).clamp(1, 8).min(contraction.m());
    let parameters = contraction
        .panel_parameters(width)
        .set("out_width", &contraction.out_width(width))
        .set("rows", &rows)
        .set("run", &run)
        .set("aligned", &contraction.out_n.is_multiple_of(4));
    let splits = contraction.panel_splits(width, 1);
    let tiles = contraction.m().div_ceil(rows) as u64;
    let (template, entry) = match run {
        0 => (TEMPLATE, "contraction_tiled_mobile"),
        _ => (HALF_TEMPLATE, "contraction_tiled_mobile_half"),
    };
    let mut launches = contraction.launches(template, &parameters, entry, &splits, |panels| {
        ([panels as u64, tiles, 1], None)
    })?;
    launches.iter_mut().for_each(|launch| launch.half_arithmetic = run > 0);
    let packings = contraction.panel_packings(width);
    Ok(Lowering { launches, packings, ..Lowering::default() })
}
