//! Stores activations in FP16. Kernels compute in FP32 and round when they store (to nearest even,
//! relative error 2^-11).

use anyhow::Result;
use kiln_ir::{DType, Graph, Op};

/// Makes every computed `f32` value `f16`. Outputs of the network stay in `f32`, as the host reads
/// them. So do the scales and shifts of normalizations: they are few, and every element would carry
/// their rounding. Returns the number of changed values.
pub fn run(graph: &mut Graph) -> Result<usize> {
    let affine = |id| matches!(graph.node(id).op(), Some(Op::GroupAffine(_)));
    let computed: Vec<_> = super::ops_in_order(graph)?
        .into_iter()
        .filter(|id| !affine(*id))
        .filter(|id| graph.ty(*id).dtype == DType::F32 && !graph.is_output(*id))
        .collect();
    for id in &computed {
        graph.node_mut(*id).ty.dtype = DType::F16;
    }
    Ok(computed.len())
}
