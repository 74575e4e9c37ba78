//! Merges all timestep projections into one contraction: matmuls that read the same single row, and
//! whose only readers take them as the row vector of an epilogue.

use anyhow::Result;
use kiln_ir::{Graph, ValueId};
use std::collections::BTreeMap;

use super::contraction::ContractionNode;
use super::merge_qkv::merge_matmuls;

/// Merges each group of two or more projections.
pub fn run(graph: &mut Graph) -> Result<usize> {
    let mut groups: BTreeMap<(Vec<ValueId>, bool), Vec<ValueId>> = BTreeMap::new();
    for id in super::ops_in_order(graph)? {
        if let Some(c) = row_projection(graph, id) {
            groups.entry((c.sources.clone(), c.bias.is_some())).or_default().push(id);
        }
    }
    let mut changes = 0;
    for rows in groups.into_values().filter(|rows| rows.len() > 1) {
        let name = format!("{}.merged", graph.node(rows[0]).name);
        let merged = merge_matmuls(graph, &rows, &name)?;
        let mut offset = 0;
        for row in rows {
            for user in graph.users(row) {
                let mut c = ContractionNode::of(graph, user).expect("checked by row_projection");
                c.row = c.row.map(|(_, start)| (merged, offset + start));
                c.rewrite(graph, user)?;
            }
            offset += graph.ty(row).channels();
            changes += 1;
        }
    }
    Ok(changes)
}

fn row_projection(graph: &Graph, id: ValueId) -> Option<ContractionNode> {
    let c = ContractionNode::of(graph, id)?;
    let constant =
        graph.node(c.weight).is_weight() && c.bias.is_none_or(|b| graph.node(b).is_weight());
    let only_rows = graph.users(id).iter().all(|user| {
        ContractionNode::of(graph, *user).is_some_and(|u| {
            let others = graph.operands(*user).iter().filter(|v| **v == id).count();
            u.row.is_some_and(|(v, _)| v == id) && others == 1
        })
    });
    let single = graph.ty(id).rows() == 1 && !graph.is_output(id);
    (!c.is_conv() && c.is_linear() && constant && single && only_rows).then_some(c)
}
