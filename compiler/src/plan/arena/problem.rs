//! The arena problem: its definition, its validity, and its lower bound.

use std::collections::BTreeMap;

use thiserror::Error;

/// A region of memory with a half-open live range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// First instant of the live range.
    pub lower: u32,
    /// First instant after the live range; greater than `lower`.
    pub upper: u32,
    /// Size in bytes, at least 1. Not rounded up to the alignment.
    pub size_bytes: u64,
    /// Alignment of the offset in bytes: at least 1, not necessarily a power of two.
    pub align_bytes: u64,
    /// A fixed offset in bytes; `None` if the solver chooses it.
    pub fixed_offset: Option<u64>,
}

impl Buffer {
    /// A buffer that is live during `[lower, upper)`, at any multiple of `align_bytes`.
    pub fn new(lower: u32, upper: u32, size_bytes: u64, align_bytes: u64) -> Self {
        Self { lower, upper, size_bytes, align_bytes, fixed_offset: None }
    }

    /// Checks the rules of a single buffer. `index` goes into the error.
    pub(super) fn validate(&self, index: usize) -> Result<(), ProblemError> {
        if self.lower >= self.upper {
            return Err(ProblemError::EmptyLifespan { buffer: index });
        }
        if self.size_bytes == 0 {
            return Err(ProblemError::EmptyBuffer { buffer: index });
        }
        if self.align_bytes == 0 {
            return Err(ProblemError::ZeroAlignment { buffer: index });
        }
        match self.fixed_offset {
            Some(offset) if !offset.is_multiple_of(self.align_bytes) => {
                let align_bytes = self.align_bytes;
                Err(ProblemError::FixedMisaligned { buffer: index, offset, align_bytes })
            }
            _ => Ok(()),
        }
    }
}

/// Buffers that share one arena.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArenaProblem {
    /// The buffers. Other types refer to a buffer by its index here.
    pub buffers: Vec<Buffer>,
    /// Sufficient height in bytes. `None` asks for the lowest height.
    pub capacity_bytes: Option<u64>,
    /// Length in bytes of the arena's parts, a multiple of all alignments. The arena is cut at
    /// multiples of this length, and no buffer may cross a cut. `None` for an arena in one part.
    pub part_bytes: Option<u64>,
}

/// The offset of every buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Solution {
    /// Offsets in bytes, one for each buffer, in the order of the buffers.
    pub offsets: Vec<u64>,
    /// The largest `offset + size_bytes`; 0 if there are no buffers.
    pub height_bytes: u64,
}

/// A rule that a problem breaks. Indices are positions in [`ArenaProblem::buffers`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProblemError {
    /// `lower < upper` does not hold.
    #[error("buffer {buffer} is never live")]
    EmptyLifespan {
        /// The buffer.
        buffer: usize,
    },
    /// The size is 0 bytes.
    #[error("buffer {buffer} has a size of 0 bytes")]
    EmptyBuffer {
        /// The buffer.
        buffer: usize,
    },
    /// The alignment is 0.
    #[error("buffer {buffer} has an alignment of 0")]
    ZeroAlignment {
        /// The buffer.
        buffer: usize,
    },
    /// The fixed offset is not a multiple of the alignment.
    #[error(
        "buffer {buffer} is fixed at {offset}, which is no multiple of its alignment {align_bytes}"
    )]
    FixedMisaligned {
        /// The buffer.
        buffer: usize,
        /// The buffer's fixed offset.
        offset: u64,
        /// The buffer's alignment.
        align_bytes: u64,
    },
    /// Two fixed buffers share a byte while both are live.
    #[error("buffers {first} and {second} are fixed on top of each other")]
    FixedOverlap {
        /// The buffer with the smaller index.
        first: usize,
        /// The other buffer.
        second: usize,
    },
    /// The buffer is larger than a part of the arena, its alignment does not divide the part's
    /// length, or its fixed offset puts it into two parts.
    #[error("buffer {buffer} does not fit in a part of {part_bytes} bytes")]
    Part {
        /// The buffer.
        buffer: usize,
        /// Length of the arena's parts.
        part_bytes: u64,
    },
    /// All sizes, alignments and fixed offsets together exceed 63 bits.
    #[error("the sizes add up to more than 63 bits hold")]
    TooLarge,
}

/// An instant at which the live buffers alone exceed a capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The instant: the earliest one with the largest `live_bytes`.
    pub time: u32,
    /// Sum of the live sizes, including gaps that alignment forces.
    pub live_bytes: u64,
    /// Index and size in bytes of every live buffer, largest first.
    pub buffers: Vec<(usize, u64)>,
}

impl ArenaProblem {
    /// Checks all rules except the capacity.
    ///
    /// Errors: the first [`ProblemError`], in the order of the buffers.
    pub fn validate(&self) -> Result<(), ProblemError> {
        let mut total_bytes = 0u64;
        let mut highest_fixed = 0u64;
        for (index, buffer) in self.buffers.iter().enumerate() {
            buffer.validate(index)?;
            self.validate_part(index)?;
            total_bytes = total_bytes
                .checked_add(buffer.size_bytes)
                .and_then(|sum| sum.checked_add(buffer.align_bytes))
                .ok_or(ProblemError::TooLarge)?;
            highest_fixed = highest_fixed.max(buffer.fixed_offset.unwrap_or(0));
        }
        match total_bytes.checked_add(highest_fixed) {
            Some(sum) if sum <= u64::MAX >> 1 => self.validate_fixed(),
            _ => Err(ProblemError::TooLarge),
        }
    }

    fn validate_part(&self, index: usize) -> Result<(), ProblemError> {
        let Some(part_bytes) = self.part_bytes else { return Ok(()) };
        let buffer = &self.buffers[index];
        let fits = part_bytes > 0
            && buffer.size_bytes <= part_bytes
            && part_bytes.is_multiple_of(buffer.align_bytes)
            && buffer
                .fixed_offset
                .is_none_or(|offset| self.lowest_offset(buffer, offset) == offset);
        if fits { Ok(()) } else { Err(ProblemError::Part { buffer: index, part_bytes }) }
    }

    /// The lowest offset from `floor` on that a buffer may have: aligned, and in a single part.
    pub(super) fn lowest_offset(&self, buffer: &Buffer, floor: u64) -> u64 {
        let offset = floor.next_multiple_of(buffer.align_bytes);
        match self.part_bytes {
            Some(part) if offset % part + buffer.size_bytes > part => offset.next_multiple_of(part),
            _ => offset,
        }
    }

    fn validate_fixed(&self) -> Result<(), ProblemError> {
        let fixed: Vec<(usize, &Buffer, u64)> = (self.buffers.iter().enumerate())
            .filter_map(|(index, b)| b.fixed_offset.map(|offset| (index, b, offset)))
            .collect();
        for (position, &(first, a, a_offset)) in fixed.iter().enumerate() {
            for &(second, b, b_offset) in &fixed[position + 1..] {
                let in_time = a.lower < b.upper && b.lower < a.upper;
                let in_space =
                    a_offset < b_offset + b.size_bytes && b_offset < a_offset + a.size_bytes;
                if in_time && in_space {
                    return Err(ProblemError::FixedOverlap { first, second });
                }
            }
        }
        Ok(())
    }

    /// A lower bound of the height: the largest sum of live sizes.
    ///
    /// All offsets are multiples of the alignments' common divisor. So every live buffer except the
    /// topmost one counts with its size rounded up to this divisor. Requires a problem that
    /// [`validate`](Self::validate) accepts.
    pub fn lower_bound_bytes(&self) -> u64 {
        let fixed = (self.buffers.iter())
            .filter_map(|b| b.fixed_offset.map(|offset| offset + b.size_bytes))
            .max();
        let live = self.busiest_time().map_or(0, |(_, live_bytes)| live_bytes);
        live.max(fixed.unwrap_or(0))
    }

    /// The earliest instant with the largest sum of live bytes, and this sum.
    fn busiest_time(&self) -> Option<(u32, u64)> {
        let grain = self.grain_bytes();
        // At equal times ends come first, because live ranges are half-open.
        let mut events: Vec<(u32, bool, usize)> = Vec::with_capacity(2 * self.buffers.len());
        for (index, buffer) in self.buffers.iter().enumerate() {
            events.push((buffer.lower, true, index));
            events.push((buffer.upper, false, index));
        }
        events.sort_unstable();
        let mut live_bytes = 0u64;
        // Number of live buffers by the size of the gap that rounding puts above them.
        let mut gaps: BTreeMap<u64, usize> = BTreeMap::new();
        let mut busiest: Option<(u32, u64)> = None;
        for (time, starts, index) in events {
            let size_bytes = self.buffers[index].size_bytes;
            let rounded = size_bytes.next_multiple_of(grain);
            let count = gaps.entry(rounded - size_bytes).or_insert(0);
            if starts {
                *count += 1;
                live_bytes += rounded;
            } else {
                *count -= 1;
                if *count == 0 {
                    gaps.remove(&(rounded - size_bytes));
                }
                live_bytes -= rounded;
                continue;
            }
            let topmost_gap = gaps.last_key_value().map_or(0, |(&gap, _)| gap);
            let need = live_bytes - topmost_gap;
            if busiest.is_none_or(|(_, most)| need > most) {
                busiest = Some((time, need));
            }
        }
        busiest
    }

    /// The greatest common divisor of the alignments; 1 if there are no buffers.
    pub(super) fn grain_bytes(&self) -> u64 {
        self.buffers.iter().fold(0, |grain, b| gcd(grain, b.align_bytes)).max(1)
    }
}

/// The conflict because of which `problem` cannot fit in `capacity_bytes`, if the live sizes alone
/// exceed it.
///
/// `None` does not guarantee that a placement exists. Requires a problem that
/// [`ArenaProblem::validate`] accepts.
pub fn conflict(problem: &ArenaProblem, capacity_bytes: u64) -> Option<Conflict> {
    let (time, live_bytes) = problem.busiest_time()?;
    if live_bytes <= capacity_bytes {
        return None;
    }
    let mut buffers: Vec<(usize, u64)> = (problem.buffers.iter().enumerate())
        .filter(|(_, b)| b.lower <= time && time < b.upper)
        .map(|(index, b)| (index, b.size_bytes))
        .collect();
    buffers.sort_by_key(|&(index, size_bytes)| (std::cmp::Reverse(size_bytes), index));
    Some(Conflict { time, live_bytes, buffers })
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(buffers: &[(u32, u32, u64, u64)]) -> ArenaProblem {
        let buffers = buffers.iter().map(|&(l, u, s, a)| Buffer::new(l, u, s, a)).collect();
        ArenaProblem { buffers, capacity_bytes: None, part_bytes: None }
    }

    #[test]
    fn the_lower_bound_is_the_largest_sum_of_live_sizes() {
        assert_eq!(problem(&[]).lower_bound_bytes(), 0);
        assert_eq!(problem(&[(0, 2, 5, 1), (2, 4, 7, 1), (1, 3, 2, 1)]).lower_bound_bytes(), 9);
    }

    #[test]
    fn only_the_topmost_buffer_goes_without_padding() {
        // 256 + 256 + 100, with the largest gap on top.
        let p = problem(&[(0, 1, 200, 256), (0, 1, 256, 256), (0, 1, 100, 256)]);
        assert_eq!(p.lower_bound_bytes(), 612);
        // One byte always fits behind the buffer of coarser alignment.
        assert_eq!(problem(&[(0, 1, 1, 1), (0, 1, 1, 256)]).lower_bound_bytes(), 2);
    }

    #[test]
    fn a_fixed_buffer_raises_the_lower_bound() {
        let mut p = problem(&[(0, 1, 8, 8)]);
        p.buffers[0].fixed_offset = Some(64);
        assert_eq!(p.lower_bound_bytes(), 72);
    }

    #[test]
    fn a_conflict_names_the_live_buffers_largest_first() {
        let p = problem(&[(0, 9, 3, 1), (4, 6, 9, 1), (5, 7, 4, 1), (6, 8, 1, 1)]);
        let expected = Conflict { time: 5, live_bytes: 16, buffers: vec![(1, 9), (2, 4), (0, 3)] };
        assert_eq!(conflict(&p, 15), Some(expected));
        assert_eq!(conflict(&p, 16), None);
    }

    #[test]
    fn malformed_problems_are_named() {
        let error = |p: &ArenaProblem| p.validate().unwrap_err();
        let of = |b: (u32, u32, u64, u64)| problem(&[b]);
        assert_eq!(error(&of((3, 3, 1, 1))), ProblemError::EmptyLifespan { buffer: 0 });
        assert_eq!(error(&of((0, 1, 0, 1))), ProblemError::EmptyBuffer { buffer: 0 });
        assert_eq!(error(&of((0, 1, 1, 0))), ProblemError::ZeroAlignment { buffer: 0 });
        assert_eq!(error(&of((0, 1, u64::MAX, 1))), ProblemError::TooLarge);
        let mut p = problem(&[(0, 2, 8, 8), (1, 3, 8, 8)]);
        p.buffers[0].fixed_offset = Some(4);
        let fixed = ProblemError::FixedMisaligned { buffer: 0, offset: 4, align_bytes: 8 };
        assert_eq!(error(&p), fixed);
        p.buffers[0].fixed_offset = Some(0);
        p.buffers[1].fixed_offset = Some(0);
        assert_eq!(error(&p), ProblemError::FixedOverlap { first: 0, second: 1 });
        p.buffers[1].fixed_offset = Some(8);
        assert_eq!(p.validate(), Ok(()));
    }
}
