//! `mma`: tensor cores through inline PTX, for NVIDIA GPUs.

use super::{Contraction, Geometry, Split, rounding, stripes};
use crate::packing::{FragmentPanel, Fragments, panel_count};
use crate::template::{Parameters, render};
use crate::{Argument, Launch, Lowering, Needs, Packing, Problem, Target, Tiling, Variant};
use anyhow::{Context as _, Result};
use kiln_ir::DType;

const TEMPLATE: &str = include_str!("mma.cl.tera");
const SUM_TEMPLATE: &str = include_str!("mma_sum.cl.tera");

/// Bytes of a row of A in local memory: two steps of the tensor cores in FP16, one in FP32.
const ROW_BYTES: usize = 64;
/// Largest number of tiles of A and W that are loading or in use. A step of small tiles is much
/// shorter than the latency of their loads.
const MOST_STAGES: usize = 6;
/// Split-K: largest number of parts.
const MOST_PARTS: usize = 16;
/// Split-K: smallest number of steps of a part.
const LEAST_STEPS: usize = 8;

// The cost model of `cut`. Its unit is the time of one step of the tensor cores for one element of
// a tile. The constants are fitted to times of bare contractions on an H200 (`kiln tune --each`).
/// A launch, and its pass over the partial sums.
const LAUNCH_COST: f64 = 100_000.0;
/// Storing or reading one partial sum.
const PARTIAL_SUM_COST: f64 = 0.04;
/// Steps that take as long as filling the stages and storing the sums.
const FIXED_STEPS: usize = 8;
/// Work-groups that a compute unit needs for its full rate.
const LEAST_GROUPS: f64 = 1.4;
/// Number of FP16 products for one FP32 product.
const FP32_PRODUCTS: f64 = 3.0;

/// The narrowest tile: two steps of the tensor cores' columns.
const NARROW_COLUMNS: usize = 16;

/// A work-group's tile and its warps.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Tile {
    rows: usize,
    columns: usize,
    warps: [usize; 2],
    /// Fraction of the largest tile's rate that is possible with the tile's reuse of local memory.
    share: f64,
}

/// Rates are fitted to an H200 (`kiln tune --each`). Widths of 80 divide the channels of the
/// networks, multiples of 320, without a remainder. The narrowest tile is for the last convolution
/// of a network, to three or four channels.
const TILES: [Tile; 6] = [
    Tile { rows: 128, columns: 128, warps: [2, 2], share: 1.0 },
    Tile { rows: 128, columns: 80, warps: [4, 1], share: 0.86 },
    Tile { rows: 128, columns: 64, warps: [2, 2], share: 0.83 },
    Tile { rows: 64, columns: 80, warps: [4, 1], share: 0.58 },
    Tile { rows: 64, columns: 64, warps: [2, 2], share: 0.56 },
    Tile { rows: 128, columns: NARROW_COLUMNS, warps: [4, 1], share: 0.32 },
];

impl Tile {
    fn threads(&self) -> usize {
        32 * self.warps[0] * self.warps[1]
    }
}

/// The arithmetic of a contraction.
struct Arithmetic {
    /// Channels of a row of A in local memory.
    step: usize,
    /// Whether A is stored in FP16 and multiplied directly. Otherwise it is FP32, multiplied as two
    /// FP16 numbers.
    half: bool,
    weights: DType,
}

impl Arithmetic {
    fn of(contraction: &Contraction) -> Option<Self> {
        let dtype = contraction.sources.first()?.dtype;
        let half = dtype == DType::F16;
        let weights = contraction.weight_dtype;
        let known = contraction.sources.iter().all(|s| s.dtype == dtype)
            && !(half && weights == DType::F32);
        let step = ROW_BYTES / dtype.size_bytes() as usize;
        known.then_some(Self { step, half, weights })
    }

    /// The packing of the weights in panels of `width` columns.
    fn fragments(&self, contraction: &Contraction, width: usize) -> Fragments {
        let quantized = self.weights == DType::I8;
        let scale_group = if quantized { contraction.scale_group() } else { 0 };
        let (dtype, gated) = (self.weights, contraction.gated());
        let folded = window_of_doubled(contraction).is_some();
        Fragments { width, dtype, gated, half: self.half, scale_group, folded }
    }
}

/// `mma`.
pub const VARIANT: Variant = Variant {
    needs: Needs::TENSOR_CORES,
    rounding: rounding::of_tensor_cores,
    tuning,
    ..Variant::new("mma", computes, lower)
};

/// All tiles, each with several numbers of parts for split-K.
fn tuning(_: &Target) -> Vec<Tiling> {
    const PARTS: [u32; 8] = [1, 2, 3, 4, 6, 8, 12, 16];
    let of_tile = |tile: &Tile| {
        let (rows, columns) = (tile.rows as u32, tile.columns as u32);
        PARTS.map(|sum_parts| Tiling { rows, columns, sum_parts })
    };
    TILES.iter().flat_map(of_tile).collect()
}

/// Whether rows are multiples of 16 bytes and, with several sources, each source fills its last
/// tile.
fn computes(problem: &Problem, _: &Target) -> bool {
    let Some(contraction) = Contraction::new(problem) else { return false };
    let Some(arithmetic) = Arithmetic::of(&contraction) else { return false };
    let part = arithmetic.step / 4;
    let sources = &contraction.sources;
    contraction.panels()
        && contraction.geometry.pixel_factor == 1
        && contraction.geometry.kernel.pow(2) <= 32
        && elements(&contraction) <= i32::MAX as usize
        && sources.iter().all(|s| s.channels.is_multiple_of(part))
        && (sources.len() == 1
            || sources.iter().all(|s| s.channels.is_multiple_of(arithmetic.step)))
}

/// Elements of the largest source. Kernels count them in 32 bits.
fn elements(contraction: &Contraction) -> usize {
    let g = &contraction.geometry;
    let widest = contraction.sources.iter().map(|s| s.channels).max().unwrap_or(0);
    g.batch * g.in_h * g.in_w * widest
}

/// For a 3x3 window over doubled pixels: the equivalent 2x2 windows over the feature map itself,
/// one for each quarter of the output pixels. Weights are added up when they are packed.
fn window_of_doubled(contraction: &Contraction) -> Option<Geometry> {
    let g = &contraction.geometry;
    let folds = g.upsample
        && (g.kernel, g.stride_y, g.stride_x, g.padding) == (3, 1, 1, 1)
        && contraction.weight_dtype != DType::I8
        && !contraction.striped;
    folds.then_some(Geometry {
        window_h: g.in_h,
        window_w: g.in_w,
        out_h: g.in_h,
        out_w: g.in_w,
        kernel: 2,
        upsample: false,
        ..*g
    })
}

/// Tile and split-K parts of a contraction.
struct Cut {
    tile: Tile,
    /// Number of parts of the reduction axis.
    parts: usize,
}

/// The cut with the least estimated time. Work-groups share a compute unit's rate once there are
/// enough of them to fill it, in each of the launches that large weights need. Split-K costs a pass
/// over the partial sums. `windows` is the number of contractions side by side.
fn cut(contraction: &Contraction, windows: usize, arithmetic: &Arithmetic, target: &Target) -> Cut {
    let (m, gated) = (contraction.m(), contraction.gated());
    let steps = steps(contraction, arithmetic);
    let units = target.compute_units.max(1) as usize;
    let weight_bytes =
        (windows * contraction.n * contraction.k) as u64 * arithmetic.weights.size_bytes();
    let launches = weight_bytes.div_ceil(contraction.problem.max_weight_bytes).max(1) as usize;
    let cost = |tile: &Tile, parts: usize| {
        let columns = panel_count(contraction.n, tile.columns, gated);
        let groups = windows * m.div_ceil(tile.rows) * columns.div_ceil(launches) * parts;
        let busiest = (groups.div_ceil(units) as f64).max(LEAST_GROUPS);
        let length = (steps.div_ceil(parts) + FIXED_STEPS) as f64;
        let scale = if arithmetic.half { 1.0 } else { FP32_PRODUCTS };
        let area = (launches * tile.rows * tile.columns) as f64;
        let work = busiest * length * area / tile.share * scale;
        let partial =
            (windows * m * columns * tile.columns * (parts + 1)) as f64 * PARTIAL_SUM_COST;
        if parts == 1 { work } else { work + LAUNCH_COST + partial }
    };
    // A stripe has no room for partial sums.
    let most = match contraction.striped {
        true => 1,
        false => MOST_PARTS.min(steps.div_ceil(LEAST_STEPS)).max(1),
    };
    let named = |tile: &&Tile| {
        (tile.rows, tile.columns) == (target.tile_rows as usize, target.tile_columns as usize)
    };
    // Each pair of columns needs its pair of gates in the same tile.
    let fits = |tile: &&Tile| match tile.columns {
        NARROW_COLUMNS => contraction.n <= NARROW_COLUMNS && !gated,
        columns => !gated || columns.is_multiple_of(32),
    };
    let only = TILES.iter().find(named).filter(fits);
    let is_packed = |tile: &&Tile| Some(tile.columns) == target.packed_columns;
    let packed = TILES.iter().filter(fits).find(is_packed).map(|tile| tile.columns);
    let tiles = TILES.iter().filter(fits).filter(|tile| match packed {
        Some(columns) => tile.columns == columns,
        None => only.is_none_or(|only| *tile == only),
    });
    let range = match target.sum_parts as usize {
        0 => 1..=most,
        parts => parts.min(most)..=parts.min(most),
    };
    let cuts = tiles.flat_map(|tile| {
        let columns = panel_count(contraction.n, tile.columns, gated) * tile.columns;
        let fit = contraction.max_scratch_bytes / sums_bytes(1, windows * m, columns);
        // One part needs no memory for partial sums.
        range.clone().map(move |parts| Cut { tile: *tile, parts: parts.min(fit as usize).max(1) })
    });
    let best = { cuts }.min_by(|a, b| cost(&a.tile, a.parts).total_cmp(&cost(&b.tile, b.parts)));
    best.expect("there is a tile")
}

/// Bytes of partial sums.
fn sums_bytes(parts: usize, rows: usize, columns: usize) -> u64 {
    4 * (parts * rows * columns) as u64
}

/// Number of steps over rows of A in local memory for a sum.
fn steps(contraction: &Contraction, arithmetic: &Arithmetic) -> usize {
    let taps = contraction.geometry.kernel.pow(2);
    let blocks = |s: &super::Source| s.channels.div_ceil(arithmetic.step);
    taps * contraction.sources.iter().map(blocks).sum::<usize>()
}

/// The launches of `mma`.
fn lower(problem: &Problem, target: &Target) -> Result<Lowering> {
    let contraction = Contraction::new(problem).context("mma over another op")?;
    match contraction.prologue {
        Some(_) => stripes::lower(&contraction, target, lower_contraction),
        None => lower_contraction(&contraction, target),
    }
}

fn lower_contraction(contraction: &Contraction, target: &Target) -> Result<Lowering> {
    let arithmetic = Arithmetic::of(contraction).context("mma over other storage types")?;
    let (windows, of_window) = match window_of_doubled(contraction) {
        Some(geometry) => {
            let k = 4 * contraction.channels();
            (4, Contraction { geometry, k, ..contraction.clone() })
        }
        None => (1, contraction.clone()),
    };
    let Cut { tile, parts } = cut(&of_window, windows, &arithmetic, target);
    let fragments = arithmetic.fragments(contraction, tile.columns);
    let taps = contraction.geometry.kernel.pow(2);
    let panel = FragmentPanel::new(&fragments, contraction.channels(), taps);
    let steps = steps(&of_window, &arithmetic);
    let panels = panel_count(contraction.n, tile.columns, contraction.gated());
    let stage_bytes = ROW_BYTES * tile.rows + panel.step_bytes;
    let stages = MOST_STAGES.min(target.local_mem_bytes as usize / stage_bytes).max(2);
    // At the end the sums of 64 rows, padded against bank conflicts, reuse the memory of the
    // stages.
    let memory_bytes = (stages * stage_bytes).max(64 * (tile.columns + 16) * 4);
    let tiles = of_window.m().div_ceil(tile.rows);
    let parameters = of_window
        .fragment_parameters(panel)
        .set("windows", &windows)
        .set("window_bytes", &panel.window_bytes)
        .set("tiles_of_window", &tiles)
        .set("total", &contraction.m())
        .set("width", &tile.columns)
        .set("tm", &tile.rows)
        .set("warps", &tile.warps)
        .set("step", &arithmetic.step)
        .set("stages", &stages)
        .set("memory_bytes", &memory_bytes)
        .set("half", &arithmetic.half)
        .set("wt", &arithmetic.weights.to_string())
        .set("steps", &steps)
        .set("part_steps", &steps.div_ceil(parts))
        .set("parts", &steps.div_ceil(steps.div_ceil(parts)))
        .set("columns", &(panels * tile.columns))
        .set("aligned", &contraction.out_n.is_multiple_of(4));
    let parts = steps.div_ceil(steps.div_ceil(parts));
    let bytes = panel.len as u64;
    let out_width = contraction.out_width(tile.columns);
    let splits = |most| contraction.unit_splits(panels, tile.columns, out_width, bytes, most, 1);
    let whole = splits(u64::MAX);
    let splits = splits(contraction.problem.max_weight_bytes);
    let (threads, tiles) = (tile.threads() as u64, (windows * tiles) as u64);
    let global =
        |panels: usize| ([tiles * threads, panels as u64, parts as u64], Some([threads, 1, 1]));
    let local_mem_bytes = memory_bytes as u64;
    let mut packings = contraction.panel_packings(tile.columns);
    packings[0].1 = Packing::Fragments(fragments);
    let mut launches =
        contraction.launches(TEMPLATE, &parameters, "contraction_mma", &splits, global)?;
    launches.iter_mut().for_each(|l| l.local_mem_bytes = local_mem_bytes);
    let mut scratch_bytes = vec![];
    if parts > 1 {
        for (launch, split) in launches.iter_mut().zip(&splits) {
            launch.args = partial_arguments(contraction, split);
        }
        launches.push(sum(contraction, &parameters, &whole[0])?);
        scratch_bytes.push(sums_bytes(parts, contraction.m(), panels * tile.columns));
    }
    Ok(Lowering { launches, scratch_bytes, packings, in_place: vec![] })
}

/// Arguments for partial sums: sources, weights, the partial sums and the first of their columns.
fn partial_arguments(contraction: &Contraction, split: &Split) -> Vec<Argument> {
    let mut args: Vec<_> = contraction.sources.iter().map(|s| s.argument.clone()).collect();
    args.push(split.weights(contraction.operands.weights));
    args.push(Argument::Scratch { index: 0, written: true });
    let gates = contraction.n / contraction.out_n;
    args.push(Argument::U32((split.first_column * gates) as u32));
    args
}

/// The launch that adds the partial sums and applies the epilogue.
fn sum(contraction: &Contraction, parameters: &Parameters, whole: &Split) -> Result<Launch> {
    let mut tensors = contraction.tensors();
    tensors.retain(|(name, _)| !super::SOURCE_NAMES.contains(name) && *name != "W");
    let source =
        render(SUM_TEMPLATE, &tensors, parameters).context("kernel contraction_mma_sum")?;
    let mut args = vec![Argument::Scratch { index: 0, written: false }];
    args.extend(contraction.epilogue_arguments(whole));
    let columns = contraction.out_n.div_ceil(4) as u64;
    let global = [columns, contraction.m() as u64, 1];
    Ok(Launch::new(source, "contraction_mma_sum", args, global, None))
}
