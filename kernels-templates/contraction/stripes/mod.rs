//! Convolutions of normalized feature maps, stripe by stripe, by kernels that read plain feature
//! maps.
//!
//! A stripe is several lines of output. The lines of its source are normalized into scratch memory,
//! with their zero padding, and convolved from there. The normalized feature map never exists as a
//! whole.

pub mod chain;
mod lines;

use super::{Contraction, Geometry};
use crate::launch::cpu;
use crate::{Argument, Launch, Lowering, Slot, Target};
use anyhow::{Context as _, Result};
use kiln_ir::DType;
pub(super) use lines::Form;
use lines::{Lines, Place, height, inside, put, shared};

/// Largest size of a stripe on a CPU in bytes. A larger one leaves the cache before it is read.
pub(super) const CACHED_BYTES: u64 = 16 << 20;

/// A stripe of output lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stripe {
    /// First feature map.
    map: usize,
    /// Number of feature maps: all, or one.
    maps: usize,
    /// First line of output.
    line: usize,
    /// Number of lines of output of each feature map.
    lines: usize,
}

/// Divides `g` into stripes whose scratch memory is at most `most_bytes`, if possible. Stripes are
/// equal, except for the last one if nothing divides the lines. `line_bytes` is the size of a line
/// of scratch memory.
fn stripes(g: &Geometry, line_bytes: u64, most_bytes: u64) -> Vec<Stripe> {
    let read = |lines: usize| ((lines - 1) * g.stride_y + g.kernel) as u64 * line_bytes;
    if read(g.out_h) * g.batch as u64 <= most_bytes {
        return vec![Stripe { map: 0, maps: g.batch, line: 0, lines: g.out_h }];
    }
    let lines = height(g.out_h, |lines| read(lines) <= most_bytes);
    let of_map = |map| {
        let stripe = move |line| Stripe { map, maps: 1, line, lines: lines.min(g.out_h - line) };
        (0..g.out_h).step_by(lines).map(stripe)
    };
    (0..g.batch).flat_map(of_map).collect()
}

/// Storage of normalized lines. CPUs convert FP16 at each load. Other devices profit from
/// moving half of the bytes.
pub(super) fn lines_form(contraction: &Contraction, target: &Target) -> Form {
    match contraction.sources.first() {
        Some(source) if !cpu(target) => Form::Values(source.dtype),
        _ => Form::Values(DType::F32),
    }
}

/// Lowers a convolution with a prologue by `plain`, which lowers one without a prologue.
///
/// Errors: there is no prologue; the errors of `plain`.
pub fn lower(
    contraction: &Contraction,
    target: &Target,
    plain: impl Fn(&Contraction, &Target) -> Result<Lowering>,
) -> Result<Lowering> {
    contraction.prologue.context("nothing is normalized")?;
    lower_lines(contraction, lines_form(contraction, target), target, plain)
}

/// Lowers a contraction by `plain`, which reads copies of the source's lines in a form. The copies
/// are normalized and contain their zero padding.
///
/// If the stripes run once, each keeps the lines that the next one reads again. The output may then
/// reuse the memory of a source of its type.
///
/// Errors: those of `plain`.
pub fn lower_lines(
    contraction: &Contraction,
    form: Form,
    target: &Target,
    plain: impl Fn(&Contraction, &Target) -> Result<Lowering>,
) -> Result<Lowering> {
    let g = contraction.geometry;
    let width = (g.out_w - 1) * g.stride_x + g.kernel;
    let line_bytes = width as u64 * form.pixel_bytes(contraction.channels());
    let cached = if cpu(target) { CACHED_BYTES } else { u64::MAX };
    let most_bytes = contraction.max_scratch_bytes.min(cached);
    let stripes = stripes(&g, line_bytes, most_bytes);
    let lines = |stripe: &Stripe, scratch: Option<usize>| {
        let inside = inside(&g, stripe.maps, stripe.lines);
        Lines { contraction, inside, form, scratch }
    };
    if let [whole] = &stripes[..] {
        return lone(&lines(whole, None), target, plain);
    }
    let keep = shared(&g);
    let carried = stripes[0].lines * g.stride_y >= keep;
    let mut scratch_bytes = 0;
    let mut known: Vec<(usize, Vec<Launch>, Vec<Launch>, Lowering)> = Vec::new();
    let mut parts: Vec<(Vec<Launch>, Lowering)> = Vec::new();
    for stripe in &stripes {
        let index = match known.iter().position(|(lines, ..)| *lines == stripe.lines) {
            Some(index) => index,
            None => {
                let lines = lines(stripe, Some(0));
                scratch_bytes = scratch_bytes.max(lines.bytes());
                let all = lines.fill(0, target)?;
                let mut new = vec![];
                if carried && keep > 0 {
                    new.push(lines.carry(stripes[0].lines * g.stride_y, keep, target)?);
                }
                new.extend(lines.fill(if carried { keep } else { 0 }, target)?);
                let sums = of_stripe(contraction, &lines, target, &plain)?;
                known.push((stripe.lines, all, new, sums));
                known.len() - 1
            }
        };
        let (_, all, new, sums) = &known[index];
        let mut copy = if stripe.line == 0 { all.clone() } else { new.clone() };
        let fills = copy.len() - contraction.sources.len();
        let top = (stripe.line * g.stride_y) as i32 - g.padding as i32;
        put(&mut copy[fills..], Place { map: stripe.map, top, source_first: 0 })?;
        let mut sums = sums.clone();
        let first_row = Argument::U32(((stripe.map * g.out_h + stripe.line) * g.out_w) as u32);
        for launch in &mut sums.launches {
            launch.bind(Slot::FirstRow, first_row.clone())?;
        }
        parts.push((copy, sums));
    }
    let packings = parts.first().map(|(_, sums)| sums.packings.clone()).unwrap_or_default();
    let once = parts.first().is_some_and(|(_, sums)| sums.launches.len() == 1);
    let in_place = if once && carried {
        contraction.source_in_place(contraction.problem.output)
    } else {
        None
    };
    let launches = in_order(parts);
    let in_place = in_place.into_iter().collect();
    Ok(Lowering { launches, scratch_bytes: vec![scratch_bytes], packings, in_place })
}

/// The contraction of a stripe. Its launches wait for the first row of the output.
fn of_stripe(
    contraction: &Contraction,
    lines: &Lines,
    target: &Target,
    plain: impl Fn(&Contraction, &Target) -> Result<Lowering>,
) -> Result<Lowering> {
    let of_stripe = contraction.clone().with_sources(vec![lines.source()], lines.inside);
    let of_stripe = Contraction { striped: true, ..of_stripe };
    let mut sums = plain(&of_stripe, target)?;
    let out_bytes = out_bytes(&of_stripe) / sums.launches.len().max(1) as u64;
    for launch in &mut sums.launches {
        launch.bytes = Some(lines.bytes() + constant_bytes(&of_stripe, launch) + out_bytes);
    }
    Ok(sums)
}

/// Everything in one stripe, lowered like any other op, so that `plain` may have scratch memory of
/// its own.
fn lone(
    lines: &Lines,
    target: &Target,
    plain: impl Fn(&Contraction, &Target) -> Result<Lowering>,
) -> Result<Lowering> {
    let contraction = lines.contraction;
    let padding = contraction.geometry.padding;
    let mut of_lines = contraction.clone().with_sources(vec![lines.source()], lines.inside);
    of_lines.max_scratch_bytes = contraction.max_scratch_bytes.saturating_sub(lines.bytes());
    let mut sums = plain(&of_lines, target)?;
    let mut launches = lines.fill(0, target)?;
    put(&mut launches, Place { map: 0, top: -(padding as i32), source_first: 0 })?;
    launches.append(&mut sums.launches);
    let index = sums.scratch_bytes.len();
    for written in [true, false] {
        let memory = Argument::Scratch { index, written };
        launches.iter_mut().for_each(|l| l.replace(Slot::Lines { written }, &memory));
    }
    sums.scratch_bytes.push(lines.bytes());
    let in_place = contraction.source_in_place(contraction.problem.output).into_iter().collect();
    Ok(Lowering { launches, in_place, ..sums })
}

/// All stripes for one range of columns, then for the next, so that each range of weights is read
/// once.
fn in_order(parts: Vec<(Vec<Launch>, Lowering)>) -> Vec<Launch> {
    let splits = parts.first().map_or(0, |(_, sums)| sums.launches.len());
    let mut launches = Vec::new();
    for split in 0..splits {
        for (copy, sums) in &parts {
            launches.extend(copy.iter().cloned());
            launches.push(sums.launches[split].clone());
        }
    }
    launches
}

/// Bytes of a stripe's rows in the output, and in the residual if there is one.
pub(super) fn out_bytes(of_stripe: &Contraction) -> u64 {
    let values = 1 + usize::from(of_stripe.epilogue.residual);
    (of_stripe.m() * of_stripe.out_n * values) as u64 * of_stripe.output_dtype().size_bytes()
}

/// Bytes of the constants that a launch reads.
pub(super) fn constant_bytes(contraction: &Contraction, launch: &Launch) -> u64 {
    let len = |argument: &Argument| match argument {
        Argument::Input { index, len_bytes, .. } if contraction.problem.inputs[*index].constant => {
            *len_bytes
        }
        _ => 0,
    };
    launch.args.iter().map(len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature_map(batch: usize, height: usize) -> Geometry {
        let size = Geometry { in_h: height, window_h: height, out_h: height, ..Geometry::rows(8) };
        Geometry { batch, kernel: 3, padding: 1, pointwise: false, in_w: 8, out_w: 8, ..size }
    }

    #[test]
    fn every_line_is_in_one_stripe_within_the_limit() {
        for (batch, height, most) in [(1, 64, 18), (2, 64, 18), (1, 17, 7), (3, 5, 3), (2, 4, 1)] {
            let list = stripes(&feature_map(batch, height), 10, most * 10);
            let mut lines = vec![];
            for s in &list {
                assert!(s.maps == 1 && (s.lines as u64 + 2 <= most || s.lines == 1), "{s:?}");
                lines.extend((s.line..s.line + s.lines).map(|line| (s.map, line)));
            }
            let all = (0..batch).flat_map(|b| (0..height).map(move |line| (b, line)));
            assert!(all.eq(lines), "{list:?}");
        }
        let list = stripes(&feature_map(1, 64), 10, 180);
        assert_eq!((list.len(), list[1].lines), (4, 16));
    }

    #[test]
    fn one_stripe_where_the_limit_allows() {
        let list = stripes(&feature_map(2, 8), 10, 200);
        assert_eq!(list, [Stripe { map: 0, maps: 2, line: 0, lines: 8 }]);
        assert_eq!(stripes(&feature_map(2, 8), 10, 199).len(), 2);
    }
}
