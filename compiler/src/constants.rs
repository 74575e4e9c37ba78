//! Constants of a graph: their tensors in the checkpoint, and their values.

use anyhow::{Context, Result, bail};
use kiln_ir::{Graph, NodeKind, Tensor, TensorType, WeightExpr, reference};

use crate::model::{GUIDANCE_BRANCHES, Model, parts};
use crate::weights::{Requirement, TensorSource, check};

/// Checks that the checkpoint has every tensor that the graphs read, with its shape.
///
/// Errors: one error that lists all missing tensors and all tensors of another shape.
pub fn check_tensors<'a>(
    graphs: impl Iterator<Item = &'a Graph>,
    source: &dyn TensorSource,
) -> Result<()> {
    check(source, &required(graphs))
}

/// The tensors that graphs read, sorted by name.
fn required<'a>(graphs: impl Iterator<Item = &'a Graph>) -> Vec<Requirement> {
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
    required
}

/// A tensor of the checkpoint whose name begins with `prefix` and that the model does not read.
pub fn unread_tensor(
    model: &dyn Model,
    source: &dyn TensorSource,
    prefix: &str,
) -> Result<Option<String>> {
    let required = required(parts(model, 1, 1)?.iter().map(|part| &part.graph));
    let is_read = |name: &str| required.binary_search_by(|r| r.name.as_str().cmp(name)).is_ok();
    let mut names = source.tensors().iter().map(|tensor| &tensor.name);
    Ok(names.find(|name| name.starts_with(prefix) && !is_read(name)).cloned())
}

/// [`check_tensors`] for a model, before anything is planned.
pub fn check_model(model: &dyn Model, source: &dyn TensorSource) -> Result<()> {
    check_tensors(
        parts(model, GUIDANCE_BRANCHES, GUIDANCE_BRANCHES)?.iter().map(|part| &part.graph),
        source,
    )
}

/// The values of a constant.
///
/// Errors: the checkpoint lacks a tensor; a read fails; a value is not finite.
pub fn evaluate(expr: &WeightExpr, ty: &TensorType, source: &dyn TensorSource) -> Result<Tensor> {
    let value = reference::weight(expr, ty, &|key| {
        let info = source.info(key).with_context(|| format!("no tensor {key}"))?;
        let values = source.read_f32(key)?;
        check_finite(source, key, 0, &values)?;
        Ok(Tensor::new(&info.shape, values))
    })?;
    check_finite(source, &name(expr), 0, &value.data)?;
    Ok(value)
}

/// Checks values of a tensor from index `first` on.
///
/// Errors: a value is not finite; the error names the tensor and the value's place.
pub fn check_finite(
    source: &dyn TensorSource,
    key: &str,
    first: usize,
    values: &[f32],
) -> Result<()> {
    let Some(index) = values.iter().position(|value| !value.is_finite()) else { return Ok(()) };
    bail!(
        "{}: value {} of `{key}` is {}; the checkpoint is damaged, get it again",
        source.path().display(),
        first + index,
        values[index]
    )
}

/// The name of a constant: its tensors in the checkpoint.
pub fn name(expr: &WeightExpr) -> String {
    expr.tensors().into_iter().map(|(key, _)| key).collect::<Vec<_>>().join(" + ")
}
