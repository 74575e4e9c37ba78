//! Common part of the ops on rows: reductions by one work-item or by a work-group.

use crate::launch::{Call, floating};
use crate::{DeviceClass, Lowering, Needs, Problem, Target};
use anyhow::Result;

/// Elements of a work-item on a CPU: enough to make the cost of its start negligible.
const ELEMENTS_PER_ITEM: usize = 4096;

/// One work-item has whole rows: CPUs only.
pub(crate) const VECTOR_NEEDS: Needs = Needs::class(DeviceClass::Cpu);

/// Whether a work-group of the target can reduce a row.
pub(crate) fn tree_computes(problem: &Problem, target: &Target) -> bool {
    let group = group(problem, target) as u64;
    floating(problem, target) && 4 * group <= target.local_mem_bytes
}

/// Work-items of a row: a power of two, for about ten columns each.
fn group(problem: &Problem, target: &Target) -> usize {
    let channels = problem.inputs[0].ty.channels();
    let most = 1 << target.max_work_group.clamp(1, 256).ilog2();
    channels.div_ceil(10).next_power_of_two().clamp(1, most)
}

/// Adds the common parameter of kernels on rows: `channels` of input 0.
fn with_shape<'a>(problem: &'a Problem, call: Call<'a>) -> Call<'a> {
    call.set("channels", &problem.inputs[0].ty.channels())
}

/// One work-item for a block of rows. `call` has the arguments and the op's own parameters.
pub(crate) fn lower_vector(
    problem: &Problem,
    target: &Target,
    call: Call,
    entry: &'static str,
    template: &str,
) -> Result<Lowering> {
    let x = &problem.inputs[0].ty;
    let v = target.vector_width as usize;
    let row_block = (ELEMENTS_PER_ITEM / x.channels()).max(1);
    let call = with_shape(problem, call)
        .set("rows", &x.rows())
        .set("v", &v)
        .set("aligned", &false)
        .set("row_block", &row_block);
    let global = [x.rows().div_ceil(row_block), 1, 1];
    let launch = call.launch(entry, template, global, Some([1, 1, 1]))?;
    Ok(Lowering::of(launch))
}

/// One work-group for each row. `call` has the arguments and the op's own parameters.
pub(crate) fn lower_tree(
    problem: &Problem,
    target: &Target,
    call: Call,
    entry: &'static str,
    template: &str,
) -> Result<Lowering> {
    let group = group(problem, target);
    let each = problem.inputs[0].ty.channels().div_ceil(group);
    let call = with_shape(problem, call).set("group", &group).set("each", &each);
    let call = call.local_mem_bytes(4 * group as u64);
    let global = [problem.inputs[0].ty.rows() * group, 1, 1];
    let launch = call.launch(entry, template, global, Some([group, 1, 1]))?;
    Ok(Lowering::of(launch))
}

/// One work-item for each row, the obvious loop.
pub(crate) fn lower_naive(
    problem: &Problem,
    call: Call,
    entry: &'static str,
    template: &str,
) -> Result<Lowering> {
    let global = [problem.inputs[0].ty.rows(), 1, 1];
    let launch = with_shape(problem, call).launch(entry, template, global, None)?;
    Ok(Lowering::of(launch))
}
