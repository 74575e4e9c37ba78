//! Lets contractions and group normalizations read two feature maps as one. The concatenation is
//! never in memory.

use anyhow::Result;
use kiln_ir::ops::group_norm::GroupNorm;
use kiln_ir::{Graph, Op, ValueId};

use super::contraction::ContractionNode;

/// Largest number of values that a kernel reads as one.
const MAX_SOURCES: usize = 2;

/// Folds every `concat` of two values into the readers that support it.
pub fn run(graph: &mut Graph) -> Result<usize> {
    let mut changes = 0;
    for id in super::ops_in_order(graph)? {
        let parts = graph.operands(id);
        if !matches!(graph.node(id).op(), Some(Op::Concat(_))) || parts.len() > MAX_SOURCES {
            continue;
        }
        for user in graph.users(id) {
            changes += usize::from(fold_into(graph, user, id, &parts)?);
        }
    }
    Ok(changes)
}

fn fold_into(graph: &mut Graph, user: ValueId, id: ValueId, parts: &[ValueId]) -> Result<bool> {
    if let Some(mut contraction) = ContractionNode::of(graph, user) {
        if contraction.sources != [id] || contraction.upsample {
            return Ok(false);
        }
        contraction.sources = parts.to_vec();
        contraction.rewrite(graph, user)?;
        return Ok(true);
    }
    let Some(Op::GroupNorm(norm)) = graph.node(user).op().cloned() else { return Ok(false) };
    let operands = graph.operands(user);
    if norm.sources != 1 || operands[0] != id {
        return Ok(false);
    }
    let inputs = [parts, &operands[1..]].concat();
    graph.rewrite(user, GroupNorm { sources: parts.len(), ..norm }, &inputs)?;
    Ok(true)
}
