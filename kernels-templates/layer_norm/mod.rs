//! Kernels of [`kiln_ir::ops::layer_norm`].

use crate::launch::{Call, floating, literal};
use crate::{Family, Lowering, Problem, Target, Variant, rows};
use anyhow::{Result, bail};
use kiln_ir::Op;

/// The variants, best first.
pub const VARIANTS: &[Variant] = &[
    Variant { needs: rows::VECTOR_NEEDS, ..Variant::new("vector", floating, vector) },
    Variant::new("tree", rows::tree_computes, tree),
    Variant::naive(floating, naive),
];

/// This folder's line of the registry.
pub const FAMILIES: &[Family] = &[Family { op: "layer_norm", variants: VARIANTS }];

fn call<'a>(problem: &'a Problem) -> Result<Call<'a>> {
    let Op::LayerNorm(op) = problem.op else {
        bail!("layer_norm over another op");
    };
    let call = Call::new(problem).input("X", 0).input("GAMMA", 1).input("BETA", 2);
    Ok(call.output("OUT").set("eps", &literal(op.eps)))
}

fn vector(problem: &Problem, target: &Target) -> Result<Lowering> {
    let template = include_str!("vector.cl.tera");
    rows::lower_vector(problem, target, call(problem)?, "layer_norm_vector", template)
}

fn tree(problem: &Problem, target: &Target) -> Result<Lowering> {
    let template = include_str!("tree.cl.tera");
    rows::lower_tree(problem, target, call(problem)?, "layer_norm_tree", template)
}

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    rows::lower_naive(problem, call(problem)?, "layer_norm_naive", include_str!("naive.cl.tera"))
}
