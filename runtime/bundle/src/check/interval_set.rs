//! A set of bytes as disjoint half-open intervals.

use std::collections::BTreeMap;

/// Bytes of a buffer that have been written.
#[derive(Clone, Debug, Default)]
pub(super) struct IntervalSet {
    /// Start to end; neighbours do not touch.
    intervals: BTreeMap<u64, u64>,
}

impl IntervalSet {
    /// Adds `[start, end)`.
    pub(super) fn insert(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        while let Some((&other_start, &other_end)) = self.intervals.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.intervals.remove(&other_start);
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.intervals.insert(start, end);
    }

    /// The first part of `[start, end)` that is missing.
    pub(super) fn gap(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        let covered_to = match self.intervals.range(..=start).next_back() {
            Some((_, &other_end)) => other_end.max(start),
            None => start,
        };
        if covered_to >= end {
            return None;
        }
        let next = self.intervals.range(covered_to..).next().map_or(end, |(&next, _)| next);
        Some((covered_to, next.min(end)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_bitmap() {
        arbtest::arbtest(|u| {
            let mut set = IntervalSet::default();
            let mut bits = [false; 64];
            for _ in 0..u.int_in_range(0..=20)? {
                let start = u.int_in_range(0..=63)?;
                let end = u.int_in_range(0..=64)?;
                set.insert(start as u64, end as u64);
                (start..end).for_each(|bit| bits[bit] = true);
            }
            let start = u.int_in_range(0..=63)?;
            let end = u.int_in_range(0..=64)?;
            let gap = set.gap(start as u64, end as u64);
            let first = (start..end).find(|&bit| !bits[bit]);
            let last = first.map(|first| (first..end).find(|&bit| bits[bit]).unwrap_or(end));
            assert_eq!(gap, first.zip(last).map(|(first, last)| (first as u64, last as u64)));
            let touching = set.intervals.iter().zip(set.intervals.iter().skip(1));
            assert!(touching.into_iter().all(|((_, end), (start, _))| end < start));
            Ok(())
        })
        .budget_ms(300);
    }
}
