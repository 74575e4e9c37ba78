//! Splits weights that are too large for one launch into ranges of output columns.

use crate::Argument;

/// A run of units (panels, or single columns of row-major weights) in one launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Number of units.
    pub units: usize,
    /// First stored column.
    pub first_column: usize,
    /// Accumulator columns, padding included.
    pub accumulators: usize,
    weight_range: (u64, u64),
    bias_range: (u64, u64),
}

impl Split {
    /// The region of the weights.
    pub fn weights(&self, index: usize) -> Argument {
        region(index, self.weight_range)
    }

    /// Bytes of the region of the weights.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_range.1
    }

    /// The region of the bias.
    pub fn bias(&self, index: usize) -> Argument {
        region(index, self.bias_range)
    }
}

fn region(index: usize, (offset_bytes, len_bytes): (u64, u64)) -> Argument {
    Argument::Input { index, offset_bytes, len_bytes }
}

/// Alignment of regions in bytes, if the limit leaves room for it.
const ALIGNMENT_BYTES: u64 = 128;

/// Splits `units` so that no launch reads more than `max_bytes` of weights, but at least one unit
/// each. A unit has `width` accumulator columns and `out_width` stored columns. Launches are as
/// equal as the alignment of their regions allows, and multiples of `workers` units if there is
/// room.
pub fn splits(
    units: usize,
    width: usize,
    out_width: usize,
    weight_bytes: u64,
    bias_bytes: u64,
    max_bytes: u64,
    workers: usize,
) -> Vec<Split> {
    let most = (max_bytes / weight_bytes.max(1)).clamp(1, units as u64) as usize;
    let aligned = |n: &usize| {
        (*n as u64 * weight_bytes).is_multiple_of(ALIGNMENT_BYTES)
            && (*n as u64 * bias_bytes).is_multiple_of(ALIGNMENT_BYTES)
    };
    let quantum = |of: usize| (1..=128).find(|n: &usize| n.is_multiple_of(of) && aligned(n));
    let shared = quantum(workers).filter(|n| *n <= most);
    let quantum = shared.or(quantum(1)).unwrap_or(1);
    let even = units.div_ceil(units.div_ceil(most));
    let step = if even == units {
        units
    } else if most >= quantum {
        (even.next_multiple_of(quantum)).min(most / quantum * quantum)
    } else {
        even
    };
    let range =
        |first: usize, count: usize, bytes: u64| (first as u64 * bytes, count as u64 * bytes);
    (0..units)
        .step_by(step)
        .map(|first| {
            let count = step.min(units - first);
            Split {
                units: count,
                first_column: first * out_width,
                accumulators: count * width,
                weight_range: range(first, count, weight_bytes),
                bias_range: range(first, count, bias_bytes),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_every_unit_once_within_the_limit() {
        for (units, weight, bias, max) in
            [(10, 1000, 128, 3000), (7, 64, 64, 1 << 20), (9, 4096, 64, 8192), (3, 50, 0, 10)]
        {
            let list = splits(units, 32, 32, weight, bias, max, 2);
            assert_eq!(list.iter().map(|s| s.units).sum::<usize>(), units);
            let mut next = (0, 0);
            for split in &list {
                assert_eq!((split.weight_range.0, split.bias_range.0), next);
                next = (next.0 + split.weight_range.1, next.1 + split.bias_range.1);
                assert!(split.weight_range.1 <= max || split.units == 1);
            }
        }
    }

    #[test]
    fn regions_are_aligned_where_the_limit_allows() {
        let list = splits(64, 32, 32, 64 * 77, 64, 64 * 77 * 9, 1);
        assert!(list.len() > 1);
        assert!(list.iter().all(|s| s.weight_range.0 % 128 == 0 && s.bias_range.0 % 128 == 0));
    }

    #[test]
    fn launches_give_each_worker_as_much() {
        let units = |workers| -> Vec<_> {
            splits(40, 32, 32, 128, 128, 5 * 128, workers).iter().map(|s| s.units).collect()
        };
        assert_eq!(units(1), [5; 8]);
        assert_eq!(units(2), [4; 10]);
        assert_eq!(units(8), [5; 8]);
    }
}
