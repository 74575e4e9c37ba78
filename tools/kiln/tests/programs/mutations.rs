//! Shows that the test can fail: what a wrong pass or a wrong planner would leave is noticed.

use kiln_bundle::plan::{Arg, Buffer, Plan, Step};
use kiln_ir::operands::ContractionOperands;
use kiln_ir::ops::epilogue::{Activation, Epilogue};
use kiln_ir::{Graph, Op, ValueId};

use crate::entropy::Entropy;

/// A way to break a graph or a plan; false where there is nothing of the kind to break.
pub type Mutation<T> = (&'static str, fn(&mut T, &mut Entropy) -> bool);

/// What a wrong pass may do.
pub const OF_GRAPHS: &[Mutation<Graph>] = &[
    ("a bias is dropped", |graph, entropy| {
        rewrite(graph, entropy, |epilogue, operands| {
            epilogue.bias = false;
            operands.bias.take().is_some()
        })
    }),
    ("a residual is dropped", |graph, entropy| {
        rewrite(graph, entropy, |epilogue, operands| {
            epilogue.residual = false;
            operands.residual.take().is_some()
        })
    }),
    ("an activation is dropped", |graph, entropy| {
        rewrite(graph, entropy, |epilogue, _| {
            let there = matches!(epilogue.activation, Activation::Silu | Activation::Gelu);
            epilogue.activation = Activation::None;
            there
        })
    }),
    ("two sources are exchanged", |graph, entropy| {
        rewrite(graph, entropy, |_, operands| {
            operands.sources.reverse();
            operands.sources.first() != operands.sources.last()
        })
    }),
    ("an operand of an addition is the other", |graph, entropy| {
        let adds = |graph: &Graph, id| matches!(graph.node(id).op(), Some(Op::Add(_)));
        let found: Vec<_> = graph.ids().filter(|id| adds(graph, *id)).collect();
        if found.is_empty() {
            return false;
        }
        let id = entropy.pick(&found);
        let (first, op) = (graph.operands(id)[0], graph.node(id).op().cloned());
        graph.rewrite(id, op.expect("it is an addition"), &[first, first]).is_ok()
    }),
];

/// Changes one of the contractions of which `change` says that it could.
fn rewrite(
    graph: &mut Graph,
    entropy: &mut Entropy,
    change: impl Fn(&mut Epilogue, &mut ContractionOperands<ValueId>) -> bool,
) -> bool {
    let changed = |id: ValueId| {
        let mut op = graph.node(id).op()?.clone();
        let values = graph.operands(id);
        let mut operands = op.contraction()?.map(|index| values[index]);
        let done = match &mut op {
            Op::Conv2d(conv) => change(&mut conv.epilogue, &mut operands),
            Op::Matmul(matmul) => change(&mut matmul.epilogue, &mut operands),
            _ => false,
        };
        done.then(|| (id, op, operands.in_order()))
    };
    let found: Vec<_> = graph.ids().filter_map(changed).collect();
    if found.is_empty() {
        return false;
    }
    let (id, op, operands) = &found[entropy.below(found.len())];
    graph.rewrite(*id, op.clone(), operands).is_ok()
}

/// What a wrong planner may do.
pub const OF_PLANS: &[Mutation<Plan>] = &[
    ("a buffer lies on another", |plan, entropy| {
        let pairs: Vec<(usize, usize)> = (0..plan.buffers.len())
            .flat_map(|a| (0..a).map(move |b| (a, b)))
            .filter(|(a, b)| live_together(&plan.buffers[*a], &plan.buffers[*b]))
            .collect();
        if pairs.is_empty() {
            return false;
        }
        let (a, b) = entropy.pick(&pairs);
        plan.buffers[a].offset_bytes = plan.buffers[b].offset_bytes;
        true
    }),
    ("a buffer dies early", |plan, entropy| {
        any_buffer(plan, entropy).upper -= 1;
        true
    }),
    ("a buffer is born late", |plan, entropy| {
        any_buffer(plan, entropy).lower += 1;
        true
    }),
    ("a buffer is too short", |plan, entropy| {
        any_buffer(plan, entropy).len_bytes -= 1;
        true
    }),
    ("a buffer is beyond the arena", |plan, entropy| {
        let beyond = plan.memory.arena_bytes;
        any_buffer(plan, entropy).offset_bytes = beyond;
        true
    }),
    ("a buffer is in two allocations", |plan, entropy| {
        let align_bytes = plan.requirements.base_align_bytes;
        let buffer = any_buffer(plan, entropy).clone();
        plan.memory.arena_part_bytes = buffer.offset_bytes + align_bytes;
        buffer.len_bytes > align_bytes
    }),
    ("a step is left out", |plan, entropy| {
        let network = any_network(plan, entropy);
        let step = entropy.below(plan.networks[network].steps.len());
        plan.networks[network].steps.remove(step);
        true
    }),
    ("a step is late", |plan, entropy| {
        let network = any_network(plan, entropy);
        let steps = &mut plan.networks[network].steps;
        if steps.len() < 2 {
            return false;
        }
        let step = entropy.below(steps.len() - 1);
        steps.swap(step, step + 1);
        true
    }),
    ("a weight block comes in another's slot", |plan, entropy| {
        let slots = plan.memory.slot_bytes.len() as u32;
        let steps = plan.networks.iter_mut().flat_map(|n| &mut n.steps);
        let loads = steps.filter_map(|step| match step {
            Step::Load { slot, .. } => Some(slot),
            _ => None,
        });
        let mut loads: Vec<_> = loads.collect();
        if slots < 2 || loads.len() < 2 {
            return false;
        }
        let load = entropy.below(loads.len());
        loads[load].0 = slots;
        true
    }),
    ("a launch reads what is not there", |plan, entropy| {
        let steps = plan.networks.iter_mut().flat_map(|n| &mut n.steps);
        let args = steps.flat_map(|step| match step {
            Step::Dispatch(dispatch) => &mut dispatch.args[..],
            _ => &mut [],
        });
        let regions = args.filter_map(|arg| match arg {
            Arg::Buffer { offset_bytes, len_bytes, .. }
            | Arg::Weight { offset_bytes, len_bytes, .. } => Some((offset_bytes, len_bytes)),
            _ => None,
        });
        let mut regions: Vec<_> = regions.collect();
        let region = entropy.below(regions.len());
        *regions[region].0 += *regions[region].1;
        true
    }),
    ("the budget is less than the peak", |plan, _| {
        plan.memory.budget_bytes = plan.memory.peak_bytes() - 1;
        true
    }),
];

fn live_together(a: &Buffer, b: &Buffer) -> bool {
    a.lower < b.upper && b.lower < a.upper && a.len_bytes > 0 && b.len_bytes > 0
}

fn any_buffer<'a>(plan: &'a mut Plan, entropy: &mut Entropy) -> &'a mut Buffer {
    let index = entropy.below(plan.buffers.len());
    &mut plan.buffers[index]
}

fn any_network(plan: &Plan, entropy: &mut Entropy) -> usize {
    entropy.below(plan.networks.len())
}
