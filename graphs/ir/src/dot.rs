//! The graph in the language of Graphviz.

use crate::{Graph, NodeKind};
use std::fmt::Write as _;

/// A `digraph` of inputs, ops and outputs. Constants are included if `weights` is true.
pub fn dot(graph: &Graph, weights: bool) -> String {
    let mut out = format!("digraph {} {{\n  node [shape=box];\n", quoted(&graph.name));
    for id in graph.ids() {
        let node = graph.node(id);
        let (what, style) = match &node.kind {
            NodeKind::Input => ("input", " style=rounded"),
            NodeKind::Weight(_) if !weights => continue,
            NodeKind::Weight(_) => ("weight", " shape=plain"),
            NodeKind::Op(op) => (op.name(), ""),
        };
        let label = quoted(&format!("{}\n{what} {}", node.name, node.ty));
        let _ = writeln!(out, "  n{} [label={label}{style}];", id.index());
        for operand in graph.operands(id) {
            if weights || !graph.node(operand).is_weight() {
                let _ = writeln!(out, "  n{} -> n{};", operand.index(), id.index());
            }
        }
    }
    for (i, (name, value)) in graph.outputs().iter().enumerate() {
        let _ = writeln!(out, "  out{i} [label={} style=rounded];", quoted(name));
        let _ = writeln!(out, "  n{} -> out{i};", value.index());
    }
    out + "}\n"
}

fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorType;
    use crate::ops::pointwise::Add;

    #[test]
    fn constants_are_drawn_on_demand() {
        let mut g = Graph::new("a \"net\"");
        let x = g.input("x", TensorType::f32(&[1, 2]));
        let w = g.tensor("w", &[2], None);
        let y = g.push("y", Add, &[x, w]).unwrap();
        g.output("out", y);
        let expected = r#"digraph "a \"net\"" {
  node [shape=box];
  n0 [label="x\ninput f32[1,2]" style=rounded];
  n2 [label="y\nadd f32[1,2]"];
  n0 -> n2;
  out0 [label="out" style=rounded];
  n2 -> out0;
}
"#;
        assert_eq!(dot(&g, false), expected);
        assert!(dot(&g, true).contains("n1 -> n2;"));
    }
}
