//! Kernels of [`kiln_ir::ops::chain`], made of the kernels of its two ops.

use crate::contraction;
use crate::contraction::stripes::chain::{Links, computes, lower};
use crate::{Family, Lowering, Problem, Target, Variant, family};
use anyhow::{Context as _, Result};

/// The variants, best first.
pub const VARIANTS: &[Variant] = &[
    Variant { tuning: contraction::tuning, ..Variant::new("striped", computes, lower) },
    Variant::naive(naive_computes, naive),
];

/// This folder's line of the registry.
pub const FAMILIES: &[Family] = &[Family { op: "chain", variants: VARIANTS }];

fn oracle(problem: &Problem) -> Option<&'static Variant> {
    family(problem.op.name())?.oracle()
}

fn naive_computes(problem: &Problem, target: &Target) -> bool {
    let applies = |problem: &Problem| oracle(problem).is_some_and(|v| v.applies(problem, target));
    Links::new(problem).is_some_and(|links| applies(&links.first()) && applies(&links.second()))
}

/// Both oracles in sequence, with the whole feature map between them in scratch memory.
fn naive(problem: &Problem, target: &Target) -> Result<Lowering> {
    let links = Links::new(problem).context("a chain over another op")?;
    let of = |problem: &Problem| {
        let variant = oracle(problem).context("an op without kernels")?;
        variant.lower(problem, target)
    };
    let mut first = links.of_first(of(&links.first())?, 0);
    let second = links.of_second(of(&links.second())?, 0);
    first.launches.extend(second.launches);
    first.packings.extend(second.packings);
    first.scratch_bytes = vec![links.first().output.size_bytes()];
    Ok(first)
}
