//! Kinds of buffers and blocks, compared with their users.

use super::violation::{Violation, block_at, buffer_at};
use crate::plan::{
    Arg, BlockId, BlockKind, BufferId, BufferKind, Dispatch, Gather, Plan, Residency, Step,
};

/// Checks the kind of every block and buffer.
///
/// Requires: every id is in the plan; `owners` has one entry a buffer.
pub(super) fn check(plan: &Plan, owners: &[Option<BlockId>]) -> Result<(), Violation> {
    for (id, block) in (0..).map(BlockId).zip(&plan.blocks) {
        if block.kind == BlockKind::Constants && block.residency == Residency::Streamed {
            return Err(Violation::StreamedConstants { block: block_at(plan, id) });
        }
    }
    let users = users(plan);
    let is_factors = |index| plan.lora.factors.is_some_and(|id| id.index() == index);
    for (index, buffer) in plan.buffers.iter().enumerate() {
        let found = match (owners[index].map(|block| plan.blocks[block.index()].kind), users[index])
        {
            (Some(BlockKind::Weights), _) => BufferKind::Weights,
            (Some(BlockKind::Constants), _) => BufferKind::Constants,
            (None, Users::Ports) => BufferKind::Port,
            (None, Users::OneOp(..)) => BufferKind::Scratch,
            (None, Users::None) if is_factors(index) => BufferKind::Factors,
            (None, Users::None | Users::Ops) => BufferKind::Activation,
        };
        if found != buffer.kind {
            let stated = buffer.kind;
            let buffer = buffer_at(plan, BufferId(index as u32));
            return Err(Violation::BufferKind { buffer, stated, found });
        }
    }
    Ok(())
}

/// The users of a buffer.
#[derive(Clone, Copy, PartialEq)]
enum Users<'a> {
    None,
    /// The launches of one op of a network.
    OneOp(usize, &'a str),
    Ops,
    Ports,
}

fn users(plan: &Plan) -> Vec<Users<'_>> {
    let mut users = vec![Users::None; plan.buffers.len()];
    for (index, network) in plan.networks.iter().enumerate() {
        for step in &network.steps {
            let (name, buffers): (_, Vec<BufferId>) = match step {
                Step::Dispatch(Dispatch { name, args, .. }) => {
                    (name, args.iter().filter_map(buffer_of).collect())
                }
                Step::Gather(Gather { name, indices, output, .. }) => {
                    (name, vec![*indices, *output])
                }
                Step::Load { .. } | Step::Free { .. } => continue,
            };
            for buffer in buffers {
                let entry = &mut users[buffer.index()];
                let op = Users::OneOp(index, name);
                *entry =
                    if matches!(*entry, Users::None) || *entry == op { op } else { Users::Ops };
            }
        }
    }
    for network in &plan.networks {
        let inputs = network.inputs.iter().map(|input| &input.port);
        for port in inputs.chain(&network.outputs) {
            users[port.buffer.index()] = Users::Ports;
        }
    }
    users
}

fn buffer_of(arg: &Arg) -> Option<BufferId> {
    match *arg {
        Arg::Buffer { buffer, .. } => Some(buffer),
        _ => None,
    }
}
