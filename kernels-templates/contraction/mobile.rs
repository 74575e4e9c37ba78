//! `tiled_mobile`: register tiles with 4-wide loads, for GPUs whose local memory is no faster.

use super::Contraction;
use crate::{DeviceClass, Lowering, Problem, Target};
use anyhow::{Context as _, Result};

const TEMPLATE: &str =
    concat!(include_str!("vector.cl.tera"), include_str!("tiled_mobile.cl.tera"));

/// Whether `tiled_mobile` can compute a problem.
pub fn applies(problem: &Problem, target: &Target) -> bool {
    target.class == DeviceClass::MobileGpu && Contraction::new(problem).is_some_and(|c| c.panels())
}

/// The launches of `tiled_mobile`.
pub fn lower(problem: &Problem, target: &Target) -> Result<Lowering> {
    let contraction = Contraction::new(problem).context("tiled_mobile over another op")?;
    lower_contraction(&contraction, target)
}

/// [`lower`] for a contraction whose sources need not be the op's own.
pub fn lower_contraction(contraction: &Contraction, target: &Target) -> Result<Lowering> {
    let quantum = if contraction.gated() { 8 } else { 4 };
    let width = (target.tile_columns as usize).next_multiple_of(quantum);
    let rows = (target.tile_rows as usize).clamp(1, 8).min(contraction.m());
    let parameters = contraction
        .panel_parameters(width)
        .set("out_width", &contraction.out_width(width))
        .set("rows", &rows)
        .set("aligned", &contraction.out_n.is_multiple_of(4));
    let splits = contraction.panel_splits(width);
    let tiles = contraction.m().div_ceil(rows) as u64;
    let entry = "contraction_tiled_mobile";
    let launches = contraction.launches(TEMPLATE, &parameters, entry, &splits, |panels| {
        ([panels as u64, tiles, 1], None)
    })?;
    let packings = contraction.panel_packings(width);
    Ok(Lowering { launches, scratch_bytes: vec![], packings })
}
