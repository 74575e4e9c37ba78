//! Chooses the storage of each contraction's weights under INT8.
//!
//! The measure is the relative L2 error of a tensor's weights. One scale an output channel costs a
//! kernel nothing, so it is taken if the error is at most [`LIMIT`]. Otherwise the tensor gets the
//! largest scale groups that every kernel can read and that keep the limit. If none does, it stays
//! in FP16. This happens before planning, because the plan depends on sizes.

use anyhow::{Context, Result};
use kiln_bundle::rationale::StoredWeight;
use kiln_ir::{DType, Graph, NodeKind, ValueId, WeightExpr};
use kiln_kernels::{contraction::SCALE_GROUPS, quantize::relative_error};
use std::collections::BTreeMap;

use crate::constants::{check_tensors, evaluate, name};
use crate::model::{GUIDANCE_BRANCHES, Model, NetworkGraph, parts};
use crate::passes::{self, contraction::ContractionNode};
use crate::weights::TensorSource;

/// Largest relative L2 error of a tensor's weights. Normally distributed weights with one scale for
/// a few thousand have errors of 0.8 to 0.9 %. Tensors with larger errors have outliers.
pub const LIMIT: f64 = 1.0e-2;

/// Storage of a constant.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Stored {
    /// Element type.
    pub dtype: DType,
    /// For INT8, the size of a scale group along K; `None` for one scale an output channel.
    pub scale_group: Option<usize>,
    /// Relative L2 error of the stored values; `None` if it was not measured.
    pub relative_error: Option<f64>,
}

/// Measured storage of contractions' weights, by name.
#[derive(Clone, Default, Debug)]
pub struct Choices(BTreeMap<String, Stored>);

impl Choices {
    /// The choices of a recorded plan.
    pub fn recorded(weights: &[StoredWeight]) -> Self {
        let entry = |weight: &StoredWeight| {
            let dtype = match weight.dtype {
                kiln_bundle::plan::ElementType::F32 => DType::F32,
                kiln_bundle::plan::ElementType::F16 => DType::F16,
                kiln_bundle::plan::ElementType::I8 => DType::I8,
                kiln_bundle::plan::ElementType::I32 => DType::I32,
            };
            let sum: u32 = weight.shape.iter().skip(1).product();
            let scale_group =
                weight.block.filter(|group| *group != sum).map(|group| group as usize);
            let stored = Stored { dtype, scale_group, relative_error: weight.relative_error };
            (weight.name.clone(), stored)
        };
        Self(weights.iter().map(entry).collect())
    }

    /// The choice for a constant. Without a measurement, INT8 with one scale an output channel is
    /// assumed.
    pub fn of(&self, expr: &WeightExpr) -> Stored {
        let assumed = Stored { dtype: DType::I8, scale_group: None, relative_error: None };
        self.0.get(&name(expr)).copied().unwrap_or(assumed)
    }
}

/// Sizes of scale groups that divide the channels of every source, largest first.
pub fn scale_groups(graph: &Graph, contraction: &ContractionNode) -> impl Iterator<Item = usize> {
    let channels: Vec<_> = contraction.sources.iter().map(|s| graph.ty(*s).channels()).collect();
    SCALE_GROUPS.into_iter().filter(move |group| channels.iter().all(|c| c.is_multiple_of(*group)))
}

/// The optimized graphs of a model's parts. They have the weights of every plan.
pub fn weight_graphs(model: &dyn Model) -> Result<Vec<Graph>> {
    let mut graphs = Vec::new();
    for NetworkGraph { mut graph, .. } in parts(model, GUIDANCE_BRANCHES, GUIDANCE_BRANCHES)? {
        passes::optimize(&mut graph)?;
        graphs.push(graph);
    }
    Ok(graphs)
}

/// The contractions of some graphs with constant weights, each weight once.
fn contractions(graphs: &[Graph]) -> BTreeMap<String, (&Graph, ContractionNode)> {
    let mut found = BTreeMap::new();
    for graph in graphs {
        for contraction in graph.ids().filter_map(|id| ContractionNode::of(graph, id)) {
            if let NodeKind::Weight(expr) = &graph.node(contraction.weight).kind {
                found.entry(name(expr)).or_insert((graph, contraction));
            }
        }
    }
    found
}

/// Bytes of all weights that [`measure`] reads, in `f32`. The unit of its progress.
pub fn measured_bytes(graphs: &[Graph]) -> u64 {
    contractions(graphs).values().map(|(graph, c)| graph.ty(c.weight).size_bytes()).sum()
}

/// Measures the weights of all contractions, one constant at a time.
///
/// `progress` is called with the bytes measured so far.
///
/// Errors: tensors that the checkpoint lacks or has in another shape, all in one error; a failed
/// read.
pub fn measure(
    graphs: &[Graph],
    source: &dyn TensorSource,
    progress: &mut dyn FnMut(u64),
) -> Result<Choices> {
    check_tensors(graphs.iter(), source)?;
    let mut choices = Choices::default();
    let mut bytes = 0;
    for (name, (graph, contraction)) in contractions(graphs) {
        let stored = choose(graph, &contraction, contraction.weight, source)
            .with_context(|| format!("measuring {name}"))?;
        choices.0.insert(name, stored);
        bytes += graph.ty(contraction.weight).size_bytes();
        progress(bytes);
    }
    Ok(choices)
}

fn choose(
    graph: &Graph,
    contraction: &ContractionNode,
    weight: ValueId,
    source: &dyn TensorSource,
) -> Result<Stored> {
    let NodeKind::Weight(expr) = &graph.node(weight).kind else { unreachable!("a constant") };
    let tensor = evaluate(expr, graph.ty(weight), source)?;
    let whole = tensor.data.len() / tensor.shape[0];
    let candidates = std::iter::once(None).chain(scale_groups(graph, contraction).map(Some));
    for scale_group in candidates {
        let error = relative_error(&tensor.shape, &tensor.data, scale_group.unwrap_or(whole));
        if error <= LIMIT {
            return Ok(Stored { dtype: DType::I8, scale_group, relative_error: Some(error) });
        }
    }
    let (mut errors, mut squares) = (0.0f64, 0.0f64);
    for v in &tensor.data {
        let d = f64::from(v - half::f16::from_f32(*v).to_f32());
        errors += d * d;
        squares += f64::from(*v) * f64::from(*v);
    }
    let relative_error = if squares == 0.0 { 0.0 } else { (errors / squares).sqrt() };
    Ok(Stored { dtype: DType::F16, scale_group: None, relative_error: Some(relative_error) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{StoredType, TensorInfo};
    use kiln_ir::TensorType;
    use kiln_ir::ops::epilogue::Epilogue;
    use kiln_ir::ops::matmul::Matmul;
    use std::path::Path;

    /// `[1, 256]` matrices in memory.
    #[derive(Debug)]
    struct Rows(Vec<TensorInfo>, Vec<Vec<f32>>);

    impl TensorSource for Rows {
        fn path(&self) -> &Path {
            Path::new("rows")
        }
        fn tensors(&self) -> &[TensorInfo] {
            &self.0
        }
        fn read_index(&self, index: usize, start: usize, out: &mut [f32]) -> Result<()> {
            out.copy_from_slice(&self.1[index][start..start + out.len()]);
            Ok(())
        }
    }

    /// The choice for a row of `k` weights.
    fn chosen(k: usize, weights: impl Fn(usize) -> f32) -> Stored {
        let info = TensorInfo { name: "w".into(), dtype: StoredType::F32, shape: vec![1, k] };
        let source = Rows(vec![info], vec![(0..k).map(weights).collect()]);
        let mut graph = Graph::new("test");
        let x = graph.input("x", TensorType::f32(&[1, 3, k]));
        let expr = WeightExpr::Tensor { key: "w".into(), shape: vec![1, k] };
        let w = graph.weight("w", expr.clone(), TensorType::f32(&[1, k]));
        let y =
            graph.push("y", Matmul { sources: 1, epilogue: Epilogue::default() }, &[x, w]).unwrap();
        graph.output("y", y);
        measure(&[graph], &source, &mut |_| {}).unwrap().of(&expr)
    }

    fn wave(i: usize) -> f32 {
        (i as f32 * 1.7).sin()
    }

    fn with_outlier(i: usize) -> f32 {
        if i == 7 { 10.0 } else { wave(i) }
    }

    #[test]
    fn even_weights_have_one_scale_an_output_channel() {
        let stored = chosen(256, wave);
        assert_eq!((stored.dtype, stored.scale_group), (DType::I8, None));
        assert!(stored.relative_error.unwrap() < 0.5e-2);
    }

    #[test]
    fn an_outlier_asks_for_blocks() {
        let stored = chosen(256, with_outlier);
        assert_eq!((stored.dtype, stored.scale_group), (DType::I8, Some(32)), "{stored:?}");
        assert!(stored.relative_error.unwrap() <= LIMIT);
    }

    #[test]
    fn an_outlier_among_channels_that_no_block_divides_asks_for_fp16() {
        let stored = chosen(100, with_outlier);
        assert_eq!((stored.dtype, stored.scale_group), (DType::F16, None), "{stored:?}");
        assert!(stored.relative_error.unwrap() < 5e-4);
    }

    #[test]
    fn what_was_not_measured_is_assumed_to_be_int8() {
        let expr = WeightExpr::Tensor { key: "other".into(), shape: vec![1, 100] };
        assert_eq!(Choices::default().of(&expr).dtype, DType::I8);
    }
}
