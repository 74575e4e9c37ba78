//! Stores activations in FP16. Kernels compute in FP32 and round to nearest even when they store
//! (relative error 2^-11).

use anyhow::Result;
use kiln_ir::{DType, Graph, Op};

/// Changes every computed `f32` value to `f16`, with two exceptions. The first output of the network
/// stays in `f32`, because the host reads it. Scales and shifts of normalizations stay in `f32`: they are
/// few, and their rounding would affect every element. Returns the number of changed values.
pub fn run(graph: &mut Graph) -> Result<usize> {
    let affine = |id| matches!(graph.node(id).op(), Some(Op::GroupAffine(_)));
    let first = graph.outputs().first().map(|(_, id)| *id);
    let computed: Vec<_> = super::ops_in_order(graph)?
        .into_iter()
        .filter(|id| !affine(*id))
        .filter(|id| graph.ty(*id).dtype == DType::F32 && Some(*id) != first)
        .collect();
    for id in &computed {
        graph.node_mut(*id).ty.dtype = DType::F16;
    }
    Ok(computed.len())
}
