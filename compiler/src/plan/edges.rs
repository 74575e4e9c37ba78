//! Edges: the source of each input of each network.
//!
//! An input comes from the output with the same name in the last earlier network, or from the host.
//! There is one alias: an input `context` is the text encoder's `embedding`.

use anyhow::{Result, bail};
use kiln_bundle::plan::{Feed, GUIDANCE_BRANCHES, Role, Slice};
use kiln_ir::TensorType;

use super::lower::LoweredNetwork;

/// The source of an input.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Edge {
    /// The host writes the input.
    Host(Feed),
    /// The input is a slice of an output.
    Output {
        /// Index of the network that computes the output.
        network: usize,
        /// Index into the outputs of its graph.
        output: usize,
        /// The slice.
        slice: Slice,
    },
}

/// The sources of all inputs of all networks. Networks are in execution order.
///
/// Errors: an input has no source, or no slice of its output fits.
pub fn edges(networks: &[LoweredNetwork]) -> Result<Vec<Vec<Edge>>> {
    let of_network = |index: usize| {
        let inputs = networks[index].source.graph.inputs();
        inputs.into_iter().map(|id| edge(networks, index, id)).collect()
    };
    (0..networks.len()).map(of_network).collect()
}

fn edge(networks: &[LoweredNetwork], index: usize, id: kiln_ir::ValueId) -> Result<Edge> {
    let consumer = &networks[index].source;
    let node = consumer.graph.node(id);
    let name = if node.name == "context" { "embedding" } else { node.name.as_str() };
    let found = networks[..index].iter().enumerate().rev().find_map(|(network, producer)| {
        let mut outputs = producer.source.graph.outputs().iter();
        Some((network, outputs.position(|(output, _)| output == name)?))
    });
    if let Some((network, output)) = found {
        let producer = &networks[network].source;
        let from = producer.graph.ty(producer.graph.outputs()[output].1);
        let Some(slice) = slice(producer.role, from, &node.ty) else {
            let (network, consumer) = (&producer.name, &consumer.name);
            bail!("output {name} of {network} ({from}) fits no input of {consumer} ({})", node.ty);
        };
        return Ok(Edge::Output { network, output, slice });
    }
    Ok(Edge::Host(match name {
        "tokens" => Feed::Tokens,
        "latent" => Feed::Latent,
        "image" => Feed::Image,
        "timestep" => Feed::Timestep,
        "guidance_embedding" => Feed::Guidance,
        "condition" => Feed::Condition,
        _ => bail!("nothing provides the input {name} of {}", consumer.name),
    }))
}

/// The slice of an output that fits an input.
fn slice(producer: Role, from: &TensorType, to: &TensorType) -> Option<Slice> {
    let (from_bytes, to_bytes) = (from.size_bytes(), to.size_bytes());
    if from == to {
        return Some(Slice::InPlace);
    }
    if from.dtype != to.dtype {
        return None;
    }
    if producer == Role::TimestepProjection {
        let row_bytes = from_bytes / *from.shape.first()? as u64;
        let copies = to_bytes / row_bytes;
        return (copies * row_bytes == to_bytes)
            .then_some(Slice::TimestepRow { row_bytes, copies: copies as u32 });
    }
    if from_bytes == to_bytes {
        return Some(Slice::Whole);
    }
    (from_bytes == u64::from(GUIDANCE_BRANCHES) * to_bytes).then_some(Slice::GuidanceBranch)
}
