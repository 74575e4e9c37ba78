//! Constants of a graph: the tensors of the checkpoint that they are made of, and their values.

use anyhow::{Context, Result};
use kiln_ir::{Graph, NodeKind, Tensor, TensorType, WeightExpr, reference};

use crate::weights::{Requirement, TensorSource, check};

/// Checks that the checkpoint has every tensor that the graphs read, with its shape.
///
/// Errors: the tensors that it lacks or has in another shape, all in one error.
pub fn check_tensors<'a>(
    graphs: impl Iterator<Item = &'a Graph>,
    source: &dyn TensorSource,
) -> Result<()> {
    let mut required: Vec<Requirement> = Vec::new();
    for graph in graphs {
        for id in graph.ids() {
            if let NodeKind::Weight(expr) = &graph.node(id).kind {
                let tensors = expr.tensors().into_iter();
                required.extend(tensors.map(|(key, shape)| Requirement {
                    name: key.to_string(),
                    shape: shape.to_vec(),
                }));
            }
        }
    }
    required.sort_by(|a, b| a.name.cmp(&b.name));
    required.dedup();
    check(source, &required)
}

/// A constant's values.
///
/// Errors: a tensor that the checkpoint lacks; a failed read.
pub fn evaluate(expr: &WeightExpr, ty: &TensorType, source: &dyn TensorSource) -> Result<Tensor> {
    Ok(reference::weight(expr, ty, &|key| {
        let info = source.info(key).with_context(|| format!("no tensor {key}"))?;
        Ok(Tensor::new(&info.shape, source.read_f32(key)?))
    })?)
}

/// A constant's name: its tensors in the checkpoint.
pub fn name(expr: &WeightExpr) -> String {
    expr.tensors().into_iter().map(|(key, _)| key).collect::<Vec<_>>().join(" + ")
}
