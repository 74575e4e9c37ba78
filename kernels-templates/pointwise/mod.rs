//! Kernels of [`kiln_ir::ops::pointwise`]: a table of their expressions.

use crate::elementwise::{self, Second};
use crate::launch::{Call, floating};
use crate::{Family, Lowering, Problem, Target, Variant};
use anyhow::{Context as _, Result};

/// An op on single elements.
struct Pointwise {
    /// [`kiln_ir::Op::name`].
    op: &'static str,
    /// Names of its kernels.
    entries: [&'static str; 2],
    /// Title in the kernels' comments.
    title: &'static str,
    /// Whether there is a second operand, which repeats.
    binary: bool,
    /// OpenCL C of the result for `x` and `y`; `_T` ends the name of a function on vectors.
    value: &'static str,
    /// Expression of `naive`: the result for `x` by OpenCL's own functions, or the operator of a
    /// binary op.
    naive_value: &'static str,
    /// Source of `value`.
    source: &'static str,
}

/// Declares the table and its families.
macro_rules! pointwise {
    ($($op:literal, $title:literal, $binary:literal, $value:literal, $naive:literal, $source:literal;)*) => {
        const OPS: &[Pointwise] = &[$(Pointwise {
            op: $op,
            entries: [concat!($op, "_vector"), concat!($op, "_naive")],
            title: $title,
            binary: $binary,
            value: $value,
            naive_value: $naive,
            source: $source,
        }),*];

        /// The families, each of both variants.
        pub const FAMILIES: &[Family] = &[$(Family { op: $op, variants: VARIANTS }),*];
    };
}

pointwise! {
    "gelu", "GELU", false, "0.5f * x * (1.0f + erf_T(x * 0.70710678118654752f))",
        "0.5f * x * (1.0f + erf(x * M_SQRT1_2_F))",
        "Hendrycks & Gimpel 2016 (arXiv:1606.08415)";
    "quick_gelu", "Fast GELU", false, "x / (1.0f + exp_T(-1.702f * x))",
        "x / (1.0f + exp(-1.702f * x))", "Hendrycks & Gimpel 2016 (arXiv:1606.08415)";
    "silu", "SiLU", false, "x / (1.0f + exp_T(-x))", "x / (1.0f + exp(-x))",
        "Elfwing, Uchibe & Doya 2017 (arXiv:1702.03118)";
    "relu", "ReLU", false, "max(x, 0.0f)", "max(x, 0.0f)",
        "Nair & Hinton 2010, rectified linear units";
    "tanh", "Hyperbolic tangent", false, "tanh(x)", "tanh(x)", "the definition";
    "add", "Sum of two values", true, "x + y", "+", "the definition";
    "mul", "Product of two values", true, "x * y", "*", "the definition";
}

const VARIANTS: &[Variant] =
    &[Variant::new("vector", floating, vector), Variant::naive(floating, naive)];

impl Pointwise {
    fn of(problem: &Problem) -> Result<&'static Self> {
        let found = OPS.iter().find(|p| p.op == problem.op.name());
        found.context("an element-wise kernel over another op")
    }

    fn set<'a>(&self, call: Call<'a>) -> Call<'a> {
        call.set("title", self.title).set("binary", &self.binary)
    }
}

fn vector(problem: &Problem, target: &Target) -> Result<Lowering> {
    let op = Pointwise::of(problem)?;
    let second = if op.binary { Second::Repeat } else { Second::None };
    let definition = include_str!("vector.cl.tera");
    elementwise::lower(problem, target, op.entries[0], definition, second, |call| {
        op.set(call).set("value", op.value).set("source", op.source)
    })
}

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let op = Pointwise::of(problem)?;
    let mut call = op.set(Call::new(problem).input("X", 0));
    call = call.set("op", op.op).set("naive_value", op.naive_value);
    if op.binary {
        call = call.input("Y", 1).set("period", &problem.inputs[1].ty.elem_count());
    }
    let (template, global) = (include_str!("naive.cl.tera"), [problem.output.elem_count(), 1, 1]);
    Ok(Lowering::of(call.output("OUT").launch(op.entries[1], template, global, None)?))
}
