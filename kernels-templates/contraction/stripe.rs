//! Convolutions of normalized pictures by kernels that read plain ones: stripe by stripe.
//!
//! A stripe is some lines of output. What they read is normalized into scratch memory, with the
//! zeros around it, and convolved from there, so that the normalized picture never exists whole.

use super::{Contraction, Geometry, Prologue, Source};
use crate::elementwise::{Shares, VECTOR};
use crate::launch::cpu;
use crate::template::{Parameters, render};
use crate::{Argument, Launch, Lowering, Target};
use anyhow::{Context as _, Result};
use kiln_ir::DType;
use kiln_ir::ops::epilogue::Activation;

/// On a CPU a larger stripe leaves the cache before it is read.
const CACHED_BYTES: u64 = 16 << 20;

/// Lines of output that are computed together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stripe {
    /// First picture.
    picture: usize,
    /// Pictures: all, or one.
    pictures: usize,
    /// First line of output.
    line: usize,
    /// Lines of output of each picture.
    lines: usize,
}

/// The whole of `g` as stripes whose scratch keeps within `most_bytes` if that is possible: equal ones,
/// but for the last if nothing divides the lines. `line_bytes` are those of a line of scratch.
fn stripes(g: &Geometry, line_bytes: u64, most_bytes: u64) -> Vec<Stripe> {
    let read = |lines: usize| ((lines - 1) * g.stride_y + g.kernel) as u64 * line_bytes;
    if read(g.out_h) * g.batch as u64 <= most_bytes {
        return vec![Stripe { picture: 0, pictures: g.batch, line: 0, lines: g.out_h }];
    }
    let most = (1..=g.out_h).rev().find(|lines| read(*lines) <= most_bytes).unwrap_or(1);
    // A divisor of the lines spares a second program for what is left; not at any price.
    let even = (most.div_ceil(2)..=most).rev().find(|lines| g.out_h.is_multiple_of(*lines));
    let lines = even.unwrap_or(most);
    let of_picture = |picture| {
        let stripe =
            move |line| Stripe { picture, pictures: 1, line, lines: lines.min(g.out_h - line) };
        (0..g.out_h).step_by(lines).map(stripe)
    };
    (0..g.batch).flat_map(of_picture).collect()
}

/// Lowers a convolution with a prologue by `plain`, which lowers one without.
///
/// Errors: there is no prologue; those of `plain`.
pub fn lower(
    contraction: &Contraction,
    target: &Target,
    plain: impl Fn(&Contraction, &Target) -> Result<Lowering>,
) -> Result<Lowering> {
    let prologue = contraction.prologue.context("nothing is normalized")?;
    let g = contraction.geometry;
    let channels = contraction.channels();
    // CPUs convert halves at each load; others profit from moving half the bytes.
    let dtype = match contraction.sources.first() {
        Some(source) if !cpu(target) => source.dtype,
        _ => DType::F32,
    };
    let width = (g.out_w - 1) * g.stride_x + g.kernel;
    let line_bytes = (width * channels) as u64 * dtype.size_bytes();
    let cached = if cpu(target) { CACHED_BYTES } else { u64::MAX };
    let most_bytes = contraction.problem.max_scratch_bytes.min(cached);
    let stripes = stripes(&g, line_bytes, most_bytes);
    if let [whole] = &stripes[..] {
        return lone(contraction, prologue, whole, dtype, target, plain);
    }
    let argument = Argument::Scratch { index: 0, written: false };
    let source = Source { argument, channels, dtype };
    let mut scratch_bytes = 0;
    let mut parts: Vec<(Stripe, Vec<Launch>, Lowering)> = Vec::new();
    for stripe in &stripes {
        let first_row = (stripe.picture * g.out_h + stripe.line) * g.out_w;
        let top = (stripe.line * g.stride_y) as i32 - g.padding as i32;
        // Stripes of one size differ in these numbers alone.
        let same =
            parts.iter().find(|(s, ..)| (s.pictures, s.lines) == (stripe.pictures, stripe.lines));
        let (mut copy, mut sums) = match same {
            Some((_, copy, sums)) => (copy.clone(), sums.clone()),
            None => {
                let inside = geometry(&g, stripe);
                let bytes = line_bytes * (inside.batch * inside.in_h) as u64;
                scratch_bytes = scratch_bytes.max(bytes);
                let copy = normalize(contraction, prologue, &inside, dtype, target)?;
                let of_stripe = contraction.clone().with_sources(vec![source.clone()], inside);
                let of_stripe = Contraction { first_row: Some(0), ..of_stripe };
                let mut sums = plain(&of_stripe, target)?;
                let out_bytes = out_bytes(&of_stripe) / sums.launches.len().max(1) as u64;
                for launch in &mut sums.launches {
                    launch.bytes = Some(bytes + constant_bytes(&of_stripe, launch) + out_bytes);
                }
                (copy, sums)
            }
        };
        copy.iter_mut().for_each(|l| replace_last(l, &[stripe.picture as u32, top as u32]));
        sums.launches.iter_mut().for_each(|l| replace_last(l, &[first_row as u32]));
        parts.push((*stripe, copy, sums));
    }
    let packings = parts.first().map(|(.., sums)| sums.packings.clone()).unwrap_or_default();
    let launches = in_order(parts);
    Ok(Lowering { launches, scratch_bytes: vec![scratch_bytes], packings })
}

/// The place of a lone stripe among the scratch memory until that of `plain` is known.
const BEHIND: usize = usize::MAX;

/// All in one stripe: an op like any other, so that `plain` may have scratch memory of its own.
fn lone(
    contraction: &Contraction,
    prologue: Prologue,
    whole: &Stripe,
    dtype: DType,
    target: &Target,
    plain: impl Fn(&Contraction, &Target) -> Result<Lowering>,
) -> Result<Lowering> {
    let inside = geometry(&contraction.geometry, whole);
    let (channels, padding) = (contraction.channels(), contraction.geometry.padding);
    let argument = Argument::Scratch { index: BEHIND, written: false };
    let source = Source { argument, channels, dtype };
    let mut sums = plain(&contraction.clone().with_sources(vec![source], inside), target)?;
    let mut launches = normalize(contraction, prologue, &inside, dtype, target)?;
    launches.iter_mut().for_each(|l| replace_last(l, &[0, -(padding as i32) as u32]));
    let own = sums.scratch_bytes.len();
    for argument in launches.iter_mut().flat_map(|l| &mut l.args) {
        if let Argument::Scratch { index, .. } = argument {
            *index = own;
        }
    }
    for argument in sums.launches.iter_mut().flat_map(|l| &mut l.args) {
        if let Argument::Scratch { index, .. } = argument
            && *index == BEHIND
        {
            *index = own;
        }
    }
    launches.append(&mut sums.launches);
    let pixels = inside.batch * inside.in_h * inside.in_w;
    sums.scratch_bytes.push((pixels * channels) as u64 * dtype.size_bytes());
    Ok(Lowering { launches, ..sums })
}

/// All stripes under one range of columns, then under the next, so that each range of weights is read
/// in one go.
fn in_order(parts: Vec<(Stripe, Vec<Launch>, Lowering)>) -> Vec<Launch> {
    let splits = parts.first().map_or(0, |(.., sums)| sums.launches.len());
    let mut launches = Vec::new();
    for split in 0..splits {
        for (_, copy, sums) in &parts {
            launches.extend(copy.iter().cloned());
            launches.push(sums.launches[split].clone());
        }
    }
    launches
}

/// What a stripe's rows take in the output, and in the residual if there is one.
fn out_bytes(of_stripe: &Contraction) -> u64 {
    let values = 1 + usize::from(of_stripe.epilogue.residual);
    (of_stripe.m() * of_stripe.out_n * values) as u64 * of_stripe.output_dtype().size_bytes()
}

/// The constants that a launch reads.
fn constant_bytes(contraction: &Contraction, launch: &Launch) -> u64 {
    let len = |argument: &Argument| match argument {
        Argument::Input { index, len_bytes, .. } if contraction.problem.inputs[*index].constant => {
            *len_bytes
        }
        _ => 0,
    };
    launch.args.iter().map(len).sum()
}

/// Sets the last arguments of a launch, which are numbers.
fn replace_last(launch: &mut Launch, values: &[u32]) {
    let first = launch.args.len() - values.len();
    for (argument, value) in launch.args[first..].iter_mut().zip(values) {
        *argument = Argument::U32(*value);
    }
}

/// A stripe as a picture of its own, with the zeros around it in it.
fn geometry(g: &Geometry, stripe: &Stripe) -> Geometry {
    let in_h = (stripe.lines - 1) * g.stride_y + g.kernel;
    let in_w = (g.out_w - 1) * g.stride_x + g.kernel;
    Geometry {
        batch: stripe.pictures,
        in_h,
        in_w,
        window_h: in_h,
        window_w: in_w,
        out_h: stripe.lines,
        padding: 0,
        upsample: false,
        ..*g
    }
}

/// The launches that fill a stripe, one a source; their last arguments are its picture and top line.
fn normalize(
    contraction: &Contraction,
    prologue: Prologue,
    inside: &Geometry,
    dtype: DType,
    target: &Target,
) -> Result<Vec<Launch>> {
    let g = contraction.geometry;
    let channels = contraction.channels();
    let rows = inside.batch * inside.in_h * inside.in_w;
    let affine = contraction.affine().context("nothing is normalized")?;
    let template = [VECTOR, include_str!("stripe.cl.tera")].concat();
    let mut base = 0;
    let mut launches = vec![];
    for source in &contraction.sources {
        let shares = Shares::new(rows, source.channels, 1, target);
        let tensors = [("X", source.dtype), ("AFFINE", prologue.dtype), ("OUT", dtype)];
        let strides = [source.channels, channels, base];
        let parameters = shares
            .parameters(Parameters::new(), &strides)
            .set("factor", &if g.upsample { 2 } else { 1 })
            .set("silu", &(prologue.activation == Activation::Silu));
        let moved = source.dtype.size_bytes() + dtype.size_bytes();
        let output = Argument::Scratch { index: 0, written: true };
        let mut args = vec![source.argument.clone(), affine.clone(), output];
        let (picture, top) = (0, 0);
        let extents = [
            shares.run,
            shares.row_block,
            rows,
            g.in_h,
            g.in_w,
            g.padding,
            inside.in_h,
            inside.in_w,
            source.channels,
            channels,
            base,
            picture,
            top,
        ];
        args.extend(extents.map(|extent| Argument::U32(extent as u32)));
        launches.push(Launch {
            source: render(&template, &tensors, &parameters)?,
            entry: "conv2d_stripe",
            args,
            global: shares.global.map(|v| v as u64),
            local: Some(shares.local.map(|v| v as u64)),
            local_mem_bytes: 0,
            flops: 0,
            half_arithmetic: false,
            bytes: Some(rows as u64 * source.channels as u64 * moved),
        });
        base += source.channels;
    }
    Ok(launches)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(batch: usize, height: usize) -> Geometry {
        let size = Geometry { in_h: height, window_h: height, out_h: height, ..Geometry::rows(8) };
        Geometry { batch, kernel: 3, padding: 1, pointwise: false, in_w: 8, out_w: 8, ..size }
    }

    #[test]
    fn every_line_is_in_one_stripe_within_the_limit() {
        for (batch, height, most) in [(1, 64, 18), (2, 64, 18), (1, 17, 7), (3, 5, 3), (2, 4, 1)] {
            let list = stripes(&picture(batch, height), 10, most * 10);
            let mut lines = vec![];
            for s in &list {
                assert!(s.pictures == 1 && (s.lines as u64 + 2 <= most || s.lines == 1), "{s:?}");
                lines.extend((s.line..s.line + s.lines).map(|line| (s.picture, line)));
            }
            let all = (0..batch).flat_map(|b| (0..height).map(move |line| (b, line)));
            assert!(all.eq(lines), "{list:?}");
        }
        let list = stripes(&picture(1, 64), 10, 180);
        assert_eq!((list.len(), list[1].lines), (4, 16));
    }

    #[test]
    fn one_stripe_where_the_limit_allows() {
        let list = stripes(&picture(2, 8), 10, 200);
        assert_eq!(list, [Stripe { picture: 0, pictures: 2, line: 0, lines: 8 }]);
        assert_eq!(stripes(&picture(2, 8), 10, 199).len(), 2);
    }
}
