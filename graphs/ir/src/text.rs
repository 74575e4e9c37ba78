//! A stable text dump: one line a node, in topological order.
//!
//! ```text
//! graph unet
//! %x: f32[1,4,4,8] = input
//! %w: f32[16,8,1,1] = weight "conv.weight"[16,8,1,1]
//! %conv: f32[1,4,4,16] = conv2d(%x, %w) kernel=1 stride=1 padding=0
//! output y = %conv
//! ```

use crate::{Graph, IrError, NodeKind, Tensor, ValueId, WeightExpr};
use std::fmt::Write as _;

/// Number of elements of a literal that are shown. The others are counted.
const SHOWN_ELEMENTS: usize = 8;

/// The dump of a graph.
///
/// Errors: the graph has a cycle.
pub fn dump(graph: &Graph) -> Result<String, IrError> {
    let mut out = format!("graph {}\n", graph.name);
    for id in graph.topological()? {
        let _ = writeln!(out, "{}", line(graph, id));
    }
    for (name, value) in graph.outputs() {
        let _ = writeln!(out, "output {name} = %{}", graph.node(*value).name);
    }
    Ok(out)
}

/// The line of one node.
pub fn line(graph: &Graph, id: ValueId) -> String {
    let node = graph.node(id);
    let what = match &node.kind {
        NodeKind::Input => "input".to_string(),
        NodeKind::Weight(expr) => format!("weight {}", weight(expr)),
        NodeKind::Op(op) => {
            let operands: Vec<String> =
                graph.operands(id).iter().map(|v| format!("%{}", graph.node(*v).name)).collect();
            let call = format!("{}({})", op.name(), operands.join(", "));
            format!("{call} {}", op.attributes()).trim_end().to_string()
        }
    };
    format!("%{}: {} = {what}", node.name, node.ty)
}

/// A constant's expression: `"key"[shape]`, `literal[shape]{..}`, `cat(..)` along axis 0, or an
/// op over constants with their types.
pub fn weight(expr: &WeightExpr) -> String {
    match expr {
        WeightExpr::Tensor { key, shape } => format!("{key:?}{}", extents(shape)),
        WeightExpr::Literal(tensor) => literal(tensor),
        WeightExpr::Concat(parts) => {
            format!("cat({})", parts.iter().map(weight).collect::<Vec<_>>().join(", "))
        }
        WeightExpr::Apply(op, args) => {
            let args: Vec<String> =
                args.iter().map(|(arg, ty)| format!("{}: {ty}", weight(arg))).collect();
            format!("{}({}) {}", op.name(), args.join(", "), op.attributes()).trim_end().to_string()
        }
    }
}

fn literal(tensor: &Tensor) -> String {
    let shown: Vec<String> =
        tensor.data.iter().take(SHOWN_ELEMENTS).map(|v| v.to_string()).collect();
    let hidden = tensor.data.len() - shown.len();
    let rest = if hidden > 0 { format!(", {hidden} more") } else { String::new() };
    format!("literal{}{{{}{rest}}}", extents(&tensor.shape), shown.join(", "))
}

fn extents(shape: &[usize]) -> String {
    format!("[{}]", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorType;
    use crate::ops::{conv2d::Conv2d, pointwise::Add, pointwise::Silu, scale::Scale};

    #[test]
    fn one_line_a_node() {
        let mut g = Graph::new("net");
        let x = g.input("x", TensorType::f32(&[1, 1, 2, 2]));
        let w = g.tensor("conv.weight", &[2, 2], Some(&[2, 2, 1, 1]));
        let conv = g.push("conv", Conv2d::new(1, 1), &[x, w]).unwrap();
        let literal = WeightExpr::Literal(Tensor::new(&[2], vec![0.5, -1.0]));
        let apply = WeightExpr::Apply(
            Box::new(Scale { factor: 2.0 }.into()),
            vec![(
                WeightExpr::Tensor { key: "b".to_string(), shape: vec![2] },
                TensorType::f32(&[2]),
            )],
        );
        let both = WeightExpr::Concat(vec![literal, apply]);
        let b = g.weight("bias", both, TensorType::f32(&[4, 1]));
        let sum = g.push("sum", Add, &[conv, b]).unwrap();
        let y = g.push("y", Silu, &[sum]).unwrap();
        g.output("picture", y);
        let expected = r#"graph net
%x: f32[1,1,2,2] = input
%conv.weight: f32[2,2,1,1] = weight "conv.weight"[2,2]
%conv: f32[1,1,2,2] = conv2d(%x, %conv.weight) kernel=1 stride=1 padding=0
%bias: f32[4,1] = weight cat(literal[2]{0.5, -1}, scale("b"[2]: f32[2]) factor=2)
%sum: f32[1,1,2,2] = add(%conv, %bias)
%y: f32[1,1,2,2] = silu(%sum)
output picture = %y
"#;
        assert_eq!(dump(&g).unwrap(), expected);
    }

    #[test]
    fn long_literals_are_cut() {
        let expr = WeightExpr::Literal(Tensor::zeros(&[3, 4]));
        assert_eq!(weight(&expr), "literal[3,4]{0, 0, 0, 0, 0, 0, 0, 0, 4 more}");
    }
}
