//! Moves additions into the epilogue of a contraction. A constant row is a bias, a computed row
//! is the timestep projection, and a value of the same shape is the residual.
//!
//! Runs twice: before activations are fused, because an epilogue adds bias and row first, and after
//! it, because the residual comes last.

use anyhow::Result;
use kiln_ir::ops::epilogue::Activation;
use kiln_ir::{Graph, Op, ValueId};

use super::contraction::ContractionNode;

/// Fuses every addition that one of its operands can absorb.
pub fn run(graph: &mut Graph) -> Result<usize> {
    let mut changes = 0;
    for add in super::ops_in_order(graph)? {
        if !matches!(graph.node(add).op(), Some(Op::Add(_))) {
            continue;
        }
        let operands = graph.operands(add);
        let (mut a, mut b) = (operands[0], operands[1]);
        // The shortcut of a residual block absorbs the addition and so is computed last. Its own
        // source is then the only other feature map in memory.
        let ops = (graph.node(a).op(), graph.node(b).op());
        if let (Some(Op::Conv2d(_)), Some(Op::Matmul(_))) = ops
            && graph.ty(a) == graph.ty(b)
        {
            (a, b) = (b, a);
        }
        if fuse(graph, add, a, b)? || (graph.ty(a) == graph.ty(b) && fuse(graph, add, b, a)?) {
            changes += 1;
        }
    }
    Ok(changes)
}

/// Fuses `producer + other` into `producer`, if it is a contraction without another reader.
fn fuse(graph: &mut Graph, add: ValueId, producer: ValueId, other: ValueId) -> Result<bool> {
    if super::sole_user(graph, producer) != Some(add) {
        return Ok(false);
    }
    let Some(mut c) = ContractionNode::of(graph, producer) else { return Ok(false) };
    let (own, ty) = (graph.ty(producer), graph.ty(other));
    let is_row = ty.elem_count() == own.channels() && ty.channels() == own.channels();
    if is_row && graph.node(other).is_weight() && c.is_bare() {
        c.bias = Some(other);
    } else if is_row && own.rows() > 1 && c.is_linear() && c.activation == Activation::None {
        c.row = Some((other, 0));
    } else if own.shape == ty.shape && c.residual.is_none() {
        c.residual = Some(other);
    } else {
        return Ok(false);
    }
    c.rewrite(graph, producer)?;
    graph.replace_uses(add, producer);
    Ok(true)
}
