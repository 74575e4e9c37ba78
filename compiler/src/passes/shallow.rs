//! Splits a variant of outer levels from the U-Net.
//!
//! The value of the inner levels, the output `deep` of the graph, changes little from step to step.
//! The variant takes it from an earlier pass of the U-Net and computes only the ops that need the
//! latent itself. Source: DeepCache (Ma et al. 2023, arXiv:2312.00858).

use anyhow::Result;
use kiln_bundle::plan::Role;
use kiln_ir::{Graph, ValueId};
use std::collections::BTreeSet;

use super::hoist::extract;
use crate::model::{DEEP, NetworkGraph};

/// Adds the variant behind a U-Net with an output [`DEEP`]. Leaves other networks unchanged.
pub fn run(network: &NetworkGraph) -> Result<Vec<NetworkGraph>> {
    let mut parts = vec![network.clone()];
    let outputs = network.graph.outputs();
    let deep = outputs.iter().find(|(name, _)| name == DEEP).map(|(_, value)| *value);
    if let (Role::Denoiser, Some(deep), [(_, first), ..]) = (network.role, deep, outputs) {
        let name = format!("{}_shallow", network.name);
        let set = above(&network.graph, *first, deep);
        let (graph, _) = extract(&network.graph, &name, &set, None)?;
        parts.push(NetworkGraph { name, role: Role::ShallowDenoiser, graph });
    }
    Ok(parts)
}

/// The ops that a value needs if another one is given.
fn above(graph: &Graph, value: ValueId, given: ValueId) -> BTreeSet<ValueId> {
    let (mut ops, mut next) = (BTreeSet::new(), vec![value]);
    while let Some(id) = next.pop() {
        if id != given && graph.node(id).op().is_some() && ops.insert(id) {
            next.extend(graph.operands(id));
        }
    }
    ops
}
