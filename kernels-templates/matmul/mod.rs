//! Kernels of [`kiln_ir::ops::matmul`].

use crate::contraction::{Contraction, cpu};
use crate::{Family, Lowering, Problem, Target, Variant};
use anyhow::{Context as _, Result};

/// The variants, best first.
pub const VARIANTS: &[Variant] = &[
    Variant { name: "tiled_cpu", applies: cpu::applies, lower: cpu::lower },
    Variant { name: "naive", applies: naive_applies, lower: naive },
];

/// This folder's line of the registry.
pub const FAMILY: Family = Family { op: "matmul", variants: VARIANTS };

fn naive_applies(problem: &Problem, _: &Target) -> bool {
    Contraction::new(problem).is_some_and(|c| c.floating() && c.column_splits().is_some())
}

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let contraction = Contraction::new(problem).context("matmul over another op")?;
    contraction.lower_naive(include_str!("naive.cl.tera"), "matmul_naive")
}
