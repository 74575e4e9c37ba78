//! Kernels of [`kiln_ir::ops::reductions`]: mean, variance and softmax of rows.

use crate::launch::{Call, floating};
use crate::{Family, Lowering, Problem, Target, Variant, rows};
use anyhow::{Context as _, Result};

/// The templates of an op, each with the name of its kernel.
struct Reduction {
    op: &'static str,
    vector: (&'static str, &'static str),
    tree: (&'static str, &'static str),
    naive: (&'static str, &'static str),
}

macro_rules! reduction {
    ($op:literal) => {
        Reduction {
            op: $op,
            vector: (concat!($op, "_vector"), include_str!(concat!($op, "_vector.cl.tera"))),
            tree: (concat!($op, "_tree"), include_str!(concat!($op, "_tree.cl.tera"))),
            naive: (concat!($op, "_naive"), include_str!(concat!($op, "_naive.cl.tera"))),
        }
    };
}

const REDUCTIONS: [Reduction; 3] =
    [reduction!("mean"), reduction!("variance"), reduction!("softmax")];

/// The variants of each, best first.
const VARIANTS: &[Variant] = &[
    Variant { needs: rows::VECTOR_NEEDS, ..Variant::new("vector", floating, vector) },
    Variant::new("tree", rows::tree_computes, tree),
    Variant::naive(floating, naive),
];

/// This folder's line of the registry.
pub const FAMILIES: &[Family] = &[
    Family { op: "mean", variants: VARIANTS },
    Family { op: "variance", variants: VARIANTS },
    Family { op: "softmax", variants: VARIANTS },
];

fn of(problem: &Problem) -> Result<&'static Reduction> {
    let found = REDUCTIONS.iter().find(|r| r.op == problem.op.name());
    found.context("a reduction over another op")
}

fn call<'a>(problem: &'a Problem) -> Call<'a> {
    Call::new(problem).input("X", 0).output("OUT")
}

fn vector(problem: &Problem, target: &Target) -> Result<Lowering> {
    let (entry, template) = of(problem)?.vector;
    rows::lower_vector(problem, target, call(problem), entry, template)
}

fn tree(problem: &Problem, target: &Target) -> Result<Lowering> {
    let (entry, template) = of(problem)?.tree;
    rows::lower_tree(problem, target, call(problem), entry, template)
}

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let (entry, template) = of(problem)?.naive;
    rows::lower_naive(problem, call(problem), entry, template)
}
