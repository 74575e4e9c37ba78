//! Decisions from bytes. Where the bytes have run out every decision is the simplest one.

use arbtest::arbitrary::Unstructured;
use std::ops::RangeInclusive;

/// Bytes that decide.
pub struct Entropy<'a>(pub Unstructured<'a>);

impl Entropy<'_> {
    /// True in so many of a hundred cases.
    pub fn chance(&mut self, percent: u8) -> bool {
        self.within(0..=99) >= 100 - usize::from(percent)
    }

    /// A number less than `count`.
    pub fn below(&mut self, count: usize) -> usize {
        self.within(0..=count - 1)
    }

    /// A number of a range.
    pub fn within(&mut self, range: RangeInclusive<usize>) -> usize {
        self.0.int_in_range(range).expect("the range is not empty")
    }

    /// An element of a list.
    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}
