//! Kernels of [`kiln_ir::ops::matmul`].

use crate::contraction::{self, Contraction, cpu, dot, gpu, mobile, tensor_cores};
use crate::{Argument, Family, Lowering, Problem, Target, Variant};
use anyhow::{Context as _, Result};

/// The variants, best first.
pub const VARIANTS: &[Variant] = &[
    dot::VNNI_VARIANT,
    dot::MADD_VARIANT,
    cpu::VARIANT,
    tensor_cores::VARIANT,
    gpu::VARIANT,
    mobile::HALF_VARIANT,
    mobile::VARIANT,
    Variant::new("tiled", tiled_computes, tiled),
    Variant::naive(contraction::naive_computes, naive),
];

/// This folder's line of the registry.
pub const FAMILIES: &[Family] = &[Family { op: "matmul", variants: VARIANTS }];

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let contraction = Contraction::new(problem).context("matmul over another op")?;
    contraction.lower_naive(include_str!("naive.cl.tera"), "matmul_naive")
}

/// The largest square tile that the device supports.
fn square_tile(gated: bool, target: &Target) -> Option<(usize, u64)> {
    [16usize, 8, 4].into_iter().find_map(|tile| {
        let bytes = 4 * tile * (2 * tile + 1) + if gated { 4 * tile * (tile + 1) } else { 0 };
        let fits =
            tile * tile <= target.max_work_group as usize && bytes as u64 <= target.local_mem_bytes;
        fits.then_some((tile, bytes as u64))
    })
}

fn tiled_computes(problem: &Problem, target: &Target) -> bool {
    let fits = |c: Contraction| square_tile(c.gated(), target).is_some();
    contraction::naive_computes(problem, target) && Contraction::new(problem).is_some_and(fits)
}

fn tiled(problem: &Problem, target: &Target) -> Result<Lowering> {
    let contraction = Contraction::new(problem).context("matmul over another op")?;
    let gated = contraction.gated();
    let (tile, local_mem_bytes) = square_tile(gated, target).context("no tile fits the device")?;
    let splits = contraction.column_splits().context("GEGLU weights exceed one launch")?;
    let columns = |units: usize| if gated { contraction.out_n } else { units };
    let round = |count: usize| count.next_multiple_of(tile) as u64;
    let mut launches = contraction.launches(
        include_str!("tiled.cl.tera"),
        &contraction.parameters().set("tile", &tile),
        "matmul_tiled",
        &splits,
        |units| {
            let global = [round(columns(units)), round(contraction.m()), 1];
            (global, Some([tile as u64, tile as u64, 1]))
        },
    )?;
    for (launch, split) in launches.iter_mut().zip(&splits) {
        launch.args.push(Argument::U32(columns(split.units) as u32));
        launch.local_mem_bytes = local_mem_bytes;
    }
    let packings = contraction.row_major_packings();
    Ok(Lowering { launches, packings, ..Lowering::default() })
}
