//! The structural verifier, run after every pass.

use crate::{Graph, IrError, Node, NodeKind, TensorType, ValueId};
use std::collections::HashSet;

/// Checks the rules of a well-formed graph:
///
/// - names of nodes and of outputs are unique and not empty, and an output exists;
/// - outputs name nodes of the graph;
/// - inputs and constants read nothing; an op's operands fill the slots `0..n`, each once;
/// - an op's type is the type inferred from its operands; the element type may be another float,
///   because the storage type of a value is chosen independently of its shape;
/// - there is no cycle.
///
/// Errors name the node.
pub fn verify(graph: &Graph) -> Result<(), IrError> {
    graph.topological()?;
    let mut names = HashSet::new();
    for id in graph.ids() {
        let node = graph.node(id);
        let broken = |what: String| IrError::Graph { node: node.name.clone(), what };
        if node.name.is_empty() || !names.insert(node.name.as_str()) {
            return Err(broken("the name is empty or taken".to_string()));
        }
        check_node(graph, id, node).map_err(broken)?;
    }
    check_outputs(graph)
}

fn check_node(graph: &Graph, id: ValueId, node: &Node) -> Result<(), String> {
    let slots = graph.operand_slots(id);
    if !slots.iter().copied().eq(0..slots.len()) {
        return Err(format!("operands fill the slots {slots:?}"));
    }
    let NodeKind::Op(op) = &node.kind else {
        return if slots.is_empty() {
            Ok(())
        } else {
            Err(format!("it is not an op, but reads {} values", slots.len()))
        };
    };
    let operands: Vec<&TensorType> = graph.operands(id).iter().map(|v| graph.ty(*v)).collect();
    let inferred = op.infer(&operands).map_err(|e| e.to_string())?;
    if inferred.shape != node.ty.shape || !same_kind(&inferred, &node.ty) {
        return Err(format!("its type is {}, its operands give {inferred}", node.ty));
    }
    Ok(())
}

fn same_kind(a: &TensorType, b: &TensorType) -> bool {
    a.dtype == b.dtype || (a.dtype.is_float() && b.dtype.is_float())
}

fn check_outputs(graph: &Graph) -> Result<(), IrError> {
    let broken = |what: &str| IrError::Graph { node: graph.name.clone(), what: what.to_string() };
    if graph.outputs().is_empty() {
        return Err(broken("the graph has no output"));
    }
    let ids: HashSet<ValueId> = graph.ids().collect();
    let mut names = HashSet::new();
    for (name, value) in graph.outputs() {
        if !ids.contains(value) {
            return Err(broken(&format!("output '{name}' is not a node")));
        }
        if name.is_empty() || !names.insert(name) {
            return Err(broken(&format!("the output name '{name}' is empty or taken")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{pointwise::Add, pointwise::Silu, slice::Slice};
    use crate::{DType, Op};

    fn graph() -> (Graph, ValueId, ValueId) {
        let mut g = Graph::new("g");
        let x = g.input("x", TensorType::f32(&[2, 4]));
        let y = g.push("y", Silu, &[x]).unwrap();
        let z = g.push("z", Add, &[x, y]).unwrap();
        g.output("out", z);
        (g, x, y)
    }

    fn message(g: &Graph) -> String {
        verify(g).unwrap_err().to_string()
    }

    #[test]
    fn a_built_graph_is_well_formed() {
        verify(&graph().0).unwrap();
    }

    #[test]
    fn a_changed_type_is_found() {
        let (mut g, _, y) = graph();
        g.node_mut(y).ty = TensorType::f32(&[8]);
        assert_eq!(message(&g), "node 'y': its type is f32[8], its operands give f32[2,4]");
        g.node_mut(y).ty = TensorType::new(DType::I32, &[2, 4]);
        assert_eq!(message(&g), "node 'y': its type is i32[2,4], its operands give f32[2,4]");
    }

    #[test]
    fn storage_type_is_free_among_floats() {
        let (mut g, _, y) = graph();
        g.node_mut(y).ty = TensorType::new(DType::F16, &[2, 4]);
        verify(&g).unwrap();
    }

    #[test]
    fn a_changed_op_is_found() {
        let (mut g, _, y) = graph();
        g.node_mut(y).kind = NodeKind::Op(Op::Slice(Slice { start: 3, len: 2 }));
        assert_eq!(message(&g), "node 'y': slice: columns 3+2 of f32[2,4]");
    }

    #[test]
    fn an_input_that_reads_is_found() {
        let (mut g, _, y) = graph();
        g.node_mut(y).kind = NodeKind::Input;
        assert_eq!(message(&g), "node 'y': it is not an op, but reads 1 values");
    }

    #[test]
    fn a_missing_operand_is_found() {
        let (mut g, x, y) = graph();
        let other = g.push("other", Add, &[x, y]).unwrap();
        g.output("other", other);
        g.node_mut(y).kind = NodeKind::Op(Op::Add(Add));
        assert_eq!(message(&g), "node 'y': add: takes 2 inputs, got 1");
    }

    #[test]
    fn a_cycle_is_found() {
        let (mut g, x, y) = graph();
        let z = g.outputs()[0].1;
        g.rewrite(y, Add, &[x, z]).unwrap();
        assert_eq!(message(&g), "node 'g': the graph has a cycle");
    }

    #[test]
    fn names_and_outputs_are_unique() {
        let (mut g, _, y) = graph();
        g.output("out", y);
        assert_eq!(message(&g), "node 'g': the output name 'out' is empty or taken");
        let (mut g, _, y) = graph();
        g.node_mut(y).name = "x".to_string();
        assert_eq!(message(&g), "node 'x': the name is empty or taken");
    }

    #[test]
    fn an_output_exists_and_is_a_node() {
        let mut g = Graph::new("g");
        g.input("x", TensorType::f32(&[1]));
        assert_eq!(message(&g), "node 'g': the graph has no output");
        let (bigger, _, _) = graph();
        g.output("far", bigger.outputs()[0].1);
        assert_eq!(message(&g), "node 'g': output 'far' is not a node");
    }
}
