//! Writes down why each op is done as it is: the variants that were there to choose from.

use anyhow::Result;
use kiln_bundle::plan::{Plan, Step};
use kiln_bundle::rationale::{
    Alternative, Choice, Cost, OpChoice, Rates as PlanRates, Rationale, Verdict,
};
use kiln_ir::{Op, TensorType};
use kiln_kernels::{Argument, Lowering, Problem, candidates, family};
use std::collections::HashMap;

use super::lower::{LoweredNetwork, Preference, Work, operands};
use super::{PlanRequest, Strategy};
use crate::device::Rates;

/// The rationale of an assembled plan, but for the strategies that were tried.
pub fn rationale(
    networks: &[LoweredNetwork],
    plan: &Plan,
    strategy: Strategy,
    request: &PlanRequest,
) -> Result<Rationale> {
    let rates = rates(&request.profile.rates);
    let mut instants = launch_instants(plan);
    let mut known: HashMap<String, u32> = HashMap::new();
    let mut rationale = Rationale { rates, ..Rationale::default() };
    for network in networks {
        let graph = &network.source.graph;
        for lowered in &network.ops {
            let own: Vec<u32> = instants.by_ref().take(lowered.launch_count()).collect();
            let Some(instant) = own.first().copied() else { break };
            let Some(op) = graph.node(lowered.id).op() else { continue };
            let inputs = operands(graph, lowered.id, request.storage);
            let output = graph.ty(lowered.id);
            let max_weight_bytes = strategy.max_block_bytes;
            let problem = Problem { op, inputs: &inputs, output, max_weight_bytes };
            let key = format!("{problem:?}");
            let choice = match known.get(&key) {
                Some(choice) => *choice,
                None => {
                    let next = rationale.choices.len() as u32;
                    let context = Context { rates, strategy, request };
                    rationale.choices.push(context.choice(&problem, &lowered.work)?);
                    known.insert(key, next);
                    next
                }
            };
            rationale.ops.push(OpChoice { instant, choice });
        }
    }
    Ok(rationale)
}

/// Instants of the launches and gathers of a plan, in order.
fn launch_instants(plan: &Plan) -> impl Iterator<Item = u32> + '_ {
    let steps = plan.networks.iter().flat_map(|n| &n.steps);
    let is_launch = |step: &Step| matches!(step, Step::Dispatch(_) | Step::Gather(_));
    (0u32..).zip(steps).filter(move |(_, step)| is_launch(step)).map(|(instant, _)| instant)
}

fn rates(rates: &Rates) -> PlanRates {
    PlanRates {
        flops_per_s: rates.flops_per_s as u64,
        memory_bytes_per_s: rates.memory_bytes_per_s as u64,
        io_bytes_per_s: rates.io_bytes_per_s as u64,
    }
}

struct Context<'a> {
    rates: PlanRates,
    strategy: Strategy,
    request: &'a PlanRequest<'a>,
}

impl Context<'_> {
    fn choice(&self, problem: &Problem, work: &Work) -> Result<Choice> {
        let alternatives = match work {
            Work::Gather => vec![],
            Work::Kernels { variant, lowering } => self.alternatives(problem, variant, lowering)?,
        };
        let shape = problem.output.shape.iter().map(|d| *d as u32).collect();
        Ok(Choice { problem: describe(problem), shape, alternatives })
    }

    fn alternatives(
        &self,
        problem: &Problem,
        chosen: &str,
        lowering: &Lowering,
    ) -> Result<Vec<Alternative>> {
        let target = &self.request.profile.target;
        let considered = candidates(problem, target);
        let mut list = Vec::new();
        for variant in &considered {
            let verdict = if variant.name == chosen {
                Verdict::Chosen(self.cost(problem, lowering))
            } else {
                let cost = self.cost(problem, &(variant.lower)(problem, target)?);
                let allowed = match self.strategy.preference {
                    Preference::Fastest => u64::MAX,
                    Preference::ScratchUpTo(bytes) => bytes,
                };
                match cost.scratch_bytes > allowed {
                    true => Verdict::Scratch(cost),
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

    fn cost(&self, problem: &Problem, lowering: &Lowering) -> Cost {
        let mut cost = Cost {
            launches: lowering.launches.len() as u32,
            scratch_bytes: lowering.scratch_bytes.iter().sum(),
            ..Cost::default()
        };
        for (launch, bytes) in lowering.launches.iter().zip(launch_bytes(problem, lowering)) {
            cost.flops += launch.flops;
            cost.bytes += bytes;
            cost.predicted_ns += self.rates.launch_ns(launch.flops, bytes);
        }
        cost
    }
}

/// What each launch reads and writes. Launches that write one buffer together share its bytes.
fn launch_bytes(problem: &Problem, lowering: &Lowering) -> Vec<u64> {
    let written =
        |arg: &Argument| matches!(arg, Argument::Output | Argument::Scratch { written: true, .. });
    let mut writers: Vec<(Argument, u64)> = Vec::new();
    for arg in lowering.launches.iter().flat_map(|l| &l.args).filter(|arg| written(arg)) {
        match writers.iter_mut().find(|(other, _)| other == arg) {
            Some((_, count)) => *count += 1,
            None => writers.push((arg.clone(), 1)),
        }
    }
    let share = |arg: &Argument, bytes: u64| {
        bytes / writers.iter().find(|(other, _)| other == arg).map_or(1, |(_, count)| *count)
    };
    let bytes = |arg: &Argument| match arg {
        Argument::Input { len_bytes, .. } => *len_bytes,
        Argument::Output => share(arg, problem.output.size_bytes()),
        Argument::Scratch { index, .. } => {
            share(arg, lowering.scratch_bytes.get(*index).copied().unwrap_or(0))
        }
        Argument::U32(_) | Argument::F32(_) => 0,
    };
    lowering.launches.iter().map(|l| l.args.iter().map(bytes).sum()).collect()
}

/// The op without names: `f32[2,77,1024] x f16[1024,1024] -> f32[2,77,1024] transpose=true`.
fn describe(problem: &Problem) -> String {
    let types = |list: Vec<&TensorType>| {
        list.iter().map(|ty| ty.to_string()).collect::<Vec<_>>().join(" x ")
    };
    let inputs = types(problem.inputs.iter().map(|i| &i.ty).collect());
    let attributes = Op::attributes(problem.op);
    format!("{inputs} -> {} {attributes}", problem.output).trim_end().to_string()
}
