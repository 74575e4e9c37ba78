//! Restores normalizations as separate ops, if a device normalizes a feature map in one launch.
//!
//! The opposite of `fuse_norm`. A fused normalization needs less memory, but an additional launch
//! that computes its scales and shifts. For a small feature map this launch takes longer than
//! writing and reading a normalized copy.

use anyhow::Result;
use kiln_ir::ops::group_norm::GroupNorm;
use kiln_ir::{Graph, Op, TensorType, ValueId};
use kiln_kernels::{Operand, Problem, candidates};

use super::Setting;
use super::contraction::ContractionNode;

/// Unfuses the normalizations that the target computes in one launch, if the copy fits into the
/// strategy's limit of scratch memory. In a variant for one branch of guidance these are the
/// normalizations of the denoiser for all, so that both have the same ops with constants.
pub fn run(graph: &mut Graph, setting: &Setting) -> Result<usize> {
    let Setting { strategy, profile, role } = setting;
    let rows = if role.is_conditional() { strategy.guidance_batch } else { 1 };
    let of_all = |ty: &TensorType| match ty.shape[..] {
        [batch, height, width, channels] => {
            TensorType::new(ty.dtype, &[rows * batch, height, width, channels])
        }
        _ => ty.clone(),
    };
    let max_scratch_bytes = strategy.scratch.limit_bytes();
    unfuse(graph, |graph, op, values| {
        let types: Vec<_> = values.iter().map(|v| of_all(graph.ty(*v))).collect();
        let Ok(output) = op.infer(&types.iter().collect::<Vec<_>>()) else { return false };
        let inputs: Vec<_> = types.into_iter().map(Operand::new).collect();
        let problem = Problem {
            op,
            inputs: &inputs,
            output: &output,
            max_weight_bytes: strategy.max_block_bytes,
            max_scratch_bytes,
        };
        let target = profile.target.tuned(&problem);
        output.size_bytes() <= max_scratch_bytes
            && candidates(&problem, &target).first().is_some_and(|v| v.one_launch)
    })
}

/// Unfuses every normalization for which `worth` returns true, given the op and its operands.
pub fn unfuse(graph: &mut Graph, worth: impl Fn(&Graph, &Op, &[ValueId]) -> bool) -> Result<usize> {
    let mut changes = 0;
    for id in super::ops_in_order(graph)? {
        let Some(mut conv) = ContractionNode::of(graph, id) else { continue };
        let Some((affine, activation)) = conv.prologue else { continue };
        let Some(Op::GroupAffine(op)) = graph.node(affine).op().cloned() else { continue };
        let norm = GroupNorm { sources: op.sources, groups: op.groups, eps: op.eps, activation };
        let norm = Op::GroupNorm(norm);
        let operands = graph.operands(affine);
        if super::sole_user(graph, affine) != Some(id) || !worth(graph, &norm, &operands) {
            continue;
        }
        let name = graph.node(affine).name.trim_end_matches(".affine").to_string();
        conv.sources = vec![graph.push(&name, norm, &operands)?];
        conv.prologue = None;
        conv.rewrite(graph, id)?;
        changes += 1;
    }
    graph.remove_dead();
    Ok(changes)
}
