//! Kernels of [`kiln_ir::ops::group_affine`]: those of group normalization up to the statistics.

use crate::group_norm::{Extents, Statistics, statistics};
use crate::launch::floating;
use crate::rows::TREE;
use crate::{DeviceClass, Family, Lowering, Problem, Target, Variant};
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

/// Elements that a work-item keeps in registers: more take longer to read than a launch more.
const EACH: usize = 48;

/// Work-items of a group of channels: a power of two.
fn group(target: &Target) -> usize {
    1 << target.max_work_group.clamp(1, 512).ilog2()
}

fn grouped_applies(problem: &Problem, target: &Target) -> bool {
    let few = |e: Extents| e.rows * (e.channels / e.groups) <= EACH * group(target);
    applies(problem, target)
        && target.class == DeviceClass::Gpu
        && Extents::new(problem).is_ok_and(few)
}

fn grouped(problem: &Problem, target: &Target) -> Result<Lowering> {
    let e = Extents::new(problem)?;
    let group = group(target);
    let each = (e.rows * (e.channels / e.groups)).div_ceil(group);
    let call = e.in_one_launch(problem, "AFFINE").set("group", &group).set("each", &each);
    let call = call.local_mem_bytes(4 * group as u64);
    let template = [TREE, include_str!("grouped.cl.tera")].concat();
    let global = [e.groups * group, e.n, 1];
    let launch = call.launch("group_affine_grouped", &template, global, Some([group, 1, 1]))?;
    Ok(Lowering { launches: vec![launch], ..Lowering::default() })
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
