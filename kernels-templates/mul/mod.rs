//! Kernels of [`kiln_ir::ops::mul`].

use crate::elementwise::{self, Second};
use crate::launch::{Call, floating};
use crate::{Family, Lowering, Problem, Target, Variant};
use anyhow::Result;

/// The variants, best first.
pub const VARIANTS: &[Variant] = &[
    Variant { name: "vector", applies: floating, lower: vector },
    Variant { name: "naive", applies: floating, lower: naive },
];

/// This folder's line of the registry.
pub const FAMILY: Family = Family { op: "mul", variants: VARIANTS };

fn vector(problem: &Problem, target: &Target) -> Result<Lowering> {
    let definition = include_str!("vector.cl.tera");
    elementwise::lower(problem, target, "mul_vector", definition, Second::Repeat, "")
}

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let period = problem.inputs[1].ty.elem_count();
    let call = Call::new(problem).input("X", 0).input("Y", 1).output("OUT");
    let global = [problem.output.elem_count(), 1, 1];
    let template = include_str!("naive.cl.tera");
    let launch = call.set("period", &period).launch("mul_naive", template, global, None)?;
    Ok(Lowering { launches: vec![launch], ..Lowering::default() })
}
