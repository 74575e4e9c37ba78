//! Stores what a network computes in FP16. Kernels go on computing in FP32 and round when they
//! store (round to nearest even, relative error 2^-11).

use anyhow::Result;
use kiln_ir::{DType, Graph, Op};

/// Makes every computed `f32` value `f16`, but for the network's outputs, which the host reads, and
/// the few scales and shifts of normalizations, whose rounding every element would carry. Returns how many it changed.
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
