//! Weight blocks in their section, and the buffers of resident blocks.

use super::violation::{Violation, block_at, buffer_at};
use crate::format::PAGE_BYTES;
use crate::plan::{BlockId, BufferId, Plan, Residency};

/// Checks every block. Returns the resident block of each buffer.
pub(super) fn check(
    plan: &Plan,
    weights_len_bytes: u64,
) -> Result<Vec<Option<BlockId>>, Violation> {
    let mut owners = vec![None; plan.buffers.len()];
    for id in (0..).map(BlockId).take(plan.blocks.len()) {
        check_bounds(plan, id, weights_len_bytes)?;
        if let Residency::Resident(buffer) = plan.blocks[id.index()].residency {
            check_resident(plan, id, buffer, &mut owners)?;
        }
    }
    check_disjoint(plan)?;
    Ok(owners)
}

fn check_bounds(plan: &Plan, id: BlockId, weights_len_bytes: u64) -> Result<(), Violation> {
    let block = &plan.blocks[id.index()];
    let what = || block_at(plan, id).to_string();
    if block.len_bytes == 0 {
        return Err(Violation::Empty { what: what() });
    }
    if !block.offset_bytes.is_multiple_of(PAGE_BYTES) {
        return Err(Violation::Misaligned { what: what(), align_bytes: PAGE_BYTES });
    }
    let end_bytes = block.offset_bytes.checked_add(block.len_bytes);
    if end_bytes.is_none_or(|end_bytes| end_bytes > weights_len_bytes) {
        let within = "the weights";
        return Err(Violation::Outside { what: what(), within, within_bytes: weights_len_bytes });
    }
    Ok(())
}

fn check_resident(
    plan: &Plan,
    id: BlockId,
    buffer: BufferId,
    owners: &mut [Option<BlockId>],
) -> Result<(), Violation> {
    let block = || block_at(plan, id);
    let count = owners.len();
    let Some(owner) = owners.get_mut(buffer.index()) else {
        let by = block().to_string();
        return Err(Violation::NoSuch { by, what: "buffer", id: buffer.0, count });
    };
    if plan.buffers[buffer.index()].len_bytes < plan.blocks[id.index()].len_bytes {
        let buffer = buffer_at(plan, buffer);
        return Err(Violation::ResidentTooLarge { block: block(), buffer });
    }
    match owner.replace(id) {
        None => Ok(()),
        Some(first) => Err(Violation::ResidentShared {
            first: block_at(plan, first),
            second: block(),
            buffer: buffer_at(plan, buffer),
        }),
    }
}

/// Requires: every block is within its bounds.
fn check_disjoint(plan: &Plan) -> Result<(), Violation> {
    let mut order: Vec<BlockId> = (0..).map(BlockId).take(plan.blocks.len()).collect();
    order.sort_by_key(|id| plan.blocks[id.index()].offset_bytes);
    for (&first, &second) in order.iter().zip(order.iter().skip(1)) {
        let block = &plan.blocks[first.index()];
        if block.offset_bytes + block.len_bytes > plan.blocks[second.index()].offset_bytes {
            let (first, second) = (block_at(plan, first), block_at(plan, second));
            return Err(Violation::BlocksOverlap { first, second });
        }
    }
    Ok(())
}
