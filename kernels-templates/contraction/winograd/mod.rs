//! `winograd4` and `winograd2`: 3x3 convolutions as products over transformed tiles of the feature
//! map.
//!
//! A tile of `outputs x outputs` output pixels sees a patch of `patch x patch` pixels. With the
//! transforms of [`Transform`] its sums are `A^T [(G g G^T) * (B^T d B)] A`. An input and output
//! channel then need one multiplication for each position of the patch, 36 for 16 pixels
//! (`winograd4`) or 16 for 4 (`winograd2`), instead of 9 a pixel. Weights are transformed when the
//! bundle is written. Source: Lavin and Gray, "Fast algorithms for convolutional neural networks",
//! 2016.

use super::cpu::{self, Tile};
use super::{Contraction, Geometry, Source, Split, rounding};
use crate::SourceText;
use crate::template::render;
use crate::{Argument, DeviceClass, Launch, Lowering, Needs, Packing, Problem, Target, Variant};
use anyhow::{Context as _, Result};
use kiln_ir::{DType, Op};
use std::f64::consts::{FRAC_1_SQRT_2, SQRT_2};

const PATCHES: &str = include_str!("winograd_patches.cl.tera");
const TILES: &str = include_str!("winograd.cl.tera");

/// Largest number of channels that are multiplied before the next group of tiles.
const SEGMENT_CHANNELS: usize = 256;
/// Sums of a work-item that are kept in memory, in bytes.
const SUMS_BYTES: usize = 128 << 10;
/// Transformed patches in memory at a time in bytes, so that they stay in cache.
const STRIPE_BYTES: usize = 8 << 20;
/// Work-items of a compute unit at least.
const ITEMS_PER_UNIT: usize = 4;

/// Winograd's transforms for 3x3 windows, by the points at which polynomials are evaluated: zero,
/// plus and minus each of `points`, and infinity.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Transform {
    /// Output pixels of a tile in each direction.
    pub outputs: usize,
    /// The positive points.
    pub points: &'static [f64],
}

/// F(2x2, 3x3).
pub const TWO: Transform = Transform { outputs: 2, points: &[1.0] };
/// F(4x4, 3x3). With these points, rounding errors are half of those with 1 and 2.
pub const FOUR: Transform = Transform { outputs: 4, points: &[FRAC_1_SQRT_2, SQRT_2] };

impl Transform {
    /// The transform for tiles of 2 or 4 output pixels in each direction.
    pub fn of(outputs: usize) -> Self {
        if outputs == 2 { TWO } else { FOUR }
    }

    /// Size of a patch in pixels, in each direction.
    pub fn patch(&self) -> usize {
        self.outputs + 2
    }

    /// Tiles of a feature map, across and down.
    fn tiles(&self, geometry: &Geometry) -> (usize, usize) {
        (geometry.out_w.div_ceil(self.outputs), geometry.out_h.div_ceil(self.outputs))
    }

    /// Storage type of transformed windows. Windows of larger tiles are not rounded to 11 bits,
    /// because the inverse transform multiplies errors by five.
    fn storage(&self, weights: DType) -> DType {
        if self.outputs == 2 { weights } else { DType::F32 }
    }

    /// G: evaluates a row of the window at each point, divided by the product of the point's
    /// distances to the others. At infinity the value is the row's last element.
    fn rows(&self) -> Vec<[f64; 3]> {
        let points: Vec<f64> =
            std::iter::once(0.0).chain(self.points.iter().flat_map(|p| [*p, -p])).collect();
        let row = |p: &f64| {
            let others = points.iter().filter(|q| *q != p);
            let scale: f64 = others.map(|q| p - q).product();
            [1.0 / scale, p / scale, p * p / scale]
        };
        points.iter().map(row).chain([[0.0, 0.0, 1.0]]).collect()
    }

    /// `G g G^T` of a window `[3][3]`, row-major.
    pub fn window(&self, g: &[f32]) -> impl Iterator<Item = f32> {
        let rows = self.rows();
        let at = move |y: &[f64; 3], x: &[f64; 3], g: &[f64]| {
            let line = |ky: usize| (0..3).map(|kx| x[kx] * g[ky * 3 + kx]).sum::<f64>();
            (0..3).map(|ky| y[ky] * line(ky)).sum::<f64>() as f32
        };
        let g: Vec<f64> = g.iter().map(|v| f64::from(*v)).collect();
        let places = self.patch() * self.patch();
        let patch = self.patch();
        (0..places).map(move |i| at(&rows[i / patch], &rows[i % patch], &g))
    }
}

/// `winograd4`.
pub const FOUR_VARIANT: Variant = Variant {
    needs: Needs::class(DeviceClass::Cpu),
    share: 0.8,
    rounding: rounding::of_winograd,
    tuning: cpu::tuning,
    ..Variant::new("winograd4", computes, |problem, target| lower(problem, target, FOUR))
};

/// `winograd2`.
pub const TWO_VARIANT: Variant = Variant {
    name: "winograd2",
    launches: |problem, target| lower(problem, target, TWO),
    ..FOUR_VARIANT
};

/// Whether a problem is a plain 3x3 convolution with constant floating-point weights.
fn computes(problem: &Problem, _: &Target) -> bool {
    let Op::Conv2d(op) = problem.op else { return false };
    let window = op.kernel == 3 && op.stride == 1 && op.padding == 1 && op.padding_end == 1;
    let plain = |c: Contraction| c.packable() && !c.gated();
    window && Contraction::new(problem).is_some_and(plain)
}

/// Division of tiles over work-items, and positions of patches in scratch memory.
struct Layout {
    tile: Tile,
    /// Number of tiles of all feature maps.
    tiles: usize,
    /// Groups of `tile.rows` tiles in a block. A work-item computes a block for one panel.
    groups: usize,
    /// Number of blocks.
    blocks: usize,
    /// Number of blocks whose patches are in memory at a time.
    stripe: usize,
    /// Elements between the patches of two tiles at one position.
    row: usize,
    /// Elements between positions of the patch: a block's rows and a cache line more, so that
    /// positions fall into different sets of a cache.
    place: usize,
}

impl Layout {
    fn new(contraction: &Contraction, target: &Target, transform: Transform) -> Self {
        let g = contraction.geometry;
        let (across, down) = transform.tiles(&g);
        let tiles = g.batch * across * down;
        let tile = cpu::tile(contraction, target, tiles);
        let places = transform.patch() * transform.patch();
        let panels = contraction.n.div_ceil(tile.width);
        let all_groups = tiles.div_ceil(tile.rows);
        let most = SUMS_BYTES / (4 * places * tile.rows * tile.width);
        let items = ITEMS_PER_UNIT * target.compute_units as usize;
        let blocks = all_groups.div_ceil(most.max(1)).max(items.div_ceil(panels)).min(all_groups);
        let groups = all_groups.div_ceil(blocks);
        let blocks = all_groups.div_ceil(groups);
        let v = tile.vector;
        let whole = contraction.sources.iter().all(|s| s.channels.is_multiple_of(v));
        let row = (contraction.channels() + if whole { 0 } else { v }).next_multiple_of(v);
        let place = groups * tile.rows * row + 16;
        let stripe = (STRIPE_BYTES / (4 * places * place)).clamp(1, blocks);
        let stripe = blocks.div_ceil(blocks.div_ceil(stripe));
        Self { tile, tiles, groups, blocks, stripe, row, place }
    }

    fn block_tiles(&self) -> usize {
        self.groups * self.tile.rows
    }
}

fn lower(problem: &Problem, target: &Target, transform: Transform) -> Result<Lowering> {
    let contraction = Contraction::new(problem).context("winograd over another op")?;
    let layout = Layout::new(&contraction, target, transform);
    let places = transform.patch() * transform.patch();
    let width = layout.tile.width;
    let packings = contraction.panel_packings(width);
    let dtype = transform.storage(contraction.weight_dtype);
    let windows = Packing::Winograd { outputs: transform.outputs, width, dtype };
    let packings =
        packings.into_iter().map(|(i, packing)| match i == contraction.operands.weights {
            true => (i, windows),
            false => (i, packing),
        });
    let packings = packings.collect();
    let patches = Patches::new(&contraction, &layout, transform)?;
    let channels = contraction.channels();
    let scratch = Argument::Scratch { index: 0, written: false };
    let source = Source { argument: scratch, channels, dtype: DType::F32 };
    let geometry = contraction.geometry;
    let inner = Contraction { k: places * channels, weight_dtype: dtype, ..contraction }
        .with_sources(vec![source], geometry);
    let tiles = Tiles::new(&inner, &layout, transform)?;
    let mut launches = Vec::new();
    let workers = target.compute_units as usize;
    for (index, split) in inner.panel_splits(width, workers).iter().enumerate() {
        for first in (0..layout.blocks).step_by(layout.stripe) {
            let blocks = layout.stripe.min(layout.blocks - first);
            if index == 0 || layout.stripe < layout.blocks {
                launches.push(patches.launch(&layout, first, blocks));
            }
            launches.push(tiles.launch(&inner, &layout, split, first, blocks));
        }
    }
    let scratch_bytes = vec![(4 * layout.stripe * places * layout.place) as u64];
    Ok(Lowering { launches, scratch_bytes, packings, in_place: vec![] })
}

/// The launch that transforms the patches of a stripe.
struct Patches {
    source: SourceText,
    /// The tensors.
    args: Vec<Argument>,
    /// The sizes, behind the first tile.
    sizes: Vec<usize>,
    /// Arithmetic of a tile, in FLOP.
    tile_flops: usize,
    /// Bytes that a tile reads and writes. Pixels in several patches count once.
    tile_bytes: u64,
}

impl Patches {
    fn new(contraction: &Contraction, layout: &Layout, transform: Transform) -> Result<Self> {
        let mut tensors = contraction.tensors();
        tensors.truncate(contraction.sources.len() + usize::from(contraction.prologue.is_some()));
        tensors.push(("V", DType::F32));
        let parameters = parameters(contraction.parameters(), layout, transform);
        let source = render(PATCHES, &tensors, &parameters)?;
        let mut args: Vec<_> = contraction.sources.iter().map(|s| s.argument.clone()).collect();
        args.extend(contraction.affine());
        args.push(Argument::Scratch { index: 0, written: true });
        let g = contraction.geometry;
        let (across, down) = transform.tiles(&g);
        let mut sizes = vec![layout.tiles, layout.block_tiles(), layout.row, layout.place];
        sizes.extend([across, down, g.window_h, g.window_w, g.in_h, g.in_w]);
        sizes.extend(contraction.sources.iter().map(|s| s.channels));
        let (channels, patch) = (contraction.channels(), transform.patch());
        let scale = if contraction.geometry.upsample { 4 } else { 1 };
        let pixels = (transform.outputs * transform.outputs) as u64;
        let read: u64 =
            contraction.sources.iter().map(|s| s.channels as u64 * s.dtype.size_bytes()).sum();
        Ok(Self {
            source,
            args,
            sizes,
            tile_flops: channels * 2 * patch * line_flops(transform),
            tile_bytes: read * pixels / scale + (4 * channels * patch * patch) as u64,
        })
    }

    fn launch(&self, layout: &Layout, first: usize, blocks: usize) -> Launch {
        let tiles = blocks * layout.block_tiles();
        let mut args = self.args.clone();
        args.push(Argument::U32((first * layout.block_tiles()) as u32));
        let (global, local) = ([tiles as u64, 1, 1], Some([1, 1, 1]));
        let mut launch = Launch::new(self.source.clone(), "winograd_patches", args, global, local);
        launch.add_numbers(&self.sizes);
        let bytes = Some(tiles as u64 * self.tile_bytes);
        Launch { flops: (tiles * self.tile_flops) as u64, bytes, ..launch }
    }
}

/// The launch that multiplies a stripe's patches with panels, and transforms the sums back.
struct Tiles {
    source: SourceText,
    /// The sizes, behind the first tile.
    sizes: Vec<usize>,
    places: usize,
    outputs: usize,
    tile_flops: usize,
}

impl Tiles {
    fn new(inner: &Contraction, layout: &Layout, transform: Transform) -> Result<Self> {
        let v = layout.tile.vector;
        let part = cpu::part(inner.channels(), SEGMENT_CHANNELS, v);
        let step_bytes = layout.tile.width * inner.weight_dtype.size_bytes() as usize;
        let parameters = parameters(inner.panel_parameters(layout.tile.width), layout, transform)
            .set("out_width", &layout.tile.width)
            .set("unroll", &4)
            .set("row", &layout.row)
            .set("part", &part)
            .set("ahead_bytes", &step_bytes.div_ceil(layout.groups));
        let source = render(TILES, &inner.tensors(), &parameters).context("kernel winograd")?;
        let lines = transform.patch() + transform.outputs;
        let panel = inner.k * layout.tile.width;
        let g = inner.geometry;
        let (across, down) = transform.tiles(&g);
        let sizes =
            [layout.tiles, layout.place, panel, inner.out_n, g.out_h, g.out_w, across, down];
        Ok(Self {
            source,
            sizes: sizes.to_vec(),
            places: transform.patch() * transform.patch(),
            outputs: transform.outputs,
            tile_flops: lines * line_flops(transform),
        })
    }

    fn launch(
        &self,
        inner: &Contraction,
        layout: &Layout,
        split: &Split,
        first: usize,
        blocks: usize,
    ) -> Launch {
        let first_tile = first * layout.block_tiles();
        let mut args = inner.arguments(split);
        args.push(Argument::U32(first_tile as u32));
        let tiles = (blocks * layout.block_tiles()).min(layout.tiles - first_tile);
        let columns = split.accumulators.min(inner.n - split.first_column);
        let pixels = tiles * self.outputs * self.outputs;
        let outputs = 1 + usize::from(inner.epilogue.residual);
        let out_bytes = (pixels * columns * outputs) as u64 * inner.output_dtype().size_bytes();
        let patch_bytes = (4 * tiles * self.places * inner.channels()) as u64;
        let (global, local) = ([blocks as u64, split.units as u64, 1], Some([1, 1, 1]));
        let mut launch = Launch::new(self.source.clone(), "winograd_tiles", args, global, local);
        launch.add_numbers(&self.sizes);
        let flops = (tiles * columns * (2 * inner.k + self.tile_flops)) as u64;
        let bytes = Some(split.weight_bytes() + patch_bytes + out_bytes);
        Launch { flops, bytes, ..launch }
    }
}

/// Approximate arithmetic of a transform along a line: a multiplication and an addition for each
/// point and line.
fn line_flops(transform: Transform) -> usize {
    4 * transform.patch()
}

fn parameters(
    parameters: crate::template::Parameters,
    layout: &Layout,
    transform: Transform,
) -> crate::template::Parameters {
    let literals: Vec<String> =
        transform.points.iter().map(|p| crate::launch::literal(*p as f32)).collect();
    let literal = |v: f64| crate::launch::literal(v as f32);
    let squares: Vec<f64> = transform.points.iter().map(|p| p * p).collect();
    parameters
        .set("v", &layout.tile.vector)
        .set("rows", &layout.tile.rows)
        .set("groups", &layout.groups)
        .set("outputs", &transform.outputs)
        .set("patch", &transform.patch())
        .set("points", &literals)
        .set("squares", &squares.iter().map(|s| literal(*s)).collect::<Vec<_>>())
        .set("cubes", &transform.points.iter().map(|p| literal(p * p * p)).collect::<Vec<_>>())
        .set("sum", &literal(squares.iter().sum()))
        .set("product", &literal(squares.iter().product()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With their points, F(4x4, 3x3) equals the matrices of Lavin and Gray, and F(2x2, 3x3) too,
    /// except for the sign of its first row.
    #[test]
    fn filters_are_those_of_the_paper() {
        let four: [[f64; 3]; 6] = [
            [1.0 / 4.0, 0.0, 0.0],
            [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
            [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
            [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
            [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
            [0.0, 0.0, 1.0],
        ];
        assert_eq!(Transform { outputs: 4, points: &[1.0, 2.0] }.rows(), four);
        let two = [[-1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];
        assert_eq!(TWO.rows(), two);
    }
}
