//! `tiled_cpu`: register tiles over panels, for devices whose work-items are threads.

use super::Contraction;
use crate::{DeviceClass, Lowering, Needs, Packing, Target, Tiling, Variant};
use anyhow::Result;
use kiln_ir::DType;

const TEMPLATE: &str = include_str!("tiled_cpu.cl.tera");

/// Largest number of channels of a row that are staged at once.
const STAGED_CHANNELS: usize = 256;
/// Largest number of channels of a segment of a panel.
const SEGMENT_CHANNELS: usize = 512;
/// Largest part of A that a group of tiles reads before the next panel begins, in bytes.
const TILE_BLOCK_BYTES: u64 = 4 << 20;

/// Size of a panel that a cache holds, in bytes. Several tiles in turn read a longer panel in
/// segments.
const CACHED_PANEL_BYTES: u64 = 400 << 10;
/// Number of tiles up to which it pays to avoid the wait for a panel's first read.
const FEW_TILES: usize = 48;
/// Sums of a work-item that are kept in memory, in bytes.
const SUMS_BYTES: usize = 64 << 10;
/// Work-items of a compute unit at least.
const ITEMS_PER_UNIT: usize = 8;

/// The shape of a register tile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tile {
    /// Rows.
    pub rows: usize,
    /// Accumulator columns: the width of a panel.
    pub width: usize,
    /// Elements of a vector.
    pub vector: usize,
}

/// `tiled_cpu`.
pub const VARIANT: Variant = Variant {
    needs: Needs::class(DeviceClass::Cpu),
    tuning,
    ..Variant::new("tiled_cpu", super::panels, super::lower)
};

/// Tiles whose sums fill all vector registers except a few: 32 registers with vectors of 16,
/// otherwise 16.
pub fn tuning(target: &Target) -> Vec<Tiling> {
    const ROWS: [u32; 14] = [3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28];
    let registers = if target.vector_width >= 16 { 32 } else { 16 };
    let fits =
        |(vectors, rows): &(u32, u32)| (registers / 2..=registers - 4).contains(&(rows * vectors));
    let all = (1..=4).flat_map(|vectors| ROWS.map(|rows| (vectors, rows)));
    let tiling =
        |(vectors, rows)| Tiling { rows, columns: vectors * target.vector_width, sum_parts: 0 };
    all.filter(fits).map(tiling).collect()
}

/// The tile for `m` rows. Panels have the target's width, or less if there are fewer columns. For
/// GEGLU the width is whole vectors of values and of gates.
pub(super) fn tile(contraction: &Contraction, target: &Target, m: usize) -> Tile {
    let vector = match target.vector_width {
        16.. => 16,
        8..16 => 8,
        _ => 4,
    };
    let quantum = if contraction.gated() { 2 * vector } else { vector };
    let wanted = (target.tile_columns as usize).max(quantum) / quantum * quantum;
    let width = wanted.min(contraction.n.next_multiple_of(quantum));
    let tiles = m.div_ceil(target.tile_rows.max(1) as usize);
    Tile { rows: m.div_ceil(tiles), width, vector }
}

/// Tiles of a work-item. One if a panel stays in cache between work-items, otherwise as many as
/// their sums and an even load allow.
fn span(contraction: &Contraction, tile: Tile, panels: usize, target: &Target) -> usize {
    let panel_bytes = contraction.panel_bytes(tile.width);
    let tiles = contraction.m().div_ceil(tile.rows);
    if panel_bytes <= CACHED_PANEL_BYTES && tiles > FEW_TILES {
        return 1;
    }
    let items = ITEMS_PER_UNIT * target.compute_units as usize;
    let shares =
        items.div_ceil(panels).max(tiles.div_ceil(SUMS_BYTES / (4 * tile.rows * tile.width)));
    tiles.div_ceil(shares.max(1)).max(1)
}

/// Channels that are read at a time, at most `most`. If possible, the channels are divided into
/// equal runs that are multiples of `quantum`, the longer of a vector and a scale group.
pub(super) fn part(channels: usize, most: usize, quantum: usize) -> usize {
    let fewest = channels.div_ceil(most);
    let even = |count: &usize| channels.is_multiple_of(count * quantum);
    match (fewest..=2 * fewest).find(even) {
        Some(count) => channels / count,
        None => channels.next_multiple_of(quantum).min(most),
    }
}

/// The launches for a contraction. Its sources need not be the op's own.
pub fn lower_contraction(contraction: &Contraction, target: &Target) -> Result<Lowering> {
    let tile = tile(contraction, target, contraction.m());
    let g = contraction.geometry;
    let halves = contraction.sources.iter().any(|s| s.dtype == DType::F16);
    let staged = halves || !g.pointwise;
    let most = if staged { STAGED_CHANNELS } else { SEGMENT_CHANNELS };
    let group = contraction.scale_group();
    let quantum = tile.vector.max(if group == contraction.k { 0 } else { group });
    let parts: Vec<_> =
        contraction.sources.iter().map(|s| part(s.channels, most, quantum)).collect();
    let stage = parts.iter().max().copied().unwrap_or(0);
    let tiles = contraction.m().div_ceil(tile.rows);
    let row_bytes: u64 = contraction
        .sources
        .iter()
        .map(|s| (s.channels * g.pixel_factor) as u64 * s.dtype.size_bytes())
        .sum();
    let splits = contraction.panel_splits(tile.width, target.compute_units as usize);
    let panels = splits.iter().map(|s| s.units).max().unwrap_or(1);
    let span = span(contraction, tile, panels, target);
    let step_bytes = tile.width * contraction.weight_dtype.size_bytes() as usize;
    let ahead_bytes = step_bytes.div_ceil(span);
    // Where there are several tiles, as many sums as any, so that shapes share a kernel.
    let tile_sums = tile.rows * tile.width / tile.vector;
    let sums = if span > 1 { SUMS_BYTES / (4 * tile.vector) } else { tile_sums };
    let items = tiles.div_ceil(span) as u64;
    let item_bytes = row_bytes * (tile.rows * span) as u64;
    let tile_block = (TILE_BLOCK_BYTES / item_bytes.max(1)).clamp(1, items);
    let parameters = contraction
        .panel_parameters(tile.width)
        .set("v", &tile.vector)
        .set("out_width", &contraction.out_width(tile.width))
        .set("rows", &tile.rows)
        .set("unroll", &4)
        .set("parts", &parts)
        .set("stage", &stage)
        .set("sums", &sums)
        .set("spans", &(span > 1))
        .set("staged", &staged)
        .set("direct", &(!halves && !g.upsample));
    let entry = "contraction_tiled_cpu";
    let mut launches = contraction.launches(TEMPLATE, &parameters, entry, &splits, |panels| {
        ([tile_block, panels as u64, items.div_ceil(tile_block)], Some([1, 1, 1]))
    })?;
    let panel = contraction.panel_elements(tile.width);
    let sizes = [contraction.m(), tiles, span, tile_block as usize, panel, contraction.out_n];
    for launch in &mut launches {
        launch.add_numbers(&sizes);
        if span > 1 {
            launch.add_numbers(&[ahead_bytes]);
        }
    }
    let packings: Vec<(usize, Packing)> = contraction.panel_packings(tile.width);
    Ok(Lowering { launches, packings, ..Lowering::default() })
}
