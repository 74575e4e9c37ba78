//! The networks of a plan, one after the other by the reference: what a pass hoisted out of the
//! denoiser is put before it again.

use kiln_ir::{Graph, Tensor};

use crate::evaluate::exact;
use crate::values::{Checkpoint, Inputs};

/// Row of the table of timesteps that holds the one asked for.
const ROW: usize = 3;

/// A network of a plan: its name and what it computes.
pub type Part<'a> = (&'a str, &'a Graph);

/// The output of the original network of that name, computed by the networks of a plan.
///
/// `inputs` are those of the original, the denoiser's with both branches of guidance.
pub fn run(parts: &[Part], name: &str, inputs: &Inputs, checkpoint: &Checkpoint) -> Tensor {
    let find = |name: &str| parts.iter().find(|(n, _)| *n == name).map(|(_, graph)| *graph);
    let network = find(name).expect("a plan has every network of its model");
    let mut known = inputs.clone();
    if name == "unet" {
        if let Some(prompt) = find("unet_prompt") {
            known.extend(every_branch(prompt, inputs, checkpoint));
        }
        if let Some(time) = find("unet_time") {
            known.extend(timestep_row(time, inputs, checkpoint));
        }
    }
    let outputs = every_branch(network, &known, checkpoint);
    outputs.into_values().next().expect("every network has an output")
}

/// The outputs of a network for all rows of its inputs, which may take several runs.
fn every_branch(network: &Graph, known: &Inputs, checkpoint: &Checkpoint) -> Inputs {
    let mut outputs = Inputs::new();
    for branch in 0..branches(network, known) {
        for (name, value) in exact(network, &narrowed(network, known, branch), checkpoint) {
            match outputs.get_mut(&name) {
                Some(rows) => {
                    rows.shape[0] += value.shape[0];
                    rows.data.extend(value.data);
                }
                None => drop(outputs.insert(name, value)),
            }
        }
    }
    outputs
}

/// Runs of a network for all rows of its inputs.
fn branches(network: &Graph, known: &Inputs) -> usize {
    let own = network.inputs().into_iter().map(|id| network.node(id));
    let ratio = own.map(|node| known[&node.name].data.len() / node.ty.elem_count());
    ratio.max().unwrap_or(1)
}

/// Inputs of one branch.
fn narrowed(network: &Graph, known: &Inputs, branch: usize) -> Inputs {
    let input = |id| {
        let node = network.node(id);
        let (tensor, count) = (&known[&node.name], node.ty.elem_count());
        let at = if tensor.data.len() == count { 0 } else { branch * count };
        (node.name.clone(), Tensor::new(&node.ty.shape, tensor.data[at..at + count].to_vec()))
    };
    network.inputs().into_iter().map(input).collect()
}

/// The row of the projections of many timesteps that belongs to the one given.
fn timestep_row(time: &Graph, inputs: &Inputs, checkpoint: &Checkpoint) -> Inputs {
    let rows = time.ty(time.inputs()[0]).elem_count();
    let mut timesteps: Vec<f32> = (0..rows).map(|i| 15.0 * i as f32 + 1.0).collect();
    timesteps[ROW] = inputs["timestep"].data[0];
    let given = [("timestep".to_string(), Tensor::new(&[rows], timesteps))].into();
    let row = |(name, table): (String, Tensor)| {
        let shape = [&[1], &table.shape[1..]].concat();
        let elems = table.data.len() / rows;
        (name, Tensor::new(&shape, table.data[ROW * elems..(ROW + 1) * elems].to_vec()))
    };
    exact(time, &given, checkpoint).into_iter().map(row).collect()
}
