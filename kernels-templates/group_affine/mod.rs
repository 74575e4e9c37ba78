//! Kernels of [`kiln_ir::ops::group_affine`]: the statistics of group normalization.

use crate::group_norm::{Extents, GROUPED, Statistics, statistics};
use crate::launch::floating;
use crate::{Family, Lowering, Problem, Target, Variant};
use anyhow::Result;
use kiln_ir::Op;

/// The variants, best first.
pub const VARIANTS: &[Variant] =
    &[GROUPED, Variant::new("chunked", computes, chunked), Variant::naive(computes, naive)];

/// This folder's line of the registry.
pub const FAMILIES: &[Family] = &[Family { op: "group_affine", variants: VARIANTS }];

fn computes(problem: &Problem, target: &Target) -> bool {
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
    Ok(Lowering::of(launch))
}
