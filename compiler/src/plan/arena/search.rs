//! Exact search for a placement below a capacity: depth first, from the bottom up.
//!
//! Only *canonical* placements are visited: every buffer rests on the floor or on another one, and
//! buffers are placed by rising offset. So a buffer's offset is known before it is placed, namely
//! the lowest one above its placed neighbours, and the search only chooses which one is next.
//! What prunes it:
//!
//! - **Sections.** The lowest offset of a buffer left in a section is the section's floor; the
//!   sizes left in it, stacked on that floor, must end below the capacity. As offsets rise, no
//!   floor is below the offset chosen last.
//! - **Dominance.** A buffer is not placed where another one would fit in the gap below it.
//! - **Decomposition.** Where no buffer left crosses some point in time, the two sides are problems
//!   of their own: a solved side is not solved again because the other one fails.
//! - **Hatless.** A buffer that no other one can be put above is not tried any higher.
//!
//! Source: Moffitt, MiniMalloc, ASPLOS 2023 (doi:10.1145/3623278.3624752).

use std::cmp::Reverse;
use std::ops::Range;
use std::time::Instant;

use super::Problem;
use super::partial::{Mark, Partial};
use super::sections::Sections;

/// How a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With a placement.
    Found,
    /// With every placement tried that could be the lowest.
    Exhausted,
    /// At its limit.
    Aborted,
}

/// Which of several buffers with the same offset is tried first: the largest by three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preference {
    /// Lifespan, area, contention, where area is size times lifespan.
    Life,
    /// Contention, area, lifespan.
    ContentionArea,
    /// Contention, lifespan, area.
    ContentionLife,
}

/// What makes a search different from others of the same problem, and when it gives up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    /// The preference among buffers.
    pub(super) preference: Preference,
    /// Buffers and sections it may look at.
    pub(super) step_limit: u64,
    /// When to stop in any case.
    pub(super) deadline: Option<Instant>,
}

/// Sections that share no buffer left to place with any other.
#[derive(Clone, Debug)]
struct Part {
    sections: Range<usize>,
    /// Its buffers in `Search::lists`, the preferred first.
    list: Range<usize>,
    /// The frame whose buffer cut it off; `None` if nothing had to be placed for that.
    owner: Option<usize>,
}

/// The choice of one buffer.
#[derive(Debug)]
struct Frame {
    part: usize,
    /// Whether it is the first choice in its part.
    first: bool,
    /// Where its choices begin in `Search::choices`; they end where the next frame's begin.
    choices_start: usize,
    /// The next choice to be tried.
    next_choice: usize,
    placed: Option<u32>,
    mark: Mark,
    list_len: usize,
    part_count: usize,
    pending_count: usize,
}

/// An offset and the rank in the part's list of the buffer that would be placed there.
type Choice = (u64, usize);

enum Move {
    /// Choose the next buffer of `part`, not before `least`.
    Choose { part: usize, least: Choice, first: bool },
    /// Try the topmost frame's next choice.
    Advance,
    /// Go on with the next part: this one is complete.
    Complete,
}

/// A search under way.
#[derive(Debug)]
pub(super) struct Search<'a> {
    sections: &'a Sections,
    setting: Setting,
    partial: Partial<'a>,
    lives: Vec<u64>,
    sizes: Vec<u64>,
    frames: Vec<Frame>,
    choices: Vec<Choice>,
    parts: Vec<Part>,
    lists: Vec<u32>,
    /// Parts not begun; the next one is the last.
    pending: Vec<usize>,
}

impl<'a> Search<'a> {
    /// Prepares the search for a placement that ends at or below `capacity`.
    ///
    /// Requires a problem that `validate` accepts, and its sections.
    pub(super) fn new(
        problem: &Problem,
        sections: &'a Sections,
        capacity: u64,
        setting: Setting,
    ) -> Self {
        Self {
            sections,
            setting,
            partial: Partial::new(problem, sections, capacity),
            lives: problem.buffers.iter().map(|b| u64::from(b.upper - b.lower)).collect(),
            sizes: problem.buffers.iter().map(|b| b.size_bytes).collect(),
            frames: Vec::new(),
            choices: Vec::new(),
            parts: Vec::new(),
            lists: Vec::new(),
            pending: Vec::new(),
        }
    }

    /// Searches until one of the outcomes.
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

    /// Buffers and sections looked at so far.
    pub(super) fn steps(&self) -> u64 {
        self.partial.steps()
    }

    /// The offsets, once a placement is found.
    pub(super) fn into_offsets(self) -> Vec<u64> {
        self.partial.into_offsets()
    }

    fn is_spent(&self) -> bool {
        self.partial.steps() >= self.setting.step_limit
            || self.setting.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Lists what can be placed next in `part`; with nothing left, the part is complete.
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

    /// Takes back the topmost frame's choice, if it made one, and makes its next one.
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

    /// Goes back to before `part` was begun and to the frame that cut it off: with the buffer
    /// placed there, the part has no solution, whatever was found for the parts beside it.
    fn abandon(&mut self, part: usize) {
        let frame_count = self.parts[part].owner.map_or(0, |owner| owner + 1);
        while self.frames.len() > frame_count {
            if let Some(mut frame) = self.frames.pop() {
                self.take_back(&mut frame);
                self.choices.truncate(frame.choices_start);
            }
        }
    }

    /// Undoes all that came of the frame's latest choice; returns the buffer it had placed.
    fn take_back(&mut self, frame: &mut Frame) -> Option<u32> {
        let buffer = frame.placed.take()?;
        self.partial.undo(buffer, frame.mark);
        self.lists.truncate(frame.list_len);
        self.parts.truncate(frame.part_count);
        self.pending.truncate(frame.pending_count);
        Some(buffer)
    }

    /// Makes parts of the buffers left of `list`, and puts them in line.
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
        let Self { sections, setting, partial, lives, sizes, lists, .. } = self;
        lists[list].sort_by_cached_key(|&b| {
            let life = u128::from(lives[b as usize]);
            let area = life * u128::from(sizes[b as usize]);
            let contention = u128::from(partial.most_left(sections.span(b)));
            let numbers = match setting.preference {
                Preference::Life => [life, area, contention],
                Preference::ContentionArea => [contention, area, life],
                Preference::ContentionLife => [contention, life, area],
            };
            (Reverse(numbers), b)
        });
    }
}
