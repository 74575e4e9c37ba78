//! Moves activations into the epilogue of the contraction, or into the normalization, before them.

use anyhow::Result;
use kiln_ir::ops::epilogue::Activation;
use kiln_ir::{Graph, Op};

use super::contraction::ContractionNode;

/// Fuses every op that is an [`Activation`].
pub fn run(graph: &mut Graph) -> Result<usize> {
    let mut changes = 0;
    for id in super::ops_in_order(graph)? {
        let Some(user) = super::sole_user(graph, id) else { continue };
        let Some(activation) = graph.node(user).op().and_then(Activation::of) else { continue };
        let operands = graph.operands(id);
        if let Some(Op::GroupNorm(norm)) = graph.node(id).op().cloned() {
            if activation != Activation::Silu || norm.activation != Activation::None {
                continue;
            }
            let fused = kiln_ir::ops::group_norm::GroupNorm { activation, ..norm };
            graph.rewrite(id, fused, &operands)?;
        } else if let Some(mut contraction) = ContractionNode::of(graph, id) {
            if contraction.activation != Activation::None || contraction.residual.is_some() {
                continue;
            }
            contraction.activation = activation;
            contraction.rewrite(graph, id)?;
        } else {
            continue;
        }
        graph.replace_uses(user, id);
        changes += 1;
    }
    Ok(changes)
}
