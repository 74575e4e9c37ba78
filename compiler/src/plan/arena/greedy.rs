//! Greedy placement: buffers are placed in a fixed order, each at the best remaining offset.

use std::cmp::Reverse;

use super::{ArenaProblem, Solution};

/// The order of placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Largest size first.
    Size,
    /// Largest area first: size times length of the live range.
    Area,
    /// Earliest live range first.
    Start,
    /// Largest contention first; the longest live range first among equals.
    Contention,
}

/// The choice among the gaps into which a buffer fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// The lowest gap.
    First,
    /// The smallest gap; the space above all buffers only if there is no gap.
    Best,
}

/// Orders and fits to try, the most promising first.
const ATTEMPTS: [(Order, Fit); 8] = [
    (Order::Size, Fit::Best),
    (Order::Size, Fit::First),
    (Order::Contention, Fit::First),
    (Order::Area, Fit::First),
    (Order::Start, Fit::Best),
    (Order::Start, Fit::First),
    (Order::Contention, Fit::Best),
    (Order::Area, Fit::Best),
];

/// The lowest of several greedy placements. Stops at the first one not above `target_bytes`.
///
/// Requires a problem that [`ArenaProblem::validate`] accepts. Ignores the capacity.
pub(super) fn greedy(problem: &ArenaProblem, target_bytes: u64) -> Solution {
    let mut best: Option<Solution> = None;
    for (order, fit) in ATTEMPTS {
        let solution = place(problem, &sequence(problem, order), fit);
        if best.as_ref().is_none_or(|b| solution.height_bytes < b.height_bytes) {
            best = Some(solution);
        }
        if best.as_ref().is_some_and(|b| b.height_bytes <= target_bytes) {
            break;
        }
    }
    best.unwrap_or_default()
}

/// The indices of all buffers in the given order. Ties go to the larger buffer, then the earlier
/// one, then the smaller index.
fn sequence(problem: &ArenaProblem, order: Order) -> Vec<usize> {
    let buffers = &problem.buffers;
    let contention = match order {
        Order::Contention => contention(problem),
        _ => Vec::new(),
    };
    let mut indices: Vec<usize> = (0..buffers.len()).collect();
    indices.sort_by_cached_key(|&i| {
        let b = &buffers[i];
        let length = u128::from(b.upper - b.lower);
        let (major, minor) = match order {
            Order::Size => (Reverse(u128::from(b.size_bytes)), Reverse(length)),
            Order::Area => (Reverse(u128::from(b.size_bytes) * length), Reverse(0)),
            Order::Start => (Reverse(u128::from(u32::MAX - b.lower)), Reverse(length)),
            Order::Contention => (Reverse(u128::from(contention[i])), Reverse(length)),
        };
        (major, minor, Reverse(b.size_bytes), b.lower, i)
    });
    indices
}

/// For each buffer, the largest sum of live bytes over its live range.
fn contention(problem: &ArenaProblem) -> Vec<u64> {
    let buffers = &problem.buffers;
    let mut times: Vec<u32> = buffers.iter().map(|b| b.lower).collect();
    times.sort_unstable();
    times.dedup();
    let span = |lower: u32, upper: u32| {
        times.partition_point(|&t| t < lower)..times.partition_point(|&t| t < upper)
    };
    let mut live_bytes = vec![0u64; times.len()];
    for b in buffers {
        live_bytes[span(b.lower, b.upper)].iter_mut().for_each(|live| *live += b.size_bytes);
    }
    let most = |b: &super::Buffer| live_bytes[span(b.lower, b.upper)].iter().copied().max();
    buffers.iter().map(|b| most(b).unwrap_or(0)).collect()
}

/// Places the fixed buffers, then all others in the given order.
fn place(problem: &ArenaProblem, sequence: &[usize], fit: Fit) -> Solution {
    let buffers = &problem.buffers;
    let mut solution = Solution { offsets: vec![0; buffers.len()], height_bytes: 0 };
    // Placed buffers, sorted by offset.
    let mut placed: Vec<usize> = Vec::with_capacity(buffers.len());
    let (fixed, free): (Vec<usize>, Vec<usize>) =
        sequence.iter().partition(|&&i| buffers[i].fixed_offset.is_some());
    for i in fixed.into_iter().chain(free) {
        let offset = match buffers[i].fixed_offset {
            Some(offset) => offset,
            None => find_offset(problem, &solution.offsets, &placed, i, fit),
        };
        solution.offsets[i] = offset;
        solution.height_bytes = solution.height_bytes.max(offset + buffers[i].size_bytes);
        placed.insert(placed.partition_point(|&j| solution.offsets[j] <= offset), i);
    }
    solution
}

/// The offset of buffer `i` among the buffers `placed` so far, which are sorted by offset.
fn find_offset(
    problem: &ArenaProblem,
    offsets: &[u64],
    placed: &[usize],
    i: usize,
    fit: Fit,
) -> u64 {
    let buffer = &problem.buffers[i];
    let mut floor = 0u64;
    // Slack and offset of the best gap so far.
    let mut best: Option<(u64, u64)> = None;
    for &j in placed {
        let other = &problem.buffers[j];
        if other.upper <= buffer.lower || buffer.upper <= other.lower {
            continue;
        }
        let offset = problem.lowest_offset(buffer, floor);
        let ceiling = offsets[j];
        if offset + buffer.size_bytes <= ceiling {
            let slack = ceiling - floor - buffer.size_bytes;
            if fit == Fit::First || slack == 0 {
                return offset;
            }
            if best.is_none_or(|(least, _)| slack < least) {
                best = Some((slack, offset));
            }
        }
        floor = floor.max(ceiling + other.size_bytes);
    }
    best.map_or_else(|| problem.lowest_offset(buffer, floor), |(_, offset)| offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::arena::{Buffer, check};

    #[test]
    fn buffers_that_never_meet_share_memory() {
        let buffers = (0..9).map(|t| Buffer::new(t, t + 1, 64, 16)).collect();
        let problem = ArenaProblem { buffers, capacity_bytes: None, part_bytes: None };
        assert_eq!(greedy(&problem, 64).height_bytes, 64);
    }

    #[test]
    fn best_fit_takes_the_smallest_gap() {
        // The last buffer fits in a gap of 12 at 0 and in one of 8 at 16.
        let mut buffers =
            vec![Buffer::new(0, 9, 4, 1), Buffer::new(0, 9, 4, 1), Buffer::new(0, 9, 8, 1)];
        buffers[0].fixed_offset = Some(12);
        buffers[1].fixed_offset = Some(24);
        let problem = ArenaProblem { buffers, capacity_bytes: None, part_bytes: None };
        let sequence = sequence(&problem, Order::Size);
        assert_eq!(place(&problem, &sequence, Fit::Best).offsets, [12, 24, 16]);
        assert_eq!(place(&problem, &sequence, Fit::First).offsets, [12, 24, 0]);
    }

    #[test]
    fn every_attempt_gives_a_right_solution() {
        let lifespan = |i: u32| (i * 7 % 40, i * 7 % 40 + 1 + i * i % 23);
        let buffer = |i: u32| {
            let (lower, upper) = lifespan(i);
            Buffer::new(lower, upper, 1 + u64::from(i * 37 % 301), 1 << (i % 7))
        };
        let buffers = (0..120).map(buffer).collect();
        let problem = ArenaProblem { buffers, capacity_bytes: None, part_bytes: None };
        for (order, fit) in ATTEMPTS {
            let solution = place(&problem, &sequence(&problem, order), fit);
            assert_eq!(check(&problem, &solution), Ok(()), "{order:?} {fit:?}");
        }
    }
}
