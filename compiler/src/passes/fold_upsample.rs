//! Lets a convolution read a feature map doubled by nearest neighbour. The doubled feature map is
//! never in memory.

use anyhow::Result;
use kiln_ir::{Graph, Op};

use super::contraction::ContractionNode;

/// Folds every `upsample` into the convolutions that read it.
pub fn run(graph: &mut Graph) -> Result<usize> {
    let mut changes = 0;
    for id in super::ops_in_order(graph)? {
        if !matches!(graph.node(id).op(), Some(Op::Upsample(_))) {
            continue;
        }
        let source = graph.operands(id);
        for user in graph.users(id) {
            let Some(mut conv) = ContractionNode::of(graph, user) else { continue };
            if conv.is_conv() && !conv.upsample && conv.sources == [id] {
                (conv.upsample, conv.sources) = (true, source.clone());
                conv.rewrite(graph, user)?;
                changes += 1;
            }
        }
    }
    Ok(changes)
}
