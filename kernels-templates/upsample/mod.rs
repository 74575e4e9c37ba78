//! Kernels of [`kiln_ir::ops::upsample`].

use crate::elementwise::Shares;
use crate::launch::{Call, floating};
use crate::{Family, Lowering, Problem, Target, Variant};
use anyhow::{Context as _, Result};

/// The variants, best first.
pub const VARIANTS: &[Variant] =
    &[Variant::new("vector", floating, vector), Variant::naive(floating, naive)];

/// This folder's line of the registry.
pub const FAMILIES: &[Family] = &[Family { op: "upsample", variants: VARIANTS }];

fn call<'a>(problem: &'a Problem) -> Result<(Call<'a>, [usize; 4])> {
    let shape =
        problem.inputs[0].ty.nhwc().context("the input of an upsampling is a feature map")?;
    let call = Call::new(problem).input("X", 0).output("OUT");
    Ok((call.set("width", &shape[2]).set("channels", &shape[3]), shape))
}

fn vector(problem: &Problem, target: &Target) -> Result<Lowering> {
    let (call, [n, h, w, c]) = call(problem)?;
    let shares = Shares::new(n * h * w, c, 1, target);
    let call = shares.set(call, &[c]).set("rows", &(n * h * w));
    let template = include_str!("vector.cl.tera");
    let launch = call.launch("upsample_vector", template, shares.global, Some(shares.local))?;
    Ok(Lowering::of(launch))
}

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let (call, [n, h, w, c]) = call(problem)?;
    let template = include_str!("naive.cl.tera");
    let launch = call.launch("upsample_naive", template, [c, 2 * w, 2 * n * h], None)?;
    Ok(Lowering::of(launch))
}
