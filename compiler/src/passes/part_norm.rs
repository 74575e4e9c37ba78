//! Makes normalizations ops of their own again, where a device normalizes a picture in one launch.
//!
//! The opposite of `fuse_norm`, which saves memory but finds scales and shifts in a launch before that
//! of the convolution: for a small picture a launch takes longer than its second copy.

use anyhow::Result;
use kiln_ir::ops::group_norm::GroupNorm;
use kiln_ir::{Graph, Op, ValueId};

use super::contraction::ContractionNode;

/// Parts every convolution from its normalization for which `worth` says so, given the normalization
/// and its operands.
pub fn run(graph: &mut Graph, worth: impl Fn(&Graph, &Op, &[ValueId]) -> bool) -> Result<usize> {
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
