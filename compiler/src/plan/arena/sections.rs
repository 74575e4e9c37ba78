//! Time cut into sections, one from each start of a live range to the next.
//!
//! A buffer is in a section if it is live at the section's start. Two buffers meet if and only if
//! they share a section:
//!
//! ```text
//!   | b0 b0 b0 b0 b0 |                   b0 in 0..3
//!         | b1 b1 | b2 b2 b2 b2 |        b1 in 1..2, b2 in 2..4
//!                      | b3 | b4 |       b3 in 3..4, b4 in 4..5
//!   |  0  |  1    | 2  | 3  | 4
//!   +-------------------------------- time
//! ```

use std::ops::Range;

use super::ArenaProblem;

/// The buffers that meet, by section and by buffer. Derived from the live ranges.
#[derive(Debug)]
pub(super) struct Sections {
    /// The sections in which each buffer is live.
    spans: Vec<Range<usize>>,
    /// The buffers of each section.
    members: Lists,
    /// The buffers that share a section with each buffer, without the buffer itself.
    neighbours: Lists,
}

impl Sections {
    pub(super) fn new(problem: &ArenaProblem) -> Self {
        let buffers = &problem.buffers;
        let mut times: Vec<u32> = buffers.iter().map(|b| b.lower).collect();
        times.sort_unstable();
        times.dedup();
        let section_at = |time: u32| times.partition_point(|&t| t < time);
        let spans: Vec<Range<usize>> =
            buffers.iter().map(|b| section_at(b.lower)..section_at(b.upper)).collect();

        let mut members = vec![Vec::new(); times.len()];
        for (buffer, span) in (0u32..).zip(&spans) {
            members[span.clone()].iter_mut().for_each(|list| list.push(buffer));
        }
        // Two buffers meet if one is live in the section where the other starts.
        let mut neighbours = vec![Vec::new(); buffers.len()];
        for (section, list) in members.iter().enumerate() {
            let begins = |b: u32| spans[b as usize].start == section;
            for &a in list.iter().filter(|&&a| begins(a)) {
                for &b in list.iter().filter(|&&b| !begins(b) || b < a) {
                    neighbours[a as usize].push(b);
                    neighbours[b as usize].push(a);
                }
            }
        }
        Self { spans, members: Lists::new(&members), neighbours: Lists::new(&neighbours) }
    }

    pub(super) fn section_count(&self) -> usize {
        self.members.len()
    }

    /// The sections in which `buffer` is live; never empty.
    pub(super) fn span(&self, buffer: u32) -> Range<usize> {
        self.spans[buffer as usize].clone()
    }

    /// The buffers that are live in `section`.
    pub(super) fn members(&self, section: usize) -> &[u32] {
        self.members.get(section)
    }

    /// The buffers that are live together with `buffer` at some instant.
    pub(super) fn neighbours(&self, buffer: u32) -> &[u32] {
        self.neighbours.get(buffer as usize)
    }
}

/// Many short lists in one allocation.
#[derive(Debug)]
struct Lists {
    items: Vec<u32>,
    ends: Vec<usize>,
}

impl Lists {
    fn new(lists: &[Vec<u32>]) -> Self {
        let ends = lists.iter().scan(0, |end, list| {
            *end += list.len();
            Some(*end)
        });
        Self { ends: ends.collect(), items: lists.concat() }
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn get(&self, index: usize) -> &[u32] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.items[start..self.ends[index]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::arena::Buffer;

    #[test]
    fn buffers_meet_exactly_when_they_share_a_section() {
        let lifespans = [(0, 4), (2, 5), (4, 8), (5, 6), (9, 12), (9, 10), (11, 12)];
        let buffers = lifespans.iter().map(|&(lower, upper)| Buffer::new(lower, upper, 1, 1));
        let problem =
            ArenaProblem { buffers: buffers.collect(), capacity_bytes: None, part_bytes: None };
        let sections = Sections::new(&problem);
        assert_eq!(sections.section_count(), 6);
        for (i, a) in lifespans.iter().enumerate() {
            let meets = |&(lower, upper): &(u32, u32)| lower < a.1 && a.0 < upper;
            let expected: Vec<u32> =
                (0u32..).zip(&lifespans).filter(|(_, b)| meets(b)).map(|(j, _)| j).collect();
            let mut found = sections.neighbours(i as u32).to_vec();
            found.push(i as u32);
            found.sort_unstable();
            assert_eq!(found, expected, "buffer {i}");
            for section in 0..sections.section_count() {
                let live = sections.members(section).contains(&(i as u32));
                assert_eq!(live, sections.span(i as u32).contains(&section));
            }
        }
    }
}
