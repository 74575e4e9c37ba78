//! Kernels of [`kiln_ir::ops::slice`].

use crate::elementwise::Shares;
use crate::launch::{Call, floating};
use crate::{Family, Lowering, Problem, Target, Variant};
use anyhow::{Result, bail};
use kiln_ir::Op;

/// The variants, best first.
pub const VARIANTS: &[Variant] =
    &[Variant::new("vector", floating, vector), Variant::naive(floating, naive)];

/// This folder's line of the registry.
pub const FAMILIES: &[Family] = &[Family { op: "slice", variants: VARIANTS }];

fn call<'a>(problem: &'a Problem) -> Result<(Call<'a>, usize)> {
    let Op::Slice(op) = problem.op else {
        bail!("slice over another op");
    };
    let call = Call::new(problem)
        .input("X", 0)
        .output("OUT")
        .set("source_channels", &problem.inputs[0].ty.channels())
        .set("channels", &op.len)
        .set("start", &op.start);
    Ok((call, op.start))
}

fn vector(problem: &Problem, target: &Target) -> Result<Lowering> {
    let (call, start) = call(problem)?;
    let (rows, channels) = (problem.output.rows(), problem.output.channels());
    let shares = Shares::new(rows, channels, 1, target);
    let strides = [start, channels, problem.inputs[0].ty.channels()];
    let call = shares.set(call, &strides).set("rows", &rows);
    let template = include_str!("vector.cl.tera");
    let launch = call.launch("slice_vector", template, shares.global, Some(shares.local))?;
    Ok(Lowering::of(launch))
}

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let global = [problem.output.channels(), problem.output.rows(), 1];
    let template = include_str!("naive.cl.tera");
    let launch = call(problem)?.0.launch("slice_naive", template, global, None)?;
    Ok(Lowering::of(launch))
}
