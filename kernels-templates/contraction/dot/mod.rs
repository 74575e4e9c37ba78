//! `int8_vnni` and `int8_madd`: contractions of INT8 weights with activations that are quantized on
//! the fly, for CPUs.
//!
//! The sources are copied to scratch memory as [`Record`]s: integers with a scale for each block of
//! channels of a pixel, normalized first if there is a prologue. Products are summed in 32 bits
//! within a block, exactly, and multiplied by both scales into sums in FP32. The weights are those
//! of the other variants.
//!
//! - `int8_vnni`: activations in 8 bits, by `vpdpbusd`, which sums four products of an unsigned and
//!   a signed byte. Weights are unsigned, with an excess of 128. Each sum therefore begins with
//!   -128 times the sum of the block's activations. Nothing saturates.
//! - `int8_madd`: activations in 16 bits, by `vpmaddwd`, which sums two products of shorts. A sum
//!   of [`MOST_BLOCK`] products stays below 2^31. `vpmaddubsw` would saturate at 2^15.

mod record;

use super::cpu::{self, Tile};
use super::{Contraction, Geometry, rounding, stripes};
use crate::packing::Order;
use crate::{DeviceClass, Lowering, Needs, Problem, Target, Variant};
use anyhow::{Context as _, Result};
pub use record::{MOST_BLOCK, OUTLIER, Record};

const TEMPLATE: &str = include_str!("dot_cpu.cl.tera");
/// Largest part of A that a group of tiles reads before the next panel begins, in bytes.
const TILE_BLOCK_BYTES: u64 = 1 << 20;
/// Rows from which on the copy is small beside the products.
const LEAST_ROWS: usize = 8;
/// Columns from which on it is.
const LEAST_COLUMNS: usize = 32;

/// The instruction that sums products.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Dot {
    Vnni,
    Madd,
}

/// `int8_vnni`.
pub const VNNI_VARIANT: Variant = Variant {
    needs: Needs { vnni: true, ..Needs::class(DeviceClass::Cpu) },
    rounding: rounding::of_bytes,
    arithmetic: 3.5,
    tuning: cpu::tuning,
    ..Variant::new("int8_vnni", computes, |problem, target| lower(problem, target, Dot::Vnni))
};

/// `int8_madd`.
pub const MADD_VARIANT: Variant = Variant {
    needs: Needs::class(DeviceClass::Cpu),
    rounding: rounding::of_shorts,
    arithmetic: 1.2,
    tuning: cpu::tuning,
    ..Variant::new("int8_madd", computes, |problem, target| lower(problem, target, Dot::Madd))
};

/// Whether weights are INT8, blocks divide the channels, and vectors have at least eight lanes. A
/// few rows or columns are not worth a copy.
fn computes(problem: &Problem, target: &Target) -> bool {
    let Some(contraction) = Contraction::new(problem) else { return false };
    let normalized_rows = contraction.prologue.is_some() && contraction.geometry.pointwise;
    target.vector_width >= 8
        && contraction.quantized()
        && contraction.m() >= LEAST_ROWS
        && contraction.n >= LEAST_COLUMNS
        && !normalized_rows
        && Record::new(&contraction, 1).is_some()
}

fn lower(problem: &Problem, target: &Target, dot: Dot) -> Result<Lowering> {
    let contraction = Contraction::new(problem).context("a contraction over another op")?;
    let bytes = if dot == Dot::Vnni { 1 } else { 2 };
    let record = Record::new(&contraction, bytes).context("no block divides the channels")?;
    let geometry = match contraction.geometry.pointwise {
        true => in_lines(contraction.m()),
        false => contraction.geometry,
    };
    let contraction = Contraction { geometry, ..contraction };
    let form = stripes::Form::Records(record);
    stripes::lower_lines(&contraction, form, target, |c, target| products(c, record, target, dot))
}

/// Rows as a feature map, so that stripes of them may be copied at a time.
fn in_lines(rows: usize) -> Geometry {
    const LINE: std::ops::RangeInclusive<usize> = 16..=256;
    let width = LINE.rev().find(|width| rows.is_multiple_of(*width)).unwrap_or(rows);
    let lines = rows / width;
    let size = Geometry { in_h: lines, window_h: lines, out_h: lines, ..Geometry::rows(rows) };
    Geometry { in_w: width, window_w: width, out_w: width, ..size }
}

/// The launches over records.
fn products(
    contraction: &Contraction,
    record: Record,
    target: &Target,
    dot: Dot,
) -> Result<Lowering> {
    let g = contraction.geometry;
    // A tile lies in one line, so that its rows have one distance.
    let out_w = if g.pointwise { contraction.m() } else { g.out_w };
    let Tile { rows, width, vector } = cpu::tile(contraction, target, out_w);
    let line_tiles = out_w.div_ceil(rows);
    let tiles = contraction.m() / out_w * line_tiles;
    let item_bytes = (record.len_bytes() * rows * g.stride_x * g.stride_y) as u64;
    let tile_block = (TILE_BLOCK_BYTES / item_bytes).clamp(1, tiles as u64);
    let order = if dot == Dot::Vnni { Order::UnsignedQuads } else { Order::Pairs };
    let parameters = contraction
        .panel_parameters(width)
        .set("v", &vector)
        .set("out_width", &contraction.out_width(width))
        .set("rows", &rows)
        .set("vnni", &(dot == Dot::Vnni))
        .set("run", &order.run())
        .set("bytes", &record.value_bytes)
        .set("block", &record.block);
    let splits = contraction.panel_splits(width, target.compute_units as usize);
    let entry = "contraction_dot_cpu";
    let mut launches = contraction.launches(TEMPLATE, &parameters, entry, &splits, |panels| {
        ([tile_block, panels as u64, (tiles as u64).div_ceil(tile_block)], Some([1, 1, 1]))
    })?;
    let panel = contraction.panel_elements(width);
    let sizes = [tiles, line_tiles, out_w, tile_block as usize, panel, contraction.out_n];
    for launch in &mut launches {
        launch.add_numbers(&sizes);
        launch.vnni = dot == Dot::Vnni;
    }
    let packings = contraction.ordered_packings(width, order);
    Ok(Lowering { launches, packings, ..Lowering::default() })
}
