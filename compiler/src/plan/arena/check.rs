//! Checks a solution in O(n^2), sharing no code with the solver.

use thiserror::Error;

use super::{ArenaProblem, Solution};

/// A rule that a solution breaks. Indices are positions in [`ArenaProblem::buffers`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CheckError {
    /// There must be one offset for each buffer.
    #[error("{offset_count} offsets for {buffer_count} buffers")]
    Count {
        /// Number of buffers.
        buffer_count: usize,
        /// Number of offsets.
        offset_count: usize,
    },
    /// An offset must be a multiple of its buffer's alignment.
    #[error("buffer {buffer} is at {offset}, which is no multiple of its alignment {align_bytes}")]
    Alignment {
        /// The buffer.
        buffer: usize,
        /// The buffer's offset.
        offset: u64,
        /// The buffer's alignment.
        align_bytes: u64,
    },
    /// A fixed buffer must be where it was fixed.
    #[error("buffer {buffer} is at {offset} but was fixed at {fixed_offset}")]
    Fixed {
        /// The buffer.
        buffer: usize,
        /// The buffer's offset.
        offset: u64,
        /// The offset at which the buffer is fixed.
        fixed_offset: u64,
    },
    /// A buffer must be in one part of the arena.
    #[error("buffer {buffer} at {offset} is in two parts of {part_bytes} bytes")]
    Part {
        /// The buffer.
        buffer: usize,
        /// The buffer's offset.
        offset: u64,
        /// Length of the arena's parts.
        part_bytes: u64,
    },
    /// Two buffers that are live together must not share a byte.
    #[error("buffers {first} and {second} share memory while both are live")]
    Overlap {
        /// The buffer with the smaller index.
        first: usize,
        /// The other buffer.
        second: usize,
    },
    /// The stated height must be the end of the highest buffer.
    #[error("the stated height is {height_bytes} bytes but {}", highest(*buffer, *end_bytes))]
    Height {
        /// The highest buffer; `None` if there are no buffers.
        buffer: Option<usize>,
        /// End of the highest buffer; `u64::MAX` if it exceeds 64 bits.
        end_bytes: u64,
        /// The height that the solution states.
        height_bytes: u64,
    },
    /// No buffer may end above the problem's capacity.
    #[error("buffer {buffer} ends at {end_bytes}, above the capacity of {capacity_bytes} bytes")]
    Capacity {
        /// The highest buffer.
        buffer: usize,
        /// End of the buffer.
        end_bytes: u64,
        /// The problem's capacity.
        capacity_bytes: u64,
    },
}

fn highest(buffer: Option<usize>, end_bytes: u64) -> String {
    match buffer {
        Some(buffer) => format!("the highest buffer, {buffer}, ends at {end_bytes}"),
        None => "there are no buffers".to_string(),
    }
}

/// Accepts a solution if and only if every rule holds. Every buffer is aligned, at its fixed offset
/// and in one part. Buffers that are live at the same time are disjoint. All buffers are below the
/// capacity, if there is one. The height is exact.
///
/// Errors: the first broken rule, with the buffers that break it.
pub fn check(problem: &ArenaProblem, solution: &Solution) -> Result<(), CheckError> {
    let buffers = &problem.buffers;
    let offsets = &solution.offsets;
    if buffers.len() != offsets.len() {
        let (buffer_count, offset_count) = (buffers.len(), offsets.len());
        return Err(CheckError::Count { buffer_count, offset_count });
    }
    // 128 bits, so that no sum can wrap whatever the offsets are.
    let mut highest: Option<(u128, usize)> = None;
    for (i, (a, &a_offset)) in buffers.iter().zip(offsets).enumerate() {
        if a_offset % a.align_bytes != 0 {
            let align_bytes = a.align_bytes;
            return Err(CheckError::Alignment { buffer: i, offset: a_offset, align_bytes });
        }
        if let Some(fixed_offset) = a.fixed_offset.filter(|&fixed| fixed != a_offset) {
            return Err(CheckError::Fixed { buffer: i, offset: a_offset, fixed_offset });
        }
        let a_end = u128::from(a_offset) + u128::from(a.size_bytes);
        if let Some(part_bytes) = problem.part_bytes {
            let part_of = |byte: u128| byte / u128::from(part_bytes);
            if part_of(a_offset.into()) != part_of(a_end - 1) {
                return Err(CheckError::Part { buffer: i, offset: a_offset, part_bytes });
            }
        }
        for (j, (b, &b_offset)) in buffers.iter().zip(offsets).enumerate().skip(i + 1) {
            let b_end = u128::from(b_offset) + u128::from(b.size_bytes);
            let apart_in_time = a.upper <= b.lower || b.upper <= a.lower;
            let apart_in_space = a_end <= u128::from(b_offset) || b_end <= u128::from(a_offset);
            if !apart_in_time && !apart_in_space {
                return Err(CheckError::Overlap { first: i, second: j });
            }
        }
        highest = highest.max(Some((a_end, i)));
    }
    check_height(problem, solution, highest)
}

fn check_height(
    problem: &ArenaProblem,
    solution: &Solution,
    highest: Option<(u128, usize)>,
) -> Result<(), CheckError> {
    let end = highest.map_or(0, |(end, _)| end);
    let end_bytes = u64::try_from(end).unwrap_or(u64::MAX);
    if end != u128::from(solution.height_bytes) {
        let (buffer, height_bytes) = (highest.map(|(_, i)| i), solution.height_bytes);
        return Err(CheckError::Height { buffer, end_bytes, height_bytes });
    }
    match (highest, problem.capacity_bytes) {
        (Some((_, buffer)), Some(capacity_bytes)) if end > u128::from(capacity_bytes) => {
            Err(CheckError::Capacity { buffer, end_bytes, capacity_bytes })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::arena::Buffer;

    /// Two buffers that meet in time, and a later one.
    fn example() -> (ArenaProblem, Solution) {
        let buffers =
            vec![Buffer::new(0, 2, 16, 8), Buffer::new(1, 3, 8, 8), Buffer::new(3, 4, 24, 8)];
        let problem = ArenaProblem { buffers, capacity_bytes: Some(24), part_bytes: None };
        (problem, Solution { offsets: vec![0, 16, 0], height_bytes: 24 })
    }

    #[test]
    fn a_right_solution_is_accepted() {
        let (problem, solution) = example();
        assert_eq!(check(&problem, &solution), Ok(()));
        assert_eq!(check(&ArenaProblem::default(), &Solution::default()), Ok(()));
    }

    #[test]
    fn every_broken_rule_is_named() {
        let (mut problem, good) = example();
        let mut bad = good.clone();
        bad.offsets[1] = 8;
        assert_eq!(check(&problem, &bad), Err(CheckError::Overlap { first: 0, second: 1 }));
        bad.offsets[1] = 20;
        let error = CheckError::Alignment { buffer: 1, offset: 20, align_bytes: 8 };
        assert_eq!(check(&problem, &bad), Err(error));
        bad.offsets.pop();
        let error = CheckError::Count { buffer_count: 3, offset_count: 2 };
        assert_eq!(check(&problem, &bad), Err(error));

        bad = good.clone();
        bad.height_bytes = 32;
        let error = CheckError::Height { buffer: Some(2), end_bytes: 24, height_bytes: 32 };
        assert_eq!(check(&problem, &bad), Err(error));
        let error = CheckError::Height { buffer: None, end_bytes: 0, height_bytes: 32 };
        bad.offsets.clear();
        assert_eq!(check(&ArenaProblem::default(), &bad), Err(error));

        problem.buffers[0].fixed_offset = Some(8);
        let error = CheckError::Fixed { buffer: 0, offset: 0, fixed_offset: 8 };
        assert_eq!(check(&problem, &good), Err(error));
        problem.buffers[0].fixed_offset = None;
        problem.capacity_bytes = Some(23);
        let error = CheckError::Capacity { buffer: 2, end_bytes: 24, capacity_bytes: 23 };
        assert_eq!(check(&problem, &good), Err(error));
    }

    #[test]
    fn offsets_near_the_end_of_64_bits_do_not_wrap() {
        let buffers = vec![Buffer::new(0, 1, 16, 1), Buffer::new(0, 1, 16, 1)];
        let problem = ArenaProblem { buffers, capacity_bytes: None, part_bytes: None };
        let solution = Solution { offsets: vec![u64::MAX - 4, 0], height_bytes: 12 };
        assert!(matches!(check(&problem, &solution), Err(CheckError::Height { .. })));
    }
}
