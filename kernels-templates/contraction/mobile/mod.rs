//! `tiled_mobile`: register tiles with 4-wide loads, for GPUs whose local memory is no faster than
//! global memory. `tiled_mobile_half`: the same with half arithmetic on values stored in FP16.
//!
//! Such GPUs multiply FP16 at twice their FP32 rate, but FP16 has a precision of 11 bits: sums of
//! thousands of products would lose the small ones. So only [`Target::half_run`] products are added
//! in FP16, and the sum of this run is added in FP32. Each of the `n` roundings of a run is at most
//! 2^-11 of the partial sum. The error of a run is therefore
//!
//! - at most `n * 2^-11` of the sum of its products' magnitudes;
//! - on average, for random signs, at most `sqrt(n / 6) * 2^-11` of the sum's size: roundings are
//!   evenly distributed (their standard deviation is 1 / sqrt(3) of the largest), and partial sums
//!   grow with the root of their length. Errors of runs are independent, so this also bounds the
//!   whole sum.
//!
//! For the `n` of 16 on a Mali this is 8e-4, beside 2e-4 of storing the result. Adding the runs
//! takes an eighth of the instructions of multiplying. A run overflows if the products of `n`
//! values exceed 65504. INT8 weights, which have values of up to 127 before they are scaled, are
//! multiplied in FP32.

use super::{Contraction, rounding, stripes};
use crate::{DeviceClass, Lowering, Needs, Packing, Problem, Target, Tiling, Variant, packing};
use anyhow::{Context as _, Result};
use kiln_ir::DType;

const TEMPLATE: &str = include_str!("tiled_mobile.cl.tera");

/// OpenCL C that names the operations of half arithmetic. It precedes the kernels that use them.
pub const HALF_ARITHMETIC: &str = include_str!("../../half.cl.tera");

/// Expected relative error of a dot product whose partial sums of `run` products are kept in FP16,
/// for products of random sign.
pub fn mean_error(run: u32) -> f32 {
    (run as f32 / 6.0).sqrt() * 2f32.powi(-11)
}

/// `tiled_mobile`.
pub const VARIANT: Variant = Variant {
    needs: Needs::class(DeviceClass::MobileGpu),
    rounding: rounding::of_copies,
    tuning,
    ..Variant::new("tiled_mobile", super::panels, super::lower)
};

/// `tiled_mobile_half`.
pub const HALF_VARIANT: Variant = Variant {
    needs: Needs { half_arithmetic: true, ..VARIANT.needs },
    rounding: rounding::of_half_arithmetic,
    tuning,
    ..Variant::new("tiled_mobile_half", in_halves, lower_half)
};

/// Whether all factors are stored in FP16.
fn in_halves(problem: &Problem, target: &Target) -> bool {
    let halves = |c: Contraction| {
        c.weight_dtype == DType::F16 && c.sources.iter().all(|s| s.dtype == DType::F16)
    };
    super::panels(problem, target) && Contraction::new(problem).is_some_and(halves)
}

/// Tiles of few rows, one or two vectors wide.
pub fn tuning(_: &Target) -> Vec<Tiling> {
    let tiling = |rows, columns| Tiling { rows, columns, sum_parts: 0 };
    [1, 2, 4, 6, 8].into_iter().flat_map(|rows| [tiling(rows, 4), tiling(rows, 8)]).collect()
}

/// The launches of `tiled_mobile_half`, over stripes where the input is normalized.
fn lower_half(problem: &Problem, target: &Target) -> Result<Lowering> {
    let contraction = Contraction::new(problem).context("tiled_mobile_half over another op")?;
    let plain = |c: &Contraction, t: &Target| lower_in_runs(c, t, t.half_run);
    match contraction.prologue {
        Some(_) => stripes::lower(&contraction, target, plain),
        None => plain(&contraction, target),
    }
}

/// The launches of `tiled_mobile` for a contraction. Its sources need not be the op's own.
pub fn lower_contraction(contraction: &Contraction, target: &Target) -> Result<Lowering> {
    lower_in_runs(contraction, target, 0)
}

/// Most work-items that share a packed panel: the work-items of a warp of a Mali.
const LANES: usize = 16;

/// Number of neighbouring work-items, of `width` columns each, whose weights are packed as one panel
/// `[K][vector][lane]`. A warp's load of weights then reads one or two lines of the cache instead of
/// a line for each work-item. As many as divide the columns evenly and keep a panel within the
/// weights of a launch.
fn lanes(contraction: &Contraction, width: usize) -> usize {
    let items = packing::panel_count(contraction.n, width, contraction.gated());
    let most_bytes = contraction.problem.max_weight_bytes;
    let fits = |lanes: usize| {
        items.is_multiple_of(lanes) && contraction.panel_bytes(width * lanes) <= most_bytes
    };
    std::iter::successors(Some(LANES), |lanes| Some(lanes / 2))
        .find(|n| *n == 1 || fits(*n))
        .unwrap_or(1)
}

/// The launches with runs of `run` products in FP16. 0 for FP32 throughout.
fn lower_in_runs(contraction: &Contraction, target: &Target, run: u32) -> Result<Lowering> {
    let geometry = contraction.geometry;
    let inside = geometry.windows_are_inside();
    let quantum = if contraction.gated() { 8 } else { 4 };
    let columns = (target.tile_columns as usize).next_multiple_of(quantum);
    let rows = (target.tile_rows as usize).clamp(1, 8);
    // GEGLU's wider tiles have fewer rows, so that as many sums are in registers.
    let rows = (rows * target.tile_columns as usize / columns).clamp(1, contraction.m());
    // The rows of a tile lie in one line of the feature map.
    let is_even = inside && !geometry.upsample && geometry.out_w.is_multiple_of(rows);
    let apart = if is_even { geometry.stride_x } else { 0 };
    // Rows with a pointer each are half as many, of tiles twice as wide: pointers take registers too.
    let (rows, columns) =
        if is_even || rows < 4 { (rows, columns) } else { (rows / 2, columns * 2) };
    let lanes = lanes(contraction, columns);
    let width = columns * lanes;
    let eights = |n: usize| n.is_multiple_of(8);
    let paired =
        run > 0 && eights(run as usize) && contraction.sources.iter().all(|s| eights(s.channels));
    // The taps of a line, and the channels of each, follow one another in the only source.
    let in_line = inside
        && contraction.sources.len() == 1
        && !geometry.upsample
        && geometry.pixel_factor == 1;
    let parameters = contraction
        .panel_parameters(width)
        .set("lanes", &lanes)
        .set("vectors", &(columns / 4))
        .set("rows", &rows)
        .set("run", &run)
        .set("paired", &paired)
        .set("inside", &inside)
        .set("apart", &apart)
        .set("span", &if in_line { geometry.kernel } else { 1 })
        .set("aligned", &contraction.out_n.is_multiple_of(4));
    let splits = contraction.panel_splits(width, 1);
    let tiles = contraction.m().div_ceil(rows) as u64;
    let entry = match run {
        0 => "contraction_tiled_mobile",
        _ => "contraction_tiled_mobile_half",
    };
    let mut launches = contraction.launches(TEMPLATE, &parameters, entry, &splits, |panels| {
        ([(panels * lanes) as u64, tiles, 1], None)
    })?;
    launches.iter_mut().for_each(|launch| launch.half_arithmetic = run > 0);
    let mut packings = contraction.panel_packings(width);
    if paired && let Some((_, weights)) = packings.first_mut() {
        *weights = Packing::PairedPanels { width, gated: contraction.gated() };
    }
    Ok(Lowering { launches, packings, ..Lowering::default() })
}
