//! Kernels of [`kiln_ir::ops::group_affine`]: those of group normalization up to the statistics.

use crate::group_norm::{Extents, Statistics, grouped, grouped_applies, statistics};
use crate::launch::floating;
use crate::{Family, Lowering, Problem, Target, Variant};
use anyhow::Result;
use kiln_ir::Op;

/// The variants, best first.
pub const VARIANTS: &[Variant] = &[
    Variant { name: "grouped", applies: grouped_applies, lower: grouped },
    Variant { name: "chunked", applies, lower: chunked },
    Variant { name: "naive", applies, lower: naive },
];

/// This folder's line of the registry.
pub const FAMILY: Family = Family { op: "group_affine", variants: VARIANTS };

fn applies(problem: &Problem, target: &Target) -> bool {
    let few = matches!(problem.op, Op::GroupAffine(op) if op.sources <= 2);
    few && floating(problem, target)
}

fn chunked(problem: &Problem, target: &Target) -> Result<Lowering> {
    let Statistics { launches, partial_bytes } =
        statistics(problem, target, &Extents::new(problem)?)?;
    Ok(Lowering { launches, scratch_bytes: vec![partial_bytes; 2], ..Lowering::default() })
}

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let e = Extents::new(problem)?;
    let call = e.in_one_launch(problem, "AFFINE");
    let template = include_str!("naive.cl.tera");
    let launch = call.launch("group_affine_naive", template, [e.groups, e.n, 1], None)?;
    Ok(Lowering { launches: vec![launch], ..Lowering::default() })
}
