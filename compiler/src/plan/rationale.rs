//! Records the reasons of a plan: the verdict on every variant of each op, the storage of weights,
//! and the machine code of kernels.

use anyhow::Result;
use kiln_bundle::plan::{Plan, Step};
use kiln_bundle::rationale::{Choice, KernelCode, OpChoice, Rationale, StoredWeight};
use kiln_ir::{DType, Graph, NodeKind, ValueId};
use kiln_kernels::{Launch, Problem, program};
use std::collections::{HashMap, HashSet};

use super::lower::{LoweredNetwork, Work};
use super::select::cost_of;
use crate::constants;
use crate::device::DeviceProfile;
use crate::request::PlanRequest;
use crate::storage::{Storage, weight_indices};
use crate::strategy::Strategy;

/// The rationale of an assembled plan, without the strategies that were tried.
pub fn rationale(
    networks: &[LoweredNetwork],
    plan: &Plan,
    strategy: Strategy,
    request: &PlanRequest,
) -> Result<Rationale> {
    let profile = request.profile;
    let mut instants = launch_instants(plan);
    let mut recorded: HashMap<(String, Option<usize>), u32> = HashMap::new();
    let mut named = HashSet::new();
    let (rates, code) = (profile.rates.in_plan(), kernel_code(networks, plan, profile));
    let mut rationale = Rationale { rates, code, ..Rationale::default() };
    for network in networks {
        let graph = &network.source.graph;
        for lowered in &network.ops {
            let own: Vec<u32> = instants.by_ref().take(lowered.launch_count()).collect();
            let Some(instant) = own.first().copied() else { break };
            let Some(op) = graph.node(lowered.id).op() else { continue };
            let problem = Problem {
                op,
                inputs: &lowered.inputs,
                output: graph.ty(lowered.id),
                max_weight_bytes: strategy.max_block_bytes,
                max_scratch_bytes: strategy.scratch.limit_bytes(),
            };
            let (chosen, alternatives) = match &lowered.work {
                Work::Gather => (None, None),
                Work::Kernels { lowering, costs, options: (options, chosen), .. } => {
                    let cost = cost_of(lowering, costs);
                    (Some(*chosen), Some((options, *chosen, cost)))
                }
            };
            // Networks may price weight traffic differently and so choose differently for one
            // problem.
            let key = (format!("{problem:?}"), chosen);
            let choice = match recorded.get(&key) {
                Some(choice) => *choice,
                None => {
                    let alternatives = alternatives
                        .map_or(Ok(vec![]), |(options, chosen, cost)| {
                            options.verdicts(chosen, cost, &problem, profile)
                        })?;
                    let shape = problem.output.shape.iter().map(|d| *d as u32).collect();
                    let problem = problem.to_string();
                    rationale.choices.push(Choice { problem, shape, alternatives });
                    let index = rationale.choices.len() as u32 - 1;
                    recorded.insert(key, index);
                    index
                }
            };
            rationale.ops.push(OpChoice { instant, choice });
            let stored = stored_weights(graph, lowered.id, request.storage).into_iter();
            rationale.weights.extend(stored.filter(|weight| named.insert(weight.name.clone())));
        }
    }
    Ok(rationale)
}

/// Machine code of the plan's kernels; nothing without a table for the device.
fn kernel_code(
    networks: &[LoweredNetwork],
    plan: &Plan,
    profile: &DeviceProfile,
) -> Vec<Option<KernelCode>> {
    if profile.code.is_empty() {
        return vec![];
    }
    let launches = networks.iter().flat_map(|network| &network.ops).flat_map(|op| match &op.work {
        Work::Kernels { lowering, .. } => &lowering.launches[..],
        Work::Gather => &[],
    });
    let named = launches.map(|launch| (program::name(&launch.source, launch.entry), launch));
    let named: HashMap<String, &Launch> = named.collect();
    plan.kernels.iter().map(|kernel| profile.code.of(named.get(&kernel.entry)?)).collect()
}

/// Storage of the constant weights of an op's contractions.
fn stored_weights(graph: &Graph, id: ValueId, storage: Storage<'_>) -> Vec<StoredWeight> {
    let operands = graph.operands(id);
    let stored_weight = |input: usize| {
        let value = operands[input];
        let NodeKind::Weight(expr) = &graph.node(value).kind else { return None };
        let stored = storage.of(graph, id, input);
        let shape = &graph.ty(value).shape;
        let k: usize = shape[1..].iter().product();
        let block = match stored.dtype {
            DType::I8 => Some(stored.scale_group.unwrap_or(k) as u32),
            _ => None,
        };
        Some(StoredWeight {
            name: constants::name(expr),
            shape: shape.iter().map(|d| *d as u32).collect(),
            dtype: super::assemble::dtype(stored.dtype),
            block,
            relative_error: stored.relative_error,
        })
    };
    weight_indices(graph, id).into_iter().filter_map(stored_weight).collect()
}

/// Instants of the launches and gathers of a plan, in order.
fn launch_instants(plan: &Plan) -> impl Iterator<Item = u32> + '_ {
    let steps = plan.networks.iter().flat_map(|n| &n.steps);
    let is_launch = |step: &Step| matches!(step, Step::Dispatch(_) | Step::Gather(_));
    (0u32..).zip(steps).filter(move |(_, step)| is_launch(step)).map(|(instant, _)| instant)
}
