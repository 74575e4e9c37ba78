//! Moves work on constants to compile time.
//!
//! An op whose operands are all constant becomes a constant expression. A scaling before a
//! contraction becomes a scaling of its weights (zero padding commutes with it).

use anyhow::Result;
use kiln_ir::{Graph, NodeKind, Op, ValueId, WeightExpr};

use super::contraction::ContractionNode;

/// Folds in topological order, so that sequences fold in one run.
pub fn run(graph: &mut Graph) -> Result<usize> {
    let mut changes = 0;
    for id in super::ops_in_order(graph)? {
        changes += usize::from(fold_op(graph, id) || fold_scale(graph, id)?);
    }
    Ok(changes)
}

fn expr(graph: &Graph, id: ValueId) -> Option<WeightExpr> {
    match &graph.node(id).kind {
        NodeKind::Weight(expr) => Some(expr.clone()),
        _ => None,
    }
}

fn fold_op(graph: &mut Graph, id: ValueId) -> bool {
    let operands = graph.operands(id);
    let args: Option<Vec<_>> =
        operands.iter().map(|o| Some((expr(graph, *o)?, graph.ty(*o).clone()))).collect();
    let (Some(args), Some(op)) = (args, graph.node(id).op().cloned()) else { return false };
    let node = graph.node(id);
    let (name, ty) = (format!("{}.folded", node.name), node.ty.clone());
    let folded = graph.weight(&name, WeightExpr::Apply(Box::new(op), args), ty);
    graph.replace_uses(id, folded);
    true
}

fn fold_scale(graph: &mut Graph, id: ValueId) -> Result<bool> {
    let Some(Op::Scale(scale)) = graph.node(id).op().cloned() else { return Ok(false) };
    let Some(user) = super::sole_user(graph, id) else { return Ok(false) };
    let Some(mut contraction) = ContractionNode::of(graph, user) else { return Ok(false) };
    let Some(weights) = expr(graph, contraction.weight) else { return Ok(false) };
    if contraction.sources != [id] {
        return Ok(false);
    }
    let ty = graph.ty(contraction.weight).clone();
    let name = format!("{}.scaled", graph.node(contraction.weight).name);
    let scaled = WeightExpr::Apply(Box::new(Op::Scale(scale)), vec![(weights, ty.clone())]);
    contraction.weight = graph.weight(&name, scaled, ty);
    contraction.sources = graph.operands(id);
    contraction.rewrite(graph, user)?;
    Ok(true)
}
