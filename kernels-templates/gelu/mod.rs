//! Kernels of [`kiln_ir::ops::gelu`].

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
pub const FAMILY: Family = Family { op: "gelu", variants: VARIANTS };

fn vector(problem: &Problem, target: &Target) -> Result<Lowering> {
    let definition = include_str!("vector.cl.tera");
    elementwise::lower(problem, target, "gelu_vector", definition, Second::None, "")
}

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let call = Call::new(problem).input("X", 0).output("OUT");
    let global = [problem.output.elem_count(), 1, 1];
    let launch = call.launch("gelu_naive", include_str!("naive.cl.tera"), global, None)?;
    Ok(Lowering { launches: vec![launch], ..Lowering::default() })
}
