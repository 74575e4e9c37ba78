//! Lets a convolution normalize its source. No normalized copy is in memory.
//!
//! A group normalization whose only reader is a convolution becomes one scale and one shift a
//! channel, the convolution's prologue. 1x1 convolutions keep the normalization as an op, because
//! they read each element once, many rows at a time.

use anyhow::Result;
use kiln_ir::ops::group_affine::GroupAffine;
use kiln_ir::{Graph, Op};

use super::contraction::ContractionNode;

/// Fuses every group normalization, with its activation, into the convolution that is its only
/// reader.
pub fn run(graph: &mut Graph) -> Result<usize> {
    let mut changes = 0;
    for id in super::ops_in_order(graph)? {
        let Some(Op::GroupNorm(norm)) = graph.node(id).op().cloned() else { continue };
        let Some(user) = super::sole_user(graph, id) else { continue };
        let Some(Op::Conv2d(op)) = graph.node(user).op() else { continue };
        if op.kernel == 1 || op.prologue.is_some() {
            continue;
        }
        let Some(mut conv) = ContractionNode::of(graph, user) else { continue };
        if conv.sources != [id] {
            continue;
        }
        let operands = graph.operands(id);
        let affine = GroupAffine { sources: norm.sources, groups: norm.groups, eps: norm.eps };
        let name = format!("{}.affine", graph.node(id).name);
        let affine = graph.push(&name, affine, &operands)?;
        conv.sources = operands[..norm.sources].to_vec();
        conv.prologue = Some((affine, norm.activation));
        conv.rewrite(graph, user)?;
        changes += 1;
    }
    Ok(changes)
}
