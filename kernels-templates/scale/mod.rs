//! Kernels of [`kiln_ir::ops::scale`].

use crate::elementwise::{self, Second};
use crate::launch::{Call, floating, literal};
use crate::{Family, Lowering, Problem, Target, Variant};
use anyhow::{Result, bail};
use kiln_ir::Op;

/// The variants, best first.
pub const VARIANTS: &[Variant] =
    &[Variant::new("vector", floating, vector), Variant::naive(floating, naive)];

/// This folder's line of the registry.
pub const FAMILIES: &[Family] = &[Family { op: "scale", variants: VARIANTS }];

fn vector(problem: &Problem, target: &Target) -> Result<Lowering> {
    let definition = include_str!("vector.cl.tera");
    let factor = factor(problem)?;
    elementwise::lower(problem, target, "scale_vector", definition, Second::None, |call| {
        call.set("factor", &factor)
    })
}

fn factor(problem: &Problem) -> Result<String> {
    let Op::Scale(op) = problem.op else {
        bail!("scale over another op");
    };
    Ok(literal(op.factor))
}

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let call = Call::new(problem).input("X", 0).output("OUT").set("factor", &factor(problem)?);
    let global = [problem.output.elem_count(), 1, 1];
    let launch = call.launch("scale_naive", include_str!("naive.cl.tera"), global, None)?;
    Ok(Lowering::of(launch))
}
