//! Hoists loop-invariant ops out of the sampler's loop.
//!
//! A value that depends only on the prompt (keys and values of cross-attention) moves to a network
//! that runs once a prompt. A value that depends only on the timestep (the projected timestep
//! embedding) moves to a network that runs for many timesteps at once. A value that crosses between
//! networks is an output of one and an input, with the same name, of the other.

use anyhow::Result;
use kiln_bundle::plan::Role;
use kiln_ir::{Graph, NodeKind, ValueId};
use std::collections::{BTreeSet, HashMap};

use crate::model::{NetworkGraph, TIMESTEP_ROWS};

/// Inputs of the timestep projection. A row of each belongs to a timestep.
const TIMESTEP_INPUTS: [&str; 3] = ["timestep", "guidance_embedding", "class"];

/// The U-Net in three parts. The first two are `None` if nothing can be hoisted into them.
pub struct Hoisted {
    /// The part that depends only on `context`.
    pub prompt: Option<Graph>,
    /// The part that depends only on [`TIMESTEP_INPUTS`], for `timestep_rows` rows.
    pub timestep: Option<Graph>,
    /// The rest.
    pub step: Graph,
}

/// Splits the U-Net. Leaves other networks unchanged.
pub fn run(network: &NetworkGraph) -> Result<Vec<NetworkGraph>> {
    if network.role != Role::Denoiser {
        return Ok(vec![network.clone()]);
    }
    let Hoisted { prompt, timestep, step } = hoist(&network.graph, TIMESTEP_ROWS)?;
    let parts = [
        (Role::PromptProjection, prompt),
        (Role::TimestepProjection, timestep),
        (Role::Denoiser, Some(step)),
    ];
    let network = |(role, graph): (Role, Option<Graph>)| {
        graph.map(|graph| NetworkGraph { name: graph.name.clone(), role, graph })
    };
    Ok(parts.into_iter().filter_map(network).collect())
}

/// Splits a U-Net. The timestep projection gets `timestep_rows` timesteps at a time.
pub fn hoist(unet: &Graph, timestep_rows: usize) -> Result<Hoisted> {
    let depends = dependencies(unet)?;
    let only = |inputs: &[&str]| -> BTreeSet<ValueId> {
        let is_given = |name: &String| inputs.contains(&name.as_str());
        unet.ids()
            .filter(|id| unet.node(*id).op().is_some())
            .filter(|id| !depends[id].is_empty() && depends[id].iter().all(is_given))
            .collect()
    };
    let (prompt, timestep) = (only(&["context"]), only(&TIMESTEP_INPUTS));
    let rest: BTreeSet<ValueId> = unet
        .ids()
        .filter(|id| unet.node(*id).op().is_some())
        .filter(|id| !prompt.contains(id) && !timestep.contains(id))
        .collect();
    let part = |name: &str, set: &BTreeSet<ValueId>, rows: Option<usize>| {
        (!set.is_empty()).then(|| with_crossing(unet, name, set, rows)).transpose()
    };
    Ok(Hoisted {
        prompt: part("unet_prompt", &prompt, None)?,
        timestep: part("unet_time", &timestep, Some(timestep_rows))?,
        step: with_crossing(unet, "unet", &rest, None)?,
    })
}

/// [`extract`], with the values that are read outside as further outputs.
fn with_crossing(
    graph: &Graph,
    name: &str,
    set: &BTreeSet<ValueId>,
    rows: Option<usize>,
) -> Result<Graph> {
    let (mut part, moved) = extract(graph, name, set, rows)?;
    for id in set.iter().filter(|id| !graph.is_output(**id)) {
        if graph.users(*id).iter().any(|u| !set.contains(u)) {
            part.output(&graph.node(*id).name, moved[id]);
        }
    }
    Ok(part)
}

/// Names of the inputs that each node depends on.
fn dependencies(graph: &Graph) -> Result<HashMap<ValueId, BTreeSet<String>>> {
    let mut depends: HashMap<ValueId, BTreeSet<String>> = HashMap::new();
    for id in graph.topological()? {
        let mut set: BTreeSet<String> =
            graph.operands(id).iter().flat_map(|o| depends[o].clone()).collect();
        if matches!(graph.node(id).kind, NodeKind::Input) {
            set.insert(graph.node(id).name.clone());
        }
        depends.insert(id, set);
    }
    Ok(depends)
}

/// The subgraph of `set`, and its value for each of the graph's. Constants are copied. Other values
/// from outside become inputs, named as outputs of the graph if they are. `rows` replaces the
/// extent of axis 0 of the inputs.
pub(super) fn extract(
    graph: &Graph,
    name: &str,
    set: &BTreeSet<ValueId>,
    rows: Option<usize>,
) -> Result<(Graph, HashMap<ValueId, ValueId>)> {
    let mut part = Graph::new(name);
    let mut moved: HashMap<ValueId, ValueId> = HashMap::new();
    for id in graph.topological()? {
        if !set.contains(&id) {
            continue;
        }
        let mut inputs = Vec::new();
        for operand in graph.operands(id) {
            let new = *moved.entry(operand).or_insert_with(|| {
                let node = graph.node(operand);
                match &node.kind {
                    NodeKind::Weight(e) => part.weight(&node.name, e.clone(), node.ty.clone()),
                    _ => {
                        let mut ty = node.ty.clone();
                        if let (Some(rows), Some(first)) = (rows, ty.shape.first_mut()) {
                            *first = rows;
                        }
                        let outputs = graph.outputs().iter();
                        let named = outputs.clone().find(|(_, value)| *value == operand);
                        part.input(named.map_or(&node.name, |(name, _)| name), ty)
                    }
                }
            });
            inputs.push(new);
        }
        let node = graph.node(id);
        let op = node.op().expect("the set holds ops only").clone();
        let new = part.push(&node.name, op, &inputs)?;
        part.node_mut(new).ty.dtype = node.ty.dtype;
        moved.insert(id, new);
    }
    for (name, id) in graph.outputs().iter().filter(|(_, id)| set.contains(id)) {
        part.output(name, moved[id]);
    }
    Ok((part, moved))
}
