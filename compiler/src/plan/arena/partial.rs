//! A placement under construction, from the bottom up, that can be undone step by step.
//!
//! It knows the lowest possible offset of every unplaced buffer, and for every section whether its
//! unplaced buffers can still end below the capacity.

use std::ops::Range;

use super::sections::Sections;
use super::{ArenaProblem, Buffer};

/// Marks a placed buffer in place of its lowest offset. Higher than any offset.
const PLACED: u64 = u64::MAX;

/// The constant facts of a buffer.
#[derive(Debug)]
struct Item {
    /// Size rounded up to the common divisor of all alignments.
    size: u64,
    /// Difference between the rounded and the exact size.
    padding: u64,
    fixed: bool,
}

/// A state to which [`Partial::undo`] returns.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    low_count: usize,
    floor_count: usize,
}

/// Some buffers placed, the others with lower bounds.
#[derive(Debug)]
pub(super) struct Partial<'a> {
    problem: &'a ArenaProblem,
    sections: &'a Sections,
    items: Vec<Item>,
    capacity: u64,
    /// The capacity, rounded up like the sizes.
    ceiling: u64,
    /// The offset of each placed buffer.
    offsets: Vec<u64>,
    /// The lowest possible offset of each unplaced buffer, [`PLACED`] for placed buffers.
    lows: Vec<u64>,
    /// Per section: a lower bound of the offsets of its unplaced buffers.
    floors: Vec<u64>,
    /// Per section: the sum of the sizes of its unplaced buffers.
    totals: Vec<u64>,
    /// Per section: the number of its unplaced buffers that are also in the next section.
    crossings: Vec<u32>,
    old_lows: Vec<(u32, u64)>,
    old_floors: Vec<(usize, u64)>,
    /// The sections whose floor the latest placement may have raised, each once.
    touched: Vec<usize>,
    /// Per section: the latest placement that touched it.
    touched_by: Vec<u64>,
    placement_count: u64,
    /// Number of buffers and sections visited so far.
    steps: u64,
}

impl<'a> Partial<'a> {
    /// An empty placement. Requires a problem that `validate` accepts, and its sections.
    pub(super) fn new(problem: &'a ArenaProblem, sections: &'a Sections, capacity: u64) -> Self {
        let grain = problem.grain_bytes();
        let item = |b: &Buffer| {
            let size = b.size_bytes.next_multiple_of(grain);
            let fixed = b.fixed_offset.is_some();
            Item { size, padding: size - b.size_bytes, fixed }
        };
        let items: Vec<Item> = problem.buffers.iter().map(item).collect();
        let section_count = sections.section_count();
        let mut totals = vec![0; section_count];
        let mut crossings = vec![0; section_count];
        for (buffer, item) in (0..).zip(&items) {
            let span = sections.span(buffer);
            totals[span.clone()].iter_mut().for_each(|total| *total += item.size);
            crossings[span.start..span.end - 1].iter_mut().for_each(|count| *count += 1);
        }
        Self {
            problem,
            sections,
            capacity,
            ceiling: capacity.next_multiple_of(grain),
            offsets: vec![0; items.len()],
            lows: problem.buffers.iter().map(|b| b.fixed_offset.unwrap_or(0)).collect(),
            items,
            floors: vec![0; section_count],
            totals,
            crossings,
            old_lows: Vec::new(),
            old_floors: Vec::new(),
            touched: Vec::new(),
            touched_by: vec![0; section_count],
            placement_count: 0,
            steps: 0,
        }
    }

    pub(super) fn is_placed(&self, buffer: u32) -> bool {
        self.lows[buffer as usize] == PLACED
    }

    /// The lowest possible offset of `buffer`, which must be unplaced.
    pub(super) fn low(&self, buffer: u32) -> u64 {
        self.lows[buffer as usize]
    }

    /// The lowest possible end of `buffer`, which must be unplaced; rounded up.
    pub(super) fn low_end(&self, buffer: u32) -> u64 {
        self.lows[buffer as usize] + self.items[buffer as usize].size
    }

    /// The largest sum of unplaced sizes in any of `sections`.
    pub(super) fn most_left(&self, sections: Range<usize>) -> u64 {
        self.totals[sections].iter().copied().max().unwrap_or(0)
    }

    /// The first offset that is too high for the next buffer, given the unplaced sizes above it.
    pub(super) fn offset_limit(&self, sections: Range<usize>) -> u64 {
        (self.ceiling + 1).saturating_sub(self.most_left(sections))
    }

    /// Whether no unplaced buffer is in both `section` and the next one.
    pub(super) fn is_cut_after(&self, section: usize) -> bool {
        self.crossings[section] == 0
    }

    /// Whether no unplaced buffer is live together with `buffer`.
    pub(super) fn is_hatless(&self, buffer: u32) -> bool {
        self.sections.neighbours(buffer).iter().all(|&other| self.is_placed(other))
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    pub(super) fn count_steps(&mut self, steps: usize) {
        self.steps += steps as u64;
    }

    pub(super) fn mark(&self) -> Mark {
        Mark { low_count: self.old_lows.len(), floor_count: self.old_floors.len() }
    }

    /// Places `buffer` at its lowest possible offset. Returns whether the others may still fit.
    ///
    /// Requires that no earlier offset is higher. Must be undone in either case.
    pub(super) fn place(&mut self, buffer: u32) -> bool {
        let index = buffer as usize;
        let (end, size) = (self.low_end(buffer), self.items[index].size);
        self.offsets[index] = std::mem::replace(&mut self.lows[index], PLACED);
        self.placement_count += 1;
        self.touched.clear();
        let span = self.sections.span(buffer);
        self.crossings[span.start..span.end - 1].iter_mut().for_each(|count| *count -= 1);
        for section in span {
            self.old_floors.push((section, self.floors[section]));
            self.floors[section] = end;
            self.totals[section] -= size;
            self.touch(section);
        }
        end - self.items[index].padding <= self.capacity
            && self.raise_neighbours(buffer, end)
            && self.raise_floors()
    }

    /// Undoes the latest placement, which was of `buffer` at `mark`.
    pub(super) fn undo(&mut self, buffer: u32, mark: Mark) {
        for (other, low) in self.old_lows.drain(mark.low_count..) {
            self.lows[other as usize] = low;
        }
        for (section, floor) in self.old_floors.drain(mark.floor_count..).rev() {
            self.floors[section] = floor;
        }
        let span = self.sections.span(buffer);
        self.crossings[span.start..span.end - 1].iter_mut().for_each(|count| *count += 1);
        let size = self.items[buffer as usize].size;
        self.totals[span].iter_mut().for_each(|total| *total += size);
        self.lows[buffer as usize] = self.offsets[buffer as usize];
    }

    /// Raises all unplaced buffers that meet `buffer` above its end. False if a fixed one would
    /// move.
    fn raise_neighbours(&mut self, buffer: u32, end: u64) -> bool {
        let sections = self.sections;
        let neighbours = sections.neighbours(buffer);
        self.count_steps(neighbours.len());
        for &other in neighbours {
            let low = self.lows[other as usize];
            if low >= end {
                continue;
            }
            if self.items[other as usize].fixed {
                return false;
            }
            self.old_lows.push((other, low));
            let buffer = &self.problem.buffers[other as usize];
            self.lows[other as usize] = self.problem.lowest_offset(buffer, end);
            for section in sections.span(other) {
                // In other sections the floor rests on a lower buffer.
                if low <= self.floors[section] {
                    self.touch(section);
                }
            }
        }
        true
    }

    /// Raises the floor of each touched section to its lowest unplaced buffer. False if the
    /// unplaced sizes above a floor exceed the capacity.
    fn raise_floors(&mut self) -> bool {
        for i in 0..self.touched.len() {
            let section = self.touched[i];
            if self.totals[section] == 0 {
                continue;
            }
            let members = self.sections.members(section);
            self.count_steps(members.len());
            let lowest = members.iter().map(|&b| self.lows[b as usize]).min().unwrap_or(0);
            if self.floors[section] < lowest {
                self.old_floors.push((section, self.floors[section]));
                self.floors[section] = lowest;
            }
            if self.floors[section] + self.totals[section] > self.ceiling {
                return false;
            }
        }
        true
    }

    fn touch(&mut self, section: usize) {
        if self.touched_by[section] != self.placement_count {
            self.touched_by[section] = self.placement_count;
            self.touched.push(section);
        }
    }

    /// The offsets of all buffers. Valid once all buffers are placed.
    pub(super) fn into_offsets(self) -> Vec<u64> {
        self.offsets
    }
}
