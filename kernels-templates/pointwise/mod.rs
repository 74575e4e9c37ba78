//! Kernels of [`kiln_ir::ops::pointwise`]: GELU, SiLU, addition and multiplication.

use crate::elementwise::{self, Second};
use crate::launch::{Call, floating};
use crate::{Family, Lowering, Problem, Target, Variant};
use anyhow::{Context as _, Result};

/// The templates of an op, each with the name of its kernel.
struct Pointwise {
    op: &'static str,
    second: Second,
    vector: (&'static str, &'static str),
    naive: (&'static str, &'static str),
}

macro_rules! pointwise {
    ($op:literal, $second:expr) => {
        Pointwise {
            op: $op,
            second: $second,
            vector: (concat!($op, "_vector"), include_str!(concat!($op, "_vector.cl.tera"))),
            naive: (concat!($op, "_naive"), include_str!(concat!($op, "_naive.cl.tera"))),
        }
    };
}

const OPS: [Pointwise; 4] = [
    pointwise!("gelu", Second::None),
    pointwise!("silu", Second::None),
    pointwise!("add", Second::Repeat),
    pointwise!("mul", Second::Repeat),
];

/// The variants of each, best first.
const VARIANTS: &[Variant] =
    &[Variant::new("vector", floating, vector), Variant::naive(floating, naive)];

/// The family of `gelu`.
pub const GELU: Family = Family { op: "gelu", variants: VARIANTS };
/// The family of `silu`.
pub const SILU: Family = Family { op: "silu", variants: VARIANTS };
/// The family of `add`.
pub const ADD: Family = Family { op: "add", variants: VARIANTS };
/// The family of `mul`.
pub const MUL: Family = Family { op: "mul", variants: VARIANTS };

fn of(problem: &Problem) -> Result<&'static Pointwise> {
    let found = OPS.iter().find(|p| p.op == problem.op.name());
    found.context("an element-wise kernel over another op")
}

fn vector(problem: &Problem, target: &Target) -> Result<Lowering> {
    let Pointwise { second, vector: (entry, definition), .. } = of(problem)?;
    elementwise::lower(problem, target, entry, definition, *second, "")
}

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let Pointwise { second, naive: (entry, template), .. } = of(problem)?;
    let mut call = Call::new(problem).input("X", 0);
    if *second == Second::Repeat {
        call = call.input("Y", 1).set("period", &problem.inputs[1].ty.elem_count());
    }
    let global = [problem.output.elem_count(), 1, 1];
    Ok(Lowering::of(call.output("OUT").launch(entry, template, global, None)?))
}
