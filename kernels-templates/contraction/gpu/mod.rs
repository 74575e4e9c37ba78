//! `tiled_gpu`: local-memory tiles for devices whose work-groups share fast memory.

use super::{Contraction, rounding};
use crate::packing::panel_count;
use crate::{DeviceClass, Lowering, Needs, Target, Variant};
use anyhow::{Context as _, Result};

const TEMPLATE: &str = include_str!("tiled_gpu.cl.tera");

/// Channels of a local tile.
const DEPTH: usize = 8;
/// Rows and columns of a work-group's tile, largest first.
const TILES: [(usize, usize); 2] = [(128, 128), (64, 64)];

/// `tiled_gpu`. Its needs are those of the smallest tile.
pub const VARIANT: Variant = Variant {
    needs: Needs {
        local_mem_bytes: local_bytes(TILES[1]),
        work_group: work_group(TILES[1]) as u32,
        ..Needs::class(DeviceClass::Gpu)
    },
    rounding: rounding::of_copies,
    ..Variant::new("tiled_gpu", super::panels, super::lower)
};

const fn work_group((rows, columns): (usize, usize)) -> usize {
    rows * columns / 64
}

const fn local_bytes((rows, columns): (usize, usize)) -> u64 {
    (8 * DEPTH * (rows + 4 + columns)) as u64
}

fn tile_fits(tile: (usize, usize), target: &Target) -> bool {
    work_group(tile) <= target.max_work_group as usize
        && local_bytes(tile) <= target.local_mem_bytes
}

/// The largest tile that gives every compute unit a work-group and wastes at most an eighth of the
/// columns. If there is none, the smallest tile.
fn tile(contraction: &Contraction, target: &Target) -> Result<(usize, usize)> {
    let fits = || TILES.iter().copied().filter(|t| tile_fits(*t, target));
    let is_packed = |(_, columns): &(usize, usize)| Some(*columns) == target.packed_columns;
    let only = fits().find(is_packed).map(|(_, columns)| columns);
    let possible = || fits().filter(|(_, columns)| only.is_none_or(|only| *columns == only));
    let (m, n, gated) = (contraction.m(), contraction.n, contraction.gated());
    let good = |(rows, columns): &(usize, usize)| {
        let panels = panel_count(n, *columns, gated);
        let groups = m.div_ceil(*rows) * panels;
        groups >= target.compute_units as usize && panels * columns * 7 <= n * 8
    };
    possible().find(good).or_else(|| possible().next_back()).context("no tile fits the device")
}

/// The launches for a contraction. Its sources need not be the op's own.
pub fn lower_contraction(contraction: &Contraction, target: &Target) -> Result<Lowering> {
    let (tm, tn) = tile(contraction, target)?;
    let taps = contraction.geometry.kernel.pow(2);
    let chunks: usize = contraction.sources.iter().map(|s| s.channels.div_ceil(DEPTH)).sum();
    let parameters = contraction
        .panel_parameters(tn)
        .set("tm", &tm)
        .set("tn", &tn)
        .set("tk", &DEPTH)
        .set("steps", &(taps * chunks))
        .set("aligned", &contraction.out_n.is_multiple_of(4));
    let splits = contraction.panel_splits(tn, 1);
    let (columns, rows) = (tn as u64 / 8, tm as u64 / 8);
    let tiles = (contraction.m() as u64).div_ceil(tm as u64);
    let mut launches = contraction.launches(
        TEMPLATE,
        &parameters,
        "contraction_tiled_gpu",
        &splits,
        |panels| ([panels as u64 * columns, tiles * rows, 1], Some([columns, rows, 1])),
    )?;
    launches.iter_mut().for_each(|l| l.local_mem_bytes = local_bytes((tm, tn)));
    let packings = contraction.panel_packings(tn);
    Ok(Lowering { launches, packings, ..Lowering::default() })
}
