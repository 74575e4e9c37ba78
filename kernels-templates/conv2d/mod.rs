//! Kernels of [`kiln_ir::ops::conv2d`].

use crate::contraction::{
    self, Contraction, Geometry, Source, cpu, dot, gpu, mobile, rounding, tensor_cores, winograd,
};
use crate::template::{Parameters, render};
use crate::{Argument, Family, Launch, Lowering, Problem, Target, Variant};
use anyhow::{Context as _, Result};
use kiln_ir::DType;

/// The variants, best first.
pub const VARIANTS: &[Variant] = &[
    winograd::FOUR_VARIANT,
    winograd::TWO_VARIANT,
    dot::VNNI_VARIANT,
    dot::MADD_VARIANT,
    cpu::VARIANT,
    tensor_cores::VARIANT,
    gpu::VARIANT,
    mobile::HALF_VARIANT,
    mobile::VARIANT,
    Variant { launches: im2win, name: "im2win", ..IM2COL },
    IM2COL,
    Variant::naive(contraction::naive_computes, naive),
];

const IM2COL: Variant = Variant {
    share: 0.5,
    rounding: rounding::of_copies,
    tuning: contraction::tuning,
    ..Variant::new("im2col", contraction::tiled_applies, im2col)
};

/// This folder's line of the registry.
pub const FAMILIES: &[Family] = &[Family { op: "conv2d", variants: VARIANTS }];

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let contraction = Contraction::new(problem).context("conv2d over another op")?;
    contraction.lower_naive(include_str!("naive.cl.tera"), "conv2d_naive")
}

fn im2col(problem: &Problem, target: &Target) -> Result<Lowering> {
    let contraction = Contraction::new(problem).context("conv2d over another op")?;
    let (g, k) = (contraction.geometry, contraction.k);
    let rows = g.rows_total();
    let global = [contraction.channels(), g.kernel * g.kernel, rows];
    let scratch = Scratch {
        template: include_str!("im2col.cl.tera"),
        parameters: contraction.parameters(),
        entry: "conv2d_im2col",
        global,
        geometry: Geometry::rows(rows),
    };
    scratch.lower(contraction, k, target)
}

fn im2win(problem: &Problem, target: &Target) -> Result<Lowering> {
    let contraction = Contraction::new(problem).context("conv2d over another op")?;
    let (geometry, channels) = (contraction.geometry.im2win(), contraction.channels());
    let pixels = geometry.batch * geometry.in_h * geometry.in_w;
    let global = [channels, geometry.kernel, pixels];
    let scratch = Scratch {
        template: include_str!("im2win.cl.tera"),
        parameters: contraction.parameters().set("w", &geometry),
        entry: "conv2d_im2win",
        global,
        geometry,
    };
    scratch.lower(contraction, channels, target)
}

/// A copy of the feature map in another order, normalized if there is a prologue, with one
/// work-item an element.
struct Scratch {
    template: &'static str,
    parameters: Parameters,
    entry: &'static str,
    global: [usize; 3],
    /// Position of the rows of A in the copy.
    geometry: Geometry,
}

impl Scratch {
    /// The launch of the copy, then the device class' own contraction over it, with `channels` a
    /// tap.
    fn lower(self, contraction: Contraction, channels: usize, target: &Target) -> Result<Lowering> {
        let dtype = contraction.sources.first().map_or(DType::F32, |s| s.dtype);
        let copy = self.copy(&contraction, dtype)?;
        let scratch = |written| Argument::Scratch { index: 0, written };
        let source = Source { argument: scratch(false), channels, dtype };
        let second = contraction.with_sources(vec![source], self.geometry);
        let mut lowering = contraction::lower_tiled(&second, target)?;
        lowering.launches.insert(0, copy);
        let elements = self.global.iter().product::<usize>() as u64;
        lowering.scratch_bytes = vec![elements * dtype.size_bytes()];
        Ok(lowering)
    }

    fn copy(&self, contraction: &Contraction, dtype: DType) -> Result<Launch> {
        let mut tensors = contraction.tensors();
        let read = contraction.sources.len() + usize::from(contraction.prologue.is_some());
        tensors.truncate(read);
        tensors.push(("OUT", dtype));
        let source = render(self.template, &tensors, &self.parameters)?;
        let mut args: Vec<_> = contraction.sources.iter().map(|s| s.argument.clone()).collect();
        args.extend(contraction.affine());
        args.push(Argument::Scratch { index: 0, written: true });
        let global = self.global.map(|v| v as u64);
        Ok(Launch::new(source, self.entry, args, global, None))
    }
}
