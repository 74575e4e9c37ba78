//! Resident weights: the networks that read them, and the networks that overwrite them.

use std::collections::BTreeSet;

use super::violation::{Violation, block_at};
use crate::plan::{Arg, BlockId, Network, Plan, Residency, Step};

/// Checks the block lists of every network against its steps and buffers.
///
/// Requires: every block and buffer is within its bounds; `spans` has one entry a network.
pub(super) fn check(plan: &Plan, spans: &[(u32, u32)]) -> Result<(), Violation> {
    for (network, &span) in plan.networks.iter().zip(spans) {
        let refuse = |problem, id: BlockId| {
            let block = match plan.blocks.get(id.index()) {
                Some(_) => block_at(plan, id).to_string(),
                None => format!("block {}", id.0),
            };
            Violation::ResidentList { network: network.name.clone(), problem, block }
        };
        let loads = compare(&network.loads, &read(plan, network));
        let problems = ["reads but does not load", "loads but does not read", "loads out of order"];
        loads.map_err(|(which, id)| refuse(problems[which], id))?;
        let overwrites = compare(&network.overwrites, &overwritten(plan, span));
        let problems = ["overwrites without a word", "spares", "lists out of order"];
        overwrites.map_err(|(which, id)| refuse(problems[which], id))?;
    }
    Ok(())
}

/// Errors: the first block that is missing (0), should not be there (1) or is out of order (2).
fn compare(list: &[BlockId], found: &BTreeSet<BlockId>) -> Result<(), (usize, BlockId)> {
    let listed: BTreeSet<BlockId> = list.iter().copied().collect();
    let out_of_order = list.windows(2).find(|pair| pair[0] >= pair[1]).map(|pair| pair[1]);
    let wrong = [
        found.difference(&listed).next().copied(),
        listed.difference(found).next().copied(),
        out_of_order,
    ];
    let first = wrong.into_iter().enumerate().find_map(|(which, id)| Some((which, id?)));
    first.map_or(Ok(()), Err)
}

/// The resident blocks that a network's launches read.
fn read(plan: &Plan, network: &Network) -> BTreeSet<BlockId> {
    let args = network.steps.iter().flat_map(|step| match step {
        Step::Dispatch(dispatch) => dispatch.args.as_slice(),
        _ => &[],
    });
    let is_resident = |block: &BlockId| plan.blocks[block.index()].residency != Residency::Streamed;
    let block = |arg: &Arg| match *arg {
        Arg::Weight { block, .. } => Some(block),
        _ => None,
    };
    args.filter_map(block).filter(is_resident).collect()
}

/// The resident blocks that share bytes of the arena with a buffer that is live in the interval.
///
/// A buffer meets `[start, end)` if it starts before `end` and does not end before `start`. A
/// search in sorted addresses counts both.
fn overwritten(plan: &Plan, span: (u32, u32)) -> BTreeSet<BlockId> {
    let is_live = |lower: u32, upper: u32| lower < span.1 && span.0 < upper;
    let live = plan.buffers.iter().filter(|buffer| is_live(buffer.lower, buffer.upper));
    let mut starts: Vec<u64> = live.clone().map(|buffer| buffer.offset_bytes).collect();
    let mut ends: Vec<u64> = live.map(|buffer| buffer.offset_bytes + buffer.len_bytes).collect();
    starts.sort_unstable();
    ends.sort_unstable();
    let is_overwritten = |id: &BlockId| {
        let block = &plan.blocks[id.index()];
        let Residency::Resident(own) = block.residency else { return false };
        let own = &plan.buffers[own.index()];
        let (start, end) = (own.offset_bytes, own.offset_bytes + block.len_bytes);
        let meet = starts.partition_point(|at| *at < end) - ends.partition_point(|at| *at <= start);
        meet > usize::from(is_live(own.lower, own.upper))
    };
    (0..).map(BlockId).take(plan.blocks.len()).filter(is_overwritten).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Buffer, BufferId};
    use crate::testing;

    #[test]
    fn the_count_agrees_with_brute_force() {
        let mut plan = testing::plan();
        arbtest::arbtest(|u| {
            plan.buffers = testing::random_buffers(u, 3..=10)?;
            for (index, block) in plan.blocks.iter_mut().enumerate() {
                block.residency = Residency::Resident(BufferId(index as u32));
                block.len_bytes = u.int_in_range(1..=plan.buffers[index].len_bytes)?;
            }
            let lower = u.int_in_range(0..=9)?;
            let span = (lower, u.int_in_range(lower + 1..=10)?);
            let meets = |own: usize, other: &Buffer| {
                let (start, len_bytes) =
                    (plan.buffers[own].offset_bytes, plan.blocks[own].len_bytes);
                other.lower < span.1
                    && span.0 < other.upper
                    && other.offset_bytes < start + len_bytes
                    && start < other.offset_bytes + other.len_bytes
            };
            let expected = (0..plan.blocks.len()).filter(|&own| {
                let mut others = plan.buffers.iter().enumerate();
                others.any(|(index, other)| index != own && meets(own, other))
            });
            let expected: BTreeSet<BlockId> = expected.map(|own| BlockId(own as u32)).collect();
            assert_eq!(overwritten(&plan, span), expected, "{:?} {:?}", plan.buffers, plan.blocks);
            Ok(())
        })
        .budget_ms(500);
    }
}
