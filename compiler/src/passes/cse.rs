//! Common-subexpression elimination: ops with equal attributes and operands become one op, and
//! equal constants become one constant.

use anyhow::Result;
use kiln_ir::{Graph, NodeKind, ValueId};

/// Merges equal nodes in topological order, so that equal subgraphs collapse. Returns the number of
/// merged nodes.
pub fn run(graph: &mut Graph) -> Result<usize> {
    let mut kept: Vec<ValueId> = Vec::new();
    let mut changes = 0;
    for id in graph.topological()? {
        if matches!(graph.node(id).kind, NodeKind::Input) {
            continue;
        }
        let operands = graph.operands(id);
        let twin = kept.iter().copied().find(|k| {
            graph.ty(*k) == graph.ty(id)
                && graph.node(*k).kind == graph.node(id).kind
                && graph.operands(*k) == operands
        });
        match twin {
            Some(twin) => {
                graph.replace_uses(id, twin);
                changes += 1;
            }
            None => kept.push(id),
        }
    }
    Ok(changes)
}
