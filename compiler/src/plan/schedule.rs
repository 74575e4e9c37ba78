//! The order of the ops of a network: a topological order that keeps the peak low.

use anyhow::Result;
use kiln_ir::{Graph, ValueId};
use std::collections::{BTreeSet, HashMap};

/// Ops in execution order: the order in which the graph was built, or the greedy order if its peak
/// is lower.
pub fn schedule(graph: &Graph) -> Result<Vec<ValueId>> {
    let built: Vec<ValueId> = ops(graph, graph.topological()?);
    let greedy = greedy(graph);
    Ok(if peak_bytes(graph, &greedy) < peak_bytes(graph, &built) { greedy } else { built })
}

fn ops(graph: &Graph, order: Vec<ValueId>) -> Vec<ValueId> {
    order.into_iter().filter(|id| graph.node(*id).op().is_some()).collect()
}

/// Operands that take memory: all except constants.
fn operands(graph: &Graph, id: ValueId) -> BTreeSet<ValueId> {
    graph.operands(id).into_iter().filter(|v| !graph.node(*v).is_weight()).collect()
}

/// Peak of an order: the largest sum of live values. Outputs of the graph stay live to the end.
fn peak_bytes(graph: &Graph, order: &[ValueId]) -> u64 {
    let mut left = readers(graph);
    let mut live: u64 = 0;
    let mut peak = 0;
    for id in order {
        live += graph.ty(*id).size_bytes();
        peak = peak.max(live);
        for operand in operands(graph, *id) {
            let count = left.get_mut(&operand).expect("operands have readers");
            *count -= 1;
            if *count == 0 && graph.node(operand).op().is_some() && !graph.is_output(operand) {
                live -= graph.ty(operand).size_bytes();
            }
        }
    }
    peak
}

fn readers(graph: &Graph) -> HashMap<ValueId, usize> {
    graph.ids().map(|id| (id, graph.users(id).len())).collect()
}

/// Always takes the ready op that grows the live set least. Ties go to the op that was built first.
fn greedy(graph: &Graph) -> Vec<ValueId> {
    let mut left = readers(graph);
    let mut waiting: HashMap<ValueId, usize> = HashMap::new();
    let mut ready = BTreeSet::new();
    for id in graph.ids().filter(|id| graph.node(*id).op().is_some()) {
        let count = operands(graph, id).iter().filter(|v| graph.node(**v).op().is_some()).count();
        waiting.insert(id, count);
        if count == 0 {
            ready.insert(id);
        }
    }
    let mut order = Vec::new();
    while let Some(next) = ready.iter().copied().min_by_key(|id| growth(graph, &left, *id)) {
        ready.remove(&next);
        order.push(next);
        for operand in operands(graph, next) {
            *left.get_mut(&operand).expect("operands have readers") -= 1;
        }
        for user in graph.users(next) {
            let count = waiting.get_mut(&user).expect("users are ops");
            *count -= 1;
            if *count == 0 {
                ready.insert(user);
            }
        }
    }
    order
}

fn growth(graph: &Graph, left: &HashMap<ValueId, usize>, id: ValueId) -> i64 {
    let freed: u64 = operands(graph, id)
        .into_iter()
        .filter(|v| left[v] == 1 && graph.node(*v).op().is_some() && !graph.is_output(*v))
        .map(|v| graph.ty(v).size_bytes())
        .sum();
    graph.ty(id).size_bytes() as i64 - freed as i64
}
