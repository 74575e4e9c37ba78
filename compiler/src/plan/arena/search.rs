//! Exact search for a placement below a capacity: depth first, from the bottom up.
//!
//! Only *canonical* placements are visited: every buffer rests on the floor or on another one, and
//! buffers are placed by rising offset. So a buffer's offset is known before it is placed: it is
//! the lowest one above its placed neighbours. The search only chooses the next buffer. Four rules
//! prune it:
//!
//! - **Sections.** The lowest offset of an unplaced buffer in a section is the section's floor. The
//!   unplaced sizes of the section, stacked on its floor, must end below the capacity. Offsets
//!   rise, so no floor is below the latest offset.
//! - **Dominance.** A buffer is not placed if another one fits in the gap below it.
//! - **Decomposition.** If no unplaced buffer crosses some instant, the two sides are separate
//!   problems. A solved side is not solved again if the other one fails.
//! - **Hatless.** A buffer that has no other buffer above it is not tried at higher offsets.
//!
//! Source: Moffitt, MiniMalloc, ASPLOS 2023 (doi:10.1145/3623278.3624752).

use std::cmp::Reverse;
use std::ops::Range;
use std::time::Instant;

use super::ArenaProblem;
use super::partial::{Mark, Partial};
use super::sections::Sections;

/// The end of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A placement was found.
    Found,
    /// Every candidate placement was tried.
    Exhausted,
    /// The search reached its limit.
    Aborted,
}

/// Order of buffers with the same offset: the largest first by three numbers. Area is size times
/// length of the live range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preference {
    /// Live range, area, contention.
    LiveRange,
    /// Contention, area, live range.
    ContentionArea,
    /// Contention, live range, area.
    ContentionLiveRange,
}

/// Preference and limits of a search.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    /// The preference among buffers.
    pub(super) preference: Preference,
    /// Largest number of buffers and sections to visit.
    pub(super) step_limit: u64,
    /// Time at which the search stops in any case.
    pub(super) deadline: Option<Instant>,
}

/// Sections that share no unplaced buffer with any other section.
#[derive(Clone, Debug)]
struct Part {
    sections: Range<usize>,
    /// Range of the part's buffers in `Search::lists`, the preferred ones first.
    list: Range<usize>,
    /// The frame whose buffer separated the part; `None` if nothing had to be placed.
    owner: Option<usize>,
}

/// A choice of one buffer.
#[derive(Debug)]
struct Frame {
    part: usize,
    /// Whether this is the first choice in its part.
    first: bool,
    /// Start of the frame's choices in `Search::choices`. They end at the start of the next
    /// frame's.
    choices_start: usize,
    /// Index of the next choice to try.
    next_choice: usize,
    placed: Option<u32>,
    mark: Mark,
    list_len: usize,
    part_count: usize,
    pending_count: usize,
}

/// An offset, and the rank in the part's list of the buffer to place there.
type Choice = (u64, usize);

enum Move {
    /// Choose the next buffer of `part`, starting at `least`.
    Choose { part: usize, least: Choice, first: bool },
    /// Try the topmost frame's next choice.
    Advance,
    /// Continue with the next part: this one is complete.
    Complete,
}

/// A search in progress.
#[derive(Debug)]
pub(super) struct Search<'a> {
    sections: &'a Sections,
    setting: Setting,
    partial: Partial<'a>,
    lengths: Vec<u64>,
    sizes: Vec<u64>,
    frames: Vec<Frame>,
    choices: Vec<Choice>,
    parts: Vec<Part>,
    lists: Vec<u32>,
    /// Parts that are not begun. The last one is next.
    pending: Vec<usize>,
}

impl<'a> Search<'a> {
    /// Prepares a search for a placement that ends at or below `capacity`.
    ///
    /// Requires a problem that `validate` accepts, and its sections.
    pub(super) fn new(
        problem: &'a ArenaProblem,
        sections: &'a Sections,
        capacity: u64,
        setting: Setting,
    ) -> Self {
        Self {
            sections,
            setting,
            partial: Partial::new(problem, sections, capacity),
            lengths: problem.buffers.iter().map(|b| u64::from(b.upper - b.lower)).collect(),
            sizes: problem.buffers.iter().map(|b| b.size_bytes).collect(),
            frames: Vec::new(),
            choices: Vec::new(),
            parts: Vec::new(),
            lists: Vec::new(),
            pending: Vec::new(),
        }
    }

    /// Runs until an outcome is reached.
    pub(super) fn run(&mut self) -> Outcome {
        self.lists.extend(0..self.sizes.len() as u32);
        self.cut(0..self.lists.len(), None);
        let mut next = Move::Complete;
        loop {
            next = match next {
                Move::Choose { .. } if self.is_spent() => return Outcome::Aborted,
                Move::Choose { part, least, first } => self.choose(part, least, first),
                Move::Advance if self.frames.is_empty() => return Outcome::Exhausted,
                Move::Advance => self.advance(),
                Move::Complete => match self.pending.pop() {
                    Some(part) => Move::Choose { part, least: (0, 0), first: true },
                    None => return Outcome::Found,
                },
            }
        }
    }

    /// Number of buffers and sections visited so far.
    pub(super) fn steps(&self) -> u64 {
        self.partial.steps()
    }

    /// The offsets of the placement that was found.
    pub(super) fn into_offsets(self) -> Vec<u64> {
        self.partial.into_offsets()
    }

    fn is_spent(&self) -> bool {
        self.partial.steps() >= self.setting.step_limit
            || self.setting.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Lists the candidates for the next placement in `part`. Without candidates, the part is
    /// complete.
    fn choose(&mut self, part: usize, least: Choice, first: bool) -> Move {
        let Part { sections, list, .. } = self.parts[part].clone();
        self.partial.count_steps(list.len() + sections.len());
        let list = &self.lists[list];
        let left = || list.iter().zip(0..).filter(|&(&b, _)| !self.partial.is_placed(b));
        let Some(lowest_end) = left().map(|(&b, _)| self.partial.low_end(b)).min() else {
            return Move::Complete;
        };
        let offset_limit = lowest_end.min(self.partial.offset_limit(sections));
        let choices_start = self.choices.len();
        let choices = left().map(|(&b, rank)| (self.partial.low(b), rank));
        self.choices.extend(choices.filter(|&c| c.0 < offset_limit && c >= least));
        self.choices[choices_start..].sort_unstable();
        self.frames.push(Frame {
            part,
            first,
            choices_start,
            next_choice: choices_start,
            placed: None,
            mark: self.partial.mark(),
            list_len: self.lists.len(),
            part_count: self.parts.len(),
            pending_count: self.pending.len(),
        });
        Move::Advance
    }

    /// Undoes the topmost frame's choice, if it made one, and makes the next one.
    fn advance(&mut self) -> Move {
        let Some(mut frame) = self.frames.pop() else {
            return Move::Advance;
        };
        let mut is_done = frame.next_choice == self.choices.len();
        if let Some(buffer) = self.take_back(&mut frame) {
            is_done |= self.partial.is_hatless(buffer);
        }
        if is_done {
            self.choices.truncate(frame.choices_start);
            if frame.first {
                self.abandon(frame.part);
            }
            return Move::Advance;
        }
        let (offset, rank) = self.choices[frame.next_choice];
        let list = self.parts[frame.part].list.clone();
        let (part, buffer) = (frame.part, self.lists[list.start + rank]);
        frame.next_choice += 1;
        frame.placed = Some(buffer);
        self.frames.push(frame);
        if !self.partial.place(buffer) {
            return Move::Advance;
        }
        let span = self.sections.span(buffer);
        if (span.start..span.end - 1).any(|section| self.partial.is_cut_after(section)) {
            self.cut(list, Some(self.frames.len() - 1));
            return Move::Complete;
        }
        Move::Choose { part, least: (offset, rank), first: false }
    }

    /// Returns to the state before `part` was begun, and to the frame that separated it. With that
    /// frame's buffer placed there, the part has no solution, regardless of the parts beside it.
    fn abandon(&mut self, part: usize) {
        let frame_count = self.parts[part].owner.map_or(0, |owner| owner + 1);
        while self.frames.len() > frame_count {
            if let Some(mut frame) = self.frames.pop() {
                self.take_back(&mut frame);
                self.choices.truncate(frame.choices_start);
            }
        }
    }

    /// Undoes everything that follows from the frame's latest choice. Returns the buffer that it
    /// placed.
    fn take_back(&mut self, frame: &mut Frame) -> Option<u32> {
        let buffer = frame.placed.take()?;
        self.partial.undo(buffer, frame.mark);
        self.lists.truncate(frame.list_len);
        self.parts.truncate(frame.part_count);
        self.pending.truncate(frame.pending_count);
        Some(buffer)
    }

    /// Divides the unplaced buffers of `list` into parts, and adds the parts to `pending`.
    fn cut(&mut self, list: Range<usize>, owner: Option<usize>) {
        let list_start = self.lists.len();
        self.partial.count_steps(list.len());
        for i in list {
            let buffer = self.lists[i];
            if !self.partial.is_placed(buffer) {
                self.lists.push(buffer);
            }
        }
        let sections = self.sections;
        self.lists[list_start..].sort_unstable_by_key(|&b| sections.span(b).start);
        let pending_start = self.pending.len();
        let mut start = list_start;
        while start < self.lists.len() {
            let first = sections.span(self.lists[start]).start;
            let last = (first..sections.section_count()).find(|&s| self.partial.is_cut_after(s));
            let span = first..last.map_or(sections.section_count(), |last| last + 1);
            let inside = |&b: &u32| span.contains(&sections.span(b).start);
            let list = start..start + self.lists[start..].partition_point(inside);
            start = list.end;
            self.rank(list.clone());
            self.pending.push(self.parts.len());
            self.parts.push(Part { sections: span, list, owner });
        }
        self.pending[pending_start..].reverse();
    }

    /// Sorts the buffers of `list` by preference.
    fn rank(&mut self, list: Range<usize>) {
        let Self { sections, setting, partial, lengths, sizes, lists, .. } = self;
        lists[list].sort_by_cached_key(|&b| {
            let length = u128::from(lengths[b as usize]);
            let area = length * u128::from(sizes[b as usize]);
            let contention = u128::from(partial.most_left(sections.span(b)));
            let numbers = match setting.preference {
                Preference::LiveRange => [length, area, contention],
                Preference::ContentionArea => [contention, area, length],
                Preference::ContentionLiveRange => [contention, length, area],
            };
            (Reverse(numbers), b)
        });
    }
}
