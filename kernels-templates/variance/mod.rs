//! Kernels of [`kiln_ir::ops::variance`].

use crate::launch::{Call, floating};
use crate::{Family, Lowering, Problem, Target, Variant, rows};
use anyhow::Result;

/// The variants, best first.
pub const VARIANTS: &[Variant] = &[
    Variant { name: "vector", applies: rows::vector_applies, lower: vector },
    Variant { name: "tree", applies: rows::tree_applies, lower: tree },
    Variant { name: "naive", applies: floating, lower: naive },
];

/// This folder's line of the registry.
pub const FAMILY: Family = Family { op: "variance", variants: VARIANTS };

fn call<'a>(problem: &'a Problem) -> Call<'a> {
    Call::new(problem).input("X", 0).output("OUT")
}

fn vector(problem: &Problem, target: &Target) -> Result<Lowering> {
    let template = include_str!("vector.cl.tera");
    rows::lower_vector(problem, target, call(problem), "variance_vector", template)
}

fn tree(problem: &Problem, target: &Target) -> Result<Lowering> {
    let template = include_str!("tree.cl.tera");
    rows::lower_tree(problem, target, call(problem), "variance_tree", template)
}

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    rows::lower_naive(problem, call(problem), "variance_naive", include_str!("naive.cl.tera"))
}
