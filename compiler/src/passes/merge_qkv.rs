//! Merges the projections of an attention that read the same value into one contraction: q, k and v
//! of self-attention, k and v of cross-attention.

use anyhow::Result;
use kiln_ir::ops::attention::{Attention, Columns};
use kiln_ir::{Graph, NodeKind, Op, TensorType, ValueId, WeightExpr};

use super::contraction::ContractionNode;

/// Merges the projections of every attention in the graph.
pub fn run(graph: &mut Graph) -> Result<usize> {
    let mut changes = 0;
    for id in super::ops_in_order(graph)? {
        if let Some(Op::Attention(attention)) = graph.node(id).op().cloned() {
            changes += usize::from(merge(graph, id, attention)?);
        }
    }
    Ok(changes)
}

fn merge(graph: &mut Graph, id: ValueId, attention: Attention) -> Result<bool> {
    let inputs = graph.operands(id);
    let value = |c: Columns| inputs[c.input];
    let key = projection(graph, value(attention.k), id);
    let Some(key) = key else { return Ok(false) };
    let mates: Vec<ValueId> = [attention.q, attention.k, attention.v]
        .map(value)
        .into_iter()
        .filter(|v| {
            projection(graph, *v, id)
                .is_some_and(|p| p.sources == key.sources && p.bias.is_some() == key.bias.is_some())
        })
        .collect();
    let distinct = mates.iter().collect::<std::collections::BTreeSet<_>>().len();
    if mates.len() < 2 || distinct != mates.len() {
        return Ok(false);
    }
    let merged = merge_matmuls(graph, &mates, &format!("{}.merged", graph.node(mates[0]).name))?;
    let mut new_inputs: Vec<ValueId> = Vec::new();
    let mut place = |c: Columns| {
        let old = value(c);
        let (node, extra) = match mates.iter().position(|m| *m == old) {
            Some(i) => (merged, mates[..i].iter().map(|m| graph.ty(*m).channels()).sum()),
            None => (old, 0),
        };
        let input = new_inputs.iter().position(|v| *v == node).unwrap_or_else(|| {
            new_inputs.push(node);
            new_inputs.len() - 1
        });
        Columns { input, start: c.start + extra }
    };
    let (q, k, v) = (place(attention.q), place(attention.k), place(attention.v));
    graph.rewrite(id, Attention { q, k, v, ..attention }, &new_inputs)?;
    Ok(true)
}

/// A matmul with constant weights, at most a bias, and the attention as its only reader.
fn projection(graph: &Graph, value: ValueId, attention: ValueId) -> Option<ContractionNode> {
    let c = ContractionNode::of(graph, value)?;
    let constant =
        graph.node(c.weight).is_weight() && c.bias.is_none_or(|b| graph.node(b).is_weight());
    let alone = graph.users(value) == [attention] && !graph.is_output(value);
    (!c.is_conv() && c.is_linear() && constant && alone).then_some(c)
}

/// One matmul with the columns of `matmuls` in order. All must read the same sources and have
/// constant weights, and all or none must have a constant bias.
pub fn merge_matmuls(graph: &mut Graph, matmuls: &[ValueId], name: &str) -> Result<ValueId> {
    let parts: Vec<ContractionNode> = matmuls
        .iter()
        .map(|m| ContractionNode::of(graph, *m).expect("the caller chose contractions"))
        .collect();
    let columns = matmuls.iter().map(|m| graph.ty(*m).channels()).sum();
    let k = graph.ty(parts[0].weight).shape[1];
    let weights: Vec<ValueId> = parts.iter().map(|p| p.weight).collect();
    let weight = concat_weights(graph, &weights, &format!("{name}.weight"), &[columns, k]);
    let biases: Option<Vec<ValueId>> = parts.iter().map(|p| p.bias).collect();
    let bias = biases.map(|b| concat_weights(graph, &b, &format!("{name}.bias"), &[columns]));
    ContractionNode { weight, bias, ..parts[0].clone() }.push(graph, name)
}

fn concat_weights(graph: &mut Graph, parts: &[ValueId], name: &str, shape: &[usize]) -> ValueId {
    let exprs = parts
        .iter()
        .map(|p| match &graph.node(*p).kind {
            NodeKind::Weight(expr) => expr.clone(),
            _ => unreachable!("the caller chose constant weights"),
        })
        .collect();
    graph.weight(name, WeightExpr::Concat(exprs), TensorType::f32(shape))
}
