//! Buffers as rectangles in time and address: each in bounds, no two overlapping.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::violation::{Violation, buffer_at};
use crate::plan::{BufferId, Plan};

/// Checks every buffer and every pair. Returns the largest sum of live sizes.
pub(super) fn check(plan: &Plan, instant_count: u32) -> Result<u64, Violation> {
    for id in (0..).map(BufferId).take(plan.buffers.len()) {
        check_bounds(plan, id, instant_count)?;
    }
    let found_bytes = sweep(plan)?;
    let stated_bytes = plan.memory.arena_lower_bound_bytes;
    if stated_bytes != found_bytes {
        return Err(Violation::LowerBound { stated_bytes, found_bytes });
    }
    Ok(found_bytes)
}

fn check_bounds(plan: &Plan, id: BufferId, instant_count: u32) -> Result<(), Violation> {
    let buffer = &plan.buffers[id.index()];
    let what = || buffer_at(plan, id).to_string();
    if buffer.len_bytes == 0 {
        return Err(Violation::Empty { what: what() });
    }
    let align_bytes = plan.requirements.base_align_bytes;
    if !buffer.offset_bytes.is_multiple_of(align_bytes) {
        return Err(Violation::Misaligned { what: what(), align_bytes });
    }
    let end_bytes = buffer.offset_bytes.checked_add(buffer.len_bytes);
    let arena_bytes = plan.memory.arena_bytes;
    if end_bytes.is_none_or(|end_bytes| end_bytes > arena_bytes) {
        let within = "the arena";
        return Err(Violation::Outside { what: what(), within, within_bytes: arena_bytes });
    }
    let part_bytes = plan.memory.arena_part_bytes;
    let last_byte = buffer.offset_bytes + buffer.len_bytes - 1;
    if part_bytes < arena_bytes && buffer.offset_bytes / part_bytes != last_byte / part_bytes {
        return Err(Violation::AcrossParts { buffer: buffer_at(plan, id), part_bytes });
    }
    if buffer.lower >= buffer.upper || buffer.upper > instant_count {
        return Err(Violation::Life { buffer: buffer_at(plan, id), instant_count });
    }
    Ok(())
}

/// Sweeps over time with the live buffers in order of address. They are disjoint, so a buffer that
/// becomes live can overlap only its two neighbours, and the sum of sizes fits the arena.
///
/// Requires: every buffer is within its bounds.
fn sweep(plan: &Plan) -> Result<u64, Violation> {
    let mut order: Vec<BufferId> = (0..).map(BufferId).take(plan.buffers.len()).collect();
    order.sort_by_key(|id| plan.buffers[id.index()].lower);
    let mut live = BTreeMap::new();
    let mut ends = BinaryHeap::new();
    let mut live_bytes = 0;
    let mut peak_bytes = 0;
    for id in order {
        let buffer = &plan.buffers[id.index()];
        while let Some(&Reverse((upper, offset_bytes, len_bytes))) = ends.peek() {
            if upper > buffer.lower {
                break;
            }
            ends.pop();
            live.remove(&offset_bytes);
            live_bytes -= len_bytes;
        }
        let below = live.range(..=buffer.offset_bytes).next_back();
        let above = live.range(buffer.offset_bytes..).next();
        for (_, &other_id) in below.into_iter().chain(above) {
            let other: &crate::plan::Buffer = &plan.buffers[BufferId::index(other_id)];
            if other.offset_bytes < buffer.offset_bytes + buffer.len_bytes
                && buffer.offset_bytes < other.offset_bytes + other.len_bytes
            {
                let (first, second) = (buffer_at(plan, other_id), buffer_at(plan, id));
                return Err(Violation::BuffersOverlap { first, second });
            }
        }
        live.insert(buffer.offset_bytes, id);
        ends.push(Reverse((buffer.upper, buffer.offset_bytes, buffer.len_bytes)));
        live_bytes += buffer.len_bytes;
        peak_bytes = peak_bytes.max(live_bytes);
    }
    Ok(peak_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Buffer;
    use crate::testing;

    /// The same questions, one pair and one instant at a time.
    fn brute_force(plan: &Plan, instant_count: u32) -> Option<u64> {
        let meet = |a: &Buffer, b: &Buffer| {
            a.lower < b.upper
                && b.lower < a.upper
                && a.offset_bytes < b.offset_bytes + b.len_bytes
                && b.offset_bytes < a.offset_bytes + a.len_bytes
        };
        for (index, a) in plan.buffers.iter().enumerate() {
            if plan.buffers[index + 1..].iter().any(|b| meet(a, b)) {
                return None;
            }
        }
        let live_at = |instant| {
            let live = plan.buffers.iter().filter(move |b| (b.lower..b.upper).contains(&instant));
            live.map(|b| b.len_bytes).sum()
        };
        Some((0..instant_count).map(live_at).max().unwrap_or(0))
    }

    #[test]
    fn the_sweep_agrees_with_brute_force() {
        let mut plan = testing::plan();
        arbtest::arbtest(|u| {
            plan.buffers = testing::random_buffers(u, 0..=8)?;
            assert_eq!(sweep(&plan).ok(), brute_force(&plan, 10), "{:?}", plan.buffers);
            Ok(())
        })
        .budget_ms(500);
    }
}
