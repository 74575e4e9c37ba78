//! Keeps the largest feature maps out of memory. A convolution and each of its readers become a
//! chain, which recomputes the convolution, stripe by stripe, for this reader. Chains cost
//! arithmetic, so only the strategies for small budgets have them.

use anyhow::Result;
use kiln_ir::ops::chain::{Chain, Link, may_be_first};
use kiln_ir::ops::conv2d::Conv2d;
use kiln_ir::{Graph, Op, ValueId};

/// Largest number of weights of a chain's two ops. Both ops' weights are in memory together.
const MOST_WEIGHTS: usize = 1 << 20;

/// Chains every convolution whose result is at least half as large as the largest value of the
/// graph. Returns the number of removed results.
pub fn run(graph: &mut Graph) -> Result<usize> {
    let ops = super::ops_in_order(graph)?;
    let bytes = |graph: &Graph, id: &ValueId| graph.ty(*id).size_bytes();
    let largest = ops.iter().map(|id| bytes(graph, id)).max().unwrap_or(0);
    let mut changes = 0;
    for id in ops {
        let Some(first) = first(graph, id) else { continue };
        if 2 * bytes(graph, &id) < largest {
            continue;
        }
        let users = graph.users(id);
        let links: Option<Vec<Link>> = users.iter().map(|user| link(graph, id, *user)).collect();
        let Some(links) = links else { continue };
        for (user, second) in users.into_iter().zip(links) {
            let (between, own) = (graph.ty(id).dtype, graph.ty(user).dtype);
            let mut inputs = graph.operands(id);
            inputs.extend(graph.operands(user).into_iter().skip(1));
            graph.rewrite(user, Chain { first: first.clone(), between, second }, &inputs)?;
            graph.node_mut(user).ty.dtype = own;
        }
        changes += 1;
    }
    graph.remove_dead();
    Ok(changes)
}

fn first(graph: &Graph, id: ValueId) -> Option<Conv2d> {
    match graph.node(id).op() {
        Some(Op::Conv2d(op)) if may_be_first(op) && !graph.is_output(id) => Some(op.clone()),
        _ => None,
    }
}

/// A reader as the second op of a chain. `None` unless it reads the value once, as its only source,
/// and both ops have few weights.
fn link(graph: &Graph, value: ValueId, user: ValueId) -> Option<Link> {
    let operands = graph.operands(user);
    if operands.first() != Some(&value) || operands[1..].contains(&value) {
        return None;
    }
    let link = match graph.node(user).op()? {
        Op::GroupAffine(op) if op.sources == 1 => Link::GroupAffine(op.clone()),
        Op::Matmul(op) if op.sources == 1 => Link::Matmul(op.clone()),
        Op::Conv2d(op) if op.sources == 1 && !op.upsample && op.stride == 1 => {
            Link::Conv2d(op.clone())
        }
        _ => return None,
    };
    let weights = |id: ValueId| -> usize {
        let indices = graph.node(id).op().map(Op::weights).unwrap_or_default();
        indices.iter().map(|index| graph.ty(graph.operands(id)[*index]).elem_count()).sum()
    };
    (weights(value) + weights(user) <= MOST_WEIGHTS).then_some(link)
}
