//! Kernels of [`kiln_ir::ops::permute`].

use crate::elementwise::Shares;
use crate::launch::{Call, floating};
use crate::{Family, Lowering, Problem, Target, Variant};
use anyhow::{Result, bail};
use kiln_ir::Op;
use serde::Serialize;

/// The variants, best first.
pub const VARIANTS: &[Variant] =
    &[Variant::new("vector", keeps_channels, vector), Variant::naive(floating, naive)];

/// This folder's line of the registry.
pub const FAMILIES: &[Family] = &[Family { op: "permute", variants: VARIANTS }];

/// An axis of the output for the templates.
#[derive(Serialize)]
struct Axis {
    extent: usize,
    stride: usize,
}

/// The axes of the output, innermost first.
fn axes(problem: &Problem) -> Result<Vec<Axis>> {
    let Op::Permute(op) = problem.op else {
        bail!("permute over another op");
    };
    let strides = op.strides(&problem.inputs[0].ty.shape);
    let axes = problem.output.shape.iter().zip(strides).rev();
    Ok(axes.map(|(extent, stride)| Axis { extent: *extent, stride }).collect())
}

/// Whether the last axis stays in place.
fn keeps_channels(problem: &Problem, target: &Target) -> bool {
    let Op::Permute(op) = problem.op else {
        return false;
    };
    let last = op.order.len().checked_sub(1);
    floating(problem, target) && last.is_some() && op.order.last().copied() == last
}

fn vector(problem: &Problem, target: &Target) -> Result<Lowering> {
    let (rows, channels) = (problem.output.rows(), problem.output.channels());
    let shares = Shares::new(rows, channels, 1, target);
    let call = Call::new(problem)
        .input("X", 0)
        .output("OUT")
        .set("axes", &axes(problem)?[1..])
        .set("rows", &rows)
        .set("channels", &channels);
    let call = shares.set(call, &[channels]);
    let template = include_str!("vector.cl.tera");
    let launch = call.launch("permute_vector", template, shares.global, Some(shares.local))?;
    Ok(Lowering::of(launch))
}

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let call = Call::new(problem).input("X", 0).output("OUT").set("axes", &axes(problem)?);
    let global = [problem.output.elem_count(), 1, 1];
    let launch = call.launch("permute_naive", include_str!("naive.cl.tera"), global, None)?;
    Ok(Lowering::of(launch))
}
