//! Writes down why each op is done as it is: the variants that were there to choose from.

use anyhow::Result;
use kiln_bundle::plan::{Plan, Step};
use kiln_bundle::rationale::{
    Alternative, Choice, Cost, OpChoice, Rationale, StoredWeight, Verdict,
};
use kiln_ir::{DType, Graph, NodeKind, ValueId};
use kiln_kernels::{Lowering, Problem, candidates, family};
use std::collections::{HashMap, HashSet};

use super::lower::{LoweredNetwork, Storage, Work, operands, weight_indices};
use super::time::{LaunchCost, launch_costs};
use super::{PlanRequest, Strategy};
use crate::quantize;

/// The rationale of an assembled plan, but for the strategies that were tried.
pub fn rationale(
    networks: &[LoweredNetwork],
    plan: &Plan,
    strategy: Strategy,
    request: &PlanRequest,
) -> Result<Rationale> {
    let rates = request.profile.rates.in_plan();
    let mut instants = launch_instants(plan);
    let mut known: HashMap<String, u32> = HashMap::new();
    let mut named = HashSet::new();
    let mut rationale = Rationale { rates, ..Rationale::default() };
    for network in networks {
        let graph = &network.source.graph;
        for lowered in &network.ops {
            let own: Vec<u32> = instants.by_ref().take(lowered.launch_count()).collect();
            let Some(instant) = own.first().copied() else { break };
            let Some(op) = graph.node(lowered.id).op() else { continue };
            let inputs = operands(graph, lowered.id, request.storage);
            let output = graph.ty(lowered.id);
            let problem = Problem {
                op,
                inputs: &inputs,
                output,
                max_weight_bytes: strategy.max_block_bytes,
                max_scratch_bytes: strategy.preference.scratch_bytes(),
            };
            let key = format!("{problem:?}");
            let choice = match known.get(&key) {
                Some(choice) => *choice,
                None => {
                    let next = rationale.choices.len() as u32;
                    let context = Context { strategy, request };
                    rationale.choices.push(context.choice(&problem, &lowered.work)?);
                    known.insert(key, next);
                    next
                }
            };
            rationale.ops.push(OpChoice { instant, choice });
            let stored = stored_weights(graph, lowered.id, request.storage).into_iter();
            rationale.weights.extend(stored.filter(|weight| named.insert(weight.name.clone())));
        }
    }
    Ok(rationale)
}

/// How the constant weights of an op's contractions are stored.
fn stored_weights(graph: &Graph, id: ValueId, storage: Storage<'_>) -> Vec<StoredWeight> {
    let operands = graph.operands(id);
    let stored_weight = |input: usize| {
        let value = operands[input];
        let NodeKind::Weight(expr) = &graph.node(value).kind else { return None };
        let stored = storage.of(graph, id, input);
        let shape = &graph.ty(value).shape;
        let sum = shape[1..].iter().product();
        let block = match stored.dtype {
            DType::I8 => Some(stored.block.unwrap_or(sum) as u32),
            _ => None,
        };
        Some(StoredWeight {
            name: quantize::name(expr),
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

struct Context<'a> {
    strategy: Strategy,
    request: &'a PlanRequest<'a>,
}

impl Context<'_> {
    fn choice(&self, problem: &Problem, work: &Work) -> Result<Choice> {
        let alternatives = match work {
            Work::Gather => vec![],
            Work::Kernels { variant, lowering, costs, .. } => {
                self.alternatives(problem, variant, cost(lowering, costs))?
            }
        };
        let shape = problem.output.shape.iter().map(|d| *d as u32).collect();
        Ok(Choice { problem: problem.to_string(), shape, alternatives })
    }

    fn alternatives(
        &self,
        problem: &Problem,
        chosen: &str,
        chosen_cost: Cost,
    ) -> Result<Vec<Alternative>> {
        let target = &*self.request.profile.target.tuned(problem);
        let considered = candidates(problem, target);
        let mut list = Vec::new();
        let mut before = true;
        for variant in &considered {
            let verdict = if variant.name == chosen {
                before = false;
                Verdict::Chosen(chosen_cost)
            } else {
                let lowering = (variant.lower)(problem, target)?;
                let rates = &self.request.profile.rates;
                let cost = cost(&lowering, &launch_costs(problem, variant.name, &lowering, rates));
                match cost.scratch_bytes > self.strategy.preference.scratch_bytes() {
                    true => Verdict::Scratch(cost),
                    false if before => Verdict::Weights(cost),
                    false => Verdict::Later(cost),
                }
            };
            list.push(Alternative { variant: variant.name.to_string(), verdict });
        }
        let rest = family(problem.op.name()).map_or(&[][..], |f| f.variants);
        for variant in rest.iter().filter(|v| considered.iter().all(|c| c.name != v.name)) {
            let verdict = Verdict::DoesNotApply;
            list.push(Alternative { variant: variant.name.to_string(), verdict });
        }
        Ok(list)
    }
}

fn cost(lowering: &Lowering, costs: &[LaunchCost]) -> Cost {
    Cost {
        launches: lowering.launches.len() as u32,
        scratch_bytes: lowering.scratch_bytes.iter().sum(),
        flops: lowering.launches.iter().map(|l| l.flops).sum(),
        bytes: costs.iter().map(|c| c.bytes).sum(),
        predicted_ns: costs.iter().map(|c| c.ns).sum(),
    }
}
