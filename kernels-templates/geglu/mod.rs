//! Kernels of [`kiln_ir::ops::geglu`].

use crate::elementwise::{self, Second};
use crate::launch::{Call, floating};
use crate::{Family, Lowering, Problem, Target, Variant};
use anyhow::Result;

/// The variants, best first.
pub const VARIANTS: &[Variant] =
    &[Variant::new("vector", floating, vector), Variant::naive(floating, naive)];

/// This folder's line of the registry.
pub const FAMILIES: &[Family] = &[Family { op: "geglu", variants: VARIANTS }];

fn vector(problem: &Problem, target: &Target) -> Result<Lowering> {
    let definition = include_str!("vector.cl.tera");
    elementwise::lower(problem, target, "geglu_vector", definition, Second::Gate, |call| call)
}

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let (rows, channels) = (problem.output.rows(), problem.output.channels());
    let call = Call::new(problem).input("X", 0).output("OUT").set("channels", &channels);
    let template = include_str!("naive.cl.tera");
    let launch = call.launch("geglu_naive", template, [channels, rows, 1], None)?;
    Ok(Lowering::of(launch))
}
